"""The table of sandboxes, and the check that one can be had here. There is no unsandboxed one, and no fallback to it.

`sandbox_base.py` says what a sandbox is; a value of the table is where to find the class, so that what one kind needs
is not needed by another.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from ppp.environments.sandbox_base import CommandResult, Sandbox, SandboxLimits
from ppp.environments.sandbox_bubblewrap import BubblewrapSandbox
from ppp.environments.sandbox_output import shorten
from ppp.types import RecipeError

__all__ = [
    "SANDBOXES",
    "BubblewrapSandbox",
    "CommandResult",
    "Sandbox",
    "SandboxLimits",
    "check_sandbox",
    "sandbox_class",
    "shorten",
]

SANDBOXES: dict[str, tuple[str, str]] = {  # kind -> its class, and the function that checks whether it can be had
    "bubblewrap": ("ppp.environments.sandbox_bubblewrap:BubblewrapSandbox", "check_bubblewrap"),
    "container": ("ppp.environments.sandbox_container:ContainerSandbox", "check_container"),
}


def sandbox_class(kind: str) -> type[Sandbox]:
    """The class behind a name of the table.

    Raises:
        RecipeError: no such kind.
    """
    found: type[Sandbox] = _entry(kind)[0]
    return found


def check_sandbox(kind: str) -> None:
    """See that a kind of sandbox can be had on this machine, by starting one.

    Raises:
        RecipeError: it cannot, or there is no such kind; says what is missing and how to get it.
    """
    check: Callable[[], None] = _entry(kind)[1]
    check()


def _entry(kind: str) -> tuple[Any, Any]:
    if kind not in SANDBOXES:
        raise RecipeError(f"sandbox: {kind!r} is unknown, allowed are {', '.join(sorted(SANDBOXES))}")
    place, check = SANDBOXES[kind]
    module, _, name = place.partition(":")
    content = vars(import_module(module))
    return content[name], content[check]
