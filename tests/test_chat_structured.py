"""JSON objects from endpoints with and without schemas; nothing is ever found inside a text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer

from ppp.chat.cache import ChatCache
from ppp.chat.gateway import ChatEndpoint, ChatGateway
from ppp.chat.structured import NotJSONError, parse_object, structured_chat
from ppp.types import InfrastructureError

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string"}, "source": {"enum": ["task", "hints"]}},
    "required": ["answer", "source"],
    "additionalProperties": False,
}
GOOD = {"answer": "The header.", "source": "task"}
MESSAGES = [{"role": "system", "content": "You are the user."}, {"role": "user", "content": "Which part?"}]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(reply=lambda request: GOOD) as server:
        yield server


def gateway_for(server: ChatServer, cache: ChatCache | None = None) -> ChatGateway:
    return ChatGateway(ChatEndpoint("m", server.base_url), cache=cache)


def ask(gateway: ChatGateway, messages: list[dict[str, str]] = MESSAGES, **options: Any) -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        try:
            return await structured_chat(gateway, messages, SCHEMA, "answer", **options)
        finally:
            await gateway.close()

    return asyncio.run(main())


def formats(server: ChatServer) -> list[str | None]:
    return [(request.get("response_format") or {}).get("type") for request in server.requests]


def test_a_schema_is_sent_where_it_is_known(server: ChatServer) -> None:
    assert ask(gateway_for(server), seed=1, max_tokens=99) == GOOD
    (request,) = server.requests
    sent = request["response_format"]
    assert sent == {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    assert request["messages"] == MESSAGES and request["seed"] == 1 and request["max_tokens"] == 99


@pytest.mark.parametrize(
    ("knows_json_mode", "first", "later"),
    [(True, ["json_schema", "json_object"], ["json_object"]), (False, ["json_schema", "json_object", None], [None])],
)
def test_an_endpoint_without_schemas_is_asked_in_words_from_then_on(
    server: ChatServer, knows_json_mode: bool, first: list[str | None], later: list[str | None]
) -> None:
    server.knows_schema, server.knows_json_mode = False, knows_json_mode
    gateway = gateway_for(server)
    assert ask(gateway) == GOOD
    assert formats(server) == first
    system = server.requests[-1]["messages"][0]
    assert system["role"] == "system" and system["content"].startswith("You are the user.")
    assert json.dumps(SCHEMA) in system["content"]
    assert ask(gateway, MESSAGES[1:]) == GOOD
    assert formats(server)[len(first) :] == later
    assert server.requests[-1]["messages"][0]["role"] == "system"


def test_a_refusal_for_another_reason_does_not_cost_the_endpoint_its_schemas(server: ChatServer) -> None:
    gateway = gateway_for(server)
    server.faults = {"400": 1.0}
    with pytest.raises(InfrastructureError, match="status 400"):
        ask(gateway)
    server.faults = {}
    assert ask(gateway) == GOOD
    assert formats(server)[-1] == "json_schema"


def test_a_replay_asks_in_the_form_that_was_recorded(server: ChatServer, tmp_path: Path) -> None:
    server.knows_schema = server.knows_json_mode = False
    assert ask(gateway_for(server, ChatCache(tmp_path / "c.sqlite", "write"))) == GOOD
    server.down = True
    assert ask(gateway_for(server, ChatCache(tmp_path / "c.sqlite", "replay"))) == GOOD


BAD = {
    "prose": ("Sure, it is the header.", "invalid JSON"),
    "prose around": ('Here it is: {"answer": "x", "source": "task"}', "invalid JSON"),
    "two objects": ('{"answer": "x", "source": "task"} {"answer": "y", "source": "task"}', "invalid JSON"),
    "list": ('[{"answer": "x", "source": "task"}]', "invalid JSON"),
    "key twice": ('{"answer": "x", "source": "task", "source": "hints"}', "invalid JSON"),
    "no number": ('{"answer": NaN, "source": "task"}', "invalid JSON"),
    "deep": ("[" * 100_000, "invalid JSON"),
    "missing": ('{"answer": "x"}', "wrong schema"),
    "too much": ('{"answer": "x", "source": "task", "effort": "low"}', "wrong schema"),
    "wrong value": ('{"answer": "x", "source": "nowhere"}', "wrong schema"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reply_is_repaired_within_bounds(server: ChatServer, name: str) -> None:
    text, kind = BAD[name]
    replies: list[Any] = [text, GOOD]
    server.reply = lambda request: replies.pop(0)
    gateway = gateway_for(server)
    assert ask(gateway) == GOOD
    *before, bad, repair = server.requests[1]["messages"]
    assert before == MESSAGES and bad == {"role": "assistant", "content": text[:2000]}
    assert repair["role"] == "user" and "cannot be used" in repair["content"] and len(repair["content"]) < 500
    assert gateway.ledger.summary()["failures"] == {kind: 1}

    server.reply = lambda request: text
    server.requests.clear()
    with pytest.raises(InfrastructureError, match="none of 2 replies") as caught:
        ask(gateway, max_repairs=1)
    assert len(server.requests) == 2
    assert caught.value.kind == kind


def test_a_repair_shows_the_latest_reply_only(server: ChatServer) -> None:
    replies: list[Any] = ["first", "second", GOOD]
    server.reply = lambda request: replies.pop(0)
    ask(gateway_for(server))
    assert [len(request["messages"]) for request in server.requests] == [2, 4, 4]
    assert server.requests[2]["messages"][2]["content"] == "second"


def test_what_a_schema_cannot_say_is_checked_by_the_caller(server: ChatServer) -> None:
    replies: list[Any] = [{"answer": "As an AI, no.", "source": "task"}, GOOD]
    server.reply = lambda request: replies.pop(0)
    assert ask(gateway_for(server), validate=lambda v: "out of role" if "AI" in v["answer"] else None) == GOOD
    assert "out of role" in server.requests[1]["messages"][-1]["content"]


def test_a_reply_that_was_cut_off_is_asked_to_be_shorter(server: ChatServer) -> None:
    server.script = ["length", None]
    gateway = gateway_for(server)
    assert ask(gateway) == GOOD
    assert "shorter" in server.requests[1]["messages"][-1]["content"]
    assert gateway.ledger.summary()["failures"] == {"length": 1}


@pytest.mark.parametrize("text", ['{"a": 1}', '\n {"a": 1}\n', '```json\n{"a": 1}\n```', '```\n{"a": 1}\n```'])
def test_one_object_is_found_bare_or_in_one_fence(text: str) -> None:
    assert parse_object(text) == {"a": 1}


@pytest.mark.parametrize(
    "text",
    ["", "null", "1", '"{}"', "```json\n", 'x ```json\n{"a": 1}\n```', '```\n{"a": 1}\n```\n```\n{"a": 2}\n```',
     '<think>{"a": 2}</think>{"a": 1}', '{"a": {"b": 1, "b": 2}}', '{"a": Infinity}', "{'a': 1}"],
)  # fmt: skip
def test_nothing_is_found_inside_a_text(text: str) -> None:
    with pytest.raises(NotJSONError):
        parse_object(text)
