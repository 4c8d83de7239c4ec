"""A domain for tests of training: one tool, and scores that depend on task and copy alone, so that groups are never
flat."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ppp.environments import ENVIRONMENTS
from ppp.environments.base import Environment
from ppp.types import InfrastructureError, Observation, RecipeError, Task, ToolCall, ToolSpec

LOOK = ToolSpec("look", "Look.", {"type": "object", "properties": {"where": {"type": "string"}}, "required": ["where"]})


class ToyEnvironment(Environment):
    """Scores the k-th session of a task by (task, k modulo `group_size`), or in turn as `scores` says; some fail."""

    tools = (LOOK,)
    system_prompt = "town_system.txt"
    group_size: ClassVar[int] = 4
    scores: ClassVar[list[float] | None] = None
    failing: ClassVar[Mapping[int, str]] = {}  # number of the session since `reset` -> message
    opened: ClassVar[Counter[str]] = Counter()
    num_opened: ClassVar[int] = 0

    @classmethod
    def reset(cls, scores: list[float] | None = None, failing: Mapping[int, str] | None = None) -> None:
        cls.scores, cls.failing, cls.opened, cls.num_opened = scores, failing or {}, Counter(), 0

    @classmethod
    def check_task(cls, task: Task) -> None:
        if "gold" not in task.payload:
            raise RecipeError(f"payload.gold is missing in {task.task_id!r}")

    async def setup(self) -> None:
        cls = type(self)
        self.number, self.copy = cls.num_opened, cls.opened[self.task.task_id] % cls.group_size
        cls.num_opened += 1
        cls.opened[self.task.task_id] += 1
        if self.number in cls.failing:
            raise InfrastructureError(cls.failing[self.number])

    async def step(self, call: ToolCall) -> Observation:
        return Observation(f"Nothing at {call.arguments['where']}.")

    async def score(self, answer: str | None) -> float:
        if self.scores is not None:
            return self.scores[self.number % len(self.scores)]
        return (zlib.crc32(f"{self.task.task_id}-{self.copy}".encode()) % 1000) / 1000


def register() -> None:
    ENVIRONMENTS["toy"] = ToyEnvironment


def toy_rows(num: int) -> list[dict[str, Any]]:
    return [
        {
            "task_id": f"toy-{index}",
            "environment": "toy",
            "vague_prompt": f"Fix {index}.",
            "precise_prompt": f"Fix {index} in the parser.",
            "payload": {"gold": ["f1"]},
        }
        for index in range(num)
    ]


def save_model(folder: Path, tokenizer: Any, model: Any) -> None:
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
