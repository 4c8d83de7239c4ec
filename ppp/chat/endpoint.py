"""What a recipe says of one chat model: where it is, how much of it may be used, what it costs. It sends nothing."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from ppp.types import RecipeError

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_KEY_ENV = "OPENAI_API_KEY"
MAX_CONNECTIONS = 1000  # of the HTTP client
TAKEN = ("model", "messages", "response_format", "max_tokens", "temperature", "seed", "stream", "n")


def option(default: Any, help: str) -> Any:
    """A dataclass field with its documentation."""
    return field(default=default, metadata={"help": help})


def default_url() -> str:
    """The address of those that name none."""
    return os.environ.get("OPENAI_BASE_URL") or OPENAI_URL


def shown_url(url: str) -> str:
    """An address without what it may hide."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


@dataclass(frozen=True)
class ChatEndpoint:
    """One chat model at one address. The `help` of a field is its documentation."""

    model: str = field(metadata={"help": "Name of the model, as the endpoint knows it."})
    base_url: str | None = option(None, "Address of the API up to /v1; default: OPENAI_BASE_URL, or OpenAI.")
    api_key_env: str | None = option(
        None, "NAME of the environment variable that holds the key; default: OPENAI_API_KEY for OpenAI, else no key."
    )
    max_concurrency: int = option(64, "Requests under way at the same time, per process.")
    requests_per_minute: int | None = option(None, "For the whole run; each process takes its share.")
    tokens_per_minute: int | None = option(None, "Prompt and completion, for the whole run.")
    timeout_s: float = option(45.0, "Seconds for one request, until its last byte.")
    deadline_s: float = option(110.0, "Seconds for one answer, with all attempts and waiting.")
    max_retries: int = option(6, "Attempts after the first one.")
    max_outage_s: float = option(30.0, "The run stops when requests have only failed for so long.")
    temperature: float | None = option(None, "Default: the endpoint's own.")
    max_tokens: int | None = option(None, "Tokens of an answer, thinking included; default: the endpoint's own limit.")
    extra_body: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "Further fields of the request, such as reasoning_effort."}
    )
    input_price: float | None = option(None, "USD per million prompt tokens.")
    cached_input_price: float | None = option(None, "The same for those in the endpoint's cache; default: input_price.")
    output_price: float | None = option(None, "USD per million completion tokens.")

    @classmethod
    def from_options(cls, options: Mapping[str, Any], where: str) -> ChatEndpoint:
        """An endpoint from a part of a recipe.

        Args:
            options: the fields by name.
            where: the part's name, for messages.

        Raises:
            RecipeError: an unknown field, a wrong value, no model.
        """
        known = [entry.name for entry in fields(cls)]
        for name, value in options.items():
            if name == "api_key":  # whose value must not be shown
                raise RecipeError(
                    f"{where}.api_key: keys are read from the environment; give the variable's name in api_key_env"
                )
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise RecipeError(f"{where}.{name}: unknown field; allowed: {', '.join(known)}{hint}")
            is_right, allowed = RULES[name]
            if not is_right(value):
                shown = "its value" if _may_hold_a_key(name, value) else repr(value)
                raise RecipeError(f"{where}.{name}: {shown} is not allowed; {allowed}")
        if "model" not in options:
            raise RecipeError(f"{where}.model: missing; the name of the model, as the endpoint knows it")
        return cls(**options)

    @property
    def url(self) -> str:
        """The address that is used."""
        return self.base_url or default_url()

    @property
    def name(self) -> str:
        """For messages: model and address, without what an address may hide."""
        return f"{self.model} at {shown_url(self.url)}"

    @property
    def label(self) -> str:
        """For tables."""
        return f"{self.model}@{urlsplit(self.url).netloc.rpartition('@')[2]}"

    def api_key(self) -> str:
        """The key, "" where none is to be sent.

        Raises:
            RecipeError: the variable that should hold it is not set.
        """
        variable = self.api_key_env or (OPENAI_KEY_ENV if self.base_url is None else None)
        if variable is None:
            return ""
        key = os.environ.get(variable, "").strip()
        if not key:
            raise RecipeError(f"{self.name} needs a key, and the environment variable {variable} is not set")
        return key


def _may_hold_a_key(name: str, value: Any) -> bool:
    """Whether somebody may have put a key there by mistake: such a value is not shown."""
    return name == "api_key_env" or (name == "base_url" and any(sign in str(value) for sign in "@?"))


def _is_number(value: Any, least: float, *, above: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    return value > least if above else value >= least


def _is_count(value: Any, least: int, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_address(value: Any) -> bool:
    if not isinstance(value, str) or any(letter.isspace() for letter in value):
        return False
    parts = urlsplit(value)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or "@" in parts.netloc)


Rule = tuple[Callable[[Any], bool], str]
SECONDS: Rule = (lambda value: _is_number(value, 0, above=True), "seconds above 0")
PRICE: Rule = (lambda value: value is None or _is_number(value, 0), "USD per million tokens, or null")
RATE: Rule = (lambda value: value is None or _is_count(value, 1), "a whole number of at least 1, or null")

# field -> (test of a value, what is allowed)
RULES: dict[str, Rule] = {
    "model": (lambda value: isinstance(value, str) and bool(value.strip()), "the name of the model"),
    "base_url": (
        lambda value: value is None or _is_address(value),
        "an address such as http://localhost:8000/v1, without user, password or query, or null",
    ),
    "api_key_env": (
        lambda value: (
            value is None or (isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value)))
        ),
        "the NAME of an environment variable, never the key itself",
    ),
    "max_concurrency": (lambda value: _is_count(value, 1, MAX_CONNECTIONS), f"1 to {MAX_CONNECTIONS}"),
    "requests_per_minute": RATE,
    "tokens_per_minute": RATE,
    "timeout_s": SECONDS,
    "deadline_s": SECONDS,
    "max_retries": (lambda value: _is_count(value, 0), "a whole number of at least 0"),
    "max_outage_s": SECONDS,
    "temperature": (lambda value: value is None or _is_number(value, 0), "a number of at least 0, or null"),
    "max_tokens": RATE,
    "extra_body": (
        lambda value: isinstance(value, Mapping) and all(isinstance(name, str) and name not in TAKEN for name in value),
        f"a mapping without {', '.join(TAKEN)}",
    ),
    "input_price": PRICE,
    "cached_input_price": PRICE,
    "output_price": PRICE,
}
