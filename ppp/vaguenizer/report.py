"""What a run of the vaguenizer removed: by level and kind of detail, with examples, and what failed and why.

Works on the results that `rows.py` keeps, those of earlier starts included; only calls and costs are of the last
start. Texts of issues and models are shown as code, so that nothing in them takes effect in a page.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ppp.vaguenizer.checks import CHECKS, JUDGED
from ppp.vaguenizer.rewriting import ROW_KINDS
from ppp.vaguenizer.rows import VagueFile

NUM_EXAMPLES = 5  # of details per kind
NUM_TEXTS = 3  # of rows before and after
MAX_TEXT_CHARS = 300

Record = Mapping[str, Any]


def build_report(
    file: VagueFile, unreached: Mapping[str, str] | None = None, ledger: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The report as JSON values.

    Args:
        file: the results.
        unreached: id of a row -> why no model could be asked about it.
        ledger: `ChatLedger.summary()` of the last start.
    """
    records = [*file.kept.values(), *file.failed.values()]
    levels: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        levels[record["vaguenizer"]["level"]].append(record)
    return {
        "rows": len(file.rows),
        "open": len(file.open_rows),
        **{status: num for status, num in count_status(records).items()},
        "model": file.settings["model"],
        "judge_model": file.settings["judge_model"],
        "levels": {level: _of_level(theirs) for level, theirs in levels.items()},
        "failed_rows": {_name(record): _last_problems(record) for record in _with_status(records, "failed")},
        "nothing_to_remove_rows": {
            _name(record): record["vaguenizer"]["reason"] for record in _with_status(records, "nothing to remove")
        },
        "unreached_rows": dict(unreached or {}),
        "ledger": dict(ledger or {}),
    }


def count_status(records: Iterable[Record]) -> dict[str, int]:
    """Status -> number of rows, every status named."""
    counts = Counter(record["vaguenizer"]["status"] for record in records)
    return {status.replace(" ", "_"): counts[status] for status in ("done", "failed", "nothing to remove")}


def _of_level(records: Sequence[Record]) -> dict[str, Any]:
    done = _with_status(records, "done")
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    examples: defaultdict[str, list[str]] = defaultdict(list)
    for record in done:
        about = record["vaguenizer"]
        before.update(about["specifics"]["before"])
        after.update(about["specifics"]["after"])
        for kind, details in about["removed"].items():
            examples[kind] += [detail for detail in details[:2] if detail not in examples[kind]]
    refusals = Counter(
        check
        for record in records
        for refused in record["vaguenizer"].get("refused", ())
        for check in refused["problems"]
    )
    shares = [about["num_chars"]["after"] / about["num_chars"]["before"] for about in _abouts(done)]
    return {
        "done": len(done),
        "attempts": {str(num): rows for num, rows in sorted(Counter(_attempts(done)).items())},
        "median_share_of_characters": round(median(shares), 4) if shares else None,
        "kinds": {
            kind: {"before": before[kind], "after": after[kind], "examples": _spread(examples[kind])}
            for kind in sorted({*before, *after}, key=lambda kind: -before[kind])
        },
        "refused_attempts": {check: refusals[check] for check in (*CHECKS, JUDGED)},
        "texts": [_before_and_after(record) for record in _spread(done, NUM_TEXTS)],
    }


def _with_status(records: Iterable[Record], status: str) -> list[Record]:
    return [record for record in records if record["vaguenizer"]["status"] == status]


def _abouts(records: Iterable[Record]) -> list[Mapping[str, Any]]:
    return [record["vaguenizer"] for record in records]


def _attempts(records: Iterable[Record]) -> list[int]:
    return [about["num_attempts"] for about in _abouts(records)]


