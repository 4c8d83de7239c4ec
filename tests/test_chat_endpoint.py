"""What a recipe may say of a chat model."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ppp.chat.endpoint import RULES, ChatEndpoint
from ppp.types import RecipeError

FIELDS = {field.name: field for field in dataclasses.fields(ChatEndpoint)}

# field -> values that are refused
WRONG: dict[str, list[Any]] = {
    "model": ["", " ", 3, None],
    "base_url": ["localhost:8000/v1", "ftp://host/v1", "http://", "http://user:secret@host/v1", "http://host/v1?key=1",
                 "http://ho st/v1", 5],
    "api_key_env": ["sk-abc123", "MY KEY", "", 5],
    "max_concurrency": [0, -1, 1.5, True, "64", 5000, None],
    "requests_per_minute": [0, -1, 1.5, True],
    "tokens_per_minute": [0, "many"],
    "timeout_s": [0, -1, "60", None, float("inf"), float("nan")],
    "deadline_s": [0, None],
    "max_retries": [-1, 1.5, None],
    "max_outage_s": [0, None],
    "temperature": [-0.1, "0", True],
    "max_tokens": [0, 1.5],
    "extra_body": [[], "x", {"model": "other"}, {"messages": []}, {"stream": True}, {1: 2}],
    "input_price": [-1, "1"],
    "cached_input_price": [-1],
    "output_price": [-1, float("nan")],
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_explained_and_refuses_what_it_cannot_use(name: str) -> None:
    assert FIELDS[name].metadata["help"].endswith(".")
    for value in WRONG[name]:
        with pytest.raises(RecipeError, match=rf"^user\.{name}: .*not allowed; ") as caught:
            ChatEndpoint.from_options({"model": "m", name: value}, "user")
        assert name != "api_key_env" or str(value) not in str(caught.value).split("; ")[0] or value == ""


def test_every_field_has_a_rule_that_its_default_keeps() -> None:
    assert list(RULES) == list(FIELDS)
    endpoint = ChatEndpoint("m")
    assert all(is_right(getattr(endpoint, name)) for name, (is_right, _) in RULES.items())


def test_good_values_arrive() -> None:
    options = {"model": "m", "base_url": "http://localhost:8000/v1", "timeout_s": 5, "extra_body": {"top_k": 1}}
    assert ChatEndpoint.from_options(options, "user") == ChatEndpoint(**options)


def test_an_unknown_field_gets_the_nearest_known_one() -> None:
    with pytest.raises(RecipeError, match=r"^user\.base_ulr: unknown.*did you mean 'base_url'"):
        ChatEndpoint.from_options({"model": "m", "base_ulr": "x"}, "user")
    with pytest.raises(RecipeError, match=r"^user\.model: missing"):
        ChatEndpoint.from_options({}, "user")


def test_a_key_in_a_recipe_is_refused_and_not_repeated() -> None:
    for options in ({"api_key": "sk-secret"}, {"api_key_env": "sk-secret"}):
        with pytest.raises(RecipeError) as caught:
            ChatEndpoint.from_options({"model": "m", **options}, "user")
        assert "sk-secret" not in str(caught.value) and "api_key_env" in str(caught.value)


@pytest.mark.parametrize("address", ["http://me:sk-secret@host/v1", "http://host/v1?key=sk-secret"])
def test_a_key_in_an_address_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(RecipeError, match=r"^user\.base_url: .*without user, password or query") as caught:
        ChatEndpoint.from_options({"model": "m", "base_url": address}, "user")
    assert "sk-secret" not in str(caught.value)


def test_names_show_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "https://user:secret@relay.example/v1/?key=secret")
    endpoint = ChatEndpoint("m")
    assert (endpoint.name, endpoint.label) == ("m at https://relay.example/v1", "m@relay.example")
