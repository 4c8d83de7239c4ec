"""How far a score may be off: intervals from resampling tasks.

Sessions of one task are not independent, so whole tasks are drawn again, with all their sessions. Every metric is a
quotient of two sums over sessions, so that a resample is one product of matrices. Which numbers go in is `metrics.py`,
and for two agents on the same sessions `compare.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEW_TASKS = 30


@dataclass(frozen=True, slots=True)
class Settings:
    """Of the intervals: how many of a hundred cover the truth, from how many resamples, drawn with which seed."""

    level: float = 0.95
    num_resamples: int = 2000
    seed: int = 0


DEFAULT = Settings()


def few_tasks_warning(num_tasks: int) -> str | None:
    """The sentence that belongs beside intervals of so few tasks that they are too narrow."""
    if num_tasks >= FEW_TASKS:
        return None
    return f"{num_tasks} tasks only: intervals are too narrow below {FEW_TASKS} tasks, and a single task has none"


@dataclass(frozen=True)
class Sums:
    """Numerators and denominators of M metrics, summed by task and, where they count alike, by user: (T, K, M).

    Attributes:
        numerators, denominators: (T, K, M) for T tasks and K strata.
        sizes: (T, K), sessions of each task and stratum. A session of a stratum with n sessions weighs 1 / n.
    """

    numerators: Floats
    denominators: Floats
    sizes: Floats

    @classmethod
    def of(
        cls, numerators: Floats, denominators: Floats, tasks: NDArray[np.intp], strata: NDArray[np.intp] | None = None
    ) -> Sums:
        """Sum sessions (N, M) by the number of their task, 0 to T - 1, and of their stratum, 0 to K - 1."""
        strata = np.zeros_like(tasks) if strata is None else strata
        num_tasks, num_strata = int(tasks.max(initial=-1)) + 1, int(strata.max(initial=-1)) + 1
        shape = (num_tasks, num_strata, numerators.shape[1])
        sums = cls(np.zeros(shape), np.zeros(shape), np.zeros(shape[:2]))
        np.add.at(sums.numerators, (tasks, strata), numerators)
        np.add.at(sums.denominators, (tasks, strata), denominators)
        np.add.at(sums.sizes, (tasks, strata), 1.0)
        return sums

    def values(self, counts: Floats) -> Floats:
        """The metrics (B, M) where task t was drawn counts[b, t] times; not-a-number where nothing can tell."""
        num_tasks, num_strata, num_metrics = self.numerators.shape
        sizes = counts @ self.sizes
        weights = np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > 0)[:, None, :]

        def total(sums: Floats) -> Floats:
            by_stratum = (counts @ sums.reshape(num_tasks, -1)).reshape(-1, num_strata, num_metrics)
            return (weights @ by_stratum)[:, 0, :]

        denominators = total(self.denominators)
        return np.divide(
            total(self.numerators), denominators, out=np.full_like(denominators, np.nan), where=denominators > 0
        )

    @property
    def num_tasks(self) -> int:
        return len(self.sizes)

    def value(self) -> Floats:
        """The metrics (M,) of all sessions."""
        return self.values(np.ones((1, self.num_tasks)))[0]


@lru_cache(maxsize=4)
def draw_counts(num_tasks: int, num_resamples: int, seed: int) -> NDArray[np.uint16]:
    """How often each task comes in each resample, (B, T); the same for the same numbers."""
    rng = np.random.default_rng(seed)
    counts = np.empty((num_resamples, num_tasks), dtype=np.uint16)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, num_tasks, num_tasks), minlength=num_tasks)
    return counts


def intervals_of(sums: Sums, settings: Settings) -> list[tuple[float, float] | None]:
    """An interval for each of the M metrics; None where nothing can tell, and for a single task."""
    num_metrics = sums.numerators.shape[2]
    if sums.num_tasks < 2:
        return [None] * num_metrics
    counts = draw_counts(sums.num_tasks, settings.num_resamples, settings.seed).astype(np.float64)
    drawn, tail = sums.values(counts), (1 - settings.level) / 2
    found: list[tuple[float, float] | None] = []
    for replicates, value in zip(drawn.T, sums.value(), strict=True):
        if np.isnan(value):
            found.append(None)
            continue
        low, high = np.nanquantile(replicates, [tail, 1 - tail])
        found.append((float(low), float(high)))
    return found
