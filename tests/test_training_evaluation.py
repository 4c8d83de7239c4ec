"""Evaluations while training: they show the policy on held-out sessions and leave no trace in what is trained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import runs
from safetensors.torch import load_file

EVALUATED = {
    "eval_tasks": {"town": {"split": "test", "num": 2}},
    "eval_preferences": ["no_preference", "json"],
    "eval_strategy": "steps",
    "eval_steps": 1,
    "eval_on_start": True,
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return runs.town_recipe(runs.save_town_model(tmp_path_factory.mktemp("town")))


@pytest.fixture(scope="module")
def evaluated(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is evaluated at its start and after each of its four steps."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    status, output = runs.train({**recipe, **EVALUATED}, folder)
    assert status == 0, output
    return folder


def lines(folder: Path, name: str, mode: str) -> list[dict[str, Any]]:
    return [line for line in runs.read_lines(folder / name) if line["mode"] == mode]


def test_training_goes_the_same_way_with_and_without_evaluations(
    recipe: dict[str, Any], evaluated: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    status, output = runs.train(recipe, folder)
    assert status == 0, output
    assert {line["step"] for line in lines(evaluated, "trajectories.jsonl", "eval")} == {0, 1, 2, 3, 4}
    for name in ("trajectories.jsonl", "tokens.jsonl"):
        assert lines(folder, name, "train") == lines(evaluated, name, "train")
    runs.assert_equal(
        load_file(folder / "model.safetensors"), load_file(evaluated / "model.safetensors"), "model.safetensors"
    )


def test_a_resumed_run_tells_each_evaluation_once(recipe: dict[str, Any], evaluated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(evaluated, folder)
    shutil.rmtree(folder / "checkpoint-4")  # as if it had been killed before it saved for the second time
    for path in [*folder.glob("*.safetensors"), folder / "README.md"]:
        path.unlink()
    status, output = runs.train({**recipe, **EVALUATED}, folder, "--resume_from_checkpoint", "true")
    assert status == 0, output
    told = [line["step"] for line in runs.read_lines(folder / "metrics.jsonl") if "eval_productivity" in line]
    assert told == [0, 1, 2, 3, 4]
    runs.assert_equal_runs(evaluated, folder)
