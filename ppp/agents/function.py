"""A Python function as the agent: whatever it does inside, it gets the conversation and returns one turn.

    def agent(messages, tools):
        completion = client.chat.completions.create(model="...", messages=messages, tools=tools)
        return completion.choices[0].message.model_dump()

An exception in it fails the session, which is left out; a return value of another kind ends the run.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ppp.agents.base import Agent, AgentTurn, Messages
from ppp.agents.turns import native_turn, text_turn
from ppp.chat.messages import SaidTurn, read_message
from ppp.encoder import clean
from ppp.types import RecipeError, ToolSpec

Returned = str | Mapping[str, Any] | AgentTurn
AgentFunction = Callable[[list[dict[str, Any]], list[dict[str, Any]]], Returned | Awaitable[Returned]]
ALLOWED = "an assistant message as a dict, a text with the call written into it, or an AgentTurn"


class FunctionAgent(Agent):
    """Plays what a function returns.

    Args:
        function: `(messages, tools) -> turn`, both as OpenAI's protocol has them; the objects are its own to change.
            An async one runs in the event loop, another one in a thread, several at once. A turn is an assistant
            message (`{"content": ..., "tool_calls": [...]}`), a text in which the call is written as
            `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, or an `AgentTurn`.
        name: for tables and results.
    """

    def __init__(self, function: AgentFunction, name: str = "function") -> None:
        if not callable(function):
            raise RecipeError(f"agent: {function!r} is not allowed; a function of messages and tools")
        self.function, self._name = function, name
        self._is_async = inspect.iscoroutinefunction(function)

    @property
    def name(self) -> str:
        return self._name

    async def act(self, messages: Messages, tools: Sequence[ToolSpec], *, max_tokens: int, seed: int) -> AgentTurn:
        """Take one turn.

        Raises:
            RecipeError: the function returned something that is no turn.
        """
        conversation = [dict(message) for message in messages]
        offered = [tool.as_openai() for tool in tools]
        returned: Any
        if self._is_async:
            returned = self.function(conversation, offered)
        else:
            returned = await asyncio.to_thread(self.function, conversation, offered)
        if inspect.isawaitable(returned):
            returned = await returned
        return self._turn(returned, tools)

    def _turn(self, returned: Any, tools: Sequence[ToolSpec]) -> AgentTurn:
        if isinstance(returned, AgentTurn):
            return returned
        if isinstance(returned, str):
            return text_turn(SaidTurn(clean(returned)), tools)
        if not isinstance(returned, Mapping):
            kind = type(returned).__name__
            hint = "; return message.model_dump()" if kind == "ChatCompletionMessage" else ""
            raise RecipeError(f"agent {self.name!r} returned {kind}, which is not allowed; {ALLOWED}{hint}")
        if "content" not in returned and "tool_calls" not in returned:
            shown = ", ".join(map(str, returned)) or "nothing"
            raise RecipeError(f"agent {self.name!r} returned a dict with {shown}; allowed: {ALLOWED}")
        try:
            return native_turn(read_message(returned))
        except ValueError as problem:
            raise RecipeError(
                f"agent {self.name!r} returned a dict that is no assistant message: {problem}; allowed: {ALLOWED}"
            ) from None
