"""How far a score may be off: intervals from resampling tasks.

Sessions of one task are not independent, so whole tasks are drawn again, with all their sessions. Every metric is a
quotient of two sums over sessions, so that a resample is one product of matrices. Which numbers go in is `metrics.py`,
and for two agents on the same sessions `compare.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = NDArray[np.intp]

Interval = tuple[float, float]

FEW_TASKS = 30
MIN_EFFECTIVE = 2.0 - 1e-9  # a metric that is borne by less than two tasks has no interval
BLOCK = 250  # resamples at a time
ROUNDING = 1e-9  # of sums
SAME = 1e-12  # numbers that differ by less are equal but for rounding
NORMAL = NormalDist()


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
    return f"few tasks ({num_tasks}): intervals are too narrow below {FEW_TASKS} tasks, and a single task has none"


@dataclass(frozen=True)
class Sums:
    """Sessions summed by their T tasks and K strata, which count alike: a session of a stratum of n weighs 1 / n.

    Attributes:
        numerators: (T, K, M) of M metrics.
        denominators: (T, K, D), those that differ; metric m has the one of number which[m].
        sizes: (T, K), how many sessions there are.
    """

    numerators: Floats
    denominators: Floats
    sizes: Floats
    which: Numbers

    @classmethod
    def of(cls, numerators: Floats, denominators: Floats, tasks: Numbers, strata: Numbers) -> Sums:
        """Sum sessions (N, M) by the number of their task, 0 to T - 1, and of their stratum, 0 to K - 1."""
        first: dict[bytes, int] = {}  # a column's content -> the first column that has it
        same = [first.setdefault(column.tobytes(), number) for number, column in enumerate(denominators.T)]
        distinct, which = np.unique(np.array(same, dtype=np.intp), return_inverse=True)
        shape = (int(tasks.max(initial=-1)) + 1, int(strata.max(initial=-1)) + 1)

        def summed(values: Floats) -> Floats:
            sums = np.zeros((*shape, *values.shape[1:]))
            np.add.at(sums, (tasks, strata), values)
            return sums

        return cls(summed(numerators), summed(denominators[:, distinct]), summed(np.ones(len(tasks))), which)

    @property
    def num_tasks(self) -> int:
        return len(self.sizes)

    def value(self) -> Floats:
        """The metrics (M,) of all sessions; not-a-number where nothing can tell."""
        return self._quotients(*(part.sum(axis=0, keepdims=True) for part in self._parts()))[0]

    def drawn(self, counts: NDArray[np.uint16]) -> Floats:
        """The metrics (B, M) of resamples in which task t came counts[b, t] times."""
        blocks = range(0, len(counts), BLOCK)
        return np.concatenate([self._drawn(counts[start : start + BLOCK].astype(np.float64)) for start in blocks])

    def without_each(self) -> Floats:
        """The metrics (T, M) without one of the tasks each."""
        return self._quotients(*(part.sum(axis=0, keepdims=True) - part for part in self._parts()))

    def num_effective(self) -> Floats:
        """By how many tasks of equal weight each metric (M,) is borne: few, where few of them hold a question."""
        borne = np.einsum("k,tkd->td", _inverse(self.sizes.sum(axis=0)), self.denominators)
        squares = (borne**2).sum(axis=0)
        effective = np.divide(borne.sum(axis=0) ** 2, squares, out=np.zeros_like(squares), where=squares > 0)
        return effective[self.which]

    def are_alike(self) -> NDArray[np.bool_]:
        """Whether, to each metric (M,), all sessions of a stratum add the same: resamples then differ by the strata
        that they miss, and by nothing that says how far the metric may be off."""
        shares = _inverse(self.sizes.sum(axis=0))[:, None]

        def alike(part: Floats) -> NDArray[np.bool_]:
            expected = self.sizes[:, :, None] * (shares * part.sum(axis=0))
            return (np.abs(part - expected) <= ROUNDING).all(axis=(0, 1))

        return alike(self.numerators) & alike(self.denominators)[self.which]

    def _parts(self) -> tuple[Floats, Floats, Floats]:
        return self.sizes, self.numerators, self.denominators

    def _drawn(self, counts: Floats) -> Floats:
        # One product of matrices for each part, whatever its shape behind the tasks.
        return self._quotients(
            *((counts @ part.reshape(len(part), -1)).reshape(len(counts), *part.shape[1:]) for part in self._parts())
        )

    def _quotients(self, sizes: Floats, numerators: Floats, denominators: Floats) -> Floats:
        """Metrics (B, M) of sums (B, K), (B, K, M) and (B, K, D)."""
        weights = _inverse(sizes)[:, None, :]
        above, below = (weights @ numerators)[:, 0, :], (weights @ denominators)[:, 0, self.which]
        return np.divide(above, below, out=np.full_like(below, np.nan), where=below > 0)


def _inverse(sizes: Floats) -> Floats:
    return np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > 0)


@lru_cache(maxsize=4)
def draw_counts(num_tasks: int, num_resamples: int, seed: int) -> NDArray[np.uint16]:
    """How often each task comes in each resample, (B, T); the same for the same numbers."""
    rng = np.random.default_rng(seed)
    counts = np.empty((num_resamples, num_tasks), dtype=np.uint16)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, num_tasks, num_tasks), minlength=num_tasks)
    return counts


def intervals_of(sums: Sums, settings: Settings, shares: NDArray[np.bool_]) -> list[Interval | None]:
    """An interval for each of the M metrics; None where nothing can tell, and for a single task.

    Args:
        shares: (M,), whether a metric cannot leave [0, 1].
    """
    if sums.num_tasks < 2:
        return [None] * len(shares)
    drawn, without = sums.drawn(_counts(sums, settings)), sums.without_each()
    floors, alike = np.where(shares, 0.0, np.nan), sums.are_alike()
    return _intervals(sums.value(), drawn, without, sums.num_effective(), floors, alike, settings)


def difference_intervals(
    first: Sums, second: Sums, settings: Settings, shares: NDArray[np.bool_]
) -> list[Interval | None]:
    """The same for second - first, of the same tasks in the same order: both are drawn again together."""
    if first.num_tasks < 2:
        return [None] * len(shares)
    counts = _counts(first, settings)
    return _intervals(
        second.value() - first.value(),
        second.drawn(counts) - first.drawn(counts),
        second.without_each() - first.without_each(),
        np.minimum(first.num_effective(), second.num_effective()),
        np.where(shares, -1.0, np.nan),
        first.are_alike() & second.are_alike(),
        settings,
    )


def _counts(sums: Sums, settings: Settings) -> NDArray[np.uint16]:
    return draw_counts(sums.num_tasks, settings.num_resamples, settings.seed)


def _intervals(
    values: Floats,
    drawn: Floats,
    without: Floats,
    num_effective: Floats,
    floors: Floats,
    alike: NDArray[np.bool_],
    settings: Settings,
) -> list[Interval | None]:
    found: list[Interval | None] = []
    columns = zip(values, num_effective, floors, alike, strict=True)
    for column, (value, effective, floor, is_alike) in enumerate(columns):
        replicates, jackknife = (table[:, column][~np.isnan(table[:, column])] for table in (drawn, without))
        if np.isnan(value) or effective < MIN_EFFECTIVE:
            found.append(None)
        elif np.ptp(replicates) > SAME and (np.isnan(floor) or not is_alike):
            found.append(bca_interval(float(value), replicates, jackknife, float(effective), settings.level))
        elif np.isnan(floor):
            found.append((float(value), float(value)))
        else:
            found.append(interval_of_one_kind(float(value), float(floor), float(effective), settings.level))
    return found


def bca_interval(value: float, replicates: Floats, jackknife: Floats, num_tasks: float, level: float) -> Interval:
    """The bias-corrected, accelerated interval, as wide for few tasks as Student's.

    The plain percentiles of resamples cover too seldom where a share is near 0 or 1, and where tasks are few.
    Source: Efron, Better bootstrap confidence intervals, 1987; Hesterberg, What teachers should know about the
    bootstrap, 2015 (section 3.3, expanded percentiles).

    Args:
        replicates: the metric in each resample.
        jackknife: the metric without one of the tasks each.
        num_tasks: effective number of tasks, above 1.
    """
    below = np.mean(replicates < value) + np.mean(np.abs(replicates - value) <= SAME) / 2
    bias = NORMAL.inv_cdf(float(np.clip(below, 1 / len(replicates), 1 - 1 / len(replicates))))
    deviations = jackknife.mean() - jackknife
    spread = float((deviations**2).sum()) ** 1.5
    acceleration = float((deviations**3).sum()) / (6 * spread) if spread else 0.0
    reach = math.sqrt(num_tasks / (num_tasks - 1)) * student_quantile((1 + level) / 2, num_tasks - 1)
    levels = []
    for score in (bias - reach, bias + reach):
        slope = 1 - acceleration * score
        # Beyond the pole of the correction the interval ends where the resamples do.
        levels.append(NORMAL.cdf(bias + score / slope) if slope > 0 else float(score > 0))
    low, high = np.quantile(replicates, levels)
    return float(low), float(high)


def interval_of_one_kind(value: float, floor: float, num_tasks: float, level: float) -> Interval:
    """The interval of a metric in [floor, 1] in which no task differs from another of its stratum, so that resamples
    do not either.

    Tasks of another kind may have been missed: at the level asked for, those that are like the seen ones make up at
    least `kept` of all; the others could be worth anything.
    """
    kept = ((1 - level) / 2) ** (1 / num_tasks)
    return value - (1 - kept) * (value - floor), value + (1 - kept) * (1 - value)


def student_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's distribution, by its expansion (Abramowitz and Stegun 26.7.5): good to 0.1 % from 5 on."""
    z = NORMAL.inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
