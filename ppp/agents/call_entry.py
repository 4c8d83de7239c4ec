"""How a person at a terminal enters a tool call: a tool by number or name, then a value for each of its parameters.

What is entered is checked against the tool's schema at once, so that a slip of the finger is no move of the game. Who
asks for calls is `person.py`, which comes next.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from ppp.session import Toolbox
from ppp.types import PPPError, ToolCall, ToolSpec
from ppp.users.terminal import Terminal, one_line

BEGIN, END, BACK = "<<", ">>", "!"
HELP = f"""\
Type the number or the name of a tool; you are then asked for its parameters.
  2 some text   calls tool 2 with its one required parameter at once
  : some text   says something beside the next call, such as a plan
  ?             this help        ? 2     what tool 2 does
  ? task        shows the task again
At a parameter: {BEGIN} begins a text of several lines, a line {END} ends it;
{BACK} goes back to the choice of a tool; Enter alone leaves an optional one out.
Ctrl-D leaves. A session that is left before its end is not saved."""

_KINDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "array": "JSON list such as [1, 2]",
    "object": 'JSON object such as {"key": 1}',
    "null": "null",
}
_JSON_KINDS = (
    ("boolean", bool),
    ("integer", int),
    ("number", float),
    ("string", str),
    ("array", list),
    ("object", dict),
    ("null", type(None)),
)


class EntryMistake(PPPError):
    """What was typed cannot be taken; the text says why, and the person is asked again."""


class EntryBack(PPPError):
    """The person wants another tool."""


def kinds_of(schema: Mapping[str, Any]) -> list[str]:
    """The JSON types that a parameter may have, in order; none where the schema does not say."""
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        found = [next(name for name, kind in _JSON_KINDS if isinstance(value, kind)) for value in values]
    elif "type" in schema:
        found = [schema["type"]] if isinstance(schema["type"], str) else list(schema["type"])
    else:
        branches = [branch for word in ("anyOf", "oneOf") for branch in schema.get(word, ())]
        found = [kind for branch in branches for kind in kinds_of(branch)]
    return list(dict.fromkeys(found))


def describe_kind(schema: Mapping[str, Any]) -> str:
    """What is to be typed for a parameter, in a few words."""
    if "enum" in schema:
        return f"one of {', '.join(str(value) for value in schema['enum'])}"
    return " or ".join(_KINDS.get(kind, kind) for kind in kinds_of(schema)) or "text or JSON"


def read_value(text: str, schema: Mapping[str, Any]) -> Any:
    """The value that a person typed for a parameter: the text itself, or JSON where texts are not allowed.

    Raises:
        EntryMistake: it is not JSON, and has to be.
    """
    kinds = kinds_of(schema)
    if kinds == ["string"]:
        return text
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        if "string" in kinds or not kinds:
            return text
        raise EntryMistake(f"{text[:60]!r} is not valid JSON ({error}); expected: {describe_kind(schema)}") from None
    if "string" in kinds and not Draft202012Validator({"type": kinds}).is_valid(value):
        return text  # such as a list, where a text or a number is meant
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


class CallEntry:
    """Asks for one call.

    Args:
        terminal: where.
        tools: what can be called.
        show_task: shows the task once more.
    """

    def __init__(self, terminal: Terminal, tools: Sequence[ToolSpec], show_task: Callable[[], None]) -> None:
        self.terminal, self.tools, self.show_task = terminal, tuple(tools), show_task
        self.toolbox = Toolbox(tools)

    def list_tools(self) -> None:
        """Show the tools by number, with their parameters."""
        for number, tool in enumerate(self.tools, start=1):
            names = ", ".join(name if _is_required(tool, name) else f"{name}?" for name in _properties(tool))
            self.terminal.say(f"{number:>3}  {one_line(f'{tool.name}({names})')}", "bold")
            self.terminal.say(f"{one_line(tool.description).partition('. ')[0].rstrip('.')}.", indent=5)

    async def read(self) -> tuple[str, ToolCall]:
        """What the person says beside the call, and the call, which fits its tool's schema.

        Raises:
            EOFError: the person has left.
        """
        said: list[str] = []
        while True:
            self.terminal.write(self.terminal.styled("Your call> ", "bold"))
            line = await self.terminal.read_line()
            try:
                if line.startswith("?"):
                    self._help(line[1:].strip())
                elif line.startswith(":"):
                    said.append(line[1:].strip())
                    self.terminal.say("This will be said beside your next call.", "dim")
                elif line:
                    return "\n".join(said), await self._call(*_split(line))
                else:
                    raise EntryMistake("Type the number or the name of a tool; ? is for help.")
            except EntryMistake as mistake:
                self._complain(mistake)
            except EntryBack:
                self.terminal.say("Nothing was called.", "dim")

    def _complain(self, mistake: EntryMistake) -> None:
        self.terminal.say(one_line(str(mistake)), "yellow")

    def _help(self, topic: str) -> None:
        if topic == "task":
            self.show_task()
        elif topic:
            self._describe(self._find(topic))
        else:
            self.list_tools()
            self.terminal.say(HELP)

    def _describe(self, tool: ToolSpec) -> None:
        self.terminal.say(one_line(f"{tool.name}: {tool.description}"))
        for name, schema in _properties(tool).items():
            self._describe_parameter(tool, name, schema)

    def _describe_parameter(self, tool: ToolSpec, name: str, schema: Mapping[str, Any]) -> None:
        kind = describe_kind(schema) + ("" if _is_required(tool, name) else "; Enter leaves it out")
        text = schema.get("description", "")
        self.terminal.say(one_line(f"{name} ({kind})" + (f": {text}" if text else "")), indent=2)

    def _find(self, word: str) -> ToolSpec:
        if word.isdecimal() and 1 <= int(word) <= len(self.tools):
            return self.tools[int(word) - 1]
        for tool in self.tools:
            if tool.name == word:
                return tool
        near = difflib.get_close_matches(word, [tool.name for tool in self.tools], n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise EntryMistake(f"{self.toolbox.mistake(ToolCall(word, {}))}{hint}")

    async def _call(self, word: str, rest: str) -> ToolCall:
        tool = self._find(word)
        arguments: dict[str, Any] = {}
        if rest:
            name = _only_parameter(tool)
            arguments[name] = await self._first_value(tool, name, rest)
        else:
            for name, schema in _properties(tool).items():
                await self._ask(tool, name, schema, arguments)
        call = ToolCall(tool.name, arguments)
        mistake = self.toolbox.mistake(call)
        if mistake is not None:
            raise EntryMistake(mistake)
        return call

    async def _first_value(self, tool: ToolSpec, name: str, text: str) -> Any:
        schema = _properties(tool)[name]
        if text == BEGIN:
            text = await self._read_lines()
        return self._checked(tool, name, schema, text)

    async def _ask(self, tool: ToolSpec, name: str, schema: Mapping[str, Any], arguments: dict[str, Any]) -> None:
        """Ask for one parameter until it fits; an optional one may be left out."""
        self._describe_parameter(tool, name, schema)
        while True:
            self.terminal.write(self.terminal.styled(f"  {one_line(name)}> ", "bold"))
            text = await self.terminal.read_line()
            if text == BACK:
                raise EntryBack
            if not text and not _is_required(tool, name):
                return
            try:
                if not text:
                    raise EntryMistake(f"{name} is required; {BEGIN} and then {END} stand for an empty text.")
                arguments[name] = await self._first_value(tool, name, text)
                return
            except EntryMistake as mistake:
                self._complain(mistake)

    async def _read_lines(self) -> str:
        lines: list[str] = []
        while True:
            self.terminal.write(self.terminal.styled("  ... ", "dim"))
            line = await self.terminal.read_row()
            if line.strip() == END:
                return "\n".join(lines)
            lines.append(line)

    def _checked(self, tool: ToolSpec, name: str, schema: Mapping[str, Any], text: str) -> Any:
        value = read_value(text, schema)
        # Within the tool's whole schema, to whose definitions a parameter may refer.
        validator = Draft202012Validator(tool.parameters).evolve(schema=schema)
        error = best_match(validator.iter_errors(value))
        if error is not None:
            raise EntryMistake(f"{name}: {error.message}")
        return value


def _split(line: str) -> tuple[str, str]:
    word, _, rest = line.partition(" ")
    return word, rest.strip()


def _properties(tool: ToolSpec) -> Mapping[str, Mapping[str, Any]]:
    properties: Mapping[str, Mapping[str, Any]] = tool.parameters.get("properties", {})
    return properties


def _is_required(tool: ToolSpec, name: str) -> bool:
    return name in tool.parameters.get("required", ())


def _only_parameter(tool: ToolSpec) -> str:
    """The parameter that a value behind the tool's name is for: the required one, or the only one."""
    names = [name for name in _properties(tool) if _is_required(tool, name)] or list(_properties(tool))
    if len(names) != 1:
        number = "no parameter" if not names else f"the parameters {', '.join(names)}; type {tool.name} alone"
        raise EntryMistake(f"{tool.name} has {number}.")
    return names[0]
