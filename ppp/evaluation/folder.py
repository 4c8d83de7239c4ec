"""The folder of an evaluation: what is being played, the sessions as they end, and how to go on after a kill.

`evaluation.json` is written before the first session and says what the sessions in `results.jsonl` are sessions of.
Whoever opens the folder again has to mean the same evaluation; then finished sessions stay, and those that are missing,
failed or damaged are played. What is made of them is `summary.py`'s, who plays them is `run.py`.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import orjson

from ppp.checks import refuse
from ppp.evaluation.plan import Session
from ppp.evaluation.records import Record, failed, read_records
from ppp.run_folder import write_whole
from ppp.types import DiskError, RecipeError

logger = logging.getLogger(__name__)

MANIFEST_FILE = "evaluation.json"
RESULTS_FILE = "results.jsonl"
SUMMARY_FILE = "summary.json"
BASELINE_DIR = "baseline"

# Parts of a manifest that may differ when an evaluation goes on, because the sessions do not depend on them: where the
# tasks were read from (their digest counts), how fast requests may be sent, what they cost and how much may be spent.
_BUDGET = ("max_cost", "max_calls", "input_price", "cached_input_price", "output_price", "cache", "cache_path")
_RATES = ("max_concurrency", "requests_per_minute", "tokens_per_minute", "api_key_env")
_PATIENCE = ("timeout_s", "deadline_s", "max_retries", "max_outage_s")
FREE_OF_AN_ENDPOINT = frozenset((*_BUDGET, *_RATES, *_PATIENCE))
FOUND_OUT = "agent.calls"  # what nobody asks for and the first part of an evaluation finds out


def may_differ(field: str) -> bool:
    """Whether a field of a manifest, by its dotted name, may change while the evaluation stays the same."""
    first, last = field.split(".")[0], field.split(".")[-1]
    return (
        field == FOUND_OUT
        or (first in ("agent", "user") and last in FREE_OF_AN_ENDPOINT)
        or (first == "limits" and last.endswith("_timeout_s"))
        or (first == "tasks" and ".source" in field)
    )


def flatten(manifest: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of nested mappings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in manifest.items():
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def check_same(there: Mapping[str, Any], here: Mapping[str, Any], folder: Path) -> None:
    """Find out whether two manifests mean the same evaluation.

    Raises:
        RecipeError: they do not; names the first field that differs and both of its values.
    """
    old, new = flatten(there), flatten(here)
    for field in [*new, *(name for name in old if name not in new)]:
        if old.get(field) != new.get(field) and not may_differ(field):
            raise RecipeError(
                f"output_dir: {str(folder)!r} holds another evaluation, whose {field} is {_shown(old, field)} and not "
                f"{_shown(new, field)}; name a new folder"
            )


def _shown(fields: Mapping[str, Any], name: str) -> str:
    text = repr(fields[name]) if name in fields else "not set"
    return text if len(text) <= 200 else f"{text[:197]}..."


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What `evaluation.json` says; None where there is none.

    Raises:
        RecipeError: it cannot be read.
    """
    path = folder / MANIFEST_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise refuse("output_dir", str(folder), f"its {MANIFEST_FILE} cannot be read ({error})") from error
    return found


