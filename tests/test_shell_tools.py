from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from ppp.environments.sandbox import BubblewrapSandbox, SandboxLimits
from ppp.environments.shell_tools import SHELL_TOOLS, ShellTools
from ppp.session import Toolbox
from ppp.types import Observation, ToolCall

FILES: dict[str, bytes] = {
    "setup.py": b"from setuptools import setup\n\nsetup()\n",
    "no_newline.py": b"one = 1\ntwo = 2",
    "empty.py": b"",
    "latin.py": "# caf\u00e9\nx = 1\n".encode("latin-1"),
    "windows.py": b"a = 1\r\nb = 2\r\n",
    "image.png": b"\x89PNG\0\0\1\2",
    "many.py": b"".join(b"value_%d = %d\n" % (number, number) for number in range(1, 3001)),
    "pkg/__init__.py": b"",
    "pkg/a space.py": b"spaced = True\n",
    "pkg/sub/deep/er.py": b"deep = True\n",
    "-dash.py": b"dash = True\n",
    "$(touch pwned).py": b"quoted = True\n",
    "it's; true.py": b"single = True\n",
    ".hidden/secret.py": b"hidden = True\n",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools") / "tree"  # what pytest makes is closed to others
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "link.py").symlink_to("setup.py")
    (folder / "dangling.py").symlink_to("nowhere.py")
    return folder


@pytest.fixture
def play(tree: Path) -> Callable[..., list[Observation]]:
    """Carries out calls one after the other in one sandbox, after the checks that the pool makes."""

    def play(*calls: tuple[str, dict[str, Any]], **limits: Any) -> list[Observation]:
        async def session() -> list[Observation]:
            async with BubblewrapSandbox(tree, SandboxLimits(**limits)) as sandbox:
                tools = ShellTools(sandbox)
                return [await tools.call(ToolCall(name, arguments)) for name, arguments in calls]

        toolbox = Toolbox(SHELL_TOOLS)
        assert [toolbox.mistake(ToolCall(name, arguments)) for name, arguments in calls] == [None] * len(calls)
        return asyncio.run(session())

    return play


def bash(command: str, **arguments: Any) -> tuple[str, dict[str, Any]]:
    return "execute_bash", {"command": command, **arguments}


def view(path: str, *view_range: int, **arguments: Any) -> tuple[str, dict[str, Any]]:
    ranged = {"view_range": list(view_range)} if view_range else {}
    return "str_replace_editor", {"command": "view", "path": path, **ranged, **arguments}


# ---------------------------------------------------------------- the shell


BASH: dict[str, tuple[str, str, bool]] = {
    "output": ("echo out; echo err >&2", "out\nerr", False),
    "nothing to say": ("true", "[no output]", False),
    "no match is no mistake": ("grep -n nothing_like_it setup.py", "[exit status 1]", False),
    "output and status": ("echo partly; exit 3", "partly\n[exit status 3]", False),
    "no such program": ("nope", "bash: line 1: nope: command not found\n[exit status 127]", True),
    "no program": ("./setup.py", "bash: line 1: ./setup.py: Permission denied\n[exit status 126]", True),
    "killed": ("kill -9 $$", "[exit status 137]", False),
    "several lines": ("cd pkg\npwd", "/testbed/pkg", False),
    "repeated lines": ("yes | head -n 9", "y\n[the line above comes 8 more times]", False),
    "control characters": ("printf 'a\\033[31mb\\0'", "a\\x1b[31mb\\x00", False),
    "no UTF-8": ("printf 'caf\\351'", "caf\ufffd", False),
    "blank": (" \n ", "The command is blank. Nothing runs on between two calls.", True),
}


@pytest.mark.parametrize("name", BASH)
def test_what_a_command_does_comes_back(play: Callable[..., list[Observation]], name: str) -> None:
    command, text, is_error = BASH[name]
    assert play(bash(command)) == [Observation(text, is_error)]


def test_the_working_directory_and_own_files_stay_and_variables_do_not(play: Callable[..., list[Observation]]) -> None:
    seen = play(bash("cd pkg; name=value; echo note >/tmp/note"), bash("pwd; cat /tmp/note; echo [$name]"))
    assert seen[1] == Observation("/testbed/pkg\nnote\n[]")


