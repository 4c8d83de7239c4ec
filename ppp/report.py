"""`ppp report`: tables, figures and one HTML page of runs.

Options only: what is in a report is put together in `reporting/build_report.py`; the page is served while a run goes on
by `reporting/watch.py`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ppp.checks import check_at_least, refuse
from ppp.reporting.build_report import ALL_FORMATS, PAGE, Built, build_report, write_files
from ppp.reporting.content import Report
from ppp.reporting.figures import PICTURES, write_overview
from ppp.reporting.formats import plain, to_markdown
from ppp.reporting.runs import NoRunError, split_argument
from ppp.reporting.watch import serve
from ppp.types import RecipeError

MAX_PORT = 65_535
CURVES_FILE = "curves.png"
TABLE_FILE = "table.md"
DEFAULT_FORMATS = (PAGE, "md", "tex", "csv", "svg")

LONG_TABLES = ("preferences", "behaviour", "table_2_", "training_")  # in their files, not on the screen

DESCRIPTION = (
    "Tables and figures of runs, and one HTML page with every conversation. A RUN is the folder of an evaluation, of a "
    "training run, of a quickstart, or one that holds several of them at any depth. Without --output the tables and "
    f"the training curves are written into the first RUN, as {TABLE_FILE} and {CURVES_FILE}."
)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked.

    Raises:
        RecipeError: a value that is not allowed.
    """
    parser = argparse.ArgumentParser(prog="ppp report", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "runs", nargs="+", metavar="[NAME=]RUN", help="folder, with the name that it gets in the report"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="X.html",
        help="the page to write; tables go into X_tables and figures into X_figures beside it",
    )
    parser.add_argument(
        "--formats",
        default=",".join(DEFAULT_FORMATS),
        help=f"what to write, of {', '.join(ALL_FORMATS)}, separated by commas (default: %(default)s)",
    )
    parser.add_argument("--max_sessions", type=int, default=20_000, help="that the page holds (default: %(default)s)")
    parser.add_argument(
        "--imports",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="modules with preferences of your own",
    )
    parser.add_argument(
        "--watch", action="store_true", help="serve the page on 127.0.0.1 while a run goes on, until Ctrl-C"
    )
    parser.add_argument("--port", type=int, default=0, help="of --watch (default: a free one)")
    own = parser.parse_args(argv)
    check_at_least("max_sessions", own.max_sessions, 0)
    if not 0 <= own.port <= MAX_PORT:
        raise refuse("port", own.port, f"must be a port, up to {MAX_PORT}; 0 takes a free one")
    if own.imports:
        from ppp.extensions import import_extensions  # imports environments and users, which a report does not need

        import_extensions(own.imports)
    own.formats = list(dict.fromkeys(own.formats.split(",")))
    for form in own.formats:
        if form not in ALL_FORMATS:
            raise refuse("formats", form, f"allowed are {', '.join(ALL_FORMATS)}, separated by commas")
    if own.output is not None and (own.output.is_dir() or not own.output.parent.is_dir()):
        raise refuse("output", str(own.output), "must be a file in a folder that exists")
    return own


def first_folder(arguments: Sequence[str]) -> Path:
    return split_argument(arguments[0])[1]


def write_beside(built: Built, folder: Path) -> list[Path]:
    """The tables as one Markdown file in a run's own folder, and the curves of its training if it has one."""
    table = folder / TABLE_FILE
    table.write_text("\n".join(map(to_markdown, built.tables)), encoding="utf-8")
    trained = [run for run in built.runs.trainings if run.metrics]
    if not trained:
        return [table]
    curves = folder / CURVES_FILE
    write_overview(trained[0], curves)
    return [table, curves]


def report_so_far(runs: Sequence[str], max_sessions: int) -> Report:
    """The report of runs that go on; of one that has not finished a step yet, that it is waited for."""
    try:
        return build_report(runs, max_sessions).report
    except NoRunError:
        waiting = f"{', '.join(map(plain, runs))}: no step and no session is finished yet; this page follows the run."
        return Report("Waiting for the run", [], [], [], [], num_sessions=0, problems=[waiting])


def report(own: argparse.Namespace) -> None:
    """Write what was asked for, and show the tables.

    Raises:
        RecipeError: there is nothing to report on, or runs that do not go together.
    """
    if own.watch:
        folders = [split_argument(run)[1] for run in own.runs]
        serve(lambda: report_so_far(own.runs, own.max_sessions), folders, own.port)
        if own.output is None:
            return
    forms = [form for form in own.formats if form in PICTURES] if own.output is not None else []
    built = build_report(own.runs, own.max_sessions if own.output is not None else 0, forms)
    output = own.output or first_folder(own.runs)
    try:
        written = write_beside(built, output) if own.output is None else write_files(built, output, own.formats)
    except OSError as error:
        raise refuse("output", str(output), f"cannot be written there ({error.strerror})") from error
    sys.stdout.write("\n".join(to_markdown(table) for table in built.tables if not table.name.startswith(LONG_TABLES)))
    for problem in built.report.problems:
        sys.stderr.write(f"ppp report: {problem}\n")
    for name, reason in built.left_out.items():
        sys.stdout.write(f"\nfigure {name} is left out: {reason}")
    sys.stdout.write("\n\n" + "".join(f"written: {path}\n" for path in written))


def main(argv: Sequence[str] | None = None) -> int:
    """`ppp report RUN... [--output X.html]`. Returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        report(parse_arguments(argv))
    except RecipeError as error:
        sys.stderr.write(f"ppp report: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
