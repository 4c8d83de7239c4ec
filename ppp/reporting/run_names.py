"""What runs are called in tables and figures, and in which order they stand there.

A run is found in `runs.py`; which names the paper has is said in `run_types.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ppp.reporting.run_types import VARIANTS, Evaluation, Label, Training


def name_runs(
    evaluations: Sequence[Evaluation], trainings: Sequence[Training]
) -> tuple[list[Evaluation], list[Training]]:
    """Runs with the names that they have in tables, in the order of the paper's table: others, base, PPP, ablations."""
    names = unique([name_of(run.label, run.variant) for run in trainings], [run.label for run in trainings])
    trained = [replace(run, name=name) for run, name in zip(trainings, names, strict=True)]
    paired = [replace(run, training=training_of(run, trained)) for run in evaluations]
    wanted = [evaluation_name(run) for run in paired]
    names = unique(wanted, [run.label for run in paired])
    named = [replace(run, name=name) for run, name in zip(paired, names, strict=True)]
    return sorted(named, key=rank), sorted(trained, key=lambda run: (variant_rank(run), run.label))


def evaluation_name(run: Evaluation) -> str:
    if run.is_setting:
        return str(run.label) if run.interaction else f"{run.label}, no interaction"
    return name_of(run.label, run.training.variant if run.training is not None else None)


def name_of(label: Label, variant: str | None) -> str:
    """The caller's name, or the paper's, or that of the run's folder."""
    return str(label) if label.given else variant or label.rsplit("/", 1)[-1]


def unique(wanted: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Names of which none stands for two runs: where they would, the label says which."""
    counts = Counter(wanted)
    names = [name if counts[name] == 1 else f"{name} ({label})" for name, label in zip(wanted, labels, strict=True)]
    return [name if names.count(name) == 1 else f"{name} [{index + 1}]" for index, name in enumerate(names)]


def training_of(run: Evaluation, trainings: Sequence[Training]) -> Training | None:
    """The run that an evaluation's agent is the outcome of: by its path, or beside the evaluation if all was moved."""
    agent = run.manifest.get("agent") or {}
    path = Path(str(agent.get("name") or ""))
    if agent.get("kind") != "checkpoint" or not path.name:
        return None
    nearest = path.parent if path.name.startswith("checkpoint-") else path
    for folder in (nearest.resolve(), run.folder.parent / nearest.name):
        for training in trainings:
            if training.folder == folder:
                return training
    return None


def variant_rank(training: Training) -> int:
    known = list(VARIANTS.values())
    return known.index(training.variant) if training.variant in known else len(known)


def rank(run: Evaluation) -> tuple[bool, int, int, str]:
    """Where a run stands in a table: agents made of rules, untrained ones, PPP, ablations; last figure 4's."""
    if run.training is not None:
        return run.is_setting, 2, variant_rank(run.training), run.label
    return run.is_setting, int((run.manifest.get("agent") or {}).get("kind") != "policy"), 0, run.label
