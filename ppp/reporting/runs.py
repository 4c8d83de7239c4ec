"""The runs in a set of folders: looks through them and reads what `ppp evaluate` and `ppp train` left there.

Shows nothing, and leaves the sessions of trainings to `sessions.py`. Tables are made in `tables.py`, figures in
`figures.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import yaml

from ppp.evaluation.records import Damaged, Results, read_records
from ppp.reporting.formats import plain
from ppp.reporting.run_names import name_runs
from ppp.reporting.run_types import Evaluation, Label, Runs, Training
from ppp.rewards import TERMS, is_number
from ppp.run_log import METRICS_FILE, TRAJECTORIES_FILE
from ppp.types import RecipeError

RESULTS_FILE = "results.jsonl"
MANIFEST_FILE = "evaluation.json"
RECIPE_FILE = "recipe.yaml"
# Fields of a manifest that are read further -> what they must be, and how that is called; outer ones first.
FIELDS: dict[tuple[str, ...], tuple[type, str]] = {
    ("agent",): (dict, "a JSON object"),
    ("user",): (dict, "a JSON object"),
    ("user", "user_models"): (list, "a list"),
    ("rewards",): (dict, "a JSON object"),
    ("rewards", "weights"): (dict, "a JSON object"),
    ("sessions",): (dict, "a JSON object"),
    ("sessions", "total"): (int, "a whole number"),
}
MAX_TOLD = 5  # damaged lines of one file that are told one by one


class NoRunError(RecipeError):
    """The folders are there, and hold no run yet."""


def find_runs(arguments: Sequence[str]) -> Runs:
    """All evaluations and trainings in folders, each given as `PATH` or `NAME=PATH`.

    Raises:
        RecipeError: a folder does not exist, none holds a run, or their sessions were counted by different rules.
    """
    evaluations: list[tuple[Label, Path]] = []
    trainings: list[tuple[Label, Path]] = []
    problems: list[str] = []
    seen: set[Path] = set()
    for argument in arguments:
        name, path = split_argument(argument)
        found = [(folder, files) for folder, files in walk(path) if folder not in seen]
        seen.update(folder for folder, _ in found)
        if not found:
            problems.append(f"{plain(argument)}: holds no evaluation and no training run that was not named before.")
        alone = sum(is_evaluation(files) for _, files in found) == 1
        for folder, files in found:
            label = make_label(name, path, folder, alone and is_evaluation(files), len(arguments) > 1)
            (evaluations if is_evaluation(files) else trainings).append((label, folder))
    if not seen:
        raise NoRunError(
            f"{', '.join(arguments)}: no run found; name folders in which ppp evaluate or ppp train left "
            f"{RESULTS_FILE} or {METRICS_FILE}"
        )
    check_versions([folder for _, folder in (*evaluations, *trainings)])
    trained = [read_training(label, folder, problems) for label, folder in trainings]
    evaluated = [read_evaluation(label, folder, problems) for label, folder in evaluations]
    return Runs(*name_runs(evaluated, trained), problems)


def split_argument(argument: str) -> tuple[str | None, Path]:
    """`NAME=PATH` or `PATH`; a path that exists is one, whatever it contains.

    Raises:
        RecipeError: no such folder.
    """
    name, equals, rest = argument.partition("=")
    named = bool(equals and name) and not os.path.exists(argument)
    path = rest if named else argument
    if not os.path.isdir(path):
        raise RecipeError(f"run: {path!r} is not a folder; name the folder of an evaluation or of a training run")
    return plain(name) if named else None, Path(path).resolve()


def walk(path: Path) -> Iterator[tuple[Path, set[str]]]:
    """The folders of runs below a folder, itself included, without following links; names of their files."""
    for root, folders, files in os.walk(path):
        # Checkpoints hold models and no sessions.
        folders[:] = sorted(name for name in folders if not name.startswith((".", "checkpoint-")))
        names = set(files)
        if is_evaluation(names) or names & {METRICS_FILE, TRAJECTORIES_FILE}:
            yield Path(root), names


def is_evaluation(files: set[str]) -> bool:
    return bool(files & {RESULTS_FILE, MANIFEST_FILE})


def make_label(name: str | None, path: Path, folder: Path, alone: bool, several: bool) -> Label:
    """The caller's name for the only evaluation below it; otherwise where the run lies."""
    if name is not None and (folder == path or alone):
        return Label(name, given=True)
    inner = folder.relative_to(path).parts
    outer = [name] if name is not None else [path.name] if several or not inner else []
    return Label(plain("/".join([*outer, *inner])))


