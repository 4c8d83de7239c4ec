"""What a check comes to: a status, a sentence, and what to do; and the verdict over all of them."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppp.doctor.text import Line

Details = Mapping[str, Any]
NONE: Details = {}


class Status(enum.StrEnum):
    """How a check ended; ordered from good to bad, except SKIPPED, which says nothing."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one check.

    Attributes:
        status: see `Status`.
        text: what was found, or why nothing was looked for; one sentence, or several with a semicolon between them.
        remedy: what to do; "" where there is nothing to do.
        details: numbers and lists behind the sentence, as JSON values.
        block: more lines to read, made harmless, such as a transcript; each with its style.
    """

    status: Status
    text: str
    remedy: str = ""
    details: Details = field(default_factory=dict)
    block: Sequence[Line] = ()


def ok(text: str, details: Details = NONE, block: Sequence[Line] = ()) -> Result:
    return Result(Status.OK, text, "", details, block)


def warning(text: str, remedy: str, details: Details = NONE, block: Sequence[Line] = ()) -> Result:
    return Result(Status.WARNING, text, remedy, details, block)


def failed(text: str, remedy: str, details: Details = NONE, block: Sequence[Line] = ()) -> Result:
    return Result(Status.FAILED, text, remedy, details, block)


def skipped(text: str) -> Result:
    return Result(Status.SKIPPED, text)


def verdict(results: Mapping[str, Result], start: str) -> str:
    """The last words: whether a run can start, and if not, what to do first.

    Args:
        results: check -> outcome, in order.
        start: the command that starts the run; "" where there is no recipe.
    """
    bad = [name for name, result in results.items() if result.status is Status.FAILED]
    doubtful = [name for name, result in results.items() if result.status is Status.WARNING]
    unknown = [name for name, result in results.items() if result.status is Status.SKIPPED]
    if bad:
        first = results[bad[0]]
        counted = f"{len(bad)} of {len(results)} checks failed ({', '.join(bad)})"
        return f"{counted}. Begin with {bad[0]}: {first.remedy or first.text}"
    words = ["nothing is wrong" if not doubtful else f"nothing failed; worth a look: {', '.join(doubtful)}"]
    if unknown:
        words.append(f"not looked at: {', '.join(unknown)}")
    if start:
        words.append(f"start with: {start}")
    text = "; ".join(words)
    return text[0].upper() + text[1:]
