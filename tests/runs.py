"""Training runs of the town for tests: started as processes of their own, killed, resumed, compared."""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from ppp.baselines.town_tokenizer import town_tokenizer
from ppp.tiny_model import random_qwen3
from ppp.warmstart import main as warm_start

TESTS = Path(__file__).parent
CONFIGS = TESTS.parent / "accelerate_configs"
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "DS_ACCELERATOR": "cpu"}
QUIET |= {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
VARYING = ("step_time", "seconds/", "train_", "eval_seconds/")  # what a clock says
TIMEOUT_S = 300


def town_recipe(model: Path) -> dict[str, Any]:
    """Steps of a third of a second, in which groups differ and weights move."""
    return {
        "model_name_or_path": str(model),
        "environments": {"town": 1},
        "train_tasks": {"town": {"split": "train", "num": 8}},
        "preferences": ["no_preference", "no_ask"],
        "max_steps": 4,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "max_completion_length": 160,
        "limits": {"max_turns": 6, "max_tokens_per_turn": 32, "max_observation_tokens": 48, "max_prompt_tokens": 128},
        "learning_rate": 1e-3,
        "reward_clip": None,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "deterministic": True,
        "save_strategy": "steps",
        "save_steps": 2,
    }


def save_town_model(folder: Path) -> Path:
    """A model that takes part in sessions, more badly than well; a few seconds."""
    base, model = folder / "base", folder / "model"
    tokenizer = town_tokenizer()
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_key_value_heads": 2}
    random_qwen3(tokenizer, 0, max_length=320, initializer_range=0.05, **sizes).save_pretrained(base)
    tokenizer.save_pretrained(base)
    recipe = folder / "warmstart.yaml"
    settings = {"base_model": str(base), "num_demonstrations": 300, "num_steps": 80}
    recipe.write_text(yaml.safe_dump({**town_recipe(base), "warmstart": settings}))
    assert warm_start(["--config", str(recipe), "--output_dir", str(model)]) == 0
    return model


# --- one process ------------------------------------------------------------------------------------------------------


@cache
def _server() -> multiprocessing.context.ForkServerContext:
    """Where runs are forked from a process that has imported everything, which takes longer than the runs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["town_train"])
    before = dict(os.environ)
    # Some of it is read while libraries are imported; and the server of Python 3.11 does not know our sys.path.
    os.environ.update(QUIET | {"PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])})
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def _child(argv: list[str], environment: Mapping[str, str], log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ.update(QUIET | dict(environment))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from town_train import run

    status = run(argv)
    atexit._run_exitfuncs()  # multiprocessing leaves them out, and W&B writes its last line there
    sys.exit(status)


def start(recipe: Mapping[str, Any], output_dir: Path, *options: str, **environment: str) -> ForkServerProcess:
    argv = [*_written(recipe, output_dir), *options]
    process = _server().Process(target=_child, args=(argv, environment, str(_log(output_dir))))
    process.start()
    return process


def train(recipe: Mapping[str, Any], output_dir: Path, *options: str, **environment: str) -> tuple[int, str]:
    """Exit status and output of a run; a negative status is the signal that ended it."""
    process = start(recipe, output_dir, *options, **environment)
    process.join(TIMEOUT_S)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"still running after {TIMEOUT_S} s: {_log(output_dir).read_text()}")
    return process.exitcode, _log(output_dir).read_text()


# --- several processes ------------------------------------------------------------------------------------------------


def launch(config: str, recipe: Mapping[str, Any], output_dir: Path, *options: str) -> tuple[int, str]:
    """Exit status and output of a run started by `accelerate launch` with a file of `accelerate_configs`."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config)]
    command += ["--main_process_port", "0", str(TESTS / "town_train.py"), *_written(recipe, output_dir), *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **QUIET},
        start_new_session=True,  # so that the launcher can be ended together with its workers
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


def _written(recipe: Mapping[str, Any], output_dir: Path) -> list[str]:
    path = output_dir.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(dict(recipe)))
    return ["--config", str(path), "--output_dir", str(output_dir)]


def _log(output_dir: Path) -> Path:
    return output_dir.with_suffix(".log")


# --- what a run leaves ------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A log without what a clock says."""
    lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    for line in lines:
        line.pop("timings", None)
    return [{key: value for key, value in line.items() if not key.startswith(VARYING)} for line in lines]


def hardware(output_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output_dir / "versions.json").read_text())["hardware"]
    return found


def assert_equal_runs(expected: Path, found: Path) -> None:
    """Logs, weights and the last checkpoint of two runs are the same, bit for bit."""
    logs = sorted(path.name for path in expected.glob("*.jsonl"))
    assert {"metrics.jsonl", "trajectories.jsonl"} <= set(logs)
    for name in logs:
        assert read_lines(found / name) == read_lines(expected / name), name
    for path in [*expected.glob("*.safetensors"), *sorted(expected.glob("checkpoint-*"))[-1].rglob("*.safetensors")]:
        assert_equal(load_file(path), load_file(found / path.relative_to(expected)), path.name)
    for path in sorted(expected.glob("checkpoint-*"))[-1].rglob("*.pt"):
        other = torch.load(found / path.relative_to(expected), weights_only=False)
        assert_equal(torch.load(path, weights_only=False), other, path.name)


def assert_equal(expected: Any, found: Any, where: str) -> None:
    """Nested mappings and lists of tensors and values are the same, bit for bit."""
    if isinstance(expected, Mapping):
        assert expected.keys() == found.keys(), where
        for key in expected:
            assert_equal(expected[key], found[key], f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(expected) == len(found), where
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            assert_equal(one, other, f"{where}[{index}]")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(expected, found), where
    elif isinstance(expected, (int, float, str, bool, type(None))):
        assert expected == found, where
