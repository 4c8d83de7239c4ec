"""How a tool call is written in text: one row per dialect in `CALL_FORMATS`, each with a reader and a writer.

Knows nothing of tokens or templates (that is `codec.py`, which comes next) and checks no arguments against a schema
(that is the rollout's): a call that can be read is returned, one that cannot raises `CallSyntaxError` with a sentence
for the policy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppp.encoder import Segment
from ppp.types import PPPError, RecipeError, ToolCall, ToolSpec


class CallSyntaxError(PPPError):
    """A tool call that cannot be read; the text is shown to the policy. `end` is where reading goes on."""

    def __init__(self, message: str, end: int) -> None:
        super().__init__(message)
        self.end = end


@dataclass(frozen=True, slots=True)
class CallFormat:
    """One dialect of tool calls.

    Attributes:
        opening: the text that starts a call.
        closing: the text that ends it.
        example: what the policy is shown when its call could not be read.
        read: (text, position after `opening`, tools by name, format) -> (call, position after the call).
        write: (call, format) -> segments, from `opening` to `closing`.
        signs: texts that all stand in the chat template of a model that writes this dialect.
        thought_opening: the text that starts a thought.
        thought_closing: the text that ends it.
        value_frame: what its templates put before and behind the value of a parameter.
        shows_tools: whether its models learn of their tools from the chat template.
    """

    opening: str
    closing: str
    example: str
    read: Callable[[str, int, Mapping[str, ToolSpec], CallFormat], tuple[ToolCall, int]]
    write: Callable[[ToolCall, CallFormat], list[Segment]]
    signs: tuple[str, ...]
    thought_opening: str = "<think>"
    thought_closing: str = "</think>"
    value_frame: str = ""
    shows_tools: bool = True


_JSON = json.JSONDecoder()
_SPACE = re.compile(r"\s*")
_FUNCTION = re.compile(r"\s*<function=([^<>\n]+)>")
_PARAMETER = re.compile(r"\s*<parameter=([^<>\n]+)>")
# A value may itself hold "</parameter>": it ends at the first one that another parameter or the function's end follows.
_PARAMETER_END = re.compile(r"</parameter>(?=\s*(?:<parameter=|</function>))")
# Templates show past calls with the values as Python prints them, so models write them like that.
_PYTHON_WORDS: dict[str, Any] = {"True": True, "False": False, "None": None}
_FUNCTION_END = re.compile(r"\s*</function>\s*")
_MAX_SHOWN = 80


def _skip(text: str, start: int, closing: str) -> int:
    """Where reading goes on after a call that cannot be read: behind its closing marker, or at the end of the text."""
    position = text.find(closing, start)
    return len(text) if position < 0 else position + len(closing)


def _without_surrogates(value: Any) -> Any:
    """Replace lone surrogates, which JSON escapes can produce and UTF-8 cannot carry."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    return value


def _read_hermes(text: str, start: int, tools: Mapping[str, ToolSpec], fmt: CallFormat) -> tuple[ToolCall, int]:
    begin = _end_of_space(text, start)
    try:
        value, end = _JSON.raw_decode(text, begin)
        value = _without_surrogates(value)
    except json.JSONDecodeError as error:
        message = f"The call is not valid JSON: {error.msg} (character {error.pos - begin})"
        raise CallSyntaxError(message, _skip(text, start, fmt.closing)) from None
    except (ValueError, RecursionError):
        message = "The call is not valid JSON: a number is too long or the nesting too deep"
        raise CallSyntaxError(message, _skip(text, start, fmt.closing)) from None
    end = _end_of_space(text, end)
    if not text.startswith(fmt.closing, end):
        message = f"{fmt.closing} must follow the JSON object of the call at once"
        raise CallSyntaxError(message, _skip(text, end, fmt.closing))
    end += len(fmt.closing)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise CallSyntaxError('The call must be a JSON object with a string "name"', end)
    arguments = value.get("arguments", {})
    if not isinstance(arguments, dict):
        raise CallSyntaxError('"arguments" must be a JSON object', end)
    return ToolCall(value["name"], arguments), end


