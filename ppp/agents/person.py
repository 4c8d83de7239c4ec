"""A person at the terminal as the agent: reads what a model would read and makes the calls. For `ppp play --as agent`.

The person sees the instructions, the task and the tools, then everything that comes back; how a call is typed in is in
`call_entry.py`. Nothing that was written by others can steer the terminal (`ppp/users/terminal.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ppp.agents.base import Agent, AgentTurn, Messages
from ppp.agents.call_entry import CallEntry
from ppp.chat.ledger import world_size
from ppp.checks import refuse
from ppp.session import ASK_USER
from ppp.types import RunStoppedError, ToolSpec
from ppp.users.terminal import LEFT, Terminal, one_line

MAX_READ_CHARS = 40_000  # of one text: the agent has to read what a model would read


class PersonAgent(Agent):
    """The person. Sessions take turns at the terminal, a call at a time.

    Args:
        terminal: None is the one that the program runs in.
        max_turns: of a session, to be shown.
    """

    takes_time: ClassVar[bool] = True

    def __init__(self, terminal: Terminal | None = None, max_turns: int | None = None) -> None:
        self.terminal, self.max_turns = terminal or Terminal(), max_turns
        self._shown: list[Mapping[str, Any]] = []  # the messages on the screen
        self._turn: asyncio.Lock | None = None

    @property
    def name(self) -> str:
        return "person"

    async def check(self) -> None:
        if world_size() > 1:
            raise refuse("agent", "person", "in one process; several cannot share a terminal")
        if not self.terminal.has_person:
            raise refuse("agent", "person", "with a terminal for input and error output; here is none")

    async def act(self, messages: Messages, tools: Sequence[ToolSpec], *, max_tokens: int, seed: int) -> AgentTurn:
        """Show what is new, and wait for the next call.

        Raises:
            RunStoppedError: the person has left.
        """
        if self._turn is None:
            self._turn = asyncio.Lock()
        async with self._turn:
            entry = CallEntry(self.terminal, tools, lambda: self._show(messages[: _num_opening(messages)]))
            self._show_new(messages, entry)
            try:
                text, call = await entry.read()
            except EOFError:
                raise RunStoppedError(LEFT) from None
        return AgentTurn(text, call)

    async def close(self) -> None:
        self._turn = None  # belongs to the event loop that is about to be closed

    def _show_new(self, messages: Messages, entry: CallEntry) -> None:
        """Show what came after the messages on the screen; everything where those were another session's."""
        num_shown = len(self._shown)
        if not num_shown or list(messages[:num_shown]) != self._shown:
            num_shown = 0
        new = [message for message in messages[num_shown:] if not num_shown or message["role"] != "assistant"]
        self._show(new, messages)
        self._shown = list(messages)
        number = 1 + sum(message["role"] == "assistant" for message in messages)
        if not num_shown:
            self.terminal.say("\nYour tools:", "bold")
            entry.list_tools()
            self.terminal.say("? is for help.", "dim")
        of = "" if self.max_turns is None else f" of {self.max_turns}"
        self.terminal.say(f"\nTurn {number}{of}", "dim")

    def _show(self, new: Messages, messages: Messages = ()) -> None:
        for message in new:
            self.terminal.say(f"\n{_heading(message, messages)}:", "bold")
            self.terminal.quote(_text(message), MAX_READ_CHARS)


def _num_opening(messages: Messages) -> int:
    """How many messages stand before the first turn."""
    return next((n for n, message in enumerate(messages) if message["role"] == "assistant"), len(messages))


def _heading(message: Mapping[str, Any], messages: Messages) -> str:
    """Whose words these are."""
    match message["role"]:
        case "system":
            return "Your instructions"
        case "user":
            return "Your task" if not messages or message in messages[: _num_opening(messages)] else "What came back"
        case "assistant":
            return "You"
    name = _tool_of(message, messages)
    return "The user answers" if name == ASK_USER.name else f"{one_line(name)} answers"


def _tool_of(message: Mapping[str, Any], messages: Messages) -> str:
    """The name of the tool whose answer this is."""
    for earlier in messages:
        for call in earlier.get("tool_calls") or ():
            if call["id"] == message.get("tool_call_id"):
                return str(call["function"]["name"])
    return "the tool"


def _text(message: Mapping[str, Any]) -> str:
    calls = [f"{call['function']['name']} {call['function']['arguments']}" for call in message.get("tool_calls") or ()]
    return "\n".join(filter(None, [str(message.get("content") or ""), *calls])) or "(nothing)"
