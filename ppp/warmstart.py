"""Supervised warm start: teach a model to take part in sessions at all, before RL teaches it when and how to ask.

TRL's SFTTrainer on the rows of `demonstrations.py`: trajectories played by a policy made of rules, through the pool
that RL uses, or read from the files of earlier runs and filtered. A model that starts from random weights first does
exercises, each until it gets them right, because what it cannot read it cannot learn from.
Nothing here is specific to a domain; the exercises and the small tokenizer of the town are in `baselines/`.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from ppp.build import build_codec, check_crowds, max_context, use_chat_template
from ppp.checks import refuse
from ppp.demonstrations import Row, encode_segments, play_demonstrations, read_trajectories
from ppp.recipe import Recipe, read_recipe
from ppp.tiny_model import random_qwen3
from ppp.types import RecipeError, RunStoppedError
from ppp.warmstart_config import EXERCISES, TOKENIZERS, WarmstartConfig

logger = logging.getLogger(__name__)

ROWS_PER_EXERCISE = 12_800
SUMMARY_FILE = "warmstart.json"


class _Stage(TrainerCallback):
    """Shows the progress of one stage, and ends it when the accuracy of the last logged steps is good enough."""

    def __init__(self, name: str, enough: float | None) -> None:
        self.name, self.enough, self.accuracy, self.reached = name, enough, 0.0, False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bar = tqdm(total=state.max_steps, desc=f"warm start: {self.name}")

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" in logs and "mean_token_accuracy" in logs:  # the summary at the end may hold the latter alone
            self.accuracy = logs["mean_token_accuracy"]
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}", accuracy=f"{self.accuracy:.3f}")
            if self.enough is not None and self.accuracy >= self.enough:
                self.reached = control.should_training_stop = True

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bar.close()


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    recipe: Recipe,
    settings: WarmstartConfig,
    stage: _Stage,
    batch_size: int,
    **arguments: Any,
) -> int:
    """Train `model` on `rows` with SFTTrainer; returns the number of steps. `arguments` are SFTConfig's."""
    args = SFTConfig(
        output_dir=str(recipe.args.output_dir),
        per_device_train_batch_size=batch_size,
        learning_rate=settings.learning_rate,
        adam_beta2=0.98,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=5,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=recipe.args.use_cpu,
        bf16=recipe.args.bf16,
        gradient_checkpointing=recipe.args.gradient_checkpointing,
        seed=recipe.args.seed,
        **arguments,
    )
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        callbacks=[stage],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.state.global_step


def practise(
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    settings: WarmstartConfig,
    make_model: Callable[[int], PreTrainedModel],
) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """Do the exercises, one after the other, each until it is right; start again from new weights when one stays wrong.

    Whether look-up is found within the steps allowed depends on the random weights; about one start in twenty fails.

    Returns:
        The model, and for each exercise its name, steps and accuracy.

    Raises:
        RuntimeError: no start succeeded.
    """
    exercises = import_exercises(settings.exercises)
    for attempt in range(settings.max_attempts):
        model, report = make_model(recipe.args.seed + 1000 * attempt), []
        rng = random.Random(f"exercises-{recipe.args.seed}-{attempt}")
        for exercise in exercises:
            name = exercise.__name__
            stage = _Stage(name, settings.exercise_accuracy)
            rows = [encode_segments(tokenizer, exercise(rng)) for _ in range(ROWS_PER_EXERCISE)]
            steps = fit(
                model, tokenizer, rows, recipe, settings, stage, batch_size=settings.exercise_batch_size,
                max_steps=settings.max_exercise_steps, lr_scheduler_type="constant_with_warmup", warmup_steps=30,
            )  # fmt: skip
            report.append({"name": name, "steps": steps, "accuracy": round(stage.accuracy, 4), "attempt": attempt})
            if not stage.reached:
                logger.warning("%s: accuracy %.2f after %d steps: starting again", name, stage.accuracy, steps)
                break
        else:
            return model, report
    raise RuntimeError(f"warm start: no exercise-proof model in {settings.max_attempts} attempts; try another seed")


def import_exercises(name: str) -> Sequence[Callable[[random.Random], list[tuple[str, bool]]]]:
    """The exercises of a domain, in order; see `EXERCISES`."""
    module, _, attribute = EXERCISES[name].partition(":")
    exercises: Sequence[Callable[[random.Random], list[tuple[str, bool]]]] = vars(import_module(module))[attribute]
    return exercises


