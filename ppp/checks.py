"""Fields of a recipe with their documentation, and the wording of an operator's mistake: field, value, what is allowed.

Whatever checks a recipe's values uses these, from the dataclasses of `config.py` to the options of a user.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import field
from typing import Any

from ppp.types import RecipeError


def option(default: Any, help: str) -> Any:
    """A dataclass field with its documentation; mutable defaults are copied."""
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def refuse(name: str, value: Any, allowed: str) -> RecipeError:
    """The one form of an operator's error: field, value, what is allowed."""
    return RecipeError(f"{name}: {value!r} is not allowed; {allowed}")


def refuse_unknown(name: str, value: Any, known: Iterable[str]) -> RecipeError:
    """Like `refuse`, for a name that is not among `known`, with the nearest known name."""
    return RecipeError(f"{name}: {value!r} is unknown; {_allowed(value, known)}")


def refuse_option(name: str, option: str, known: Iterable[str]) -> RecipeError:
    """Like `refuse_unknown`, for an entry of the mapping `name` that does not exist."""
    return RecipeError(f"{name}.{option}: unknown; {_allowed(option, known)}")


def _allowed(value: Any, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    allowed = ", ".join(known) if len(known) <= 30 else f"{len(known)} names, listed by ppp train --help"
    return f"allowed: {allowed}{hint}"


def check_at_least(name: str, value: int, minimum: int) -> None:
    """Raise `RecipeError` unless `value >= minimum`."""
    if value < minimum:
        raise refuse(name, value, f"must be at least {minimum}")
