"""Adds up what a process needs: weights, optimizer and their sharding, activations, logits, the engine that generates.

It is an estimate, and what it rests on stands at the constants: it knows no allocator, and no kernels but those named
there. Not in it: what comes of it, which is in `advice.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ppp.memory.engines import Served, colocated, engine_items
from ppp.memory.trace import Counts, Pass, count_weights, trace
from ppp.memory.workload import GIB, MOMENTS, Hardware, Item, Moment, Workload

# Rows and columns of a tile of logits in TRL's fused head; `tests/test_trl_contract.py` compares them with TRL's own.
TOKEN_CHUNK_SIZE, VOCAB_CHUNK_SIZE = 4096, 32768
# The driver's context, the workspaces of cuBLAS, the buffers of NCCL.
CONTEXT_BYTES = int(1.5 * GIB)
# Of what comes and goes within a step, what the allocator cannot use again because it is in pieces.
MARGIN = 0.1
# DeepSpeed's defaults: what it keeps gathered (stage3_max_live_parameters) and fetches ahead (prefetch_bucket_size),
# where gradients are put together to be reduced (reduce_bucket_size), what is updated at once (sub_group_size).
MAX_LIVE_WEIGHTS = 1_000_000_000
PREFETCHED_WEIGHTS = 50_000_000
BUCKET_WEIGHTS = 500_000_000
SUB_GROUP_WEIGHTS = 1_000_000_000
ADAM_STATES = 2
# float32 copies of a tile of logits that TRL's head makes where there is no Triton, that is on a CPU.
CPU_TILE_COPIES = 7


@dataclass(frozen=True)
class MemoryPlan:
    """What one process needs, in the largest step that the recipe allows.

    Attributes:
        items: what it is needed for.
        host_bytes: what a host needs for its processes.
        served: the copy of the model in vLLM, where that is in the trainer's processes.
    """

    workload: Workload
    hardware: Hardware
    counts: Counts
    items: tuple[Item, ...]
    host_bytes: int
    served: Served | None

    def at(self, moment: Moment) -> int:
        """Bytes at a moment, without the margin."""
        return sum(item.num_bytes for item in self.items if moment in item.moments)

    def margin(self, moment: Moment) -> int:
        """What the allocator cannot use then."""
        moving = (item.num_bytes for item in self.items if item.comes_and_goes and moment in item.moments)
        return int(MARGIN * sum(moving))

    @property
    def peak(self) -> Moment:
        return max(MOMENTS, key=lambda moment: self.at(moment) + self.margin(moment))

    @property
    def total(self) -> int:
        return self.at(self.peak) + self.margin(self.peak)

    @property
    def fits(self) -> bool:
        return self.total <= self.hardware.num_bytes and (self.served is None or self.served.trajectories >= 1)

    def bytes_of(self, name: str) -> int:
        return sum(item.num_bytes for item in self.items if item.name == name)


def plan_memory(workload: Workload, hardware: Hardware) -> MemoryPlan:
    """Add up what a process needs."""
    counts = count_weights(workload.config, workload.lora_r, workload.lora_targets)
    items = [
        *_states(workload, hardware, counts),
        *_step(workload, hardware, counts),
        *engine_items(workload, hardware, counts, layers_pass(workload, hardware)),
    ]
    if hardware.is_gpu:
        items.append(Item("CUDA, NCCL", CONTEXT_BYTES))
    host = _host_bytes(workload, hardware, counts)
    found = tuple(item for item in items if item.num_bytes)
    return MemoryPlan(workload, hardware, counts, found, host, colocated(workload, hardware))


def _states(workload: Workload, hardware: Hardware, counts: Counts) -> Iterator[Item]:
    """Weights, adapters, gradients, optimizer, reference."""
    is_lora, shards = workload.lora_r is not None, hardware.num_gpus
    trained = counts.adapters if is_lora else counts.total
    if hardware.sharding in ("zero2", "zero3"):
        width = workload.compute_bytes
        held = shards if hardware.sharding == "zero3" else 1
        on_gpu = not hardware.offload
        bucket = BUCKET_WEIGHTS if hardware.is_gpu else min(BUCKET_WEIGHTS, trained)  # a CPU gives only what is used
        yield Item("weights", counts.total * width // held)
        yield Item("adapters", counts.adapters * width // held)
        yield Item("gradients", trained * width // shards if on_gpu else 0)
        yield Item("gradient bucket", bucket * width)
        # float32 copies of the weights, and Adam's two states of each.
        yield Item("optimizer", trained * 4 * (1 + ADAM_STATES) // shards if on_gpu else 0)
        yield Item("reference model", 0 if is_lora or not workload.has_reference else counts.total * width // held)
    elif hardware.sharding == "fsdp2":
        width = workload.dtype.itemsize  # accelerate casts what is trained to float32
        yield Item("weights", (counts.total * width if is_lora else counts.total * 4) // shards)
        yield Item("adapters", counts.adapters * 4 // shards)
        yield Item("gradients", trained * 4 // shards)
        yield Item("optimizer", trained * 4 * ADAM_STATES // shards)
        yield Item("reference model", 0 if is_lora or not workload.has_reference else counts.total * width // shards)
    else:
        width = workload.dtype.itemsize
        trained_width = 4 if is_lora else width  # PEFT keeps adapters in float32
        yield Item("weights", counts.total * width)
        yield Item("adapters", counts.adapters * trained_width)
        # DDP reduces gradients in buckets, which are a second copy of them.
        yield Item("gradients", trained * trained_width * (2 if shards > 1 else 1))
        yield Item("optimizer", trained * trained_width * ADAM_STATES)
        yield Item("reference model", 0 if is_lora or not workload.has_reference else counts.total * width)


def layers_pass(workload: Workload, hardware: Hardware) -> Pass:
    """How the layers are run: DeepSpeed in the precision of its weights, all others under autocast."""
    sharded = hardware.sharding in ("zero3", "fsdp2", "zero2") and workload.mixed
    is_lora, is_zero3 = workload.lora_r is not None, hardware.sharding == "zero3"
    return Pass(
        workload.num_rows,
        workload.num_tokens,
        dtype=torch.bfloat16 if sharded else workload.dtype,
        autocast=workload.mixed and hardware.sharding in ("none", "fsdp2"),
        checkpointing=workload.checkpointing,
        reentrant=is_lora and is_zero3,  # TRL insists on it there
        attention=workload.attention,
        lora_r=workload.lora_r,
        lora_targets=workload.lora_targets,
        adapter_dtype=torch.bfloat16 if sharded else torch.float32,
    )


def _step(workload: Workload, hardware: Hardware, counts: Counts) -> Iterator[Item]:
    """What comes and goes within a training step."""
    traced = trace(workload.config, layers_pass(workload, hardware))
    width = workload.compute_bytes
    yield Item("activations", traced.kept, ("loss", "backward"), comes_and_goes=True)
    yield Item("a layer at work", traced.working, ("backward",), comes_and_goes=True)
    yield Item("logits", _logits_bytes(workload, hardware, counts), ("loss",), comes_and_goes=True)
    if hardware.sharding == "zero3":
        live = min(counts.total, MAX_LIVE_WEIGHTS + PREFETCHED_WEIGHTS)
        yield Item("gathered layers", live * width, ("loss", "backward"), comes_and_goes=True)
        trained = counts.adapters if workload.lora_r is not None else counts.total
        piece = 0 if hardware.offload else min(SUB_GROUP_WEIGHTS, trained // hardware.num_gpus)
        yield Item("piece of the update", piece * 4, ("update",), comes_and_goes=True)
    elif hardware.sharding == "fsdp2":
        live = 2 * counts.layer + 2 * counts.head
        yield Item("gathered layers", live * width, ("loss", "backward"), comes_and_goes=True)


def _logits_bytes(workload: Workload, hardware: Hardware, counts: Counts) -> int:
    """What TRL's chunked head takes: a tile of logits, and float32 sums of the gradients of its input and weights."""
    width, text = workload.compute_bytes, workload.config.get_text_config()
    num_scored = workload.num_rows * (workload.completion_tokens if hardware.is_gpu else workload.num_tokens - 1)
    tile_rows = min(num_scored, TOKEN_CHUNK_SIZE)
    tile = tile_rows * VOCAB_CHUNK_SIZE * width
    if not hardware.is_gpu:
        tile += CPU_TILE_COPIES * tile_rows * min(VOCAB_CHUNK_SIZE, text.vocab_size) * 4
    of_input = num_scored * text.hidden_size * (4 + 2 * width)  # the sum, what is handed on, and a copy of the input
    of_weights = 0 if workload.lora_r is not None else counts.head * (4 + width)
    return tile + of_input + of_weights


def _host_bytes(workload: Workload, hardware: Hardware, counts: Counts) -> int:
    """Memory of a host: the optimizer's states where they are offloaded, and each process's copy while it loads."""
    per_node = min(hardware.num_gpus, hardware.gpus_per_node)
    trained = counts.adapters if workload.lora_r is not None else counts.total
    states = 0
    if hardware.offload:
        states = trained * (4 * (1 + ADAM_STATES) + workload.compute_bytes) * per_node // hardware.num_gpus
    # ZeRO-3 spreads weights while it reads them; with FSDP one process reads and tells the others.
    copies = {"zero3": 0, "fsdp2": 1}.get(hardware.sharding, per_node)
    return max(states, copies * counts.total * workload.dtype.itemsize)
