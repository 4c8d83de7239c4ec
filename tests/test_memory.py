"""The memory plan against what a real step allocates, and what it says of the models that have recipes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig

from ppp.memory.advice import advise, check_memory, this_hardware
from ppp.memory.engines import plan_server
from ppp.memory.plan import MemoryPlan, plan_memory
from ppp.memory.trace import Pass, count_weights, trace
from ppp.memory.workload import GIB, Hardware, Workload
from ppp.recipe import read_recipe
from ppp.types import RecipeError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = Path(__file__).parent / "model_configs"
TOLERANCE = 0.15

SCALED_QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 4748,
    "hidden_size": 160,
    "intermediate_size": 608,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": True,
}
SCALED_SEED_OSS = {
    "model_type": "seed_oss",
    "vocab_size": 4848,
    "hidden_size": 160,
    "intermediate_size": 864,
    "num_hidden_layers": 8,
    "num_attention_heads": 10,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "attention_bias": True,
    "attention_out_bias": False,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "tie_word_embeddings": False,
}
# Layers so wide that computing one of them again takes more than the logits.
WIDE = {**SCALED_QWEN3, "vocab_size": 300, "hidden_size": 384, "intermediate_size": 6144, "num_hidden_layers": 3}


def shape(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "config": config,
        "num_rows": 1,
        "completion_tokens": 400,
        "checkpointing": False,
        "lora_r": None,
        "dtype": "float32",
        **changes,
    }


SHAPES = {
    "qwen3": shape(SCALED_QWEN3),
    "qwen3-checkpointing": shape(SCALED_QWEN3, checkpointing=True),
    "qwen3-padded-rows": shape(SCALED_QWEN3, num_rows=4, completion_tokens=100),
    "seed_oss-lora": shape(SCALED_SEED_OSS, lora_r=8),
    "seed_oss-bfloat16": shape(SCALED_SEED_OSS, dtype="bfloat16"),
    "wide-checkpointing": shape(WIDE, checkpointing=True),
    "wide-lora-checkpointing": shape(WIDE, checkpointing=True, lora_r=16),
}


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, int]]:
    """What a step of each shape allocated, in a process of its own."""
    program = [sys.executable, "-P", str(Path(__file__).parent / "measured_step.py"), json.dumps(list(SHAPES.values()))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(zip(SHAPES, json.loads(done.stdout.splitlines()[-1]), strict=True))


def planned(what: dict[str, Any]) -> dict[str, int]:
    workload = Workload(
        AutoConfig.for_model(**what["config"]),
        dtype=getattr(torch, what["dtype"]),
        mixed=False,
        num_rows=what["num_rows"],
        prompt_tokens=16,
        completion_tokens=what["completion_tokens"],
        checkpointing=what["checkpointing"],
        attention="sdpa",
        lora_r=what["lora_r"],
        lora_targets=("all-linear",),
        has_reference=False,
        engine="vllm_server",
        engine_options={},
        max_concurrency=1,
    )
    plan = plan_memory(workload, Hardware(1, 64 * GIB, "none", is_gpu=False))
    step = [item for item in plan.items if item.comes_and_goes]
    peak = max(sum(item.num_bytes for item in step if moment in item.moments) for moment in ("loss", "backward"))
    names = ("weights", "adapters", "gradients", "optimizer", "activations")
    return {name: plan.bytes_of(name) for name in names} | {"peak": peak}


@pytest.mark.parametrize("name", SHAPES)
def test_the_plan_agrees_with_what_a_real_step_allocates(name: str, measured: dict[str, dict[str, int]]) -> None:
    found, expected = planned(SHAPES[name]), measured[name]
    for part, num_bytes in expected.items():
        # Some kilobytes are the batch itself and the scheduler's numbers.
        assert found[part] == pytest.approx(num_bytes, rel=TOLERANCE, abs=100_000), part


def test_the_shapes_tell_logits_from_layers() -> None:
    peaks = {name: planned(SHAPES[name]) for name in ("qwen3", "wide-checkpointing")}
    assert peaks["qwen3"]["activations"] > 0.1 * peaks["qwen3"]["peak"]
    assert peaks["wide-checkpointing"]["activations"] < 0.2 * peaks["wide-checkpointing"]["peak"]


@pytest.mark.parametrize(("name", "billions"), [("qwen3_4b", 4.022), ("qwen3_8b", 8.191), ("seed_oss_36b", 36.151)])
def test_weights_are_counted_from_the_config(name: str, billions: float) -> None:
    counts = count_weights(AutoConfig.from_pretrained(CONFIGS / name), None, ("all-linear",))
    assert counts.total / 1e9 == pytest.approx(billions, abs=0.001)
    assert counts.adapters == 0


def test_adapters_are_counted_like_peft_counts_them() -> None:
    config = AutoConfig.from_pretrained(CONFIGS / "qwen3_4b")
    hidden, inner, kv, heads = 2560, 9728, 1024, 4096
    per_layer = (hidden + heads) * 2 + (hidden + kv) * 2 + (hidden + inner) * 3
    assert count_weights(config, 32, ("all-linear",)).adapters == 36 * 32 * per_layer
    assert count_weights(config, 8, ("q_proj", "v_proj")).adapters == 36 * 8 * (hidden + heads + hidden + kv)


def plan_of(name: str, num_gpus: int, gpu_gb: float, sharding: str, **changes: Any) -> MemoryPlan:
    workload = Workload(
        AutoConfig.from_pretrained(CONFIGS / name),
        dtype=torch.bfloat16,
        mixed=True,
        num_rows=1,
        prompt_tokens=8192,
        completion_tokens=32768,
        checkpointing=True,
        attention="sdpa",
        lora_r=None,
        lora_targets=("all-linear",),
        has_reference=False,
        engine="vllm_server",
        engine_options={},
        max_concurrency=64,
    )
    offload = sharding == "zero3_offload"
    hardware = Hardware(num_gpus, int(gpu_gb * 0.99 * GIB), "zero3" if offload else sharding, offload)  # type: ignore[arg-type]
    return plan_memory(replace(workload, **changes), hardware)


@pytest.mark.parametrize(
    ("name", "num_gpus", "gpu_gb", "sharding", "fits"),
    [
        ("qwen3_4b", 1, 80, "none", True),
        ("qwen3_4b", 8, 80, "zero3", True),
        ("qwen3_8b", 1, 80, "none", False),
        ("qwen3_8b", 1, 141, "none", True),
        ("qwen3_8b", 8, 80, "zero3", True),
        ("seed_oss_36b", 1, 141, "none", False),
        ("seed_oss_36b", 8, 80, "zero3", False),
        ("seed_oss_36b", 8, 80, "zero3_offload", True),
        ("seed_oss_36b", 8, 141, "zero3", True),
        ("seed_oss_36b", 16, 141, "zero3", True),
    ],
)
def test_what_fits_where(name: str, num_gpus: int, gpu_gb: float, sharding: str, fits: bool) -> None:
    plan = plan_of(name, num_gpus, gpu_gb, sharding)
    assert plan.fits is fits, plan.total / GIB
    assert bool(advise(plan)) is not fits


def test_states_of_the_optimizer_take_sixteen_bytes_a_weight_however_they_are_spread() -> None:
    for sharding in ("zero3", "fsdp2"):
        plan = plan_of("qwen3_8b", 8, 80, sharding)
        states = sum(plan.bytes_of(name) for name in ("weights", "gradients", "optimizer"))
        assert 8 * states == pytest.approx(16 * plan.counts.total, rel=1e-6)
    offloaded = plan_of("qwen3_8b", 8, 80, "zero3_offload")
    assert offloaded.bytes_of("optimizer") == offloaded.bytes_of("gradients") == 0
    assert offloaded.host_bytes == pytest.approx(14 * offloaded.counts.total, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "name", "grows"),
    [
        ({"has_reference": True}, "reference model", True),
        ({"checkpointing": False}, "activations", True),
        ({"lora_r": 32}, "optimizer", False),
        ({"lora_r": 32}, "logits", False),
        ({"completion_tokens": 16384}, "activations", False),
        ({"num_rows": 2}, "activations", True),
        ({"engine": "transformers"}, "engine's cache", True),
        ({"engine": "vllm_colocate"}, "vLLM", True),
    ],
)
def test_what_a_recipe_asks_for_is_counted(changes: dict[str, Any], name: str, grows: bool) -> None:
    before, after = plan_of("qwen3_4b", 8, 80, "zero3"), plan_of("qwen3_4b", 8, 80, "zero3", **changes)
    assert (after.bytes_of(name) > before.bytes_of(name)) is grows
    assert after.bytes_of(name) != before.bytes_of(name)


def test_memory_grows_with_the_square_of_the_tokens_only_where_rows_are_padded_against_each_other() -> None:
    config = AutoConfig.from_pretrained(CONFIGS / "qwen3_4b")

    def kept(num_rows: int, num_tokens: int, attention: str) -> int:
        how = Pass(num_rows, num_tokens, torch.bfloat16, True, False, attention=attention)
        return trace(config, how).kept

    assert kept(1, 8192, "sdpa") == pytest.approx(2 * kept(1, 4096, "sdpa"), rel=0.02)
    assert kept(2, 8192, "flash_attention_2") == pytest.approx(2 * kept(2, 4096, "flash_attention_2"), rel=0.02)
    assert kept(2, 16384, "sdpa") > 2.1 * kept(2, 8192, "sdpa")


@pytest.mark.parametrize("name", ["qwen3_4b", "qwen3_8b", "seed_oss_36b"])
def test_advice_is_enough(name: str) -> None:
    plan = plan_of(name, 1, 24, "none", checkpointing=False, num_rows=4)
    assert not plan.fits
    (first, *_) = advise(plan)
    assert "GiB" in first
    assert float(first.rsplit(":", 1)[1].split()[0]) <= 24


def test_a_server_is_told_how_many_trajectories_it_holds() -> None:
    plan = plan_of("seed_oss_36b", 8, 80, "zero3")
    one, two, eight = (plan_server(plan.workload, 80 * GIB, num) for num in (1, 2, 8))
    assert one.trajectories < 1 < two.trajectories < eight.trajectories
    per_token = 2 * 64 * 8 * 128 * 2
    assert two.cache_tokens == two.cache * 2 // per_token


def test_layers_of_several_kinds_and_experts_can_be_traced() -> None:
    for config in (
        AutoConfig.for_model(
            "qwen3_moe",
            num_hidden_layers=6,
            hidden_size=64,
            intermediate_size=128,
            moe_intermediate_size=32,
            num_experts=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=300,
        ),
        AutoConfig.for_model(
            "gemma3_text",
            num_hidden_layers=12,
            hidden_size=64,
            intermediate_size=128,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            vocab_size=300,
        ),
    ):
        found = trace(config, Pass(1, 256, torch.bfloat16, False, True))
        assert found.kept >= config.num_hidden_layers * 256 * 64 * 2


# --- a recipe that cannot fit -----------------------------------------------------------------------------------------


def recipe_for(tmp_path: Path, model: str, **changes: Any) -> Any:
    values = {
        "model_name_or_path": str(CONFIGS / model),
        "environments": {"town": 1},
        "train_tasks": {"town": {"split": "train", "num": 8}},
        "use_cpu": True,
        "output_dir": str(tmp_path / "run"),
        **changes,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return read_recipe(["--config", str(path)])


def test_a_recipe_that_cannot_fit_is_refused_with_both_values(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, "seed_oss_36b")
    with pytest.raises(RecipeError, match=r"seed_oss_36b' does not fit: the recipe needs \d+.* has \d+\.\d GiB"):
        check_memory(recipe)


@pytest.mark.parametrize(("share", "is_refused"), [(0.25, True), (0.6, False)])
def test_a_vllm_without_room_for_a_trajectory_is_refused(
    share: float, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hardware = Hardware(8, int(80 * 0.99 * GIB), "zero3")
    monkeypatch.setattr("ppp.memory.advice.this_hardware", lambda recipe: hardware)
    options = {"engine": "vllm_colocate", "engine_options": {"gpu_memory_utilization": share}, "dtype": "bfloat16"}
    recipe = recipe_for(tmp_path, "qwen3_8b", per_device_train_batch_size=1, gradient_accumulation_steps=8, **options)
    if not is_refused:
        check_memory(recipe)
        return
    expected = r"^engine_options.gpu_memory_utilization: 0.25 .*room for 0\.\d+ trajectories of \d+,\d+ tokens"
    with pytest.raises(RecipeError, match=expected):
        check_memory(recipe)


def test_the_check_can_be_switched_off(tmp_path: Path) -> None:
    check_memory(recipe_for(tmp_path, "seed_oss_36b", check_memory=False))


def test_a_recipe_that_fits_is_let_through(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    (small / "config.json").write_text(json.dumps({**SCALED_QWEN3, "architectures": ["Qwen3ForCausalLM"]}))
    check_memory(recipe_for(tmp_path, str(small), max_completion_length=256))


def test_the_launcher_is_asked_how_states_are_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_for(tmp_path, "qwen3_4b")
    assert this_hardware(recipe).sharding == "none"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert this_hardware(recipe).sharding == "fsdp2"


# --- the script -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("memory_plan_script", ROOT / "scripts" / "memory_plan.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_says_for_every_size_whether_it_fits(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--recipe", str(ROOT / "recipes" / "town.yaml"), "--model", str(CONFIGS / "qwen3_8b")]
    assert script.main([*arguments, "--max_completion_length", "32768", "--format", "json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert {(entry["num_gpus"], entry["gpu_gb"]) for entry in entries} == {
        (num, gb) for num in (1, 8, 16) for gb in (80, 141)
    }
    assert all(entry["fits"] or entry["advice"] for entry in entries)
    assert script.main(arguments) == 0
    text = capsys.readouterr().out
    assert "on 80 GB" in text and "8.19 B weights" in text


def test_the_script_refuses_a_folder_without_config(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--recipe", str(ROOT / "recipes" / "town.yaml"), "--model", str(ROOT / "scripts")]) == 2
    assert "model_name_or_path" in capsys.readouterr().err
