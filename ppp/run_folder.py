"""What stands in a run's folder beside its logs: the resolved recipe, versions and hardware.

The logs are `run_log.py`'s, checkpoints those of `checkpoints.py`, the finished model is written by `export.py`.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ppp.checkpoints import remove_leftovers
from ppp.checks import refuse
from ppp.config import PPPConfig
from ppp.recipe import Recipe
from ppp.resume import RECIPE_FILE, sharding
from ppp.types import RecipeError

VERSIONS_FILE = "versions.json"


def check_processes(args: PPPConfig) -> None:
    """Find out whether the processes that were started have found each other.

    Raises:
        RecipeError: each of them believes to be alone; all would train the same and write over each other.
    """
    started, found = int(os.environ.get("WORLD_SIZE", "1")), args.world_size
    if started != found:
        raise RecipeError(
            f"processes: {started} were started and {found} found each other; on CPUs set use_cpu: true, or "
            "ddp_backend: gloo with DeepSpeed"
        )


def prepare_output_dir(recipe: Recipe, folder: Path) -> None:
    """Make the folder, remove the rests of a killed run, write down the recipe, all versions and the hardware.

    Raises:
        RecipeError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        write_whole(folder / RECIPE_FILE, recipe.to_yaml())
    except OSError as error:
        raise refuse("output_dir", str(folder), f"a folder that can be written to ({error.strerror})") from error
    versions = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    record = {
        "python": sys.version.split()[0],
        "hardware": hardware(recipe.args),
        **dict(sorted(versions.items())),
    }
    write_whole(folder / VERSIONS_FILE, json.dumps(record, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a run that is killed leaves the old one or the new one, and nothing between."""
    beside = path.with_name(f"_{path.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def hardware(args: PPPConfig) -> dict[str, Any]:
    """On what a run takes place and how it is spread, as JSON values."""
    state = PartialState()
    is_cuda = state.device.type == "cuda"
    return {
        "num_processes": state.num_processes,
        "distributed_type": state.distributed_type.value,
        "backend": state.backend,
        "sharding": sharding(args),
        "device": torch.cuda.get_device_name(state.device) if is_cuda else state.device.type,
        "num_cpus": os.cpu_count(),
    }
