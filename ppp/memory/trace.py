"""What one forward and backward pass of a model allocates, found without weights, without a GPU and in under a second.

The model is built from its config with nothing behind its tensors (torch's meta and fake tensors) and run through its
own code, at the recipe's lengths, for one and for two periods of its layers; the difference is what a further period
takes. So nothing here knows an architecture by name. What needs no run, optimizer, sharding and logits, is in
`plan.py`.
"""

from __future__ import annotations

import copy
import json
import warnings
import weakref
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ppp.checks import refuse
from ppp.whole_models import whole_models

LOAD_ERRORS = (OSError, ValueError, KeyError, ImportError)  # what transformers raises for a config that it cannot read
# Linear attention falls back to a loop in Python; its memory grows with the tokens, so a short run tells all of it.
_MAX_LOOPED_TOKENS = 512
# transformers makes no mask where nothing is padded, which it cannot see of fake tensors: this one never makes any.
_MASKLESS = "sdpa_without_mask"
AttentionInterface.register(_MASKLESS, sdpa_attention_forward)
AttentionMaskInterface.register(_MASKLESS, lambda *args, **kwargs: None)


class NotTraceableError(Exception):
    """The model's code looks at values, which fake tensors do not have; its memory cannot be planned."""


@dataclass(frozen=True)
class Pass:
    """How the model is run.

    Attributes:
        num_rows, num_tokens: sequences of a micro-batch, and tokens of each.
        dtype: of the weights as they are held while the layers run.
        autocast: whether they are run in mixed precision with bf16.
        checkpointing: whether activations are computed again in the backward pass.
        reentrant: which of torch's two ways of doing that.
        attention: `attn_implementation`; those that pad nothing away ("flash_...") need no mask.
        lora_r: rank of the adapters; None trains all weights.
        lora_targets: modules that get them.
        adapter_dtype: of the adapters.
    """

    num_rows: int
    num_tokens: int
    dtype: torch.dtype
    autocast: bool
    checkpointing: bool
    reentrant: bool = False
    attention: str = "sdpa"
    lora_r: int | None = None
    lora_targets: tuple[str, ...] = ("all-linear",)
    adapter_dtype: torch.dtype = torch.float32

    @property
    def needs_mask(self) -> bool:
        """Whether sequences of unlike length make attention see a mask of tokens x tokens."""
        return self.num_rows > 1 and not self.attention.startswith("flash")


@dataclass(frozen=True)
class Traced:
    """Bytes of one pass, without weights and their gradients.

    Attributes:
        kept: what the forward pass leaves for the backward pass.
        working: what is there beside that, at most, while layers run forward or backward.
    """

    kept: int
    working: int


@dataclass(frozen=True)
class Counts:
    """Numbers of weights.

    Attributes:
        total: of the model, without adapters; tied weights once.
        layer: of one layer (of the mean of a period).
        head: of the output layer, tied or not.
        adapters: of all adapters.
    """

    total: int
    layer: int
    head: int
    adapters: int


