"""Which sessions an evaluation plays: slices that go round preferences and tasks, the same ones for every agent.

They depend on the task rows, the preferences, the counts and the seed alone. Nothing is played here; what is asked for
is read in `settings.py`, what has been played stands in `folder.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ppp.checks import check_at_least, refuse
from ppp.data import TaskRow, expand, load_task_rows
from ppp.preferences import PREFERENCES, SEEN, UNSEEN
from ppp.recipe import Recipe
from ppp.recipe_config import source_options
from ppp.types import RecipeError, Task

Prompts = Literal["both", "vague", "precise"]
PROMPTS: tuple[Prompts, ...] = ("both", "vague", "precise")

# Sessions of different slices never share a number, however many each has: numbers are keys of the sampling noise.
SLICES = {"vague_seen": 0, "vague_unseen": 1_000_000, "precise": 2_000_000}
MAX_PER_SLICE = 1_000_000


@dataclass(frozen=True, slots=True)
class Session:
    """One session to be played: its slice, and its number, which is the same for every agent."""

    slice: str
    number: int
    task: Task


@dataclass(frozen=True, slots=True)
class Counts:
    """How many sessions are played.

    Attributes:
        num_sessions: of the slices vague_seen and precise.
        num_per_unseen: vague sessions of each unseen preference.
        num_per_preference: the same number for every preference, seen or not, in place of the other two; precise
            sessions are then so many for each preference that they are played with.
    """

    num_sessions: int = 240
    num_per_unseen: int = 100
    num_per_preference: int | None = None

    def __post_init__(self) -> None:
        check_at_least("num_sessions", self.num_sessions, 1)
        check_at_least("sessions_per_unseen_preference", self.num_per_unseen, 0)
        if self.num_per_preference is not None:
            check_at_least("sessions_per_preference", self.num_per_preference, 1)

    def of(self, slice_name: str, num_preferences: int) -> int:
        """Sessions of a slice that has so many preferences.

        Raises:
            RecipeError: more than have numbers.
        """
        if self.num_per_preference is not None:
            name, value, number = (
                "sessions_per_preference",
                self.num_per_preference,
                self.num_per_preference * num_preferences,
            )
        elif slice_name == "vague_unseen":
            name, value = "sessions_per_unseen_preference", self.num_per_unseen
            number = value * num_preferences
        else:
            name, value, number = "num_sessions", self.num_sessions, self.num_sessions if num_preferences else 0
        if number > MAX_PER_SLICE:
            raise refuse(name, value, f"at most {MAX_PER_SLICE:,} sessions of a kind are played")
        return number


def plan_sessions(
    rows: Sequence[TaskRow], preferences: Sequence[str], counts: Counts, seed: int, prompts: Prompts = "both"
) -> list[Session]:
    """The held-out sessions: every slice goes round the preferences and through the tasks, both evenly.

    Args:
        rows: task rows, see `data.py`; those without a vague prompt are for the slice precise alone.
        preferences: users to evaluate with; a slice without any of them, or without a row, is left out.
        seed: of the expansion.

    Raises:
        RecipeError: no session comes of it.
    """
    vague = [row for row in rows if row["vague_prompt"] is not None]
    sessions = []
    for name, users in slice_users(preferences, prompts).items():
        fitting = rows if name == "precise" else vague
        for index in range(counts.of(name, len(users)) if fitting else 0):
            # Users and tasks both go round; where their rounds meet, a step aside gives pairs that were not there yet.
            aside = index // math.lcm(len(users), len(fitting))
            row = fitting[(index + aside) % len(fitting)]
            task = make_task(row, users[index % len(users)], precise=name == "precise", seed=seed)
            sessions.append(Session(name, SLICES[name] + index, task))
    if not sessions:
        raise _no_session(vague, preferences, prompts)
    return sessions


def slice_users(preferences: Sequence[str], prompts: Prompts = "both") -> dict[str, list[str]]:
    """Slice -> the preferences it is played with."""
    # As in training: a user who wants three questions would punish an agent that rightly stays silent.
    quiet = [name for name in preferences if name != "answer_more"]
    users = {
        "vague_seen": [name for name in preferences if name in SEEN],
        "vague_unseen": [name for name in preferences if name in UNSEEN],
        "precise": [name for name in quiet if name in SEEN] or quiet,
    }
    wanted = {"both": ("vague", "precise"), "vague": ("vague",), "precise": ("precise",)}[prompts]
    return {name: found for name, found in users.items() if name.startswith(wanted)}


def _no_session(vague: Sequence[TaskRow], preferences: Sequence[str], prompts: Prompts) -> RecipeError:
    """Why a plan is empty."""
    if prompts == "precise":
        return refuse("preferences", list(preferences), "precise prompts are played with users other than answer_more")
    if not vague:
        return refuse("prompts", prompts, "no task has a vague prompt; make them with ppp vaguenize, or choose precise")
    return refuse("sessions_per_unseen_preference", 0, "no session would be played")


def make_task(row: TaskRow, preference: str, *, precise: bool, seed: int) -> Task:
    """One session of a task row."""
    if precise:
        return expand([row], [preference], seed, num_precise=1)[-1]
    return expand([row], [preference], seed, num_precise=0)[0]


def load_held_out_rows(recipe: Recipe, max_tasks: int | None = None) -> list[TaskRow]:
    """The task rows of `eval_tasks`; those of several environments take turns.

    Args:
        max_tasks: only so many of each environment, the first ones.

    Raises:
        RecipeError: the recipe names no held-out tasks, or they cannot be used.
    """
    sources = recipe.config.eval_tasks
    if not sources:
        raise RecipeError("eval_tasks: {} is not allowed; name the held-out tasks of at least one environment")
    tables = []
    for name in sources:
        table = load_task_rows("eval_tasks", name, source_options("eval_tasks", sources, name))
        tables.append(table[:max_tasks])
    longest = max(len(table) for table in tables)
    return [table[index] for index in range(longest) for table in tables if index < len(table)]


def describe_plan(sessions: Sequence[Session], preferences: Sequence[str], prompts: Prompts) -> dict[str, Any]:
    """What a manifest says of the sessions; the digest is one of every prompt, payload and number among them."""
    numbers = {name: sum(session.slice == name for session in sessions) for name in SLICES}
    digest = hashlib.blake2b(digest_size=16)
    for session in sessions:
        digest.update(f"{session.number} {session.task.to_json()}\n".encode())
    return {
        "preferences": [name for name in PREFERENCES if name in preferences],
        "prompts": prompts,
        "sessions": {**{name: number for name, number in numbers.items() if number}, "total": len(sessions)},
        "sessions_digest": digest.hexdigest(),
    }
