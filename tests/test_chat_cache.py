"""What is recorded comes back, once and exactly; files that are no cache of this version are refused."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer
from tenacity import wait_none

from ppp.chat import gateway as chat
from ppp.chat import limits
from ppp.chat.cache import VERSION, ChatCache, Recorded, request_key
from ppp.chat.gateway import ChatEndpoint, ChatGateway
from ppp.types import InfrastructureError, RecipeError, RunStoppedError

HELLO = [{"role": "user", "content": "Which file?"}]


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BACKOFF", wait_none())


@pytest.fixture
def server() -> Iterator[ChatServer]:
    number = iter(range(1000))
    with ChatServer(reply=lambda request: f"answer {next(number)}") as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "answers.sqlite"


def gateway_for(server: ChatServer, cache: ChatCache, **fields: Any) -> ChatGateway:
    return ChatGateway(ChatEndpoint("m", server.base_url, **fields), cache=cache)


def ask(gateway: ChatGateway, text: str = "Which file?", **options: Any) -> str:
    async def main() -> str:
        try:
            return (await gateway.chat([{"role": "user", "content": text}], **options)).text
        finally:
            await gateway.close()

    return asyncio.run(main())


def record(server: ChatServer, path: Path, *texts: str) -> list[str]:
    cache = ChatCache(path, "write")
    answers = [ask(gateway_for(server, cache), text) for text in texts]
    cache.close()
    return answers


def test_a_recorded_run_is_replayed_without_the_endpoint(server: ChatServer, path: Path) -> None:
    answers = record(server, path, "one", "two", "one")
    assert answers == ["answer 0", "answer 1", "answer 0"]
    server.down = True
    cache = ChatCache(path, "replay")
    gateway = ChatGateway(ChatEndpoint("m", "http://elsewhere/v1"), cache=cache)
    assert [ask(gateway, text) for text in ("one", "two", "one")] == answers
    assert gateway.ledger.summary()["cached_share"] == 1.0 and gateway.ledger.summary()["requests"] == 0
    with pytest.raises(RunStoppedError, match="no answer"):
        ask(gateway, "three")
    asyncio.run(gateway.check())  # asks nothing


def test_read_uses_what_is_there_and_keeps_nothing(server: ChatServer, path: Path) -> None:
    record(server, path, "one")
    gateway = gateway_for(server, ChatCache(path, "read"))
    assert [ask(gateway, text) for text in ("one", "two", "two")] == ["answer 0", "answer 1", "answer 2"]
    assert ask(gateway_for(server, ChatCache(path, "read")), "two") == "answer 3"


def test_off_is_as_if_there_were_none(server: ChatServer) -> None:
    gateway = gateway_for(server, ChatCache(None, "off"))
    assert [ask(gateway), ask(gateway)] == ["answer 0", "answer 1"]


def test_an_answer_and_an_agents_turn_to_the_same_words_are_kept_apart(server: ChatServer, path: Path) -> None:
    gateway = gateway_for(server, ChatCache(path, "write"))

    async def main() -> tuple[str, str]:
        try:
            answer = await gateway.chat(HELLO, max_tokens=5, seed=1)
            turn = await gateway.take_turn(HELLO, max_tokens=5, seed=1)
            return answer.text, turn.said.text
        finally:
            await gateway.close()

    assert asyncio.run(main()) == ("answer 0", "answer 1")


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"max_tokens": 5},
        {"temperature": 0.5},
        {"response_format": {"type": "json_object"}},
        {"text": "Which file? "},
        {"fields": {"extra_body": {"top_k": 1}}},
    ],
)
def test_another_request_is_another_answer(server: ChatServer, path: Path, change: dict[str, Any]) -> None:
    cache = ChatCache(path, "write")
    first = ask(gateway_for(server, cache))
    fields = change.pop("fields", {})
    assert ask(gateway_for(server, cache, **fields), **change) != first
    assert ask(gateway_for(server, cache)) == first


def test_the_order_of_fields_does_not_tell_requests_apart() -> None:
    assert request_key({"a": 1, "b": {"c": 2, "d": 3}}) == request_key({"b": {"d": 3, "c": 2}, "a": 1})
    assert request_key({"a": 1}) != request_key({"a": "1"})


def test_identical_requests_under_way_are_asked_once(server: ChatServer, path: Path) -> None:
    server.latency_s = 0.05
    gateway = gateway_for(server, ChatCache(path, "write"))

    async def main() -> list[chat.ChatReply]:
        try:
            return await asyncio.gather(*(gateway.chat(HELLO) for _ in range(20)))
        finally:
            await gateway.close()

    replies = asyncio.run(main())
    assert {reply.text for reply in replies} == {"answer 0"}
    assert sum(not reply.cached for reply in replies) == 1
    assert server.num_requests == 1


async def cancel_while_asked(gateway: ChatGateway, server: ChatServer, leavers: Sequence[int]) -> list[Any]:
    """The outcomes of three identical calls, some of which are cancelled when the request has reached the server."""
    tasks = [asyncio.create_task(gateway.chat(HELLO)) for _ in range(3)]
    while not server.num_requests:
        await asyncio.sleep(0.01)
    for leaver in leavers:
        tasks[leaver].cancel()
    await asyncio.sleep(0)
    server.resume.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("leaver", [0, 1])
def test_who_gives_up_does_not_take_the_answer_from_others(server: ChatServer, path: Path, leaver: int) -> None:
    server.resume.clear()
    gateway = gateway_for(server, ChatCache(path, "write"))

    async def main() -> list[Any]:
        try:
            return await cancel_while_asked(gateway, server, [leaver])
        finally:
            await gateway.close()

    results = asyncio.run(main())
    assert isinstance(results.pop(leaver), asyncio.CancelledError)
    assert [result.text for result in results] == ["answer 0", "answer 0"]
    assert server.num_requests == 1


def test_when_nobody_waits_any_more_the_request_ends(server: ChatServer, path: Path) -> None:
    server.resume.clear()
    gateway = gateway_for(server, ChatCache(path, "write"), max_concurrency=1)

    async def main() -> str:
        try:
            errors = await cancel_while_asked(gateway, server, [0, 1, 2])
            assert all(isinstance(error, asyncio.CancelledError) for error in errors)
            return (await gateway.chat(HELLO)).text  # the only slot is free, and nothing was recorded
        finally:
            await gateway.close()

    assert asyncio.run(main()).startswith("answer")
    assert server.num_requests == 2


def test_an_error_reaches_all_who_wait_for_it_and_is_asked_again_later(server: ChatServer, path: Path) -> None:
    server.script = ["400"]
    gateway = gateway_for(server, ChatCache(path, "write"))

    async def main() -> list[Any]:
        try:
            return await asyncio.gather(*(gateway.chat(HELLO) for _ in range(3)), return_exceptions=True)
        finally:
            await gateway.close()

    assert [type(error) for error in asyncio.run(main())] == [chat.RequestRefusedError] * 3
    assert ask(gateway) == "answer 0"


def test_a_call_that_failed_fails_in_a_replay_too(server: ChatServer, path: Path) -> None:
    cache = ChatCache(path, "write")
    server.script = ["500", "500"]
    with pytest.raises(InfrastructureError) as recorded:
        ask(gateway_for(server, cache, max_retries=1))
    with pytest.raises(InfrastructureError) as replayed:
        ask(gateway_for(server, ChatCache(path, "replay")))
    assert (str(replayed.value), replayed.value.kind) == (str(recorded.value), "500")
    assert ask(gateway_for(server, cache)) == "answer 0"  # an outage is no answer
    assert ask(gateway_for(server, ChatCache(path, "replay"))) == "answer 0"


def test_what_was_learnt_of_an_endpoint_is_kept(server: ChatServer, path: Path) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
    first = gateway_for(server, ChatCache(path, "write"))
    assert not first.refuses_format(response_format)
    first.remember_refusal(response_format)
    assert first.refuses_format(response_format)
    assert gateway_for(server, ChatCache(path, "replay")).refuses_format(response_format)
    assert not gateway_for(server, ChatCache(path, "replay")).refuses_format({"type": "json_object"})


def test_several_writers_share_a_file_and_the_first_answer_counts_for_all(path: Path) -> None:
    caches = [ChatCache(path, "write") for _ in range(4)]

    def write(cache: ChatCache) -> list[str]:
        async def main() -> list[str]:
            async def answer(text: str) -> str:
                async def ask() -> Recorded:
                    await asyncio.sleep(0)
                    return Recorded(f"{id(cache)} says {text}", 1, 1, "stop")

                return (await cache.answer({"model": "m", "text": text}, ask))[0].text

            return [await answer(str(number)) for number in range(50)]

        return asyncio.run(main())

    with ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(write, caches))
    assert all(answers == seen[0] for answers in seen)


def make_other_database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (text TEXT)")


def make_other_version(path: Path) -> None:
    ChatCache(path, "write").close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")


BAD_FILES = {
    "no database": (lambda path: path.write_bytes(b"hello " * 1000), "not a database"),
    "other database": (make_other_database, "no cache of chat answers"),
    "other version": (make_other_version, f"version {VERSION + 1}; allowed: {VERSION}"),
    "folder": (lambda path: path.mkdir(), "cache"),
}


@pytest.mark.parametrize("mode", ["read", "write", "replay"])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_is_no_cache_of_this_version_is_refused(tmp_path: Path, kind: str, mode: Any) -> None:
    make, sentence = BAD_FILES[kind]
    path = tmp_path / "answers.sqlite"
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(RecipeError, match=rf"^cache_path: .*{sentence if path.is_file() else 'answers'}"):
        ChatCache(path, mode)
    assert not path.is_file() or path.read_bytes() == before


@pytest.mark.parametrize(
    ("path", "mode", "field"),
    [("x", "replays", "cache"), (None, "write", "cache_path"), ("nowhere.sqlite", "read", "cache_path"),
     ("nowhere.sqlite", "replay", "cache_path")],
)  # fmt: skip
def test_a_wrong_setting_is_named(path: str | None, mode: Any, field: str) -> None:
    with pytest.raises(RecipeError, match=f"^{field}: "):
        ChatCache(path, mode)


def test_a_cache_that_cannot_be_written_ends_the_run(path: Path) -> None:
    cache = ChatCache(path, "write")
    assert cache._writer is not None
    cache._writer.execute("PRAGMA query_only = 1")

    async def answer() -> Recorded:
        return Recorded("x", 1, 1, "stop")

    with pytest.raises(RunStoppedError, match="cannot be written"):
        asyncio.run(cache.answer({"model": "m"}, answer))
