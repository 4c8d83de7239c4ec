"""The engines by the name that a recipe gives them; `base.py` beside this file says what one has to offer."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version

from packaging.version import Version

from ppp.engines.base import Engine
from ppp.types import RecipeError

ENGINES: dict[str, str] = {
    "scripted": "ppp.engines.scripted:ScriptedEngine",
    "transformers": "ppp.engines.transformers:TransformersEngine",
    "vllm_colocate": "ppp.engines.vllm_colocate:VLLMColocateEngine",
    "vllm_server": "ppp.engines.vllm_server:VLLMServerEngine",
}
"""Name -> class, as a path: a recipe is checked without importing the libraries of engines that it does not use."""

REQUIRES: dict[str, tuple[str, str]] = {
    "transformers": ("transformers", "5.19"),  # before that, continuous batching cannot be paused
}
"""Name -> library and the first version of it that works, where that is newer than what the package asks for."""


def engine_class(name: str) -> type[Engine]:
    """The class of an engine.

    Raises:
        RecipeError: there is no such engine, or the installed library is too old for it.
    """
    if name not in ENGINES:
        raise RecipeError(f"engine: {name!r} is not known; allowed are {sorted(ENGINES)}")
    if name in REQUIRES:
        library, needed = REQUIRES[name]
        found = version(library)
        if Version(found) < Version(needed):
            raise RecipeError(
                f"engine: {name!r} needs {library} >= {needed}, found {found}; upgrade it or change engine"
            )
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(import_module(module), attribute)
