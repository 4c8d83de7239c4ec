"""Weights of plain and sharded models at a server that takes them as vLLM does; vLLM itself: tests/real_vllm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sync_train
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from sync_server import SyncServer
from torch import nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.core_model_loading import PrefixChange

from ppp.engines.base import EngineSettings
from ppp.engines.server_info import read_server_info
from ppp.engines.sync_adapter import check_config
from ppp.engines.trained_weights import model_weights
from ppp.engines.weight_sync import SYNCS, AdapterSync, FullSync
from ppp.tiny_model import byte_tokenizer, tiny_model
from ppp.types import DiskError, InfrastructureError, RecipeError

ROOT = Path(__file__).parents[1]
GLOO = {"backend": "gloo"}


@pytest.fixture
def server() -> Iterator[SyncServer]:
    with SyncServer() as running:
        yield running


@pytest.fixture
def full(tmp_path: Path) -> Iterator[FullSync]:
    sync = FullSync(sync_train.settings(tmp_path), GLOO)
    yield sync
    sync.close()


@pytest.fixture
def model() -> nn.Module:
    return tiny_model(byte_tokenizer(), 0, 64)


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert sorted(found) == sorted(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


def merged(model: PeftModel) -> dict[str, torch.Tensor]:
    """What PEFT itself makes of it."""
    return dict(model.merge_and_unload().named_parameters())


def launch(mode: str, server: SyncServer, folder: Path, *launcher: str) -> list[dict[str, Any]]:
    """Run two processes of `sync_train.py`; what each of them wrote down."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *launcher, str(ROOT / "tests/sync_train.py"), mode, server.base_url, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((folder / f"process_{index}.json").read_text()) for index in range(2)]


def test_all_weights_arrive_bit_for_bit(server: SyncServer, full: FullSync, model: nn.Module) -> None:
    full.connect(server.base_url)
    for step in range(2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
        assert full.publish(model, step, [server.base_url]) == {}
        assert_same(server.weights, dict(model.named_parameters()))
    assert full.bytes_sent == sum(4 * parameter.numel() for parameter in model.parameters())
    assert full.model_name() is None


def test_all_of_an_update_is_between_its_start_and_its_end(
    server: SyncServer, full: FullSync, model: nn.Module
) -> None:
    full.connect(server.base_url)
    server.calls.clear()
    full._bucket_bytes = 2**12
    full.publish(model, 0, [server.base_url])
    first, *updates, finish, reset = server.calls
    assert (first, finish, reset) == ("/start_weight_update", "/finish_weight_update", "/reset_prefix_cache")
    assert len(updates) > 3 and set(updates) == {"/update_weights"}
    assert_same(server.weights, dict(model.named_parameters()))


def test_weights_of_several_precisions_arrive(server: SyncServer, full: FullSync, model: nn.Module) -> None:
    model.bfloat16()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.float())
    model.model.norm.weight = nn.Parameter(torch.randn(3).bfloat16())  # an odd number of two-byte numbers
    full.connect(server.base_url)
    assert full.publish(model, 0, [server.base_url]) == {}
    assert_same(server.weights, dict(model.named_parameters()))


def test_adapters_are_merged_into_the_copy_only(server: SyncServer, full: FullSync) -> None:
    model = sync_train.build_model()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    full.connect(server.base_url)
    full.publish(model, 0, [server.base_url])
    assert_same(dict(model.named_parameters()), before)
    assert_same(server.weights, merged(model))


@pytest.mark.parametrize("max_bytes", [1, 10_000, 2**30])
def test_buckets_hold_no_more_than_they_may(model: nn.Module, max_bytes: int) -> None:
    buckets = [[tensor.numel() * 4 for _, tensor in bucket] for bucket in model_weights(model, max_bytes)]
    assert all(sum(sizes) <= max_bytes or len(sizes) == 1 for sizes in buckets)
    assert sum(map(len, buckets)) == len(list(model.parameters()))


