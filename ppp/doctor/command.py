"""`ppp doctor [RECIPE] [--fast] [--json FILE] [--option value ...]`: prints what each check finds, and a verdict.

In several processes (`accelerate launch -m ppp.doctor ...`) all of them check together and the main one prints.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ppp.doctor import CHECKS
from ppp.doctor.examination import examine, temporary_folder
from ppp.doctor.patient import Patient
from ppp.doctor.results import Result, Status, failed, verdict
from ppp.doctor.text import Palette, Style, one_line
from ppp.recipe import Recipe, read_recipe
from ppp.run_folder import check_processes
from ppp.train import set_up_logging
from ppp.types import RecipeError

PROG = "ppp doctor"
EXIT_FAILED, EXIT_RECIPE, EXIT_INTERRUPTED = 1, 2, 130
MAX_WIDTH = 120
STYLE_OF: Mapping[Status, Style] = {
    Status.OK: "good",
    Status.WARNING: "doubtful",
    Status.FAILED: "bad",
    Status.SKIPPED: "faint",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Check, and return the exit status: 0 nothing failed, 1 something did, 2 the recipe cannot be read."""
    own, rest = parse_arguments(sys.argv[1:] if argv is None else argv)
    if own.json is not None and not own.json.absolute().parent.is_dir():
        sys.stderr.write(f"{PROG}: --json {own.json}: there is no such folder\n")
        return EXIT_RECIPE
    set_up_logging()
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("ppp.doctor").setLevel(logging.INFO)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was begun is removed
    try:
        return run(own, rest)
    except KeyboardInterrupt:
        sys.stderr.write(f"{PROG}: interrupted\n")
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def parse_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own options, and those of the recipe; a recipe without `--config` stands first."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage="%(prog)s [RECIPE] [--fast] [--json FILE] [--option value ...]",
        description="Find out before a run what would keep it from working. Other options, those of ppp train, "
        "override the recipe. Without a recipe only the machine is looked at.",
        epilog=f"checks: {', '.join(CHECKS)}. Exit status: 0 nothing failed, 1 something did, 2 the recipe cannot be "
        "read. For a run of several processes: accelerate launch [its options] -m ppp.doctor RECIPE",
        allow_abbrev=False,
    )
    parser.add_argument("--fast", action="store_true", help="leave out what loads the model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, with all numbers, to a file")
    arguments = list(argv)
    recipe = ["--config", arguments.pop(0)] if arguments and not arguments[0].startswith("-") else []
    own, rest = parser.parse_known_args(arguments)
    return own, [*recipe, *rest]


def run(own: argparse.Namespace, rest: Sequence[str]) -> int:
    """Read the recipe, do the checks, print them; returns the exit status."""
    recipe: Recipe | None = None
    results: dict[str, Result] = {}
    problem: RecipeError | None = None
    if rest:
        try:
            recipe = read_recipe(rest, PROG)
            check_processes(recipe.args)
        except RecipeError as error:
            recipe, problem = None, error
    printer = _Printer(Palette.of(sys.stdout), is_silent=not PartialState().is_main_process)
    if problem is not None:
        remedy = "correct it; `ppp train --help` explains every field. A recipe for several processes is read under "
        results["recipe"] = failed(one_line(str(problem), 1000), f"{remedy}`accelerate launch -m ppp.doctor` only")
        printer.result("recipe", results["recipe"])
    with temporary_folder(recipe) as folder:
        patient = Patient(recipe, folder)
        for name, result in examine(patient, own.fast):
            results[name] = result
            printer.result(name, result)
    words = verdict(results, start_command(rest) if recipe is not None else "")
    printer.verdict(words)
    status = 0
    if problem is not None:
        status = EXIT_RECIPE
    elif any(result.status is Status.FAILED for result in results.values()):
        status = EXIT_FAILED
    if own.json is not None and PartialState().is_main_process:
        write_json(own.json, results, words, status)
    return status


def start_command(rest: Sequence[str]) -> str:
    """What starts the run that was looked at."""
    launched = PartialState().num_processes > 1
    start = "accelerate launch [the same options] -m ppp.train" if launched else "ppp train"
    return f"{start} {shlex.join(rest)}"


def write_json(path: Path, results: Mapping[str, Result], words: str, status: int) -> None:
    """All results as one JSON object."""
    checks = {
        name: {
            "status": result.status.value,
            "text": result.text,
            "remedy": result.remedy,
            "details": dict(result.details),
            "block": [line for line, _ in result.block],
        }
        for name, result in results.items()
    }
    record = {"verdict": words, "exit_status": status, "checks": checks}
    path.write_text(json.dumps(_finite(record), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """JSON knows no infinity and no NaN; they become texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value


class _Printer:
    """Writes results as they come."""

    def __init__(self, palette: Palette, is_silent: bool) -> None:
        self.palette, self.is_silent = palette, is_silent
        self.width = min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 24)).columns)

    def result(self, name: str, result: Result) -> None:
        status = self.palette.paint(f"{result.status.value:<8}", STYLE_OF[result.status])
        first, *others = textwrap.wrap(result.text, max(40, self.width - 23), break_on_hyphens=False) or [""]
        self._write(f"{status} {name:<13} {first}")
        for line in others:
            self._write(f"{'':<22} {line}")
        if result.remedy:
            for line in textwrap.wrap(f"to do: {result.remedy}", max(40, self.width - 23), break_on_hyphens=False):
                self._write(f"{'':<22} {self.palette.paint(line, 'doubtful')}")
        for line, style in result.block:
            self._write(f"    {self.palette.paint(line, style)}")

    def verdict(self, words: str) -> None:
        self._write("")
        for line in textwrap.wrap(words, self.width, break_on_hyphens=False, break_long_words=False):
            self._write(line)

    def _write(self, line: str) -> None:
        if not self.is_silent:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
