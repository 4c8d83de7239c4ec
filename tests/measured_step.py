"""One optimizer step of PPPTrainer on the CPU, and what its allocator gave out; run by tests/test_memory.py.

    python tests/measured_step.py '[{"config": {...}, "num_rows": 1, ...}]'

Prints a list of JSON objects, in bytes: weights, gradients, optimizer, activations (alive between forward and backward
pass), peak (of a micro-batch, beside those). The allocator is watched by torch's profiler. Trajectories are canned, as
long as the limits allow; the second of two micro-batches is measured, when gradients are there.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

from ppp.batch import RolloutSettings
from ppp.config import PPPConfig
from ppp.engines.base import Engine, Generation, GenerationRequest
from ppp.rewards import RewardSettings
from ppp.rollout import RolloutJob
from ppp.tiny_model import byte_tokenizer
from ppp.trainer import PPPTrainer
from ppp.types import StopReason, Task, Trajectory, Turn
from ppp.users.crowd import Crowd

MARK = "ppp_mark:"
PROMPT_TOKENS = 16


class IdleEngine(Engine):
    """Is never asked for anything."""

    async def generate(self, request: GenerationRequest) -> Generation:
        raise AssertionError("trajectories are canned")


class CannedPool:
    """Stands in for a RolloutPool: hands out trajectories that were made beforehand."""

    def __init__(self, trajectories: list[Trajectory]) -> None:
        self.trajectories = trajectories
        self.engine = IdleEngine()
        self.crowd = Crowd({"kind": "scripted"})

    def run(self, jobs: Sequence[RolloutJob], step: int, crowd: Crowd | None = None) -> list[Trajectory]:
        return self.trajectories


@dataclass
class Timeline:
    """Bytes that are alive, over time, and where the marks are."""

    live: list[tuple[int, int]] = field(default_factory=list)
    marks: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, found: profile) -> Timeline:
        timeline, changes = cls(), []
        for event in found.profiler.kineto_results.events():
            if event.name() == "[memory]":
                changes.append((event.start_ns(), event.nbytes()))
            elif event.name().startswith(MARK):
                timeline.marks[event.name().removeprefix(MARK)] = event.start_ns()
        total = 0
        for time_ns, change in sorted(changes):
            total += change
            timeline.live.append((time_ns, total))
        return timeline

    def at(self, mark: str) -> int:
        before = [total for time_ns, total in self.live if time_ns <= self.marks[mark]]
        return before[-1] if before else 0

    def peak(self, start: str, end: str) -> int:
        return max(total for time_ns, total in self.live if self.marks[start] <= time_ns <= self.marks[end])


def mark(name: str) -> None:
    with record_function(MARK + name):
        pass


class Marks(TrainerCallback):
    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        mark("before update")

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        mark("after update")


class MarkedTrainer(PPPTrainer):
    num_micro_batches = 0

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.num_micro_batches += 1
        mark(f"micro-batch {self.num_micro_batches}")
        return super().training_step(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        mark(f"loss {self.num_micro_batches}")
        return loss


def trajectories(shape: dict[str, Any], vocab_size: int) -> list[Trajectory]:
    """Two micro-batches, of rows that all differ in length, so that some of each is padding."""
    made = []
    generator = torch.Generator().manual_seed(0)
    for number in range(2 * shape["num_rows"]):
        length = shape["completion_tokens"] - number
        ids = torch.randint(3, min(vocab_size, 250), (length,), generator=generator).tolist()
        turn = Turn(ids, [-1.0] * length, {"role": "assistant", "content": ""})
        task = Task(f"t{number}", "town", "vague", "precise", "no_preference", {})
        prompt = [5] * PROMPT_TOKENS
        made.append(Trajectory(task, prompt, [turn], StopReason.FINISHED, float(number % 2), "answer"))
    return made


def measure(shape: dict[str, Any]) -> dict[str, int]:
    gc.collect()
    config = AutoConfig.for_model(**shape["config"])
    canned = trajectories(shape, config.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        args = PPPConfig(
            output_dir=folder,
            per_device_train_batch_size=shape["num_rows"],
            gradient_accumulation_steps=2,
            num_generations=2,
            max_completion_length=shape["completion_tokens"],
            max_steps=1,
            learning_rate=1e-3,
            use_cpu=True,
            gradient_checkpointing=shape["checkpointing"],
            save_strategy="no",
            disable_tqdm=True,
        )
        tasks = [trajectory.task.to_json() for trajectory in canned[: shape["num_rows"]]]
        dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": "x"}] for _ in tasks], "task": tasks})
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            mark("start")
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, shape["dtype"]))
            mark("model")
            lora_r = shape["lora_r"]
            trainer = MarkedTrainer(
                model,
                args,
                dataset,
                None,
                byte_tokenizer(),
                make_pool=lambda policy: CannedPool(canned),
                settings=RolloutSettings(
                    RewardSettings(weights={"proactivity": 0, "personalization": 0}), correction=False
                ),
                peft_config=lora_r and LoraConfig(r=lora_r, target_modules="all-linear", task_type="CAUSAL_LM"),
                callbacks=[Marks()],
            )
            gc.collect()
            mark("trainer")
            trainer.train()
            mark("end")
    timeline = Timeline.of(found)
    states = [timeline.at(name) for name in ("start", "model", "trainer")]
    weights, adapters = (after - before for before, after in pairwise(states))
    start = timeline.at("micro-batch 2")
    return {
        "weights": weights,
        "adapters": adapters,
        "gradients": timeline.at("before update") - timeline.at("micro-batch 1"),
        "optimizer": timeline.at("after update") - timeline.at("before update"),
        "activations": timeline.at("loss 2") - start,
        "peak": timeline.peak("micro-batch 2", "before update") - start,
    }


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    print(json.dumps([measure(shape) for shape in json.loads(sys.argv[1])]))


if __name__ == "__main__":
    main()