def test_a_command_that_does_not_end_is_stopped_and_the_session_goes_on(
    play: Callable[..., list[Observation]],
) -> None:
    stopped, later, longer = play(bash("echo begun; sleep 60", timeout=0.3), bash("echo on"), bash("sleep 60; echo no",
        timeout=1000), timeout_s=1)  # fmt: skip
    assert stopped == Observation("begun\n[The command was stopped after 0.3 seconds.]", is_error=True)
    assert later == Observation("on")
    assert longer == Observation("[The command was stopped after 1 seconds.]", is_error=True)


def test_long_output_is_cut_in_the_middle_with_a_note(play: Callable[..., list[Observation]]) -> None:
    (seen,) = play(bash("cat many.py; head -c 500 /dev/zero | tr '\\0' x"), max_output_chars=400, max_line_chars=50)
    lines = seen.text.split("\n")
    assert lines[0] == "value_1 = 1" and len(seen.text) < 600
    assert [line for line in lines if "are left out here" in line]
    assert lines[-1] == "x" * 50 + " [450 more characters in this line]"


def test_the_tree_cannot_be_written_to(play: Callable[..., list[Observation]], tree: Path) -> None:
    (seen,) = play(bash("echo x >new.py; rm setup.py; sed -i s/setup/x/ setup.py; true"))
    assert seen.text.count("Read-only file system") == 3
    assert (tree / "setup.py").read_bytes() == FILES["setup.py"] and not (tree / "new.py").exists()


# ---------------------------------------------------------------- the viewer


def numbered(*lines: str, first: int = 1) -> str:
    return "\n".join(f"{number:>6}\t{line}" for number, line in enumerate(lines, start=first))