def check_versions(folders: Sequence[Path]) -> None:
    """Refuse runs whose sessions were counted by different rules.

    Raises:
        RecipeError: two folders of different `metric_version`.
    """
    first: tuple[Any, Path] | None = None
    for folder in folders:
        version = metric_version(folder)
        if version is None:
            continue
        if first is None:
            first = version, folder
        elif version != first[0]:
            raise RecipeError(
                f"metric_version: {first[0]} in {str(first[1])!r} and {version} in {str(folder)!r}; results that were "
                "counted by different rules are not mixed: report on them one by one, or evaluate again"
            )


def metric_version(folder: Path) -> Any:
    """By which rules the first whole session of a run was counted; None where there is none, or it does not say."""
    for path in (folder / RESULTS_FILE, folder / TRAJECTORIES_FILE):
        if not path.is_file():
            continue
        with path.open("rb") as file:
            for line in file:
                try:
                    record = orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue
                if isinstance(record, dict):
                    return record.get("metric_version")
    return None


def read_evaluation(label: Label, folder: Path, problems: list[str]) -> Evaluation:
    path = folder / RESULTS_FILE
    results = read_records(path) if path.is_file() else Results(path, [], [])
    tell_damage(path, results.damaged, problems)
    # In the order of the plan and not in which sessions ended: sums then are the same to the last digit.
    results.records.sort(key=lambda record: (record["row"], record["copy"], record["task_id"]))
    manifest = read_manifest(folder / MANIFEST_FILE, problems)
    planned = (manifest.get("sessions") or {}).get("total") or 0
    if not results.records:
        problems.append(f"{label}: the evaluation holds no session yet.")
    elif len(results.records) < planned:
        problems.append(f"{label}: {len(results.records)} of {planned} sessions have been played so far.")
    return Evaluation(label, folder, manifest, results)


def read_manifest(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        manifest = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        problems.append(f"{plain(str(path))}: not JSON ({error.msg}); the settings of this evaluation are unknown.")
        return {}
    if not isinstance(manifest, dict):
        problems.append(f"{plain(str(path))}: not a JSON object; the settings of this evaluation are unknown.")
        return {}
    for names, (kind, called) in FIELDS.items():
        *outer, name = names
        inner = manifest
        for key in outer:
            inner = inner.get(key) or {}
        if inner.get(name) is not None and not isinstance(inner[name], kind):
            problems.append(f"{plain(str(path))}: {'.'.join(names)} is not {called} and is left out.")
            del inner[name]
    return manifest


def read_training(label: Label, folder: Path, problems: list[str]) -> Training:
    path = folder / METRICS_FILE
    metrics: list[dict[str, Any]] = []
    if path.is_file():
        metrics, damaged = read_metrics(path)
        tell_damage(path, damaged, problems)
    logs = sorted(folder.glob("trajectories*.jsonl"))
    if not metrics and not any(log.stat().st_size for log in logs):
        problems.append(f"{label}: the training run holds no step yet.")
    return Training(label, folder, metrics, logs, read_weights(folder / RECIPE_FILE, problems))


def read_weights(path: Path, problems: list[str]) -> dict[str, float]:
    """Term -> weight, as the run's own recipe has it; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        problems.append(f"{plain(str(path))}: not YAML; the weights of this run's reward are unknown.")
        return {}
    given = recipe.get("term_weights") if isinstance(recipe, dict) else None
    return all_weights(given if isinstance(given, dict) else {})


def all_weights(given: Mapping[Any, Any]) -> dict[str, float]:
    """Term -> weight, 1 for those that are not named; what is no number is left out."""
    return {term: 1.0 for term in TERMS} | {
        str(term): float(value) for term, value in given.items() if is_number(value)
    }


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[Damaged]]:
    """The lines of `metrics.jsonl` in the order of steps; of a step that was repeated, the later value counts."""
    by_step: dict[int, dict[str, Any]] = {}
    damaged = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = orjson.loads(line)
                step = int(record["step"])
            except orjson.JSONDecodeError as error:
                torn = "" if line.endswith(b"\n") else "cut off, "
                damaged.append(Damaged(number, f"{torn}not JSON ({error.msg})"))
            except (KeyError, TypeError, ValueError):
                damaged.append(Damaged(number, "no JSON object with a step"))
            else:
                by_step.setdefault(step, {}).update(record)
    return [by_step[step] for step in sorted(by_step)], damaged


def tell_damage(path: Path, damaged: Sequence[Damaged], problems: list[str]) -> None:
    """Add a sentence per damaged line, and one for all the rest of a file that is full of them."""
    where = plain(str(path))
    problems += [f"{where}, line {line.number}: {plain(line.reason)}; skipped." for line in damaged[:MAX_TOLD]]
    if len(damaged) > MAX_TOLD:
        problems.append(f"{where}: {len(damaged) - MAX_TOLD} further damaged lines, skipped.")
