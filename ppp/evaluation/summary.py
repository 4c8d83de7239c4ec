"""`summary.json`, made of the sessions of an evaluation, and the tables that are shown at its end.

The metrics are `metrics.py`'s, differences between two agents `compare.py`'s. Tables of several evaluations are made by
`ppp report`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ppp.bookkeeping import AGENT, LEDGER_FILE
from ppp.checks import refuse
from ppp.evaluation.compare import by_key, excludes_zero, paired_differences
from ppp.evaluation.folder import BASELINE_DIR, RESULTS_FILE, SUMMARY_FILE, read_manifest
from ppp.evaluation.intervals import few_tasks_warning
from ppp.evaluation.metrics import summarize_groups
from ppp.evaluation.records import GROUPS, Record, base_task, failed, read_records
from ppp.reporting.formats import estimate
from ppp.rewards import METRIC_VERSION
from ppp.run_folder import write_whole
from ppp.types import DiskError

logger = logging.getLogger(__name__)

SCORES = ("productivity", "proactivity", "personalization", "ask_ratio")
CARRIED_OVER = ("wall_s",)  # from the summary that was there, when nothing was played
EFFORT_COLUMNS = ("low", "medium", "high")


def summarize_evaluation(
    records: Sequence[Record], manifest: Mapping[str, Any] | None, folder: Path, wall_s: float | None = None
) -> dict[str, Any]:
    """What `summary.json` says of one agent.

    Args:
        records: of its sessions; their order does not matter.
        manifest: of the evaluation; None where nobody wrote one.
        folder: of the evaluation, for what it cost, and for the seconds of the part before where nothing was played.
        wall_s: seconds of the part that has just been played.
    """
    ordered = sorted(records, key=lambda record: (record["row"], record["copy"], record["task_id"]))
    summary: dict[str, Any] = summarize_groups(ordered, personalization=variant_of(manifest))
    before = read_summary(folder) or {}
    if wall_s is not None:
        summary["wall_s"] = round(wall_s, 2)
    else:
        summary |= {name: before[name] for name in CARRIED_OVER if name in before}
    return {
        **summary,
        "metric_version": METRIC_VERSION,
        "evaluation": manifest,
        "num_failed": sum(failed(record) for record in records),
        "cost": read_cost(folder),
    }


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary in a folder; None where there is none that can be read."""
    try:
        found = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def read_cost(folder: Path) -> dict[str, float | None]:
    """USD of agent and users so far, by the ledger in a folder; None where a price is unknown, and nothing of those
    who were not asked over a network."""
    try:
        ledger = json.loads((folder / LEDGER_FILE).read_text(encoding="utf-8"))
        users = [account["cost"] for account in ledger["users"].values()]
        agent = {AGENT: ledger[AGENT]["cost"]} if AGENT in ledger else {}
    except (OSError, ValueError, LookupError):
        return {}
    return agent | ({"users": None if None in users else sum(users)} if users else {})


