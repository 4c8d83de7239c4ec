"""What a session starts with: its limits, its tools and its first messages.

`ask_user` and `finish` belong to every session and are defined here; the other tools are the environment's. How a
session is played is not here: read `rollout.py` next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from string import Template
from typing import Any, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from ppp.environments.base import Environment
from ppp.preferences import PREFERENCES
from ppp.prompts import load_prompt
from ppp.types import RecipeError, Task, ToolCall, ToolSpec

Visibility = Literal["stated", "hidden"]
VISIBILITIES: tuple[Visibility, ...] = ("stated", "hidden")

ASK_USER = ToolSpec(
    name="ask_user",
    description="Ask the user a question about the task.",
    parameters={
        "type": "object",
        "properties": {"query": {"type": "string", "description": "The question, as the user will read it."}},
        "required": ["query"],
        "additionalProperties": False,
    },
)
FINISH = ToolSpec(
    name="finish",
    description="End the session with the answer.",
    parameters={
        "type": "object",
        "properties": {"answer": {"type": "string", "description": "The answer, one item a line."}},
        "required": ["answer"],
        "additionalProperties": False,
    },
)


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one trajectory; tokens and turns are integers >= 1, deadlines are seconds > 0.

    Attributes:
        max_turns: turns of the agent; what comes back after the last one is not appended.
        max_tokens_per_turn: longer turns are cut off, and a cut-off turn never executes a call.
        max_observation_tokens: longer observations are shortened by the codec.
        max_prompt_tokens: a longer prompt is refused before the first turn.
        max_completion_tokens: all turns and observations together.
        setup_timeout_s: opening an environment, which may build what later sessions find ready.
        tool_timeout_s: one call of a tool; also for closing an environment.
        user_timeout_s: one answer of the user.
        score_timeout_s: scoring at the end.
        trajectory_timeout_s: everything from the first prompt token to the score, generation included.
    """

    max_turns: int = 16
    max_tokens_per_turn: int = 1024
    max_observation_tokens: int = 1024
    max_prompt_tokens: int = 4096
    max_completion_tokens: int = 8192
    setup_timeout_s: float = 600.0
    tool_timeout_s: float = 120.0
    user_timeout_s: float = 120.0
    score_timeout_s: float = 600.0
    trajectory_timeout_s: float = 3600.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name.startswith("max_"):
                require_count(name, value)
            elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise RecipeError(f"{name}: {value!r} is not allowed, allowed are finite numbers > 0")


def require_count(name: str, value: object) -> None:
    """Raise `RecipeError` unless `value` is an integer >= 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RecipeError(f"{name}: {value!r} is not allowed, allowed are integers >= 1")


def build_messages(
    task: Task,
    environment: type[Environment],
    preference_visibility: Visibility = "stated",
    interaction: bool = True,
) -> list[dict[str, Any]]:
    """The chat that a session starts with: system prompt of the environment, then the task's prompt as the user's.

    `$preference` in the system prompt becomes the preference's description, or nothing when it is hidden or there is no
    one to be asked. Only the prompt file is searched for it, never the task's text. An empty system prompt is left out.
    """
    shown = preference_visibility == "stated" and interaction
    preference = PREFERENCES[task.preference].description if shown else ""
    system = Template(load_prompt(environment.system_prompt)).safe_substitute(preference=preference).strip()
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": task.prompt}]


class Toolbox:
    """The tools of a session, with a prebuilt validator for the arguments of each."""

    def __init__(self, specs: Sequence[ToolSpec]) -> None:
        self.specs = tuple(specs)
        self._validators = {spec.name: Draft202012Validator(spec.parameters) for spec in specs}

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, environment: type[Environment], interaction: bool) -> Toolbox:
        """The environment's tools, `ask_user` if there is a user, and `finish`."""
        return cls([*environment.tools, *([ASK_USER] if interaction else []), FINISH])

    @property
    def names(self) -> str:
        return ", ".join(spec.name for spec in self.specs)

    def mistake(self, call: ToolCall) -> str | None:
        """What is wrong with a call, in words for the policy; None if it can be carried out."""
        validator = self._validators.get(call.name)
        if validator is None:
            return f"There is no tool {call.name!r}. Tools: {self.names}."
        if validator.is_valid(call.arguments):
            return None
        error = best_match(validator.iter_errors(call.arguments))
        where = ".".join(str(part) for part in error.absolute_path)
        return f"{call.name}: argument {where}: {error.message}" if where else f"{call.name}: {error.message}"
