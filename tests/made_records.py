"""Records of sessions made by hand, as `ppp evaluate` and `ppp play` write them, for the tests of what is made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ppp.rewards import RewardSettings, score_trajectory
from ppp.run_log import trajectory_record
from ppp.types import Answer, Effort, StopReason, Task, ToolCall, Trajectory, Turn

LETTERS = {"l": Effort.LOW, "m": Effort.MEDIUM, "h": Effort.HIGH}


def made_turn(letter: str) -> Turn:
    """`l`, `m`, `h`: a question answered at this effort, in capitals one that this user dislikes; `t`: a tool; `u`: a
    turn that could not be read; `f`: the end. Each has 10 tokens, and what comes back 5."""
    message = {"role": "assistant", "content": f"turn {letter}"}
    if letter.lower() in LETTERS:
        answer = Answer("The parser.", LETTERS[letter.lower()], letter.islower())
        call = ToolCall("ask_user", {"query": "Which module?"})
        turn = Turn(
            [1] * 10, [-0.5] * 10, message, call, "The parser.", [2] * 5, question="Which module?", answer=answer
        )
    elif letter == "f":
        turn = Turn([1] * 10, [-0.5] * 10, message, ToolCall("finish", {"answer": "f1"}))
    else:
        made = None if letter == "u" else ToolCall("look", {"place": "x"})
        turn = Turn([1] * 10, [-0.5] * 10, message, made, "seen", [2] * 5, is_error=made is None)
    return turn


def made_record(
    turns: str = "tf",
    productivity: float | None = 1.0,
    *,
    task: str = "t0",
    preference: str = "no_preference",
    precise: bool = False,
    row: int = 0,
    environment: str = "town",
    error_kind: str = "timeout",
    mode: str = "eval",
) -> dict[str, Any]:
    """A session as a line of `results.jsonl` holds it; a productivity of None makes it one that failed."""
    task_id = f"{task}/precise/{preference}" if precise else f"{task}/{preference}"
    prompt = f"Precise {task}." if precise else f"Vague {task}."
    failed = productivity is None
    trajectory = Trajectory(
        Task(task_id, environment, prompt, f"Precise {task}.", preference, {}),
        prompt_ids=[0] * 20,
        turns=[made_turn(letter) for letter in turns],
        stop_reason=StopReason.ERROR
        if failed
        else StopReason.FINISHED
        if turns.endswith("f")
        else StopReason.MAX_TURNS,
        productivity=productivity,
        final_answer="f1" if turns.endswith("f") else None,
        error="TimeoutError: 3 s" if failed else None,
        error_kind=error_kind if failed else None,
    )
    score = score_trajectory(trajectory, RewardSettings())
    return json.loads(json.dumps(trajectory_record(trajectory, score, step=0, mode=mode, row=row, copy=0)))


def write_records(path: Path, records: Iterable[Mapping[str, Any] | str]) -> Path:
    """One line each; texts stand as they are."""
    lines = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) + "\n" for line in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def numbered(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same records, each with a row of its own."""
    return [{**record, "row": row} for row, record in enumerate(records)]
