"""Which checkpoint a run goes on from, and whether it may: the rest of it must be what was begun.

Whatever changes what is trained is refused before a model is loaded, with the field and both values. How checkpoints
are written is in `checkpoints.py`, what is done with the answer in `train.py`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from accelerate.utils import DistributedType

from ppp.checkpoints import FACTS_FILE, find_checkpoints, is_complete, step_of
from ppp.checks import refuse
from ppp.config import PPPConfig
from ppp.recipe import SHORT_FORMS, Recipe, RecipeParser
from ppp.types import RecipeError

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"

# Fields of a recipe that a resumed run may have otherwise than the run that it goes on with: how far it goes, what it
# tells, keeps and evaluates, what it may cost, and how much memory and patience it has. Everything else trains
# something else. An entry that ends in * stands for all that begin so.
MAY_CHANGE = (
    *("max_steps", "num_train_epochs", "output_dir", "resume_from_checkpoint", "do_*"),
    *("logging_*", "log_*", "report_to", "run_name", "project", "trackio_*", "disable_tqdm", "debug"),
    *("skip_memory_metrics", "include_num_input_tokens_seen", "num_completions_to_print"),
    *("save_*", "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "enable_jit_checkpoint"),
    *("push_to_hub", "hub_*", "merge_lora", "warmstart"),
    *("eval_*", "num_generations_eval", "per_device_eval_batch_size", "batch_eval_metrics"),
    *("max_workers", "max_concurrency", "max_failure_rate", "warn_without_signal_steps", "stop_without_signal_steps"),
    *("check_logprobs_every", "max_logprob_difference", "check_memory"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_empty_cache_steps"),
    *("ddp_timeout", "ddp_backend", "dataloader_pin_memory", "local_rank"),
)
# The same of entries of a mapping, at whatever depth: where somebody is and how often he may be asked, not who he is.
ENTRIES_MAY_CHANGE: dict[str, tuple[str, ...]] = {
    "user": (
        *("base_url", "api_key_env", "max_concurrency", "requests_per_minute", "tokens_per_minute"),
        *("timeout_s", "deadline_s", "max_retries", "max_outage_s", "cache", "cache_path"),
        *("max_cost", "max_calls", "input_price", "cached_input_price", "output_price"),
    ),
    "engine_options": (
        *("base_urls", "api_key_env", "master_address", "backend", "bucket_mb", "adapter_dir", "timeout_s"),
        *("request_timeout_s", "max_outage_s", "max_connections", "num_blocks", "max_batch_tokens", "max_num_seqs"),
        *("gpu_memory_utilization", "kv_cache_gb", "enable_sleep_mode"),
    ),
    "environment_options": ("trees", "max_trees_gb"),
    "train_tasks": ("repositories",),
}


def checkpoint_to_resume(recipe: Recipe) -> Path | None:
    """The checkpoint to go on from, if any.

    Raises:
        RecipeError: the folder holds something and this is no resume, or it was meant to be resumed and is not there.
    """
    folder = Path(str(recipe.args.output_dir))
    resume = recipe.args.resume_from_checkpoint
    if resume is None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise refuse("output_dir", str(folder), "a new or empty folder, or set resume_from_checkpoint")
        return None
    found = find_checkpoints(folder)
    if resume == "true":
        if not found:
            logger.warning("%s holds no complete checkpoint: starting at the first step", folder)
        return found[-1] if found else None
    checkpoint = Path(resume)
    if not is_complete(checkpoint):
        raise refuse("resume_from_checkpoint", resume, "true, or a folder with a complete checkpoint")
    if found and step_of(found[-1]) > step_of(checkpoint):
        # Its steps are about to be taken again; found later, the checkpoint would not fit what is then in the logs.
        raise refuse("resume_from_checkpoint", resume, f"{found[-1]} is further; move it away, or set true to use it")
    return checkpoint


def check_recipe(recipe: Recipe, checkpoint: Path) -> None:
    """Compare the recipe with the one that the checkpoint's run wrote down.

    Raises:
        RecipeError: a field differs that changes what is trained; names it with both values.
    """
    path = checkpoint.parent / RECIPE_FILE
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        logger.warning("there is no %s: taking it on trust that this is the recipe of %s", path, checkpoint)
        return
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise refuse("resume_from_checkpoint", str(checkpoint), f"{path} cannot be read ({error})") from error
    found = differences(before, recipe.values)
    if found:
        name, old, new = found[0]
        others = f" (likewise: {', '.join(name for name, _, _ in found[1:])})" if found[1:] else ""
        raise refuse(
            name, new, f"the run of {checkpoint} has {old!r}, and a resumed run goes on with what was begun{others}"
        )


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The entries that two recipes have in different ways and that change what is trained: (name, before, after)."""
    parser = RecipeParser()
    old = dict(_leaves({key: before.get(key, parser.get_default(key)) for key in after}))
    new = dict(_leaves(after))
    missing = object()
    return [
        (name, old.get(name), new.get(name))
        for name in sorted({*old, *new})
        if old.get(name, missing) != new.get(name, missing) and not may_change(name)
    ]


