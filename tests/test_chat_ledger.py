"""What is counted, what it costs, and where the budget ends."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator

import pytest
from chat_server import ChatServer
from tenacity import wait_none

from ppp.chat import gateway as chat
from ppp.chat import limits
from ppp.chat.gateway import ChatEndpoint, ChatGateway
from ppp.chat.ledger import ChatLedger, Prices, Usage
from ppp.types import RecipeError, RunStoppedError

HELLO = [{"role": "user", "content": "one two three four"}]


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BACKOFF", wait_none())
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(reply=lambda request: "five six", cached_prompt_tokens=3) as server:
        yield server


def ask(gateway: ChatGateway, num: int) -> list[BaseException | chat.ChatReply]:
    async def main() -> list[BaseException | chat.ChatReply]:
        try:
            return await asyncio.gather(*(gateway.chat(HELLO, seed=n) for n in range(num)), return_exceptions=True)
        finally:
            await gateway.close()

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("prices", "usage", "cost"),
    [
        (Prices(2.0, 8.0), Usage(1_000_000, 500_000, 400_000), 6.0),
        (Prices(2.0, 8.0, 0.5), Usage(1_000_000, 500_000, 400_000), 5.4),
        (Prices(0.0, 0.0), Usage(10, 10), 0.0),
        (Prices(2.0, None), Usage(10, 10), None),
        (Prices(None, 2.0), Usage(10, 10), None),
    ],
)
def test_cost_follows_the_prices(prices: Prices, usage: Usage, cost: float | None) -> None:
    assert prices.cost(usage) == (None if cost is None else pytest.approx(cost))


def test_the_endpoints_own_counts_are_added_up_by_model(server: ChatServer) -> None:
    ledger = ChatLedger()
    priced = ChatEndpoint("a", server.base_url, input_price=1.0, cached_input_price=0.5, output_price=4.0)
    ask(ChatGateway(priced, ledger=ledger), 3)
    free = ChatGateway(ChatEndpoint("b", server.base_url), ledger=ledger)
    server.script = ["500", "empty", None]
    ask(free, 1)
    summary = ledger.summary()
    a, b = summary["models"].values()
    assert (a["calls"], a["requests"], a["prompt_tokens"], a["completion_tokens"]) == (3, 3, 12, 6)
    assert a["cached_prompt_tokens"] == 9
    assert a["cost"] == pytest.approx(3 * (1 + 1.5 + 8) / 1e6, abs=1e-6)
    assert (b["calls"], b["requests"], b["cost"]) == (1, 3, None)
    assert b["prompt_tokens"] == 8  # an empty answer is paid for as well
    assert b["failures"] == {"500": 1, "empty answer": 1}
    assert summary["calls"] == 4 and summary["cost"] is None
    assert json.loads(json.dumps(summary)) == summary


def test_the_table_has_a_line_per_model_and_says_what_failed(server: ChatServer) -> None:
    gateway = ChatGateway(ChatEndpoint("a", server.base_url))
    server.script = ["503", "503"]
    ask(gateway, 1)
    titles, line, failed = gateway.ledger.table().splitlines()
    assert "USD" in titles and line.split()[:1] == [gateway.endpoint.label] and len(line) == len(titles)
    assert failed.endswith("503 2")


def test_quantiles_are_within_three_percent() -> None:
    ledger, rng = ChatLedger(), random.Random(0)
    ledger.open_account("a", Prices())
    seconds = sorted(rng.lognormvariate(0, 1) for _ in range(5000))
    for value in seconds:
        ledger.begin_request("a")
        ledger.end_request("a", latency_s=value)
    for share in (0.5, 0.9, 0.99):
        assert ledger.accounts["a"].quantile(share) == pytest.approx(seconds[int(share * 5000)], rel=0.03)


def test_no_request_is_sent_beyond_max_calls(server: ChatServer) -> None:
    server.faults = {"500": 0.3}
    gateway = ChatGateway(ChatEndpoint("a", server.base_url), ledger=ChatLedger(max_calls=20))
    results = ask(gateway, 40)
    assert server.num_requests == 20
    stopped = [result for result in results if isinstance(result, RunStoppedError)]
    assert len(stopped) >= 20 and "max_calls 20" in str(stopped[0])


def test_max_cost_is_not_overrun_by_what_is_under_way(server: ChatServer) -> None:
    server.latency_s = 0.01
    endpoint = ChatEndpoint("a", server.base_url, input_price=1.0, output_price=3.0, max_concurrency=8)
    gateway = ChatGateway(endpoint, ledger=ChatLedger(max_cost=20 * 10 / 1e6))  # 10 per call: 4 + 2 x 3
    results = ask(gateway, 60)
    assert any("max_cost" in str(result) for result in results if isinstance(result, RunStoppedError))
    assert 18 <= server.num_requests <= 20


def test_a_budget_is_shared_among_the_processes_of_a_run(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    ask(ChatGateway(ChatEndpoint("a", server.base_url), ledger=ChatLedger(max_calls=20)), 10)
    assert server.num_requests == 5


def test_a_budget_in_money_needs_prices() -> None:
    ledger = ChatLedger(max_cost=1.0)
    for prices in ({}, {"input_price": 1.0}, {"output_price": 1.0}):
        with pytest.raises(RecipeError, match=r"max_cost: .*input_price and output_price of m@h"):
            ChatGateway(ChatEndpoint("m", "http://h/v1", **prices), ledger=ledger)
    ChatGateway(ChatEndpoint("m", "http://h/v1", input_price=0.0, output_price=0.0), ledger=ledger)


@pytest.mark.parametrize("limits", [{"max_cost": 0}, {"max_cost": float("nan")}, {"max_calls": -1}, {"max_calls": "9"}])
def test_a_limit_is_a_number_above_zero(limits: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=f"^{next(iter(limits))}: "):
        ChatLedger(**limits)


def test_a_resumed_run_goes_on_counting(server: ChatServer) -> None:
    endpoint = ChatEndpoint("a", server.base_url, input_price=1.0, output_price=3.0)
    before = ChatLedger()
    server.script = ["500"]
    ask(ChatGateway(endpoint, ledger=before), 6)
    after = ChatLedger(max_calls=10)
    gateway = ChatGateway(endpoint, ledger=after)
    after.load_state(json.loads(json.dumps(before.state())))
    assert after.summary() == before.summary()
    ask(gateway, 6)
    assert server.num_requests == 10  # seven of them before
    assert after.summary()["cost"] == pytest.approx(before.summary()["cost"] * 9 / 6, abs=1e-6)


def test_the_same_state_is_loaded_before_or_after_the_account_is_opened() -> None:
    first, second = ChatLedger(), ChatLedger()
    first.open_account("a", Prices(1.0, 1.0))
    first.begin_request("a")
    first.end_request("a", usage=Usage(1_000_000, 0), latency_s=1.0)
    second.load_state(first.state())
    second.open_account("a", Prices(1.0, 1.0))
    assert second.summary() == first.summary() and second.summary()["cost"] == 1.0
