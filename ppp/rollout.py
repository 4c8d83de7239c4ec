"""One trajectory as one coroutine, and the bounded pool that runs many of them without a barrier.

A session opens its environment and its user and then repeats: generate a turn, read it, let the user or the environment
answer, append the answer's tokens; at the end the environment scores. Tokens are only ever appended. This file knows
neither templates (`codec.py`), nor models (`engines/`), nor rewards: read `rewards.py` next.

This is also where the three kinds of failure are kept apart: what the policy did wrong comes back to it as an
observation, what failed on our side ends the trajectory with StopReason.ERROR, what the operator did wrong
(RecipeError) ends the run.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeVar

from tqdm.auto import tqdm

from ppp.codec import Codec
from ppp.engines.base import Engine, GenerationRequest
from ppp.environments import environment_class
from ppp.environments.base import Environment
from ppp.session import ASK_USER, FINISH, VISIBILITIES, Limits, Toolbox, Visibility, build_messages, require_count
from ppp.types import InfrastructureError, Observation, RecipeError, StopReason, Task, Trajectory, Turn
from ppp.users import user_class
from ppp.users.base import User

__all__ = ["ASK_USER", "FINISH", "Limits", "RolloutJob", "RolloutPool", "build_messages", "noise_key"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

MIN_TURN_TOKENS = 1  # a turn with fewer tokens left than this is not started


@dataclass(frozen=True, slots=True)
class RolloutJob:
    """One trajectory to be played: `row` is the data set's row, `copy` tells the G copies of it apart."""

    task: Task
    row: int
    copy: int


def noise_key(seed: int, step: int, row: int, copy: int) -> int:
    """The 64-bit key of a trajectory's sampling noise; equal arguments give equal keys on every machine."""
    digest = blake2b(f"{seed}/{step}/{row}/{copy}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


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
        user: a key of `ppp.users.USERS`; not looked at without interaction.
        user_options: options of that user.
        environment_options: environment name -> options.
        max_concurrency: sessions open at the same time.
        preference_visibility: "stated" tells the agent of its user's preference, "hidden" does not.
        interaction: False takes `ask_user` away.
        seed: of the sampling noise.
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
        user: str = "scripted",
        user_options: Mapping[str, Any] | None = None,
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
        self.user: type[User] | None = user_class(user) if interaction else None
        self.user_options = dict(user_options or {})
        if self.user is not None:
            self.user.check_options(self.user_options)
        self.environment_options = {name: dict(options) for name, options in (environment_options or {}).items()}
        for name, options in self.environment_options.items():
            environment_class(name).check_options(options)
        self.max_concurrency, self.max_workers = max_concurrency, max_workers
        self.preference_visibility, self.interaction, self.seed = preference_visibility, interaction, seed
        self._runner: asyncio.Runner | None = None
        self._prompts: dict[tuple[str, str, str], list[int]] = {}

    def run(
        self,
        jobs: Sequence[RolloutJob],
        step: int,
        on_finish: Callable[[RolloutJob, Trajectory], None] | None = None,
        progress: str | None = None,
    ) -> list[Trajectory]:
        """Play all jobs and return their trajectories in the order of `jobs`.

        Args:
            jobs: what to play.
            step: identifies the weights; part of the noise key.
            on_finish: called from the event loop as each trajectory ends, in the order in which they end.
            progress: label of a progress bar; None shows none.

        Raises:
            RecipeError: the operator's mistake; the other sessions are cancelled.
            KeyboardInterrupt: likewise; every environment is closed first.
        """
        if not jobs:
            return []
        self._prompts.clear()
        runner = self._open()
        try:
            with self.engine.phase(step), tqdm(total=len(jobs), desc=progress, disable=progress is None) as bar:

                def ended(job: RolloutJob, trajectory: Trajectory) -> None:
                    bar.update()
                    if on_finish is not None:
                        on_finish(job, trajectory)

                return runner.run(self._run(jobs, step, ended))
        except KeyboardInterrupt:
            # A second Ctrl-C, or one raised inside a coroutine, stops the loop with sessions on it: closing it cancels
            # them, which closes their environments.
            self.close()
            raise

    def close(self) -> None:
        """Cancel what still runs and close the event loop; a later `run` opens a new one."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()

    def prompt_ids(self, task: Task) -> list[int]:
        """Tokens of a task's prompt; one shared list for all copies within a phase."""
        key = (task.environment, task.preference, task.prompt)
        if key not in self._prompts:
            environment = environment_class(task.environment)
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
        self, jobs: Sequence[RolloutJob], step: int, ended: Callable[[RolloutJob, Trajectory], None]
    ) -> list[Trajectory]:
        """Let `max_concurrency` slots take the jobs in order; a slot that is free takes the next one at once."""
        results: dict[int, Trajectory] = {}
        queue: Iterator[tuple[int, RolloutJob]] = iter(enumerate(jobs))
        num_live = min(self.max_concurrency, len(jobs))

        async def slot() -> None:
            nonlocal num_live
            for index, job in queue:
                results[index] = await _Session(self, job, step).run()
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


