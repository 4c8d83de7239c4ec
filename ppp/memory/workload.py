"""What memory is planned for: the hardware, what a recipe asks of it, the items that come of both. No arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PretrainedConfig

from ppp.recipe import Recipe

GIB = 2**30
Sharding = Literal["none", "zero2", "zero3", "fsdp2"]
Moment = Literal["rollout", "loss", "backward", "update"]
MOMENTS: tuple[Moment, ...] = ("rollout", "loss", "backward", "update")

# Of a GPU sold as "80 GB", 79.2 GiB can be allocated; of "141 GB" 139.8 GiB.
USABLE = 0.99


@dataclass(frozen=True)
class Hardware:
    """What the processes of a run have.

    Attributes:
        num_gpus: processes, each with one GPU (or a share of the CPU).
        num_bytes: memory of each.
        sharding: how the trainer's states are spread over them.
        offload: whether the optimizer's states are in the memory of the host.
        is_gpu: whether Triton's kernels run, and a context takes memory.
        gpus_per_node: how many share a host.
    """

    num_gpus: int
    num_bytes: int
    sharding: Sharding
    offload: bool = False
    is_gpu: bool = True
    gpus_per_node: int = 8


@dataclass(frozen=True)
class Workload:
    """What a recipe asks for, as far as memory goes.

    Attributes:
        config: of the model.
        dtype: in which weights are loaded.
        mixed: whether the step is run in mixed precision with bf16.
        num_rows, prompt_tokens, completion_tokens: the largest micro-batch.
        checkpointing, attention: see `trace.Pass`.
        lora_r, lora_targets: adapters; None trains all weights.
        has_reference: whether a KL term needs a second model.
        engine, engine_options: what generates.
        max_concurrency: trajectories at the same time, per process.
    """

    config: PretrainedConfig
    dtype: torch.dtype
    mixed: bool
    num_rows: int
    prompt_tokens: int
    completion_tokens: int
    checkpointing: bool
    attention: str
    lora_r: int | None
    lora_targets: tuple[str, ...]
    has_reference: bool
    engine: str
    engine_options: Mapping[str, Any]
    max_concurrency: int

    @classmethod
    def of(cls, recipe: Recipe, config: PretrainedConfig, *, on_gpu: bool) -> Workload:
        """What this recipe asks for.

        Args:
            on_gpu: plan for GPUs, also on a machine that has none.
        """
        ours, args = recipe.config, recipe.args
        limits = ours.build_limits(args.max_completion_length or 1)
        dtype = ours.dtype if ours.dtype != "auto" else str(config.dtype or torch.float32).removeprefix("torch.")
        return cls(
            config,
            dtype=getattr(torch, dtype),
            mixed=recipe.values["bf16"] is not False if on_gpu else bool(args.bf16),
            num_rows=args.per_device_train_batch_size,
            prompt_tokens=limits.max_prompt_tokens,
            completion_tokens=limits.max_completion_tokens,
            checkpointing=bool(args.gradient_checkpointing),
            attention=str((args.model_init_kwargs or {}).get("attn_implementation") or "sdpa"),
            lora_r=ours.lora_r if ours.use_peft else None,
            lora_targets=tuple(ours.lora_target_modules),
            has_reference=args.beta > 0,
            engine=ours.engine,
            engine_options=ours.engine_options,
            max_concurrency=ours.max_concurrency,
        )

    @property
    def num_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def served_bytes(self) -> int:
        """Bytes of a number in vLLM, which has no use for single precision on a GPU."""
        return min(2, self.dtype.itemsize)

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number where the layers compute."""
        return 2 if self.mixed else self.dtype.itemsize


@dataclass(frozen=True)
class Item:
    """Memory for one purpose, at the moments of a step at which it is there."""

    name: str
    num_bytes: int
    moments: tuple[Moment, ...] = MOMENTS
    comes_and_goes: bool = False
