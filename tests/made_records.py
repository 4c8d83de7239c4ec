"""Sessions made by hand, as `ppp evaluate` and `ppp play` write them, for the tests of what is made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ppp.rewards import RewardSettings, score_trajectory
from ppp.run_log import trajectory_record
from ppp.types import Answer, Effort, StopReason, Task, ToolCall, Trajectory, Turn

LETTERS = {"l": Effort.LOW, "m": Effort.MEDIUM, "h": Effort.HIGH}


def made_turn(letter: str) -> Turn:
    """`l`, `m`, `h`: a question answered at this effort, in capitals one that this user dislikes; `t`: a tool; `u`: a
    turn that could not be read; `f`: the end. Each has 10 tokens, and what comes back 5."""
    turn = Turn([1] * 10, [-0.5] * 10, {"role": "assistant", "content": f"turn {letter}"})
    if letter == "f":
        turn.call = ToolCall("finish", {"answer": "f1"})
        return turn
    turn.observation, turn.observation_ids = "The parser.", [2] * 5
    if letter.lower() in LETTERS:
        turn.call, turn.question = ToolCall("ask_user", {"query": "Which module?"}), "Which module?"
        turn.answer = Answer("The parser.", LETTERS[letter.lower()], letter.islower())
    elif letter == "t":
        turn.call = ToolCall("look", {"place": "x"})
    else:
        turn.is_error = True
    return turn


def made_session(
    turns: str = "tf",
    productivity: float | None = 1.0,
    *,
    task: str = "t0",
    preference: str = "no_preference",
    precise: bool = False,
    environment: str = "town",
    error_kind: str = "timeout",
) -> Trajectory:
    """A session of these turns; a productivity of None makes it one that failed."""
    failed, finished = productivity is None, turns.endswith("f")
    whole_reason = StopReason.FINISHED if finished else StopReason.MAX_TURNS
    return Trajectory(
        Task(
            task_id=f"{task}/precise/{preference}" if precise else f"{task}/{preference}",
            environment=environment,
            prompt=f"Precise {task}." if precise else f"Vague {task}.",
            precise_prompt=f"Precise {task}.",
            preference=preference,
            payload={},
        ),
        prompt_ids=[0] * 20,
        turns=[made_turn(letter) for letter in turns],
        stop_reason=StopReason.ERROR if failed else whole_reason,
        productivity=productivity,
        final_answer="f1" if finished else None,
        error="TimeoutError: 3 s" if failed else None,
        error_kind=error_kind if failed else None,
    )


def as_record(trajectory: Trajectory, *, row: int = 0, mode: str = "eval") -> dict[str, Any]:
    """A session as a line of `results.jsonl` holds it."""
    score = score_trajectory(trajectory, RewardSettings())
    found: dict[str, Any] = json.loads(
        json.dumps(trajectory_record(trajectory, score, step=0, mode=mode, row=row, copy=0))
    )
    return found


def made_record(
    turns: str = "tf", productivity: float | None = 1.0, *, row: int = 0, mode: str = "eval", **options: Any
) -> dict[str, Any]:
    """`made_session` as a record."""
    return as_record(made_session(turns, productivity, **options), row=row, mode=mode)


def write_records(path: Path, records: Iterable[Mapping[str, Any] | str]) -> Path:
    """One line each; texts stand as they are."""
    lines = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) + "\n" for line in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")
    return path
