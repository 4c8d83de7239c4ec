"""What a domain has to offer: tools, set-up, one step per call, and a score. `town.py` beside this file is an example.

`ask_user` and `finish` are not here: they belong to every session and are handled by `rollout.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from ppp.types import Observation, Source, Task, ToolCall, ToolSpec


def set_f1(predicted: set[str], gold: set[str]) -> float:
    """F1 between two sets, in [0, 1]: both empty 1, one empty 0. Source: PPP section 4.1."""
    if not predicted and not gold:
        return 1.0
    hits = len(predicted & gold)
    return 2 * hits / (len(predicted) + len(gold))


class Environment(ABC):
    """One single-use world for one trajectory, used as `async with Environment(task, options) as environment`.

    Subclasses set `tools`, may set `system_prompt` (a file name in `ppp/prompts/`, or the `Path` of a file elsewhere)
    and implement `step` and `score`; where the tools are Python functions, `tools.py` does half of that. Blocking work
    goes through `asyncio.to_thread`: the pool provides the threads. Text that tells the policy of its own mistake is an
    `Observation(..., is_error=True)`; a failure of ours is raised as `InfrastructureError`.

    Args:
        task: the task to be played; `task.payload` holds what the environment needs.
        options: the recipe's `environment_options[name]`, already checked by `check_options`.
    """

    tools: ClassVar[tuple[ToolSpec, ...]]
    system_prompt: ClassVar[str | Path] = "default_system.txt"

    def __init__(self, task: Task, options: Mapping[str, Any] | None = None) -> None:
        self.task = task
        self.options = dict(options or {})

    @classmethod
    def variant(cls, options: Mapping[str, Any]) -> type[Environment]:
        """The class that plays under these options: this one, unless a domain offers several sets of tools."""
        return cls

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise `RecipeError` for an option that this environment does not know or a value that it cannot use."""

    @classmethod
    def step_limit(cls, options: Mapping[str, Any]) -> tuple[str, float] | None:
        """The option under which this environment itself ends a step that takes too long, and after how many seconds.

        It has to come before the session's own deadline, which takes the step for a failure of ours. None where no
        option does that.
        """
        return None

    @classmethod
    def check_task(cls, task: Task) -> None:
        """Raise `RecipeError` when the payload lacks something (a gold answer, a repository); runs before training."""

    @classmethod
    def sources(cls, task: Task) -> tuple[Source, ...]:
        """What the user of a task knows beyond the precise prompt; nothing unless a domain says so."""
        return ()

    async def setup(self) -> None:
        """Acquire what the session needs. Called once, before the first step."""

    async def close(self) -> None:
        """Release it. Called once, also after a failure."""

    @abstractmethod
    async def step(self, call: ToolCall) -> Observation:
        """Carry out one call of one of `tools`, whose arguments were already checked against its schema."""

    @abstractmethod
    async def score(self, answer: str | None) -> float:
        """Productivity in [0, 1] of the answer passed to `finish` (None: the policy never finished)."""

    async def __aenter__(self) -> Self:
        await self.setup()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
