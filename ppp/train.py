"""Train from a recipe: `accelerate launch -m ppp.train --config recipes/town.yaml [--any_option value]`.

Everything that can be wrong with recipe and data is found before a model is loaded and before anything is written. The
parts are built by `build.py`, the training itself is `trainer.py`.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ppp.batch import NoLearningSignalError, RolloutSettings, TooManyFailuresError
from ppp.bookkeeping import Bookkeeper
from ppp.build import (
    TINY_MODEL_DIR,
    build_codec,
    build_engine,
    build_model,
    build_peft_config,
    build_pool,
    build_tokenizer,
    check_adapters,
    check_crowds,
    check_engine,
)
from ppp.callbacks import MetricsWriter, Progress
from ppp.checkpoints import Checkpoints, step_of
from ppp.checks import refuse
from ppp.codec import Codec
from ppp.data import expand, load_task_rows, mix, to_dataset
from ppp.environments import environment_class
from ppp.export import finish
from ppp.hub import Hub, open_hub
from ppp.learning_signal import LearningSignalGuard
from ppp.memory.advice import check_memory
from ppp.recipe import Recipe, read_recipe
from ppp.recipe_config import source_options
from ppp.resume import check_facts, check_recipe, checkpoint_to_resume, run_facts
from ppp.rollout import build_messages
from ppp.run_folder import check_processes, prepare_output_dir
from ppp.run_log import RunLog
from ppp.session import Toolbox
from ppp.token_log import TOKENS_FILE, TrainingTokens
from ppp.tracking import check_wandb, set_up_wandb, track
from ppp.trainer import PPPTrainer
from ppp.types import InfrastructureError, RecipeError, RunStoppedError, Task

logger = logging.getLogger(__name__)

PROG = "ppp train"
EXIT_RECIPE, EXIT_STOPPED, EXIT_INTERRUPTED = 2, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and return the exit status: 0, 1 stopped by a guard, 2 a mistake in the recipe, 130 interrupted."""
    set_up_logging()
    try:
        run(read_recipe(sys.argv[1:] if argv is None else argv, PROG))
    except RecipeError as error:
        return _fail(error, EXIT_RECIPE)
    except (TooManyFailuresError, NoLearningSignalError, RunStoppedError, InfrastructureError) as error:
        return _fail(error, EXIT_STOPPED)
    except KeyboardInterrupt:
        return _fail("interrupted; go on with --resume_from_checkpoint true", EXIT_INTERRUPTED)
    return 0


