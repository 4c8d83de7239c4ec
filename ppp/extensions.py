"""Entries of the tables that come from outside of the package: the modules that a recipe names in `imports`, and what
a program hands to `UserVille`.

Such a module writes into a table as one of ours would, `PREFERENCES["polite"] = Preference(...)`, when it is imported.
What can be added, with examples, is in `recipes/adding.md`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from importlib import import_module
from typing import Any

from ppp.checks import refuse
from ppp.environments import ENVIRONMENTS
from ppp.environments.base import Environment
from ppp.preferences import PREFERENCES
from ppp.rewards import TERMS
from ppp.types import Preference, RecipeError
from ppp.users import USERS
from ppp.users.base import User

SPLITS = ("seen", "unseen")


def import_extensions(modules: Sequence[str]) -> None:
    """Import the modules, which are looked for where Python looks and, last, in the working directory.

    Raises:
        RecipeError: a module that there is not, or one whose entries cannot be used. What its own code raises is
            passed on as it is, with its traceback.
    """
    for name in modules:
        before = {kind: dict(table) for kind, (table, _) in TABLES.items()}
        _import(name)
        for kind, (table, problem_of) in TABLES.items():
            check_entries(name, kind, before[kind], table, problem_of)


def named_in(argv: Sequence[str], recipe: Mapping[str, Any]) -> list[str]:
    """The modules that a command line or, where it has none, a recipe names, before either was checked.

    For commands that look into a table before they have read the recipe.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--imports", nargs="+")
    try:
        given = parser.parse_known_args(list(argv))[0].imports
    except argparse.ArgumentError:
        return []  # the recipe's own check says what is wrong
    found = recipe.get("imports", []) if given is None else given
    return [name for name in ([found] if isinstance(found, str) else found or []) if isinstance(name, str)]


def _import(name: str) -> None:
    if not all(part.isidentifier() for part in name.split(".")):
        raise refuse("imports", name, "name a module as `import` does: my_module or my_package.my_module")
    if os.getcwd() not in sys.path and "" not in sys.path:  # the command `ppp` does not look there, `python -m` does
        sys.path.append(os.getcwd())
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports another one that is not
        known = f"there is no such module, neither installed nor in {os.getcwd()}"
        raise refuse("imports", name, known) from error


def check_entries(
    module: str,
    kind: str,
    before: Mapping[str, Any],
    table: Mapping[str, Any],
    problem_of: Callable[[str, Any], str | None],
) -> None:
    """Raise `RecipeError` for an entry that is no such thing, or that takes the place of another one: results under an
    old name would mean something new."""
    for name, entry in table.items():
        if name not in before:
            problem = problem_of(name, entry)
        else:
            problem = None if entry is before[name] else "there is one of that name already; choose another"
        if problem is not None:
            raise RecipeError(f"imports: {module!r} adds the {kind} {name!r}: {problem}")


def add_entry(field: str, kind: str, name: str, entry: Any) -> None:
    """Put an entry into a table; one that came in this way before is replaced, as when a notebook's cell is run again.

    Args:
        field: the argument that held it, for messages.
        kind: a key of `TABLES`.

    Raises:
        RecipeError: it cannot be used, or there is one of that name already.
    """
    table, problem_of = TABLES[kind]
    if table.get(name) is entry:
        return
    problem = problem_of(name, entry)
    if problem is None and name in table and (kind, name) not in _added:
        problem = "there is one of that name already; choose another"
    if problem is not None:
        raise RecipeError(f"{field}: the {kind} {name!r}: {problem}")
    table[name] = entry
    _added.add((kind, name))


def add_class(field: str, kind: str, entry: type) -> str:
    """Put a class into a table under its own name in snake case, and return that name; `DeskEnvironment` is "desk".

    Raises:
        RecipeError: it cannot be used, or there is one of that name already.
    """
    table, _ = TABLES[kind]
    for name, there in table.items():
        if there in (entry, f"{entry.__module__}:{entry.__qualname__}"):
            return name
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", entry.__name__).lower()
    name = words.removesuffix(f"_{kind}")
    add_entry(field, kind, name, entry)
    return name


def preference_problem(name: str, entry: Any) -> str | None:
    """What is wrong with an entry of `PREFERENCES`."""
    if not isinstance(entry, Preference):
        return "it must be a Preference"
    if entry.name != name:
        return f"its own name is {entry.name!r}; both must be the same"
    if entry.split not in SPLITS:
        return f"its split is {entry.split!r}; allowed: {', '.join(SPLITS)}"
    return None


def class_problem(base: type, entry: Any) -> str | None:
    """What is wrong with an entry of a table of classes."""
    if isinstance(entry, str):
        return None if entry.count(":") == 1 else "a text must have the form 'module:Class'"
    if not (isinstance(entry, type) and issubclass(entry, base)):
        return f"it must be a subclass of {base.__name__}, or the text 'module:Class'"
    return None


# kind -> (table, what is wrong with one of its entries)
TABLES: dict[str, tuple[MutableMapping[str, Any], Callable[[str, Any], str | None]]] = {
    "environment": (ENVIRONMENTS, lambda name, entry: class_problem(Environment, entry)),
    "user": (USERS, lambda name, entry: class_problem(User, entry)),
    "preference": (PREFERENCES, preference_problem),
    "reward term": (TERMS, lambda name, entry: None if callable(entry) else "it must be a function"),
}
_added: set[tuple[str, str]] = set()  # (kind, name) of what `add_entry` put there
