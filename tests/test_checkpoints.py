"""A checkpoint is there as a whole or not at all, and old ones go only when a newer one is there."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch

from ppp.checkpoints import Checkpoints, find_checkpoints, remove_leftovers, step_of
from ppp.types import DiskError


def save(checkpoints: Checkpoints, step: int, num_values: int = 4) -> None:
    with checkpoints.writing(step) as folder:
        folder.mkdir(parents=True)
        torch.save(torch.zeros(num_values), folder / "optimizer.pt")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    checkpoints.rotate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_gets_its_name_when_it_is_written(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, facts={"sharding": "none"})
    with checkpoints.writing(3) as folder:
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text('{"global_step": 3}')
        assert find_checkpoints(tmp_path) == [] and checkpoints.run_dir == folder.parent
    assert names(tmp_path) == ["checkpoint-3"] and checkpoints.run_dir == tmp_path
    assert json.loads((tmp_path / "checkpoint-3" / "run_facts.json").read_text()) == {"sharding": "none"}
    assert step_of(tmp_path / "checkpoint-3") == 3


def test_a_failure_while_it_is_written_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    with pytest.raises(ZeroDivisionError), checkpoints.writing(2):
        raise ZeroDivisionError
    assert [step_of(path) for path in find_checkpoints(tmp_path)] == [1]


def test_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").mkdir()  # half of one
    save(Checkpoints(tmp_path), 2)
    save(Checkpoints(tmp_path), 2, num_values=9)
    assert len(torch.load(tmp_path / "checkpoint-2" / "optimizer.pt")) == 9
    assert names(tmp_path) == ["checkpoint-2"]


@pytest.mark.parametrize(
    ("limit", "chosen", "expected"),
    [(None, None, [1, 2, 3, 10]), (2, None, [3, 10]), (1, None, [10]), (1, 2, [2, 10]), (3, 1, [1, 3, 10])],
)
def test_the_newest_and_the_chosen_one_are_never_removed(
    limit: int | None, chosen: int | None, expected: list[int], tmp_path: Path
) -> None:
    everything = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        save(everything, step)
    save(Checkpoints(tmp_path, limit, None if chosen is None else tmp_path / f"checkpoint-{chosen}"), 10)
    assert [step_of(path) for path in find_checkpoints(tmp_path)] == expected
    assert len(names(tmp_path)) == len(expected)


def test_the_best_one_is_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 1)
    for step in (1, 2):
        with checkpoints.writing(step) as folder:
            folder.mkdir(parents=True)
            (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        checkpoints.rotate(best=str(tmp_path / "checkpoint-1"))
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_rests_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path), 1)
    for name in ("_saving-2/checkpoint-2", "_removing-checkpoint-0"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "metrics.jsonl").touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["checkpoint-1", "metrics.jsonl"]


@pytest.mark.parametrize("num_values", [1_000, 500_000])
def test_a_disk_that_takes_no_more_is_told_of_in_a_sentence(num_values: int, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk; large and small writes fail in different places of torch."""
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    try:
        with pytest.raises(DiskError) as caught:
            save(checkpoints, 2, num_values)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    message = str(caught.value)
    assert message.startswith("the checkpoint of step 2 could not be written") and "\n" not in message
    assert "GB are free" in message and "checkpoint-1 is complete and was kept" in message
    assert names(tmp_path) == ["checkpoint-1"]


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"), Checkpoints(tmp_path).writing(1):
        raise RuntimeError("out of memory")
