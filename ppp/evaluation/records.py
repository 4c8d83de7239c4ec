"""The sessions of an evaluation as they stand in its file: read line by line, checked, grouped by user and prompt.

What a line may lack, or hold wrongly, is found here and nowhere else, so that everybody behind can take a record for
whole. Who writes them is `ppp/run_log.py`; what is counted in them is in `metrics.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ppp.preferences import PENALIZED, SEEN, UNSEEN
from ppp.rewards import EFFORTS, METRIC_VERSION, is_number
from ppp.types import RecipeError, StopReason

Record = dict[str, Any]

REASONS = tuple(reason.value for reason in StopReason)


@dataclass(frozen=True, slots=True)
class Damaged:
    """A line that could not be used: its number, counted from 1, and why."""

    number: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.number}: {self.reason}"


@dataclass(frozen=True)
class Results:
    """What a file of sessions holds: its records in order, and the lines that had to be skipped."""

    path: Path
    records: list[Record]
    damaged: list[Damaged]


class DamagedError(Exception):
    """Why a line is damaged; never leaves this file."""


def _vague(record: Mapping[str, Any]) -> bool:
    return not record["is_precise"]


# Kinds of sessions whose scores are told apart: name -> whether a record belongs to it. They overlap.
GROUPS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "vague": _vague,
    "vague_seen": lambda record: _vague(record) and record["preference"] in SEEN,
    "vague_unseen": lambda record: _vague(record) and record["preference"] in UNSEEN,
    "vague_penalty": lambda record: _vague(record) and record["preference"] in PENALIZED,
    "precise": lambda record: bool(record["is_precise"]),
}


def failed(record: Mapping[str, Any]) -> bool:
    """Whether infrastructure failed in this session, so that it counts for no metric."""
    return record["session"] is None


def base_task(record: Mapping[str, Any]) -> str:
    """The task behind a session, without its user and kind of prompt: sessions of one task are not independent."""
    name: str = record["task_id"]
    preference = record["preference"]
    suffixes = (f"/precise/{preference}", "/precise") if record["is_precise"] else (f"/{preference}",)
    for suffix in suffixes:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


def read_records(path: Path) -> Results:
    """All sessions of a file of JSON lines; damaged lines are skipped and told, an empty file holds none.

    Raises:
        RecipeError: the file cannot be read, or holds sessions that were counted by other rules than ours.
    """
    records: list[Record] = []
    damaged: list[Damaged] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    records.append(parse_record(line, f"{path}: line {number}"))
                except DamagedError as error:
                    damaged.append(Damaged(number, str(error)))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); name the sessions of an evaluation") from error
    return Results(path, records, damaged)


def parse_record(line: bytes, where: str) -> Record:
    """One line as a record that has every field we read.

    Raises:
        DamagedError: it has not.
        RecipeError: another `metric_version`; `where` says in which line.
    """
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        torn = "" if line.endswith(b"\n") else "cut off, "
        raise DamagedError(f"{torn}not JSON ({error.msg})") from None
    if not isinstance(record, dict):
        raise DamagedError("not a JSON object")
    version = _field(record, "metric_version", _is_count)
    if version != METRIC_VERSION:
        raise RecipeError(
            f"{where}: metric_version {version} is not allowed, only {METRIC_VERSION}: results that were counted by "
            "different rules are not mixed; evaluate again"
        )
    check_record(record)
    return record


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and is_number(value) and 0 <= value <= 1


def _is_text_or_null(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_object_or_null(value: object) -> bool:
    return value is None or isinstance(value, dict)


# Field -> whether its value can be used. Further fields are left as they are.
FIELDS: dict[str, Callable[[object], bool]] = {
    "task_id": _is_text,
    "environment": _is_text,
    "preference": _is_text,
    "is_precise": _is_flag,
    "prompt": _is_text,
    "mode": _is_text,
    "step": _is_count,
    "row": _is_count,
    "copy": _is_count,
    "stop_reason": lambda value: value in REASONS,
    "final_answer": _is_text_or_null,
    "error": _is_text_or_null,
    "error_kind": _is_text_or_null,
    "score": _is_object_or_null,
    "session": _is_object_or_null,
    "num_policy_tokens": _is_count,
    "num_completion_tokens": _is_count,
    "turns": lambda value: isinstance(value, list),
}
SESSION_FIELDS: dict[str, Callable[[object], bool]] = {
    "productivity": _is_share,
    "session_effort": lambda value: value in EFFORTS,
    "follows_preference": _is_flag,
    "num_questions": _is_count,
    "effort": lambda value: isinstance(value, dict),
}
TURN_FIELDS: dict[str, Callable[[object], bool]] = {
    "text": _is_text_or_null,
    "observation": _is_text_or_null,
    "is_error": _is_flag,
    "truncated": _is_flag,
}
ANSWER_FIELDS: dict[str, Callable[[object], bool]] = {
    "text": _is_text,
    "effort": lambda value: value in EFFORTS,
    "follows_preference": _is_flag,
    "decided_by": _is_text,
}
CALL_FIELDS: dict[str, Callable[[object], bool]] = {"name": _is_text, "arguments": _is_text}


def _field(holder: Mapping[str, Any], name: str, fits: Callable[[object], bool], where: str = "") -> Any:
    if name not in holder:
        raise DamagedError(f"{where}{name} is missing")
    value = holder[name]
    if not fits(value):
        shown = repr(value)
        raise DamagedError(f"{where}{name}: {shown if len(shown) <= 60 else shown[:57] + '...'} is not allowed")
    return value


def check_record(record: Mapping[str, Any]) -> None:
    """Look at every field that is read of a record.

    Raises:
        DamagedError: the first one that is missing or cannot be used.
    """
    _check_fields(record, FIELDS)
    whole = record["stop_reason"] != StopReason.ERROR.value
    for name in ("session", "score"):
        if (record[name] is not None) != whole:
            raise DamagedError(f"{name}: must be null in a session that failed, and in no other")
    if whole:
        _check_fields(record["session"], SESSION_FIELDS, "session.")
        _check_fields(record["session"]["effort"], dict.fromkeys(EFFORTS, _is_count), "session.effort.")
        _check_fields(record["score"], {"reward": lambda value: isinstance(value, int | float)}, "score.")
    for number, turn in enumerate(record["turns"]):
        _check_turn(turn, f"turns[{number}]")


def _check_fields(holder: Mapping[str, Any], table: Mapping[str, Callable[[object], bool]], where: str = "") -> None:
    for name, fits in table.items():
        _field(holder, name, fits, where)


def _check_turn(turn: object, where: str) -> None:
    if not isinstance(turn, dict):
        raise DamagedError(f"{where} is not a JSON object")
    _check_fields(turn, TURN_FIELDS, f"{where}.")
    if "call" in turn:
        _check_part(turn, "call", CALL_FIELDS, where)
    if "answer" in turn:
        _check_part(turn, "answer", ANSWER_FIELDS, where)
        _field(turn, "question", _is_text, f"{where}.")


def _check_part(turn: Mapping[str, Any], name: str, table: Mapping[str, Callable[[object], bool]], where: str) -> None:
    if not isinstance(turn[name], dict):
        raise DamagedError(f"{where}.{name} is not a JSON object")
    _check_fields(turn[name], table, f"{where}.{name}.")