class EvaluationFolder:
    """The sessions of one evaluation, those that are in its folder already and those that are still to be played.

    To make one reads and changes nothing; `opened` does.

    Args:
        path: the folder; need not exist.
        manifest: what is evaluated, as JSON values.
        sessions: all of them, as planned.

    Attributes:
        records: number of a session -> its record, for those that have been played and did not fail before.

    Raises:
        RecipeError: the folder holds another evaluation, or cannot be read.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], sessions: Sequence[Session]) -> None:
        self.path, self.sessions = path, sessions
        self.manifest: dict[str, Any] = json.loads(json.dumps(manifest))
        self.records: dict[int, Record] = {}
        self._by_number = {session.number: session for session in sessions}
        self._file: IO[bytes] | None = None
        self._must_rewrite = False
        there = read_manifest(path)
        if there is None:
            self._refuse_strangers()
        else:
            check_same(there, self.manifest, path)
            self.manifest = there
        self._state = self._stat()
        if there is not None and self.results.is_file():
            self._read()

    @property
    def results(self) -> Path:
        return self.path / RESULTS_FILE

    @property
    def missing(self) -> list[Session]:
        """What is still to be played, in the order of the plan."""
        return [session for session in self.sessions if session.number not in self.records]

    @property
    def in_order(self) -> list[Record]:
        """The records in the order of the plan: sums over them do not depend on which session ended first."""
        return [self.records[session.number] for session in self.sessions if session.number in self.records]

    def told(self) -> str:
        """How far it is, and how to go on, in a sentence."""
        num_saved = sum(not failed(record) for record in self.records.values())
        return f"{num_saved} of {len(self.sessions)} sessions are saved in {self.path}; the same command goes on"

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Let sessions be added while the body runs; what cannot be used is taken out of the file first.

        Raises:
            RecipeError: the folder cannot be written to, or another process does.
        """
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_claimed(self.path))
                if self._stat() != self._state:
                    raise refuse("output_dir", str(self.path), "another process has written to it just now")
                self._prepare()
                self._file = stack.enter_context(self.results.open("ab"))
            except OSError as error:
                allowed = f"a folder that can be written to ({error.strerror})"
                raise refuse("output_dir", str(self.path), allowed) from error
            yield
        self._file = None

    def add(self, session: Session, record: Mapping[str, Any]) -> None:
        """Append one session, which is then safe from a kill of this process.

        Raises:
            DiskError: it cannot be written.
        """
        assert self._file is not None, "sessions are added while the folder is open"
        precise_prompt = None if session.task.is_precise else session.task.precise_prompt
        whole = {"slice": session.slice, **record, "precise_prompt": precise_prompt}
        # Halves of characters, which a model's JSON may hold, are in no file of UTF-8.
        line = json.dumps(whole, ensure_ascii=False).encode("utf-8", errors="replace")
        try:
            self._file.write(line + b"\n")
            self._file.flush()
        except OSError as error:
            with suppress(OSError):  # it tries to write the rest once more
                self._file.close()
            raise DiskError(f"{self.results} cannot be written ({error.strerror}); make room.") from error
        self.records[session.number] = whole

    def _refuse_strangers(self) -> None:
        for name in (RESULTS_FILE, SUMMARY_FILE):
            if (self.path / name).exists():
                allowed = f"it holds a {name} and no {MANIFEST_FILE} that says of what; name a new folder"
                raise refuse("output_dir", str(self.path), allowed)
        if self.path.exists() and not self.path.is_dir():
            raise refuse("output_dir", str(self.path), "it is a file; name a folder")

    def _read(self) -> None:
        """Take over what is there; tell what is played again, and why."""
        found = read_records(self.results)
        for damaged in found.damaged:
            logger.warning("%s, %s; its session is played again", self.results, damaged)
        num_failed = 0
        for record in found.records:
            session = self._by_number.get(record["row"])
            if session is None or session.task.task_id != record["task_id"]:
                allowed = f"its {RESULTS_FILE} holds a session that is none of this evaluation ({record['task_id']})"
                raise refuse("output_dir", str(self.path), f"{allowed}; name a new folder")
            if failed(record):
                num_failed += 1
            else:
                self.records.setdefault(session.number, record)
        if num_failed:
            logger.info("%s: %d sessions failed and are played again", self.results, num_failed)
        # What is appended to a line whose end is missing, though it is whole, would damage both sessions.
        is_torn = not _ends_a_line(self.results)
        self._must_rewrite = is_torn or bool(found.damaged) or len(found.records) > len(self.records)

    def _prepare(self) -> None:
        """Write the manifest, or take lines that do not count out of the results: failed, damaged, torn, double."""
        if not (self.path / MANIFEST_FILE).exists():
            write_whole(self.path / MANIFEST_FILE, json.dumps(self.manifest, indent=2, ensure_ascii=False) + "\n")
        if self._must_rewrite:
            beside = self.results.with_name(f"_{RESULTS_FILE}.tmp")
            with beside.open("wb") as file:
                for record in self.records.values():
                    file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
            os.replace(beside, self.results)
            self._must_rewrite = False

    def _stat(self) -> tuple[int, int] | None:
        """Tells whether the results were touched since."""
        if not self.results.is_file():
            return None
        found = self.results.stat()
        return found.st_size, found.st_mtime_ns


def _ends_a_line(path: Path) -> bool:
    """Whether the last line of a file is whole, or there is none."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder; the kernel lets go of it when this one dies.

    Raises:
        RecipeError: another process has it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise refuse("output_dir", str(folder), "another process is writing sessions to it") from error
        yield
    finally:
        os.close(descriptor)