class _Session:
    """One trajectory while it runs. `context` is the prompt and everything since, the list that the engine reads."""

    def __init__(self, pool: RolloutPool, job: RolloutJob, step: int) -> None:
        self.pool, self.limits, self.task = pool, pool.limits, job.task
        self.noise_key = noise_key(pool.seed, step, job.row, job.copy)
        self.request_prefix = f"{step:08d}-{job.row:08d}-{job.copy:04d}"  # sorts like (step, row, copy)
        timings = dict.fromkeys(("generate", "tool", "user", "score", "total"), 0.0)
        self.trajectory = Trajectory(job.task, timings=timings)
        self.context: list[int] = []
        self.num_completion_tokens = 0
        self.user: User | None = None

    async def run(self) -> Trajectory:
        """Play the session to its end: the one place where any failure of ours becomes StopReason.ERROR."""
        started = time.perf_counter()
        deadline = asyncio.timeout(self.limits.trajectory_timeout_s)
        try:
            async with deadline:
                await self._play()
        except RecipeError:
            raise
        except Exception as error:  # an environment, a user or an engine may raise anything
            self._stop_cancelled(error)
            self._fail(error, f"trajectory_timeout_s: over {self.limits.trajectory_timeout_s:g} s", deadline.expired())
        if not self.num_completion_tokens:
            self._append_masked_end()
        self.trajectory.timings["total"] = time.perf_counter() - started
        return self.trajectory

    async def _play(self) -> None:
        trajectory, pool = self.trajectory, self.pool
        environment_type = environment_class(self.task.environment)
        self.tools = Toolbox.of(environment_type, pool.interaction)
        trajectory.prompt_ids = pool.prompt_ids(self.task)
        if len(trajectory.prompt_ids) > self.limits.max_prompt_tokens:
            trajectory.stop_reason, trajectory.productivity = StopReason.PROMPT_TOO_LONG, 0.0
            return
        self.context = list(trajectory.prompt_ids)
        if pool.user is not None:
            self.user = pool.user(self.task, pool.user_options)
        environment = environment_type(self.task, pool.environment_options.get(self.task.environment))
        async with self._opened(environment):
            reason: StopReason | None = None
            while reason is None:
                reason = await self._take_turn(environment)
            answer = trajectory.final_answer if reason is StopReason.FINISHED else None
            score = await self._timed("score", self.limits.score_timeout_s, environment.score(answer))
            if not 0.0 <= score <= 1.0:
                raise InfrastructureError(f"{self.task.environment}: score {score!r} is outside [0, 1]")
            trajectory.stop_reason, trajectory.productivity = reason, score

    async def _take_turn(self, environment: Environment) -> StopReason | None:
        """Generate one turn, let it take effect, append what came back; the reason to stop, if there is one."""
        turns, limits = self.trajectory.turns, self.limits
        turn, problem = await self._generate()
        turns.append(turn)
        if turn.truncated and not self._fits(MIN_TURN_TOKENS):
            return StopReason.MAX_TOKENS
        observation = await self._react(turn, problem, environment)
        if observation is None:
            return StopReason.FINISHED
        turn.is_error = observation.is_error
        # A trajectory that ends here ends on the policy's own tokens: what came back is neither appended nor recorded.
        if len(turns) == limits.max_turns:
            return StopReason.MAX_TURNS
        text = self.pool.codec.truncate(observation.text, limits.max_observation_tokens)
        name = turn.call.name if turn.call is not None else "tool"
        suffix = self.pool.codec.suffix_ids(text, closed=not turn.truncated, name=name)
        if not self._fits(len(suffix) + MIN_TURN_TOKENS):
            return StopReason.MAX_TOKENS
        turn.observation, turn.observation_ids = text, suffix
        self._append(suffix)
        return None

    async def _generate(self) -> tuple[Turn, str | None]:
        """The next turn, and what the codec could not read in it."""
        request = GenerationRequest(
            prompt_ids=self.context,
            max_tokens=min(self.limits.max_tokens_per_turn, self._num_left()),
            noise_key=self.noise_key,
            position=self.num_completion_tokens,
            task=self.task,
            turns=self.trajectory.turns,
            request_id=f"{self.request_prefix}-{len(self.trajectory.turns):04d}",
        )
        generation = await self._timed("generate", None, self.pool.engine.generate(request))
        ids, logprobs = generation.token_ids, generation.logprobs
        if not 1 <= len(ids) <= request.max_tokens or len(ids) != len(logprobs):
            raise InfrastructureError(
                f"engine: {len(ids)} tokens with {len(logprobs)} log-probabilities for a limit of {request.max_tokens}"
            )
        self._append(ids)
        parsed = self.pool.codec.parse(ids, self.tools.specs)
        return Turn(ids, logprobs, parsed.message, call=parsed.call, truncated=not parsed.closed), parsed.error

    async def _react(self, turn: Turn, problem: str | None, environment: Environment) -> Observation | None:
        """Carry out the turn's call and return what comes back; None when the policy has finished."""
        call = turn.call
        if call is None:  # cut off, or nothing in it could be read
            return Observation(problem or "There was no tool call.", is_error=True)
        mistake = self.tools.mistake(call)
        if mistake is not None:
            return Observation(mistake, is_error=True)
        if call.name == FINISH.name:
            self.trajectory.final_answer = call.arguments["answer"]
            return None
        if call.name == ASK_USER.name and self.user is not None:
            question: str = call.arguments["query"]
            turn.question = question
            reply = self.user.answer(question, self.trajectory.turns[:-1])
            turn.answer = await self._timed("user", self.limits.user_timeout_s, reply)
            return Observation(turn.answer.text)
        return await self._timed("tool", self.limits.tool_timeout_s, environment.step(call))

    async def _timed(self, kind: str, timeout_s: float | None, work: Awaitable[T]) -> T:
        """Await `work` under a deadline and add its seconds to the timings of its kind."""
        started = time.perf_counter()
        deadline = asyncio.timeout(timeout_s)
        try:
            async with deadline:
                return await work
        except TimeoutError as error:
            if deadline.expired():
                raise InfrastructureError(f"{kind}: no result within {timeout_s:g} s") from error
            raise
        finally:
            self.trajectory.timings[kind] += time.perf_counter() - started

    @asynccontextmanager
    async def _opened(self, environment: Environment) -> AsyncIterator[None]:
        """Like `async with environment`, but with deadlines, and closed also when its set-up failed half-way."""
        try:
            await self._timed("tool", self.limits.tool_timeout_s, environment.setup())
            yield
        finally:
            await self._timed("tool", self.limits.tool_timeout_s, environment.close())

    def _append(self, ids: list[int]) -> None:
        self.context += ids
        self.num_completion_tokens += len(ids)

    def _num_left(self) -> int:
        return self.limits.max_completion_tokens - self.num_completion_tokens

    def _fits(self, num_tokens: int) -> bool:
        return num_tokens <= self._num_left()

    def _append_masked_end(self) -> None:
        """Give a trajectory without tokens one end-of-turn token that carries no loss: trainers reject empty ones."""
        message = {"role": "assistant", "content": ""}
        self.trajectory.turns.append(Turn([], [], message, observation_ids=[self.pool.codec.eos_id]))

    def _stop_cancelled(self, error: Exception) -> None:
        """Go on cancelling when an environment answered the cancellation of its session with an error of its own."""
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise asyncio.CancelledError from error

    def _fail(self, error: Exception, timeout_text: str, timed_out: bool) -> None:
        trajectory = self.trajectory
        text = timeout_text if timed_out else f"{type(error).__name__}: {error}"
        expected = timed_out or isinstance(error, InfrastructureError)
        if trajectory.productivity is not None:  # only closing the environment failed: the session itself is whole
            logger.warning("%s: after scoring: %s", self.task.task_id, text, exc_info=not expected)
            return
        trajectory.stop_reason, trajectory.error = StopReason.ERROR, text
        logger.warning("%s: left out: %s", self.task.task_id, text, exc_info=not expected)
