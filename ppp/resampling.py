"""Dynamic sampling: groups whose rewards are all equal give way to other sessions before anything is learned of them.

After DAPO (arXiv 2503.14476, section 3.2), but bounded: sessions with simulated users cost money. Groups may lie across
processes; all of them decide alike, from the scores of all. `phase.py` plays the sessions, `trainer.py` calls this.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from datasets import Dataset

from ppp.batch import RolloutSettings, TooManyFailuresError, check_failures
from ppp.phase import Played, RolloutPhase
from ppp.rollout import RolloutJob
from ppp.step_metrics import REWARD, flat_groups
from ppp.types import Task

ATTEMPT_ROWS = 1 << 32  # sessions of the k-th attempt are numbered from k times this: their noise is their own

SessionId = tuple[str, str]
T = TypeVar("T")


@dataclass(frozen=True)
class Resampled:
    """A batch after dynamic sampling.

    Attributes:
        played: what the batch is made of; its `user_metrics` include what was thrown away.
        sources: position in this process's slice -> row of the training set that took its place.
        metrics: what to tell of it.
    """

    played: Played
    sources: dict[int, int]
    metrics: dict[str, float]


class DynamicSampling:
    """Plays batches and replaces their flat groups.

    Args:
        phase: plays, scores, and writes down.
        sessions: the training set.
        num_generations: copies of a session.
        signals: see `flat_groups`.
        seed: which sessions take the place of others follows from it, the step, the round and the attempt, and is the
            same on all processes and in a resumed run.
    """

    def __init__(
        self,
        phase: RolloutPhase,
        sessions: Dataset,
        num_generations: int,
        settings: RolloutSettings,
        seed: int,
        signals: Sequence[str] = REWARD,
    ) -> None:
        self.phase, self.sessions, self.num_generations = phase, sessions, num_generations
        self.settings, self.seed, self.signals = settings, seed, signals
        self._ids: list[SessionId] = []

    def play(self, jobs: Sequence[RolloutJob], step: int, round_number: int) -> Resampled:
        """Play this process's slice of a batch, and at most `max_resamples` times what takes the place of flat groups.

        What is thrown away is written down with `"discarded": true`.

        Raises:
            RunStoppedError: see `RolloutPhase.play`.
            TooManyFailuresError: of a batch with flat groups; to play on would only add to the failures.
        """
        played = self.phase.roll(jobs, step, "train")
        sources: dict[int, int] = {}
        used = {session_id(trajectory.task) for trajectory in played.everyone}
        num_groups = len(played.all_scores) // self.num_generations
        first_flat = self._flat(played)
        num_replaced = 0
        for attempt in range(1, self.settings.max_resamples + 1):
            flat = self._flat(played)
            if not flat:
                break
            self._check_failures(jobs, played, step)
            drawn = self._draw(len(flat), used, f"{self.seed}/{step}/{round_number}/{attempt}")
            if not drawn:
                break
            replaced = dict(zip(flat, drawn, strict=False))
            used |= {self._ids[index] for index in drawn}
            num_replaced += len(drawn)
            jobs, played = self._replace(jobs, played, replaced, attempt, step, sources)
        self.phase.write(jobs, played, step, "train")
        metrics = {"resampled_groups": float(num_replaced), "flat_groups_drawn": len(first_flat) / num_groups}
        return Resampled(played, sources, metrics)

    def _check_failures(self, jobs: Sequence[RolloutJob], played: Played, step: int) -> None:
        try:
            check_failures(played.everyone, self.settings.max_failure_rate)
        except TooManyFailuresError:
            self.phase.write(jobs, played, step, "train")  # what failed is looked up there
            raise

    def _flat(self, played: Played) -> list[int]:
        return flat_groups(played.all_scores, self.num_generations, self.signals)

    def _replace(
        self,
        jobs: Sequence[RolloutJob],
        played: Played,
        replaced: dict[int, int],
        attempt: int,
        step: int,
        sources: dict[int, int],
    ) -> tuple[list[RolloutJob], Played]:
        """Play other sessions for some groups.

        Args:
            replaced: number of a group in the batch -> row of the training set.
            sources: gets the new ones.

        Returns:
            This process's jobs and the batch, both with the new sessions in their places.
        """
        accelerator = self.phase.accelerator
        first = accelerator.process_index * len(jobs)
        tasks = {group: Task.from_json(self.sessions[index]["task"]) for group, index in replaced.items()}
        mine = {
            position: group
            for position in range(len(jobs))
            if (group := (first + position) // self.num_generations) in replaced
        }
        trajectories = [played.trajectories[position] for position in mine]
        gone = replace(played, trajectories=trajectories, scores=[played.scores[position] for position in mine])
        self.phase.write([jobs[position] for position in mine], gone, step, "train", {"discarded": True})
        new_jobs = [
            RolloutJob(
                tasks[group],
                row=attempt * ATTEMPT_ROWS + jobs[position].row % ATTEMPT_ROWS,
                copy=jobs[position].copy,
            )
            for position, group in mine.items()
        ]
        new = self.phase.roll(new_jobs, step, "train", goes_on=True)
        sources |= {position: replaced[group] for position, group in mine.items()}
        places = [
            group * self.num_generations + copy for group in sorted(replaced) for copy in range(self.num_generations)
        ]
        whole = replace(
            played,
            trajectories=_put(played.trajectories, list(mine), new.trajectories),
            scores=_put(played.scores, list(mine), new.scores),
            everyone=_put(played.everyone, places, new.everyone),
            all_scores=_put(played.all_scores, places, new.all_scores),
            user_metrics=new.user_metrics,
        )
        return _put(jobs, list(mine), new_jobs), whole

    def _draw(self, num: int, used: Collection[SessionId], seed: str) -> list[int]:
        """Up to `num` rows of the training set whose sessions are not in `used`, each session once."""
        if not self._ids:
            self._ids = [session_id(Task.from_json(text)) for text in self.sessions["task"]]
        order = list(range(len(self._ids)))
        random.Random(seed).shuffle(order)
        taken: dict[SessionId, int] = {}
        for index in order:
            if len(taken) == num:
                break
            if self._ids[index] not in used:
                taken.setdefault(self._ids[index], index)
        return list(taken.values())


def session_id(task: Task) -> SessionId:
    return task.environment, task.task_id


def _put(values: Sequence[T], places: Sequence[int], new: Sequence[T]) -> list[T]:
    """A copy of `values` with `new` at `places`."""
    found = list(values)
    for place, value in zip(places, new, strict=True):
        found[place] = value
    return found
