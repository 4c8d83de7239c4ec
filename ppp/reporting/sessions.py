"""The sessions that a page shows: those of evaluations first, then of trainings, evenly over the run.

Logs of trainings are read line by line and only what is shown is kept, so that a log of any size can be reported on.
How a session is shown is decided in `page.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ppp.evaluation.records import Damaged, DamagedError, Record, check_record
from ppp.reporting.content import Session
from ppp.reporting.run_types import Runs, Training
from ppp.reporting.runs import all_weights, tell_damage
from ppp.rewards import is_number

TOKENS_FILE = "tokens.jsonl"  # see `token_log.py`, which would import a tokenizer
MAX_TOKENS = 200  # sessions of a page that bring their tokens

NEWLINE = b"\n"

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Chosen:
    """The sessions of a page, how many there are in all, and sentences on lines that could not be used."""

    sessions: list[Session]
    num_sessions: int
    problems: list[str]


def key_of(line: Mapping[str, Any]) -> Key:
    """What a session and its tokens have in common."""
    return tuple(line.get(name) for name in ("step", "mode", "row", "copy"))


def choose_sessions(runs: Runs, max_sessions: int) -> Chosen:
    """At most `max_sessions`, of evaluations as many as there is room for, of trainings what is then left.

    The evaluation that stands at the top of the report is the first that a reader meets.
    """
    problems: list[str] = []
    folders = [*(run.folder for run in runs.evaluations), *(training.folder for training in runs.trainings)]
    tokens = read_tokens(folders, problems)
    sessions: list[Session] = []
    ordered = sorted(runs.evaluations, key=lambda run: run is not runs.main)
    sizes = [len(run.records) for run in ordered]
    for run, room in zip(ordered, shares(sizes, max_sessions), strict=True):
        own = tokens.get(run.folder, {})
        given = run.rewards.get("weights")
        weights = {} if given is None else all_weights(given)
        for place in even_places(len(run.records), room):
            record = run.records[place]
            sessions.append(Session(run.name, record, weights, own.get(key_of(record))))
    total = sum(sizes)
    sizes = [sum(count_lines(log) for log in training.logs) for training in runs.trainings]
    rooms = shares(sizes, max_sessions - len(sessions))
    for training, size, room in zip(runs.trainings, sizes, rooms, strict=True):
        chosen, read = sample_training(training, size, room, tokens.get(training.folder, {}), problems)
        sessions += chosen
        total += read
    return Chosen(sessions, total, problems)


def shares(sizes: Sequence[int], room: int) -> list[int]:
    """How many of each there is room for: as many of one as of another, and all of those that have fewer."""
    given = [0] * len(sizes)
    left = list(range(len(sizes)))
    while left:
        each, over = divmod(max(0, room), len(left))
        small = [place for place in left if sizes[place] <= each]
        if not small:
            for number, place in enumerate(left):
                given[place] = each + (number < over)
            break
        for place in small:
            given[place] = sizes[place]
            room -= sizes[place]
        left = [place for place in left if place not in small]
    return given


def even_places(size: int, number: int) -> Iterator[int]:
    """`number` places from 0 to size - 1, evenly apart, the first and the last among them."""
    if number >= size:
        yield from range(size)
    elif number == 1:
        yield size - 1
    else:
        yield from (place * (size - 1) // (number - 1) for place in range(number))


def count_lines(path: Path) -> int:
    """Lines of a file, counted without reading any of them."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def sample_training(
    run: Training, size: int, room: int, tokens: Mapping[Key, Any], problems: list[str]
) -> tuple[list[Session], int]:
    """Some sessions of a training, evenly over its logs, those that have tokens first; and how many it has in all."""
    wanted = set(even_places(size, max(0, room - len(tokens))))
    chosen: list[Record] = []
    num_read = place = 0
    for log in run.logs:
        damaged = []
        for number, line in read_lines(log):
            place += 1
            if isinstance(line, str):
                damaged.append(Damaged(number, line))
                continue
            num_read += 1
            if (place - 1 in wanted or key_of(line) in tokens) and len(chosen) < room:
                try:
                    check_record(line)
                except DamagedError as error:
                    damaged.append(Damaged(number, str(error)))
                else:
                    chosen.append(line)
        tell_damage(log, damaged, problems)
    name = f"{run.name}, training"
    return [Session(name, record, run.weights, tokens.get(key_of(record))) for record in chosen], num_read


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Number and object of each line, one at a time; of a line that holds none, why."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                yield number, f"{'' if line.endswith(NEWLINE) else 'cut off, '}not JSON ({error.msg})"
            else:
                yield number, value if isinstance(value, dict) else "not a JSON object"


def read_tokens(folders: Sequence[Path], problems: list[str]) -> dict[Path, dict[Key, Any]]:
    """Folder -> session -> its line of `tokens.jsonl`; at most `MAX_TOKENS` in all, shared by the runs."""
    paths = [folder / TOKENS_FILE for folder in folders if (folder / TOKENS_FILE).is_file()]
    sizes = [count_lines(path) for path in paths]
    return {
        path.parent: tokens_of(path, size, room, problems)
        for path, size, room in zip(paths, sizes, shares(sizes, MAX_TOKENS), strict=True)
    }


def tokens_of(path: Path, size: int, room: int, problems: list[str]) -> dict[Key, Any]:
    """Some of a file's sessions with tokens, evenly over it."""
    wanted = set(even_places(size, room))
    found, damaged = {}, []
    for number, line in read_lines(path):
        if isinstance(line, str):
            damaged.append(Damaged(number, line))
        elif not is_tokens(line):
            damaged.append(
                Damaged(number, "pieces, own and logprobs must be as many texts, zeros and ones, and numbers")
            )
        elif number - 1 in wanted:
            found[key_of(line)] = line
    tell_damage(path, damaged, problems)
    return found


def is_tokens(line: Mapping[str, Any]) -> bool:
    """Whether a line holds for each token its text, whose it is, and a number or None."""
    pieces, own, logprobs = (line.get(name) for name in ("pieces", "own", "logprobs"))
    return (
        isinstance(pieces, list)
        and isinstance(own, list)
        and isinstance(logprobs, list)
        and len(pieces) == len(own) == len(logprobs)
        and all(isinstance(piece, str) for piece in pieces)
        and all(mine in (0, 1) for mine in own)
        and all(value is None or is_number(value) for value in logprobs)
    )