def load_config(name: str, overrides: dict[str, Any], trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a model in a folder or on the Hub; nothing else of it is downloaded.

    Raises:
        RecipeError: there is none.
    """
    try:
        if (Path(name) / "adapter_config.json").is_file():  # its model is what takes the memory
            name = str(PeftConfig.from_pretrained(name).base_model_name_or_path)
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **overrides)
    except LOAD_ERRORS as error:
        first_line = str(error).strip().split("\n")[0]
        raise refuse(
            "model_name_or_path", name, f"a folder or a name on the Hub with a config ({first_line})"
        ) from error


def count_weights(config: PretrainedConfig, lora_r: int | None, lora_targets: tuple[str, ...]) -> Counts:
    """Count the weights of the model that the config describes, on torch's meta device."""
    return _count_weights(_Described(config), lora_r, lora_targets)


def trace(config: PretrainedConfig, how: Pass) -> Traced:
    """What a forward and a backward pass of the whole model allocate.

    Raises:
        NotTraceableError: the model cannot be run without values.
    """
    try:
        return _trace(_Described(config), how)
    except RuntimeError as error:  # the base of what fake tensors raise
        first_line = str(error).strip().split("\n")[0]
        raise NotTraceableError(f"memory of {config.model_type!r} cannot be planned: {first_line}") from error


class _Described:
    """A config that `lru_cache` can compare, which it is by what it says."""

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config
        self._text = json.dumps(config.to_dict(), default=str, sort_keys=True)

    def __hash__(self) -> int:
        return hash(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Described) and self._text == other._text


@lru_cache(maxsize=1024)
def _count_weights(described: _Described, lora_r: int | None, lora_targets: tuple[str, ...]) -> Counts:
    config = described.config
    whole = _meta_model(config, torch.bfloat16)
    text = config.get_text_config()
    period, num_layers = _period(config), text.num_hidden_layers
    one, two = (_meta_model(_shortened(config, num), torch.bfloat16) for num in (period, 2 * period))
    adapters = 0
    if lora_r is not None:
        first, second = (_num_adapters(model, lora_r, lora_targets) for model in (one, two))
        adapters = first + (second - first) * (num_layers - period) // period
    head = whole.get_output_embeddings()
    return Counts(
        total=sum(weight.numel() for weight in whole.parameters()),
        layer=(_num_weights(two) - _num_weights(one)) // period,
        head=0 if head is None else sum(weight.numel() for weight in head.parameters()),
        adapters=adapters,
    )


@lru_cache(maxsize=1024)
def _trace(described: _Described, how: Pass) -> Traced:
    config = described.config
    period, num_layers = _period(config), config.get_text_config().num_hidden_layers
    tokens = how.num_tokens
    if "linear_attention" in _layer_types(config):
        tokens = min(tokens, _MAX_LOOPED_TOKENS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # new names that the oldest transformers we take does not have
        first, second = (_trace_layers(_shortened(config, num), how, tokens) for num in (period, 2 * period))
    per_period = second.kept - first.kept
    kept = first.kept + per_period * (num_layers - period) // period
    scale = how.num_tokens / tokens
    return Traced(int(kept * scale), int(second.working * scale))


def _trace_layers(config: PretrainedConfig, how: Pass, num_tokens: int) -> Traced:
    """Run the model, without its output layer, over fake tensors, and watch what is alive."""
    model = _meta_model(config, how.dtype, "eager" if how.attention == "eager" else _MASKLESS)
    if how.lora_r is not None:
        model = _with_adapters(model, how.lora_r, how.lora_targets)
    with FakeTensorMode():
        _put_on_cpu(model, how.adapter_dtype)
        model.train()
        base: PreTrainedModel = model.get_base_model() if how.lora_r is not None else model
        if how.checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": how.reentrant})
            if how.lora_r is not None:
                base.enable_input_require_grads()  # as TRL does
        ids = torch.empty((how.num_rows, num_tokens), dtype=torch.long)
        mask = _mask(how, num_tokens)
        with _LiveBytes(model) as live:
            with torch.autocast("cpu", torch.bfloat16, enabled=how.autocast):
                hidden = base.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            kept = live.now
            hidden.backward(torch.ones_like(hidden))
        return Traced(kept, live.peak - kept)


def _mask(how: Pass, num_tokens: int) -> torch.Tensor | None:
    """The mask of attention, ready-made; None where transformers goes without."""
    shape = (how.num_rows, 1, num_tokens, num_tokens)
    if how.attention == "eager":
        return torch.empty(shape, dtype=how.dtype)
    return torch.empty(shape, dtype=torch.bool) if how.needs_mask else None


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, those of the model's weights and their gradients not included."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary()
        for tensor in [*model.parameters(), *model.buffers()]:
            self._known[tensor.untyped_storage()] = True
            if tensor.grad is not None:
                self._known[tensor.grad.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        num_bytes = storage.nbytes()
        self._known[storage] = True
        self.now += num_bytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, num_bytes)

    def _forget(self, num_bytes: int) -> None:
        self.now -= num_bytes


def _meta_model(config: PretrainedConfig, dtype: torch.dtype, attention: str = "sdpa") -> PreTrainedModel:
    with torch.device("meta"), whole_models():
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype, attn_implementation=attention)


def _with_adapters(model: PreTrainedModel, lora_r: int, targets: tuple[str, ...]) -> Any:
    modules = "all-linear" if targets == ("all-linear",) else list(targets)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that weights on the meta device have no values; new names of transformers
        try:
            return get_peft_model(model, LoraConfig(r=lora_r, target_modules=modules, task_type="CAUSAL_LM"))
        except ValueError as error:
            raise refuse("lora_target_modules", list(targets), "modules of the model, or all-linear") from error


def _num_adapters(model: PreTrainedModel, lora_r: int, targets: tuple[str, ...]) -> int:
    adapted = _with_adapters(model, lora_r, targets)
    return sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)


def _num_weights(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def _put_on_cpu(model: nn.Module, adapter_dtype: torch.dtype) -> None:
    """Give the weights of a meta model fake storage, and those that are trained a gradient, as after a micro-batch."""
    adapted = any(not weight.requires_grad for weight in model.parameters())
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            dtype = adapter_dtype if adapted and weight.requires_grad else weight.dtype
            fake = nn.Parameter(torch.empty(weight.shape, dtype=dtype), requires_grad=weight.requires_grad)
            fake.grad = torch.empty_like(fake) if weight.requires_grad else None
            setattr(module, name, fake)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _layer_types(config: PretrainedConfig) -> list[str]:
    return list(config.get_text_config().to_dict().get("layer_types") or ())


def _period(config: PretrainedConfig) -> int:
    """After how many layers their kinds repeat; 1 where all are alike."""
    kinds, num_layers = _layer_types(config), config.get_text_config().num_hidden_layers
    for period in range(1, num_layers // 2 + 1):
        if all(kind == kinds[position % period] for position, kind in enumerate(kinds)):
            return period
    return max(1, num_layers // 2)


def _shortened(config: PretrainedConfig, num_layers: int) -> PretrainedConfig:
    shorter = copy.deepcopy(config)
    text = shorter.get_text_config()
    kinds = _layer_types(config)
    text.num_hidden_layers = num_layers
    for name, value in text.to_dict().items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(text, name, 0.0)  # as the model is trained, see `build_model`
    if kinds:
        text.layer_types = kinds[:num_layers]
    return shorter
