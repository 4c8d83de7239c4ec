"""Training in two processes, with adapters, and with W&B: everything real but the size of the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import offline_wandb
import pytest
import runs
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ppp.cli import main

# Way of distribution -> the file of accelerate_configs, what the recipe says besides, what the run must find.
WAYS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ddp": ("cpu_ddp_2.yaml", {}, {"distributed_type": "MULTI_CPU", "backend": "gloo", "sharding": "none"}),
    "zero3": (
        "cpu_zero3_2.yaml",
        {"use_cpu": False, "ddp_backend": "gloo"},
        {"distributed_type": "DEEPSPEED", "backend": "gloo", "sharding": "zero3"},
    ),
}
LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Half a batch for each of two processes."""
    recipe = runs.town_recipe(runs.save_town_model(tmp_path_factory.mktemp("town")))
    return {**recipe, "per_device_train_batch_size": 8}


@pytest.fixture(scope="module")
def whole(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Way of distribution -> the folder of a run of four steps that nobody disturbed, with a checkpoint every two."""

    @cache
    def run(way: str) -> Path:
        config, changes, _ = WAYS[way]
        output_dir = tmp_path_factory.mktemp(way) / "run"
        status, output = runs.launch(config, {**recipe, **changes}, output_dir)
        assert status == 0, output
        return output_dir

    return run


def back_to_step_2(whole: Path, folder: Path) -> None:
    """What the run would have left had it been killed before it saved for the second time."""
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoint-4")
    for path in [*folder.glob("*.safetensors"), folder / "README.md"]:
        path.unlink()


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_and_know_of_each_other(way: str, whole: Callable[[str], Path]) -> None:
    found = runs.hardware(whole(way))
    assert found["num_processes"] == 2
    assert WAYS[way][2].items() <= found.items()
    lines = [line for line in runs.read_lines(whole(way) / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["grad_norm"] > 0 for line in lines), "nothing was learned, so nothing else is tested"
    for name in ("trajectories.jsonl", "trajectories.rank1.jsonl"):
        assert len(runs.read_lines(whole(way) / name)) == 4 * 8
    AutoModelForCausalLM.from_pretrained(whole(way))


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_resume_bit_by_bit(
    way: str, recipe: dict[str, Any], whole: Callable[[str], Path], tmp_path: Path
) -> None:
    config, changes, _ = WAYS[way]
    resumed = tmp_path / "run"
    back_to_step_2(whole(way), resumed)
    status, output = runs.launch(config, {**recipe, **changes}, resumed, "--resume_from_checkpoint", "true")
    assert status == 0, output
    runs.assert_equal_runs(whole(way), resumed)


def test_ways_of_distribution_agree(whole: Callable[[str], Path]) -> None:
    one, other = (runs.read_lines(whole(way) / "metrics.jsonl")[:4] for way in WAYS)
    for name in ("loss", "grad_norm", "session_reward"):
        assert [line[name] for line in one] == pytest.approx([line[name] for line in other], abs=1e-4), name


def test_weights_that_zero_has_spread_are_exported_from_a_checkpoint(
    whole: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint-4"
    shutil.copytree(whole("zero3") / "checkpoint-4", checkpoint)
    (checkpoint / "model.safetensors").unlink()  # as with stage3_gather_16bit_weights_on_model_save: false
    shutil.copy(whole("zero3") / "recipe.yaml", tmp_path)
    assert main(["export", str(checkpoint), str(tmp_path / "out")]) == 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected, found = (load_file(path / "model.safetensors") for path in (whole("zero3"), tmp_path / "out"))
    runs.assert_equal(expected, found, "weights")


def test_adapters_under_zero_3_are_merged_at_the_end(recipe: dict[str, Any], tmp_path: Path) -> None:
    config, changes, _ = WAYS["zero3"]
    settings = {**recipe, **changes, **LORA, "merge_lora": True, "max_steps": 2}
    status, output = runs.launch(config, settings, tmp_path / "run")
    assert status == 0, output
    assert main(["export", str(tmp_path / "run" / "checkpoint-2"), str(tmp_path / "adapter")]) == 0
    tokens = torch.arange(5, 45)[None]
    with torch.no_grad():
        merged, adapter, base = (
            kind.from_pretrained(folder)(tokens).logits
            for kind, folder in (
                (AutoModelForCausalLM, tmp_path / "run"),
                (AutoPeftModelForCausalLM, tmp_path / "adapter"),
                (AutoModelForCausalLM, recipe["model_name_or_path"]),
            )
        )
    torch.testing.assert_close(merged, adapter, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(base, merged, atol=1e-2), "nothing was trained"


def test_adapters_resume_bit_by_bit(recipe: dict[str, Any], tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    status, output = runs.train({**recipe, **LORA}, whole)
    assert status == 0, output
    back_to_step_2(whole, resumed)
    status, output = runs.train({**recipe, **LORA}, resumed, "--resume_from_checkpoint", "true")
    assert status == 0, output
    runs.assert_equal_runs(whole, resumed)


# --- W&B --------------------------------------------------------------------------------------------------------------


def test_wandb_holds_the_metrics_of_every_step(recipe: dict[str, Any], tmp_path: Path) -> None:
    status, output = runs.train(recipe, tmp_path / "run", "--report_to", "wandb")
    assert status == 0, output
    path = offline_wandb.find_run(tmp_path / "run")
    steps = {line["train/global_step"]: line for line in offline_wandb.history(path) if "train/loss" in line}
    lines = [line for line in runs.read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert sorted(steps) == [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        for name in ("loss", "grad_norm", "session_reward", "productivity", "proactivity", "personalization"):
            assert steps[line["step"]][f"train/{name}"] == line[name], name
