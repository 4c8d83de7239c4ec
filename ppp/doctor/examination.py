"""Calls the checks one after the other, each with what it needs; in several processes all of them together.

A check that fails or breaks keeps only those from being done that cannot be done without it. The table is in
`__init__.py`, what is printed of it in `command.py`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from ppp.doctor import CHECKS
from ppp.doctor.boundary import attempt
from ppp.doctor.machine import nearest_folder
from ppp.doctor.patient import Patient
from ppp.doctor.results import Result, Status, failed, skipped
from ppp.doctor.text import one_line
from ppp.recipe import Recipe

WORST_FIRST = (Status.FAILED, Status.WARNING, Status.OK, Status.SKIPPED)


def examine(patient: Patient, is_fast: bool = False) -> Iterator[tuple[str, Result]]:
    """Do all checks and yield each as it is done, under its name.

    Args:
        is_fast: leave out whatever loads the model.
    """
    results: dict[str, Result] = {}
    for name, check in CHECKS.items():
        if check.needs_recipe and patient.recipe is None:
            continue
        missing = [other for other in check.after if results[other].status in (Status.FAILED, Status.SKIPPED)]
        if check.loads_model and is_fast:
            results[name] = skipped("it loads the model, and --fast was given")
        elif missing:
            ends = ", ".join(f"{other} ({results[other].status})" for other in missing)
            results[name] = skipped(f"it cannot be done without: {ends}")
        else:
            results[name] = worst_of_all(call(check.function, patient))
        yield name, results[name]


def call(function: str, patient: Patient) -> Result:
    """The result of one check; what it raises is a failure."""
    module, _, name = function.partition(":")
    work: Callable[[Patient], Result] = vars(import_module(module))[name]
    result, error = attempt(lambda: work(patient))
    if result is None:
        text = f"the check broke: {type(error).__name__}: {one_line(str(error), 700)}"
        return failed(text, "mend what is named; if nothing is, this is a mistake of the doctor's own")
    return result


def worst_of_all(result: Result) -> Result:
    """The worst result that any process had, the same for all of them."""
    everyone: list[Result] = gather_object([result])
    worst = min(everyone, key=lambda one: WORST_FIRST.index(one.status))
    return result if len(everyone) == 1 else worst


@contextmanager
def temporary_folder(recipe: Recipe | None) -> Iterator[Path]:
    """A folder for everything that is tried out, the same for all processes, which is removed at the end.

    Beside output_dir, where servers on other machines may see what the trainer writes; where nothing can be written
    there, it is where temporary files go.
    """
    state = PartialState()
    name = ""
    if state.is_main_process:
        beside = None if recipe is None else nearest_folder(Path(str(recipe.args.output_dir)).absolute().parent)
        try:
            name = tempfile.mkdtemp(prefix=".ppp_doctor_", dir=beside)
        except OSError:
            name = tempfile.mkdtemp(prefix="ppp_doctor_")
    folder = Path(broadcast_object_list([name])[0] if state.num_processes > 1 else name)
    try:
        yield folder
    finally:
        state.wait_for_everyone()
        if state.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