def set_up_logging() -> None:
    """One line per event of ours; of the libraries below, warnings are enough."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("httpx", "datasets", "transformers", "trl", "accelerate", "filelock", "ContinuousBatchingLogger"):
        logging.getLogger(name).setLevel(logging.WARNING)
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    # TRL still reads attributes that transformers renames, in every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # DeepSpeed calls collectives by their old names, in every layer.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def _fail(message: object, status: int) -> int:
    sys.stderr.write(f"{PROG}: {message}\n")
    return status


@dataclass(frozen=True)
class Checked:
    """What a run is made of, before a model is loaded and before anything is written."""

    checkpoint: Path | None
    tokenizer: PreTrainedTokenizerBase
    codec: Codec
    train_dataset: Dataset
    eval_dataset: Dataset | None
    facts: dict[str, Any]
    books: Bookkeeper
    hub: Hub | None


def check_run(recipe: Recipe) -> Checked:
    """Everything that can be wrong with a run before its model is loaded.

    Raises:
        RecipeError: something is.
        RunStoppedError: the budget of a resumed run is used up.
    """
    config, args = recipe.config, recipe.args
    check_processes(args)
    checkpoint = checkpoint_to_resume(recipe)
    if checkpoint is not None:
        check_recipe(recipe, checkpoint)
    tokenizer = build_tokenizer(recipe)
    codec = build_codec(recipe, tokenizer)
    train_dataset = load_sessions(recipe, codec, "train_tasks", config.preferences)
    eval_dataset = load_sessions(recipe, codec, "eval_tasks", config.eval_preferences) if config.eval_tasks else None
    check_steps(recipe, len(train_dataset), eval_dataset is not None)
    check_engine(recipe, codec, is_training=True)
    check_adapters(recipe)
    check_memory(recipe)
    facts = run_facts(args, train_dataset["task"])
    if checkpoint is not None:
        check_facts(checkpoint, facts)
    books = open_books(recipe)
    crowds = books.crowds.different if eval_dataset is not None else [books.crowds.train]
    check_crowds(crowds if config.interaction else [])
    check_wandb(args)
    hub = open_hub(args)
    return Checked(checkpoint, tokenizer, codec, train_dataset, eval_dataset, facts, books, hub)


def run(recipe: Recipe) -> PPPTrainer:
    """Train as the recipe says, and leave the trained model in the output folder.

    Raises:
        RecipeError: before a model is loaded.
        TooManyFailuresError, NoLearningSignalError, RunStoppedError: the run was stopped; there is a checkpoint if a
            step was finished.
        KeyboardInterrupt: likewise.
        InfrastructureError: the model is trained and saved, and the Hub did not take it.
    """
    config, args = recipe.config, recipe.args
    checked = check_run(recipe)
    checkpoint, books, codec = checked.checkpoint, checked.books, checked.codec

    # All processes have checked the folder before the first of them writes into it.
    PartialState().wait_for_everyone()
    output_dir = Path(str(args.output_dir))
    if args.process_index == 0:
        prepare_output_dir(recipe, output_dir)
    PartialState().wait_for_everyone()
    set_up_wandb(args, output_dir)
    named = None if args.resume_from_checkpoint == "true" else checkpoint  # what somebody chose is not ours to remove
    run_log = open_run_log(recipe, codec, checkpoint)
    if checkpoint is not None:
        args.eval_on_start = False  # the part of the run before has evaluated this checkpoint
    if config.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Nothing reads what nobody wrote, and filling it costs a third of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    guard = LearningSignalGuard(config.warn_without_signal_steps, config.stop_without_signal_steps)
    trainer = PPPTrainer(
        model=build_model(recipe, checked.tokenizer, output_dir / TINY_MODEL_DIR),
        args=args,
        train_dataset=checked.train_dataset,
        eval_dataset=checked.eval_dataset,
        processing_class=checked.tokenizer,
        make_pool=lambda policy: build_pool(recipe, codec, build_engine(recipe, codec, policy), books.crowds.train),
        settings=rollout_settings(recipe),
        books=books,
        run_log=run_log,
        checkpoints=Checkpoints(output_dir, args.save_total_limit, named, checked.facts),
        peft_config=build_peft_config(recipe),
        callbacks=[MetricsWriter(run_log), Progress(), guard],
    )
    track(trainer, run_log, recipe.shown())
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if guard.stop_message:
            raise NoLearningSignalError(guard.stop_message)
        finish(trainer, recipe)
    finally:
        trainer.pool.close()
        trainer.pool.engine.close()
        books.tell()
    if checked.hub is not None and args.process_index == 0:
        logger.info("the trained model is on the Hub: %s", checked.hub.push(output_dir))
    return trainer


def open_run_log(recipe: Recipe, codec: Codec, checkpoint: Path | None) -> RunLog:
    """The logs of this process, without the lines of steps that the run takes again."""
    args = recipe.args
    folder, step = Path(str(args.output_dir)), -1 if checkpoint is None else step_of(checkpoint)
    tokens = None
    if args.process_index == 0 and recipe.config.log_trajectories_every:
        tokens = TrainingTokens(folder / TOKENS_FILE, codec, args.max_completion_length or 1, step)
    return RunLog(folder, args.process_index, step, tokens)


def open_books(recipe: Recipe) -> Bookkeeper:
    """The users of the run, and the count of what they took; a resumed run goes on counting.

    Raises:
        RecipeError: users that cannot be had, or a count that cannot be read.
    """
    args = recipe.args
    books = Bookkeeper(
        recipe.config.build_crowds(), Path(str(args.output_dir)), args.process_index, PartialState().num_processes
    )
    if args.resume_from_checkpoint is not None:
        books.resume()
    return books


def load_sessions(recipe: Recipe, codec: Codec, field: str, preferences: Sequence[str]) -> Dataset:
    """The data set of `train_tasks` or `eval_tasks`: loaded, checked, expanded, mixed, rendered.

    Raises:
        RecipeError: naming the field, file, line or row that cannot be used.
    """
    config, seed = recipe.config, recipe.args.seed
    sources = vars(config)[field]
    tasks: dict[str, list[Task]] = {}
    for name in config.environments:
        if name in sources:
            rows = load_task_rows(field, name, source_options(field, sources, name))
            tasks[name] = expand(rows, preferences, seed, config.num_precise_per_task)
            if not tasks[name]:
                raise RecipeError(
                    f"{field}.{name}: no session; its tasks have no vague prompt: raise num_precise_per_task"
                )
    limits = config.build_limits(recipe.args.max_completion_length or 1)
    sessions = (
        mix(tasks, config.environments, seed) if field == "train_tasks" else [t for s in tasks.values() for t in s]
    )

    def render(task: Task) -> list[dict[str, str]]:
        environment = environment_class(task.environment, config.environment_options.get(task.environment))
        return build_messages(task, environment, config.preference_visibility, config.interaction)

    def count_tokens(task: Task) -> int:
        environment = environment_class(task.environment, config.environment_options.get(task.environment))
        tools = Toolbox.of(environment, config.interaction).specs
        codec.check_tools(codec.call_format, tools)
        return len(codec.prompt_ids(render(task), tools))

    return to_dataset(sessions, render, count_tokens, limits.max_prompt_tokens)


def check_steps(recipe: Recipe, num_sessions: int, has_evaluation: bool) -> None:
    """Check what only shows when recipe and data are put together.

    Raises:
        RecipeError: fewer sessions than a step takes, an evaluation without tasks.
    """
    args = recipe.args
    num_groups = args.generation_batch_size // args.num_generations
    if num_sessions < num_groups:
        raise RecipeError(f"train_tasks: {num_sessions} sessions are too few; a step takes {num_groups} different ones")
    if recipe.config.max_resamples and num_sessions == num_groups:
        allowed = f"a step takes all {num_sessions} sessions of train_tasks, and none is left to take another's place"
        raise refuse("max_resamples", recipe.config.max_resamples, allowed)
    if args.eval_strategy != "no" and not has_evaluation:
        raise refuse("eval_strategy", str(args.eval_strategy.value), "no, unless eval_tasks name tasks")


def rollout_settings(recipe: Recipe) -> RolloutSettings:
    config = recipe.config
    correction = {"true": True, "false": False, "auto": None}[config.importance_sampling_correction]
    if correction is None and config.engine != "transformers":
        correction = True
    return RolloutSettings(
        rewards=config.reward_settings(),
        correction=correction,
        max_failure_rate=config.max_failure_rate,
        log_trajectories_every=config.log_trajectories_every,
        check_logprobs_every=config.check_logprobs_every,
        max_logprob_difference=config.max_logprob_difference,
        max_resamples=config.max_resamples,
    )


if __name__ == "__main__":
    sys.exit(main())
