"""The embedded engine against plain forward passes, in any company, with failures and cancellations."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from engine_contract import assert_agrees, forward_logprobs, play, play_all, prompt, request, tokens
from peft import LoraConfig, get_peft_model
from transformers import Qwen3ForCausalLM
from trl.trainer.utils import add_fused_lm_head

from ppp.codec import Codec
from ppp.engines.base import Engine, Generation
from ppp.engines.transformers import TransformersEngine
from ppp.types import InfrastructureError, RecipeError

MakeEngine = Callable[..., TransformersEngine]


@pytest.fixture
def make_engine(model: Qwen3ForCausalLM, codec: Codec) -> Iterator[MakeEngine]:
    """Makes engines on `model`, and closes them."""
    engines: list[TransformersEngine] = []

    def make(provider: Callable[[], Any] = lambda: model, **options: Any) -> TransformersEngine:
        sizes = {"max_concurrency": 16, "max_length": 128}
        engines.append(TransformersEngine(provider, codec.eos_id, **{**sizes, **options}))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_a_forward_pass(
    model: Qwen3ForCausalLM, make_engine: MakeEngine, temperature: float
) -> None:
    engine = make_engine(temperature=temperature)
    with engine.phase(0):
        results = asyncio.run(play_all(engine, range(12)))
    assert_agrees(model, results, temperature)


def test_long_prompts_in_pieces_agree_with_a_forward_pass(model: Qwen3ForCausalLM, make_engine: MakeEngine) -> None:
    """Requests that are still reading their prompt share batches with others that get tokens."""
    engine = make_engine(options={"max_batch_tokens": 16}, max_length=400)

    async def generate() -> list[Generation]:
        lengths = (30, 150, 18, 77)
        return await asyncio.gather(*(engine.generate(request(prompt(i, n), 20, key=i)) for i, n in enumerate(lengths)))

    with engine.phase(0):
        generations = asyncio.run(generate())
    for number, length in enumerate((30, 150, 18, 77)):
        expected = forward_logprobs(model, prompt(number, length), generations[number].token_ids, 1.0)
        torch.testing.assert_close(torch.tensor(generations[number].logprobs), expected, atol=1e-4, rtol=0)


def test_new_weights_empty_the_cache_of_prefixes(model: Qwen3ForCausalLM, make_engine: MakeEngine) -> None:
    engine = make_engine()
    for step in range(3):
        with engine.phase(step):
            results = asyncio.run(play_all(engine, range(8)))
        assert_agrees(model, results)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)


def test_two_phases_of_one_step_share_their_prefixes(model: Qwen3ForCausalLM, make_engine: MakeEngine) -> None:
    engine = make_engine()
    num_read: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, kwargs: num_read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    for step in (0, 0, 1):
        num_read.append(0)
        with engine.phase(step):
            asyncio.run(engine.generate(request(prompt(1, 100), 4)))
    hook.remove()
    first_passes = [num_read[index + 1] for index, number in enumerate(num_read) if number == 0]
    assert first_passes == [100, 4, 100]


def test_tokens_do_not_depend_on_company_or_order(make_engine: MakeEngine) -> None:
    engine = make_engine()
    rng = random.Random(0)
    with engine.phase(0):
        together = asyncio.run(play_all(engine, range(12)))
        backwards = asyncio.run(play_all(engine, range(11, -1, -1), pause=lambda: rng.random() / 100))
        alone = {number: asyncio.run(play(engine, number)) for number in range(12)}
    assert tokens(together) == tokens(backwards) == tokens(alone)
    assert len({str(turns) for turns in tokens(together).values()}) == 12


def test_a_full_cache_changes_no_token(make_engine: MakeEngine) -> None:
    """Requests that lose their place in the cache start over; their noise goes on where it was."""
    roomy, tight = make_engine(), make_engine(options={"num_blocks": 12, "page_size": 8})

    async def generate(engine: Engine) -> list[list[int]]:
        results = await asyncio.gather(*(engine.generate(request(prompt(i), 40, key=i, position=3)) for i in range(6)))
        return [generation.token_ids for generation in results]

    with roomy.phase(0):
        expected = asyncio.run(generate(roomy))
    with tight.phase(0):
        assert asyncio.run(generate(tight)) == expected


def test_greedy_takes_the_most_likely_token(model: Qwen3ForCausalLM, make_engine: MakeEngine) -> None:
    engine = make_engine(temperature=0.0)
    with engine.phase(0):
        generation = asyncio.run(engine.generate(request(prompt(3), 10)))
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt(3), *generation.token_ids]])).logits[0]
    assert generation.token_ids == logits[19:-1].argmax(-1).tolist()


def test_turn_ends_with_the_end_token(model: Qwen3ForCausalLM, make_engine: MakeEngine, codec: Codec) -> None:
    engine = make_engine()
    model.lm_head.weight.data[codec.eos_id] += 1.0
    with engine.phase(0):
        results = asyncio.run(play_all(engine, range(16)))
    generations = [generation for turns in results.values() for generation in turns]
    assert {generation.finish_reason for generation in generations} == {"stop", "length"}
    for generation in generations:
        assert (generation.token_ids[-1] == codec.eos_id) == (generation.finish_reason == "stop")
        assert codec.eos_id not in generation.token_ids[:-1]


def test_outside_of_a_phase_the_model_is_the_trainers(model: Qwen3ForCausalLM, make_engine: MakeEngine) -> None:
    engine = make_engine()
    ids = torch.tensor([prompt(0)])
    before = model(ids).logits
    attention = model.config._attn_implementation
    model.train()
    with engine.phase(0):
        asyncio.run(play_all(engine, range(2)))
        assert not model.training
    assert model.training
    assert model.config._attn_implementation == attention
    torch.testing.assert_close(model(ids).logits, before)


def test_model_with_the_trainers_fused_head_generates(model: Qwen3ForCausalLM, make_engine: MakeEngine) -> None:
    add_fused_lm_head(model, temperature=1.0)
    engine = make_engine()
    with engine.phase(0):
        results = asyncio.run(play_all(engine, range(4)))
    assert_agrees(model, results)
    ids = torch.tensor([prompt(0)])
    fused = model(ids, labels=ids, fused_lm_head=True).log_probs[0]
    expected = forward_logprobs(model, prompt(0)[:1], prompt(0)[1:], 1.0)
    torch.testing.assert_close(fused[-19:], expected, atol=1e-4, rtol=0)


def test_adapters_are_part_of_the_policy(model: Qwen3ForCausalLM, make_engine: MakeEngine) -> None:
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    engine = make_engine(lambda: adapted)
    with engine.phase(0):
        results = asyncio.run(play_all(engine, range(4)))
    assert_agrees(adapted.eval(), results)
    with adapted.disable_adapter(), pytest.raises(AssertionError):
        assert_agrees(adapted, results)


def test_failing_forward_fails_all_requests_and_the_next_phase_recovers(
    model: Qwen3ForCausalLM, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    num_calls = 0

    def fail_later(_: Any, __: Any) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls > 3:
            raise RuntimeError("out of luck")

    async def generate() -> list[Any]:
        requests = (engine.generate(request(prompt(i), 10, key=i)) for i in range(5))
        failures = await asyncio.gather(*requests, return_exceptions=True)
        late = await asyncio.gather(engine.generate(request(prompt(9))), return_exceptions=True)
        return [*failures, *late]

    hook = model.register_forward_pre_hook(fail_later)
    with engine.phase(0):
        failures = asyncio.run(asyncio.wait_for(generate(), 60))
    hook.remove()
    assert [type(failure) for failure in failures] == [InfrastructureError] * 6
    assert "out of luck" in str(failures[0])
    with engine.phase(0):
        results = asyncio.run(play_all(engine, range(3)))
    assert_agrees(model, results)


def test_cancelled_request_disturbs_nobody(model: Qwen3ForCausalLM, make_engine: MakeEngine) -> None:
    engine = make_engine(max_length=2000)

    async def generate() -> dict[int, list[Generation]]:
        endless = asyncio.create_task(engine.generate(request(prompt(50), 1500, key=50)))
        results = await play_all(engine, range(4))
        endless.cancel()
        return results

    with engine.phase(0):
        results = asyncio.run(generate())
    assert_agrees(model, results)
    with engine.phase(1):
        again = asyncio.run(play_all(engine, range(4)))
    assert tokens(again) == tokens(results)


def test_context_that_does_not_fit_is_refused_alone(make_engine: MakeEngine) -> None:
    engine = make_engine(max_length=3000)

    async def generate() -> list[Any]:
        requests = (request(prompt(0, 2040), 9), request(prompt(0), 9, key=2))
        return await asyncio.gather(*map(engine.generate, requests), return_exceptions=True)

    with engine.phase(0):
        refused, fine = asyncio.run(generate())
    assert isinstance(refused, InfrastructureError)
    assert "2048 positions of the model" in str(refused)
    assert len(fine.token_ids) == 9


def test_generation_outside_of_a_phase_is_refused(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with pytest.raises(InfrastructureError, match="outside of a phase"):
        asyncio.run(engine.generate(request(prompt(0))))
    with engine.phase(0):
        pass
    with pytest.raises(InfrastructureError, match="outside of a phase"):
        asyncio.run(engine.generate(request(prompt(0))))


def test_engine_threads_do_not_keep_the_process_alive(make_engine: MakeEngine) -> None:
    before = set(threading.enumerate())
    engine = make_engine()
    with engine.phase(0):
        new = set(threading.enumerate()) - before
        assert new
        assert all(thread.daemon for thread in new)
    engine.close()
    assert not any(thread.is_alive() for thread in new)


def batches(model: Qwen3ForCausalLM, engine: TransformersEngine, numbers: Sequence[int], seed: int) -> list[list[int]]:
    """The tokens of every forward pass of a phase whose trajectories come and go at random times."""
    seen: list[list[int]] = []
    rng = random.Random(seed)
    hook = model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    with engine.phase(0):
        asyncio.run(play_all(engine, numbers, pause=lambda: rng.random() / 50))
    hook.remove()
    return seen


def test_deterministic_batches_do_not_depend_on_timing(model: Qwen3ForCausalLM, make_engine: MakeEngine) -> None:
    engine = make_engine(deterministic=True)
    first = batches(model, engine, range(8), seed=1)
    assert first == batches(model, engine, range(7, -1, -1), seed=2)
    assert first == batches(model, make_engine(deterministic=True), range(8), seed=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"page": 3}, "engine_options.page: unknown; allowed are .*page_size"),
        ({"page_size": 0}, "engine_options.page_size: 0 is not allowed"),
        ({"max_batch_tokens": "many"}, "engine_options.max_batch_tokens: 'many' is not allowed"),
        ({"num_blocks": True}, "engine_options.num_blocks: True is not allowed"),
        ({"max_batch_tokens": None}, "engine_options.max_batch_tokens: None is not allowed"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        TransformersEngine.check_options(options)
