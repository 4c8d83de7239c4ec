"""`accelerate launch ... tests/sync_train.py MODE BASE_URL FOLDER`: two processes with a sharded model publish it, and
write down what was gathered meanwhile. MODE: zero3 or fsdp2."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.fsdp import fully_shard
from transformers import TrainingArguments
from zero3_train import over_gloo

from ppp.engines.base import EngineSettings
from ppp.engines.trained_weights import model_weights
from ppp.engines.weight_sync import AdapterSync, FullSync
from ppp.tiny_model import byte_tokenizer, tiny_model

MAX_BYTES = 2**14


def build_model() -> nn.Module:
    model = tiny_model(byte_tokenizer(), 0, 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # as after some training: B starts at zero
                nn.init.normal_(parameter)
    return model


def settings(folder: Path) -> EngineSettings:
    return EngineSettings(
        model_provider=lambda: None,
        model_name="base",
        dtype="float32",
        lora_r=4,
        eos_id=0,
        max_concurrency=1,
        max_length=64,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        deterministic=False,
        output_dir=folder,
    )


@contextmanager
def watched_gathers(model: nn.Module) -> Iterator[list[list[str]]]:
    """The names that DeepSpeed brings together, gather by gather: both ways that a parameter has to ask for it."""
    seen: list[list[str]] = []
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def watch(original: Any, always: nn.Parameter) -> Any:
        def gather(params: Any = None, *args: Any, **kwargs: Any) -> Any:
            params = kwargs.pop("param_list", params) or [always]
            seen.append([names[id(parameter)] for parameter in params])
            return original(params, *args, **kwargs)

        return gather

    originals = []
    for parameter in model.parameters():
        originals.append((parameter, parameter.all_gather, parameter.all_gather_coalesced))
        parameter.all_gather = watch(parameter.all_gather, parameter)
        parameter.all_gather_coalesced = watch(parameter.all_gather_coalesced, parameter)
    yield seen
    for parameter, all_gather, all_gather_coalesced in originals:
        parameter.all_gather, parameter.all_gather_coalesced = all_gather, all_gather_coalesced


def zero3(base_url: str, folder: Path) -> dict[str, Any]:
    over_gloo()
    # What the trainer does with its arguments, and in this order.
    TrainingArguments(str(folder), use_cpu=False, ddp_backend="gloo", bf16=False, per_device_train_batch_size=1)
    accelerator = Accelerator()
    accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
    model = build_model()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine, optimizer = accelerator.prepare(model, torch.optim.SGD(trained, lr=0.1))
    model = accelerator.unwrap_model(engine)
    record: dict[str, Any] = {"num_processes": accelerator.num_processes, "type": str(accelerator.distributed_type)}
    num_whole = sum(parameter.numel() for parameter in model.parameters())
    is_main = accelerator.is_main_process

    adapter, full = AdapterSync(settings(folder), {}), FullSync(settings(folder), {"backend": "gloo"})
    for sync in (adapter, full):
        if is_main:
            sync.connect(base_url)
    for step in range(2):
        with watched_gathers(model) as gathers:
            record[f"lost_{step}"] = adapter.publish(model, step, [base_url])
        record[f"adapter_gathers_{step}"] = gathers
        record[f"adapter_name_{step}"] = adapter.model_name()
        record[f"adapter_bytes_{step}"] = adapter.bytes_sent
        if step == 0:
            ids = torch.arange(8)[None]
            accelerator.backward(engine(input_ids=ids, labels=ids).loss)
            optimizer.step()

    with watched_gathers(model) as gathers:
        record["lost_full"] = full.publish(model, 1, [base_url])
    record["full_bytes"] = full.bytes_sent
    record["full_names"] = sorted({name for gather in gathers for name in gather})
    with watched_gathers(model) as gathers:
        for _ in model_weights(model, MAX_BYTES):
            pass
    sizes = {name: parameter.ds_numel * parameter.element_size() for name, parameter in model.named_parameters()}
    record["gather_sizes"] = [[sizes[name] for name in gather] for gather in gathers]
    record["num_local_before"] = num_whole
    record["num_local_after"] = sum(parameter.numel() for parameter in model.parameters())
    full.close()
    return record


def fsdp2(base_url: str, folder: Path) -> dict[str, Any]:
    state = PartialState(cpu=True)
    model = tiny_model(byte_tokenizer(), 0, 64)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    full = FullSync(settings(folder), {"backend": "gloo"})
    if state.is_main_process:
        full.connect(base_url)
    lost = full.publish(model, 0, [base_url])
    full.close()
    kinds = sorted({type(parameter.data).__name__ for parameter in model.parameters()})
    return {"num_processes": state.num_processes, "kinds": kinds, "lost_full": lost, "full_bytes": full.bytes_sent}


MODES = {"zero3": zero3, "fsdp2": fsdp2}

if __name__ == "__main__":
    torch.set_num_threads(1)
    mode, url, target = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    found = MODES[mode](url, target)
    (target / f"process_{PartialState().process_index}.json").write_text(json.dumps(found))
    PartialState().destroy_process_group()
