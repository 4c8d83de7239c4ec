"""The gateway against a real HTTP server, whose faults are dialled."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from chat_server import FAULTS, ChatServer
from tenacity import wait_none

from ppp.chat import limits
from ppp.chat.cache import ChatCache
from ppp.chat.failures import CONTEXT_LENGTH, of_status, redact, retry_after
from ppp.chat.gateway import ChatEndpoint, ChatGateway, RequestRefusedError
from ppp.chat.limits import MIN_FAILURES, OutageWatch, TokenRate, request_rate
from ppp.types import InfrastructureError, RecipeError, RunStoppedError

KEY = "sk-proj-Zq83LmPw0vTxN5rYb7Hd2CfGk"
HELLO = [{"role": "user", "content": "Which file?"}]


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BACKOFF", wait_none())
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as server:
        yield server


def make_gateway(server: ChatServer, *, cache: ChatCache | None = None, **fields: Any) -> ChatGateway:
    settings = {"model": "m", "base_url": server.base_url, "timeout_s": 5.0, "deadline_s": 20.0, **fields}
    return ChatGateway(ChatEndpoint(**settings), cache=cache)


def run(gateway: ChatGateway, ask: Callable[[ChatGateway], Any]) -> Any:
    """What `ask` brings, in an event loop of its own."""

    async def main() -> Any:
        try:
            return await ask(gateway)
        finally:
            await gateway.close()

    return asyncio.run(main())


def say(gateway: ChatGateway, **options: Any) -> Any:
    return run(gateway, lambda gateway: gateway.chat(HELLO, **options))


def failures(gateway: ChatGateway) -> dict[str, int]:
    return dict(gateway.ledger.summary()["failures"])


def unused_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_request_says_what_was_asked_and_nothing_else(server: ChatServer) -> None:
    gateway = make_gateway(server, temperature=0.5, extra_body={"reasoning_effort": "low"})
    reply = say(gateway, max_tokens=9, seed=3, response_format={"type": "json_object"})
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens, reply.finish_reason) == ("{}", 2, 1, "stop")
    assert not reply.cached
    assert server.requests == [
        {
            "model": "m",
            "messages": HELLO,
            "temperature": 0.5,
            "max_tokens": 9,
            "seed": 3,
            "response_format": {"type": "json_object"},
            "reasoning_effort": "low",
        }
    ]


def test_text_that_has_no_encoding_does_not_end_the_run(server: ChatServer) -> None:
    run(make_gateway(server), lambda gateway: gateway.chat([{"role": "user", "content": "a\ud800b \ud83d\ude00"}]))
    assert server.requests[0]["messages"][0]["content"] == "a�b 😀"


def test_a_key_goes_only_where_it_was_meant_to_go(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer other")
    say(make_gateway(server))
    assert not {"authorization", "openai-organization"} & {name.lower() for name in server.headers[-1]}
    monkeypatch.setenv("MY_KEY", KEY)
    say(make_gateway(server, api_key_env="MY_KEY"))
    assert server.headers[-1]["Authorization"] == f"Bearer {KEY}"
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    say(make_gateway(server, base_url=None))
    assert server.headers[-1]["Authorization"] == f"Bearer {KEY}"


KINDS = {"hang": "timeout", "trickle": "timeout", "cut": "cut-off", "disconnect": "cut-off",
         "invalid_json": "invalid JSON", "empty": "empty answer", "error_in_200": "error in body"}  # fmt: skip


@pytest.mark.parametrize("fault", [*KINDS, "408", "409", "429", "500", "502", "503", "529"])
def test_what_may_pass_is_tried_again_and_counted(server: ChatServer, fault: str) -> None:
    server.script = [fault, None]
    gateway = make_gateway(server, timeout_s=0.3 if fault in ("hang", "trickle") else 5.0)
    assert say(gateway).text == "OK"
    num_failures = server.num_requests - 1  # a busy machine may let a second attempt wait past so short a timeout
    assert num_failures == 1 or (fault in ("hang", "trickle") and num_failures > 1)
    assert failures(gateway) == {KINDS.get(fault, fault): num_failures}


def test_every_fault_of_the_server_is_tested() -> None:
    assert set(FAULTS) == {*KINDS, "wrong_schema", "length"}  # these two are answers


@pytest.mark.parametrize("fault", ["500", "429", "cut", "invalid_json", "empty"])
def test_the_attempts_are_counted_and_the_last_error_is_named(server: ChatServer, fault: str) -> None:
    server.faults = {fault: 1.0}
    gateway = make_gateway(server, max_retries=2)
    with pytest.raises(InfrastructureError, match=rf"^m at {server.base_url}: ") as caught:
        say(gateway)
    assert caught.value.kind == KINDS.get(fault, fault)
    assert server.num_requests == 3
    assert gateway.ledger.summary()["given_up"] == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_wrong_is_not_repeated_and_says_nothing_about_others(server: ChatServer, status: int) -> None:
    server.script = [str(status)] * 5
    gateway = make_gateway(server)

    class NoOutage(OutageWatch):
        def failed(self, started: float, now: float) -> bool:
            raise AssertionError("the endpoint works")

    gateway._outage = NoOutage(30.0)

    async def ask(gateway: ChatGateway) -> None:
        for _ in range(5):
            with pytest.raises(RequestRefusedError, match=f"status {status}"):
                await gateway.chat(HELLO)
        assert (await gateway.chat(HELLO)).text == "OK"

    run(gateway, ask)
    assert server.num_requests == 6


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_what_never_comes_right_ends_every_call_of_the_run(server: ChatServer, status: int) -> None:
    server.script = [str(status)]
    gateway = make_gateway(server)

    async def ask(gateway: ChatGateway) -> None:
        for _ in range(3):
            with pytest.raises(RunStoppedError, match=rf"^m at {server.base_url} .*status {status}"):
                await gateway.chat(HELLO)

    run(gateway, ask)
    assert server.num_requests == 1


def test_a_used_up_quota_is_told_from_a_rate_limit(server: ChatServer) -> None:
    server.script, server.error_code = ["429"], "insufficient_quota"
    with pytest.raises(RunStoppedError, match="quota"):
        say(make_gateway(server))
    assert server.num_requests == 1


def test_a_cut_short_answer_is_an_answer_and_says_so(server: ChatServer) -> None:
    server.reply, server.faults = lambda request: "A long answer.", {"length": 1.0}
    gateway = make_gateway(server)
    reply = say(gateway)
    assert (reply.text, reply.finish_reason) == ("A long ", "length")
    assert failures(gateway) == {"length": 1}
    server.reply = lambda request: ""  # all the tokens went into thinking
    with pytest.raises(InfrastructureError, match="empty answer") as caught:
        say(make_gateway(server, max_retries=0))
    assert caught.value.kind == "length"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_a_date_to_retry_after_is_a_wait() -> None:
    at = 4102444800  # far ahead
    wait = retry_after({"retry-after": formatdate(at, usegmt=True)})
    assert wait is not None and wait > 1e6


def test_a_wait_beyond_the_deadline_is_not_begun(server: ChatServer) -> None:
    server.faults, server.retry_after = {"429": 1.0}, "3600"
    with pytest.raises(InfrastructureError, match=r": status 429") as caught:
        say(make_gateway(server, deadline_s=1.0))
    assert caught.value.kind == "429" and "no answer" not in str(caught.value)
    assert server.num_requests == 1


@pytest.mark.parametrize("fault", ["hang", "trickle"])
def test_the_deadline_holds_for_all_attempts_together(server: ChatServer, fault: str) -> None:
    server.faults = {fault: 1.0}
    with pytest.raises(InfrastructureError, match=r"no answer within 0\.3 s") as caught:
        say(make_gateway(server, deadline_s=0.3, timeout_s=60.0))
    assert caught.value.kind == "deadline"


def test_waiting_for_a_retry_holds_no_slot(server: ChatServer) -> None:
    server.script, server.retry_after = ["429"], "1"
    order: list[str] = []

    async def ask(gateway: ChatGateway) -> None:
        async def named(name: str) -> None:
            await gateway.chat([{"role": "user", "content": name}])
            order.append(name)

        await asyncio.gather(named("first"), named("second"))

    run(make_gateway(server, max_concurrency=1), ask)
    assert order == ["second", "first"]


def test_no_more_requests_are_under_way_than_allowed(server: ChatServer) -> None:
    server.latency_s = 0.01
    gateway = make_gateway(server, max_concurrency=3)
    run(gateway, lambda gateway: asyncio.gather(*(gateway.chat(HELLO) for _ in range(12))))
    assert server.num_requests == 12
    assert server.max_in_flight == 3


def test_a_dead_endpoint_ends_all_calls_with_one_sentence_wherever_they_wait(server: ChatServer) -> None:
    gateway = make_gateway(
        server, max_outage_s=0.3, max_retries=10_000, max_concurrency=2, deadline_s=60.0, timeout_s=0.2
    )
    server.faults, server.retry_after = {"500": 0.4, "hang": 0.1, "cut": 0.1, "429": 0.4}, "0.02"

    async def ask(gateway: ChatGateway) -> list[BaseException]:
        errors = await asyncio.gather(*(gateway.chat(HELLO) for _ in range(40)), return_exceptions=True)
        with pytest.raises(RunStoppedError):
            await gateway.chat(HELLO)
        return errors

    errors = run(gateway, ask)
    assert {type(error) for error in errors} == {RunStoppedError}
    (sentence,) = {str(error) for error in errors}
    assert sentence.startswith(f"m at {server.base_url} has answered nothing for 0.3 s; the last error: ")


def test_a_call_that_is_being_answered_does_not_outlive_the_endpoint(server: ChatServer) -> None:
    server.script, server.faults = ["hang"], {"500": 1.0}
    gateway = make_gateway(server, max_outage_s=0.1, max_retries=10_000, timeout_s=600.0, deadline_s=600.0)

    async def ask(gateway: ChatGateway) -> list[BaseException]:
        calls = (gateway.chat(HELLO) for _ in range(3))
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)

    assert [type(error) for error in run(gateway, ask)] == [RunStoppedError] * 3


def test_a_refused_connection_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = ChatEndpoint("m", f"http://127.0.0.1:{unused_port()}/v1", max_retries=1)
    with pytest.raises(InfrastructureError, match=r"connection .*Connect call failed") as caught:
        say(ChatGateway(endpoint))
    assert caught.value.kind == "connection"


def test_a_server_that_speaks_something_else_is_an_outage_and_no_crash() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def babble() -> None:
            for _ in range(2):
                peer, _address = listener.accept()
                with closing(peer):
                    peer.recv(65536)
                    peer.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        endpoint = ChatEndpoint("m", f"http://127.0.0.1:{listener.getsockname()[1]}/v1", max_retries=1)
        with pytest.raises(InfrastructureError):
            say(ChatGateway(endpoint))
        thread.join()


def test_an_outage_takes_several_failures_without_a_success_or_a_long_pause_between_them() -> None:
    watch = OutageWatch(10.0)
    assert not watch.failed(0.0, 60.0)  # one slow request
    assert not watch.failed(60.0, 61.0)
    assert MIN_FAILURES == 3 and watch.failed(61.0, 62.0)
    watch.succeeded()
    assert not any(watch.failed(63.0 + second, 63.0 + second) for second in range(10))
    assert watch.failed(73.0, 73.0)
    assert not watch.failed(1000.0, 1000.0)  # nobody had asked for a long time
    assert not watch.failed(1001.0, 1001.0) and not watch.failed(1002.0, 1002.0)


@pytest.mark.parametrize(
    "echo",
    [
        KEY,
        KEY.upper(),
        KEY[:9],
        KEY[-9:],
        f"Incorrect API key provided: {KEY[:8]}{'*' * 20}{KEY[-4:]}. You can",
        f"Bearer {KEY[3:20]}...",
        f"key={KEY}&x=1",
    ],
)
def test_no_part_of_a_key_that_a_server_echoes_survives(echo: str) -> None:
    clean = redact(f"Before {echo} after", KEY).lower()
    assert clean.startswith("before ") and clean.endswith(" after")
    assert not any(KEY[start : start + 5].lower() in clean for start in range(len(KEY) - 4))
    assert KEY[-4:].lower() not in clean
    assert redact("An answer of the server stays as it is.", KEY) == "An answer of the server stays as it is."


def test_a_key_reaches_no_error_log_cache_or_report(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    cache = ChatCache(tmp_path / "answers.sqlite", "write")
    gateway = make_gateway(server, api_key_env="MY_KEY", cache=cache)
    say(gateway)
    server.requires_key = "another"
    shown: list[str] = [repr(gateway), repr(gateway.endpoint), gateway.ledger.table(), str(gateway.ledger.summary())]
    for ask, error_type in (
        (lambda gateway: gateway.check(), RecipeError),
        (lambda gateway: gateway.chat([{"role": "user", "content": "Other."}]), RunStoppedError),
    ):
        with pytest.raises(error_type, match="401") as caught:
            run(gateway, ask)
        shown += traceback.format_exception(caught.value, chain=True)
        error: BaseException | None = caught.value
        while error is not None:  # also what a traceback would not show
            shown.append(repr(error))
            error = error.__cause__ or error.__context__
    cache.close()
    shown += [record.getMessage() for record in caplog.records]
    shown += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]
    for text in shown:
        assert not any(KEY[start : start + 6] in text for start in range(len(KEY) - 5))


def test_what_a_server_says_is_bounded(server: ChatServer) -> None:
    server.reply = lambda request: "x"
    server.models = ()
    gateway = make_gateway(server, model="m" * 100_000)
    with pytest.raises(RunStoppedError) as caught:
        say(gateway)
    assert len(str(caught.value)) < 100_000 + 1000  # our own name of the endpoint, and a little of theirs


def test_giving_up_a_call_frees_its_slot(server: ChatServer) -> None:
    server.resume.clear()

    async def ask(gateway: ChatGateway) -> str:
        call = asyncio.create_task(gateway.chat(HELLO))
        while not server.num_requests:
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.wait([call])
        server.resume.set()
        return (await gateway.chat(HELLO)).text

    gateway = make_gateway(server, max_concurrency=1)
    assert run(gateway, ask) == "OK"
    assert failures(gateway) == {"cancelled": 1}


def test_a_gateway_works_in_one_event_loop_after_another(server: ChatServer) -> None:
    gateway = make_gateway(server, requests_per_minute=6000, tokens_per_minute=600_000)
    run(gateway, lambda gateway: gateway.check())
    assert [say(gateway).text for _ in range(3)] == ["OK"] * 3


def test_fields_that_a_model_does_not_have_are_replaced_or_left_out(server: ChatServer) -> None:
    server.unsupported = ("max_tokens", "temperature")
    gateway = make_gateway(server, max_tokens=50, temperature=0.2)
    say(gateway)
    say(gateway)
    assert [sorted(request) for request in server.requests[-2:]] == [["max_completion_tokens", "messages", "model"]] * 2
    assert server.num_requests == 4


class TestCheck:
    def test_a_usable_endpoint_passes_also_with_a_model_that_thinks_first(self, server: ChatServer) -> None:
        for fault in (None, "empty", "length", "429"):
            server.script = [fault, fault] if fault == "429" else [fault] * 9
            run(make_gateway(server), lambda gateway: gateway.check())

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"requires_key": "other"}, r"status 401 .*no key was sent.* api_key_env"),
            ({"models": ("gpt-a", "gpt-b")}, r"status 404 .*the models that it offers are gpt-a, gpt-b"),
            ({"has_chat_template": False}, r"no chat template"),
            ({"faults": {"500": 1.0}}, r"status 500"),
            ({"faults": {"disconnect": 1.0}}, r"cut-off"),
        ],
    )
    def test_a_problem_is_one_sentence_that_names_the_endpoint(self, settings: dict[str, Any], sentence: str) -> None:
        with (
            ChatServer(**settings) as server,
            pytest.raises(RecipeError, match=rf"^m at {server.base_url} cannot be used: .*{sentence}") as caught,
        ):
            run(make_gateway(server), lambda gateway: gateway.check())
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)

    def test_nothing_that_listens(self) -> None:
        endpoint = ChatEndpoint("m", f"http://127.0.0.1:{unused_port()}/v1")
        with pytest.raises(RecipeError, match="nothing listens there"):
            run(ChatGateway(endpoint), lambda gateway: gateway.check())

    def test_a_missing_slash_v1_is_pointed_out(self, server: ChatServer) -> None:
        gateway = make_gateway(server, base_url=server.base_url.removesuffix("/v1"))
        with pytest.raises(RecipeError, match="usually ends in /v1"):
            run(gateway, lambda gateway: gateway.check())

    @pytest.mark.parametrize("fields", [{"base_url": None}, {"api_key_env": "NOT_SET"}])
    def test_a_missing_key_names_its_variable(self, server: ChatServer, fields: dict[str, Any]) -> None:
        gateway = make_gateway(server, **fields)
        with pytest.raises(RecipeError, match=fields.get("api_key_env") or "OPENAI_API_KEY"):
            run(gateway, lambda gateway: gateway.check())


def test_rates_are_shared_among_the_processes_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    for per_minute in (4, 60, 6000, 100_000):
        limiter = request_rate(per_minute)
        assert limiter.max_rate / limiter.time_period * 60 * 4 == pytest.approx(per_minute)


def test_tokens_are_taken_by_estimate_and_corrected_afterwards() -> None:
    async def main() -> None:
        rate = TokenRate(600)  # 100 in ten seconds
        await rate.acquire(60)
        rate.correct(-50)
        await rate.acquire(80)  # 30 of them, after what the first one had too much
        assert rate._limiter.has_capacity(9) and not rate._limiter.has_capacity(12)
        rate.correct(1000)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rate.acquire(1), 0.05)

    asyncio.run(main())


# who says it -> how a conversation that is too long is refused
TOO_LONG = {
    "OpenAI": "This model's maximum context length is 128000 tokens. However, your messages resulted in 130002 tokens.",
    "OpenAI, responses": "Your input exceeds the context window of this model. Please adjust your input and try again.",
    "vLLM": "The decoder prompt (length 600) is longer than the maximum model length of 512.",
    "vLLM, with max_tokens": "'max_tokens' is too large: 4096. This model's maximum context length is 2048 tokens and "
    "your request has 300 input tokens (4096 > 2048 - 300).",
    "SGLang": "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
    "llama.cpp": "the request exceeds the available context size, try increasing it",
    "Anthropic": "prompt is too long: 213000 tokens > 200000 maximum",
    "Anthropic, with max_tokens": "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
    "Gemini": "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
    "TGI": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096.",
    "Mistral": "Prompt contains 40000 tokens, too large for model with 32768 maximum context length",
}


@pytest.mark.parametrize("server", TOO_LONG)
def test_a_conversation_that_is_too_long_is_told_from_other_refusals(server: str) -> None:
    body = json.dumps({"error": {"message": TOO_LONG[server], "type": "invalid_request_error"}}).encode()
    failure = of_status(400, {}, body, None)
    assert failure.kind == CONTEXT_LENGTH and not failure.retry and not failure.is_final


def test_a_conversation_that_is_too_long_may_be_told_by_its_code_alone() -> None:
    body = b'{"error": {"message": "Please reduce the length of the messages.", "code": "context_length_exceeded"}}'
    assert of_status(400, {}, body, None).kind == CONTEXT_LENGTH


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "max_tokens is too large: 100000. This model supports at most 16384 completion tokens.", "400"),
        (429, "Request too large for this context length", "429"),
        (400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set', "400"),
    ],
)
def test_other_refusals_keep_their_status_as_kind(status: int, message: str, kind: str) -> None:
    assert of_status(status, {}, json.dumps({"error": {"message": message}}).encode(), None).kind == kind


def test_a_prompt_that_a_filter_stopped_is_told_by_its_code() -> None:
    body = b'{"error": {"message": "The response was filtered.", "code": "content_filter", "status": 400}}'
    failure = of_status(400, {}, body, None)
    assert failure.kind == "content_filter" and not failure.retry