def test_a_server_that_fails_is_left_behind_and_may_come_back(full: FullSync, model: nn.Module) -> None:
    with SyncServer() as good, SyncServer() as bad:
        urls = [good.base_url, bad.base_url]
        for url in urls:
            full.connect(url)
        for route in ("/update_weights", "/start_weight_update", "/finish_weight_update", "/reset_prefix_cache"):
            bad.fail_on = route
            lost = full.publish(model, 0, urls)
            assert list(lost) == [bad.base_url] and route in lost[bad.base_url]
            assert_same(good.weights, dict(model.named_parameters()))
            good.weights = {}

            assert "not connected" in full.publish(model, 0, urls)[bad.base_url]
            bad.fail_on = None
            full.connect(bad.base_url)
            assert full.publish(model, 0, urls) == {}
            assert_same(bad.weights, dict(model.named_parameters()))


def test_a_group_that_cannot_send_any_more_does_not_end_the_gathering(
    full: FullSync, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tensor: torch.Tensor) -> None:
        raise RuntimeError("unhandled system error")

    with SyncServer() as good, SyncServer() as bad:
        for server in (bad, good):
            full.connect(server.base_url)
        monkeypatch.setattr(full.groups[bad.base_url], "broadcast", fail)
        assert full.publish(model, 0, [bad.base_url, good.base_url]) == {bad.base_url: "unhandled system error"}
        assert_same(good.weights, dict(model.named_parameters()))


def test_a_machine_that_does_not_answer_is_not_waited_for_as_long_as_weights_may_take(full: FullSync) -> None:
    timeout = full._client.timeout
    assert timeout.read == full.timeout_s == 600 and timeout.connect is not None and timeout.connect <= 10


def test_a_server_that_is_gone_is_lost(full: FullSync, model: nn.Module) -> None:
    with SyncServer() as server:
        full.connect(server.base_url)
    assert server.base_url in full.publish(model, 0, [server.base_url])
    with pytest.raises(InfrastructureError, match="does not answer") as caught:
        full.connect(server.base_url)
    assert caught.value.kind == "engine"


def test_a_server_that_does_not_let_its_workers_join_is_refused_at_once(server: SyncServer, full: FullSync) -> None:
    server.fail_on = "/init_weight_transfer_engine"
    with pytest.raises(InfrastructureError, match="out of order"):
        full.connect(server.base_url)


def test_an_update_that_another_trainer_left_open_is_closed_first(
    server: SyncServer, full: FullSync, model: nn.Module
) -> None:
    server.post("/start_weight_update", {})
    full.connect(server.base_url)
    assert full.publish(model, 0, [server.base_url]) == {}
    assert_same(server.weights, dict(model.named_parameters()))


def test_a_busy_prefix_cache_is_asked_again(server: SyncServer, full: FullSync, model: nn.Module) -> None:
    full.connect(server.base_url)
    server.num_busy_resets = 2
    assert full.publish(model, 0, [server.base_url]) == {}
    assert server.calls.count("/reset_prefix_cache") == 3


def test_an_adapter_is_published_under_a_name_per_step(server: SyncServer, tmp_path: Path) -> None:
    model = sync_train.build_model()
    sync = AdapterSync(sync_train.settings(tmp_path), {})
    sync.connect(server.base_url)
    names = []
    for step in range(4):
        assert sync.publish(model, step, [server.base_url]) == {}
        names.append(sync.model_name())
        assert names[-1] in server.adapters
        assert sync.bytes_sent == sum(4 * tensor.numel() for tensor in server.adapters[names[-1]].values())
    assert len(set(names)) == 4
    # The one in use and the one before, there and on disk.
    assert list(server.adapters) == names[-2:]
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == sorted(names[-2:])


@pytest.mark.parametrize("is_named", [False, True])
def test_adapters_of_a_killed_run_are_removed_from_its_own_folder_alone(
    server: SyncServer, tmp_path: Path, is_named: bool
) -> None:
    folder = tmp_path / "adapters"
    (folder / "ppp-0badcafe-7").mkdir(parents=True)
    sync = AdapterSync(sync_train.settings(tmp_path), {"adapter_dir": str(folder)} if is_named else {})
    sync.connect(server.base_url)
    sync.publish(sync_train.build_model(), 0, [server.base_url])
    left = ["ppp-0badcafe-7"] if is_named else []
    assert sorted(path.name for path in folder.iterdir()) == sorted([*left, str(sync.model_name())])


def test_a_folder_that_takes_no_adapter_ends_the_run_in_a_sentence(server: SyncServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    sync = AdapterSync(sync_train.settings(tmp_path), {"adapter_dir": str(tmp_path / "file")})
    sync.connect(server.base_url)
    with pytest.raises(DiskError, match=r"adapter_dir: .*file takes no adapter"):
        sync.publish(sync_train.build_model(), 0, [server.base_url])


def mixture() -> nn.Module:
    """A model whose experts are one parameter here, and many in its checkpoint."""
    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
    )
    return Qwen3MoeForCausalLM(config)


