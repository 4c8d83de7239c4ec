"""The bounded pool that runs many sessions at once, without a barrier.

How one of them goes, from the first prompt token to the score, is in `playing.py`; read `rewards.py` next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm.auto import tqdm

from ppp.codec import Codec
from ppp.engines.base import Engine
from ppp.environments import environment_class
from ppp.playing import Playing, RolloutJob, noise_key
from ppp.session import ASK_USER, FINISH, VISIBILITIES, Limits, Toolbox, Visibility, build_messages, require_count
from ppp.types import RecipeError, Task, Trajectory
from ppp.users.crowd import Crowd

__all__ = ["ASK_USER", "FINISH", "Limits", "RolloutJob", "RolloutPool", "build_messages", "noise_key"]


class _Workers(ThreadPoolExecutor):
    """The pool's threads. Ending the pool does not wait for one that hangs in a tool past its deadline."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=True)


class RolloutPool:
    """Runs many sessions at once on one event loop, which stays open between phases.

    Args:
        engine: what generates; the pool enters its phase, the caller closes it.
        codec: messages <-> tokens.
        limits: the bounds of each trajectory.
        crowd: who plays the users; None stands for users made of rules. Not looked at without interaction.
        environment_options: environment name -> options.
        max_concurrency: sessions open at the same time.
        preference_visibility: "stated" tells the agent of its user's preference, "hidden" does not.
        interaction: False takes `ask_user` away.
        seed: of the sampling noise and of what users draw.
        max_workers: threads for blocking work (`asyncio.to_thread`).

    Raises:
        RecipeError: an option that is unknown or cannot be used.
    """

    def __init__(
        self,
        engine: Engine,
        codec: Codec,
        limits: Limits,
        *,
        crowd: Crowd | None = None,
        environment_options: Mapping[str, Mapping[str, Any]] | None = None,
        max_concurrency: int = 64,
        preference_visibility: Visibility = "stated",
        interaction: bool = True,
        seed: int = 0,
        max_workers: int = 32,
    ) -> None:
        require_count("max_concurrency", max_concurrency)
        require_count("max_workers", max_workers)
        if preference_visibility not in VISIBILITIES:
            allowed = ", ".join(VISIBILITIES)
            raise RecipeError(f"preference_visibility: {preference_visibility!r} is unknown, allowed are {allowed}")
        self.engine, self.codec, self.limits = engine, codec, limits
        self.crowd = crowd or Crowd()
        self.environment_options = {name: dict(options) for name, options in (environment_options or {}).items()}
        for name, options in self.environment_options.items():
            environment_class(name).check_options(options)
        self.max_concurrency, self.max_workers = max_concurrency, max_workers
        self.preference_visibility, self.interaction, self.seed = preference_visibility, interaction, seed
        self._runner: asyncio.Runner | None = None
        self._prompts: dict[tuple[str, str, str], list[int]] = {}
        self._asked: list[Crowd] = []  # those whose services may hold something in the event loop

    def run(
        self,
        jobs: Sequence[RolloutJob],
        step: int,
        on_finish: Callable[[RolloutJob, Trajectory], None] | None = None,
        progress: str | None = None,
        crowd: Crowd | None = None,
    ) -> list[Trajectory]:
        """Play all jobs and return their trajectories in the order of `jobs`.

        Args:
            jobs: what to play.
            step: identifies the weights; part of the noise key.
            on_finish: called from the event loop as each trajectory ends, in the order in which they end.
            progress: label of a progress bar; None shows none.
            crowd: who plays the users this time; None stands for those of the pool.

        Raises:
            RecipeError: the operator's mistake; the other sessions are cancelled.
            RunStoppedError: likewise, for something that will not come back.
            KeyboardInterrupt: likewise; every environment is closed first.
        """
        if not jobs:
            with self.engine.phase(step):  # an engine may need all processes, and the others have something to play
                return []
        self._prompts.clear()
        crowd = crowd or self.crowd
        if self.interaction and crowd not in self._asked:
            self._asked.append(crowd)
        runner = self._open()
        try:
            with self.engine.phase(step), tqdm(total=len(jobs), desc=progress, disable=progress is None) as bar:

                def ended(job: RolloutJob, trajectory: Trajectory) -> None:
                    bar.update()
                    if on_finish is not None:
                        on_finish(job, trajectory)

                return runner.run(self._run(jobs, step, crowd, ended))
        except KeyboardInterrupt:
            # A second Ctrl-C, or one raised inside a coroutine, stops the loop with sessions on it: closing it cancels
            # them, which closes their environments.
            self.close()
            raise

    def close(self) -> None:
        """Cancel what still runs, close connections and the event loop; a later `run` opens them again."""
        runner, self._runner = self._runner, None
        if runner is not None:
            with runner:
                runner.run(self._let_go())

    async def _let_go(self) -> None:
        sessions = asyncio.all_tasks() - {asyncio.current_task()}
        for session in sessions:
            session.cancel()
        await asyncio.gather(*sessions, return_exceptions=True)
        asked, self._asked = self._asked, []
        for crowd in asked:
            await crowd.close()
        await self.engine.leave_loop()

    def prompt_ids(self, task: Task) -> list[int]:
        """Tokens of a task's prompt; one shared list for all copies within a phase."""
        key = (task.environment, task.preference, task.prompt)
        if key not in self._prompts:
            environment = environment_class(task.environment, self.environment_options.get(task.environment))
            messages = build_messages(task, environment, self.preference_visibility, self.interaction)
            tools = Toolbox.of(environment, self.interaction).specs
            self.codec.check_tools(self.codec.call_format, tools)
            self._prompts[key] = self.codec.prompt_ids(messages, tools)
        return self._prompts[key]

    def _open(self) -> asyncio.Runner:
        if self._runner is None:
            self._runner = asyncio.Runner()
            workers = _Workers(self.max_workers, thread_name_prefix="ppp-rollout")
            self._runner.get_loop().set_default_executor(workers)
        return self._runner

    async def _run(
        self, jobs: Sequence[RolloutJob], step: int, crowd: Crowd, ended: Callable[[RolloutJob, Trajectory], None]
    ) -> list[Trajectory]:
        """Let `max_concurrency` slots take the jobs in order; a slot that is free takes the next one at once."""
        results: dict[int, Trajectory] = {}
        queue: Iterator[tuple[int, RolloutJob]] = iter(enumerate(jobs))
        num_live = min(self.max_concurrency, len(jobs))

        async def slot() -> None:
            nonlocal num_live
            for index, job in queue:
                results[index] = await Playing(self, job, step, crowd).run()
                ended(job, results[index])
            num_live -= 1
            self.engine.set_live(num_live)

        # Live are all sessions that may still ask for tokens, those that wait for a tool included: an engine that waits
        # for all of them sees the same requests together in every run, however long the tools take.
        self.engine.set_live(num_live)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(num_live):
                    group.create_task(slot())
        except KeyboardInterrupt:  # has left the loop already, and must not leave it again when the loop is closed
            raise asyncio.CancelledError from None
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            self.engine.set_live(0)
        return [results[index] for index in range(len(jobs))]
