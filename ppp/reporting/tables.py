"""The tables of a report: which there are, and those about runs as a whole. The paper's are in `tables_scores.py`.

A table is made from runs and is None where they hold nothing for it. How it is written is in `formats.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ppp.evaluation.records import base_task, failed
from ppp.reporting.content import Table
from ppp.reporting.formats import MISSING, estimate, number, plain
from ppp.reporting.run_types import Evaluation, Runs, Training, series
from ppp.reporting.tables_scores import before_after, preference_tables, settings, table_2, table_3
from ppp.types import Effort

NUM_PARTS = 10  # of a training, in its table

# Column -> (key in metrics.jsonl, digits)
TRAINING_COLUMNS = {
    "productivity": ("productivity", 1),
    "proactivity": ("proactivity", 1),
    "personalization": ("personalization", 1),
    "asks, vague prompts": ("ask_ratio/vague", 1),
    "asks, precise prompts": ("ask_ratio/precise", 1),
    **{f"{effort.label} effort": (f"effort/{effort.label}", 2) for effort in Effort},
}

# Column -> (key in the scores of a group, digits)
BEHAVIOUR_COLUMNS = {
    "ask ratio": ("ask_ratio", 1),
    "ask ratio, willing users": ("ask_ratio_willing", 1),
    "question position": ("question_position", 2),
    "turns": ("turns", 1),
    "policy tokens": ("policy_tokens", 0),
    "unreadable turns": ("unreadable_turns", 1),
}


def all_runs(runs: Runs) -> list[Table]:
    """What was found, under the names that all other tables use."""
    rows = [evaluation_row(run) for run in runs.evaluations]
    rows += [training_row(run) for run in runs.trainings]
    header = ["run", "kind", "folder", "user", "sessions", "failed", "tasks", "steps"]
    return [Table("runs", "Runs", header, rows, num_left=4)] if rows else []


def evaluation_row(run: Evaluation) -> list[str]:
    tasks = {(record["environment"], base_task(record)) for record in run.records}
    counts = [len(run.records), sum(map(failed, run.records)), len(tasks)]
    return [run.name, "evaluation", plain(str(run.folder)), run.user_name, *map(str, counts), MISSING]


def training_row(run: Training) -> list[str]:
    steps = str(run.metrics[-1]["step"]) if run.metrics else MISSING
    return [run.name, "training", plain(str(run.folder)), *[MISSING] * 4, steps]


def behaviour(runs: Runs) -> list[Table]:
    """When and how much agents ask, how long sessions are: a row per run and kind of prompt."""
    rows = []
    for run in runs.compared:
        for group, label in (("vague", "vague"), ("precise", "precise")):
            if group in run.groups:
                rows.append([run.name, label, *behaviour_cells(run.groups[group])])
    efforts = [f"questions, {effort.label} effort" for effort in Effort]
    note = "Question position: 0 is the first turn of a session, 1 its end. Questions are means per session."
    header = ["run", "prompts", *BEHAVIOUR_COLUMNS, *efforts, "sessions", "failed"]
    return [Table("behaviour", "Questions, turns and tokens", header, rows, 2, note)] if rows else []


def behaviour_cells(scores: dict[str, Any]) -> list[str]:
    intervals = scores["intervals"]
    cells = [estimate(scores[key], intervals.get(key), digits) for key, digits in BEHAVIOUR_COLUMNS.values()]
    cells += [estimate(scores["effort"][effort.label], intervals.get(f"effort/{effort.label}"), 2) for effort in Effort]
    return [*cells, str(scores["num_sessions"]), str(scores["num_failed"])]


def trainings(runs: Runs) -> list[Table]:
    """Learning curves in numbers: the mean of each metric over successive parts of each training."""
    tables = []
    for index, run in enumerate(runs.trainings):
        rows = training_rows(run)
        if rows:
            name = "training" if len(runs.trainings) == 1 else f"training_{index + 1}"
            title = f"Training of {run.name}: means over parts of it, vague prompts unless said otherwise"
            tables.append(Table(name, title, ["steps", *TRAINING_COLUMNS], rows))
    return tables


def training_rows(run: Training) -> list[list[str]]:
    keys = [key for key, _ in TRAINING_COLUMNS.values()]
    measured = [record for record in run.metrics if any(key in record for key in keys)]
    num_parts = min(NUM_PARTS, len(measured))
    rows = []
    for part in range(num_parts):
        span = measured[part * len(measured) // num_parts : (part + 1) * len(measured) // num_parts]
        row = [f"{span[0]['step']}-{span[-1]['step']}"]
        for key, digits in TRAINING_COLUMNS.values():
            values = series(span, key)[1]
            row.append(number(sum(values) / len(values) if values else None, digits))
        rows.append(row)
    return rows


# In the order in which they stand in a report.
TABLES: Sequence[Callable[[Runs], list[Table]]] = (
    table_2,
    before_after,
    table_3,
    settings,
    behaviour,
    preference_tables,
    trainings,
    all_runs,
)


def make_tables(runs: Runs) -> list[Table]:
    """All tables that the runs have numbers for."""
    return [table for make in TABLES for table in make(runs)]
