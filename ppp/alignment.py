"""Whether the engine and the trainer mean the same: log-probabilities of both on the same tokens.

They differ when the engine has old weights, another temperature, another template's tokens or another precision, and
all of that goes unnoticed otherwise: a policy learns from ratios that are noise. `trainer.py` asks at the start and
every so many steps, before the update that the batch would go into. No TRL in here: the trainer brings its forward
pass along.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn import Module
from transformers import TrainerState

from ppp.types import RunStoppedError

logger = logging.getLogger(__name__)

ALIGNED = 1e-3  # engine and trainer agree when no log-probability differs by more
NUM_ROWS = 8  # trajectories of all processes that a check looks at
MAXIMUM, MEAN = "alignment/logprob_difference_max", "alignment/logprob_difference_mean"
CORRECTED = "alignment/corrected"
LIKELY_CAUSES = (
    "the engine does not have the current weights, samples with another temperature, top_p or top_k, was given "
    "other tokens than the trainer (chat template, tokenizer), or computes in another dtype"
)

Forward = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""(input_ids, attention_mask, logits_to_keep) -> log-probabilities of the last columns, without gradient."""


@dataclass(frozen=True)
class Agreement:
    """How far log-probabilities of engine and trainer are apart, over the policy's own tokens of all processes.

    Attributes:
        mean, maximum: of the absolute differences; infinite where one of them is no number.
        num_tokens: that were compared; 0 where no trajectory had any, and nothing is known.
    """

    mean: float
    maximum: float
    num_tokens: int

    @property
    def is_close(self) -> bool:
        return self.maximum <= ALIGNED

    @property
    def metrics(self) -> dict[str, float]:
        return {MAXIMUM: self.maximum, MEAN: self.mean} if self.num_tokens else {}


def is_due(step: int, every: int) -> bool:
    """Whether a run that was never interrupted checks before the update after `step` finished ones."""
    return step == 0 or (every > 0 and step % every == 0)


def compare(batch: Mapping[str, Sequence[Any]], forward: Forward, model: Module, accelerator: Accelerator) -> Agreement:
    """Compare the first trajectories of a batch that have tokens of the policy.

    All processes must call this together, with equally many trajectories: under ZeRO-3 and FSDP a forward pass of one
    needs the others, so each of them runs as many, on trajectories without own tokens if it has no better ones.

    Args:
        batch: token lists, see `batch.token_batch`.
        model: put into evaluation mode meanwhile, so that dropout neither disturbs nor draws numbers.
    """
    num_own = [sum(mask) for mask in batch["env_mask"]]
    rows = sorted(range(len(num_own)), key=lambda row: num_own[row] == 0)  # stable: the first ones that have any
    rows = rows[: math.ceil(NUM_ROWS / accelerator.num_processes)]
    was_training = model.training
    model.eval()
    try:
        differences = [_differences(batch, row, forward, accelerator.device) for row in rows]
    finally:
        model.train(was_training)
    local = torch.cat(differences)
    worst = local.max() if len(local) else local.new_zeros(())
    total, number, maximum = accelerator.gather(
        torch.stack([local.sum(), local.new_tensor(float(len(local))), worst]).unsqueeze(0)
    ).T
    num_tokens = int(number.sum().item())
    mean = total.sum().item() / max(num_tokens, 1)
    return Agreement(mean if math.isfinite(mean) else math.inf, maximum.max().item(), num_tokens)


def _differences(batch: Mapping[str, Sequence[Any]], row: int, forward: Forward, device: torch.device) -> torch.Tensor:
    """Absolute differences on the policy's own tokens of one trajectory; what is no number counts as infinite."""
    input_ids = torch.tensor([batch["prompt_ids"][row] + batch["completion_ids"][row]], device=device)
    ours = forward(input_ids, torch.ones_like(input_ids), len(batch["completion_ids"][row]))[0].float()
    own = torch.tensor(batch["env_mask"][row], device=device).bool()
    theirs = torch.tensor(batch["logprobs"][row], device=device)
    return (ours - theirs).abs()[own].nan_to_num(nan=math.inf)


