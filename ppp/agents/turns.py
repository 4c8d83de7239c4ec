"""From what a model said to what its turn does: native tool calls, or calls that stand in its text.

A turn acts through exactly one call. What cannot be carried out is the agent's mistake and is told to it in a sentence,
as `turn_reader.py` does for policies. Who asks the models is in `endpoint.py` and `function.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

from ppp.agents.base import AgentTurn, Messages
from ppp.call_formats import CALL_FORMATS
from ppp.chat.messages import SaidTurn, WrittenCall
from ppp.encoder import clean
from ppp.prompts import load_prompt
from ppp.turn_reader import CUT_OFF, NO_CALL, read_turn, too_many_calls
from ppp.types import ToolCall, ToolSpec

TEXT_FORMAT = CALL_FORMATS["hermes"]
UNREADABLE = "unreadable"  # the argument under which arguments that are no JSON object stay in the conversation


class _ArgumentsError(ValueError):
    """Why arguments cannot be used, in words for the agent."""


def native_turn(said: SaidTurn, *, is_cut_off: bool = False, num_tokens: int | None = None) -> AgentTurn:
    """The turn of a model whose calls came apart from its text; the text is not searched for any."""

    def turn(error: str | None, calls: Sequence[ToolCall] = (), call: ToolCall | None = None) -> AgentTurn:
        return AgentTurn(said.text, call, error, is_cut_off, num_tokens, said.reasoning, tuple(calls))

    if is_cut_off:
        return turn(CUT_OFF)
    if not said.calls:
        return turn(NO_CALL)
    if len(said.calls) > 1:
        return turn(too_many_calls(len(said.calls)), [_kept(written) for written in said.calls])
    written = said.calls[0]
    try:
        return turn(None, call=ToolCall(written.name, _arguments(written.arguments)))
    except _ArgumentsError as problem:
        return turn(f"{written.name}: {problem}", [_kept(written)])


def text_turn(
    said: SaidTurn, tools: Sequence[ToolSpec], *, is_cut_off: bool = False, num_tokens: int | None = None
) -> AgentTurn:
    """The turn of a model that writes its calls into its text, outside of thoughts."""
    text = said.text
    opening, closing = TEXT_FORMAT.thought_opening, TEXT_FORMAT.thought_closing
    end = text.find(closing)
    if end >= 0 and opening not in text[:end]:
        text = opening + text  # its chat template has opened the thought, and the server does not know it for one
    parsed = read_turn(text, TEXT_FORMAT, tools, closed=not is_cut_off)
    thoughts = (said.reasoning, parsed.message.get("reasoning_content", ""))
    # A turn that went wrong stays in the conversation as it is, so that the model sees what it wrote.
    shown = said.text.strip() if parsed.call is None else parsed.message["content"]
    reasoning = "\n".join(filter(None, thoughts))
    return AgentTurn(shown, parsed.call, parsed.error, is_cut_off, num_tokens, reasoning)


def as_text(messages: Messages, tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """A conversation for a model without native calls: tools in the system prompt, observations from the user."""
    described = "\n".join(json.dumps(tool.as_openai(), ensure_ascii=False) for tool in tools)
    words = Template(load_prompt("agent_text_calls.txt")).substitute(tools=described, example=TEXT_FORMAT.example)
    first = messages[0] if messages else {}
    is_told = first.get("role") == "system"
    system = f"{first['content']}\n\n{words}" if is_told else words
    rest = messages[1:] if is_told else messages
    return [{"role": "system", "content": system}, *map(_in_text, rest)]


def _in_text(message: Mapping[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": message["content"]}
    text = message["content"]
    for call in message.get("tool_calls", ()):
        function = call["function"]
        made = ToolCall(function["name"], json.loads(function["arguments"]))
        written = "".join(part for part, _ in TEXT_FORMAT.write(made, TEXT_FORMAT))
        text = f"{text}\n{written}" if text else written
    return {"role": message["role"], "content": text}


def _kept(written: WrittenCall) -> ToolCall:
    """A call that is not carried out, as it stays in the conversation: servers refuse arguments that are no JSON."""
    try:
        return ToolCall(written.name, _arguments(written.arguments))
    except _ArgumentsError:
        return ToolCall(written.name, {UNREADABLE: written.arguments})


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of a call; no text at all stands for none.

    Raises:
        _ArgumentsError: it is not one JSON object.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant) if text.strip() else {}
        if isinstance(value, dict):
            return dict(json.loads(clean(json.dumps(value, ensure_ascii=False))))  # escapes may make what is no text
    except json.JSONDecodeError as error:
        raise _ArgumentsError(f"the arguments are not valid JSON: {error.msg} (character {error.pos})") from None
    except _ArgumentsError:
        raise
    except (ValueError, RecursionError):
        raise _ArgumentsError(
            "the arguments are not valid JSON: a number is too long or the nesting too deep"
        ) from None
    raise _ArgumentsError("the arguments must be one JSON object")


def _no_constant(name: str) -> Any:
    raise _ArgumentsError(f"the arguments are not valid JSON: {name} is no value of it")
