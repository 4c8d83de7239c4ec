"""One rollout phase of training: a batch's sessions are played, scored, written down and told to all processes.

What a session is stands in `playing.py`, what the trainer does with the result in `trainer.py`. No TRL in here.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ppp.batch import RolloutSettings
from ppp.bookkeeping import Bookkeeper
from ppp.engines.base import ENGINE_KIND
from ppp.interruption import Interruption
from ppp.rewards import score_trajectory
from ppp.rollout import RolloutJob, RolloutPool
from ppp.run_log import RunLog, trajectory_record
from ppp.step_metrics import Score, slim
from ppp.types import RunStoppedError, Trajectory

logger = logging.getLogger(__name__)

Mode = Literal["train", "eval"]

MAX_REPLAYS = 3  # an engine that is lost more often in one rollout costs the sessions that it had


@dataclass(frozen=True)
class Played:
    """A batch after its rollout.

    Attributes:
        trajectories, scores: of this process, in the order of its jobs.
        everyone, all_scores: of all processes, in their order; without tokens where there are several.
        user_metrics: what the users took, see `Bookkeeper.collect`, and sessions that were played again.
    """

    trajectories: Sequence[Trajectory]
    scores: Sequence[Score]
    everyone: Sequence[Trajectory]
    all_scores: Sequence[Score]
    user_metrics: dict[str, float]


class RolloutPhase:
    """Plays batches of sessions for a trainer.

    Args:
        pool: where they are played.
        settings: how they are scored and how often they are written.
        accelerator: tells of the other processes, all of which play at the same time.
        interruption: a single process may be interrupted in the middle of a rollout.
        books: who the users are, and what they take.
        run_log: where trajectories go; None keeps them from disk.
        lend: entered around each rollout, by all processes together; brings the policy into a state in which it can
            generate.
    """

    def __init__(
        self,
        pool: RolloutPool,
        settings: RolloutSettings,
        accelerator: Accelerator,
        interruption: Interruption,
        books: Bookkeeper,
        run_log: RunLog | None,
        lend: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.pool, self.settings, self.accelerator = pool, settings, accelerator
        self.interruption, self.books, self.run_log = interruption, books, run_log
        self.lend = lend
        self._num_replayed = 0  # in this rollout, by all processes

    def play(self, jobs: Sequence[RolloutJob], step: int, mode: Mode) -> Played:
        """Play all jobs.

        Args:
            step: finished updates; a training batch is written down under the update that it goes into.

        Raises:
            RunStoppedError: on all processes, if it was raised on any.
        """
        played = self.roll(jobs, step, mode)
        self.write(jobs, played, step, mode)
        return played

    def roll(self, jobs: Sequence[RolloutJob], step: int, mode: Mode, goes_on: bool = False) -> Played:
        """Like `play`, but nothing is written down.

        Args:
            goes_on: this belongs to the rollout before it, whose `user_metrics` these include.
        """
        trajectories, stop = self._run(jobs, step, mode)
        replayed: dict[str, float] = {}
        if self.pool.engine.recovers:
            stop = self._replay(jobs, trajectories, stop, step, mode, goes_on)
            replayed["engine/replayed"] = self._num_replayed
        user_metrics = self.books.collect(goes_on) | replayed
        stops = [text for text in gather_object([stop]) if text is not None]
        if stops:
            raise RunStoppedError(stops[0])
        scores = [score_trajectory(trajectory, self.settings.rewards) for trajectory in trajectories]
        everyone, all_scores = self._gather(trajectories, scores)
        self.books.count(everyone)
        return Played(trajectories, scores, everyone, all_scores, user_metrics)

    def _replay(
        self,
        jobs: Sequence[RolloutJob],
        trajectories: list[Trajectory],
        stop: str | None,
        step: int,
        mode: Mode,
        goes_on: bool,
    ) -> str | None:
        """Play sessions that were lost with the engine again, in their places; why the run has to stop, if it has to.

        All processes enter the pool again, those that lost nothing with no jobs: only together do they bring the engine
        back.
        """
        self._num_replayed = self._num_replayed if goes_on else 0
        for _ in range(MAX_REPLAYS):
            lost = [index for index, trajectory in enumerate(trajectories) if trajectory.error_kind == ENGINE_KIND]
            told = gather_object([(len(lost), stop is not None)])
            num = sum(number for number, _ in told)
            if num == 0 or any(stopped for _, stopped in told):
                break
            self._num_replayed += num
            logger.warning("%d sessions were lost with the engine; once it is back, they are played again", num)
            again, stop = self._run([jobs[index] for index in lost], step, mode)
            for index, trajectory in zip(lost, again, strict=stop is None):
                trajectories[index] = trajectory
        return stop

    def files(self) -> list[Path]:
        """What this process writes on the way."""
        files = [] if self.run_log is None else self.run_log.files()
        return files if self.books.path is None else [*files, self.books.path]

    def _run(self, jobs: Sequence[RolloutJob], step: int, mode: Mode) -> tuple[list[Trajectory], str | None]:
        """The trajectories, or why the run has to stop."""
        # Whatever draws numbers in a rollout (an engine that starts, an environment) must not move the generators that
        # a checkpoint holds: a resumed run starts its engine anew.
        states = random.getstate(), numpy.random.get_state()
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        # Several processes have to agree when to stop, which they do after each step.
        is_alone = self.accelerator.num_processes == 1
        crowds = self.books.crowds
        try:
            with (
                torch.random.fork_rng(devices=devices),
                self.interruption.interruptible() if is_alone else nullcontext(),
                self.lend(),
            ):
                crowd = crowds.train if mode == "train" else crowds.evaluation
                return self.pool.run(jobs, step, crowd=crowd), None
        except RunStoppedError as error:
            return [], str(error)
        finally:
            random.setstate(states[0])
            numpy.random.set_state(states[1])

    def write(
        self, jobs: Sequence[RolloutJob], played: Played, step: int, mode: Mode, marks: Mapping[str, Any] | None = None
    ) -> None:
        """Write down this process's trajectories.

        Args:
            step: finished updates.
            marks: what else is written beside each of them.
        """
        step += mode == "train"
        every = self.settings.log_trajectories_every
        if self.run_log is not None and every and (mode == "eval" or step % every == 0):
            self.run_log.write_trajectories(
                {
                    **trajectory_record(trajectory, score, step=step, mode=mode, row=job.row, copy=job.copy),
                    **(marks or {}),
                }
                for job, trajectory, score in zip(jobs, played.trajectories, played.scores, strict=True)
            )
            if self.run_log.tokens is not None and not marks:
                self.run_log.tokens.offer(jobs, played.trajectories, step, mode)

    def _gather(
        self, trajectories: Sequence[Trajectory], scores: Sequence[Score]
    ) -> tuple[Sequence[Trajectory], Sequence[Score]]:
        """The trajectories of all processes, in order, without their tokens."""
        if self.accelerator.num_processes == 1:
            return trajectories, scores
        return gather_object([slim(trajectory) for trajectory in trajectories]), gather_object(list(scores))
