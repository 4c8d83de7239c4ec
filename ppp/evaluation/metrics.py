"""The metrics of sessions as they stand in a file: of one set, and of each group and user, with intervals.

The formulas of the scores are `rewards.session_ratios`, which training uses too; here is what only whole records can
tell (when questions come, turns, tokens), and everything is put together. How intervals come about is in
`intervals.py`; two agents on the same sessions are compared in `compare.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppp.evaluation.intervals import DEFAULT, Floats, Numbers, Settings, Sums, intervals_of
from ppp.evaluation.records import GROUPS, Record, base_task, failed
from ppp.preferences import PREFERENCES
from ppp.rewards import EFFORTS, RATIOS, SHARES, in_percent, in_units, require_variant, session_ratios

NUM_TENTHS = 10

# What records tell beyond the scores: mean per session, but question_position per question and unreadable_turns per
# turn.
LENGTHS = ("questions", "question_position", "turns", "policy_tokens", "completion_tokens", "unreadable_turns")
METRICS = (*RATIOS, *LENGTHS)
IN_PERCENT = frozenset((*SHARES, "unreadable_turns"))
ARE_SHARES = np.array([name in IN_PERCENT for name in METRICS])


def question_positions(record: Record) -> list[float]:
    """Where in the session its questions stand: 0 is the first turn, 1 would be behind the last."""
    turns = record["turns"]
    return [number / len(turns) for number, turn in enumerate(turns) if "answer" in turn]


def question_tenths(records: Iterable[Record]) -> list[int]:
    """How many questions stand in each tenth of their session."""
    counts = [0] * NUM_TENTHS
    for record in records:
        turns = record["turns"]
        for number, turn in enumerate(turns):
            if "answer" in turn:
                counts[NUM_TENTHS * number // len(turns)] += 1  # in whole numbers: 0.3 is less than 3 * 0.1
    return counts


def record_ratios(record: Record, personalization: str) -> dict[str, tuple[float, float]]:
    """What one session adds to each of METRICS, as `session_ratios` has it."""
    positions, turns = question_positions(record), record["turns"]
    return {
        **session_ratios(record["preference"], record["session"], personalization),
        "questions": (record["session"]["num_questions"], 1),
        "question_position": (sum(positions), len(positions)),
        "turns": (len(turns), 1),
        "policy_tokens": (record["num_policy_tokens"], 1),
        "completion_tokens": (record["num_completion_tokens"], 1),
        "unreadable_turns": (sum("call" not in turn for turn in turns), len(turns)),
    }


@dataclass(frozen=True)
class Measured:
    """Sessions that did not fail as numbers: row n is a session, column m what it adds to the metric METRICS[m].

    Attributes:
        numerators, denominators: (N, M).
        tasks, users: (N,), numbers of the session's task and preference.
    """

    numerators: Floats
    denominators: Floats
    tasks: Numbers
    users: Numbers

    @classmethod
    def of(cls, records: Sequence[Record], personalization: str) -> Measured:
        parts = [record_ratios(record, personalization) for record in records]
        pairs = np.array([[part[name] for name in METRICS] for part in parts], dtype=np.float64)
        pairs = pairs.reshape(len(parts), len(METRICS), 2)
        tasks = number_of([(record["environment"], base_task(record)) for record in records])
        return cls(pairs[..., 0], pairs[..., 1], tasks, number_of([record["preference"] for record in records]))

    def sums(self, rows: Numbers, equal_preferences: bool) -> Sums:
        """Some of the sessions, summed by task and, where preferences count alike, by preference."""
        tasks, users = (np.unique(names[rows], return_inverse=True)[1] for names in (self.tasks, self.users))
        strata = users if equal_preferences else np.zeros_like(users)
        return Sums.of(self.numerators[rows], self.denominators[rows], tasks, strata)


def number_of(names: Sequence[Any]) -> Numbers:
    """Each name as its number in alphabetical order: intervals do not hang on which session ended first."""
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names], dtype=np.intp)


def summarize_records(
    records: Sequence[Record],
    *,
    personalization: str = "paper",
    intervals: Settings | None = DEFAULT,
    equal_preferences: bool = False,
) -> dict[str, Any]:
    """The metrics of a set of sessions; failed ones are left out and counted. None where no session can tell.

    Source: PPP section 4.1.

    Args:
        records: checked ones, see `records.py`.
        personalization: the variant of the metric, see `rewards.summarize`.
        intervals: None makes none.
        equal_preferences: each preference counts alike, however many sessions it has; otherwise each session does.

    Returns:
        The keys of `rewards.summarize` but metric_version; questions (mean per session), question_position (mean, 0 =
        first turn), question_tenths (number of questions in each tenth of their session), turns, policy_tokens,
        completion_tokens (means per session), unreadable_turns (percent of turns), stop_reasons, failures (both name ->
        number), num_tasks; intervals: name in METRICS -> [low, high], or None where there is none.
    """
    require_variant("personalization", personalization)
    whole = [record for record in records if not failed(record)]
    sums = Measured.of(whole, personalization).sums(np.arange(len(whole)), equal_preferences)
    return _summary(records, sums, intervals)


def _summary(records: Sequence[Record], sums: Sums, intervals: Settings | None) -> dict[str, Any]:
    """The metrics of some records, of which those that did not fail are summed up already."""
    whole = [record for record in records if not failed(record)]
    values = dict(zip(METRICS, sums.value(), strict=True))
    told = {name: rounded(name, float(values[name])) for name in METRICS}
    bounds = intervals_of(sums, intervals, ARE_SHARES) if intervals is not None else []
    failures = Counter(record["error_kind"] or "unknown" for record in records if failed(record))
    return {
        **{name: told[name] for name in SHARES},
        "num_sessions": len(whole),
        "num_failed": len(records) - len(whole),
        "num_tasks": sums.num_tasks,
        "effort": {effort: told[f"effort/{effort}"] for effort in EFFORTS},
        **{name: told[name] for name in LENGTHS},
        "question_tenths": question_tenths(whole),
        "stop_reasons": dict(Counter(record["stop_reason"] for record in whole).most_common()),
        "failures": dict(failures.most_common()),
        "intervals": {
            name: None if pair is None else [rounded(name, pair[0]), rounded(name, pair[1])]
            for name, pair in zip(METRICS, bounds, strict=False)
        },
    }


def rounded(name: str, value: float) -> float | None:
    """A metric as it is told: percent with two decimals, other numbers with four; None where it is none."""
    if math.isnan(value):
        return None
    told = in_percent(value, 1) if name in IN_PERCENT else in_units(value, 1)
    return None if told is None else told + 0.0  # a rounded zero has no minus


def summarize_groups(
    records: Sequence[Record], *, personalization: str = "paper", intervals: Settings | None = DEFAULT
) -> dict[str, Any]:
    """The metrics of each group with sessions, and under "preferences" those of each of its users.

    In the groups of vague prompts each preference counts alike: the paper's table is a mean over preferences.
    """
    require_variant("personalization", personalization)
    measured = Measured.of([record for record in records if not failed(record)], personalization)
    rows = {id(record): row for row, record in enumerate(record for record in records if not failed(record))}

    def summary(chosen: Sequence[Record], equal_preferences: bool) -> dict[str, Any]:
        own = np.array([rows[id(record)] for record in chosen if id(record) in rows], dtype=np.intp)
        return _summary(chosen, measured.sums(own, equal_preferences), intervals)

    summaries: dict[str, Any] = {}
    by_user: dict[tuple[bool, str], dict[str, Any]] = {}
    for group, belongs in GROUPS.items():
        chosen = [record for record in records if belongs(record)]
        precise, users = group == "precise", by_preference(chosen)
        for name in users:
            if (precise, name) not in by_user:  # groups overlap: nobody is summed up twice
                by_user[precise, name] = summary(users[name], False)
        if chosen:
            summaries[group] = summary(chosen, not precise)
            summaries[group]["preferences"] = {name: by_user[precise, name] for name in users}
    return summaries


def by_preference(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Preference -> its sessions, in the order of the table of preferences, those not in it at the end."""
    groups: dict[str, list[Record]] = {name: [] for name in PREFERENCES}
    for record in records:
        groups.setdefault(record["preference"], []).append(record)
    return {name: group for name, group in groups.items() if group}
