"""Training in two processes, with adapters, and with W&B: everything real but the size of the model."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from transformers import AutoModelForCausalLM
from wandb.proto import wandb_internal_pb2

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


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Half a batch for each of two processes."""
    recipe = runs.town_recipe(runs.save_town_model(tmp_path_factory.mktemp("town")))
    return {**recipe, "per_device_train_batch_size": 8}


def back_to_step_2(whole: Path, folder: Path) -> None:
    """What the run would have left had it been killed before it saved for the second time."""
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoint-4")
    for path in [*folder.glob("*.safetensors"), folder / "README.md"]:
        path.unlink()


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_resume_bit_by_bit(way: str, recipe: dict[str, Any], tmp_path: Path) -> None:
    config, changes, expected = WAYS[way]
    recipe = {**recipe, **changes}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    status, output = runs.launch(config, recipe, whole)
    assert status == 0, output
    assert runs.hardware(whole)["num_processes"] == 2
    assert expected.items() <= runs.hardware(whole).items()
    lines = [line for line in runs.read_lines(whole / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["grad_norm"] > 0 for line in lines), "nothing was learned, so nothing was tested"
    assert len(runs.read_lines(whole / "trajectories.rank1.jsonl")) == 4 * 8

    back_to_step_2(whole, resumed)
    status, output = runs.launch(config, recipe, resumed, "--resume_from_checkpoint", "true")
    assert status == 0, output
    runs.assert_equal_runs(whole, resumed)
    AutoModelForCausalLM.from_pretrained(resumed)
