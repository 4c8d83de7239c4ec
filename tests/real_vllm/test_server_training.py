"""GRPO on the town with two processes, ZeRO-3, and the real vLLM server: all weights and LoRA, and a server that dies.

Each step compares the log-probabilities of server and trainer: weights that did not get there would show at once.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sync_train
import yaml
from transformers import AutoModelForCausalLM
from vllm_process import VLLMProcess, free_port

from ppp.engines.weight_sync import FullSync

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "offline"}
TIMEOUT_S = 600


@pytest.fixture
def recipe(town_recipe: dict[str, Any], server: VLLMProcess, tmp_path: Path) -> dict[str, Any]:
    """Four steps, with the weights of the model on the server."""
    sync = FullSync(sync_train.settings(tmp_path), {"backend": "gloo"})
    sync.connect(server.base_url)
    model = AutoModelForCausalLM.from_pretrained(town_recipe["model_name_or_path"])
    assert sync.publish(model, 0, [server.base_url]) == {}
    sync.close()
    return {
        **town_recipe,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "engine": "vllm_server",
        "engine_options": {"base_urls": server.base_url, "sync_options": {"backend": "gloo"}, "max_outage_s": 300},
        "check_logprobs_every": 1,
        "max_logprob_difference": 1e-3,
        # What DeepSpeed's processes need to find each other on a CPU.
        "use_cpu": False,
        "bf16": False,
        "ddp_backend": "gloo",
    }


@contextmanager
def training(recipe: dict[str, Any], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A run on two processes under ZeRO-3; what is left of it at the end is killed."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, "output_dir": str(folder / "run")}))
    config = ROOT / "accelerate_configs/cpu_zero3_2.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--main_process_port", str(free_port()), str(ROOT / "tests/zero3_train.py"), "--config", str(path)]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, text=True, env={**os.environ, **ENVIRONMENT}, start_new_session=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def finish(process: subprocess.Popen[str], folder: Path) -> list[dict[str, Any]]:
    """The metrics of each step of a run that ended well, on the processes that were meant."""
    assert process.wait(TIMEOUT_S) == 0, (folder / "log.txt").read_text()[-8000:]
    run = folder / "run"
    hardware = json.loads((run / "versions.json").read_text())["hardware"]
    assert (hardware["num_processes"], hardware["distributed_type"]) == (2, "DEEPSPEED")
    steps = steps_of(run)
    for step in steps:
        assert step["alignment/logprob_difference_max"] < 1e-3
        assert step["failure_rate"] == 0
    return steps


def steps_of(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in map(json.loads, lines) if "loss" in line]


def turns_per_process(run: Path) -> list[dict[int, int]]:
    """Step -> number of turns, for each process, which writes a file of its own."""
    counts = []
    for path in sorted(run.glob("trajectories*.jsonl")):
        count: dict[int, int] = {}
        for record in map(json.loads, path.read_text().splitlines()):
            count[record["step"]] = count.get(record["step"], 0) + len(record["turns"])
        counts.append(count)
    return counts


@pytest.mark.parametrize("use_peft", [False, True], ids=["full", "lora"])
def test_zero3_trains_with_the_weights_of_each_step(recipe: dict[str, Any], tmp_path: Path, use_peft: bool) -> None:
    if use_peft:
        del recipe["engine_options"]["sync_options"]
    with training({**recipe, "use_peft": use_peft, "lora_r": 8}, tmp_path) as process:
        steps = finish(process, tmp_path)
    assert len(steps) == recipe["max_steps"]
    assert any(step["grad_norm"] > 0 for step in steps[:-1]), "nothing was learned, so nothing was shown"
    first, second = turns_per_process(tmp_path / "run")
    assert first.keys() == second.keys() and any(first[step] != second[step] for step in first)
    sent = re.findall(
        r"weights of step \d+ sent to 1 servers in [\d.]+ s \(([\d.]+) MB", (tmp_path / "log.txt").read_text()
    )
    assert len(sent) == recipe["max_steps"] and (float(sent[0]) < 0.2) == use_peft


def test_a_run_outlives_a_server_that_is_killed_in_the_middle_of_a_step(
    recipe: dict[str, Any], server: VLLMProcess, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with training({**recipe, "max_steps": 8}, tmp_path) as process:
        while len(steps_of(run)) < 2:
            assert process.poll() is None, (tmp_path / "log.txt").read_text()[-8000:]
            time.sleep(0.1)
        while not is_generating(server):
            assert process.poll() is None
            time.sleep(0.005)
        server.kill()
        time.sleep(2)
        server.start()
        steps = finish(process, tmp_path)
    assert len(steps) == 8
    assert sum(step["engine/replayed"] for step in steps) > 0, "it was killed between two steps"


def is_generating(server: VLLMProcess) -> bool:
    page = httpx.get(f"{server.base_url}/metrics", trust_env=False).text
    found = re.search(r"^vllm:num_requests_running\{[^}]*\} ([\d.]+)", page, re.MULTILINE)
    return found is not None and float(found.group(1)) > 0