def _spread(values: Sequence[Any], num: int = NUM_EXAMPLES) -> list[Any]:
    """`num` of the values, from all over the list."""
    return [values[index * len(values) // num] for index in range(num)] if len(values) > num else list(values)


def _name(record: Record) -> str:
    return str(record["vaguenizer"]["id"])


def _last_problems(record: Record) -> dict[str, str]:
    refused = record["vaguenizer"]["refused"]
    problems: dict[str, str] = refused[-1]["problems"]
    return problems


def _before_and_after(record: Record) -> dict[str, str]:
    kind = next(kind for kind in ROW_KINDS.values() if any(field in record for field in kind.precise))
    precise = next(record[field] for field in kind.precise if field in record)
    return {"id": _name(record), "precise": precise[:MAX_TEXT_CHARS], "vague": record[kind.vague][:MAX_TEXT_CHARS]}


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write the report as JSON if the file's name ends so, and as Markdown otherwise."""
    text = json.dumps(report, indent=2) + "\n" if path.suffix == ".json" else to_markdown(report)
    path.write_bytes(text.encode("utf-8", "replace"))


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    lines = [
        "# Vague prompts",
        "",
        f"{report['rows']} rows: {report['done']} made vague, {report['failed']} failed every attempt, "
        f"{report['nothing_to_remove']} with nothing to remove, {report['open']} open. "
        f"Model {_code(report['model'])}, judge {_code(report['judge_model'])}.",
    ]
    for level, values in report["levels"].items():
        lines += ["", f"## Level {level}", "", *_level_lines(values)]
    sections = {
        "Failed rows": {name: " ".join(problems.values()) for name, problems in report["failed_rows"].items()},
        "Rows with nothing to remove": report["nothing_to_remove_rows"],
        "Rows that no model could be asked about": report["unreached_rows"],
    }
    for title, entries in sections.items():
        if entries:
            lines += ["", f"## {title}", ""]
            lines += [f"- {_code(name)}: {_code(why)}" for name, why in entries.items()]
    models = report["ledger"].get("models", {})
    if models:
        lines += ["", "## Calls of the last start", "", "| model | calls | requests | tokens in | out | USD |"]
        lines.append("|---|---|---|---|---|---|")
        for name, account in models.items():
            cells = [account[key] for key in ("calls", "requests", "prompt_tokens", "completion_tokens")]
            cost = "?" if account["cost"] is None else f"{account['cost']:.4f}"
            lines.append(f"| {_code(name)} | {' | '.join(map(str, cells))} | {cost} |")
    return "\n".join(lines) + "\n"


def _level_lines(values: Mapping[str, Any]) -> list[str]:
    share = values["median_share_of_characters"]
    attempts = ", ".join(f"{rows} after {num}" for num, rows in values["attempts"].items()) or "none"
    lines = [f"Rows by number of attempts: {attempts}."]
    if share is not None:
        lines[0] += f" Half of the vague texts have less than {share:.1%} of the characters."
    lines += ["", "| kind of detail | before | after | removed | for example |", "|---|---|---|---|---|"]
    for kind, counts in values["kinds"].items():
        before, after = counts["before"], counts["after"]
        removed = f"{1 - after / before:.0%}" if before else "-"
        shown = ", ".join(_code(detail, 40) for detail in counts["examples"])
        lines.append(f"| {kind} | {before} | {after} | {removed} | {shown} |")
    lines += ["", "| check | attempts refused |", "|---|---|"]
    lines += [f"| {check} | {num} |" for check, num in values["refused_attempts"].items()]
    for text in values["texts"]:
        lines += ["", f"{_code(text['id'])}", "", f"- precise: {_code(text['precise'])}"]
        lines.append(f"- vague: {_code(text['vague'])}")
    return lines


def _code(text: object, most: int = MAX_TEXT_CHARS) -> str:
    """Untrusted text on one line, between backticks that it cannot close."""
    flat = re.sub(r"\s+", " ", str(text)).replace("`", "'").replace("|", "/").strip()
    return f"`{flat[:most]}{'...' if len(flat) > most else ''}`" if flat else "(empty)"
