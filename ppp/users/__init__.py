"""The table of users. Adding one: a file beside this one and a line in the table.

A value is a class or where to find it; modules are imported when they are asked for. `base.py` says what a user is,
`scripted.py` is the one that needs no model.
"""

from __future__ import annotations

from importlib import import_module

from ppp.types import RecipeError
from ppp.users.base import User

USERS: dict[str, str | type[User]] = {
    "human": "ppp.users.human:HumanUser",
    "llm": "ppp.users.llm:LLMUser",
    "scripted": "ppp.users.scripted:ScriptedUser",
}


def user_class(name: str) -> type[User]:
    """The class behind a name of the table.

    Raises:
        RecipeError: no such user.
    """
    if name not in USERS:
        raise RecipeError(f"user: {name!r} is unknown, allowed are {', '.join(sorted(USERS))}")
    entry = USERS[name]
    if isinstance(entry, str):
        module, _, attribute = entry.partition(":")
        found: type[User] = vars(import_module(module))[attribute]
        return found
    return entry
