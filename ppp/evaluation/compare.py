"""Two evaluations of the same sessions: what changed from the first to the second, session by session.

A session of one has its pair in the other by number, task, user and kind of prompt; what has none, or failed on either
side, is left out of both. Tasks differ more than agents do, so that pairs tell more than two intervals side by side.
Nothing is read from disk or shown here: that is `compare_cli.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppp.evaluation.intervals import DEFAULT, Settings, difference_intervals
from ppp.evaluation.metrics import ARE_SHARES, METRICS, Measured, rounded
from ppp.evaluation.records import GROUPS, Record, failed
from ppp.rewards import require_variant

# What the two sessions of a pair are compared by, one by one: name -> where it stands in a record.
COMPARED = {"reward": ("score", "reward"), "productivity": ("session", "productivity")}
NO_CHANGE = 1e-9


@dataclass(frozen=True, slots=True)
class Pair:
    """The same session as two agents played it; neither failed."""

    first: Record
    second: Record

    def change(self, name: str) -> float:
        """Second minus first, of a name in `COMPARED`."""
        part, key = COMPARED[name]
        return float(self.second[part][key] - self.first[part][key])


@dataclass(frozen=True)
class Pairs:
    """The sessions that two evaluations share, in the order of the first.

    Attributes:
        num_failed: shared sessions left out because one of the two failed.
        num_unmatched: sessions that only the first holds, and only the second.
        num_other_prompts: pairs whose agents were given different prompts, though the task has the same name.
    """

    pairs: list[Pair]
    num_failed: int
    num_unmatched: tuple[int, int]
    num_other_prompts: int


def session_key(record: Record) -> tuple[Any, ...]:
    """Equal for the same session of two evaluations."""
    names = ("step", "row", "copy", "environment", "task_id", "preference", "is_precise")
    return tuple(record[name] for name in names)


def by_key(records: Iterable[Record]) -> dict[tuple[Any, ...], Record]:
    """Each session once: of several records of it the first that did not fail."""
    found: dict[tuple[Any, ...], Record] = {}
    for record in records:
        key = session_key(record)
        if key not in found or (failed(found[key]) and not failed(record)):
            found[key] = record
    return found


def pair_up(first: Iterable[Record], second: Iterable[Record]) -> Pairs:
    """Match the sessions of two evaluations."""
    ours, theirs = by_key(first), by_key(second)
    shared = [Pair(record, theirs[key]) for key, record in ours.items() if key in theirs]
    whole = [pair for pair in shared if not failed(pair.first) and not failed(pair.second)]
    return Pairs(
        pairs=whole,
        num_failed=len(shared) - len(whole),
        num_unmatched=(len(ours) - len(shared), len(theirs) - len(shared)),
        num_other_prompts=sum(pair.first["prompt"] != pair.second["prompt"] for pair in whole),
    )


def paired_differences(
    first: Iterable[Record], second: Iterable[Record], *, personalization: str = "paper", settings: Settings = DEFAULT
) -> dict[str, Any]:
    """How the metrics of the sessions that two evaluations share change from the first to the second.

    Every metric is that of `metrics.py` on the shared sessions, and personalization stays the share of each agent's own
    sessions with a question: looking only at sessions in which both asked would pick them by what the agents did.

    Args:
        personalization: the variant of the metric, see `rewards.summarize`.
        settings: of the intervals, for which both are drawn again together.

    Returns:
        num_pairs, num_failed, num_unmatched, num_other_prompts (see `Pairs`); groups: name in GROUPS, of those with
        pairs -> num_pairs, num_tasks, first, second, difference (second - first), all three name in METRICS -> number
        or None; intervals of the differences (name -> [low, high] or None); sessions: name in COMPARED -> how many are
        better, worse and equal.
    """
    return differences_of(pair_up(first, second), personalization=personalization, settings=settings)


def differences_of(found: Pairs, *, personalization: str = "paper", settings: Settings = DEFAULT) -> dict[str, Any]:
    """The same for sessions that are matched already."""
    require_variant("personalization", personalization)
    measured = [
        Measured.of(records, personalization)
        for records in ([pair.first for pair in found.pairs], [pair.second for pair in found.pairs])
    ]
    groups: dict[str, Any] = {}
    for name, belongs in GROUPS.items():
        rows = np.array([row for row, pair in enumerate(found.pairs) if belongs(pair.first)], dtype=np.intp)
        if len(rows):
            # The sessions are the same, in the same order, so that tasks have the same numbers in both sums.
            before, after = (part.sums(rows, equal_preferences=name != "precise") for part in measured)
            values = before.value(), after.value(), after.value() - before.value()
            told = [
                {metric: rounded(metric, float(value)) for metric, value in zip(METRICS, column, strict=True)}
                for column in values
            ]
            bounds = zip(METRICS, difference_intervals(before, after, settings, ARE_SHARES), strict=True)
            groups[name] = {
                "num_pairs": len(rows),
                "num_tasks": before.num_tasks,
                **dict(zip(("first", "second", "difference"), told, strict=True)),
                "intervals": {
                    metric: None if pair is None else [rounded(metric, bound) for bound in pair]
                    for metric, pair in bounds
                },
                "sessions": {key: count_changes([found.pairs[row] for row in rows], key) for key in COMPARED},
            }
    return {
        "num_pairs": len(found.pairs),
        "num_failed": found.num_failed,
        "num_unmatched": list(found.num_unmatched),
        "num_other_prompts": found.num_other_prompts,
        "groups": groups,
    }


def count_changes(pairs: Iterable[Pair], name: str) -> dict[str, int]:
    """How many sessions the second agent played better, worse and equally well."""
    changes = [pair.change(name) for pair in pairs]
    better, worse = sum(change > NO_CHANGE for change in changes), sum(change < -NO_CHANGE for change in changes)
    return {"better": better, "worse": worse, "equal": len(changes) - better - worse}


def most_changed(pairs: Sequence[Pair], number: int) -> list[Pair]:
    """The sessions whose reward changed most, then those whose productivity did; only such that changed."""
    changed = [pair for pair in pairs if any(abs(pair.change(name)) > NO_CHANGE for name in COMPARED)]
    # Rounded, so that the order does not hang on the last digit of a sum; sorting keeps the order of what is equal.
    return sorted(changed, key=lambda pair: tuple(-round(abs(pair.change(name)), 6) for name in COMPARED))[:number]


def excludes_zero(interval: Sequence[float] | None) -> bool:
    """Whether a difference is more than chance would make of it."""
    return interval is not None and (interval[0] > 0 or interval[1] < 0)
