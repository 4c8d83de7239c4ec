"""A run that is killed at any moment goes on as if nothing had happened, and a checkpoint is whole or not there."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
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


def test_a_run_killed_behind_its_last_step_only_writes_its_model(
    recipe: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "run"
    shutil.copytree(whole, killed)
    for name in ("model.safetensors", "config.json", "README.md"):
        (killed / name).unlink()
    status, output = runs.train(eight(recipe), killed, "--resume_from_checkpoint", "true")
    assert status == 0, output
    runs.assert_equal_runs(whole, killed)
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_a_disk_that_is_full_ends_the_run_in_a_sentence_and_nothing_is_lost(
    recipe: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    changes = whole.with_suffix(".changes").read_text().splitlines()
    full = tmp_path / "run"
    first_save = changes.index("os.rmdir _saving-2") + 2  # counted from one, and the next change is the last one
    status, output = runs.train(eight(recipe), full, PPP_TEST_KILL_AT=str(first_save))
    assert status == -signal.SIGKILL, output
    size = (full / "checkpoint-2" / "optimizer.pt").stat().st_size
    # What no longer fits -> bytes of a file, options, what is said.
    kept = rf"the checkpoint of step 4 could not be written .*; {full / 'checkpoint-2'} is complete and was kept"
    limits = {
        "trajectories.jsonl": (30_000, (), r".*trajectories\.jsonl cannot be written \(File too large\)"),
        "model.safetensors": (100_000, ("--log_trajectories_every", "0"), kept),
        "optimizer.pt": (size - 1, ("--log_trajectories_every", "0"), kept),
    }
    for name, (limit, options, expected) in limits.items():
        options = ("--resume_from_checkpoint", "true", *options)
        status, output = runs.train(eight(recipe), full, *options, PPP_TEST_MAX_FILE=str(limit))
        assert status == 1, name + output
        assert re.match(f"ppp train: {expected}", output.strip().splitlines()[-1]), output
        assert not list(full.glob("_*")) and not (full / "checkpoint-4").exists()
    status, output = runs.train(eight(recipe), full, "--resume_from_checkpoint", "true")
    assert status == 0, output
    runs.assert_equal_runs(whole, full)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    recipe: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    """Ctrl-C may come in the middle of a rollout, and leaves a checkpoint of the step before."""
    stopped = tmp_path / "run"
    process = runs.start(eight(recipe), stopped)
    while process.is_alive() and (
        not (stopped / "metrics.jsonl").is_file() or len(runs.read_lines(stopped / "metrics.jsonl")) < 3
    ):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    process.join(runs.TIMEOUT_S)
    assert process.exitcode == 130, stopped.with_suffix(".log").read_text()
    status, output = runs.train(eight(recipe), stopped, "--resume_from_checkpoint", "true")
    assert status == 0, output
    runs.assert_equal_runs(whole, stopped)
