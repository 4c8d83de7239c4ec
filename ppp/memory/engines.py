"""What generation takes: of the GPU that also trains, or of the GPUs of an inference server.

Not the engines themselves, which are in `ppp/engines`; only the sizes that their options ask for. `plan.py` comes next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ppp.engines.transformers import TransformersOptions, cache_blocks
from ppp.engines.vllm_colocate import ColocateOptions
from ppp.memory.trace import Counts, Pass, count_weights, trace
from ppp.memory.workload import GIB, MOMENTS, Hardware, Item, Workload

# vLLM's default share of a GPU; and what it takes besides weights and cache, for a forward pass and CUDA graphs.
SERVER_SHARE = 0.9
VLLM_BYTES = 4 * GIB
# What stays of a vLLM that sleeps: CUDA graphs and communicators.
ASLEEP_BYTES = int(1.5 * GIB)
# Copies of the last tokens' logits that sampling makes, in float32.
SAMPLING_COPIES = 4


@dataclass(frozen=True)
class Served:
    """A copy of the model in vLLM, over `num_gpus` GPUs.

    Attributes:
        weights: bytes of them per GPU.
        cache: bytes that are left for keys and values, per GPU; negative where not even the weights fit.
        cache_tokens: tokens for which that is enough, in the whole copy.
        trajectories: how many of the longest ones that makes.
    """

    num_gpus: int
    weights: int
    cache: int
    cache_tokens: int
    trajectories: float


def serve(workload: Workload, num_bytes: int, num_gpus: int = 1, cache_bytes: int | None = None) -> Served:
    """What vLLM has room for.

    Args:
        num_bytes: that it may take of each GPU.
        num_gpus: over which it splits heads and weights (tensor parallel).
        cache_bytes: for the cache, where that is given; otherwise what is left.
    """
    counts = count_weights(workload.config, workload.lora_r, workload.lora_targets)
    weights = (counts.total + counts.adapters) * workload.served_bytes // num_gpus
    cache = num_bytes - weights - VLLM_BYTES if cache_bytes is None else cache_bytes
    # With more GPUs than heads of keys and values, several keep the same.
    split = min(num_gpus, workload.config.get_text_config().num_key_value_heads)
    tokens = max(0, cache) * split // cache_bytes_per_token(workload, workload.served_bytes)
    return Served(num_gpus, weights, cache, tokens, tokens / workload.num_tokens)


def plan_server(workload: Workload, gpu_bytes: int, num_gpus: int, share: float = SERVER_SHARE) -> Served:
    """What a server of the recipe's model has room for, on GPUs of its own."""
    return serve(workload, int(gpu_bytes * share), num_gpus)


def colocated(workload: Workload, hardware: Hardware) -> Served | None:
    """What vLLM in the trainer's processes has room for; None where another engine generates."""
    if workload.engine != "vllm_colocate":
        return None
    options = ColocateOptions(**workload.engine_options)
    cache = None if options.kv_cache_gb is None else int(options.kv_cache_gb * GIB)
    return serve(
        workload, int(hardware.num_bytes * options.gpu_memory_utilization), options.tensor_parallel_size, cache
    )


def engine_items(workload: Workload, hardware: Hardware, counts: Counts, layers: Pass) -> Iterator[Item]:
    """What generation takes of the GPU that also trains.

    Args:
        layers: how the trainer runs them.
    """
    if workload.engine == "transformers":
        options = TransformersOptions(**workload.engine_options)
        blocks = cache_blocks(options, workload.max_concurrency, workload.num_tokens)
        per_token = cache_bytes_per_token(workload, layers.dtype.itemsize)
        yield Item("engine's cache", blocks * options.page_size * per_token)
        forward = replace(layers, num_rows=1, num_tokens=options.max_batch_tokens, checkpointing=True)
        num_logits = min(options.max_batch_tokens, workload.max_concurrency)  # only the last tokens have any
        logits = SAMPLING_COPIES * num_logits * workload.config.get_text_config().vocab_size * 4
        working = trace(workload.config, forward).working + logits
        yield Item("generation", working, ("rollout",), comes_and_goes=True)
        if hardware.sharding == "zero3":
            yield Item("gathered model", (counts.total + counts.adapters) * layers.dtype.itemsize, ("rollout",))
    served = colocated(workload, hardware)
    if served is not None:
        options_ = ColocateOptions(**workload.engine_options)
        sleeps = hardware.is_gpu if options_.enable_sleep_mode is None else options_.enable_sleep_mode
        share = served.weights + served.cache + VLLM_BYTES
        yield Item("vLLM", share, ("rollout",) if sleeps else MOMENTS)
        if sleeps:
            yield Item("vLLM asleep", ASLEEP_BYTES, tuple(moment for moment in MOMENTS if moment != "rollout"))


def cache_bytes_per_token(workload: Workload, width: int) -> int:
    """Keys and values of one token in all layers that keep them, at so many bytes a number."""
    text = workload.config.get_text_config()
    described = text.to_dict()
    kinds = list(described.get("layer_types") or ["full_attention"] * text.num_hidden_layers)
    layers = sum(kind != "linear_attention" for kind in kinds)
    head = described.get("head_dim") or text.hidden_size // text.num_attention_heads
    return 2 * layers * text.num_key_value_heads * head * width