def may_change(name: str) -> bool:
    """Whether a resumed run may have another value there; entries of mappings are written `user.base_url`."""
    field, *entries = name.split(".")
    if any(field == known or (known.endswith("*") and field.startswith(known[:-1])) for known in MAY_CHANGE):
        return True
    return bool(entries) and entries[-1] in ENTRIES_MAY_CHANGE.get(field, ())


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every entry of nested mappings under its full name; a text that stands for a mapping is taken as that."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, str) and name in SHORT_FORMS:
            value = {SHORT_FORMS[name]: value}
        elif isinstance(value, str) and prefix == "train_tasks.":
            value = {"path": value}
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        elif value not in (None, {}):  # what is left out and what is empty are the same
            yield name, value


def run_facts(args: PPPConfig, sessions: Iterable[str]) -> dict[str, Any]:
    """What a checkpoint is bound to besides the recipe, as JSON values.

    Args:
        sessions: of the training, in their order, as JSON texts.
    """
    digest = sha256()
    num = 0
    for text in sessions:
        digest.update(text.encode() + b"\n")
        num += 1
    return {
        "num_processes": PartialState().num_processes,
        "sharding": sharding(args),
        "sessions": f"{num} ({digest.hexdigest()[:16]})",
    }


def sharding(args: PPPConfig) -> str:
    """How the run's state is spread over its processes: none, fsdp, or zero with its stage."""
    if args.deepspeed_plugin is not None:
        return f"zero{args.deepspeed_plugin.zero_stage}"
    is_fsdp = PartialState().distributed_type == DistributedType.FSDP or os.environ.get("ACCELERATE_USE_FSDP") == "true"
    return "fsdp" if is_fsdp or args.fsdp else "none"


def check_facts(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Compare what the checkpoint is bound to with what there is now.

    Raises:
        RecipeError: other sessions, another number of processes, another way of spreading the state over them, or a
            checkpoint that holds the model only.
    """
    states = sorted(checkpoint.glob("rng_state*.pth"))
    if not states:
        raise refuse(
            "resume_from_checkpoint", str(checkpoint), "it holds a model only (save_only_model), nothing to go on with"
        )
    try:
        before = json.loads((checkpoint / FACTS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        before = {"num_processes": len(states)}  # of a checkpoint that transformers wrote without us
    words = {
        "num_processes": "start as many processes, or raise gradient_accumulation_steps in a new run",
        "sharding": "start it with the same accelerate configuration",
        "sessions": "the sessions of train_tasks were others: their files have changed",
    }
    for name, hint in words.items():
        if name in before and before[name] != facts[name]:
            raise RecipeError(
                f"resume_from_checkpoint: {name} is {facts[name]!r} now and {before[name]!r} in {checkpoint}; {hint}"
            )
