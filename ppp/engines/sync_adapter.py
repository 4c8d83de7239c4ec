"""LoRA for servers: only the adapter leaves the trainer, through a folder that all servers can read.

Each publish writes a folder of its own and loads it under a name of its own, so that a server which was restarted
meanwhile does not know the name, instead of answering with the base model. The base model's weights are never gathered.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from ppp.checks import refuse
from ppp.engines.base import EngineSettings
from ppp.engines.server_info import ServerInfo
from ppp.engines.sync_base import WeightSync, check_dev_routes, check_seconds
from ppp.engines.trained_weights import PEFT_PREFIX, adapter_weights, base_model, checkpoint_weights
from ppp.types import DiskError, InfrastructureError

_BUCKET_BYTES = 2**28
_NUM_KEPT = 2  # the adapter in use and the one before
_UNKNOWN = 404


class AdapterSync(WeightSync):
    """Options: `adapter_dir`, where adapters are written, by default `adapters` in the run's folder; the servers must
    see it under the same path. `timeout_s`: for one request to a server."""

    OPTIONS: ClassVar[Mapping[str, Any]] = {"adapter_dir": None, "timeout_s": 120.0}

    def __init__(self, settings: EngineSettings, options: Mapping[str, Any]) -> None:
        super().__init__(settings, options)
        folder = self.options["adapter_dir"]
        self._is_ours = folder is None  # a folder that was named may be shared with other runs
        self._folder = Path(settings.output_dir / "adapters" if folder is None else folder).absolute()
        self._run: str | None = None
        self._step: int | None = None
        self._names: list[str] = []  # published by this trainer, in order
        self._loaded: dict[str, list[str]] = {}

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        super().check_options(options)
        check_seconds("engine_options.sync_options.timeout_s", options.get("timeout_s", 1.0))
        if not isinstance(options.get("adapter_dir"), str | None):
            raise refuse("engine_options.sync_options.adapter_dir", options["adapter_dir"], "expected a folder")

    @classmethod
    def check_server(cls, settings: EngineSettings, info: ServerInfo) -> None:
        check_dev_routes(info)
        rank = adapter_rank(settings)
        if rank is None:
            raise refuse("engine_options.sync", "adapter", "there are no adapters to send: set use_peft, or sync: full")
        if info.max_lora_rank is None:
            raise refuse(
                "lora_r", rank, f"{info.base_url} takes no adapters; start it with --enable-lora --max-lora-rank {rank}"
            )
        if rank > info.max_lora_rank:
            raise refuse(
                "lora_r",
                rank,
                f"{info.base_url} takes adapters of rank {info.max_lora_rank} at most; start it with --max-lora-rank "
                f"{rank}, or lower lora_r",
            )
        if not info.takes_adapters_at_runtime:
            raise refuse(
                "engine_options.sync",
                "adapter",
                f"{info.base_url} loads no adapters while it runs; start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
            )

    def connect(self, base_url: str) -> None:
        self.info(base_url)
        self._loaded[base_url] = []

    def publish(self, model: nn.Module, step: int, base_urls: Sequence[str]) -> dict[str, str]:
        if self._step != step:
            self._write(model, step)
        if not PartialState().is_main_process:
            return {}
        lost: dict[str, str] = {}
        with ThreadPoolExecutor(max_workers=max(1, len(base_urls))) as executor:
            for url, reason in zip(base_urls, executor.map(self._load, base_urls), strict=True):
                if reason is not None:
                    lost[url] = reason
        self._remove_old()
        return lost

    def model_name(self) -> str | None:
        return self._names[-1] if self._names else None

    def disconnect(self, base_url: str) -> None:
        self._loaded.pop(base_url, None)

    def _write(self, model: nn.Module, step: int) -> None:
        """Gather the adapter and write it down; all processes."""
        if not isinstance(model, PeftModel):
            raise refuse("engine_options.sync", "adapter", "the model has no adapters: set use_peft, or sync: full")
        adapter = model.active_adapter
        config = model.peft_config[adapter]
        check_config(config)
        is_main, problem = PartialState().is_main_process, None
        gathered: dict[str, torch.Tensor] = {}
        for bucket in adapter_weights(model, adapter, _BUCKET_BYTES):
            if is_main:
                gathered |= {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in bucket}
        name = f"ppp-{self._run_id()}-{step}"
        if is_main:
            tensors = get_peft_model_state_dict(
                model, state_dict=gathered, adapter_name=adapter, save_embedding_layers=False
            )
            self.bytes_sent = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
            if self._is_ours and not self._names:
                for left in self._folder.glob("ppp-*"):  # by a run that was killed
                    shutil.rmtree(left, ignore_errors=True)
            try:
                _write_adapter(self._folder / name, _named_as_in_checkpoint(model, tensors), config)
            except OSError as error:
                problem = f"engine_options.sync_options.adapter_dir: {self._folder} takes no adapter ({error.strerror})"
        # Only this process writes, and all of them have to stop.
        problem = broadcast_object_list([problem])[0] if PartialState().num_processes > 1 else problem
        if problem is not None:
            raise DiskError(problem)
        self._names.append(name)
        self._step = step

    def _run_id(self) -> str:
        """Tells the adapters of this trainer from those of others that use the same servers; all processes agree."""
        if self._run is None:
            drawn = [uuid.uuid4().hex[:8]]
            self._run = broadcast_object_list(drawn)[0] if PartialState().num_processes > 1 else drawn[0]
        return str(self._run)

    def _load(self, base_url: str) -> str | None:
        """Give one server the adapter in use and take its oldest; what was wrong, if it failed."""
        name = self._names[-1]
        loaded = self._loaded.setdefault(base_url, [])
        try:
            if name not in loaded:
                body = {"lora_name": name, "lora_path": str(self._folder / name), "load_inplace": True}
                self.post(base_url, "/v1/load_lora_adapter", body)
                loaded.append(name)
            while len(loaded) > _NUM_KEPT:
                self.post(base_url, "/v1/unload_lora_adapter", {"lora_name": loaded.pop(0)})
            # The cache tells adapters apart by name: this only frees room for the new one.
            self.reset_prefix_cache(base_url)
        except InfrastructureError as error:
            return str(error)
        return None

    def _remove_old(self) -> None:
        for name in self._names[:-_NUM_KEPT]:
            shutil.rmtree(self._folder / name, ignore_errors=True)
        del self._names[:-_NUM_KEPT]


def adapter_rank(settings: EngineSettings) -> int | None:
    """Rank of the adapters that will be trained: the recipe's, or that of the adapter which is trained further."""
    if settings.lora_r is not None:
        return settings.lora_r
    file = Path(settings.model_name) / "adapter_config.json"
    return int(json.loads(file.read_text(encoding="utf-8"))["r"]) if file.is_file() else None


