"""How often the intervals of an evaluation cover the truth, by simulation; 95 of 100 should.

    python scripts/check_intervals.py [--num_simulations 10000] [--num_tasks 100 30 20 10 5]

Sessions of one task are alike (a task is hard or easy for all of them), and tasks have 6 to 18 sessions. The truth
follows from how the sessions are drawn. Every row is a metric, every column a number of tasks; the last column shows
what plain percentiles of the resamples would cover at the first number of tasks.
Exit status: 0 all metrics at 100 tasks are covered in 93 to 97 % of simulations, 1 not so.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from ppp.evaluation.intervals import Settings, Sums, difference_intervals, draw_counts, intervals_of

Floats = NDArray[np.float64]
BATCH = 1000  # simulations at a time
WANTED = (93.0, 97.0)
NUM_PREFERENCES = 20


@dataclass(frozen=True)
class Simulated:
    """Evaluations of S simulations: metric s of the sums is that of simulation s. `second` makes it a difference."""

    truth: float
    first: Sums
    second: Sums | None = None


def alike(rng: np.random.Generator, mean: float, correlation: float, shape: tuple[int, int]) -> Floats:
    """A probability for each task, (T, S): coins thrown with it correlate so much within a task."""
    scale = (1 - correlation) / correlation
    return rng.beta(mean * scale, (1 - mean) * scale, shape)


def coins(rng: np.random.Generator, probabilities: Floats) -> Floats:
    return (rng.random(probabilities.shape) < probabilities).astype(np.float64)


def sessions_of(num_tasks: int) -> NDArray[np.intp]:
    """The task of each session: 6 to 18 sessions a task."""
    return np.repeat(np.arange(num_tasks), 6 + np.arange(num_tasks) * 5 % 13)


def summed(numerators: Floats, denominators: Floats | None, tasks: NDArray[np.intp]) -> Sums:
    below = np.ones_like(numerators) if denominators is None else denominators
    return Sums.of(numerators, below, tasks, np.zeros_like(tasks))


def share(rng: np.random.Generator, num_tasks: int, size: int, mean: float) -> Simulated:
    """Proactivity, or productivity where a session is right or wrong."""
    tasks = sessions_of(num_tasks)
    return Simulated(mean, summed(coins(rng, alike(rng, mean, 0.3, (num_tasks, size))[tasks]), None, tasks))


def f1_score(rng: np.random.Generator, num_tasks: int, size: int) -> Simulated:
    """Productivity of func-loc: often 0, often 1, and something between."""
    tasks, correlation = sessions_of(num_tasks), 0.4
    skill = alike(rng, 0.5, correlation, (num_tasks, size))[tasks]
    right, whole = coins(rng, 0.4 + 0.5 * skill), coins(rng, skill)
    partly = rng.choice([1 / 3, 1 / 2, 2 / 3], skill.shape)
    # E (0.4 + 0.5 s) (0.5 + 0.5 s) with E s = 0.5 and the variance of s = 0.25 * correlation
    truth = 0.2 + 0.45 * 0.5 + 0.25 * (0.25 + 0.25 * correlation)
    return Simulated(truth, summed(right * np.where(whole == 1, 1.0, partly), None, tasks))


def personalization(rng: np.random.Generator, num_tasks: int, size: int, asks: float) -> Simulated:
    """The share that follows among those that ask; where more is asked, more is followed."""
    tasks = sessions_of(num_tasks)
    asking, liking = alike(rng, asks, 0.4, (num_tasks, size)), alike(rng, 0.5, 0.3, (num_tasks, size))
    asked = coins(rng, asking[tasks])
    followed = asked * coins(rng, (0.3 + 0.3 * asking + 0.4 * liking)[tasks])
    # E a (0.3 + 0.3 a + 0.4 l) / E a
    truth = 0.3 + 0.3 * (asks**2 + asks * (1 - asks) * 0.4) / asks + 0.4 * 0.5
    return Simulated(truth, summed(followed, asked, tasks))


def equal_preferences(rng: np.random.Generator, num_tasks: int, size: int) -> Simulated:
    """A share over preferences that count alike and have one to twenty-five sessions for ten tasks."""
    per_task = np.linspace(0.1, 2.5, NUM_PREFERENCES)
    counts = rng.poisson(np.broadcast_to(per_task, (num_tasks, NUM_PREFERENCES)))
    counts[counts.sum(axis=1) == 0, -1] = 1
    counts[0] = np.maximum(counts[0], 1)  # each preference has a session
    tasks, users = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape))
    of_user = np.linspace(0.2, 1.0, NUM_PREFERENCES)
    probabilities = 0.5 * alike(rng, 0.6, 0.3, (num_tasks, size))[tasks] + 0.5 * of_user[users][:, None]
    values = coins(rng, probabilities)
    return Simulated(0.5 * 0.6 + 0.5 * float(of_user.mean()), Sums.of(values, np.ones_like(values), tasks, users))


def paired_share(rng: np.random.Generator, num_tasks: int, size: int) -> Simulated:
    """The gain in a share over the same sessions."""
    tasks = sessions_of(num_tasks)
    before = alike(rng, 0.5, 0.3, (num_tasks, size))[tasks]
    first, second = coins(rng, before), coins(rng, 0.1 + 0.9 * before)
    return Simulated(0.1 - 0.1 * 0.5, summed(first, None, tasks), summed(second, None, tasks))


def paired_personalization(rng: np.random.Generator, num_tasks: int, size: int) -> Simulated:
    """The gain in personalization, by an agent that asks twice as often."""
    tasks = sessions_of(num_tasks)
    asking, liking = alike(rng, 0.6, 0.3, (num_tasks, size))[tasks], alike(rng, 0.5, 0.3, (num_tasks, size))[tasks]
    asked = [coins(rng, 0.5 * asking), coins(rng, asking)]
    followed = [
        ask * coins(rng, probability)
        for ask, probability in zip(asked, (0.8 * liking, 0.3 + 0.6 * liking), strict=True)
    ]
    sums = [summed(follow, ask, tasks) for follow, ask in zip(followed, asked, strict=True)]
    return Simulated((0.3 + 0.6 * 0.5) - 0.8 * 0.5, *sums)


SCENARIOS: dict[str, Callable[[np.random.Generator, int, int], Simulated]] = {
    "share of 75 %": lambda rng, num_tasks, size: share(rng, num_tasks, size, 0.75),
    "share of 95 %": lambda rng, num_tasks, size: share(rng, num_tasks, size, 0.95),
    "F1": f1_score,
    "personalization, asks in 60 %": lambda rng, num_tasks, size: personalization(rng, num_tasks, size, 0.6),
    "personalization, asks in 10 %": lambda rng, num_tasks, size: personalization(rng, num_tasks, size, 0.1),
    "share, preferences count alike": equal_preferences,
    "paired difference of shares": paired_share,
    "paired difference of personalization": paired_personalization,
}


def intervals(drawn: Simulated, settings: Settings) -> list[tuple[float, float] | None]:
    """What an evaluation would say."""
    shares = np.ones(drawn.first.numerators.shape[2], dtype=bool)
    if drawn.second is None:
        return intervals_of(drawn.first, settings, shares)
    return difference_intervals(drawn.first, drawn.second, settings, shares)


def percentiles(drawn: Simulated, settings: Settings) -> list[tuple[float, float] | None]:
    """Plain percentiles of the same resamples."""
    counts = draw_counts(drawn.first.num_tasks, settings.num_resamples, settings.seed)
    values = (
        drawn.first.drawn(counts) if drawn.second is None else drawn.second.drawn(counts) - drawn.first.drawn(counts)
    )
    tail = (1 - settings.level) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail], axis=0)
    return [(float(pair[0]), float(pair[1])) for pair in zip(low, high, strict=True)]


def coverage(
    scenario: str,
    num_tasks: int,
    num_simulations: int,
    seed: int = 0,
    method: Callable[[Simulated, Settings], list[tuple[float, float] | None]] = intervals,
) -> float:
    """Percent of the simulations with an interval whose interval covers the truth."""
    rng = np.random.default_rng([seed, num_tasks, list(SCENARIOS).index(scenario)])
    covered: list[bool] = []
    for start in range(0, num_simulations, BATCH):
        drawn = SCENARIOS[scenario](rng, num_tasks, min(BATCH, num_simulations - start))
        found = [pair for pair in method(drawn, Settings()) if pair is not None]
        covered += [low <= drawn.truth <= high for low, high in found]
    return 100 * sum(covered) / len(covered) if covered else math.nan


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_simulations", type=int, default=10_000)
    parser.add_argument("--num_tasks", type=int, nargs="+", default=[100, 30, 20, 10, 5])
    options = parser.parse_args(argv)
    error = 100 * math.sqrt(0.95 * 0.05 / options.num_simulations)
    rows = []
    for name in SCENARIOS:
        found = [coverage(name, number, options.num_simulations) for number in options.num_tasks]
        plain = coverage(name, options.num_tasks[0], options.num_simulations, method=percentiles)
        rows.append([name, *(f"{value:.1f}" for value in (*found, plain))])
        print(f"{name}: {rows[-1][1:]}", file=sys.stderr)
    header = ["metric", *(f"{number} tasks" for number in options.num_tasks), f"plain, {options.num_tasks[0]} tasks"]
    print(tabulate(rows, header, "pipe", disable_numparse=True, colalign=["left", *["right"] * (len(header) - 1)]))
    print(
        f"\nCovered by 95 % intervals, percent of {options.num_simulations:,} simulations (standard error {error:.2f})"
    )
    if 100 not in options.num_tasks:
        return 0
    column = 1 + options.num_tasks.index(100)
    return 0 if all(WANTED[0] <= float(row[column]) <= WANTED[1] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
