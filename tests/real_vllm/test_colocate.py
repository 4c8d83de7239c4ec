"""vLLM in the trainer's process, on a CPU: the same contract as the embedded engine's, with the real vLLM.

Run in the environment that has vLLM (`scripts/test.sh --vllm`).
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_contract import assert_agrees, play, play_all, prompt, request, tokens
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from ppp.codec import Codec
from ppp.engines.base import EngineSettings, Generation
from ppp.engines.vllm_colocate import VLLMColocateEngine
from ppp.tiny_model import random_qwen3
from ppp.types import InfrastructureError, RecipeError

SMALL = {"kv_cache_gb": 0.02}


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """A random Qwen3 with heads of 32: vLLM's attention on CPUs has none that are smaller."""
    return random_qwen3(
        tokenizer,
        0,
        max_length=2048,
        hidden_size=64,
        num_layers=2,
        num_heads=2,
        num_key_value_heads=1,
        initializer_range=0.2,
    ).eval()


@pytest.fixture
def folder(model: Qwen3ForCausalLM, tmp_path: Path) -> Path:
    """A folder with the model's configuration; vLLM reads no weights from it."""
    model.config.architectures = ["Qwen3ForCausalLM"]  # as in the folder of a saved model
    model.config.save_pretrained(tmp_path)
    model.name_or_path = str(tmp_path)
    return tmp_path


MakeEngine = Callable[..., VLLMColocateEngine]


@pytest.fixture
def make_engine(model: Qwen3ForCausalLM, codec: Codec, folder: Path) -> Iterator[MakeEngine]:
    """Makes engines on `model`, and closes them."""
    engines: list[VLLMColocateEngine] = []

    def make(
        provider: Callable[[], Any] = lambda: model, options: dict[str, Any] | None = None, **settings: Any
    ) -> VLLMColocateEngine:
        for engine in engines:  # there is one at a time in a process
            engine.close()
        usual: dict[str, Any] = {
            "model_name": str(folder),
            "dtype": "auto",
            "lora_r": None,
            "eos_id": codec.eos_id,
            "max_concurrency": 16,
            "max_length": 256,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "deterministic": False,
            "output_dir": folder,
        }
        engines.append(
            VLLMColocateEngine.build(
                EngineSettings(provider, **{**usual, **settings}, options={**SMALL, **(options or {})})
            )
        )
        engines[-1].check_run(engines[-1].settings)
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.7, 0), (1.0, 5)])
def test_logprobs_are_those_of_the_distribution_that_is_drawn_from(
    model: Qwen3ForCausalLM, make_engine: MakeEngine, temperature: float, top_k: int
) -> None:
    engine = make_engine(temperature=temperature, top_k=top_k)
    with engine.phase(0):
        results = asyncio.run(play_all(engine, range(12)))
    if top_k == 0:
        assert_agrees(model, results, temperature)
    else:
        first = results[0][0]
        with torch.no_grad():
            logits = model(torch.tensor([prompt(0)])).logits[0, -1]
        kept = logits.topk(top_k)
        assert first.token_ids[0] in kept.indices.tolist()
        expected = kept.values.log_softmax(-1)[kept.indices.tolist().index(first.token_ids[0])]
        assert abs(first.logprobs[0] - expected.item()) < 1e-4


def test_greedy_takes_the_most_likely_token(model: Qwen3ForCausalLM, make_engine: MakeEngine) -> None:
    engine = make_engine(temperature=0.0)
    with engine.phase(0):
        generation = asyncio.run(engine.generate(request(prompt(3), 10)))
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt(3), *generation.token_ids]])).logits[0]
    assert generation.token_ids == logits[19:-1].argmax(-1).tolist()


def test_tokens_do_not_depend_on_company_or_order(make_engine: MakeEngine) -> None:
    engine = make_engine()
    rng = random.Random(0)
    with engine.phase(0):
        together = asyncio.run(play_all(engine, range(12)))
        backwards = asyncio.run(play_all(engine, range(11, -1, -1), pause=lambda: rng.random() / 50))
        alone = {number: asyncio.run(play(engine, number)) for number in range(12)}
    assert tokens(together) == tokens(backwards) == tokens(alone)
    assert len({str(turns) for turns in tokens(together).values()}) == 12


def test_short_trajectories_leave_while_a_long_one_runs(make_engine: MakeEngine) -> None:
    engine = make_engine(max_length=2000)
    ended: list[str] = []

    async def generate() -> None:
        async def one(name: str, number: int, num_tokens: int) -> None:
            await engine.generate(request(prompt(number), num_tokens, key=number))
            ended.append(name)

        long = asyncio.create_task(one("long", 1, 600))
        await asyncio.sleep(0.05)
        for number in range(2, 6):  # each enters after the last has left
            await one("short", number, 3)
        await long

    with engine.phase(0):
        asyncio.run(generate())
    assert ended == ["short"] * 4 + ["long"]


