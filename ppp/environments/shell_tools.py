"""Tools of the OpenHands kind over a sandbox: a shell, a viewer of files, and a place to think.

What a command prints comes back shortened by the sandbox, which notes what it left out. Nothing here edits, and nothing
knows what the agent is after; `func_loc_shell.py` gives these tools to the agent that looks for functions.
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Mapping
from typing import Any

from ppp.environments.sandbox_base import CommandResult, Sandbox
from ppp.types import Observation, ToolCall, ToolSpec

ROOT = "/testbed"  # where the sandbox shows the repository

# The names, and those of the parameters, are what models were trained on. What goes beyond the schemas is let through
# and answered by these tools: models also pass parameters of the commands that are not here.
EXECUTE_BASH = ToolSpec(
    "execute_bash",
    "Run a command in bash. The working directory and the files in /tmp stay from one call to the next; variables and "
    "processes do not. The first working directory is /testbed, the repository, which can only be read.",
    {
        "type": "object",
        "properties": {
            "command": {"type": "string", "description": "the command, of one line or several"},
            "timeout": {
                "type": "number",
                "exclusiveMinimum": 0,
                "description": "seconds after which it is stopped; left out, the most that is allowed",
            },
        },
        "required": ["command"],
    },
)
STR_REPLACE_EDITOR = ToolSpec(
    "str_replace_editor",
    "View a file with line numbers, or what is in a directory, two levels deep and without hidden names.",
    {
        "type": "object",
        "properties": {
            "command": {"type": "string", "description": "view; there is no other command"},
            "path": {"type": "string", "description": "a file or a directory, such as /testbed/setup.py"},
            "view_range": {
                "type": "array",
                "items": {"type": "integer"},
                "minItems": 2,
                "maxItems": 2,
                "description": "the first and the last line of the file to show, from 1; -1 is the end of the file",
            },
        },
        "required": ["command", "path"],
    },
)
THINK = ToolSpec(
    "think",
    "Write down a thought. It changes nothing and shows nothing new.",
    {
        "type": "object",
        "properties": {"thought": {"type": "string", "description": "the thought"}},
        "required": ["thought"],
    },
)
SHELL_TOOLS = (EXECUTE_BASH, STR_REPLACE_EDITOR, THINK)

_MAX_LINE = 10**9  # larger numbers are none to a shell
_CANNOT_RUN = (126, 127)  # what bash says of a command that it cannot run or does not find
_NOT_FOUND, _NO_LINES, _NO_FILE, _BINARY, _OUT_OF_RANGE = range(81, 86)
# $1 path, $2 and $3 first and last line; 0 0 for everything, -1 for the last line of the file.
_VIEW = """(
export LC_ALL=C
if [ -d "$1" ]; then
    [ "$2" = 0 ] || exit 82
    echo "$1, two levels deep, without hidden names:"
    find -H "$1" -mindepth 1 -maxdepth 2 -name '.*' -prune -o '(' -type d -printf '%P/\\n' -o -printf '%P\\n' ')' | sort
    exit 0
fi
[ -e "$1" ] || exit 81
[ -f "$1" ] && [ -r "$1" ] || exit 83
if [ ! -s "$1" ]; then echo "$1 is empty"; exit 0; fi
grep -qI '' -- "$1" || exit 84
lines=$(sed -n '$=' -- "$1") first=$2 last=$3
[ "$first" = 0 ] && first=1 last=$lines
[ "$last" = -1 ] || [ "$last" -gt "$lines" ] && last=$lines
if [ "$first" -gt "$lines" ]; then echo "$lines"; exit 85; fi
echo "$1, lines $first to $last of $lines"
cat -n -- "$1" | sed -n "${first},${last}p;${last}q"
)"""


class ShellTools:
    """Carries out the calls of `SHELL_TOOLS`, whose arguments were already checked against their schemas.

    Args:
        sandbox: open, and not closed here.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def call(self, call: ToolCall) -> Observation:
        """What comes back.

        Raises:
            InfrastructureError: the sandbox is lost.
        """
        if call.name == THINK.name:
            return Observation("Noted.")
        if call.name == STR_REPLACE_EDITOR.name:
            return await self._edit(call.arguments)
        command: str = call.arguments["command"]
        if not command.strip():
            return Observation("The command is blank. Nothing runs on between two calls.", is_error=True)
        timeout_s = call.arguments.get("timeout")
        return _shown(await self._sandbox.run(command, timeout_s=timeout_s))

    async def _edit(self, arguments: Mapping[str, Any]) -> Observation:
        if arguments["command"] != "view":
            problem = f"There is no command {arguments['command']!r}: the repository can only be read. Use view"
            return Observation(f"{problem}, or execute_bash for notes of yours in /tmp.", is_error=True)
        path = posixpath.normpath(posixpath.join(ROOT, arguments["path"].strip()))
        first, last = (min(int(number), _MAX_LINE) for number in arguments.get("view_range") or (0, 0))
        if arguments.get("view_range") and (first < 1 or (last != -1 and last < first)):
            problem = f"view_range [{first}, {last}] makes no sense: the first line is 1, and the last is not before it"
            return Observation(f"{problem} (or -1, the end of the file).", is_error=True)
        script = f"set -- {shlex.quote(path)} {first} {last}\n{_VIEW}"
        result = await self._sandbox.run(script)
        problems = {
            _NOT_FOUND: f"There is no file or directory {path}.",
            _NO_LINES: f"{path} is a directory; view_range is for files.",
            _NO_FILE: f"{path} is not a file that can be read.",
            _BINARY: f"{path} is a binary file.",
            _OUT_OF_RANGE: f"Line {first} cannot be shown: {path} has lines 1 to {result.output}.",
        }
        if result.exit_code in problems:
            return Observation(problems[result.exit_code], is_error=True)
        return _shown(result)


def _shown(result: CommandResult) -> Observation:
    """Output, and under it what else there is to know: the limit that ended the command, or its exit status."""
    notes = [f"[{result.note}]"] if result.note else []
    if result.exit_code:
        notes.append(f"[exit status {result.exit_code}]")
    text = "\n".join([*([result.output] if result.output else []), *notes]) or "[no output]"
    return Observation(text, is_error=bool(result.stopped_by) or result.exit_code in _CANNOT_RUN)
