"""Issues from wherever they are published: a data set on the Hub, parquet, JSONL, the parquet of the paper's release.

A row that cannot be used is named and the others go on. The released form holds every issue once per preference, as
`ability` = "FuncLocEnv@" and the issue as JSON, with its vague text inside the prompt; here it is one issue again, and
its preferences are dropped: sessions are made of tasks when a recipe is read. What becomes of issues: `prepare.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetNotFoundError

from ppp.swe.rows import check_issue
from ppp.types import RecipeError

# Short name -> (data set on the Hub, split).
HUB_SOURCES: Mapping[str, tuple[str, str]] = {
    "swe-gym": ("SWE-Gym/SWE-Gym", "train"),
    "swe-bench": ("princeton-nlp/SWE-bench", "test"),
    "swe-bench-lite": ("princeton-nlp/SWE-bench_Lite", "test"),
    "swe-bench-verified": ("princeton-nlp/SWE-bench_Verified", "test"),
}
FILE_SUFFIXES = (".jsonl", ".json", ".parquet")
RELEASED_PREFIX = "FuncLocEnv@"
RELEASED_BEGIN, RELEASED_END = "--- BEGIN ISSUE ---", "--- END ISSUE ---"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an instance is left out: `kind` is a key of `prepare.PROBLEM_KINDS`."""

    name: str
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Issue:
    """One issue: a row that passed `check_issue`, and its vague form, if one came with it."""

    name: str
    fields: Mapping[str, Any]
    vague: str | None


@dataclass
class Collected:
    """The issues of a source, each once.

    Attributes:
        num_rows: rows that were read.
        num_repeated: rows that say again what another one said; the released form has twelve of them per issue.
        num_other: rows of other environments in the released form.
    """

    issues: list[Issue] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    num_rows: int = 0
    num_repeated: int = 0
    num_other: int = 0


def describe_source(source: str, split: str | None) -> dict[str, Any]:
    """Where rows come from, as JSON values: a file, or a data set on the Hub and its split.

    Raises:
        RecipeError: there is no such file, or a split was named for a file, which has none.
    """
    path = Path(source)
    if path.suffix in FILE_SUFFIXES or path.exists():
        if not path.is_file() or path.suffix not in FILE_SUFFIXES:
            known = ", ".join(HUB_SOURCES)
            allowed = f"allowed: a file ending in {', '.join(FILE_SUFFIXES)}, a data set on the Hub, or one of {known}"
            raise RecipeError(f"SOURCE: {source!r} is not a file of issues; {allowed}")
        if split is not None:
            raise RecipeError(f"split: {split!r} is not allowed; a file has no splits")
        return {"file": source}
    name, default = HUB_SOURCES.get(source, (source, "train"))
    return {"data_set": name, "split": split or default}


def read_source(source: str, split: str | None = None) -> Iterator[tuple[str, Any, str]]:
    """Yield (where it stands, row, what is wrong with it); the last is "" unless the row could not be read.

    Raises:
        RecipeError: there is no such source, or it cannot be read at all.
    """
    described = describe_source(source, split)
    if "file" not in described:
        name, chosen = described["data_set"], described["split"]
        try:
            rows = load_dataset(name, split=chosen)
        except (DatasetNotFoundError, FileNotFoundError, ConnectionError, ValueError) as error:
            raise RecipeError(
                f"SOURCE: {name!r} (split {chosen!r}) is neither a file nor a data set: {error}"
            ) from error
        yield from ((f"row {number}", row, "") for number, row in enumerate(rows, start=1))
    elif source.endswith(".parquet"):
        try:
            rows = Dataset.from_parquet(source, keep_in_memory=True)
        except (OSError, ValueError) as error:
            raise RecipeError(f"SOURCE: {source!r} is not a parquet file ({error})") from error
        yield from ((f"row {number}", row, "") for number, row in enumerate(rows, start=1))
    else:
        yield from _read_jsonl(Path(source))


def _read_jsonl(path: Path) -> Iterator[tuple[str, Any, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield f"line {number}", json.loads(line), ""
            except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
                yield f"line {number}", None, f"not valid JSON ({error})"


def collect_issues(rows: Iterator[tuple[str, Any, str]]) -> Collected:
    """The issues in rows of either form."""
    found = Collected()
    by_name: dict[str, int] = {}
    for where, raw, problem in rows:
        found.num_rows += 1
        name = where
        try:
            if problem:
                raise RecipeError(problem)
            if _is_released(raw) and not str(raw["ability"]).startswith(RELEASED_PREFIX):
                found.num_other += 1
                continue
            fields, vague = _released(raw) if _is_released(raw) else (raw, None)
            name = _name(fields, where)
            issue = Issue(name, check_issue(fields), vague)
            issue = Issue(name, issue.fields, vague or issue.fields.get("vague_statement") or None)
            if name in by_name:
                _merge(found, by_name[name], issue)
                continue
        except RecipeError as error:
            found.problems.append(Problem(name, "row", str(error) if name == where else f"{where}: {error}"))
            continue
        by_name[name] = len(found.issues)
        found.issues.append(issue)
    return found


def _merge(found: Collected, position: int, again: Issue) -> None:
    """A row of an issue that there was already: in the released form, only some rows have the vague text."""
    first = found.issues[position]
    if first.fields != again.fields:
        raise RecipeError("this instance_id occurs already, with other contents")
    found.num_repeated += 1
    if first.vague is None:
        found.issues[position] = Issue(first.name, first.fields, again.vague)


def _name(fields: Any, where: str) -> str:
    name = fields.get("instance_id") if isinstance(fields, Mapping) else None
    return name if isinstance(name, str) and name.strip() else where


def _is_released(raw: Any) -> bool:
    return isinstance(raw, Mapping) and "ability" in raw and "extra_info" in raw


def _released(raw: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The issue in a row of the released form, and the vague text if it is a vague row.

    Raises:
        RecipeError: a part of it is not as it should be.
    """
    fields = _as_json(str(raw["ability"]).removeprefix(RELEASED_PREFIX), "ability")
    extra = raw["extra_info"]
    extra = _as_json(extra, "extra_info") if isinstance(extra, str) else extra
    if not isinstance(extra, Mapping) or not isinstance(extra.get("is_vague"), bool):
        raise RecipeError("extra_info.is_vague is missing; allowed: true or false")
    if not extra["is_vague"]:
        return fields, None
    return fields, issue_in_prompt(raw.get("prompt"))


def _as_json(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise RecipeError(f"{name}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise RecipeError(f"{name}: expected a JSON object, not {type(value).__name__}")
    return value


def issue_in_prompt(messages: Any) -> str:
    """The issue between the markers of the released prompt: the first one that begins, the last one that ends it.

    Raises:
        RecipeError: there is no user message with both markers and a text between them.
    """
    for message in messages if isinstance(messages, Sequence) else ():
        content = message.get("content") if isinstance(message, Mapping) and message.get("role") == "user" else None
        if not isinstance(content, str):
            continue
        _, begin, rest = content.partition(RELEASED_BEGIN)
        text, end, _ = rest.rpartition(RELEASED_END)
        if begin and end and text.strip():
            return text.strip()
    raise RecipeError(f"prompt: no issue between {RELEASED_BEGIN!r} and {RELEASED_END!r} in a message of the user")