def test_turn_ends_with_the_end_token(model: Qwen3ForCausalLM, make_engine: MakeEngine, codec: Codec) -> None:
    model.lm_head.weight.data[codec.eos_id] += 1.0
    engine = make_engine()
    with engine.phase(0):
        results = asyncio.run(play_all(engine, range(16)))
    generations = [generation for turns in results.values() for generation in turns]
    assert {generation.finish_reason for generation in generations} == {"stop", "length"}
    for generation in generations:
        assert (generation.token_ids[-1] == codec.eos_id) == (generation.finish_reason == "stop")
        assert codec.eos_id not in generation.token_ids[:-1]
        assert len(generation.logprobs) == len(generation.token_ids)


def test_each_phase_has_the_weights_of_its_step(model: Qwen3ForCausalLM, make_engine: MakeEngine) -> None:
    engine = make_engine()
    for step in range(3):
        with engine.phase(step):
            results = asyncio.run(play_all(engine, range(8)))
        assert_agrees(model, results)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    with engine.phase(2):  # the step says that nothing changed
        results = asyncio.run(play_all(engine, range(2)))
    with pytest.raises(AssertionError):
        assert_agrees(model, results)


def test_adapters_are_merged_into_what_vllm_gets_alone(model: Qwen3ForCausalLM, make_engine: MakeEngine) -> None:
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    before = {name: parameter.clone() for name, parameter in adapted.named_parameters()}
    engine = make_engine(lambda: adapted)
    with engine.phase(0):
        results = asyncio.run(play_all(engine, range(4)))
    assert_agrees(adapted.eval(), results)
    with adapted.disable_adapter(), pytest.raises(AssertionError):
        assert_agrees(adapted, results)
    assert all(torch.equal(parameter, before[name]) for name, parameter in adapted.named_parameters())


def test_cancelled_request_disturbs_nobody(model: Qwen3ForCausalLM, make_engine: MakeEngine) -> None:
    engine = make_engine(max_length=2000)

    async def generate() -> dict[int, list[Generation]]:
        endless = asyncio.create_task(engine.generate(request(prompt(50), 1900, key=50)))
        results = await play_all(engine, range(4))
        assert not endless.done()
        endless.cancel()
        return results

    with engine.phase(0):
        results = asyncio.run(generate())
    assert_agrees(model, results)
    with engine.phase(1):
        again = asyncio.run(play_all(engine, range(4)))
    assert tokens(again) == tokens(results)


def test_failing_step_fails_all_requests_and_the_next_phase_starts_another_engine(
    model: Qwen3ForCausalLM, make_engine: MakeEngine
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

    with engine.phase(0):
        assert engine._core is not None
        inner = engine._core._engine.model_executor.driver_worker.worker.model_runner.model
        inner.register_forward_pre_hook(fail_later)
        failures = asyncio.run(asyncio.wait_for(generate(), 60))
    assert [type(failure) for failure in failures] == [InfrastructureError] * 6
    assert {failure.kind for failure in failures} == {"engine"}
    assert "out of luck" in str(failures[0])
    with engine.phase(0):
        results = asyncio.run(play_all(engine, range(3)))
    assert_agrees(model, results)


def test_context_that_does_not_fit_is_refused_alone(make_engine: MakeEngine) -> None:
    engine = make_engine()

    async def generate() -> list[Any]:
        requests = (request(prompt(0, 250), 9), request(prompt(0), 9, key=2))
        return await asyncio.gather(*map(engine.generate, requests), return_exceptions=True)

    with engine.phase(0):
        refused, fine = asyncio.run(generate())
    assert isinstance(refused, InfrastructureError)
    assert "256 of engine_options.max_model_length" in str(refused)
    assert len(fine.token_ids) == 9


def test_generation_outside_of_a_phase_is_refused(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with pytest.raises(InfrastructureError, match="outside of a phase"):
        asyncio.run(engine.generate(request(prompt(0))))
    with engine.phase(0):
        pass
    with pytest.raises(InfrastructureError, match="outside of a phase"):
        asyncio.run(engine.generate(request(prompt(0))))


def test_vllm_has_one_thread_for_all_phases(make_engine: MakeEngine) -> None:
    before = set(threading.enumerate())
    engine = make_engine()
    seen = []
    for step in range(3):
        with engine.phase(step):
            asyncio.run(play_all(engine, range(2)))
            seen.append({thread for thread in set(threading.enumerate()) - before if thread.name.startswith("ppp")})
    assert len(seen[0]) == 1
    assert seen[0] == seen[1] == seen[2]
    engine.close()
    assert not any(thread.is_alive() for thread in seen[0])


def test_deterministic_phases_give_the_same_bits(make_engine: MakeEngine) -> None:
    found = []
    for seed in (1, 2):
        engine = make_engine(deterministic=True)
        rng = random.Random(seed)
        with engine.phase(0):
            found.append(asyncio.run(play_all(engine, range(8), pause=lambda rng=rng: rng.random() / 50)))
    assert found[0] == found[1]


def test_options_that_vllm_refuses_are_a_mistake_of_the_recipe(make_engine: MakeEngine) -> None:
    engine = make_engine(options={"kv_cache_gb": 100_000})
    with pytest.raises(RecipeError, match="engine_options: vLLM does not start"), engine.phase(0):
        pass