def new_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer of ours, for a model that starts from random weights; see `TOKENIZERS`."""
    module, _, attribute = TOKENIZERS[name].partition(":")
    tokenizer: PreTrainedTokenizerBase = vars(import_module(module))[attribute]()
    return tokenizer


def load_base(recipe: Recipe, settings: WarmstartConfig) -> tuple[PreTrainedTokenizerBase, PreTrainedModel | None]:
    """Tokenizer and model that the warm start begins with; no model where it begins with random weights.

    Raises:
        RecipeError: the base model cannot be loaded.
    """
    if settings.base_model is None:
        return new_tokenizer(settings.tokenizer), None
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.base_model, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(settings.base_model, dtype=getattr(torch, recipe.config.dtype))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise refuse("warmstart.base_model", settings.base_model, f"a model that can be loaded ({error})") from error
    return tokenizer, model


def warm_start(recipe: Recipe, output_dir: Path) -> dict[str, Any]:
    """Make a model that can take part in sessions, and save it with its tokenizer to `output_dir`.

    Returns:
        What `warmstart.json` holds: exercises, numbers of demonstrations and steps, seconds.

    Raises:
        RecipeError: the operator's mistake, before a model is loaded.
    """
    settings = WarmstartConfig.of(recipe.config)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise refuse("output_dir", str(output_dir), "a new or empty folder")
    recipe.args.output_dir = str(output_dir)
    started = time.perf_counter()
    if recipe.config.interaction and not settings.trajectories:
        check_crowds([recipe.config.build_crowds().train])
    tokenizer, model = load_base(recipe, settings)
    use_chat_template(recipe, tokenizer)
    codec = build_codec(recipe, tokenizer)
    rows = (
        read_trajectories(recipe, settings, codec)
        if settings.trajectories
        else play_demonstrations(recipe, settings, codec)
    )
    num_demonstrations = len(rows)
    report: list[dict[str, Any]] = []
    if model is None:
        max_length = max_context(recipe)

        def make_model(seed: int) -> PreTrainedModel:
            return random_qwen3(
                tokenizer,
                seed,
                max_length=max_length,
                hidden_size=settings.hidden_size,
                num_layers=settings.num_layers,
                num_heads=settings.num_heads,
                num_key_value_heads=settings.num_heads,
                initializer_range=0.05,
            )

        model, report = practise(tokenizer, recipe, settings, make_model)
        rng = random.Random(f"review-{recipe.args.seed}")
        review = import_exercises(settings.exercises)[-1]
        rows += [
            encode_segments(tokenizer, review(rng)) for _ in range(int(settings.review_share * num_demonstrations))
        ]
    steps = fit(
        model, tokenizer, rows, recipe, settings, _Stage("demonstrations", None), batch_size=settings.batch_size,
        max_steps=settings.num_steps, lr_scheduler_type="cosine", warmup_steps=30, weight_decay=0.01,
    )  # fmt: skip
    output_dir.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    summary = {
        "seed": recipe.args.seed,
        "exercises": report,
        "num_demonstrations": num_demonstrations,
        "num_steps": steps,
        "num_parameters": sum(weight.numel() for weight in model.parameters()),
        "settings": asdict(settings),
        "wall_s": round(time.perf_counter() - started, 2),
    }
    (output_dir / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    """`ppp warmstart --config RECIPE --output_dir DIR`. Returns the exit status: 0, 1 not learned, 2 a mistake."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    parser = argparse.ArgumentParser(
        prog="ppp warmstart",
        description="Supervised warm start of a recipe's model. Other options override the recipe, such as"
        " --warmstart.num_steps 300.",
        allow_abbrev=False,
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="new folder for the model")
    own, rest = parser.parse_known_args(argv)
    try:
        summary = warm_start(read_recipe(rest, prog="ppp warmstart"), own.output_dir)
    except RecipeError as error:
        sys.stderr.write(f"ppp warmstart: {error}\n")
        return 2
    except (RuntimeError, RunStoppedError) as error:
        sys.stderr.write(f"ppp warmstart: {error}\n")
        return 1
    sys.stdout.write(json.dumps({key: summary[key] for key in summary if key != "settings"}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
