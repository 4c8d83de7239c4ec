"""From played and scored trajectories to what TRL computes with: token lists, reward functions, and when to give up.

No TRL in here; `trainer.py` hands these to it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppp.rewards import RewardSettings
from ppp.step_metrics import Score
from ppp.types import PPPError, Trajectory


class TooManyFailuresError(PPPError):
    """More trajectories of a batch failed for infrastructure reasons than `max_failure_rate` allows."""


class NoLearningSignalError(PPPError):
    """The learning-signal guard stopped the run."""


@dataclass
class RolloutSettings:
    """What the trainer needs to know beside GRPO's own arguments.

    Attributes:
        rewards: how trajectories are scored.
        correction: importance-sampling correction; None decides at the first step, by whether the engine's
            log-probabilities agree with the trainer's.
        max_failure_rate: share of failed trajectories in a batch above which the run stops.
        log_trajectories_every: steps; 0 writes none.
        check_logprobs_every: steps between two comparisons of engine and trainer; 0 compares at the start only.
        max_logprob_difference: mean difference above which the run stops.
        max_resamples: how often groups of equal rewards are replaced in a batch.
    """

    rewards: RewardSettings = field(default_factory=RewardSettings)
    correction: bool | None = None
    max_failure_rate: float = 0.2
    log_trajectories_every: int = 1
    check_logprobs_every: int = 0
    max_logprob_difference: float = math.inf
    max_resamples: int = 0


def total_reward(score: Sequence[Score], **_: Any) -> list[float | None]:
    """The reward function that TRL calls; None takes a failed trajectory out of its group's baseline."""
    return [None if values is None else values["reward"] for values in score]


def term_reward(name: str) -> Callable[..., list[float | None]]:
    """A reward function of one term, for aggregations that normalise the terms one by one."""

    def reward(score: Sequence[Score], **_: Any) -> list[float | None]:
        return [None if values is None else values[name] for values in score]

    reward.__name__ = name
    return reward


def token_batch(
    trajectories: Sequence[Trajectory], scores: Sequence[Score], filler_id: int, mask_truncated: bool
) -> dict[str, list[Any]]:
    """Token lists in TRL's words; `score` becomes a column for the reward functions.

    Args:
        filler_id: stands, without loss, where a trajectory failed before it had a token: TRL takes no empty lists.
        mask_truncated: take trajectories that ran out of tokens out of the loss, decided from the stop reason.
    """
    batch: dict[str, list[Any]] = {"prompt_ids": [], "completion_ids": [], "logprobs": [], "env_mask": []}
    for trajectory in trajectories:
        mask = trajectory.env_mask or [0]
        if mask_truncated and trajectory.stop_reason is not None and trajectory.stop_reason.is_truncated:
            mask = [0] * len(mask)
        batch["prompt_ids"].append(trajectory.prompt_ids or [filler_id])
        batch["completion_ids"].append(trajectory.completion_ids or [filler_id])
        batch["logprobs"].append(trajectory.logprobs or [0.0])
        batch["env_mask"].append(mask)
    batch["score"] = list(scores)
    return batch


def check_failures(trajectories: Sequence[Trajectory], max_failure_rate: float) -> None:
    """Raise `TooManyFailuresError`, with the most frequent cause, if more than this share of a batch failed."""
    causes = Counter(trajectory.error for trajectory in trajectories if trajectory.failed)
    if causes.total() > max_failure_rate * len(trajectories):
        cause, number = causes.most_common(1)[0]
        raise TooManyFailuresError(
            f"{causes.total()} of {len(trajectories)} trajectories failed, more than max_failure_rate "
            f"({max_failure_rate:g}) allows; most often ({number} times): {cause}"
        )
