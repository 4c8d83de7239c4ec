"""The engine for vLLM servers against servers that fail, die and come back; what they draw depends on their weights."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import httpx
import orjson
import pytest
from stub_engine import LabelSync, settings_for
from torch import nn
from vllm_stub import BAD_ANSWERS, EOS, FIRST, NUM_TOKENS, VLLMStub, tokens_of

from ppp.engines import engine_class
from ppp.engines.base import Generation, GenerationRequest
from ppp.engines.completions import Encoder, noise_seed
from ppp.engines.server_link import REFUSED_KIND
from ppp.engines.vllm_server import VLLMServerEngine
from ppp.engines.weight_sync import SYNCS
from ppp.types import InfrastructureError, RecipeError, RunStoppedError, Task

TASK = Task("t-1", "town", "vague", "precise", "no_preference", {})


@pytest.fixture(autouse=True)
def label_sync(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    monkeypatch.setitem(SYNCS, "full", LabelSync)
    LabelSync.calls = []
    return LabelSync.calls


@pytest.fixture
def stub() -> Iterator[VLLMStub]:
    with VLLMStub() as server:
        yield server


@pytest.fixture
def other() -> Iterator[VLLMStub]:
    with VLLMStub() as server:
        yield server


def request(key: int, prompt: Sequence[int] = (1, 2, 3), position: int = 0, max_tokens: int = 50) -> GenerationRequest:
    return GenerationRequest(list(prompt), max_tokens, key, position, TASK, [], f"{key}-{position}")


def drawn(key: int, weights: str, position: int = 0, max_tokens: int = 50) -> list[int]:
    return tokens_of(noise_seed(key, position), weights, max_tokens)[0]


def play(engine: VLLMServerEngine, work: Callable[[], Awaitable[Any]], step: int = 0) -> Any:
    """One phase in an event loop of its own."""

    async def inside() -> Any:
        try:
            return await work()
        finally:
            await engine.leave_loop()

    with engine.phase(step):
        return asyncio.run(inside())


async def all_of(engine: VLLMServerEngine, keys: Sequence[int]) -> list[Generation | BaseException]:
    return await asyncio.gather(*(engine.generate(request(key)) for key in keys), return_exceptions=True)


# --- one turn --------------------------------------------------------------------------------------------------------


def test_a_turn_has_the_tokens_and_log_probabilities_that_the_server_drew(stub: VLLMStub) -> None:
    engine = VLLMServerEngine.build(settings_for(stub))
    found = play(engine, lambda: engine.generate(request(7, position=5)))
    ids, logprobs = tokens_of(noise_seed(7, 5), "w0", 50)
    assert found == Generation(ids, logprobs, "stop")


@pytest.mark.parametrize(("max_tokens", "reason"), [(NUM_TOKENS - 1, "length"), (NUM_TOKENS, "stop"), (1, "length")])
def test_a_turn_is_cut_off_at_its_limit(stub: VLLMStub, max_tokens: int, reason: str) -> None:
    engine = VLLMServerEngine.build(settings_for(stub))
    found = play(engine, lambda: engine.generate(request(7, max_tokens=max_tokens)))
    assert (len(found.token_ids), found.finish_reason) == (max_tokens, reason)


def test_every_way_to_bend_the_distribution_is_named_in_a_request(stub: VLLMStub) -> None:
    engine = VLLMServerEngine.build(settings_for(stub, temperature=0.7, top_k=20, top_p=0.9))
    play(engine, lambda: engine.generate(request(7, [5, 6], position=3, max_tokens=9)))
    (body,) = stub.bodies()
    assert body == {
        "prompt": [5, 6], "max_tokens": 9, "seed": noise_seed(7, 3), "temperature": 0.7, "top_k": 20, "top_p": 0.9,
        "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "stop_token_ids": [EOS], "ignore_eos": True, "logprobs": 0, "return_tokens_as_token_ids": True,
    }  # fmt: skip


def test_noise_depends_on_trajectory_and_position_alone() -> None:
    seeds = [noise_seed(key, position) for key in (0, 1, 2**64 - 1) for position in (0, 1, 10_000)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert noise_seed(12, 3) == noise_seed(12, 3) and noise_seed(1, 23) != noise_seed(12, 3)


def test_a_prompt_that_grew_is_encoded_like_a_new_one() -> None:
    encoder = Encoder(EOS, 1.0, 0, 1.0, max_prompts=2)
    prompts = {key: [key] * 3 for key in range(4)}  # more than are kept
    for round_number in range(4):
        for key, ids in prompts.items():
            if round_number != 2:  # the same again: a second attempt
                ids += [round_number, 150_000]
            body = encoder.encode(GenerationRequest(ids, 5, key, round_number, TASK, [], "r"))
            assert orjson.loads(body)["prompt"] == ids
    again = [9, 9]  # the same trajectory, played anew
    assert orjson.loads(encoder.encode(GenerationRequest(again, 5, 3, 0, TASK, [], "r")))["prompt"] == again


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_servers", [1, 2])
@pytest.mark.parametrize("fault", [*BAD_ANSWERS, "hang", "disconnect"])
def test_a_bad_answer_is_asked_for_again(stub: VLLMStub, other: VLLMStub, fault: str, num_servers: int) -> None:
    stubs = [stub, other][:num_servers]
    engine = VLLMServerEngine.build(settings_for(*stubs, options={"request_timeout_s": 0.5}))
    stub.faults.append(fault)
    found = play(engine, lambda: engine.generate(request(7)))
    assert found.token_ids == drawn(7, "w0")
    assert [len(server.bodies()) for server in stubs] == ([2] if num_servers == 1 else [1, 1])


@pytest.mark.parametrize("fault", ["500", "cut_json", "few_logprobs", "disconnect"])
def test_two_bad_answers_lose_the_session_with_the_engine(stub: VLLMStub, fault: str) -> None:
    engine = VLLMServerEngine.build(settings_for(stub))
    stub.faults.extend([fault, fault])
    with pytest.raises(InfrastructureError) as raised:
        play(engine, lambda: engine.generate(request(7)))
    assert raised.value.kind == "engine" and len(stub.bodies()) == 2


def test_what_a_server_will_never_serve_is_asked_for_once(stub: VLLMStub) -> None:
    engine = VLLMServerEngine.build(settings_for(stub))
    stub.faults.append("400")
    with pytest.raises(InfrastructureError, match="too long") as raised:
        play(engine, lambda: engine.generate(request(7)))
    assert raised.value.kind == REFUSED_KIND and len(stub.bodies()) == 1


def test_nothing_is_generated_outside_of_a_phase(stub: VLLMStub) -> None:
    engine = VLLMServerEngine.build(settings_for(stub))
    with pytest.raises(InfrastructureError, match="outside"):
        asyncio.run(engine.generate(request(7)))
    assert not stub.requests


def test_a_cancelled_turn_is_aborted_by_the_server(stub: VLLMStub) -> None:
    engine = VLLMServerEngine.build(settings_for(stub))
    stub.hold_answers()

    async def cancel() -> None:
        arrived = asyncio.Event()
        loop = asyncio.get_running_loop()
        stub.on_completion = lambda: loop.call_soon_threadsafe(arrived.set)
        turn = asyncio.create_task(engine.generate(request(7)))
        await arrived.wait()
        turn.cancel()
        await asyncio.gather(turn, return_exceptions=True)
        while not stub.num_aborted:
            await asyncio.sleep(0.01)

    play(engine, cancel)
    assert len(stub.requests) == 1
    with engine.phase(1):  # nothing is left in flight
        pass


# --- several servers -------------------------------------------------------------------------------------------------


def test_trajectories_are_spread_evenly_and_stay_where_their_prefix_is(stub: VLLMStub, other: VLLMStub) -> None:
    engine = VLLMServerEngine.build(settings_for(stub, other))

    async def turns() -> None:
        for position in range(4):
            order = range(20) if position % 2 == 0 else range(19, -1, -1)
            await asyncio.gather(*(engine.generate(request(key, [key], position)) for key in order))

    play(engine, turns)
    homes = [Counter(body["prompt"][0] for body in server.bodies()) for server in (stub, other)]
    assert [len(home) for home in homes] == [10, 10] and set(homes[0]).isdisjoint(homes[1])
    assert all(count == 4 for home in homes for count in home.values())


def test_a_new_trajectory_goes_where_less_is_under_way(stub: VLLMStub, other: VLLMStub) -> None:
    engine = VLLMServerEngine.build(settings_for(stub, other))
    stub.hold_answers()

    async def turns() -> None:
        busy = [asyncio.create_task(engine.generate(request(key))) for key in range(2)]
        await next(iter(asyncio.as_completed(busy)))  # the one on the other server
        for key in range(2, 8):
            await engine.generate(request(key))
        stub.release_answers()
        await asyncio.gather(*busy)

    play(engine, turns)
    assert (len(stub.bodies()), len(other.bodies())) == (1, 7)


def test_sessions_of_a_server_that_dies_go_on_elsewhere_and_it_waits_for_the_next_weights(
    stub: VLLMStub, other: VLLMStub, label_sync: list[tuple[str, Any]]
) -> None:
    engine = VLLMServerEngine.build(settings_for(stub, other))

    async def turns() -> list[Any]:
        await all_of(engine, range(8))
        stub.restart()
        return await all_of(engine, range(8))

    found = play(engine, turns)
    assert [turn.token_ids for turn in found] == [drawn(key, "w0") for key in range(8)]
    assert not stub.bodies() and stub.lives == 2
    label_sync.clear()
    found = play(engine, lambda: all_of(engine, range(8)), step=0)
    assert [turn.token_ids for turn in found] == [drawn(key, "w0") for key in range(8)]
    assert len(stub.bodies()) == 4, "it has the weights again"
    assert label_sync == [("disconnect", stub.url), ("connect", stub.url), ("publish", (0, (stub.url,)))]


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["idle", "noticed", "busy", "between phases"])
def test_a_restarted_server_answers_nothing_before_it_has_the_weights(stub: VLLMStub, when: str) -> None:
    """Its own requests would be answered with tokens of the first weights, and nobody would know."""
    engine = VLLMServerEngine.build(settings_for(stub))

    async def idle() -> list[Any]:
        first = await all_of(engine, range(4))
        stub.restart()
        if when == "noticed":  # the old connections are known to be closed: none will fail on the way
            await asyncio.sleep(0.1)
        return [*first, *await all_of(engine, range(4, 8))]

    async def busy() -> list[Any]:
        first = await all_of(engine, range(4))
        stub.hold_answers()
        turns = asyncio.create_task(all_of(engine, range(4, 8)))
        while len(stub.requests) < 8:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(stub.restart)
        return [*first, *await turns]

    if when == "between phases":
        found = play(engine, lambda: all_of(engine, range(4)))
        stub.restart()
        found += play(engine, lambda: all_of(engine, range(4, 8)))
        assert [turn.token_ids for turn in found] == [drawn(key, "w0") for key in range(8)]
        return
    found = play(engine, busy if when == "busy" else idle)
    assert [turn.token_ids for turn in found[:4]] == [drawn(key, "w0") for key in range(4)]
    assert all(isinstance(turn, InfrastructureError) and turn.kind == "engine" for turn in found[4:])
    assert not stub.bodies(), "no request reached the server with the first weights"
    found = play(engine, lambda: all_of(engine, range(4, 8)))
    assert [turn.token_ids for turn in found] == [drawn(key, "w0") for key in range(4, 8)]


def test_weights_of_another_run_are_noticed(stub: VLLMStub) -> None:
    engine = VLLMServerEngine.build(settings_for(stub))

    async def turns() -> Any:
        first = await engine.generate(request(1))
        VLLMServerEngine.build(settings_for(stub))
        stub.version = "somebody else's"
        stub.faults.append("disconnect")  # as good as any other reason to make a new connection
        with pytest.raises(InfrastructureError, match="other weights"):
            await engine.generate(request(2))
        return first

    assert play(engine, turns).token_ids == drawn(1, "w0")


def test_who_waits_for_a_server_that_is_lost_is_told_at_once(stub: VLLMStub) -> None:
    engine = VLLMServerEngine.build(settings_for(stub))

    async def turns() -> list[Any]:
        stub.version = "somebody else's"
        stub.faults.extend(["hang", "hang", "hang", "disconnect"])
        return await asyncio.wait_for(all_of(engine, range(4)), timeout=60)

    async def proven_first() -> list[Any]:
        await all_of(engine, range(4))  # on connections that are kept
        return await turns()

    assert all(isinstance(turn, InfrastructureError) for turn in play(engine, proven_first))


def test_a_burst_of_connections_costs_two_proofs(stub: VLLMStub) -> None:
    engine = VLLMServerEngine.build(settings_for(stub))

    async def burst() -> int:
        before = stub.num_proofs
        await all_of(engine, range(200))
        return stub.num_proofs - before

    assert play(engine, burst) <= 2 and stub.num_open <= 200


def test_weights_are_sent_once_for_each_step(stub: VLLMStub, other: VLLMStub, label_sync: list[Any]) -> None:
    engine = VLLMServerEngine.build(settings_for(stub, other))
    for step in (0, 0, 1, 3):
        found = play(engine, lambda: all_of(engine, range(4)), step)
        assert [turn.token_ids for turn in found] == [drawn(key, f"w{step}") for key in range(4)]
    both = (stub.url, other.url)
    assert [call for call in label_sync if call[0] == "publish"] == [("publish", (step, both)) for step in (0, 1, 3)]


def test_an_adapter_is_asked_for_by_name_and_a_server_without_it_is_lost(
    stub: VLLMStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NameSync(LabelSync):
        def publish(self, model: nn.Module, step: int, base_urls: Sequence[str]) -> dict[str, str]:
            for url in base_urls:
                httpx.post(f"{url}/v1/load_lora_adapter", json={"lora_name": "ppp-0"}, timeout=5, trust_env=False)
            return {}

        def model_name(self) -> str | None:
            return "ppp-0"

    monkeypatch.setitem(SYNCS, "adapter", NameSync)
    engine = VLLMServerEngine.build(settings_for(stub, lora_r=8))

    async def turns() -> list[Any]:
        first = await all_of(engine, [1])
        stub.adapters.clear()
        return [*first, *await all_of(engine, [2])]

    found = play(engine, turns)
    assert found[0].token_ids == drawn(1, "ppp-0") and {body["model"] for body in stub.bodies()} == {"ppp-0"}
    assert isinstance(found[1], InfrastructureError) and found[1].kind == "engine"
    assert play(engine, lambda: engine.generate(request(2))).token_ids == drawn(2, "ppp-0")


def test_servers_with_weights_of_their_own_are_used_as_they_are(stub: VLLMStub) -> None:
    engine = VLLMServerEngine.build(settings_for(stub, options={"sync": "none"}))
    assert play(engine, lambda: engine.generate(request(1))).token_ids == drawn(1, FIRST)
    assert stub.version == FIRST


# --- outages ---------------------------------------------------------------------------------------------------------


def test_a_phase_waits_for_the_only_server(stub: VLLMStub) -> None:
    engine = VLLMServerEngine.build(settings_for(stub))
    play(engine, lambda: all_of(engine, [1]))
    stub.die()
    timer = threading.Timer(1.5, stub.start)
    timer.start()
    found = play(engine, lambda: all_of(engine, [1]), step=1)
    timer.join()
    assert found[0].token_ids == drawn(1, "w1")


def test_a_phase_does_not_wait_while_another_server_is_there(stub: VLLMStub, other: VLLMStub) -> None:
    engine = VLLMServerEngine.build(settings_for(stub, other))
    stub.die()
    found = play(engine, lambda: all_of(engine, range(4)))
    assert [turn.token_ids for turn in found] == [drawn(key, "w0") for key in range(4)]


def test_an_outage_ends_the_run_after_its_limit(stub: VLLMStub) -> None:
    engine = VLLMServerEngine.build(settings_for(stub, options={"max_outage_s": 0.1}))
    stub.die()
    with pytest.raises(RunStoppedError, match=rf"0\.1 s \(max_outage_s\): {stub.url}"), engine.phase(0):
        pass


def test_a_server_that_takes_no_weights_is_left_out(
    stub: VLLMStub, other: VLLMStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HalfSync(LabelSync):
        def publish(self, model: nn.Module, step: int, base_urls: Sequence[str]) -> dict[str, str]:
            super().publish(model, step, [url for url in base_urls if url == other.url])
            return {url: "broken pipe" for url in base_urls if url != other.url}

    monkeypatch.setitem(SYNCS, "full", HalfSync)
    engine = VLLMServerEngine.build(settings_for(stub, other))
    found = play(engine, lambda: all_of(engine, range(4)))
    assert [turn.token_ids for turn in found] == [drawn(key, "w0") for key in range(4)]
    assert not stub.requests


def test_leaving_the_loop_closes_every_connection(stub: VLLMStub) -> None:
    engine = VLLMServerEngine.build(settings_for(stub))
    for step in range(2):  # another loop each time
        play(engine, lambda: all_of(engine, range(20)), step)

        async def wait() -> None:
            while stub.num_open:
                await asyncio.sleep(0.01)

        asyncio.run(asyncio.wait_for(wait(), 10))


# --- the operator's mistakes -----------------------------------------------------------------------------------------

URL = "http://127.0.0.1:8000"
BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "engine_options.base_urls"),
    ({"base_urls": []}, "engine_options.base_urls"),
    ({"base_urls": 3}, "engine_options.base_urls: 3"),
    ({"base_urls": ["127.0.0.1:8000"]}, "127.0.0.1:8000"),
    ({"base_urls": f"{URL}/v1"}, "without a path such as /v1"),
    ({"base_urls": [URL, f"{URL}/"]}, "each server once"),
    ({"base_url": URL}, "did you mean 'base_urls'"),
    ({"base_urls": URL, "sync": "partial"}, "engine_options.sync: 'partial' is unknown; allowed: adapter, full, none"),
    ({"base_urls": URL, "sync_options": [1]}, "engine_options.sync_options"),
    ({"base_urls": URL, "sync": "none", "sync_options": {"bucket": 1}}, "bucket"),
    ({"base_urls": URL, "max_outage_s": -1}, "engine_options.max_outage_s: -1"),
    ({"base_urls": URL, "max_outage_s": True}, "engine_options.max_outage_s: True"),
    ({"base_urls": URL, "request_timeout_s": float("inf")}, "engine_options.request_timeout_s: inf"),
    ({"base_urls": URL, "request_timeout_s": "60"}, "engine_options.request_timeout_s: '60'"),
    ({"base_urls": URL, "max_connections": 0}, "engine_options.max_connections: 0"),
    ({"base_urls": URL, "max_connections": 1.5}, "engine_options.max_connections: 1.5"),
    ({"base_urls": URL, "api_key_env": 5}, "engine_options.api_key_env: 5"),
]


@pytest.mark.parametrize(("options", "said"), BAD_OPTIONS)
def test_an_option_that_cannot_be_used_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match="engine_options") as raised:
        engine_class("vllm_server").check_options(options)
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("options", [{"base_urls": URL}, {"base_urls": [URL, "https://gpu-2:443/"], "sync": "none"}])
def test_options_that_can_be_used_pass(options: dict[str, Any]) -> None:
    engine_class("vllm_server").check_options(options)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_length": 4097}, ["4,096", "4,097", "--max-model-len 4097"]),
        ({"deterministic": True}, ["deterministic: True", "false"]),
        ({"temperature": 2.5}, ["temperature", "2.5", "2"]),
        ({"options": {"api_key_env": "PPP_NO_SUCH_KEY"}}, ["engine_options.api_key_env", "PPP_NO_SUCH_KEY"]),
        ({"options": {"sync_options": {"bucket": 1}}}, ["sync_options", "bucket"]),
        ({"is_training": True, "options": {"sync": "none"}}, ["engine_options.sync: 'none'", "full or adapter"]),
    ],
)
def test_a_run_that_the_server_cannot_serve_is_refused(stub: VLLMStub, changes: Any, said: list[str]) -> None:
    with pytest.raises(RecipeError) as raised:
        VLLMServerEngine.check_run(settings_for(stub, **changes))
    assert all(word in str(raised.value) for word in said), raised.value


def test_a_server_whose_log_probabilities_mean_another_distribution_is_refused() -> None:
    with (
        VLLMStub(logprobs_mode="raw_logprobs") as stub,
        pytest.raises(RecipeError, match="raw_logprobs; start it with --logprobs-mode processed_logprobs"),
    ):
        VLLMServerEngine.check_run(settings_for(stub))


def test_a_server_that_is_not_there_is_refused_by_name(stub: VLLMStub) -> None:
    VLLMServerEngine.check_run(settings_for(stub))
    stub.die()
    with pytest.raises(RecipeError, match=f"engine_options.base_urls: '{stub.url}'"):
        VLLMServerEngine.check_run(settings_for(stub))
