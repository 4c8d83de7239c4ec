"""A report from folders of runs: tables, figures, headlines and sessions put together, and its files.

The parts come from `tables.py`, `figures.py` and `sessions.py`; the page is `page.py`'s, the command `ppp/report.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ppp.evaluation.intervals import few_tasks_warning
from ppp.reporting.content import Headline, Report, Table
from ppp.reporting.figures import PICTURES, Drawn, make_figures
from ppp.reporting.formats import FORMATS
from ppp.reporting.page import write_page
from ppp.reporting.run_types import SCORES, Evaluation, Runs
from ppp.reporting.runs import find_runs
from ppp.reporting.sessions import choose_sessions
from ppp.reporting.tables import make_tables

PAGE = "html"
ALL_FORMATS = (PAGE, *FORMATS, *PICTURES)


@dataclass(frozen=True)
class Built:
    """A report and what goes into other files than its page; `left_out` says of figures what they lack."""

    report: Report
    runs: Runs
    tables: Sequence[Table]
    drawn: Sequence[Drawn]
    left_out: Mapping[str, str]


def build_report(arguments: Sequence[str], max_sessions: int, forms: Sequence[str] = ()) -> Built:
    """Everything about the runs in folders, each given as `PATH` or `NAME=PATH`.

    Args:
        max_sessions: that the page holds.
        forms: of figures as files: svg, png, pdf.

    Raises:
        RecipeError: see `find_runs`.
    """
    runs = find_runs(arguments)
    drawn, left_out = make_figures(runs, forms)
    tables = make_tables(runs)
    chosen = choose_sessions(runs, max_sessions)
    report = Report(
        title=make_title(runs),
        headlines=make_headlines(runs),
        tables=[*tables, *left_out_table(left_out)],
        figures=[figure.figure for figure in drawn],
        sessions=chosen.sessions,
        num_sessions=chosen.num_sessions,
        problems=[*runs.problems, *chosen.problems, *few_tasks(runs)],
    )
    return Built(report, runs, tables, drawn, left_out)


def left_out_table(left_out: Mapping[str, str]) -> list[Table]:
    """Why figures are missing, as the page shows it."""
    rows = [[name, reason] for name, reason in left_out.items()]
    return [Table("left_out", "Figures without data", ["figure", "what is missing"], rows, num_left=2)] if rows else []


def make_title(runs: Runs) -> str:
    """What the report is about: the evaluation at its top, otherwise its trainings."""
    if runs.main is None:
        return f"Training: {', '.join(run.name for run in runs.trainings)}"
    before = runs.before(runs.main)
    return runs.main.name if before is None else f"{runs.main.name}, compared with {before.name}"


def make_headlines(runs: Runs) -> list[Headline]:
    """The three scores of the main evaluation; on precise prompts where it has no vague ones."""
    if runs.main is None:
        return []
    before = runs.before(runs.main)
    group = "vague" if "vague" in runs.main.groups else "precise"
    found = runs.main.groups.get(group)
    if found is None:
        return []
    old = None if before is None else before.groups.get(group)
    headlines = []
    for score in SCORES:
        low, high = found["intervals"].get(score) or (None, None)
        label = f"{score.capitalize()}, {group} prompts"
        headlines.append(Headline(label, found[score], low, high, None if old is None else old[score]))
    return headlines


def few_tasks(runs: Runs) -> list[str]:
    """A sentence for each evaluation whose intervals are too narrow."""
    return [f"{run.name}: {warning}." for run in runs.evaluations if (warning := task_warning(run)) is not None]


def task_warning(run: Evaluation) -> str | None:
    numbers = [run.groups[group]["num_tasks"] for group in ("vague", "precise") if group in run.groups]
    return few_tasks_warning(min(numbers)) if numbers else None


def write_files(built: Built, output: Path, formats: Sequence[str]) -> list[Path]:
    """Write page, tables and figures beside it; returns what was written: the page, and folders."""
    written = []
    if PAGE in formats:
        write_page(built.report, output)
        written.append(output)
    folder = output.with_name(f"{output.stem}_tables")
    for form in formats:
        if form in FORMATS:
            folder.mkdir(exist_ok=True)
            write_tables(built.tables, folder, form)
    pictures = output.with_name(f"{output.stem}_figures")
    for figure in built.drawn:
        for form, content in figure.files.items():
            pictures.mkdir(exist_ok=True)
            (pictures / f"{figure.figure.name}.{form}").write_bytes(content)
    return [*written, *(path for path in (folder, pictures) if path.is_dir())]


def write_tables(tables: Sequence[Table], folder: Path, form: str) -> None:
    for table in tables:
        (folder / f"{table.name}.{form}").write_text(FORMATS[form](table), encoding="utf-8")