def part_of_a_larger_model() -> nn.Module:
    """A model that stands in its checkpoint under another prefix."""
    model = tiny_model(byte_tokenizer(), 0, 64)
    model._weight_conversions = [PrefixChange(prefix_to_remove="language_model", model_prefix="model")]
    return model


@pytest.mark.parametrize("make", [mixture, part_of_a_larger_model])
@pytest.mark.parametrize("max_bytes", [1, 2**30])
def test_weights_have_the_names_and_shapes_of_their_checkpoint(
    make: Callable[[], nn.Module], max_bytes: int, tmp_path: Path
) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    found = dict(weight for bucket in model_weights(model, max_bytes) for weight in bucket)
    assert sorted(found) != sorted(name for name, _ in model.named_parameters())
    assert_same(found, load_file(tmp_path / "model.safetensors"))


def test_an_adapter_is_published_for_the_names_of_the_checkpoint(server: SyncServer, tmp_path: Path) -> None:
    model = get_peft_model(part_of_a_larger_model(), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    sync = AdapterSync(sync_train.settings(tmp_path), {})
    sync.publish(model, 0, [server.base_url])
    (tensors,) = server.adapters.values()
    assert "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight" in tensors
    assert all(".language_model." in name for name in tensors)


def test_adapters_that_would_arrive_in_part_are_refused(full: FullSync, tmp_path: Path) -> None:
    base = tiny_model(byte_tokenizer(), 0, 64)
    base.model.layers[0].self_attn.q_proj.bias = nn.Parameter(
        torch.zeros(base.model.layers[0].self_attn.q_proj.out_features)
    )
    options = {"r": 4, "target_modules": ["model.layers.0.self_attn.q_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(base, LoraConfig(**options, lora_bias=True))
    with pytest.raises(RecipeError, match="plain LoRA"):
        list(model_weights(model, 2**30))
    for name, value in {"lora_bias": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 2}}.items():
        with pytest.raises(RecipeError, match=name):
            check_config(LoraConfig(**options, **{name: value}))
    check_config(LoraConfig(**options))


def test_the_same_step_is_not_published_under_another_name(tmp_path: Path) -> None:
    model = sync_train.build_model()
    sync = AdapterSync(sync_train.settings(tmp_path), {})
    with SyncServer() as first, SyncServer() as second:
        for server in (first, second):
            sync.connect(server.base_url)
            sync.publish(model, 7, [server.base_url])
        assert list(first.adapters) == list(second.adapters) == [sync.model_name()]
        # The second is restarted, and gets the same adapter again.
        second.adapters.clear()
        sync.disconnect(second.base_url)
        sync.connect(second.base_url)
        sync.publish(model, 7, [second.base_url])
        assert list(second.adapters) == [sync.model_name()]


def test_an_adapter_that_a_server_refuses_does_not_stop_the_others(tmp_path: Path) -> None:
    sync = AdapterSync(sync_train.settings(tmp_path), {"adapter_dir": str(tmp_path / "elsewhere")})
    with SyncServer() as good, SyncServer() as bad:
        bad.fail_on = "/v1/load_lora_adapter"
        lost = sync.publish(sync_train.build_model(), 0, [bad.base_url, good.base_url])
        assert list(lost) == [bad.base_url]
        assert list(good.adapters) == [sync.model_name()]
        assert (tmp_path / "elsewhere" / str(sync.model_name()) / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("sync", "server", "lora_r", "message"),
    [
        ("full", SyncServer(dev=False), None, "VLLM_SERVER_DEV_MODE=1"),
        ("full", SyncServer(backend=None), None, "'gloo' is not allowed; .* has no way to take weights"),
        ("full", SyncServer(backend="nccl"), None, "'gloo' is not allowed; .* has 'nccl'"),
        ("adapter", SyncServer(dev=False), 8, "VLLM_SERVER_DEV_MODE=1"),
        ("adapter", SyncServer(), None, "set use_peft"),
        ("adapter", SyncServer(max_lora_rank=None), 8, "lora_r: 8 .* --enable-lora"),
        ("adapter", SyncServer(max_lora_rank=16), 32, "lora_r: 32 .* rank 16 at most"),
    ],
)
def test_a_server_that_does_not_fit_is_refused_before_a_model_is_loaded(
    sync: str, server: SyncServer, lora_r: int | None, message: str, tmp_path: Path
) -> None:
    with server:
        info = read_server_info(server.base_url)
    with pytest.raises(RecipeError, match=message):
        SYNCS[sync].check_server(_settings(tmp_path, lora_r), info)
    SYNCS["none"].check_server(_settings(tmp_path, lora_r), info)


def test_a_server_that_loads_no_adapters_while_it_runs_is_refused(server: SyncServer, tmp_path: Path) -> None:
    server.runtime_lora = False
    with pytest.raises(RecipeError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        AdapterSync.check_server(_settings(tmp_path, 8), read_server_info(server.base_url))


@pytest.mark.parametrize("name", SYNCS)
def test_every_way_accepts_a_server_that_fits_and_refuses_unknown_options(
    name: str, server: SyncServer, tmp_path: Path
) -> None:
    SYNCS[name].check_server(_settings(tmp_path, 16), read_server_info(server.base_url))
    with pytest.raises(RecipeError, match="no_such_option"):
        SYNCS[name].check_options({"no_such_option": 1})


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("full", "backend", "smoke"),
        ("full", "bucket_mb", 0),
        ("full", "timeout_s", -1),
        ("full", "master_address", 7),
        ("adapter", "adapter_dir", 7),
        ("adapter", "timeout_s", True),
    ],
)
def test_options_that_cannot_be_used_are_refused(name: str, option: str, value: object) -> None:
    with pytest.raises(RecipeError, match=f"sync_options.{option}"):
        SYNCS[name].check_options({option: value})


def test_zero3_gathers_the_adapter_alone_and_all_weights_a_few_at_a_time(server: SyncServer, tmp_path: Path) -> None:
    config = ROOT / "accelerate_configs/cpu_zero3_2.yaml"
    records = launch("zero3", server, tmp_path, "accelerate.commands.launch", "--config_file", str(config))
    main = records[0]
    for record in records:
        assert record["num_processes"] == 2 and record["type"] == "DistributedType.DEEPSPEED"
        assert record["num_local_after"] == record["num_local_before"], "something was left whole"
        for step in range(2):
            gathered = [name for gather in record[f"adapter_gathers_{step}"] for name in gather]
            assert gathered and all(".lora_" in name for name in gathered)
            assert record[f"adapter_name_{step}"] == main[f"adapter_name_{step}"]
        # The whole model takes several gathers, none of which is larger than it may be.
        assert len(record["gather_sizes"]) > 3
        assert all(sum(sizes) <= sync_train.MAX_BYTES or len(sizes) <= 3 for sizes in record["gather_sizes"])

    model = sync_train.build_model()
    own = {name: tensor for name, tensor in model.named_parameters() if ".lora_" in name}
    first, second = (server.adapters[main[f"adapter_name_{step}"]] for step in range(2))
    assert_same(first, {name.replace(".default.", "."): tensor for name, tensor in own.items()})
    assert main["adapter_bytes_0"] == sum(4 * tensor.numel() for tensor in own.values())
    assert main["lost_0"] == main["lost_1"] == main["lost_full"] == {}
    # A step of training later, adapter and merged weights still say the same.
    assert any(not torch.equal(first[name], second[name]) for name in first)
    model.load_state_dict({name.replace(".weight", ".default.weight"): t for name, t in second.items()}, strict=False)
    assert main["full_names"] == sorted(name for name, _ in model.named_parameters())
    assert_same(server.weights, merged(model))


def test_fsdp2_publishes_whole_weights(server: SyncServer, tmp_path: Path, model: nn.Module) -> None:
    records = launch("fsdp2", server, tmp_path, "torch.distributed.run", "--nproc-per-node=2", "--master-port=29871")
    assert [record["num_processes"] for record in records] == [2, 2]
    assert records[0]["kinds"] == ["DTensor"] and records[0]["lost_full"] == {}
    assert_same(server.weights, dict(model.named_parameters()))


def _settings(folder: Path, lora_r: int | None) -> EngineSettings:
    from dataclasses import replace

    return replace(sync_train.settings(folder), lora_r=lora_r, options={"sync_options": GLOO})
