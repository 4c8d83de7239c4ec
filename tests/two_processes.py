"""One of two processes: what rows, scores and weights do when they lie across processes. The main one writes what was
seen to a JSON file, for test_two_processes.py.

    python -m torch.distributed.run --standalone --nproc_per_node 2 tests/two_processes.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from conftest import byte_tokenizer, tiny_model
from test_forward import Talker
from test_resampling import ByTask
from toy import register
from toy_trainer import UNCLIPPED, build_trainer, read_metrics, read_trajectories

import ppp.training_step
from ppp.alignment import compare
from ppp.batch import RolloutSettings
from ppp.environments import ENVIRONMENTS
from ppp.trainer import PPPTrainer

NUM_STEPS = 2


def build(folder: Path, **options: Any) -> PPPTrainer:
    """Three groups of four copies in a step, the second of which lies across both processes."""
    tokenizer = byte_tokenizer()
    ByTask.reset()
    settings = RolloutSettings(UNCLIPPED, correction=False, **options)
    return build_trainer(
        tokenizer,
        tiny_model(tokenizer),
        folder,
        settings=settings,
        player=Talker(),
        num_tasks=8,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        max_steps=NUM_STEPS,
        optim="sgd",
        ddp_backend="gloo",
    )


def train(trainer: PPPTrainer) -> dict[str, Any]:
    """Train; the metrics, how far the weights went at the first step, and the lengths of the rows of its
    micro-batches: process, micro-batch, row."""
    before = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
    lengths: list[list[list[int]]] = []
    moved: list[float] = []
    note_step = trainer.note_step

    def spy() -> None:
        after = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
        moved.append((after - before).norm().item())
        lengths.append([batch["completion_mask"].sum(1).tolist() for batch in trainer._buffered_inputs or []])
        note_step()

    trainer.note_step = spy  # type: ignore[method-assign]
    trainer.train()
    weights = [parameter.detach().double().sum().item() for parameter in trainer.model.parameters()]
    return {
        "lengths": gather_object([lengths[0]]),
        "moved": gather_object([moved[0]]),
        "weights": gather_object([weights]),
        "metrics": read_metrics(trainer)[:NUM_STEPS] if trainer.accelerator.is_main_process else None,
    }


def resample(folder: Path) -> dict[str, Any]:
    """The second group (of both processes) and the third (of one) are flat."""
    ByTask.lively = frozenset(f"toy-{number}" for number in (0, 3, 4, 5, 6, 7))
    trainer = build(folder / f"resampled-{torch.distributed.get_rank()}", max_resamples=2)
    found = train(trainer)
    ByTask.lively = frozenset(f"toy-{number}" for number in range(8))
    return {**found, "records": gather_object([read_trajectories(trainer)])}


def align(folder: Path) -> dict[str, Any]:
    """The second process has no token of the policy, and more rows of different lengths."""
    trainer = build(folder)
    num_calls = 0

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor, keep: int) -> torch.Tensor:
        nonlocal num_calls
        num_calls += 1
        return torch.full((1, keep), -1.0)

    rank = trainer.accelerator.process_index
    batch = {
        "prompt_ids": [[1, 2]] * 6,
        "completion_ids": [[3] * (1 + rank + number) for number in range(6)],
        "logprobs": [[-1.5] * (1 + rank + number) for number in range(6)],
        "env_mask": [[1 - rank] * (1 + rank + number) for number in range(6)],
    }
    agreement = compare(batch, forward, trainer.model, trainer.accelerator)
    return {"agreements": gather_object([[agreement.mean, agreement.maximum, agreement.num_tokens, num_calls]])}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    register()
    ENVIRONMENTS["toy"] = ByTask
    ByTask.lively = frozenset(f"toy-{number}" for number in range(8))
    trainer = build(folder / "balanced", check_logprobs_every=1)
    accelerator = trainer.accelerator
    found = {"kind": str(accelerator.distributed_type), "num_processes": accelerator.num_processes}
    found["balanced"] = train(trainer)
    balanced, ppp.training_step.balanced = ppp.training_step.balanced, lambda micro_batches, *_: list(micro_batches)
    found["unbalanced"] = train(build(folder / "unbalanced", check_logprobs_every=1))
    ppp.training_step.balanced = balanced
    found["resampled"] = resample(folder)
    found["aligned"] = align(folder / "aligned")
    if accelerator.is_main_process:
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
