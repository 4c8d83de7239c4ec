"""Training with vLLM in the trainer's processes: one and two, with all weights and with LoRA, in parallel and sharded.

Every step compares the log-probabilities of vLLM with those of the trainer's forward pass, so weights that were not
brought along would show.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy
import yaml

from ppp.tiny_model import random_qwen3

ROOT = Path(__file__).parents[2]
TOY_TRAIN = ROOT / "tests" / "toy_train.py"
NUM_STEPS = 3


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., Any]) -> dict[str, Any]:
    """Three steps of sessions whose scores differ, so that the weights change, with a model that vLLM can run on a
    CPU: heads of 32, output layer of its own."""
    folder = tmp_path_factory.mktemp("toy")
    tokenizer = make_tokenizer("town")
    model = random_qwen3(
        tokenizer,
        0,
        max_length=2048,
        hidden_size=64,
        num_layers=2,
        num_heads=2,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    toy.save_model(folder / "model", tokenizer, model)
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy.toy_rows(4)))
    return {
        "model_name_or_path": str(folder / "model"),
        "call_format": "line",
        "environments": {"toy": 1},
        "train_tasks": {"toy": str(folder / "tasks.jsonl")},
        "preferences": ["no_preference", "no_ask"],
        "engine": "vllm_colocate",
        "engine_options": {"kv_cache_gb": 0.05},
        "check_logprobs_every": 1,
        "max_logprob_difference": 1e-3,
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 40,
        "limits": {"max_turns": 3, "max_tokens_per_turn": 12, "max_observation_tokens": 8, "max_prompt_tokens": 256},
        "learning_rate": 1e-2,
        "reward_clip": None,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "save_strategy": "no",
    }


def train(recipe: dict[str, Any], folder: Path, launcher: list[str] | None = None, **environment: str) -> list[Any]:
    """The metrics of each step of a run that ended well."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, "output_dir": str(folder / "run")}))
    process = subprocess.Popen(
        [*(launcher or [sys.executable]), str(TOY_TRAIN), "--config", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        start_new_session=True,  # so that a launcher can be ended together with its workers
    )
    try:
        output, _ = process.communicate(timeout=400)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def torchrun(port: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]


def accelerate(config: str, port: int) -> list[str]:
    program = str(Path(sys.executable).with_name("accelerate"))
    config_file = str(ROOT / "accelerate_configs" / config)
    return [program, "launch", "--config_file", config_file, "--main_process_port", str(port)]


def num_processes(folder: Path) -> int:
    """Each process writes its trajectories into a file of its own."""
    return len(list((folder / "run").glob("trajectories*.jsonl")))


def assert_aligned(steps: list[dict[str, Any]]) -> None:
    assert len(steps) == NUM_STEPS
    assert all(step["alignment/logprob_difference_max"] < 1e-3 for step in steps)
    assert any(step["grad_norm"] > 0 for step in steps[:-1])
    assert all(step["failure_rate"] == 0 for step in steps)


@pytest.mark.parametrize("use_peft", [False, True])
def test_one_process_trains(recipe: dict[str, Any], tmp_path: Path, use_peft: bool) -> None:
    assert_aligned(train({**recipe, "use_peft": use_peft, "lora_r": 4}, tmp_path))


def test_the_town_trains(town_recipe: dict[str, Any], recipe: dict[str, Any], tmp_path: Path) -> None:
    keys = ("engine", "engine_options", "check_logprobs_every", "max_logprob_difference", "max_steps", "learning_rate")
    assert_aligned(train({**town_recipe, **{key: recipe[key] for key in keys}}, tmp_path))


@pytest.mark.parametrize("size", [1, 2])
def test_two_processes_train(recipe: dict[str, Any], tmp_path: Path, size: int) -> None:
    """With an engine each, and with one engine whose weights they share."""
    options = {**recipe["engine_options"], "tensor_parallel_size": size}
    steps = train({**recipe, "engine_options": options}, tmp_path, torchrun(29811 + size))
    assert_aligned(steps)
    assert num_processes(tmp_path) == 2


@pytest.mark.parametrize("use_peft", [False, True])
def test_sharded_weights_are_gathered_for_vllm(recipe: dict[str, Any], tmp_path: Path, use_peft: bool) -> None:
    zero3 = {"use_cpu": False, "bf16": False, "ddp_backend": "gloo", "use_peft": use_peft, "lora_r": 4}
    steps = train({**recipe, **zero3}, tmp_path, accelerate("cpu_zero3_2.yaml", 29815), DS_ACCELERATOR="cpu")
    assert_aligned(steps)
    assert num_processes(tmp_path) == 2
