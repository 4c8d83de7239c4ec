"""What came of an evaluation, for programs: `UserVille.evaluate` returns one.

The same numbers stand in `summary.json`; how they are computed is in `evaluation/metrics.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppp.checks import refuse


@dataclass(frozen=True, eq=False)
class Scores:
    """What an evaluation gave, in percent; `print` shows a table.

    Attributes:
        summary: what `summary.json` holds: groups of sessions with their metrics, intervals and preferences.
        sessions: the sessions as they stand in `results.jsonl`, whole conversations with verdicts and rewards.
        folder: where all of it is; a temporary one goes when this object does.
    """

    summary: Mapping[str, Any]
    sessions: Sequence[Mapping[str, Any]]
    folder: Path

    @property
    def group(self) -> str:
        """The group that the scores below are of: vague prompts, or precise ones where there were no others."""
        return "vague" if "vague" in self.summary else "precise"

    @property
    def productivity(self) -> float | None:
        """Share of the task that is solved, on average."""
        return self._metric("productivity")

    @property
    def proactivity(self) -> float | None:
        """Share of sessions that cost the user little effort."""
        return self._metric("proactivity")

    @property
    def personalization(self) -> float | None:
        """Share of the sessions with a question that follow the user's preference; None where nothing was asked."""
        return self._metric("personalization")

    @property
    def intervals(self) -> Mapping[str, tuple[float, float] | None]:
        """Metric -> (low, high) of its interval of 95 percent over tasks; None where there is none."""
        found: Mapping[str, Any] = self._of_group()["intervals"]
        return {name: None if bounds is None else (bounds[0], bounds[1]) for name, bounds in found.items()}

    @property
    def preferences(self) -> Mapping[str, Mapping[str, Any]]:
        """Preference -> its metrics."""
        found: Mapping[str, Any] = self._of_group()["preferences"]
        return found

    def save(self, folder: str | Path) -> Path:
        """Copy everything into a new folder, for `ppp report` and `ppp compare`; returns it.

        Raises:
            RecipeError: the folder holds something.
        """
        target = Path(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise refuse("folder", str(target), "a new or empty folder")
        shutil.copytree(self.folder, target, dirs_exist_ok=True)
        return target

    def __str__(self) -> str:
        from ppp.evaluation.summary import shown_summary

        return shown_summary(self.summary)

    def _of_group(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.summary[self.group]
        return found

    def _metric(self, name: str) -> float | None:
        value: float | None = self._of_group()[name]
        return value
