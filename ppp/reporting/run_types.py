"""What an evaluation and a training run are to a report: their names, settings and scores.

They are found and read in `runs.py`, and named in `run_names.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ppp.evaluation.metrics import summarize_groups
from ppp.evaluation.records import Record, Results
from ppp.reporting.formats import plain
from ppp.rewards import TERMS

BASELINE_FOLDER = "baseline"
SETTING_PREFERENCE = "detail_question"  # of figure 4
SCORES = ("productivity", "proactivity", "personalization")

# Terms whose weight is 0 -> what the paper calls a run without them.
VARIANTS = {
    (): "PPP",
    ("proactivity",): "PPP w/o R_proact",
    ("personalization",): "PPP w/o R_pers",
    ("proactivity", "personalization"): "PPP w/o both",
}


class Label(str):
    """What a run is called by its place, such as "ablation/without_r_pers/after", or as the caller `given` it."""

    __slots__ = ("given",)

    given: bool

    def __new__(cls, text: str, given: bool = False) -> Label:
        label = super().__new__(cls, text)
        label.given = given
        return label


@dataclass(frozen=True, eq=False)
class Training:
    """A training run.

    Attributes:
        metrics: step -> what was logged at it, in order of steps.
        logs: its files of sessions, one per process.
        weights: of the terms of the reward; empty where the run left no recipe.
    """

    label: Label
    folder: Path
    metrics: Sequence[Mapping[str, Any]]
    logs: Sequence[Path]
    weights: Mapping[str, float]
    name: str = ""

    @property
    def variant(self) -> str | None:
        """What the paper calls a run with these weights; None where it has no name for them."""
        removed = tuple(term for term in TERMS if self.weights.get(term, 1.0) == 0)
        kept = {self.weights.get(term, 1.0) for term in TERMS if term not in removed}
        return VARIANTS.get(removed) if self.weights and kept == {1.0} else None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """An evaluation: its sessions, how they came about, and their scores.

    Attributes:
        manifest: what `evaluation.json` says; empty where there is none.
        training: the run that made its agent, where that was found.
        name: what it is called in tables and figures, unlike all others.
    """

    label: Label
    folder: Path
    manifest: Mapping[str, Any]
    results: Results
    training: Training | None = None
    name: str = ""

    @property
    def records(self) -> list[Record]:
        return self.results.records

    @property
    def interaction(self) -> bool:
        return bool(self.manifest.get("interaction", True))

    @property
    def is_setting(self) -> bool:
        """Whether it was played for figure 4 alone: without interaction, or with its one user."""
        return not self.interaction or self.manifest.get("preferences") == [SETTING_PREFERENCE]

    @property
    def rewards(self) -> Mapping[str, Any]:
        return self.manifest.get("rewards") or {}

    @property
    def user_name(self) -> str:
        return user_name(self.manifest.get("user")) if self.interaction else "no interaction"

    @property
    def agent_key(self) -> str:
        """Equal for evaluations of the same agent."""
        agent = self.manifest.get("agent")
        return json.dumps(agent, sort_keys=True) if agent else str(self.folder)

    @property
    def agent_name(self) -> str:
        """The agent, where `name` says which evaluation of it."""
        if self.training is not None:
            return self.training.name
        named = (self.manifest.get("agent") or {}).get("name")
        return plain(Path(str(named)).name) if named else self.name

    @cached_property
    def groups(self) -> dict[str, Any]:
        """Group -> scores, over all environments; see `summarize_groups`."""
        return summarize_groups(self.records, personalization=self.personalization)

    @cached_property
    def by_environment(self) -> dict[str, dict[str, Any]]:
        names = sorted({record["environment"] for record in self.records})
        if len(names) == 1:
            return {names[0]: self.groups}
        return {
            name: summarize_groups(
                [record for record in self.records if record["environment"] == name],
                personalization=self.personalization,
            )
            for name in names
        }

    @property
    def personalization(self) -> str:
        return str(self.rewards.get("personalization", "paper"))


@dataclass(frozen=True)
class Runs:
    """What was found, and in `problems` what could not be used, as sentences."""

    evaluations: Sequence[Evaluation]
    trainings: Sequence[Training]
    problems: Sequence[str] = ()

    @property
    def compared(self) -> list[Evaluation]:
        """The evaluations that tables of methods compare; those made for figure 4 only if there are no others."""
        return [run for run in self.evaluations if not run.is_setting] or list(self.evaluations)

    def agent_name(self, evaluation: Evaluation) -> str:
        """What the agent of an evaluation is called where another one stands in the tables of methods."""
        methods = [run for run in self.evaluations if not run.is_setting]
        same = [run.name for run in methods if run.agent_key == evaluation.agent_key]
        return same[0] if same else evaluation.agent_name

    @property
    def looks(self) -> dict[str, int]:
        """Name of a run -> number of its colour, the same in all figures; a training shares it with its evaluation.

        There are fewer colours than there may be runs: what the report compares gets its own first.
        """
        main = self.main
        before = None if main is None else self.before(main)
        first = [run for run in (main, before) if run is not None]
        trained, evaluated = [run.name for run in self.trainings], [run.name for run in (*first, *self.evaluations)]
        names = dict.fromkeys([*trained, *evaluated])
        return {name: number for number, name in enumerate(names)}

    @property
    def main(self) -> Evaluation | None:
        """The evaluation whose scores stand at the top: the one called after, otherwise the last."""
        chosen = [run for run in self.compared if run.folder.name != BASELINE_FOLDER]
        after = [run for run in chosen if "after" in (run.folder.name, run.label)]
        # An ablation's own folder lies deeper than the run that it belongs to.
        return min(reversed(after), key=lambda run: len(run.folder.parts)) if after else chosen[-1] if chosen else None

    def before(self, evaluation: Evaluation) -> Evaluation | None:
        """What an evaluation is compared with: its own baseline, or the folder `before` beside it."""
        folders = [evaluation.folder / BASELINE_FOLDER]
        if evaluation.folder.name == "after":
            folders.append(evaluation.folder.with_name("before"))
        return next((run for folder in folders for run in self.evaluations if run.folder == folder), None)


def user_name(user: Mapping[str, Any] | None) -> str:
    """Who played the users: their models where they have some, otherwise the kind."""
    if not user:
        return "unknown"
    models = [user["model"]] if user.get("model") else user.get("user_models") or []
    names = [str(entry.get("model")) if isinstance(entry, Mapping) else str(entry) for entry in models]
    return plain(" + ".join(names) if names else str(user.get("kind", "unknown")))


def series(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric, without the steps at which it was not measured."""
    pairs = [(record["step"], record[key]) for record in metrics if isinstance(record.get(key), int | float)]
    pairs = [(step, value) for step, value in pairs if math.isfinite(value)]
    return [step for step, _ in pairs], [float(value) for _, value in pairs]
