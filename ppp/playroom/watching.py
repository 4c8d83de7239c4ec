"""An engine behind glass: shows each turn of an agent on a terminal, as soon as there is one.

The engine inside neither knows nor minds. What the session came to is shown by `outcome.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ppp.codec import Codec
from ppp.engines.base import Engine, Generation, GenerationRequest
from ppp.environments import environment_class
from ppp.session import ASK_USER, FINISH, Limits, Toolbox
from ppp.turn_reader import ParsedTurn
from ppp.types import ToolCall, Turn
from ppp.users.terminal import Terminal, one_line

MAX_SAID_CHARS = 1500
MAX_OBSERVATION_LINES = 8
MAX_OBSERVATION_CHARS = 600


class WatchedEngine(Engine):
    """Hands everything on to `engine`, and shows what it writes and what that brings about.

    Args:
        engine: what generates.
        codec: reads its tokens.
        terminal: where it is shown.
        limits: of the sessions; tell how many turns there are.
        environment_options: environment name -> options, as the pool has them.
    """

    def __init__(
        self,
        engine: Engine,
        codec: Codec,
        terminal: Terminal,
        limits: Limits,
        environment_options: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.engine, self.codec, self.terminal, self.limits = engine, codec, terminal, limits
        self.environment_options = environment_options
        self.takes_time = engine.takes_time

    @contextmanager
    def phase(self, step: int) -> Iterator[None]:
        with self.engine.phase(step):
            yield

    async def generate(self, request: GenerationRequest) -> Generation:
        """Show what came back from the last turn, let the next one be generated, and show it."""
        if request.turns:
            self._show_observation(request.turns[-1])
        self.terminal.say(f"\nThe agent, turn {len(request.turns) + 1} of {self.limits.max_turns}", "bold")
        generation = await self.engine.generate(request)
        options = self.environment_options.get(request.task.environment)
        tools = Toolbox.of(environment_class(request.task.environment, options), True).specs
        self._show_turn(generation.parsed or self.codec.parse(generation.token_ids, tools))
        return generation

    def set_live(self, num: int) -> None:
        self.engine.set_live(num)

    async def leave_loop(self) -> None:
        await self.engine.leave_loop()

    def close(self) -> None:
        self.engine.close()

    def _show_turn(self, turn: ParsedTurn) -> None:
        for label, text in (("thinks", turn.message.get("reasoning_content")), ("says", turn.message["content"])):
            if text:
                self.terminal.say(f"{label}:", "dim")
                self.terminal.quote(text, MAX_SAID_CHARS)
        if turn.call is not None and not _is_question(turn.call):
            self.terminal.say(f"{'answers' if turn.call.name == FINISH.name else 'calls'}:", "dim")
            self.terminal.quote(call_text(turn.call), MAX_SAID_CHARS)

    def _show_observation(self, turn: Turn) -> None:
        if turn.answer is None and turn.observation is not None:
            self.terminal.say("is told of a mistake:" if turn.is_error else "gets back:", "dim")
            self.terminal.quote(shortened(turn.observation))


def _is_question(call: ToolCall) -> bool:
    """Whether the user is about to be shown it as a question."""
    return call.name == ASK_USER.name and isinstance(call.arguments.get("query"), str)


def call_text(call: ToolCall) -> str:
    """A call as people write it; untrusted."""
    arguments = list(call.arguments.items())
    if call.name == FINISH.name and isinstance(call.arguments.get("answer"), str):
        return str(call.arguments["answer"])
    if any(isinstance(value, str) and "\n" in value for _, value in arguments):
        return "\n".join([one_line(call.name), *(f"{name}:\n{_value(value)}" for name, value in arguments)])
    return f"{one_line(call.name)}({', '.join(f'{name}={_value(value)}' for name, value in arguments)})"


def _value(value: Any) -> str:
    return value if isinstance(value, str) and "\n" in value else json.dumps(value, ensure_ascii=False)


def shortened(text: str) -> str:
    """The beginning of a text, with the number of lines or characters that are left out."""
    lines = text.rstrip("\n").split("\n")
    kept = "\n".join(lines[:MAX_OBSERVATION_LINES])
    if len(kept) > MAX_OBSERVATION_CHARS:
        return f"{kept[:MAX_OBSERVATION_CHARS]}\n[{len(text) - MAX_OBSERVATION_CHARS} more characters]"
    left = len(lines) - MAX_OBSERVATION_LINES
    return f"{kept}\n[{left} more lines]" if left > 0 else kept
