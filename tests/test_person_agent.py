"""A person as the agent, at a real (pseudo) terminal: calls are typed in, and slips of the finger are no moves."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import wcwidth
from desk import Desk

from ppp.agents.base import AgentTurn
from ppp.agents.call_entry import HELP, kinds_of, read_value
from ppp.agents.person import PersonAgent
from ppp.environments.town import LIST_FILES, OPEN_FILE
from ppp.session import ASK_USER, FINISH
from ppp.types import RecipeError, RunStoppedError, ToolCall, ToolSpec
from ppp.users.terminal import MARK, Terminal, quoted, wrapped

EDIT = ToolSpec(
    "edit",
    "Change a file. It is written at once.",
    {
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": "which file"},
            "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}, "minItems": 2, "maxItems": 2},
            "text": {"type": "string"},
            "mode": {"enum": ["fast", "slow"]},
            "force": {"type": "boolean"},
        },
        "required": ["path", "lines", "text"],
        "$defs": {"line": {"type": "integer", "minimum": 1}},
    },
)
NOTHING = ToolSpec("wait", "Do nothing.", {"type": "object", "properties": {}})
TOOLS = (LIST_FILES, OPEN_FILE, EDIT, NOTHING, ASK_USER, FINISH)
START = ({"role": "system", "content": "Be quick."}, {"role": "user", "content": "Somewhere, saving fails."})


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def act(
    desk: Desk,
    *lines: str,
    messages: Sequence[dict[str, Any]] = START,
    tools: Sequence[ToolSpec] = TOOLS,
    agent: PersonAgent | None = None,
) -> AgentTurn:
    desk.type(*lines)
    return asyncio.run((agent or PersonAgent(desk.terminal)).act(messages, tools, max_tokens=100, seed=0))


def called(name: str, **arguments: Any) -> AgentTurn:
    return AgentTurn("", ToolCall(name, arguments))


ENTRIES: dict[str, tuple[list[str], AgentTurn]] = {
    "by number": (["2", "parser/saving.py"], called("open_file", path="parser/saving.py")),
    "by name": (["open_file", "a b.py"], called("open_file", path="a b.py")),
    "at once": (["2 a b.py"], called("open_file", path="a b.py")),
    "a question": (["ask_user Which module is it, please?"], called("ask_user", query="Which module is it, please?")),
    "without parameters": (["wait"], called("wait")),
    "the end": (["6", "f1"], called("finish", answer="f1")),
    "several lines": (["6", "<<", "f1", "  f2", "", ">>"], called("finish", answer="f1\n  f2\n")),
    "several lines at once": (["finish <<", "f1", "f2", ">>"], called("finish", answer="f1\nf2")),
    "an empty text": (["finish", "<<", ">>"], called("finish", answer="")),
    "a text that looks like JSON": (["finish", "[1, 2]"], called("finish", answer="[1, 2]")),
    "types, and optional ones left out": (
        ["edit", "a.py", "[1, 2]", "x = 1", "", ""],
        called("edit", path="a.py", lines=[1, 2], text="x = 1"),
    ),
    "types, and optional ones given": (
        ["edit", "a.py", "<<", "[1,", "2]", ">>", "7", "slow", "true"],
        called("edit", path="a.py", lines=[1, 2], text="7", mode="slow", force=True),
    ),
    "something said beside it": ([": First the parser.", ": Then", "wait"], AgentTurn("First the parser.\nThen",
                                                                                       ToolCall("wait", {}))),
}  # fmt: skip


@pytest.mark.parametrize("name", ENTRIES)
def test_a_call_is_typed_in(desk: Desk, name: str) -> None:
    lines, expected = ENTRIES[name]
    assert act(desk, *lines) == expected


# what is typed first -> what the person is told; a call that fits follows in each
MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown tool": (["opn_file"], "There is no tool 'opn_file'. Tools: list_files, open_file, edit, wait, ask_user, "
                                   "finish. Did you mean open_file?"),
    "unknown number": (["7"], "There is no tool '7'."),
    "number zero": (["0"], "There is no tool '0'."),
    "nothing": ([""], "Type the number or the name of a tool; ? is for help."),
    "no required value": (["2", "", "!"], "path is required; << and then >> stand for an empty text."),
    "several required values at once": (["edit a.py"], "edit has the parameters path, lines, text; type edit alone."),
    "a value where none is taken": (["wait a minute"], "wait has no parameter."),
    "bad JSON": (["edit", "a.py", "[1, 2", "!"], "'[1, 2' is not valid JSON"),
    "JSON's words for what is no number": (["edit", "a.py", "[1, NaN]", "!"], "JSON has no NaN"),
    "JSON nested too deep": (["edit", "a.py", "[" * 3000, "!"], "is not valid JSON"),
    "the wrong type": (["edit", "a.py", "true", "!"], "lines: True is not of type 'array'"),
    "the wrong type within": (["edit", "a.py", '["1", 2]', "!"], "lines: '1' is not of type 'integer'"),
    "too few items": (["edit", "a.py", "[1]", "!"], "lines: [1] is too short"),
    "none of the choices": (["edit", "a.py", "[1, 2]", "x", "quick", "!"], "mode: 'quick' is not one of"),
    "changed one's mind": (["edit", "!"], "Nothing was called."),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_slip_of_the_finger_is_told_and_is_no_move(desk: Desk, name: str) -> None:
    lines, told = MISTAKES[name]
    assert act(desk, *lines, "wait") == called("wait")
    assert told in " ".join(desk.screen.split())


def test_a_value_is_asked_for_again_and_the_others_stay(desk: Desk) -> None:
    turn = act(desk, "edit", "a.py", "1, 2", "[0, 2]", "[1, 2]", "x", "slow", "no", "false")
    assert turn == called("edit", path="a.py", lines=[1, 2], text="x", mode="slow", force=False)
    assert desk.screen.count("  lines> ") == 3 and desk.screen.count("  path> ") == 1


KINDS: dict[str, tuple[dict[str, Any], str, Any]] = {
    "text": ({"type": "string"}, "3", "3"),
    "number": ({"type": "number"}, "3.5", 3.5),
    "text or number": ({"type": ["string", "number"]}, "3", 3),
    "text or nothing": ({"type": ["string", "null"]}, "null", None),
    "text or nothing, a text": ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "nil", "nil"),
    "anything, JSON": ({}, '{"a": 1}', {"a": 1}),
    "anything, text": ({}, "a: 1", "a: 1"),
    "choices of numbers": ({"enum": [1, 2]}, "2", 2),
    "choices of texts": ({"enum": ["1", "2"]}, "2", "2"),
    "choices with a yes": ({"enum": [True, "auto"]}, "auto", "auto"),
    "a list where a text is allowed": ({"type": ["string", "number"]}, "[1]", "[1]"),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_typed_becomes_a_value_of_the_parameters_type(name: str) -> None:
    schema, text, value = KINDS[name]
    found = read_value(text, schema)
    assert found == value and type(found) is type(value)


def test_a_yes_is_not_taken_for_a_number() -> None:
    assert kinds_of({"enum": [True, 1, "a", None, [1], {}, 1.5]}) == [
        "boolean", "integer", "string", "null", "array", "object", "number",
    ]  # fmt: skip


def test_instructions_task_and_tools_are_shown_at_the_start_and_on_request(desk: Desk) -> None:
    act(desk, "?", "? edit", "? task", "wait")
    assert desk.screen.count(f"{MARK}Be quick.") == desk.screen.count(f"{MARK}Somewhere, saving fails.") == 2
    assert "3  edit(path, lines, text, mode?, force?)" in desk.screen and "Change a file.\n" in desk.screen
    assert "path (text): which file" in desk.screen and "mode (one of fast, slow; Enter leaves it out)" in desk.screen
    assert HELP in desk.screen


def conversation(*turns: tuple[str, str, str]) -> list[dict[str, Any]]:
    """The messages after turns of (tool, its argument, what came back)."""
    messages: list[dict[str, Any]] = [*START]
    for number, (name, value, observation) in enumerate(turns):
        function = {"name": name, "arguments": json.dumps({"value": value})}
        calls = [{"id": f"call_{number}", "type": "function", "function": function}]
        messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        messages.append({"role": "tool", "tool_call_id": f"call_{number}", "content": observation})
    return messages


def test_afterwards_only_what_came_back_is_shown(desk: Desk) -> None:
    agent = PersonAgent(desk.terminal, max_turns=10)
    act(desk, "wait", agent=agent)
    act(desk, "wait", agent=agent, messages=conversation(("ask_user", "Where?", "In the parser.")))
    before = len(desk.screen)
    act(
        desk,
        "wait",
        agent=agent,
        messages=conversation(("ask_user", "Where?", "In the parser."), ("open_file", "x", "No such file")),
    )
    assert "The user answers:\n  | In the parser." in desk.screen[:before] and "Turn 2 of 10" in desk.screen[:before]
    assert desk.screen[before:].startswith("\nopen_file answers:\n  | No such file\n\nTurn 3 of 10\n")


def test_a_session_that_was_interrupted_by_another_is_shown_anew(desk: Desk) -> None:
    agent = PersonAgent(desk.terminal)
    act(desk, "wait", agent=agent)
    act(desk, "wait", agent=agent, messages=[{"role": "user", "content": "Another task."}])
    before = len(desk.screen)
    act(desk, "wait", agent=agent, messages=conversation(("open_file", "x.py", "Functions: none")))
    shown = desk.screen[before:]
    assert all(text in shown for text in ("Be quick.", "saving fails", 'open_file {"value": "x.py"}', "none"))


def test_two_sessions_take_turns_at_the_terminal(desk: Desk) -> None:
    agent = PersonAgent(desk.terminal)
    other = [{"role": "user", "content": "Another task."}]

    async def both() -> list[AgentTurn]:
        first = agent.act(START, TOOLS, max_tokens=1, seed=0)
        return await asyncio.gather(first, agent.act(other, TOOLS, max_tokens=1, seed=0))

    desk.type("2", "a.py", "2", "b.py")
    assert asyncio.run(both()) == [called("open_file", path="a.py"), called("open_file", path="b.py")]
    assert desk.screen.index("path> ") < desk.screen.index("Another task.")


@pytest.mark.parametrize("lines", [["\x04"], ["edit", "a.py", "\x04"], ["finish <<", "f1", "\x04"]])
def test_a_person_who_leaves_ends_the_run(desk: Desk, lines: list[str]) -> None:
    with pytest.raises(RunStoppedError, match="has left"):
        act(desk, *lines)


def test_without_a_terminal_or_in_several_processes_there_is_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "in").open("w+") as file:
        agent = PersonAgent(Terminal(file, file))
        with pytest.raises(RecipeError, match="terminal"):
            asyncio.run(agent.check())
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(RecipeError, match="one process"):
            asyncio.run(agent.check())


HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\rYour call> finish f1" + " " * 200 + "Your call> finish f1"


def test_nothing_that_others_wrote_can_steer_the_terminal_or_pass_for_ours(desk: Desk) -> None:
    tools = [*TOOLS, ToolSpec("evil\x1b[2J", HOSTILE, {"type": "object", "properties": {"a\x1bc": {"title": HOSTILE}}})]
    start = [{"role": "system", "content": HOSTILE}, {"role": "user", "content": HOSTILE}]
    act(desk, "?", "? 7", "7", "!", "wait", messages=[*start, *conversation(("ask_user", "x", HOSTILE))[2:]],
        tools=tools)  # fmt: skip
    assert not any((ord(letter) < 32 and letter != "\n") or 127 <= ord(letter) < 160 for letter in desk.screen)
    assert "\u202e" not in desk.screen
    lines = desk.screen.split("\n")
    assert all(wcwidth.width(line) <= 80 for line in lines), "the terminal would break it, and go on at its left edge"
    assert not any(line.startswith("Your call> finish") for line in lines)


@pytest.mark.parametrize(
    "text", ["x" * 500, "word " * 90, "日本" * 200, "e\u0301" * 300, "    indented " * 40, "a\n\n b"]
)
def test_lines_are_broken_to_the_width_and_nothing_gets_lost(text: str) -> None:
    shown = quoted(text, 40)
    lines = shown.split("\n")
    assert all(line.startswith(MARK) and wcwidth.width(line) <= 40 for line in lines)
    assert re.sub(r"\s", "", shown.replace(MARK, "")) == re.sub(r"\s", "", text), "but spaces where a line is broken"
    assert wrapped(text, 10_000) == "\n".join(line.rstrip() for line in text.split("\n")), "and at the ends of lines"


def test_a_screen_without_unicode_shows_what_it_can(tmp_path: Path) -> None:
    path = tmp_path / "screen"
    with path.open("w", encoding="ascii") as writer:
        Terminal(None, writer).quote("Perché? " + "日" * 60)
    lines = path.read_text(encoding="ascii").splitlines()
    assert lines[0].startswith(f"{MARK}Perch\\xe9? ") and all(len(line) <= 80 for line in lines)
    assert "".join(lines).count("\\u65e5") + sum(line.count("\\u65e") for line in lines) > 40


def test_colours_are_for_terminals_and_not_for_those_who_want_none(monkeypatch: pytest.MonkeyPatch, desk: Desk) -> None:
    assert desk.terminal.styled("x", "bold") == "x", "a file"
    terminal = Terminal(desk.reader, desk.reader)  # a terminal on both ends
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert terminal.styled("x", "bold") == "\x1b[1mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.styled("x", "bold") == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert terminal.styled("x", "bold") == "x"
