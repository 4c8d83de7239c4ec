"""The files of the vaguenizer: rows read from the input, results kept row by row so that a killed run can go on.

While a run lasts, a result is appended to the output as soon as it is there, and on disk before the next one; a row
whose every attempt failed goes to a second file beside it. At the end both are put into the order of the input. Each
result carries the line and a hash of its input row, so that a restart knows what is done, also where ids are missing.
Nothing is asked here, see `rewriting.py`; the report is in `report.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ppp.types import RecipeError
from ppp.vaguenizer.rewriting import ROW_KINDS, Outcome, VagueRow, make_row

SETTINGS = ("level", "model", "judge_model")  # what all rows of an output have in common

Record = dict[str, Any]


def read_rows(path: Path, titles: Mapping[str, str] | None = None) -> list[VagueRow]:
    """The rows of a JSONL file.

    Raises:
        RecipeError: the file is missing or holds no row, or a row is malformed or has an id that another one has.
    """
    rows: list[VagueRow] = []
    seen: dict[str, int] = {}
    for number, raw in read_jsonl("IN", path):
        try:
            row = make_row(number, raw, titles)
        except RecipeError as error:
            raise RecipeError(f"{path}, line {number}: {error}") from error
        if row.name in seen:
            raise RecipeError(f"{path}, line {number}: the id {row.name!r} occurs already in line {seen[row.name]}")
        seen[row.name] = number
        rows.append(row)
    if not rows:
        raise RecipeError(f"IN: {str(path)!r} holds no row; at least one is needed")
    return rows


def read_titles(path: Path) -> dict[str, str]:
    """Document id -> title, of a JSONL corpus with the fields docid and title.

    Raises:
        RecipeError: the file is missing, or a line has no such fields.
    """
    titles = {}
    for number, raw in read_jsonl("corpus", path):
        if not isinstance(raw, dict) or not isinstance(raw.get("title"), str) or "docid" not in raw:
            raise RecipeError(f"{path}, line {number}: a document has the fields docid and title")
        titles[str(raw["docid"])] = raw["title"]
    return titles


def read_jsonl(field: str, path: Path) -> list[tuple[int, Any]]:
    """(line, value) of every line that is not blank.

    Raises:
        RecipeError: no such file, or a line is not JSON; names `field` or the line.
    """
    if not path.is_file():
        raise RecipeError(f"{field}: {str(path)!r} is not a file; expected a JSONL file")
    values = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            values.append((number, json.loads(line)))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RecipeError(f"{path}, line {number}: not valid JSON ({error})") from error
    return values


def fingerprint(raw: Mapping[str, Any]) -> str:
    """A short hash of an input row."""
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:16]


def failures_path(output: Path) -> Path:
    return output.with_name(output.name + ".failed.jsonl")


def as_line(record: Mapping[str, Any]) -> bytes:
    """One line of JSON; letters of other scripts as they are, unless they are broken surrogates."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode() + b"\n"


class VagueFile:
    """The output of a run and the list of its failures, as they grow.

    Args:
        path: the output; a file there is gone on with.
        rows: of the input.
        settings: values of `SETTINGS`.

    Raises:
        RecipeError: there is a file that was not made from these rows with these settings.
    """

    def __init__(self, path: Path, rows: Sequence[VagueRow], settings: Mapping[str, Any]) -> None:
        self.path, self.failures = path, failures_path(path)
        self.rows = {row.line: row for row in rows}
        self.settings = {name: settings[name] for name in SETTINGS}
        self._prints = {row.line: fingerprint(row.raw) for row in rows}
        self.kept: dict[int, Record] = {}
        self.failed: dict[int, Record] = {}
        for file, records in ((self.path, self.kept), (self.failures, self.failed)):
            if file.exists():
                self._load(file, records)
        # A failed row may stand in the output too, see `finish`; it is written there anew.
        self.kept = {line: record for line, record in self.kept.items() if _status(record) != "failed"}
        self.failed = {line: record for line, record in self.failed.items() if line not in self.kept}

    @property
    def open_rows(self) -> list[VagueRow]:
        """Rows without a result, in the order of the input."""
        return [row for line, row in self.rows.items() if line not in self.kept and line not in self.failed]

    def forget_failures(self) -> None:
        """Make the failed rows open ones again."""
        self.failed.clear()
        self.failures.unlink(missing_ok=True)

    def append(self, row: VagueRow, outcome: Outcome) -> None:
        """Keep a row's result; it is on disk when this returns."""
        record = self._record(row, outcome)
        failed = outcome.status == "failed"
        (self.failed if failed else self.kept)[row.line] = record
        with (self.failures if failed else self.path).open("ab") as file:
            file.write(as_line(record))
            _sync(file)

    def finish(self, keep_failed: bool) -> None:
        """Put both files into the order of the input; all at once, so that a kill leaves the old or the new file.

        Args:
            keep_failed: have failed rows in the output too, without a vague text.
        """
        output = {**self.kept, **self.failed} if keep_failed else self.kept
        _replace(self.path, [output[line] for line in sorted(output)])
        if self.failed:
            _replace(self.failures, [self.failed[line] for line in sorted(self.failed)])
        else:
            self.failures.unlink(missing_ok=True)

    def _record(self, row: VagueRow, outcome: Outcome) -> Record:
        field = ROW_KINDS[row.kind].vague
        about: Record = {
            "id": row.name,
            "line": row.line,
            "source": self._prints[row.line],
            **self.settings,
            **outcome.record(row.original, self.settings["level"]),
        }
        if row.raw.get(field) is not None:
            about["replaced"] = row.raw[field]
        return {**row.raw, field: outcome.text, "vaguenizer": about}

    def _load(self, file: Path, records: dict[int, Record]) -> None:
        """Read the results of an earlier run, and cut off a last line that was only half written."""
        content = file.read_bytes()
        whole, newline, rest = content.rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if newline else [], start=1):
            if line.strip():
                record = self._checked(line, f"{file}, line {number}")
                records[record["vaguenizer"]["line"]] = record
        if rest:
            if not records and not any(as_line(row.raw)[:20].startswith(rest[:20]) for row in self.rows.values()):
                raise RecipeError(_not_ours(f"{file}, line 1", "not a result of this command"))
            with file.open("r+b") as opened:
                opened.truncate(len(content) - len(rest))
                _sync(opened)

    def _checked(self, line: bytes, where: str) -> Record:
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(_not_ours(where, "not valid JSON")) from error
        about = record.get("vaguenizer") if isinstance(record, dict) else None
        if not isinstance(about, dict) or not {"line", "source", "status", *SETTINGS} <= about.keys():
            raise RecipeError(_not_ours(where, "not a result of this command"))
        for name, value in self.settings.items():
            if about[name] != value:
                raise RecipeError(_not_ours(where, f"made with {name} {about[name]!r}, and now it is {value!r}"))
        if self._prints.get(about["line"]) != about["source"]:
            raise RecipeError(_not_ours(where, f"its input row (line {about['line']}) is not in the input any more"))
        return dict(record)


def _status(record: Record) -> str:
    return str(record["vaguenizer"]["status"])


def _not_ours(where: str, why: str) -> str:
    return f"OUT: {where}: {why}; name another file, or begin anew with --overwrite"


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _replace(path: Path, records: Sequence[Record]) -> None:
    """Write a file beside `path` and put it in its place."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.writelines(as_line(record) for record in records)
        _sync(file)
    partial.replace(path)
