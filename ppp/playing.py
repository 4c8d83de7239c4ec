"""One trajectory as one coroutine.

A session opens its environment and its user and then repeats: generate a turn, read it, let the user or the environment
answer, append the answer's tokens; at the end the environment scores. Tokens are only ever appended. This file knows
neither templates (`codec.py`), nor models (`engines/`), nor rewards; `rollout.py` runs many of these at once.

This is also where the three kinds of failure are kept apart: what the policy did wrong comes back to it as an
observation, what failed on our side ends the trajectory with StopReason.ERROR, what the operator did wrong
(RecipeError) or what will not come back (RunStoppedError) ends the run.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeVar

from ppp.engines.base import ContextFullError, GenerationRequest
from ppp.environments import environment_class
from ppp.environments.base import Environment
from ppp.session import ASK_USER, FINISH, Toolbox
from ppp.types import (
    Answer,
    InfrastructureError,
    Observation,
    PPPError,
    RecipeError,
    RunStoppedError,
    StopReason,
    Task,
    Trajectory,
    Turn,
)
from ppp.users.base import User
from ppp.users.crowd import Crowd

if TYPE_CHECKING:
    from ppp.rollout import RolloutPool

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


class Playing:
    """One trajectory while it runs. `context` is the prompt and everything since, the list that the engine reads."""

    def __init__(self, pool: RolloutPool, job: RolloutJob, step: int, crowd: Crowd) -> None:
        self.pool, self.crowd, self.limits, self.task = pool, crowd, pool.limits, job.task
        self.noise_key = noise_key(pool.seed, step, job.row, job.copy)
        self.request_prefix = f"{step:08d}-{job.row:08d}-{job.copy:04d}"  # sorts like (step, row, copy)
        timings = dict.fromkeys(("setup", "generate", "tool", "user", "score", "total"), 0.0)
        self.trajectory = Trajectory(job.task, timings=timings)
        self.context: list[int] = []
        self.num_completion_tokens = 0
        self.user: User | None = None
        self.deadline = asyncio.timeout(self.limits.trajectory_timeout_s)

    async def run(self) -> Trajectory:
        """Play the session to its end: the one place where any failure of ours becomes StopReason.ERROR."""
        started = time.perf_counter()
        try:
            async with self.deadline:
                await self._play()
        except Exception as error:  # an environment, a user or an engine may raise anything
            self._stop_cancelled(error)
            end = _end_of_run(error)
            if end is not None:
                raise end from None
            self._fail(error)
        if not self.num_completion_tokens:
            self._append_masked_end()
        self.trajectory.timings["total"] = time.perf_counter() - started
        return self.trajectory

    async def _play(self) -> None:
        trajectory, pool = self.trajectory, self.pool
        options = pool.environment_options.get(self.task.environment)
        environment_type = environment_class(self.task.environment, options)
        self.tools = Toolbox.of(environment_type, pool.interaction)
        trajectory.prompt_ids = pool.prompt_ids(self.task)
        if len(trajectory.prompt_ids) > self.limits.max_prompt_tokens:
            trajectory.stop_reason, trajectory.productivity = StopReason.PROMPT_TOO_LONG, 0.0
            return
        self.context = list(trajectory.prompt_ids)
        if pool.interaction:
            self.user = self.crowd.invite(self.task, pool.seed)
        environment = environment_type(self.task, options)
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
        try:
            turn, problem = await self._generate()
        except ContextFullError:
            return StopReason.MAX_TOKENS if turns else StopReason.PROMPT_TOO_LONG
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
        work = self.pool.engine.generate(request)
        if self.pool.engine.takes_time:
            generation = await self._unhurried("generate", work)
        else:
            generation = await self._timed("generate", None, work)
        ids, logprobs = generation.token_ids, generation.logprobs
        if not 1 <= len(ids) <= request.max_tokens or len(ids) != len(logprobs):
            raise InfrastructureError(
                f"engine: {len(ids)} tokens with {len(logprobs)} log-probabilities for a limit of {request.max_tokens}"
            )
        self._append(ids)
        parsed = generation.parsed or self.pool.codec.parse(ids, self.tools.specs)
        turn = Turn(ids, logprobs, parsed.message, call=parsed.call, truncated=not parsed.closed)
        turn.num_tokens = generation.num_tokens
        return turn, parsed.error

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
            turn.answer = await self._ask(self.user, question)
            return Observation(turn.answer.text)
        return await self._timed("tool", self.limits.tool_timeout_s, environment.step(call))

    async def _ask(self, user: User, question: str) -> Answer:
        """The user's answer, under the deadlines of answer and session unless the user is a person."""
        reply = user.answer(question, self.trajectory.turns[:-1])
        if user.takes_time:
            return await self._unhurried("user", reply)
        return await self._timed("user", self.limits.user_timeout_s, reply)

    async def _unhurried(self, kind: str, work: Awaitable[T]) -> T:
        """Like `_timed`, for what a person does: the session's deadline waits, too."""
        now = asyncio.get_running_loop().time
        left = (self.deadline.when() or now()) - now()
        self.deadline.reschedule(None)
        try:
            return await self._timed(kind, None, work)
        finally:
            self.deadline.reschedule(now() + left)

    async def _timed(self, kind: str, timeout_s: float | None, work: Awaitable[T]) -> T:
        """Await `work` under a deadline and add its seconds to the timings of its kind."""
        started = time.perf_counter()
        deadline = asyncio.timeout(timeout_s)
        try:
            async with deadline:
                return await work
        except TimeoutError as error:
            if deadline.expired():
                raise InfrastructureError(
                    f"{kind}: no result within {timeout_s:g} s", kind=f"{kind}_timeout_s"
                ) from error
            raise
        finally:
            self.trajectory.timings[kind] += time.perf_counter() - started

    @asynccontextmanager
    async def _opened(self, environment: Environment) -> AsyncIterator[None]:
        """Like `async with environment`, but with deadlines, and closed also when its set-up failed half-way."""
        try:
            await self._timed("setup", self.limits.setup_timeout_s, environment.setup())
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

    def _fail(self, error: Exception) -> None:
        """Leave the session out of the batch, saying why."""
        trajectory = self.trajectory
        if self.deadline.expired():
            seconds = self.limits.trajectory_timeout_s
            error = InfrastructureError(f"trajectory_timeout_s: over {seconds:g} s", kind="trajectory_timeout_s")
        text = f"{type(error).__name__}: {error}"
        expected = isinstance(error, InfrastructureError)
        if trajectory.productivity is not None:  # only closing the environment failed: the session itself is whole
            logger.warning("%s: after scoring: %s", self.task.task_id, text, exc_info=not expected)
            return
        trajectory.stop_reason, trajectory.error = StopReason.ERROR, text
        trajectory.error_kind = error.kind if isinstance(error, InfrastructureError) else type(error).__name__
        logger.warning("%s: left out: %s", self.task.task_id, text, exc_info=not expected)


def _end_of_run(error: BaseException | None) -> PPPError | None:
    """The error that ends the run, if it is this one or was overtaken by this one while a session was closed."""
    while error is not None:
        if isinstance(error, (RecipeError, RunStoppedError)):
            return error
        error = error.__context__
    return None