def _write_hermes(call: ToolCall, fmt: CallFormat) -> list[Segment]:
    arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
    body = f'{{"name": "{call.name}", "arguments": {arguments}}}'
    return [(f"{fmt.opening}\n", True), (body, False), (f"\n{fmt.closing}", True)]


def _end_of_space(text: str, start: int) -> int:
    found = _SPACE.match(text, start)
    return found.end() if found else start


def _typed(text: str, schema: Mapping[str, Any] | None) -> Any:
    """The value of a parameter that was written as plain text, by its declared type; text where that does not fit."""
    declared = (schema or {}).get("type", "string")
    if declared == "string" or (isinstance(declared, list) and "string" in declared):
        return text
    if text.strip() in _PYTHON_WORDS:
        return _PYTHON_WORDS[text.strip()]
    try:
        return _without_surrogates(json.loads(text))
    except (ValueError, RecursionError):
        return text


def _framed(text: str, fmt: CallFormat) -> str:
    """The text of a value as it stands between its tags; `_unframed` gives it back."""
    frame = fmt.value_frame or ("\n" if _is_on_own_lines(text) else "")
    return f"{frame}{text}{frame}"


def _unframed(text: str, fmt: CallFormat) -> str:
    """A value without the line breaks around it; in a dialect without them only a pair counts, a habit of models."""
    if fmt.value_frame:
        return text.removeprefix(fmt.value_frame).removesuffix(fmt.value_frame)
    return text[1:-1] if _is_on_own_lines(text) else text


def _is_on_own_lines(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] == "\n"


def _read_xml(text: str, start: int, tools: Mapping[str, ToolSpec], fmt: CallFormat) -> tuple[ToolCall, int]:
    function = _FUNCTION.match(text, start)
    if function is None:
        message = f"{fmt.opening} must be followed by <function=name>"
        raise CallSyntaxError(message, _skip(text, start, fmt.closing))
    name, position = function[1].strip(), function.end()
    properties = tools[name].parameters.get("properties", {}) if name in tools else {}
    arguments: dict[str, Any] = {}
    while (opening := _PARAMETER.match(text, position)) is not None:
        key = opening[1].strip()
        closing = _PARAMETER_END.search(text, opening.end())
        if closing is None:
            message = f"<parameter={key[:_MAX_SHOWN]}> is not closed by </parameter>"
            raise CallSyntaxError(message, _skip(text, position, fmt.closing))
        if key in arguments:
            message = f"Parameter {key[:_MAX_SHOWN]!r} is given twice"
            raise CallSyntaxError(message, _skip(text, closing.end(), fmt.closing))
        arguments[key] = _typed(_unframed(text[opening.end() : closing.start()], fmt), properties.get(key))
        position = closing.end()
    ending = _FUNCTION_END.match(text, position)
    if ending is None or not text.startswith(fmt.closing, ending.end()):
        message = (
            f"The call must end with </function> and {fmt.closing}, with nothing but <parameter=...> blocks inside"
        )
        raise CallSyntaxError(message, _skip(text, position, fmt.closing))
    return ToolCall(name, arguments), ending.end() + len(fmt.closing)


def _write_xml(call: ToolCall, fmt: CallFormat) -> list[Segment]:
    segments: list[Segment] = [(f"{fmt.opening}\n<function={call.name}>\n", True)]
    for key, value in call.arguments.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if _PARAMETER_END.search(text):
            raise ValueError(f"the argument {key!r} holds what ends an argument in this call format")
        segments += [(f"<parameter={key}>", True), (_framed(text, fmt), False), ("</parameter>\n", True)]
    return [*segments, (f"</function>\n{fmt.closing}", True)]


def _line_parameter(tool: ToolSpec) -> str | None:
    """The one parameter that the "line" dialect can carry: the required one, or the only one; None if there is none."""
    required = list(tool.parameters.get("required", ()))
    names = required or list(tool.parameters.get("properties", {}))
    return names[0] if len(names) == 1 else None


