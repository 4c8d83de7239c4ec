"""Whatever a program hands over as its agent, as something that a pool can play; for `ppp/userville.py`.

A function becomes a `FunctionAgent`, a mapping an endpoint, a name a policy made of rules; an `Agent` stays what it is.
Checkpoints are not played here: they need a recipe, and `ppp evaluate`.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from ppp.agents.base import Agent, AgentTurn, Messages
from ppp.agents.build import build_message_pool
from ppp.agents.endpoint import EndpointAgent
from ppp.agents.function import FunctionAgent
from ppp.baselines import POLICIES, build_policy
from ppp.chat.ledger import ChatLedger
from ppp.checks import refuse
from ppp.codec import Codec
from ppp.engines.scripted import Policy, ScriptedEngine
from ppp.evaluation.agents import CALLS, without_token_limits
from ppp.rollout import RolloutPool
from ppp.session import Limits
from ppp.tiny_model import byte_tokenizer
from ppp.types import RecipeError, RunStoppedError, ToolSpec

T = TypeVar("T")
ALLOWED = "a function of messages and tools, an Agent, an endpoint {model: ..., base_url: ...}, or the name of a policy"


class Guest:
    """An agent and how it is described.

    Args:
        player: an agent that speaks messages, or a policy made of rules.
        description: what a manifest says of it.
        endpoint: the agent itself, where it is a model behind an endpoint.
    """

    def __init__(
        self, player: Agent | Policy, description: Mapping[str, Any], endpoint: EndpointAgent | None = None
    ) -> None:
        self.player, self.description, self.endpoint = player, dict(description), endpoint

    @classmethod
    def of(
        cls,
        agent: Any,
        name: str | None,
        environment: str,
        environment_options: Mapping[str, Any],
        *,
        stop: threading.Event | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> Guest:
        """The agent as it was handed over.

        Args:
            agent: see `ALLOWED`.
            name: for results; None stands for its own.
            environment, environment_options: which it plays.
            stop: set when the caller wants no more turns.
            loop: of the caller, where an agent of the caller's own is awaited.

        Raises:
            RecipeError: it cannot play.
        """
        if isinstance(agent, str):
            if agent not in POLICIES:
                hint = "; a checkpoint is evaluated by `ppp evaluate --agent FOLDER`"
                raise RecipeError(f"agent: {agent!r} is unknown; allowed: {', '.join(POLICIES)}{hint}")
            policy = build_policy(agent, [environment], {environment: environment_options})
            return cls(policy, {"kind": "policy", "name": agent})
        if isinstance(agent, Mapping):
            options = {key: value for key, value in agent.items() if key not in ("kind", "model")}
            endpoint = EndpointAgent.from_options({key: value for key, value in agent.items() if key != "kind"})
            description = {"kind": "endpoint", "name": name or str(agent.get("model", "")), **options}
            return cls(endpoint if stop is None else _Visitor(endpoint, stop, None), description, endpoint)
        if not isinstance(agent, Agent) and not callable(agent):
            raise refuse("agent", agent, ALLOWED)
        player = agent if isinstance(agent, Agent) else FunctionAgent(agent, name or _name_of(agent))
        description = {"kind": "function", "name": name or player.name}
        if stop is None or player.takes_time:
            return cls(player, description)
        # A function that blocks has its thread in the pool; only what is awaited belongs to the caller's loop.
        at_home = isinstance(agent, Agent) or _is_async(agent)
        return cls(_Visitor(player, stop, loop if at_home else None), description)

    @property
    def ledger(self) -> ChatLedger | None:
        """What its model takes."""
        return self.player.ledger if isinstance(self.player, Agent) else None

    def check(self) -> None:
        """Find out whether it can be reached; not to be called inside a running event loop.

        Raises:
            RecipeError: it cannot.
        """
        if isinstance(self.player, Agent):
            asyncio.run(_check(self.player))
        if self.endpoint is not None:
            self.description[CALLS] = self.endpoint.tool_calls  # a folder that is gone on with must have had the same

    def pool(self, limits: Limits, arguments: Mapping[str, Any]) -> RolloutPool:
        """A pool in which it plays.

        Args:
            limits: of a session; those in tokens do not bind a policy made of rules, which writes one for each byte.
            arguments: the others of `RolloutPool`.
        """
        if isinstance(self.player, Agent):
            return build_message_pool(self.player, limits, **arguments)
        codec = Codec.from_tokenizer(byte_tokenizer())
        return RolloutPool(ScriptedEngine(codec, self.player), codec, without_token_limits(limits), **arguments)


class _Visitor(Agent):
    """An agent whose sessions are played in another thread than its own.

    Args:
        agent: who takes the turns.
        stop: ends the run before the next turn.
        loop: where it lives; None lets it live in the loop of the sessions.
    """

    def __init__(self, agent: Agent, stop: threading.Event, loop: asyncio.AbstractEventLoop | None) -> None:
        self.agent, self.stop, self.loop = agent, stop, loop
        self.ledger = agent.ledger

    @property
    def name(self) -> str:
        return self.agent.name

    async def check(self) -> None:
        await self._at_home(self.agent.check())

    async def act(self, messages: Messages, tools: Sequence[ToolSpec], *, max_tokens: int, seed: int) -> AgentTurn:
        if self.stop.is_set():
            raise RunStoppedError("the evaluation was interrupted.")
        return await self._at_home(self.agent.act(messages, tools, max_tokens=max_tokens, seed=seed))

    async def close(self) -> None:
        await self._at_home(self.agent.close())

    async def _at_home(self, work: Coroutine[Any, Any, T]) -> T:
        if self.loop is None:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))


async def _check(agent: Agent) -> None:
    try:
        await agent.check()
    finally:
        await agent.close()  # its connections belong to this event loop


def _name_of(function: Callable[..., Any]) -> str:
    return function.__name__ if inspect.isfunction(function) or inspect.ismethod(function) else type(function).__name__


def _is_async(function: Callable[..., Any]) -> bool:
    called = function if inspect.isfunction(function) or inspect.ismethod(function) else type(function).__call__
    return inspect.iscoroutinefunction(called)
