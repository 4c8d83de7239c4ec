"""The trainer's weights, whole and under the names of their checkpoint, a few at a time.

They may be in one piece (one process, DDP), or sharded (DeepSpeed ZeRO-3, FSDP2); there may be adapters, which are
merged into the copy that is yielded and never into the model. Where the weights go is in `sync_full.py` and
`sync_adapter.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ppp.checks import refuse

NamedTensors = list[tuple[str, Tensor]]

PEFT_PREFIX = "base_model.model."
_CHECKPOINTING = "_checkpoint_wrapped_module."  # what activation checkpointing of FSDP puts between


@dataclass(frozen=True)
class _Weight:
    """One weight to be had: its name, the parameters that it is made of, and how, once these are whole."""

    name: str
    parameters: Sequence[nn.Parameter]
    compute: Callable[[Sequence[Tensor]], Tensor]


def model_weights(model: nn.Module, max_bytes: int) -> Iterator[NamedTensors]:
    """All weights of the model, in buckets of at most `max_bytes` (a larger weight has one of its own).

    All processes have to iterate, to the end. The tensors may not be changed, and are gone with the next bucket.

    Raises:
        RecipeError: the model is sharded, or has adapters, in a way that is not known here.
    """
    base = base_model(model)
    for bucket in _gathered(
        _merged_weights(model) if isinstance(model, PeftModel) else _plain_weights(model), max_bytes
    ):
        yield checkpoint_weights(base, bucket)


def adapter_weights(model: PeftModel, adapter: str, max_bytes: int) -> Iterator[NamedTensors]:
    """The parameters of one adapter, under the model's own names; like `model_weights`.

    Nothing else is gathered.
    """
    wanted = [
        _Weight(name.replace(_CHECKPOINTING, ""), [parameter], _first)
        for name, parameter in model.named_parameters()
        if ".lora_" in name and f".{adapter}." in f"{name}."
    ]
    yield from _gathered(wanted, max_bytes)


def base_model(model: nn.Module) -> Any:
    """The model itself, without what holds its adapters."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def checkpoint_weights(model: Any, weights: NamedTensors) -> NamedTensors:
    """Weights of the model as a checkpoint has them: experts one by one, the prefix that a larger model's part has.

    A server passes over names that it does not know, and goes on with the weights that it has.
    """
    return list(revert_weight_conversion(model, dict(weights)).items())


def num_bytes(weights: NamedTensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for _, tensor in weights)


def _first(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0]


def _plain_weights(model: nn.Module) -> list[_Weight]:
    # Tied weights come once, as in a checkpoint.
    return [_Weight(name.replace(_CHECKPOINTING, ""), [parameter], _first) for name, parameter in _named(model)]


def _merged_weights(model: PeftModel) -> list[_Weight]:
    """The weights of the base model with the active adapter in them, under the base model's names."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    for name, layer in layers.items():
        if not isinstance(layer, LoraLinear) or layer.lora_variant or any(layer.lora_bias.values()):
            raise refuse("sync", "full", f"of adapters only plain LoRA on linear layers can be merged; see {name}")
    weights = []
    for name, parameter in _named(model):
        if ".lora_" in name or ".original_module." in name:
            continue
        owner = name.removesuffix(".base_layer.weight")
        own_name = name.replace(_CHECKPOINTING, "").removeprefix(PEFT_PREFIX)
        own_name = own_name.replace(".base_layer.", ".").replace(f".modules_to_save.{model.active_adapter}.", ".")
        if owner in layers and not layers[owner].merged:
            weights.append(_merged_weight(own_name, parameter, layers[owner]))
        else:
            weights.append(_Weight(own_name, [parameter], _first))
    return weights


def _merged_weight(name: str, base: nn.Parameter, layer: Any) -> _Weight:
    """W + scale * B A of every active adapter, in single precision, then in that of W."""
    active = [adapter for adapter in layer.active_adapters if adapter in layer.lora_A]
    scales = [layer.scaling[adapter] for adapter in active]

    def merge(tensors: Sequence[Tensor]) -> Tensor:
        whole = tensors[0].float()
        for index, scale in enumerate(scales):
            a, b = tensors[1 + 2 * index], tensors[2 + 2 * index]
            change = (b.float() @ a.float()) * scale
            whole = whole + (change.T if layer.fan_in_fan_out else change)
        return whole.to(tensors[0].dtype)

    parts = [part for adapter in active for part in (layer.lora_A[adapter].weight, layer.lora_B[adapter].weight)]
    return _Weight(name, [base, *parts], merge)


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise refuse("fsdp_version", 1, "2 is what servers can be given weights from")
    return model.named_parameters()


def _gathered(weights: Sequence[_Weight], max_bytes: int) -> Iterator[NamedTensors]:
    """Make the parameters whole, bucket by bucket, and what is wanted out of them."""
    is_zero3 = is_deepspeed_zero3_enabled()
    for bucket in _buckets(weights, max_bytes, is_zero3):
        parameters = [parameter for weight in bucket for parameter in weight.parameters]
        with torch.no_grad(), _whole(parameters) if is_zero3 else nullcontext():
            yield [(weight.name, weight.compute([_full(part) for part in weight.parameters])) for weight in bucket]


def _buckets(weights: Sequence[_Weight], max_bytes: int, is_zero3: bool) -> Iterator[list[_Weight]]:
    bucket: list[_Weight] = []
    size = 0
    for weight in weights:
        more = sum(_num_elements(part, is_zero3) * part.element_size() for part in weight.parameters)
        # One precision per bucket: they travel packed, and where wide numbers begin must be a multiple of their size.
        if bucket and (size + more > max_bytes or bucket[0].parameters[0].dtype != weight.parameters[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(weight)
        size += more
    if bucket:
        yield bucket


def _num_elements(parameter: Any, is_zero3: bool) -> int:
    """Of the whole parameter: what ZeRO-3 has taken apart says of itself that it is empty."""
    return parameter.ds_numel if is_zero3 else parameter.numel()


def _whole(parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
    import deepspeed  # an extra, and slow to import

    return deepspeed.zero.GatheredParameters(list(parameters))


def _full(tensor: Tensor) -> Tensor:
    """The tensor itself, or the whole of one that FSDP2 has taken apart."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    # With parameters on the CPU, its processes still talk through the accelerator.
    sharded: Any = tensor.detach().to(PartialState().device)
    return sharded.full_tensor()
