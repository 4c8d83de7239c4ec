"""Rows, scores and weights that lie across two processes: see two_processes.py, which is run once for all of this."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "two_processes.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("two")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [*launcher, str(SCRIPT), str(folder)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stdout + run.stderr
    result: dict[str, Any] = json.loads((folder / "found.json").read_text())
    assert (result["kind"], result["num_processes"]) == ("DistributedType.MULTI_CPU", 2)
    return result


def test_micro_batches_of_one_moment_are_of_like_length_on_both_processes(found: dict[str, Any]) -> None:
    first, second = found["balanced"]["lengths"]
    moments = [[*one, *other] for one, other in zip(first, second, strict=True)]
    assert all(min(now) >= max(later) for now, later in pairwise(moments))
    flat = [
        sorted(length for process in found[name]["lengths"] for rows in process for length in rows)
        for name in ("balanced", "unbalanced")
    ]
    assert flat[0] == flat[1], "the same rows"
    pace = [
        sum(max(max(one), max(other)) for one, other in zip(*found[name]["lengths"], strict=True))
        for name in ("balanced", "unbalanced")
    ]
    assert pace[0] < pace[1]


def test_rows_that_change_processes_leave_loss_and_gradient_alone(found: dict[str, Any]) -> None:
    for ours, theirs in zip(found["balanced"]["metrics"], found["unbalanced"]["metrics"], strict=True):
        for name in ("loss", "grad_norm", "update/norm", "session_reward", "num_tokens"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), name
        assert ours["grad_norm"] > 1e-3
    assert found["balanced"]["weights"][0] == found["balanced"]["weights"][1], "processes stay alike"
    for ours, theirs in zip(found["balanced"]["weights"][0], found["unbalanced"]["weights"][0], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


def test_the_norm_of_the_update_is_counted_once_for_both_processes(found: dict[str, Any]) -> None:
    assert found["balanced"]["moved"][0] == found["balanced"]["moved"][1] > 0
    assert found["balanced"]["metrics"][0]["update/norm"] == pytest.approx(found["balanced"]["moved"][0], rel=1e-3)


def test_a_flat_group_across_processes_gives_way_on_both(found: dict[str, Any]) -> None:
    records = [[line for line in lines if line["step"] == 1] for lines in found["resampled"]["records"]]
    gone = [[line["task_id"] for line in lines if line.get("discarded")] for lines in records]
    assert gone == [["toy-1/no_preference"] * 2, ["toy-1/no_preference"] * 2 + ["toy-2/no_preference"] * 4]
    kept = [[line for line in lines if not line.get("discarded")] for lines in records]
    assert [len(lines) for lines in kept] == [6, 6]
    names = [line["task_id"] for lines in kept for line in lines]
    groups = [set(names[start : start + 4]) for start in (0, 4, 8)]
    assert all(len(group) == 1 for group in groups) and len(set.union(*groups)) == 3
    assert groups[0] == {"toy-0/no_preference"}
    metrics = found["resampled"]["metrics"][0]
    assert metrics["resampled_groups"] == 2 and metrics["flat_groups"] == 0
    assert metrics["flat_groups_drawn"] == pytest.approx(2 / 3)
    assert found["resampled"]["weights"][0] == found["resampled"]["weights"][1]


def test_every_process_runs_as_many_forward_passes_and_finds_the_same(found: dict[str, Any]) -> None:
    one, other = found["aligned"]["agreements"]
    assert one == other == [0.5, 0.5, 1 + 2 + 3 + 4, 4]


def test_what_is_compared_is_told_once(found: dict[str, Any]) -> None:
    assert all(line["alignment/logprob_difference_mean"] > 0 for line in found["balanced"]["metrics"])
