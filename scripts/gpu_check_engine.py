"""The parts of `gpu_check.py` that are about vLLM and the forward pass alone; those that train are in
`gpu_check_training.py`.

A part returns what it measured; it raises `Skip` where something is missing that it needs, and anything else where the
product does not do what it should.
"""

from __future__ import annotations

import asyncio
import importlib.util
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ppp.engines.base import EngineSettings, Generation, GenerationRequest
from ppp.engines.vllm_colocate import VLLMColocateEngine, has_vllm
from ppp.types import Task

MAX_MEAN_DIFFERENCE = 0.05  # of log-probabilities in bfloat16, between vLLM and the trainer
MAX_SINGLE_DIFFERENCE = 1e-3  # in single precision
GIB = 2**30
TASK = Task("t", "town", "prompt", "prompt", "no_preference", {})


@dataclass(frozen=True)
class Scale:
    """How much a part does; tokens are per trajectory, but for `turn_tokens` and `observation_tokens`."""

    num_trajectories: int
    num_turns: int
    prompt_tokens: int
    turn_tokens: int
    observation_tokens: int
    long_tokens: int
    kv_cache_gb: float | None

    @property
    def max_length(self) -> int:
        return self.prompt_tokens + self.num_turns * (self.turn_tokens + self.observation_tokens)


SCALES = {
    "full": Scale(128, 4, 1024, 256, 512, 32_768, None),
    "tiny": Scale(4, 2, 32, 8, 8, 512, 0.05),
}


@dataclass(frozen=True)
class Setup:
    """What all parts share; `folder` is scratch space, `model` a folder that `transformers` can load."""

    device: str
    scale: str
    model: str
    folder: str

    @property
    def size(self) -> Scale:
        return SCALES[self.scale]

    @property
    def is_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.is_gpu else "float32"


class Skip(Exception):
    """The part needs something that this machine does not have."""


def need_vllm() -> None:
    if not has_vllm():
        raise Skip("vLLM is not installed")


def need_gpu(setup: Setup, num: int = 1) -> None:
    found = torch.cuda.device_count() if setup.is_gpu else 0
    if found < num:
        raise Skip(f"needs {num} GPU{'s' if num > 1 else ''}, found {found}")


def load_model(setup: Setup, dtype: str, **options: Any) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(setup.model, dtype=getattr(torch, dtype), **options)
    return model.to(setup.device).eval()


def make_engine(setup: Setup, model: PreTrainedModel, **options: Any) -> VLLMColocateEngine:
    """The engine on `model`, awake between phases unless an option says otherwise."""
    usual = {"kv_cache_gb": setup.size.kv_cache_gb, "enable_sleep_mode": False, "gpu_memory_utilization": 0.5}
    settings = EngineSettings(
        model_provider=lambda: model,
        model_name=setup.model,
        dtype="auto",
        lora_r=None,
        eos_id=AutoTokenizer.from_pretrained(setup.model).eos_token_id,
        max_concurrency=setup.size.num_trajectories,
        max_length=setup.size.max_length,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        deterministic=False,
        output_dir=Path(setup.folder),
        options={**usual, **options},
    )
    VLLMColocateEngine.check_run(settings)
    return VLLMColocateEngine.build(settings)


Played = list[tuple[list[int], Generation]]
"""Turns with the context that each was generated from."""


def play_all(engine: VLLMColocateEngine, scale: Scale, vocabulary: int) -> list[Played]:
    """Trajectories at the same time, of turns and observations that take no time, so that the engine is what counts."""

    async def play(number: int) -> Played:
        rng = random.Random(number)
        context = [rng.randrange(vocabulary) for _ in range(scale.prompt_tokens)]
        played: Played = []
        for turn in range(scale.num_turns):
            position = len(context) - scale.prompt_tokens
            request = GenerationRequest(
                context, scale.turn_tokens, number, position, TASK, [], f"{number:06d}-{turn:03d}"
            )
            generation = await engine.generate(request)
            played.append((context, generation))
            observed = [rng.randrange(vocabulary) for _ in range(scale.observation_tokens)]
            context = [*context, *generation.token_ids, *observed]
        return played

    async def play_together() -> list[Played]:
        return await asyncio.gather(*(play(number) for number in range(scale.num_trajectories)))

    return asyncio.run(play_together())


def differences(model: PreTrainedModel, trajectories: list[Played]) -> dict[str, float]:
    """How far vLLM's log-probabilities are from those of a forward pass, over the turns of a few trajectories."""
    found = []
    for context, generation in [turn for played in trajectories[:8] for turn in played]:
        ids = torch.tensor([[*context, *generation.token_ids]], device=model.device)
        with torch.no_grad():
            logits = model(ids, logits_to_keep=len(generation.token_ids) + 1).logits[0, :-1].float()
        own = logits.log_softmax(-1).gather(-1, ids[0, len(context) :, None]).squeeze(-1).cpu()
        found.append((own - torch.tensor(generation.logprobs)).abs())
    every = torch.cat(found)
    return {"logprob_difference_mean": every.mean().item(), "logprob_difference_max": every.max().item()}


