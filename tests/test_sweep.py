"""The sweep over the weights: its grid, turned into command lines as W&B's agent does it, is what a recipe takes."""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from ppp.recipe import Recipe, read_recipe
from ppp.rewards import TERMS
from ppp.types import RecipeError

ROOT = Path(__file__).parent.parent
SWEEP = ROOT / "recipes" / "sweeps" / "town_weights.yaml"
CONFIG: dict[str, Any] = yaml.safe_load(SWEEP.read_text(encoding="utf-8"))
NAMES = list(CONFIG["parameters"])
CORNERS = list(itertools.product(*({min(p["values"]), max(p["values"])} for p in CONFIG["parameters"].values())))


def agents_command(values: dict[str, Any]) -> list[str]:
    """What W&B's agent would start for one point of the grid."""
    arguments = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    command: list[str] = []
    for part in create_sweep_command(CONFIG["command"]):
        command += arguments["args"] if part == "${args}" else [part]
    return command


def started(values: dict[str, Any], folder: Path) -> list[str]:
    """What `ppp` is then called with, by the shell that stands between."""
    program = folder / "ppp"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "WANDB_RUN_ID": "run0"}
    found = subprocess.run(agents_command(values), env=environment, capture_output=True, text=True, check=True)
    return found.stdout.splitlines()


def read(options: list[str]) -> Recipe:
    options[options.index("--config") + 1] = str(ROOT / "recipes" / "town.yaml")
    return read_recipe(options, prog="ppp train")


def test_the_grid_is_over_the_three_weights_and_no_run_of_it_has_all_at_0() -> None:
    assert [f"term_weights.{term}" for term in TERMS] == NAMES
    for values in itertools.product(*(parameter["values"] for parameter in CONFIG["parameters"].values())):
        assert any(value > 0 for value in values)


@pytest.mark.parametrize("corner", CORNERS, ids=str)
def test_each_corner_of_the_grid_is_a_run_of_its_own_with_its_weights(
    corner: tuple[float, ...], tmp_path: Path
) -> None:
    command, *options = started(dict(zip(NAMES, corner, strict=True)), tmp_path)
    assert command == "train"
    recipe = read(options)
    assert recipe.config.reward_settings().weights == dict(zip(TERMS, corner, strict=True))
    assert str(recipe.args.output_dir) == "runs/weights/run0" and recipe.args.report_to == ["wandb"]
    assert recipe.args.eval_steps == 50


def test_all_weights_at_0_are_refused_in_a_sentence(tmp_path: Path) -> None:
    options = started(dict.fromkeys(NAMES, 0.0), tmp_path)[1:]
    with pytest.raises(RecipeError, match=r"term_weights: .* with no weight above 0 all rewards are equal"):
        read(options)


def test_the_shell_loop_of_its_head_starts_runs_that_a_recipe_takes() -> None:
    head = [
        line.removeprefix("#").strip() for line in SWEEP.read_text(encoding="utf-8").splitlines() if line[:1] == "#"
    ]
    text = "\n".join(head)
    loop = text[text.index("for proactivity") : text.index("done; done") + len("done; done")]
    script = f"ppp() {{ printf '%s ' \"$@\"; echo; }}\n{loop}"
    lines = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 9
    folders = set()
    for line in lines:
        command, *options = shlex.split(line)
        assert command == "train"
        folders.add(str(read(options).args.output_dir))
    assert len(folders) == 9
