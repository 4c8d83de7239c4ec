"""What a report consists of: tables, figures and sessions, before anybody decides how they look.

`tables.py` and `figures.py` make these from runs, `formats.py` and `page.py` write them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """A table of text. `name` is its file's name; the first `num_left` columns are labels."""

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_left: int = 1
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure as SVG, without background and with `currentColor` for everything that has no colour of its own."""

    name: str
    title: str
    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Session:
    """One session for the page.

    Attributes:
        run: label of the run that it belongs to.
        record: a line of `results.jsonl` or `trajectories.jsonl`.
        weights: term -> weight in the reward; empty where unknown.
        tokens: a line of `tokens.jsonl`, for the sampled ones.
    """

    run: str
    record: Mapping[str, Any]
    weights: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Headline:
    """One of the scores at the top of the page, in percent; `low` and `high` bound its interval."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    before: float | None = None


@dataclass(frozen=True)
class Report:
    """Everything that a page shows; `problems` are sentences for its head (skipped lines, few tasks, empty runs)."""

    title: str
    headlines: Sequence[Headline]
    tables: Sequence[Table]
    figures: Sequence[Figure]
    sessions: Sequence[Session]
    num_sessions: int
    problems: Sequence[str] = ()
