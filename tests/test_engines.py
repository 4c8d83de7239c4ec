"""The table of engines, and the engine that is made of rules."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3ForCausalLM

import ppp.engines
from ppp.codec import Codec
from ppp.engines import ENGINES, engine_class, vllm_colocate
from ppp.engines.base import Engine, EngineSettings, GenerationRequest
from ppp.engines.scripted import ScriptedEngine
from ppp.engines.vllm_colocate import VLLMColocateEngine
from ppp.types import RecipeError, Task, ToolCall, Turn

TASK = Task("t", "town", "prompt", "prompt", "no_preference", {})


def request(max_tokens: int) -> GenerationRequest:
    return GenerationRequest([1], max_tokens, 1, 0, TASK, [], "only")


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_every_engine_of_the_table_exists(name: str) -> None:
    assert issubclass(engine_class(name), Engine)


def test_unknown_engine_names_the_allowed_ones() -> None:
    with pytest.raises(RecipeError, match=r"engine: 'magic'.*scripted.*transformers"):
        engine_class("magic")


def test_library_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ppp.engines.REQUIRES, "scripted", ("pytest", "1000"))
    with pytest.raises(RecipeError, match="'scripted' needs pytest >= 1000, found"):
        engine_class("scripted")


class Asker:
    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall]:
        return "Let me ask.", ToolCall("ask_user", {"question": f"Number {len(turns)}?"})


def test_scripted_turns_parse_back(codec: Codec) -> None:
    generation = asyncio.run(ScriptedEngine(codec, Asker()).generate(request(500)))
    assert generation.finish_reason == "stop"
    assert len(generation.logprobs) == len(generation.token_ids)
    assert codec.parse(generation.token_ids).call == ToolCall("ask_user", {"question": "Number 0?"})


def test_scripted_turn_over_the_limit_is_cut(codec: Codec) -> None:
    generation = asyncio.run(ScriptedEngine(codec, Asker()).generate(request(10)))
    assert generation.finish_reason == "length"
    assert len(generation.token_ids) == 10
    assert codec.parse(generation.token_ids).call is None


def test_scripted_latency_is_awaited(codec: Codec) -> None:
    seen: list[str] = []

    async def latency(asked: GenerationRequest) -> None:
        seen.append(asked.request_id)

    asyncio.run(ScriptedEngine(codec, Asker(), latency).generate(request(10)))
    assert seen == ["only"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_cache": 1}, r"engine_options.kv_cache: unknown; .*did you mean 'kv_cache_gb'"),
        ({"gpu_memory_utilization": 1.5}, r"gpu_memory_utilization: 1.5 is not allowed; give a share in \(0, 1\]"),
        ({"gpu_memory_utilization": None}, "gpu_memory_utilization: None is not allowed"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size: 0 is not allowed"),
        ({"tensor_parallel_size": True}, "tensor_parallel_size: True is not allowed"),
        ({"max_num_seqs": 1.5}, "max_num_seqs: 1.5 is not allowed"),
        ({"kv_cache_gb": float("inf")}, "kv_cache_gb: inf is not allowed"),
        ({"enforce_eager": "yes"}, "enforce_eager: 'yes' is not allowed; give true or false"),
        ({"dtype": "int8"}, "dtype: 'int8' is not allowed; give one of float32"),
    ],
)
def test_bad_options_of_colocated_vllm_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        VLLMColocateEngine.check_options(options)


def test_options_of_colocated_vllm_may_be_left_open() -> None:
    VLLMColocateEngine.check_options({"kv_cache_gb": None, "dtype": None, "enable_sleep_mode": None, "max_num_seqs": 4})


def settings(options: Mapping[str, Any], **changed: Any) -> EngineSettings:
    usual: dict[str, Any] = {
        "model_name": "nowhere",
        "dtype": "auto",
        "lora_r": None,
        "eos_id": 0,
        "max_concurrency": 4,
        "max_length": 512,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "deterministic": False,
        "output_dir": Path("run"),
    }

    def no_model() -> Any:
        raise AssertionError("the model is not loaded yet")

    return EngineSettings(no_model, **{**usual, **changed}, options=options)


@pytest.mark.skipif(vllm_colocate.has_vllm(), reason="vLLM is installed here, so nothing says that it is missing")
def test_missing_vllm_is_named_with_the_way_to_get_it() -> None:
    with pytest.raises(RecipeError, match=r"engine: 'vllm_colocate' needs vLLM; install it with .*ppp\[vllm\]"):
        VLLMColocateEngine.check_run(settings({}))


@pytest.mark.parametrize(
    ("options", "changed", "message"),
    [
        ({"tensor_parallel_size": 2}, {}, "tensor_parallel_size: 2 is not allowed; must divide .* processes, 1"),
        ({"max_model_length": 100}, {}, "max_model_length: 100 is not allowed; .*trajectories of 512 tokens"),
        ({"enable_sleep_mode": True}, {}, "enable_sleep_mode: True is not allowed; there is no GPU"),
        ({}, {"max_length": 5000}, "trajectories of 5000 tokens are longer than the 2048 positions"),
        ({}, {"tied": True}, "model_name_or_path.*output layer"),
    ],
)
def test_runs_that_cannot_work_with_colocated_vllm_are_refused(
    model: Qwen3ForCausalLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    changed: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(vllm_colocate, "has_vllm", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model.config.tie_word_embeddings = changed.get("tied", False)
    model.config.save_pretrained(tmp_path)
    rest = {name: value for name, value in changed.items() if name != "tied"}
    with pytest.raises(RecipeError, match=message):
        VLLMColocateEngine.check_run(settings(options, model_name=str(tmp_path), **rest))