def require_agreement(found: dict[str, float], dtype: str) -> None:
    key, limit = (
        ("logprob_difference_max", MAX_SINGLE_DIFFERENCE)
        if dtype == "float32"
        else ("logprob_difference_mean", MAX_MEAN_DIFFERENCE)
    )
    if not found[key] <= limit:
        raise AssertionError(f"{key} is {found[key]:.2g} in {dtype}, more than {limit}")


def move(model: PreTrainedModel) -> None:
    """Change every weight, as a large update would."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * parameter.std(), alpha=0.05)


def colocate(setup: Setup) -> dict[str, Any]:
    """vLLM in this process: start, bring weights, generate, change them, bring them again; tokens per second."""
    need_vllm()
    model = load_model(setup, setup.dtype)
    engine = make_engine(setup, model)
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    found: dict[str, Any] = {"weights_gb": num_bytes / GIB}
    for step, name in enumerate(("first", "second")):
        began = time.perf_counter()
        with engine.phase(step):
            found["start_s" if step == 0 else "sync_s"] = time.perf_counter() - began
            began = time.perf_counter()
            trajectories = play_all(engine, setup.size, model.config.vocab_size)
            seconds = time.perf_counter() - began
        agreement = differences(model, trajectories)
        require_agreement(agreement, setup.dtype)
        num_tokens = sum(len(generation.token_ids) for played in trajectories for _, generation in played)
        found[name] = {
            **agreement,
            "generate_s": seconds,
            "tokens_per_s": num_tokens / seconds,
            "trajectories_per_min": 60 * len(trajectories) / seconds,
        }
        move(model)
    engine.close()
    return found | {"sync_gb_per_s": found["weights_gb"] / found["sync_s"]}


def bf16(setup: Setup) -> dict[str, Any]:
    """bfloat16 in vLLM against a forward pass in bfloat16, and against one in single precision."""
    need_vllm()
    model = load_model(setup, "bfloat16")
    engine = make_engine(setup, model, enforce_eager=True)
    with engine.phase(0):
        trajectories = play_all(engine, setup.size, model.config.vocab_size)
    engine.close()
    same = differences(model, trajectories)
    require_agreement(same, "bfloat16")
    single = {f"float32_{name}": value for name, value in differences(model.float(), trajectories).items()}
    return {**same, **single}


def sleep(setup: Setup) -> dict[str, Any]:
    """Memory of the GPU before vLLM, in a phase, after it, in the next one; right tokens after each waking."""
    need_vllm()
    need_gpu(setup)
    model = load_model(setup, setup.dtype)

    def used_gb() -> float:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return (total - free) / GIB

    engine = make_engine(setup, model, enable_sleep_mode=True)
    found: dict[str, Any] = {"before_gb": used_gb(), "awake_gb": [], "asleep_gb": [], "wake_s": [], "sleep_s": []}
    for step in range(3):
        began = time.perf_counter()
        with engine.phase(step):
            found["wake_s"].append(time.perf_counter() - began)
            trajectories = play_all(engine, setup.size, model.config.vocab_size)
            found["awake_gb"].append(used_gb())
            began = time.perf_counter()
        found["sleep_s"].append(time.perf_counter() - began)
        found["asleep_gb"].append(used_gb())
        require_agreement(differences(model, trajectories), setup.dtype)
        move(model)
    engine.close()
    freed = found["awake_gb"][-1] - found["asleep_gb"][-1]
    if freed < 0.8 * (found["awake_gb"][-1] - found["before_gb"]):
        raise AssertionError(f"asleep it gave back {freed:.1f} GiB only: {found}")
    return found | {"freed_gb": freed}


def flash_attention(setup: Setup) -> dict[str, Any]:
    """The trainer's forward pass with flash attention against PyTorch's own: difference and speed."""
    need_gpu(setup)
    if importlib.util.find_spec("flash_attn") is None:
        raise Skip("flash_attn is not installed")
    torch.manual_seed(0)
    num_tokens = setup.size.long_tokens // 4
    found: dict[str, Any] = {"num_tokens": num_tokens}
    logits = {}
    for name in ("sdpa", "flash_attention_2"):
        model = load_model(setup, "bfloat16", attn_implementation=name)
        ids = torch.arange(num_tokens, device="cuda")[None] * 7919 % model.config.vocab_size
        with torch.no_grad():
            model(ids, logits_to_keep=1)  # the first is slower
            torch.cuda.synchronize()
            began = time.perf_counter()
            logits[name] = model(ids, logits_to_keep=64).logits.float().log_softmax(-1)
            torch.cuda.synchronize()
        found[f"{name}_s"] = time.perf_counter() - began
        del model
    difference = (logits["sdpa"] - logits["flash_attention_2"]).abs().mean().item()
    if not difference < MAX_MEAN_DIFFERENCE:
        raise AssertionError(f"log-probabilities differ by {difference:.2g} on average")
    return found | {"logprob_difference_mean": difference}


ENGINE: dict[str, Callable[[Setup], dict[str, Any]]] = {
    "colocate": colocate,
    "bf16": bf16,
    "sleep": sleep,
    "flash_attention": flash_attention,
}
