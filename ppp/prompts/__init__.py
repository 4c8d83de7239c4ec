"""Every prompt of the package is a file in this folder; nothing is written inline. `load_prompt` reads one."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

from ppp.types import RecipeError


def load_prompt(name: str | Path) -> str:
    """The text of a prompt, without the newline at its end.

    Args:
        name: of a file in this folder, or the path of a file elsewhere, as environments outside of the package have it.

    Raises:
        FileNotFoundError: there is no such prompt in this folder.
        RecipeError: the file elsewhere cannot be read.
    """
    if isinstance(name, str):
        return _shipped(name)
    try:
        return name.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"system_prompt: {str(name)!r} cannot be read ({error})") from error


@cache
def _shipped(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8").rstrip("\n")