def _read_line(text: str, start: int, tools: Mapping[str, ToolSpec], fmt: CallFormat) -> tuple[ToolCall, int]:
    bracket = text.find(">", start)
    name = text[start:bracket].strip() if bracket >= 0 else ""
    if not name or "<" in name or "\n" in name:
        raise CallSyntaxError("<function=name> is not complete", _skip(text, start, fmt.closing))
    end = text.find(fmt.closing, bracket)
    if end < 0:
        raise CallSyntaxError(f"The call is not closed by {fmt.closing}", len(text))
    value, after = text[bracket + 1 : end].strip(), end + len(fmt.closing)
    # The rollout refuses unknown tools and missing arguments by the schema; here they only have to be readable.
    parameter = _line_parameter(tools[name]) if name in tools else "value"
    return ToolCall(name, {} if parameter is None or not value else {parameter: value}), after


def _write_line(call: ToolCall, fmt: CallFormat) -> list[Segment]:
    if len(call.arguments) > 1:
        raise ValueError(f'the call format "line" carries one argument, not {sorted(call.arguments)}')
    value = "".join(str(value) for value in call.arguments.values())
    if fmt.closing in value:
        raise ValueError(f'an argument of the call format "line" cannot hold {fmt.closing}')
    middle: list[Segment] = [(" ", False), (value, False), (" ", False)] if value else [(" ", False)]
    return [(f"{fmt.opening}{call.name}>", True), *middle, (fmt.closing, True)]


CALL_FORMATS: dict[str, CallFormat] = {
    "xml": CallFormat(
        opening="<tool_call>",
        closing="</tool_call>",
        example="<tool_call>\n<function=tool>\n<parameter=key>\nvalue\n</parameter>\n</function>\n</tool_call>",
        read=_read_xml,
        write=_write_xml,
        signs=("<tool_call>", "<function="),
        value_frame="\n",
    ),
    "seed": CallFormat(
        opening="<seed:tool_call>",
        closing="</seed:tool_call>",
        example="<seed:tool_call>\n<function=tool>\n<parameter=key>value</parameter>\n</function>\n</seed:tool_call>",
        read=_read_xml,
        write=_write_xml,
        signs=("<seed:tool_call>", "<function="),
        thought_opening="<seed:think>",
        thought_closing="</seed:think>",
    ),
    "hermes": CallFormat(
        opening="<tool_call>",
        closing="</tool_call>",
        example='<tool_call>\n{"name": "tool", "arguments": {"key": "value"}}\n</tool_call>',
        read=_read_hermes,
        write=_write_hermes,
        signs=("<tool_call>",),
    ),
    "line": CallFormat(
        opening="<function=",
        closing="</function>",
        example="<function=tool> value </function>",
        read=_read_line,
        write=_write_line,
        signs=("<function=",),
        shows_tools=False,
    ),
}
"""Dialect -> how it is read and written, those with more signs first; who writes which: "xml" Qwen3.5 and Qwen3-Coder,
"seed" Seed-OSS, "hermes" Qwen2.5 and Qwen3, "line" the town's own small model."""


def detect(chat_template: str) -> str | None:
    """The dialect that a chat template asks the model to write, or None where it cannot be told."""
    return next((name for name, fmt in CALL_FORMATS.items() if all(sign in chat_template for sign in fmt.signs)), None)


def check_tools(call_format: str, tools: Sequence[ToolSpec]) -> None:
    """Refuse tools that a dialect cannot call.

    Raises:
        RecipeError: the dialect is "line" and a tool requires several parameters, or one that is not a string.
    """
    if call_format != "line":
        return
    for tool in tools:
        properties = tool.parameters.get("properties", {})
        parameter = _line_parameter(tool)
        is_string = parameter is not None and properties.get(parameter, {}).get("type") == "string"
        if properties and not is_string:
            raise RecipeError(
                f'call_format: "line" cannot carry the parameters {sorted(properties)} of the tool {tool.name!r}; '
                f'allowed are tools with one required string parameter, or the formats "hermes", "xml" and "seed"'
            )
