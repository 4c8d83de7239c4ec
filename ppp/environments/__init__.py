"""The table of environments. Adding one: a file beside this one, a line in the table, a recipe.

A value is a class or where to find it; modules are imported when they are asked for, so that the dependencies of one
environment are never needed by another. `base.py` says what an environment is, `town.py` is the example to copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ppp.environments.base import Environment
from ppp.types import RecipeError

ENVIRONMENTS: dict[str, str | type[Environment]] = {
    "town": "ppp.environments.town:TownEnvironment",
    "func_loc": "ppp.environments.func_loc:FuncLocEnvironment",
}


def environment_class(name: str, options: Mapping[str, Any] | None = None) -> type[Environment]:
    """The class behind a name of the table, in the variant that plays under `options`.

    Raises:
        RecipeError: no such environment.
    """
    if name not in ENVIRONMENTS:
        raise RecipeError(f"environment: {name!r} is unknown, allowed are {', '.join(sorted(ENVIRONMENTS))}")
    entry = ENVIRONMENTS[name]
    if isinstance(entry, str):
        module, _, attribute = entry.partition(":")
        found: type[Environment] = vars(import_module(module))[attribute]
        return found.variant(options or {})
    return entry.variant(options or {})
