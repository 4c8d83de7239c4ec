"""Whether a value that was read from YAML or a command line is of the type that a field of a recipe declares.

Dataclasses do not check it and YAML lets floats for whole numbers and any text for a `Literal` through. `recipe.py`,
which calls this, comes next.
"""

from __future__ import annotations

import types
from contextlib import suppress
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from ppp.checks import refuse

TYPE_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict: "a mapping",
    list: "a list",
}
ITEM_WORDS: dict[Any, str] = {int: "integers", float: "numbers", str: "texts"}


def check_type(name: str, value: Any, hint: Any) -> Any:
    """Return `value` if it fits the type of its field; YAML gives floats for integers and any text for a choice.

    Raises:
        RecipeError: it does not fit.
    """
    kinds = members(hint)
    if any(_fits(value, member) for member in kinds):
        return value
    if isinstance(value, str) and any(get_origin(member) is list for member in kinds):
        return [value]
    if isinstance(value, bool) and any(get_origin(m) is Literal and str(value).lower() in get_args(m) for m in kinds):
        return str(value).lower()
    if name == "resume_from_checkpoint" and isinstance(value, bool):
        return str(value).lower()
    if value is False and any(
        isinstance(m, type) and issubclass(m, Enum) and "no" in [c.value for c in m] for m in kinds
    ):
        return "no"  # as YAML reads it without quotes
    if isinstance(value, str) and float in kinds:
        with suppress(ValueError):
            return float(value)  # YAML takes 1e-3 for a text
    raise refuse(name, value, f"expected {describe_type(hint)}")


def takes_mapping(hint: Any) -> bool:
    """Whether a field of this type may hold a mapping, and so have entries of its own on the command line."""
    return any(get_origin(member) is dict for member in members(hint))


def members(hint: Any) -> tuple[Any, ...]:
    """The types of which a value may have one."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin is dict or hint is dict:
        return isinstance(value, dict)
    if origin is list or hint is list:
        return isinstance(value, list) and (not arguments or all(_fits(item, arguments[0]) for item in value))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return isinstance(value, hint) or value in [choice.value for choice in hint]
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else True


def describe_type(hint: Any) -> str:
    """What a field accepts, in words."""
    words = []
    for member in members(hint):
        if get_origin(member) is Literal:
            words.append("one of " + ", ".join(str(choice) for choice in get_args(member)))
        elif isinstance(member, type) and issubclass(member, Enum):
            words.append("one of " + ", ".join(str(choice.value) for choice in member))
        elif member is type(None):
            words.append("none")
        elif get_origin(member) is list and get_args(member)[0] in ITEM_WORDS:
            words.append(f"a list of {ITEM_WORDS[get_args(member)[0]]}")
        else:
            origin = get_origin(member) or member
            words.append(TYPE_WORDS.get(origin, str(origin)))
    return " or ".join(dict.fromkeys(words))
