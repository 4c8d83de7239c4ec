"""A run that is killed at any moment goes on as if nothing had happened, and a checkpoint is whole or not there."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest
import runs

NUM_KILLS = 10


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return runs.town_recipe(runs.save_town_model(tmp_path_factory.mktemp("town")))


@pytest.fixture(scope="module")
def whole(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps, two epochs, that nobody disturbed."""
    output_dir = tmp_path_factory.mktemp("whole") / "run"
    changes = output_dir.with_suffix(".changes")
    status, output = runs.train(eight(recipe), output_dir, PPP_TEST_CHANGES=str(changes))
    assert status == 0, output
    return output_dir


def eight(recipe: dict[str, Any]) -> dict[str, Any]:
    return {**recipe, "max_steps": 8, "save_total_limit": 2}


def test_a_run_killed_ten_times_ends_like_one_that_was_not(recipe: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    num_changes = len(whole.with_suffix(".changes").read_text().splitlines())
    killed = tmp_path / "run"
    rng, num_saves = random.Random(0), 0
    for _ in range(NUM_KILLS):
        moment = rng.randint(1, num_changes // 3)  # early enough that there is something left to be killed
        options = ("--resume_from_checkpoint", "true")
        status, output = runs.train(eight(recipe), killed, *options, PPP_TEST_KILL_AT=str(moment))
        assert status == -signal.SIGKILL, output
        num_saves += any(killed.glob("_saving-*"))
    assert num_saves >= 1
    status, output = runs.train(eight(recipe), killed, "--resume_from_checkpoint", "true")
    assert status == 0, output
    runs.assert_equal_runs(whole, killed)
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.iterdir())
