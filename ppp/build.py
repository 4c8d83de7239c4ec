"""From a checked recipe to the things it names: tokenizer, codec, model, engine, pool. Training and evaluation share
this."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ppp.checks import refuse, refuse_unknown
from ppp.codec import Codec
from ppp.engines import ENGINES, engine_class
from ppp.engines.base import Engine, EngineSettings
from ppp.recipe import Recipe
from ppp.rollout import RolloutPool
from ppp.tiny_model import byte_tokenizer, save_tiny_model, tiny_model
from ppp.types import RecipeError, RunStoppedError
from ppp.users.crowd import Crowd
from ppp.whole_models import whole_models

logger = logging.getLogger(__name__)

TINY_MODEL_DIR = "tiny_model"
TRAINED = sorted(set(ENGINES) - {"scripted"})
# What transformers raises for a model that cannot be loaded.
LOAD_ERRORS = (OSError, ValueError, KeyError, ImportError, TypeError)


def build_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The tokenizer of the recipe's model; cheap, so that a wrong name is found before anything else is done.

    Raises:
        RecipeError: there is no such model, it brings no tokenizer or one without an end-of-turn token, or the file of
            `chat_template` cannot be read.
    """
    if recipe.config.tiny_model:
        tokenizer: PreTrainedTokenizerBase = byte_tokenizer()
    else:
        tokenizer = _load_tokenizer(str(recipe.config.model_name_or_path), recipe.args.trust_remote_code)
    use_chat_template(recipe, tokenizer)
    return tokenizer