def write_summary(summary: Mapping[str, Any], folder: Path) -> None:
    """Write `summary.json`.

    Raises:
        DiskError: it cannot be written.
    """
    path = folder / SUMMARY_FILE
    try:
        write_whole(path, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DiskError(f"{path} cannot be written ({error.strerror}); make room.") from error


def with_differences(
    summary: Mapping[str, Any], baseline: Sequence[Record], records: Sequence[Record]
) -> dict[str, Any]:
    """The summary of an agent, with what changes from its baseline to it, paired by session."""
    return {
        **summary,
        "differences": paired_differences(baseline, records, personalization=variant_of(summary["evaluation"])),
    }


def variant_of(manifest: Mapping[str, Any] | None) -> str:
    """Which personalization is meant; the paper's where nobody says it."""
    return "paper" if manifest is None else str(manifest["rewards"]["personalization"])


def summarize_results(path: Path, output_dir: Path | None = None) -> tuple[dict[str, Any], Path]:
    """Compute and write the summary of sessions that were played before, and of a baseline beside them.

    Args:
        path: a file of results, or a folder with one.
        output_dir: where the summary goes; None stands for the folder of the results.

    Returns:
        The summary, and its folder.

    Raises:
        RecipeError: there are no results, or none that can be used; or the folder cannot be made.
        DiskError: the summary cannot be written.
    """
    results = path / RESULTS_FILE if path.is_dir() else path
    records = tell_damage(results)
    folder = output_dir or results.parent
    manifest = read_manifest(results.parent) if results.name == RESULTS_FILE else None
    warn_of_missing(records, manifest, results)
    summary = summarize_evaluation(records, manifest, results.parent)
    other = results.parent / BASELINE_DIR / RESULTS_FILE
    if results.name == RESULTS_FILE and other.is_file():
        summary = with_differences(summary, tell_damage(other), records)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        allowed = f"a folder that can be written to ({error.strerror}); name another one with --output_dir"
        raise refuse("output_dir", str(folder), allowed) from error
    write_summary(summary, folder)
    return summary, folder


def tell_damage(results: Path) -> list[Record]:
    """The sessions of a file, each of them once; lines that are left out are told.

    Raises:
        RecipeError: the file holds no session, or cannot be used.
    """
    found = read_records(results)
    for damaged in found.damaged:
        logger.warning("%s, %s; it is left out", results, damaged)
    if not found.records:
        raise refuse("results", str(results), "it holds no session")
    # A log of a training holds what is played in training and in its evaluations, with numbers of their own.
    modes = {record["mode"] for record in found.records}
    once = [r for mode in modes for r in by_key(r for r in found.records if r["mode"] == mode).values()]
    if len(once) < len(found.records):
        number = len(found.records) - len(once)
        logger.warning("%s: lines of sessions that stand in it more than once, and count once: %d", results, number)
    return once


def warn_of_missing(records: Sequence[Record], manifest: Mapping[str, Any] | None, results: Path) -> None:
    """Say that an evaluation is not complete, or that it holds other sessions than it should."""
    planned = (manifest or {}).get("sessions")
    total = planned.get("total") if isinstance(planned, Mapping) else None
    if total is not None and total != len(records):
        logger.warning("%s: it holds %d of the %s sessions of its evaluation", results, len(records), total)


def warn_of_few_tasks(records: Sequence[Record]) -> None:
    """Say once where there are so few tasks that intervals are too narrow."""
    warning = few_tasks_warning(len({(record["environment"], base_task(record)) for record in records}))
    if warning is not None:
        logger.warning("%s", warning)


def shown_summary(summary: Mapping[str, Any]) -> str:
    """The groups as a table, with intervals; then differences, failures and costs where there are any."""
    rows = []
    for name in GROUPS:
        if name not in summary:
            continue
        group = summary[name]
        scores = [estimate(group[score], group["intervals"][score]) for score in SCORES]
        questions = "/".join("-" if (value := group["effort"][e]) is None else f"{value:.2f}" for e in EFFORT_COLUMNS)
        rows.append([name.replace("_", ", "), group["num_sessions"], group["num_tasks"], *scores, questions])
    headers = ["prompts", "sessions", "tasks", *(score.replace("_", " ") for score in SCORES), "questions"]
    parts = [_table(rows, headers)]
    if "differences" in summary:
        parts.append(shown_differences(summary["differences"]))
    if summary["num_failed"]:
        parts.append(f"{summary['num_failed']} sessions failed and are left out")
    costs = [f"{who} {'?' if usd is None else f'{usd:.4f}'} USD" for who, usd in summary["cost"].items()]
    if costs:
        parts.append(f"cost: {', '.join(costs)}")
    return "\n\n".join(parts)


def shown_differences(differences: Mapping[str, Any]) -> str:
    """A row per group: what each score gains over the baseline, on the sessions that both have played."""
    rows = []
    for name, group in differences["groups"].items():
        cells = []
        for score in SCORES:
            bounds = group["intervals"][score]
            star = "*" if excludes_zero(bounds) else ""
            cells.append(estimate(group["difference"][score], bounds, sign=True) + star)
        rows.append([name.replace("_", ", "), group["num_pairs"], *cells])
    headers = ["gain over baseline", "pairs", *(score.replace("_", " ") for score in SCORES)]
    return _table(rows, headers) + "\n* more than chance, at 95 %"


def _table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    return tabulate(
        rows, headers, tablefmt="simple", disable_numparse=True, colalign=["left", *["right"] * len(rows[0][1:])]
    )