SETUP = ("from setuptools import setup", "", "setup()")
VIEWS: dict[str, tuple[tuple[str, dict[str, Any]], str]] = {
    "a file": (view("/testbed/setup.py"), "/testbed/setup.py, lines 1 to 3 of 3\n" + numbered(*SETUP)),
    "from the root of the repository": (
        view(" setup.py "),
        "/testbed/setup.py, lines 1 to 3 of 3\n" + numbered(*SETUP),
    ),
    "a range": (view("setup.py", 2, 3), "/testbed/setup.py, lines 2 to 3 of 3\n" + numbered(*SETUP[1:], first=2)),
    "to the end": (view("setup.py", 3, -1), "/testbed/setup.py, lines 3 to 3 of 3\n" + numbered(SETUP[2], first=3)),
    "beyond the end": (
        view("setup.py", 3, 10**40),
        "/testbed/setup.py, lines 3 to 3 of 3\n" + numbered(SETUP[2], first=3),
    ),
    "one line of many": (
        view("many.py", 2000, 2000),
        "/testbed/many.py, lines 2000 to 2000 of 3000\n" + numbered("value_2000 = 2000", first=2000),
    ),
    "no newline at the end": (
        view("no_newline.py"),
        "/testbed/no_newline.py, lines 1 to 2 of 2\n" + numbered("one = 1", "two = 2"),
    ),
    "an empty file": (view("empty.py"), "/testbed/empty.py is empty"),
    "no UTF-8": (view("latin.py"), "/testbed/latin.py, lines 1 to 2 of 2\n" + numbered("# caf\ufffd", "x = 1")),
    "other line ends": (view("windows.py"), "/testbed/windows.py, lines 1 to 2 of 2\n" + numbered("a = 1", "b = 2")),
    "a link": (view("link.py", 1, 1), "/testbed/link.py, lines 1 to 1 of 3\n" + numbered(SETUP[0])),
    "a space": (view("pkg/a space.py"), "/testbed/pkg/a space.py, lines 1 to 1 of 1\n" + numbered("spaced = True")),
    "a dash": (view("-dash.py"), "/testbed/-dash.py, lines 1 to 1 of 1\n" + numbered("dash = True")),
    "what a shell would expand": (
        view("$(touch pwned).py"),
        "/testbed/$(touch pwned).py, lines 1 to 1 of 1\n" + numbered("quoted = True"),
    ),
    "what ends a string": (
        view("it's; true.py"),
        "/testbed/it's; true.py, lines 1 to 1 of 1\n" + numbered("single = True"),
    ),
    "a hidden file, by its name": (
        view(".hidden/secret.py"),
        "/testbed/.hidden/secret.py, lines 1 to 1 of 1\n" + numbered("hidden = True"),
    ),
    "a directory": (
        view("pkg"),
        "/testbed/pkg, two levels deep, without hidden names:\n__init__.py\na space.py\nsub/\nsub/deep/",
    ),
    "parameters of other commands": (
        view("empty.py", file_text="", old_str=None),
        "/testbed/empty.py is empty",
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_view_shows(play: Callable[..., list[Observation]], name: str) -> None:
    call, text = VIEWS[name]
    assert play(call) == [Observation(text)]


VIEW_MISTAKES: dict[str, tuple[tuple[str, dict[str, Any]], str]] = {
    "missing": (view("nowhere.py"), "There is no file or directory /testbed/nowhere.py."),
    "a link to nothing": (view("dangling.py"), "There is no file or directory /testbed/dangling.py."),
    "no file": (view("/dev/null"), "/dev/null is not a file that can be read."),
    "binary": (view("image.png"), "/testbed/image.png is a binary file."),
    "lines of a directory": (view("pkg", 1, 2), "/testbed/pkg is a directory; view_range is for files."),
    "after the end": (view("setup.py", 4, 9), "Line 4 cannot be shown: /testbed/setup.py has lines 1 to 3."),
    "line 0": (view("setup.py", 0, 9), "view_range [0, 9] makes no sense"),
    "backwards": (view("setup.py", 3, 2), "view_range [3, 2] makes no sense"),
    "outside": (view("../etc/shadow"), "There is no file or directory /etc/shadow."),
    "of the trainer": (view(__file__), f"There is no file or directory {__file__}."),
    "another command": (
        ("str_replace_editor", {"command": "create", "path": "/testbed/new.py", "file_text": "x = 1"}),
        "There is no command 'create': the repository can only be read.",
    ),
}


@pytest.mark.parametrize("name", VIEW_MISTAKES)
def test_what_cannot_be_viewed_is_the_agents_mistake(play: Callable[..., list[Observation]], name: str) -> None:
    call, text = VIEW_MISTAKES[name]
    (seen,) = play(call)
    assert seen.is_error and seen.text.startswith(text)


def test_viewing_leaves_the_working_directory_alone(play: Callable[..., list[Observation]]) -> None:
    assert play(bash("cd pkg"), view("sub"), bash("pwd"))[2] == Observation("/testbed/pkg")


def test_a_long_file_keeps_its_numbers_around_the_cut(play: Callable[..., list[Observation]]) -> None:
    (seen,) = play(view("many.py"), max_output_chars=2000)
    assert seen.text.startswith("/testbed/many.py, lines 1 to 3000 of 3000\n     1\tvalue_1 = 1")
    assert seen.text.endswith("  3000\tvalue_3000 = 3000")
    assert "are left out here" in seen.text and len(seen.text) < 2200


# ---------------------------------------------------------------- the rest


def test_a_thought_changes_nothing(play: Callable[..., list[Observation]]) -> None:
    assert play(("think", {"thought": "It may be in setup.py."})) == [Observation("Noted.")]


def test_names_and_parameters_are_those_that_models_know() -> None:
    for spec in SHELL_TOOLS:
        Draft202012Validator.check_schema(dict(spec.parameters))
    parameters = {spec.name: list(spec.parameters["properties"]) for spec in SHELL_TOOLS}
    assert parameters == {
        "execute_bash": ["command", "timeout"],
        "str_replace_editor": ["command", "path", "view_range"],
        "think": ["thought"],
    }


@pytest.mark.parametrize(
    "call",
    [bash("ls", timeout=0), bash("ls", timeout="soon"), ("execute_bash", {}), view("a.py", 1), view("a.py", 1, 2, 3),
     ("str_replace_editor", {"path": "a.py"}), ("think", {"thought": 5})],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_told_before_anything_runs(call: tuple[str, dict[str, Any]]) -> None:
    assert Toolbox(SHELL_TOOLS).mistake(ToolCall(*call))
