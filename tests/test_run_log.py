"""What a run leaves on disk, and that going on with a run neither loses nor repeats a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ppp.run_log import RunLog, drop_lines_after, read_jsonl, trajectory_record
from ppp.types import Answer, Effort, StopReason, Task, ToolCall, Trajectory, Turn

LINES = [b'{"step": 1, "a": 2}\n', b'{"step": 2}\n', b'{"step": 2, "eval_a": 1}\n', b'{"step": 10}\n']


@pytest.mark.parametrize(("step", "num_kept"), [(0, 0), (1, 1), (2, 3), (9, 3), (10, 4), (99, 4)])
def test_lines_beyond_the_step_are_dropped(tmp_path: Path, step: int, num_kept: int) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(LINES))
    drop_lines_after(path, step)
    assert path.read_bytes() == b"".join(LINES[:num_kept])


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(LINES[:2]) + b'{"step": 2, "eva')
    drop_lines_after(path, 5)
    assert path.read_bytes() == b"".join(LINES[:2])


def test_the_summary_of_a_run_that_goes_on_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(LINES[:3]) + b'{"step": 2, "train_runtime": 1.5}\n')
    drop_lines_after(path, 2)
    assert path.read_bytes() == b"".join(LINES[:3])


def test_metrics_are_valid_json_whatever_their_values(tmp_path: Path) -> None:
    log = RunLog(tmp_path, rank=0, step=0)
    log.write_metrics(1, {"loss": float("nan"), "grad_norm": float("inf"), "reward": 0.5, "step": 77})
    assert read_jsonl(log.metrics_path) == [{"step": 1, "loss": None, "grad_norm": None, "reward": 0.5}]


def test_a_log_of_another_process_does_not_touch_the_metrics(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(LINES))
    log = RunLog(tmp_path, rank=1, step=0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(LINES)
    assert log.trajectories_path.name == "trajectories.rank1.jsonl"


def test_a_trajectory_is_told_with_questions_answers_and_scores() -> None:
    task = Task("t", "town", "vague", "precise", "no_preference", {})
    answer = Answer("In the parser.", Effort.LOW, True)
    call = ToolCall("ask_user", {"query": "Where?"})
    asking = Turn([1, 2], [0.0, 0.0], {"role": "assistant", "content": "Hm."}, call, question="Where?", answer=answer)
    trajectory = Trajectory(task, [5], [asking], StopReason.MAX_TURNS, 0.5)
    record = trajectory_record(trajectory, {"reward": 0.55}, step=3, mode="train", row=1, copy=2)
    assert json.loads(json.dumps(record))["turns"][0]["answer"]["effort"] == "low"
    assert record["turns"][0]["call"] == {"name": "ask_user", "arguments": '{"query": "Where?"}'}
    assert next(iter(record)) == "step", "drop_lines_after reads the beginning of a line"
    assert record["session"]["num_questions"] == 1 and record["score"] == {"reward": 0.55}
