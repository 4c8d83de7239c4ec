"""What a user of UserVille has to offer: an answer to one question, with what it cost and whether it was well put."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ppp.types import Answer, Task, Turn


class User(ABC):
    """One person for one session; sees the precise prompt, has one preference, remembers the conversation.

    Args:
        task: the task of the session; `task.preference` names the preference.
        options: the recipe's `user_options`, already checked by `check_options`.
    """

    def __init__(self, task: Task, options: Mapping[str, Any] | None = None) -> None:
        self.task = task
        self.options = dict(options or {})

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise `RecipeError` for an option that this user does not know or a value that it cannot use."""

    @abstractmethod
    async def answer(self, question: str, turns: Sequence[Turn]) -> Answer:
        """Reply to `question`.

        Args:
            question: the agent's text, as it stands; untrusted.
            turns: the finished turns of the session before this one, with their observations and earlier answers.

        Raises:
            InfrastructureError: the model behind this user cannot be reached; never an answer that hides it.
        """