def judge(agreement: Agreement, max_difference: float, step: int, is_main_process: bool) -> None:
    """Tell what was found.

    Raises:
        RunStoppedError: the mean is above `max_difference`; on all processes alike.
    """
    if not agreement.num_tokens:
        return
    mean, maximum = agreement.mean, agreement.maximum
    if is_main_process:
        log = logger.warning if mean > max_difference / 2 else logger.info
        log(
            "step %d: log-probabilities of engine and trainer differ by %.2g on average and by up to %.2g (%d tokens)",
            step,
            mean,
            maximum,
            agreement.num_tokens,
        )
    if mean > max_difference:
        raise RunStoppedError(
            f"log-probabilities of engine and trainer differ by {mean:.3g} on average, more than "
            f"max_logprob_difference ({max_difference:g}) allows; likely causes: {LIKELY_CAUSES}"
        )


class Alignment:
    """Compares engine and trainer through a run, and decides whether the loss corrects for what they differ by.

    Args:
        correction: importance-sampling correction; None switches it on, for the rest of the run, at the first
            comparison in which a log-probability differs by more than `ALIGNED`.
        every: see `RolloutSettings.check_logprobs_every`.
        max_difference: see `RolloutSettings.max_logprob_difference`.
    """

    def __init__(self, accelerator: Accelerator, correction: bool | None, every: int, max_difference: float) -> None:
        self.accelerator = accelerator
        self.every, self.max_difference = every, max_difference
        self.decides, self.corrects = correction is None, bool(correction)
        self._is_first = True

    def check(
        self,
        batch: Mapping[str, Sequence[Any]],
        state: TrainerState,
        round_number: int,
        forward: Forward,
        model: Module,
    ) -> dict[str, float]:
        """Compare if it is time to: where an uninterrupted run would, and at the first batch of a resumed one.

        Args:
            batch, forward, model: see `compare`.
            round_number: of the batch within its step.

        Returns:
            What the metrics of the step are told: the same in a resumed run as in one that was not interrupted.

        Raises:
            RunStoppedError: see `judge`.
        """
        step = state.global_step
        on_time = round_number == 0 and is_due(step, self.every)
        is_first, self._is_first = self._is_first, False
        if is_first and self.decides:
            self.corrects = any(logs.get(CORRECTED) for logs in state.log_history)
        if not (on_time or is_first):
            return {}
        found = compare(batch, forward, model, self.accelerator)
        judge(found, self.max_difference, step, self.accelerator.is_main_process)
        if not on_time:
            return {}
        if self.decides and not self.corrects and not found.is_close:
            self.corrects = True
            logger.warning("importance-sampling correction is on, because engine and trainer differ")
        return {**found.metrics, CORRECTED: float(self.corrects)}


class DifferenceMeter:
    """The mean difference of log-probabilities over all tokens that a step learns from.

    Costs nothing, as the loss computes them anyway; it comes behind the step, though, and behind the first update of a
    batch it also holds what the policy has moved since.
    """

    def __init__(self) -> None:
        self._total: torch.Tensor | float = 0.0
        self._number = 0

    def add(self, logps: torch.Tensor, inputs: Mapping[str, Any]) -> None:
        """Count one micro-batch.

        Args:
            logps: of the trainer, (rows, tokens).
            inputs: the micro-batch as TRL makes it.
        """
        own = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        differences = (logps.detach().float() - inputs["sampling_per_token_logps"])[own].abs()
        self._total += differences.nan_to_num(nan=math.inf).sum()
        self._number += len(differences)

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """The mean since the last call over all processes, which must call this together."""
        local = torch.tensor([float(self._total), self._number], device=accelerator.device)
        self._total, self._number = 0.0, 0
        total, number = accelerator.reduce(local, reduction="sum").tolist()
        return {"sampling/logprob_difference": total / number} if number else {}
