"""Which sessions a person takes part in: a task, a preference and a kind of prompt, named or drawn.

A draw depends on the seed and on how many sessions there are already, so that playing again brings another task. What
tasks and slices are stands in `ppp/evaluation/plan.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ppp.checks import refuse, refuse_unknown
from ppp.data import TaskRow
from ppp.evaluation.plan import SLICES, Session, make_task
from ppp.evaluation.records import Record
from ppp.preferences import PREFERENCES, SEEN
from ppp.types import RecipeError, Task
from ppp.users.terminal import one_line

LOUD = "answer_more"  # would punish rightly staying silent, so that no precise session is played with it
MAX_LISTED_CHARS = 100


@dataclass(frozen=True, slots=True)
class Wish:
    """What the person asked for; None is drawn, as a prompt None is vague where the task has one."""

    task: str | None = None
    preference: str | None = None
    prompt: str | None = None


def check_wish(wish: Wish, rows: Sequence[TaskRow]) -> None:
    """Find out whether there is such a session.

    Raises:
        RecipeError: there is none; names what does not fit.
    """
    if wish.preference is not None and wish.preference not in PREFERENCES:
        raise refuse_unknown("preference", wish.preference, PREFERENCES)
    if wish.task is not None and all(row["task_id"] != wish.task for row in rows):
        allowed = f"one of {len(rows)} tasks, which --list shows"
        raise RecipeError(f"task: {wish.task!r} is unknown; allowed: {allowed}")
    if not _fitting(wish, rows):
        allowed = "no task has a vague prompt" if wish.task is None else f"task {wish.task!r} has no vague prompt"
        raise refuse("prompt", wish.prompt, f"{allowed}; choose precise")
    if wish.preference == LOUD and all(_is_precise(wish, row) for row in _fitting(wish, rows)):
        raise refuse("preference", LOUD, "precise prompts are played with other users")


def choose(
    wish: Wish, rows: Sequence[TaskRow], preferences: Sequence[str], played: Sequence[Session], seed: int
) -> Session:
    """The next session.

    Args:
        wish: was checked.
        rows: held-out tasks.
        preferences: to draw from.
        played: the sessions there are; no two have the same number.
        seed: of the draw.
    """
    rng = random.Random(f"play-{seed}-{len(played)}")
    rows = _fitting(wish, rows)
    if wish.preference == LOUD:
        rows = [row for row in rows if not _is_precise(wish, row)]
    row = rng.choice(rows)
    is_precise = _is_precise(wish, row)
    users = [name for name in preferences if not (is_precise and name == LOUD)] or ["no_preference"]
    preference = wish.preference or rng.choice(users)
    name = "precise" if is_precise else "vague_seen" if preference in SEEN else "vague_unseen"
    number = max((session.number for session in played if session.slice == name), default=SLICES[name] - 1) + 1
    return Session(name, number, make_task(row, preference, precise=is_precise, seed=seed))


def sessions_of(records: Sequence[Record]) -> list[Session]:
    """The sessions that were played before, as far as their records tell."""
    return [
        Session(
            record["slice"],
            record["row"],
            Task(
                record["task_id"],
                record["environment"],
                record["prompt"],
                record["prompt"] if record["is_precise"] else record["precise_prompt"],
                record["preference"],
                {},
            ),
        )
        for record in records
    ]


def listing(rows: Sequence[TaskRow]) -> str:
    """The tasks, one a line, each with the beginning of what the agent is told."""
    width = max(len(row["task_id"]) for row in rows)
    lines = []
    for row in rows:
        text = one_line(row["vague_prompt"] or row["precise_prompt"])
        shown = text if len(text) <= MAX_LISTED_CHARS else f"{text[: MAX_LISTED_CHARS - 3]}..."
        lines.append(f"{one_line(row['task_id']):<{width}}  {shown}")
    return "\n".join([*lines, "", f"preferences: {', '.join(PREFERENCES)}", ""])


def _fitting(wish: Wish, rows: Sequence[TaskRow]) -> list[TaskRow]:
    named = [row for row in rows if wish.task in (None, row["task_id"])]
    return [row for row in named if wish.prompt != "vague" or row["vague_prompt"] is not None]


def _is_precise(wish: Wish, row: TaskRow) -> bool:
    return wish.prompt == "precise" or row["vague_prompt"] is None
