"""The engines by the name that a recipe gives them; `base.py` beside this file says what one has to offer."""

from __future__ import annotations

from importlib import import_module

from ppp.engines.base import Engine
from ppp.types import RecipeError

ENGINES: dict[str, str] = {
    "scripted": "ppp.engines.scripted:ScriptedEngine",
    "transformers": "ppp.engines.transformers:TransformersEngine",
}
"""Name -> class, as a path: a recipe is checked without importing the libraries of engines that it does not use."""


def engine_class(name: str) -> type[Engine]:
    """The class of an engine.

    Raises:
        RecipeError: there is no such engine.
    """
    if name not in ENGINES:
        raise RecipeError(f"engine: {name!r} is not known; allowed are {sorted(ENGINES)}")
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(import_module(module), attribute)
