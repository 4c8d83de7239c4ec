"""A trainer on toy sessions: everything real but the model, which is tiny, and the rollouts, which are scripted unless
an engine is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import toy
from transformers import PreTrainedTokenizerBase

from ppp.batch import RolloutSettings
from ppp.callbacks import MetricsWriter
from ppp.codec import Codec
from ppp.config import PPPConfig
from ppp.data import expand, to_dataset
from ppp.engines.base import Engine
from ppp.engines.scripted import ScriptedEngine
from ppp.rewards import RewardSettings
from ppp.rollout import RolloutPool
from ppp.run_log import RunLog
from ppp.session import Limits
from ppp.trainer import PPPTrainer
from ppp.types import Task, ToolCall, Turn
from ppp.users.crowd import Crowd

UNCLIPPED = RewardSettings(weights={"proactivity": 0, "personalization": 0}, reward_clip=None)

ARGS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 400,
    "max_steps": 3,
    "learning_rate": 1e-2,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "shuffle_dataset": False,
    "seed": 7,
}


class Player:
    """Looks once and finishes; `on_turn` is called before each turn."""

    def __init__(self, on_turn: Callable[[Task, Sequence[Turn]], None] | None = None) -> None:
        self.on_turn = on_turn

    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall | None]:
        if self.on_turn is not None:
            self.on_turn(task, turns)
        if not turns:
            return "Looking.", ToolCall("look", {"where": "there"})
        return "Done.", ToolCall("finish", {"answer": "f1"})


def build_trainer(
    tokenizer: PreTrainedTokenizerBase,
    model: Any,
    folder: Path,
    *,
    settings: RolloutSettings | None = None,
    player: Any = None,
    make_engine: Callable[[Callable[[], Any]], Engine] | None = None,
    limits: Limits | None = None,
    max_concurrency: int = 64,
    num_tasks: int = 2,
    crowd: Crowd | None = None,
    callbacks: Sequence[Any] = (),
    peft_config: Any = None,
    **args: Any,
) -> PPPTrainer:
    """A trainer whose run folder is `folder`.

    Args:
        player: plays the scripted engine's part.
        make_engine: gets a function that returns the policy; None takes a scripted engine.
        num_tasks: sessions of the training set.
        crowd: who plays the users; None takes scripted ones.
        args: changes of `ARGS`.
    """
    codec = Codec.from_tokenizer(tokenizer)
    tasks = expand(toy.toy_rows(num_tasks), ["no_preference"], 0, num_precise=0)
    dataset = to_dataset(
        tasks, lambda task: [{"role": "user", "content": task.prompt}], lambda task: len(task.prompt), 1000
    )
    folder.mkdir(exist_ok=True)
    run_log = RunLog(folder, 0, 0)
    limits = limits or Limits(max_completion_tokens=400)

    def make_pool(policy: Callable[[], Any]) -> RolloutPool:
        engine = ScriptedEngine(codec, player or Player()) if make_engine is None else make_engine(policy)
        return RolloutPool(engine, codec, limits, crowd=crowd, max_concurrency=max_concurrency)

    return PPPTrainer(
        model,
        PPPConfig(**{"output_dir": str(folder), **ARGS, **args}),
        dataset,
        dataset,
        tokenizer,
        make_pool=make_pool,
        settings=settings or RolloutSettings(UNCLIPPED, correction=False, max_failure_rate=0.5),
        run_log=run_log,
        peft_config=peft_config,
        callbacks=[MetricsWriter(run_log), *callbacks],
    )


def generate(trainer: PPPTrainer) -> dict[str, Any]:
    """One generation batch: the first rows of the data set, each in all its copies."""
    trainer.model.train()
    num_rows = trainer.args.generation_batch_size // trainer.num_generations
    rows = [dict(row) for row in trainer.train_dataset.select(range(num_rows)) for _ in range(trainer.num_generations)]
    return trainer._generate_and_score_completions(rows)


def read_metrics(trainer: PPPTrainer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(trainer.args.output_dir) / "metrics.jsonl").read_text().splitlines()]


def read_trajectories(trainer: PPPTrainer) -> list[dict[str, Any]]:
    text = (Path(trainer.args.output_dir) / "trajectories.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