def use_chat_template(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Put the recipe's chat template, if it brings one, in the place of the tokenizer's; it is saved with the model.

    Raises:
        RecipeError: the file cannot be read.
    """
    name = recipe.config.chat_template
    if name is None:
        return
    try:
        tokenizer.chat_template = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise refuse("chat_template", name, f"name a Jinja file ({error})") from error


def _load_tokenizer(name: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left", trust_remote_code=trust_remote_code)
    except LOAD_ERRORS as error:
        first_line = str(error).strip().split("\n")[0]
        raise refuse(
            "model_name_or_path", name, f"a folder or a name on the Hub with a tokenizer ({first_line})"
        ) from error
    if tokenizer.eos_token is None:
        raise refuse(
            "model_name_or_path", name, "its tokenizer names no EOS token, and turns end with one; set eos_token in it"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def build_codec(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Codec:
    """The codec of the recipe's tokenizer, its template tried out.

    Raises:
        RecipeError: tokenizer or template cannot be used; it names the file where the recipe brings the template.
    """
    config = recipe.config
    try:
        return Codec.from_tokenizer(tokenizer, config.call_format, recipe.args.chat_template_kwargs)
    except RecipeError as error:
        if config.chat_template is None:
            raise
        raise refuse("chat_template", config.chat_template, str(error)) from error


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: Path | None = None) -> PreTrainedModel:
    """The model, on the CPU; a folder that holds an adapter gives its base model with the adapter.

    Args:
        folder: where a tiny model is written first, because a KL term needs a reference that can be loaded by name; the
            same for all processes.

    Raises:
        RecipeError: the model cannot be loaded.
    """
    config, args = recipe.config, recipe.args
    name = config.model_name_or_path
    if config.tiny_model:
        max_length = max_context(recipe)
        if folder is None:
            return tiny_model(byte_tokenizer(), args.seed, max_length)
        if PartialState().is_main_process:  # no other process's `save_pretrained` would write anything
            save_tiny_model(folder, args.seed, max_length)
        PartialState().wait_for_everyone()
        name = str(folder)
    options: dict[str, Any] = {
        "dtype": config.dtype if config.dtype == "auto" else getattr(torch, config.dtype),
        "trust_remote_code": args.trust_remote_code,
        **(args.model_init_kwargs or {}),
    }
    try:
        if (Path(str(name)) / "adapter_config.json").is_file():
            base = str(PeftConfig.from_pretrained(name).base_model_name_or_path)
            options = {**_without_dropout(base, options), **options}
            return AutoPeftModelForCausalLM.from_pretrained(name, is_trainable=True, **options)
        return AutoModelForCausalLM.from_pretrained(name, **{**_without_dropout(str(name), options), **options})
    except LOAD_ERRORS as error:
        first_line = str(error).strip().split("\n")[0]
        raise refuse("model_name_or_path", name, f"a model that transformers can load ({first_line})") from error


def _without_dropout(name: str, options: Mapping[str, Any]) -> dict[str, float]:
    """The dropouts that the configuration of a model brings, each set to 0.

    Some models (Seed-OSS) apply theirs as a function: no module of theirs can be found and switched off afterwards, and
    trainer and engine would disagree about every token. A recipe can set them in `model_init_kwargs`.
    """
    known = {key: options[key] for key in ("trust_remote_code", "revision") if key in options}
    model_config = AutoConfig.from_pretrained(name, **known)
    active = {
        key: value
        for key, value in model_config.to_dict().items()
        if ("dropout" in key or key.endswith("pdrop")) and isinstance(value, float) and value > 0 and key not in options
    }
    if active:
        shown = ", ".join(f"{key} ({value:g})" for key, value in sorted(active.items()))
        logger.info("dropout of %s switched off: %s; model_init_kwargs can set it", name, shown)
    return dict.fromkeys(active, 0.0)


def build_peft_config(recipe: Recipe) -> LoraConfig | None:
    """LoRA as the recipe wants it; None to train all weights."""
    config = recipe.config
    if not config.use_peft:
        return None
    modules: str | list[str] = config.lora_target_modules
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear" if modules == ["all-linear"] else modules,
        task_type="CAUSAL_LM",
    )


def check_adapters(recipe: Recipe) -> None:
    """Find out, before the model is loaded, whether it has the modules that are to get adapters.

    Raises:
        RecipeError: it does not; names those that it has.
    """
    config = recipe.config
    wanted = config.lora_target_modules
    name = config.model_name_or_path
    if not config.use_peft or wanted == ["all-linear"] or (name and (Path(name) / "adapter_config.json").is_file()):
        return
    if config.tiny_model:
        model: torch.nn.Module = tiny_model(byte_tokenizer(), recipe.args.seed, max_length=8)
    else:
        trust = recipe.args.trust_remote_code
        try:
            with torch.device("meta"), whole_models():
                model = AutoModelForCausalLM.from_config(
                    AutoConfig.from_pretrained(name, trust_remote_code=trust), trust_remote_code=trust
                )
        except LOAD_ERRORS as error:
            first_line = str(error).strip().split("\n")[0]
            raise refuse("model_name_or_path", name, f"a model that transformers can load ({first_line})") from error
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    there = {path for path, module in model.named_modules() if isinstance(module, kinds)}
    for entry in wanted:
        if not any(path == entry or path.endswith(f".{entry}") for path in there):
            known = {path.rpartition(".")[2] for path in there}
            raise refuse_unknown("lora_target_modules", entry, {*known, "all-linear"})


def max_context(recipe: Recipe) -> int:
    """Tokens of the longest trajectory that the limits allow, prompt included."""
    limits = recipe.config.build_limits(recipe.args.max_completion_length or 1)
    return limits.max_prompt_tokens + limits.max_completion_tokens


def check_context(recipe: Recipe) -> None:
    """Find out, before its weights are loaded, whether a model can hold the longest session that the limits allow.

    Raises:
        RecipeError: it cannot; names both lengths.
    """
    if recipe.config.tiny_model:  # it is made as long as it has to be
        return
    name = str(recipe.config.model_name_or_path)
    if (Path(name) / "adapter_config.json").is_file():
        name = str(PeftConfig.from_pretrained(name).base_model_name_or_path)
    try:
        model_config = AutoConfig.from_pretrained(name, trust_remote_code=recipe.args.trust_remote_code)
    except LOAD_ERRORS as error:
        first_line = str(error).strip().split("\n")[0]
        raise refuse("model_name_or_path", name, f"a model that transformers can load ({first_line})") from error
    positions = model_config.get_text_config().to_dict().get("max_position_embeddings")
    if positions is not None and max_context(recipe) > positions:
        allowed = (
            f"it makes sessions of {max_context(recipe)} tokens, limits.max_prompt_tokens included, and the model "
        )
        allowed += f"has {positions} positions; lower the two"
        raise refuse("max_completion_length", recipe.args.max_completion_length, allowed)


def check_engine(recipe: Recipe, codec: Codec, *, is_training: bool = False) -> None:
    """Find out, before a model is loaded, whether the recipe's engine can play it.

    Args:
        is_training: whether it has to follow a policy that changes.

    Raises:
        RecipeError: the engine has no model, lacks a library, or does not take these options.
    """
    config = recipe.config
    if config.engine == "scripted":
        raise refuse("engine", config.engine, f"an engine with a model of its own: {', '.join(TRAINED)}")
    engine = engine_class(config.engine)
    engine.check_options(config.engine_options)
    check_sharding(recipe, engine)
    engine.check_run(replace(engine_settings(recipe, codec, _no_model), is_training=is_training))


def check_sharding(recipe: Recipe, engine: type[Engine]) -> None:
    """Refuse ways to spread the model over processes from which this engine cannot have it.

    Raises:
        RecipeError: names the engine and the way.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    name, version = recipe.config.engine, os.environ.get("FSDP_VERSION", "1")
    if engine.uses_policy:
        raise refuse("engine", name, "with FSDP no process has the whole model: choose a vLLM engine, or ZeRO-3")
    if version != "2":
        raise refuse("fsdp_version", version, f"engine {name!r} can be given weights by version 2")


def build_engine(recipe: Recipe, codec: Codec, model_provider: Callable[[], PreTrainedModel]) -> Engine:
    """The engine that the recipe names; `check_engine` has been called.

    Args:
        model_provider: the model as it is now, unwrapped; asked at the start of each rollout phase.
    """
    return engine_class(recipe.config.engine).build(engine_settings(recipe, codec, model_provider))


def engine_settings(recipe: Recipe, codec: Codec, model_provider: Callable[[], PreTrainedModel]) -> EngineSettings:
    """What the recipe says to its engine."""
    config, args = recipe.config, recipe.args
    output_dir = Path(str(args.output_dir))
    return EngineSettings(
        model_provider,
        model_name=str(output_dir / TINY_MODEL_DIR) if config.tiny_model else str(config.model_name_or_path),
        dtype=config.dtype,
        lora_r=config.lora_r if config.use_peft else None,
        eos_id=codec.eos_id,
        max_concurrency=config.max_concurrency,
        max_length=max_context(recipe),
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        deterministic=config.deterministic,
        output_dir=output_dir,
        options=config.engine_options,
    )


def _no_model() -> PreTrainedModel:
    raise RuntimeError("the model is not loaded yet")


def check_crowds(crowds: Sequence[Crowd]) -> None:
    """Find out, before a model is loaded, whether the users can be reached: one request to each of their models.

    One process asks, and all of them end alike.

    Raises:
        RecipeError: users that cannot be reached; one sentence.
        RunStoppedError: the budget of a resumed run is used up.
    """
    state = PartialState()
    problem: RecipeError | RunStoppedError | None = None
    if state.is_main_process:
        try:
            asyncio.run(_check_crowds(crowds))
        except (RecipeError, RunStoppedError) as error:
            problem = error
    if state.num_processes > 1:
        problem = broadcast_object_list([problem])[0]
    if problem is not None:
        raise problem


async def _check_crowds(crowds: Sequence[Crowd]) -> None:
    for crowd in crowds:
        try:
            await crowd.check()
        finally:
            await crowd.close()  # its connections belong to this event loop


def build_pool(recipe: Recipe, codec: Codec, engine: Engine, crowd: Crowd | None = None) -> RolloutPool:
    """The pool with the recipe's limits, users and environments.

    Args:
        crowd: who plays the users; None stands for those that the recipe trains with.
    """
    return RolloutPool(engine, codec, **pool_arguments(recipe, crowd))


def pool_arguments(recipe: Recipe, crowd: Crowd | None = None) -> dict[str, Any]:
    """What a recipe says to a pool, by the names of `RolloutPool`'s arguments."""
    config = recipe.config
    return {
        "limits": config.build_limits(recipe.args.max_completion_length or 1),
        "crowd": crowd or config.build_crowds().train,
        "environment_options": config.environment_options,
        "max_concurrency": config.max_concurrency,
        "preference_visibility": config.preference_visibility,
        "interaction": config.interaction,
        "seed": recipe.args.seed,
        "max_workers": config.max_workers,
    }