def check_config(config: Any) -> None:
    """Refuse adapters that vLLM would load without a word, or not as they are.

    Raises:
        RecipeError: names what it is.
    """
    if not isinstance(config, LoraConfig):
        raise refuse("engine_options.sync", "adapter", f"they take LoRA, not {type(config).__name__}; use sync: full")
    for name, value in (
        ("modules_to_save", config.modules_to_save),
        ("use_dora", config.use_dora),
        ("bias", config.bias != "none"),
        ("lora_bias", config.lora_bias),
        ("rank_pattern", config.rank_pattern),
        ("alpha_pattern", config.alpha_pattern),
        ("target_parameters", config.target_parameters),
    ):
        if value:
            raise refuse("engine_options.sync", "adapter", f"servers take no adapters with {name}; use sync: full")


def _named_as_in_checkpoint(model: PeftModel, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The adapter for the modules of the checkpoint: a server passes over those for modules that it does not know."""
    own = [(name.removeprefix(PEFT_PREFIX), tensor) for name, tensor in tensors.items()]
    return {PEFT_PREFIX + name: tensor for name, tensor in checkpoint_weights(base_model(model), own)}


def _write_adapter(folder: Path, tensors: Mapping[str, torch.Tensor], config: LoraConfig) -> None:
    """Write it beside, then rename: a server never sees half of an adapter."""
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file(dict(tensors), beside / "adapter_model.safetensors")
    config.save_pretrained(str(beside))
    os.replace(beside, folder)
