"""A model behind an OpenAI-compatible endpoint as the agent.

It calls tools as the protocol has it; where an endpoint refuses or ignores tools, it is shown them in the system prompt
and writes its calls as text, which is said in the log and stands in `tool_calls`. What a turn means is read in
`turns.py`, how a request gets through is in `chat/gateway.py`.

Whose failure is what: an empty answer, one without a call, one that was cut off are the agent's, as of any policy. An
answer that a filter of the provider held back says nothing of the agent and, like an outage, leaves the session out. A
conversation that has outgrown the model's context ends its session, which is scored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

from ppp.agents.base import Agent, AgentTurn, Messages
from ppp.agents.turns import as_text, native_turn, text_turn
from ppp.chat.cache import CACHE_MODES, ChatCache
from ppp.chat.checking import tools_problem
from ppp.chat.failures import CONTEXT_LENGTH
from ppp.chat.gateway import ChatEndpoint, ChatGateway, ChatTurn
from ppp.chat.ledger import ChatLedger
from ppp.checks import refuse, refuse_option, refuse_unknown
from ppp.engines.base import ContextFullError
from ppp.types import InfrastructureError, RecipeError, ToolSpec

logger = logging.getLogger(__name__)

ToolCalls = Literal["native", "text"]
TOOL_CALLS = ("auto", "native", "text")
# A turn may take far longer than an answer of a user, and no session has a deadline for it but its own. Attempts are
# many, so that an endpoint that comes back in time costs no session and one that does not ends the run.
DEFAULTS: dict[str, Any] = {"timeout_s": 300.0, "deadline_s": 900.0, "max_retries": 20}
# option -> default; the fields of an endpoint come on top
OWN_OPTIONS: dict[str, Any] = {
    "tool_calls": "auto",
    "cache": "off",
    "cache_path": None,
    "max_cost": None,
    "max_calls": None,
}


class EndpointAgent(Agent):
    """Asks the endpoint for each turn.

    Args:
        endpoint: whom to ask; its `max_tokens`, where set, takes the place of the session's limit on a turn.
        tool_calls: "native", "text", or "auto": native where a small request shows that the endpoint can.
        cache: where answers are kept; None asks every time.
        ledger: where calls are counted, with the budget; None makes one without.
        where: what a recipe calls this agent, for messages.

    Attributes:
        tool_calls: "native" or "text"; None until `check` or the first turn has found out.
        problem: why not native, where that was found out.
    """

    ledger: ChatLedger

    def __init__(
        self,
        endpoint: ChatEndpoint,
        *,
        tool_calls: str = "auto",
        cache: ChatCache | None = None,
        ledger: ChatLedger | None = None,
        where: str = "agent",
    ) -> None:
        if tool_calls not in TOOL_CALLS:
            raise refuse_unknown(f"{where}.tool_calls", tool_calls, TOOL_CALLS)
        self.endpoint, self.where, self._wanted = endpoint, where, tool_calls
        self.gateway = ChatGateway(endpoint, cache=cache, ledger=ledger)
        self.ledger = self.gateway.ledger
        self.tool_calls: ToolCalls | None = "text" if tool_calls == "text" else None
        self.problem = ""
        self._told_of_cuts = False
        self._finding_out = asyncio.Lock()

    @classmethod
    def from_options(cls, options: Mapping[str, Any], where: str = "agent") -> EndpointAgent:
        """An agent from a part of a recipe: fields of `ChatEndpoint` and `OWN_OPTIONS`.

        Raises:
            RecipeError: an unknown option or a value that cannot be used; names `<where>.<option>`.
        """
        known = (*OWN_OPTIONS, *(field.name for field in fields(ChatEndpoint)))
        for name in options:
            if name not in known and name != "api_key":
                raise refuse_option(where, name, known)
        own = {name: options.get(name, default) for name, default in OWN_OPTIONS.items()}
        _check_own(own, where)
        chosen = {name: value for name, value in options.items() if name not in OWN_OPTIONS}
        endpoint = ChatEndpoint.from_options({**DEFAULTS, **chosen}, where)
        try:
            cache = None if own["cache"] == "off" else ChatCache(own["cache_path"], own["cache"])
            ledger = ChatLedger(own["max_cost"], own["max_calls"])
            return cls(endpoint, tool_calls=own["tool_calls"], cache=cache, ledger=ledger, where=where)
        except RecipeError as error:  # of the ledger and the cache, which do not know what they belong to
            text = str(error)
            raise RecipeError(text if text.startswith(where) else f"{where}.{text}") from error

    @property
    def name(self) -> str:
        return self.endpoint.name

    async def check(self) -> None:
        """Send one tiny request, and find out whether the endpoint takes tools, unless answers are replayed.

        Raises:
            RecipeError: it cannot be used, or cannot be used with native calls where nothing else is wanted.
        """
        try:
            await self.gateway.check()
            if self.tool_calls is None:
                await self._find_out()
        except RecipeError as error:
            text = str(error)
            raise error if text.startswith(self.where) else RecipeError(f"{self.where}: {text}") from error
        finally:
            await self.gateway.close()

    async def act(self, messages: Messages, tools: Sequence[ToolSpec], *, max_tokens: int, seed: int) -> AgentTurn:
        if self.tool_calls is None:
            async with self._finding_out:
                if self.tool_calls is None:
                    await self._find_out()
        limit = self.endpoint.max_tokens or max_tokens
        if self.tool_calls == "text":
            turn = await self._ask(as_text(messages, tools), (), limit, seed)
            return text_turn(turn.said, tools, is_cut_off=turn.is_cut_off, num_tokens=turn.num_tokens)
        turn = await self._ask(messages, tools, limit, seed)
        return native_turn(turn.said, is_cut_off=turn.is_cut_off, num_tokens=turn.num_tokens)

    async def close(self) -> None:
        await self.gateway.close()
        if self.gateway.cache is not None:
            self.gateway.cache.close()

    async def _ask(self, messages: Messages, tools: Sequence[ToolSpec], max_tokens: int, seed: int) -> ChatTurn:
        """The next turn; where the context has no room for a whole one, what there is room for.

        Raises:
            ContextFullError: the conversation alone is longer than the context.
        """
        offered = [tool.as_openai() for tool in tools]
        try:
            turn = await self.gateway.take_turn(messages, offered, max_tokens=max_tokens, seed=seed)
            self._tell_of_cuts(turn, max_tokens)
            return turn
        except InfrastructureError as error:
            if error.kind != CONTEXT_LENGTH:
                raise
        try:
            return await self.gateway.take_turn(messages, offered, max_tokens=None, seed=seed)
        except InfrastructureError as error:
            if error.kind != CONTEXT_LENGTH:
                raise
            if not any(message["role"] == "assistant" for message in messages):
                logger.warning("%s: its context is too short for the first turn of a session: %s", self.name, error)
            raise ContextFullError(str(error)) from None

    def _tell_of_cuts(self, turn: ChatTurn, max_tokens: int) -> None:
        """Say once that turns are cut off: a limit that suits one model leaves another no room to think."""
        if turn.is_cut_off and not self._told_of_cuts:
            self._told_of_cuts = True
            logger.warning(
                "%s: a turn was cut off at %d tokens; that is %s.max_tokens, or limits.max_tokens_per_turn",
                self.name,
                max_tokens,
                self.where,
            )

    async def _find_out(self) -> None:
        """Decide between native calls and text; kept in the cache, so that a replay asks as the run did."""
        cache = self.gateway.cache
        is_text = {"model": self.endpoint.model, "tool_calls": "text"}
        if cache is not None and (cache.replays or cache.knows(is_text)):
            self.tool_calls = "text" if cache.knows(is_text) else "native"
            return
        problem = await tools_problem(self.gateway)
        if problem is None:
            self.tool_calls = "native"
            return
        if self._wanted == "native":
            raise refuse(f"{self.where}.tool_calls", "native", f"text or auto, since {self.name} cannot: {problem}")
        logger.warning("%s: its calls are written as text, because %s", self.name, problem)
        self.tool_calls, self.problem = "text", problem
        if cache is not None:
            cache.remember(is_text)


def _check_own(own: Mapping[str, Any], where: str) -> None:
    for name, allowed in (("tool_calls", TOOL_CALLS), ("cache", CACHE_MODES)):
        if not isinstance(own[name], str) or own[name] not in allowed:
            raise refuse_unknown(f"{where}.{name}", own[name], allowed)
    path = own["cache_path"]
    if path is not None and not (isinstance(path, str) and path.strip()):
        raise refuse(f"{where}.cache_path", path, "must be the path of a file")
    for name in ("max_cost", "max_calls"):
        if isinstance(own[name], bool):
            raise refuse(f"{where}.{name}", own[name], "must be a number above 0, or null for no limit")
