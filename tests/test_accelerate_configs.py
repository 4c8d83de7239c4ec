"""The launch configurations, read by accelerate itself: each is what its name and its head say."""

from __future__ import annotations

import os
import re
import shlex
from argparse import Namespace
from pathlib import Path

import pytest
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "accelerate_configs"

# distributed type, processes, machines, precision, ZeRO stage or FSDP version, where the optimizer is
EXPECTED = {
    "cpu.yaml": ("NO", 1, 1, "no", None, None),
    "cpu_ddp_2.yaml": ("MULTI_GPU", 2, 1, "no", None, None),  # so it is read where there is no MPI
    "cpu_zero3_2.yaml": ("DEEPSPEED", 2, 1, "no", 3, "none"),
    "gpu_1.yaml": ("NO", 1, 1, "bf16", None, None),
    "zero3_8.yaml": ("DEEPSPEED", 8, 1, "bf16", 3, "none"),
    "zero3_8_offload.yaml": ("DEEPSPEED", 8, 1, "bf16", 3, "cpu"),
    "zero3_2x8.yaml": ("DEEPSPEED", 16, 2, "bf16", 3, "none"),
    "zero3_4x8.yaml": ("DEEPSPEED", 32, 4, "bf16", 3, "none"),
    "fsdp2_8.yaml": ("FSDP", 8, 1, "bf16", 2, None),
}


def launch_arguments(monkeypatch: pytest.MonkeyPatch, name: str, *more: str) -> Namespace:
    """What `accelerate launch` makes of the file, at the point where it would start processes."""
    kept: list[Namespace] = []
    for launcher in ("deepspeed_launcher", "multi_gpu_launcher", "simple_launcher"):
        monkeypatch.setattr(launch, launcher, kept.append)
    program = ["--config_file", str(FOLDER / name), *more, "-m", "ppp.train", "--config", "recipes/town.yaml"]
    launch.launch_command(launch.launch_command_parser().parse_args(program))
    return kept[0]


def environment(arguments: Namespace) -> dict[str, str]:
    """What it puts into the environment of the processes."""
    if arguments.use_deepspeed:
        return prepare_deepspeed_cmd_env(arguments)[1]
    if arguments.num_processes > 1 and not arguments.cpu:
        return prepare_multi_gpu_env(arguments)
    return prepare_simple_launcher_cmd_env(arguments)[1]


def test_every_file_is_expected_to_be_something() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.yaml")) == sorted(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_is_what_its_name_says(name: str) -> None:
    config = load_config_from_file(str(FOLDER / name))
    kind, num_processes, num_machines, precision, variant, optimizer = EXPECTED[name]
    assert (config.distributed_type.value, config.num_processes, config.num_machines) == (
        kind,
        num_processes,
        num_machines,
    )
    assert str(config.mixed_precision) == precision
    assert config.deepspeed_config.get("zero_stage", config.fsdp_config.get("fsdp_version")) == variant
    assert config.deepspeed_config.get("offload_optimizer_device") == optimizer


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_opens_with_its_command(name: str) -> None:
    head = "".join(
        line.removeprefix("#").strip() + "\n"
        for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    )
    found = re.search(r"accelerate launch (.*?[^\\])\n", head, re.S)
    assert found is not None
    command = shlex.split(found.group(1).replace("\\\n", " "))
    assert command[command.index("--config_file") + 1] == f"accelerate_configs/{name}"
    recipe = command[command.index("--config") + 1]
    assert (ROOT / recipe).is_file(), recipe
    assert ("--machine_rank" in command) is (EXPECTED[name][2] > 1)


@pytest.mark.parametrize("name", [name for name, kind in EXPECTED.items() if kind[0] == "DEEPSPEED"])
def test_deepspeed_is_told_all_of_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = launch_arguments(monkeypatch, name, "--main_process_ip", "10.0.0.1", "--main_process_port", "0")
    for key, value in environment(arguments).items():
        monkeypatch.setenv(key, value)
    plugin = DeepSpeedPlugin()
    zero = plugin.deepspeed_config["zero_optimization"]
    assert (plugin.zero_stage, zero["stage"], plugin.zero3_init_flag) == (3, 3, True)
    assert zero["offload_optimizer"]["device"] == EXPECTED[name][5]
    assert zero["stage3_gather_16bit_weights_on_model_save"] is True
    # Left to the recipe: gradient_accumulation_steps and max_grad_norm.
    assert plugin.deepspeed_config["gradient_accumulation_steps"] == "auto"
    assert plugin.deepspeed_config["gradient_clipping"] == "auto"
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == EXPECTED[name][3]


@pytest.mark.parametrize("name", [name for name, kind in EXPECTED.items() if kind[0] == "FSDP"])
def test_fsdp_is_told_all_of_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in environment(launch_arguments(monkeypatch, name, "--main_process_port", "0")).items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.cpu_ram_efficient_loading is True
    assert plugin.activation_checkpointing is False  # the recipe's gradient_checkpointing does it
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"


@pytest.mark.parametrize("name", [name for name, kind in EXPECTED.items() if kind[2] > 1])
def test_machines_find_each_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = range(EXPECTED[name][2])
    for rank in ranks:
        place = ("--machine_rank", str(rank), "--main_process_ip", "10.0.0.1", "--main_process_port", "29999")
        arguments = launch_arguments(monkeypatch, name, *place)
        command, _ = prepare_deepspeed_cmd_env(arguments)
        assert command is None  # torchrun, not DeepSpeed's own launcher, which would want ssh and a list of hosts
        assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == (str(len(ranks)), "8", rank)
        assert arguments.rdzv_endpoint == "10.0.0.1:29999"
