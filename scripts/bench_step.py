"""The trimmed step of PPPTrainer against stock TRL, on the same trajectories with lognormal lengths.

TRL pads every micro-batch to the longest trajectory of the generation batch; PPPTrainer cuts off what is padding in the
whole micro-batch. Both train the same small model for one step on the same tokens, masks and rewards; the losses of all
micro-batches are compared. Prints a table and ends with one line of JSON.

    python scripts/bench_step.py [--num_trajectories 32] [--median 400] [--sigma 1.0] [--max_length 3000]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import Qwen3ForCausalLM
from transformers.trainer_callback import PrinterCallback
from trl import GRPOTrainer

from ppp.batch import RolloutSettings
from ppp.config import PPPConfig
from ppp.rewards import RewardSettings
from ppp.rollout import RolloutJob
from ppp.tiny_model import byte_tokenizer, random_qwen3
from ppp.trainer import PPPTrainer
from ppp.types import StopReason, Task, Trajectory, Turn

PROMPT_TOKENS = 40
GROUP = 4
PRODUCTIVITY = (0.0, 0.25, 0.5, 1.0)


class CannedPool:
    """Stands in for a RolloutPool: hands out trajectories that were made beforehand, so that only the step is timed."""

    def __init__(self, trajectories: list[Trajectory]) -> None:
        self.trajectories = trajectories

    def run(self, jobs: Sequence[RolloutJob], step: int) -> list[Trajectory]:
        return self.trajectories


def make_trajectories(options: argparse.Namespace, model: Qwen3ForCausalLM) -> list[Trajectory]:
    """Random tokens: turns of the policy and observations in turn, as long as the lengths that were drawn."""
    rng = np.random.default_rng(options.seed)
    drawn = rng.lognormal(np.log(options.median), options.sigma, options.num_trajectories)
    trajectories = []
    for number, length in enumerate(np.clip(drawn, PROMPT_TOKENS, options.max_length).astype(int)):
        tokens = rng.integers(3, model.config.vocab_size, int(length)).tolist()
        own, observed = tokens[: length // 2], tokens[length // 2 :]
        message = {"role": "assistant", "content": ""}
        turn = Turn(own, [-1.0] * len(own), message, observation="", observation_ids=observed)
        last = Turn(own[:20], [-1.0] * len(own[:20]), message)
        task = Task(f"t{number}", "town", "vague", "precise", "no_preference", {})
        prompt = rng.integers(3, model.config.vocab_size, PROMPT_TOKENS).tolist()
        score = PRODUCTIVITY[number % GROUP]
        trajectories.append(Trajectory(task, prompt, [turn, last], StopReason.FINISHED, score, "answer"))
    return trajectories


def make_model(options: argparse.Namespace) -> Qwen3ForCausalLM:
    return random_qwen3(
        byte_tokenizer(),
        options.seed,
        max_length=8192,
        hidden_size=128,
        num_layers=4,
        num_heads=4,
        num_key_value_heads=2,
    )


def time_step(trainer: GRPOTrainer) -> tuple[float, list[float], float]:
    """Train one step: (seconds, loss of each micro-batch, gradient norm)."""
    losses: list[float] = []
    compute_loss = trainer.compute_loss

    def keep(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss = compute_loss(*args, **kwargs)
        losses.append(loss.item())
        return loss

    trainer.compute_loss = keep
    torch.manual_seed(0)  # TRL shuffles the batch: both trainers must meet the rows in the same order
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    return seconds, losses, next(line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line)


def build(kind: str, options: argparse.Namespace, folder: str) -> GRPOTrainer:
    """The stock trainer or ours, with the same model, arguments and trajectories."""
    model = make_model(options)
    trajectories = make_trajectories(options, model)
    args = PPPConfig(
        output_dir=folder,
        per_device_train_batch_size=options.micro_batch_size,
        gradient_accumulation_steps=options.num_trajectories // options.micro_batch_size,
        num_generations=GROUP,
        max_completion_length=2 * options.max_length,
        max_steps=1,
        learning_rate=1e-3,
        use_cpu=True,
        gradient_checkpointing=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    tasks = [trajectory.task.to_json() for trajectory in trajectories[: options.num_trajectories // GROUP]]
    dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": "x"}] for _ in tasks], "task": tasks})
    if kind == "trimmed":
        return PPPTrainer(
            model,
            args,
            dataset,
            None,
            byte_tokenizer(),
            make_pool=lambda policy: CannedPool(trajectories),
            settings=RolloutSettings(
                RewardSettings(weights={"proactivity": 0, "personalization": 0}), correction=False
            ),
        )
    batch = {
        "prompt_ids": [trajectory.prompt_ids for trajectory in trajectories],
        "completion_ids": [trajectory.completion_ids for trajectory in trajectories],
        "logprobs": [trajectory.logprobs for trajectory in trajectories],
        "env_mask": [trajectory.env_mask for trajectory in trajectories],
        "score": [trajectory.productivity for trajectory in trajectories],
    }
    trainer = GRPOTrainer(
        model,
        lambda score, **_: score,
        args,
        dataset,
        processing_class=byte_tokenizer(),
        rollout_func=lambda prompts, trainer: batch,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_trajectories", type=int, default=32)
    parser.add_argument("--median", type=float, default=400)
    parser.add_argument("--sigma", type=float, default=1.0)
    parser.add_argument("--max_length", type=int, default=3000)
    parser.add_argument("--micro_batch_size", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)  # canned log-probabilities agree with no model
    lengths = [len(trajectory.completion_ids) for trajectory in make_trajectories(options, make_model(options))]
    print(f"{len(lengths)} trajectories, mean {np.mean(lengths):.0f}, longest {max(lengths)} tokens")
    found = {}
    for kind in ("stock", "trimmed"):
        with tempfile.TemporaryDirectory() as folder:
            found[kind] = time_step(build(kind, options, folder))
    print(f"{'':10} {'seconds':>10} {'loss':>14} {'gradient norm':>14}")
    for kind, (seconds, losses, grad_norm) in found.items():
        print(f"{kind:10} {seconds:10.2f} {sum(losses):14.6f} {grad_norm:14.6f}")
    (stock_s, stock_losses, _), (trimmed_s, trimmed_losses, _) = found["stock"], found["trimmed"]
    difference = max(abs(a - b) for a, b in zip(stock_losses, trimmed_losses, strict=True))
    print(json.dumps({"ratio": round(stock_s / trimmed_s, 2), "max_loss_difference": difference}))


if __name__ == "__main__":
    main()
