"""What a turn that was written as text says and calls: content, thoughts, and at most one call in one dialect.

It knows neither tokens nor templates. `codec.py` has it read the turns of policies, `agents/text_calls.py` those of
models that write their calls as text; how a dialect is written is in `call_formats.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppp.call_formats import CallFormat, CallSyntaxError
from ppp.types import ToolCall, ToolSpec

CUT_OFF = "The turn was cut off before it ended; a call in it was not executed. Write shorter turns."
NO_CALL = "No tool call found; every turn makes exactly one."


def too_many_calls(num_calls: int) -> str:
    """What a turn with several calls is told."""
    return f"One call per turn: this turn holds {num_calls}, none was executed."


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """What the policy wrote in one turn.

    Attributes:
        message: the turn as a chat message: "content" without the call, "tool_calls" and "reasoning_content" if any.
        call: the one call of the turn; None where there is none that may be executed.
        error: a sentence for the policy where `call` is None.
        closed: the turn ended with the end-of-turn token. A turn that did not never has a call.
    """

    message: dict[str, Any]
    call: ToolCall | None
    error: str | None
    closed: bool


@dataclass(slots=True)
class _Parts:
    """A turn in pieces. Content keeps the text of calls that cannot be read."""

    content: list[str]
    reasoning: list[str]
    calls: list[ToolCall]
    errors: list[str]
    is_thought_open: bool = False


def read_turn(text: str, fmt: CallFormat, tools: Sequence[ToolSpec] = (), *, closed: bool) -> ParsedTurn:
    """Read one turn; never raises, whatever the text is.

    A turn acts through exactly one call, outside of thoughts, and only if it is closed.

    Args:
        text: of the turn; untrusted.
        fmt: the dialect of its calls.
        tools: whose schemas give the types of arguments that the dialect writes as plain text.
        closed: whether the turn came to its end.
    """
    parts = _scan(text, fmt, {tool.name: tool for tool in tools})
    message: dict[str, Any] = {"role": "assistant", "content": "".join(parts.content).strip()}
    reasoning = "\n".join(filter(None, parts.reasoning))
    if reasoning:
        message["reasoning_content"] = reasoning
    num_calls = len(parts.calls) + len(parts.errors)
    if closed and num_calls == 1 and parts.calls:
        call = parts.calls[0]
        function = {"name": call.name, "arguments": dict(call.arguments)}
        message["tool_calls"] = [{"type": "function", "function": function}]
        return ParsedTurn(message, call, None, closed)
    example = f"Write the call as\n{fmt.example}"
    if not closed:
        error = CUT_OFF
    elif num_calls > 1:
        error = too_many_calls(num_calls)
    elif parts.errors:
        error = f"{parts.errors[0]}. {example}"
    elif parts.is_thought_open:
        error = f"No tool call found: the thought was not closed by {fmt.thought_closing}. {example}"
    else:
        error = f"{NO_CALL} {example}"
    return ParsedTurn(message, None, error, closed)


def _scan(text: str, fmt: CallFormat, tools: Mapping[str, ToolSpec]) -> _Parts:
    """Split a turn into content, reasoning, calls, and errors of calls that cannot be read.

    What comes first decides: a thought inside an argument is part of the argument, a call inside a thought is a
    thought. A block that is never closed reaches to the end.
    """
    parts = _Parts([], [], [], [])
    position = 0
    while True:
        thought, start = text.find(fmt.thought_opening, position), text.find(fmt.opening, position)
        if thought < 0 and start < 0:
            parts.content.append(text[position:])
            return parts
        if start < 0 or 0 <= thought < start:
            parts.content.append(text[position:thought])
            end = text.find(fmt.thought_closing, thought)
            parts.is_thought_open = end < 0
            body = text[thought + len(fmt.thought_opening) : None if end < 0 else end]
            parts.reasoning.append(body.strip())
            position = len(text) if end < 0 else end + len(fmt.thought_closing)
            continue
        parts.content.append(text[position:start])
        try:
            call, position = fmt.read(text, start + len(fmt.opening), tools, fmt)
            parts.calls.append(call)
        except CallSyntaxError as error:
            parts.errors.append(str(error))
            parts.content.append(text[start : error.end])
            position = error.end
