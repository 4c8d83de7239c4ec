"""What a run leaves on disk as it goes: `metrics.jsonl` and `trajectories.jsonl` in its output folder.

Every line is one JSON object that starts with its step. A resumed run first drops the lines beyond the checkpoint
that it starts from, so that nothing is told twice. Who calls this: `trainer.py` and `callbacks.py`; who reads it:
`report.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppp.rewards import METRIC_VERSION, session_metrics
from ppp.types import DiskError, Trajectory, Turn

if TYPE_CHECKING:
    from ppp.token_log import TrainingTokens

METRICS_FILE = "metrics.jsonl"
RESUME = "go on with --resume_from_checkpoint true"
TRAJECTORIES_FILE = "trajectories.jsonl"
_SUMMARY = b'"train_runtime": '  # no other log of transformers has it
_STEP = re.compile(rb'\{"step": (\d+)[,}]')


def drop_lines_after(path: Path, step: int) -> None:
    """Cut a log behind the last whole line whose step is at most `step`; steps never fall within a file.

    A line that sums up the run goes as well: the run goes on, and will be summed up again.
    """
    if not path.is_file():
        return
    end = 0
    with path.open("r+b") as file:
        for line in file:
            found = _STEP.match(line)
            if found is None or int(found[1]) > step or not line.endswith(b"\n") or _SUMMARY in line:
                break
            end += len(line)
        file.truncate(end)


class RunLog:
    """Appends to the two files of one process; only the main process has metrics to write.

    Args:
        folder: the run's output folder, which exists.
        rank: of this process; others than 0 write `trajectories.rank<k>.jsonl`.
        step: the step from which the run goes on; lines of later ones are dropped. -1 where nothing is gone on with.
        tokens: where the tokens of some sessions go; None keeps them from disk.
    """

    def __init__(self, folder: Path, rank: int, step: int, tokens: TrainingTokens | None = None) -> None:
        self.tokens = tokens
        self.listeners: list[Callable[[Sequence[Mapping[str, Any]]], None]] = []
        name = TRAJECTORIES_FILE if rank == 0 else f"trajectories.rank{rank}.jsonl"
        self.metrics_path, self.trajectories_path = folder / METRICS_FILE, folder / name
        for path in (self.metrics_path, self.trajectories_path) if rank == 0 else (self.trajectories_path,):
            drop_lines_after(path, step)
        self.rank = rank

    def write_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line; not-a-number becomes null, which JSON can hold."""
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in metrics.items()
            if key != "step"
        }
        append_lines(self.metrics_path, [{"step": step, **finite}])

    def write_trajectories(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append a batch's sessions, all of one mode, and tell the listeners of them."""
        written = list(records)
        append_lines(self.trajectories_path, written)
        for listener in self.listeners:
            listener(written)

    def files(self) -> list[Path]:
        """What this process writes."""
        files = [self.metrics_path, self.trajectories_path]
        return files if self.tokens is None else [*files, self.tokens.path]


def append_lines(path: Path, records: Iterable[Mapping[str, Any]], remedy: str = RESUME) -> None:
    """Append one line of JSON per record.

    Args:
        remedy: what to do when the disk is full, for the message.

    Raises:
        DiskError: the file could not be written.
    """
    # Opened each time: a file handle would not survive a resume of the same object, and costs nothing here.
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    except OSError as error:
        raise DiskError(f"{path} cannot be written ({error.strerror}); make room and {remedy}") from error


def trajectory_record(
    trajectory: Trajectory, score: Mapping[str, float] | None, *, step: int, mode: str, row: int, copy: int
) -> dict[str, Any]:
    """One trajectory as a JSON object: what was said, what it earned, how it ended; no tokens.

    Args:
        step: the update that the trajectory goes into; for an evaluation, the step after which it took place.
        mode: "train" or "eval".
        row, copy: which session of the batch, which of its copies.
    """
    task = trajectory.task
    record: dict[str, Any] = {
        "step": step,
        "mode": mode,
        "metric_version": METRIC_VERSION,
        "row": row,
        "copy": copy,
        "task_id": task.task_id,
        "environment": task.environment,
        "preference": task.preference,
        "is_precise": task.is_precise,
        "prompt": task.prompt,
        "stop_reason": None if trajectory.stop_reason is None else trajectory.stop_reason.value,
        "final_answer": trajectory.final_answer,
        "error": trajectory.error,
        "error_kind": trajectory.error_kind,
        "score": score,
        "session": None if trajectory.failed else session_metrics(trajectory),
        "num_prompt_tokens": len(trajectory.prompt_ids),
        "num_completion_tokens": sum(len(t.completion_ids) + len(t.observation_ids) for t in trajectory.turns),
        "num_policy_tokens": sum(
            len(t.completion_ids) if t.num_tokens is None else t.num_tokens for t in trajectory.turns
        ),
        "timings": {name: round(seconds, 4) for name, seconds in trajectory.timings.items()},
        "turns": [turn_record(turn) for turn in trajectory.turns],
    }
    return record


def replayable(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a replayed run must have in common with the recorded one: all but seconds and the wording of a failure."""
    return {key: value for key, value in record.items() if key not in ("timings", "error", "error_kind")}


def turn_record(turn: Turn) -> dict[str, Any]:
    """One turn; the arguments of its call stand as JSON text, so that every line has the same types."""
    record: dict[str, Any] = {"text": turn.message["content"]}
    if turn.call is not None:
        arguments = json.dumps(dict(turn.call.arguments), ensure_ascii=False)
        record["call"] = {"name": turn.call.name, "arguments": arguments}
    if turn.answer is not None:
        record["question"] = turn.question
        record["answer"] = {
            "text": turn.answer.text,
            "effort": turn.answer.effort.label,
            "follows_preference": turn.answer.follows_preference,
            "decided_by": turn.answer.decided_by,
        }
    record["observation"] = turn.observation
    record["is_error"] = turn.is_error
    record["truncated"] = turn.truncated
    return record


def read_jsonl(path: Path) -> Sequence[dict[str, Any]]:
    """All whole lines of a log."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]
