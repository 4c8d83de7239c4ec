"""Every prompt of the package is a file in this folder; nothing is written inline. `load_prompt` reads one."""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def load_prompt(name: str) -> str:
    """The text of the prompt file `name`, without the newline at its end.

    Raises:
        FileNotFoundError: there is no such prompt.
    """
    return (resources.files(__package__) / name).read_text(encoding="utf-8").rstrip("\n")
