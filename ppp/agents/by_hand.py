"""A session whose turns somebody else takes: for people who bring a rollout, or a trainer, of their own.

    async with ville.session(task) as session:
        turn = await session.call("ask_user", query="Which module?")
        turn = await session.send(message)  # of a model: {"content": ..., "tool_calls": [...]}
    session.score["reward"]

It is played by the same code as every other session (`ppp/playing.py`), with its limits, users and kinds of failure;
only its engine waits to be told each turn. Evaluating a whole agent is `ppp/userville.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from ppp.agents.base import AgentTurn
from ppp.agents.build import build_message_pool
from ppp.agents.function import FunctionAgent, Returned
from ppp.playing import Playing
from ppp.rewards import RewardSettings, score_trajectory
from ppp.rollout import RolloutJob
from ppp.session import Limits
from ppp.types import InfrastructureError, Task, ToolCall, Trajectory, Turn
from ppp.users.crowd import Crowd


class SessionByHand:
    """One session, open between `async with` and its end; all of it in one event loop.

    Args:
        task: to be played.
        number: tells sessions of the same task apart.
        limits: of the session; its seconds include those of whoever takes the turns.
        crowd: who plays the user.
        rewards: how it is scored.
        others: arguments of `build_message_pool`.

    Attributes:
        messages: the conversation so far, as OpenAI's protocol has it, without a turn that ended it; the first ones are
            the prompt.
        tools: what can be called, `ask_user` and `finish` included, in the same form.
        turns: what was done so far, and what came back.
        trajectory: the finished session; None while it runs.
        score: the terms of the reward and their sum; None while it runs, and where infrastructure failed.
    """

    def __init__(
        self,
        task: Task,
        *,
        number: int,
        limits: Limits,
        crowd: Crowd,
        rewards: RewardSettings,
        **others: Any,
    ) -> None:
        self.rewards = rewards
        self.messages: list[dict[str, Any]] = []
        self.tools: list[dict[str, Any]] = []
        self.trajectory: Trajectory | None = None
        self._playing = Playing(
            build_message_pool(FunctionAgent(self._take), limits, crowd=crowd, **others),
            RolloutJob(task, row=number, copy=0),
            0,
            crowd,
        )
        self._wanted, self._told = asyncio.Event(), asyncio.Queue[Returned]()

    @property
    def turns(self) -> Sequence[Turn]:
        return self._playing.trajectory.turns

    @property
    def is_over(self) -> bool:
        return self.trajectory is not None

    @property
    def score(self) -> Mapping[str, float] | None:
        return None if self.trajectory is None else score_trajectory(self.trajectory, self.rewards)

    async def call(self, name: str, /, **arguments: Any) -> Turn:
        """Take a turn that calls a tool; see `send`."""
        return await self.send(AgentTurn("", ToolCall(name, arguments)))

    async def send(self, turn: Returned) -> Turn:
        """Take a turn, and wait for what comes back.

        Args:
            turn: an assistant message, a text with its call written into it, or an `AgentTurn`.

        Returns:
            The turn with its `observation`, and with the user's `answer` where it asked; the observation is None where
            the session has ended.

        Raises:
            InfrastructureError: something of ours failed; the session has ended, and must not be trained on.
            RecipeError: `turn` is none of these.
        """
        if self.is_over:
            raise RuntimeError("the session has ended: no turn can be taken")
        self._wanted.clear()
        self._told.put_nowait(turn)
        await self._until_wanted()
        if self.trajectory is not None and self.trajectory.failed:
            raise InfrastructureError(str(self.trajectory.error), kind=str(self.trajectory.error_kind))
        return self.turns[-1]

    async def __aenter__(self) -> Self:
        self._played = asyncio.create_task(self._playing.run())
        await self._until_wanted()
        if self.trajectory is not None and self.trajectory.failed:
            raise InfrastructureError(str(self.trajectory.error), kind=str(self.trajectory.error_kind))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the environment; a session that was left before its end has no score."""
        self._played.cancel()
        await asyncio.wait([self._played])

    async def _take(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Returned:
        """The session asks for its next turn."""
        self.messages, self.tools = messages, tools
        self._wanted.set()
        return await self._told.get()

    async def _until_wanted(self) -> None:
        """Wait until the next turn is asked for, or the session has ended."""
        wanted = asyncio.create_task(self._wanted.wait())
        try:
            await asyncio.wait([wanted, self._played], return_when=asyncio.FIRST_COMPLETED)
        finally:
            wanted.cancel()
        if self._played.done():
            self.trajectory = self._played.result()
