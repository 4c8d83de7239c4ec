"""Sessions for people to read: what was said, and which tokens carry loss. All text is untrusted and made harmless.

Every line begins with whose text it is, so that nothing within a text can pass for a line of ours, and so that a mask
can be read without colours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby

from ppp.codec import Codec
from ppp.doctor.probe import Row
from ppp.doctor.text import Line, Style, harmless, shortened
from ppp.types import Trajectory, Turn

MAX_CHARS = 600  # of one text
MAX_LINES = 40  # of one session

STYLE_OF: dict[str, Style] = {
    **{"prompt": "prompt", "policy": "policy", "observed": "observation"},
    **{"thought": "policy", "agent": "policy", "call": "policy", "user": "observation", "tool": "observation"},
    **{"mistake": "doubtful", "error": "bad", "note": "faint"},
}
"""Whose text it is -> how it is painted."""


def transcript(trajectory: Trajectory) -> list[Line]:
    """What was said in a session, and how it ended."""
    task = trajectory.task
    kind = "precise" if task.is_precise else "vague"
    lines: list[Line] = [(f"session {harmless(task.task_id)} ({kind}; its user: {task.preference})", None)]
    lines += _lines("task", task.prompt)
    for turn in trajectory.turns:
        lines += _turn_lines(turn)
    reason = "not ended" if trajectory.stop_reason is None else trajectory.stop_reason.value
    score = "" if trajectory.productivity is None else f", productivity {trajectory.productivity:.2f}"
    lines += _lines("end", f"{reason}{score}")
    if trajectory.error is not None:
        lines += _lines("error", trajectory.error)
    return _short(lines)


def _turn_lines(turn: Turn) -> Iterator[Line]:
    said = str(turn.message.get("content") or "")
    if turn.message.get("reasoning_content"):
        yield from _lines("thought", str(turn.message["reasoning_content"]))
    if said:
        yield from _lines("agent", said)
    if turn.call is not None:
        yield from _lines("call", f"{turn.call.name} {json.dumps(dict(turn.call.arguments), ensure_ascii=False)}")
    if turn.truncated:
        yield from _lines("note", "the turn was cut off at its limit of tokens")
    if turn.observation is not None:
        label = "user" if turn.answer is not None else "mistake" if turn.is_error else "tool"
        yield from _lines(label, turn.observation)
    if turn.answer is not None:
        verdict = "as this user likes" if turn.answer.follows_preference else "not as this user likes"
        yield from _lines("note", f"effort {turn.answer.effort.label}, asked {verdict}")


def masked_text(row: Row, codec: Codec) -> list[Line]:
    """The tokens of a trajectory as text: prompt, then runs of tokens that carry loss and that do not."""
    lines = [*_lines("prompt", codec.decode(row.prompt_ids))]
    marked = zip(row.completion_ids, row.mask, strict=True)
    for own, run in groupby(marked, key=lambda pair: pair[1]):
        text = codec.decode([token for token, _ in run])
        lines += _lines("policy" if own else "observed", text)
    return _short(lines)


def _short(lines: list[Line]) -> list[Line]:
    """The beginning and the end of a session with many lines."""
    if len(lines) <= MAX_LINES:
        return lines
    half = MAX_LINES // 2
    note: Line = (f"{'note':>8} | {len(lines) - 2 * half} lines are left out here", STYLE_OF["note"])
    return [*lines[:half], note, *lines[-half:]]


def _lines(label: str, text: str) -> Iterator[Line]:
    """The lines of a text, each behind its label."""
    for line in harmless(shortened(text, MAX_CHARS)).split("\n"):
        yield f"{label:>8} | {line}", STYLE_OF.get(label)
