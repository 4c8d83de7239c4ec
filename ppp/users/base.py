"""What a user of UserVille has to offer: an answer to one question, with what it cost and whether it was well put."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ppp.chat.ledger import ChatLedger
from ppp.types import Answer, Source, Task, Turn


class UserService(ABC):
    """What all sessions of a run share: connections to models, their ledger and their cache.

    Attributes:
        ledger: what the models behind the users took; None where no model is asked.
    """

    ledger: ChatLedger | None = None

    @abstractmethod
    async def check(self) -> None:
        """Find out, by one request to each model, whether the users can be reached; runs before a model is loaded.

        Raises:
            RecipeError: naming the field, the endpoint and what it said.
        """

    @abstractmethod
    async def close(self) -> None:
        """Let connections go. A closed service opens them again when it is asked."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """Calls, tokens, cost, latencies and failures so far, as JSON values."""


class User(ABC):
    """One person for one session; sees the precise prompt, has one preference, remembers the conversation.

    Args:
        task: the task of the session; `task.preference` names the preference.
        options: the recipe's `user` without its kind, already checked by `check_options`.
        sources: what the user knows beyond the precise prompt, see `Environment.sources`.
        service: what `open_service` returned for this run.
        seed: a number that is the same for all copies of a session and in every run, for whatever a user draws.
    """

    takes_time: ClassVar[bool] = False  # a person, whom no deadline of a session hurries

    def __init__(
        self,
        task: Task,
        options: Mapping[str, Any] | None = None,
        *,
        sources: Sequence[Source] = (),
        service: UserService | None = None,
        seed: int = 0,
    ) -> None:
        self.task = task
        self.options = dict(options or {})
        self.sources = tuple(sources)
        self.service = service
        self.seed = seed

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise `RecipeError` for an option that this user does not know or a value that it cannot use."""

    @classmethod
    def open_service(cls, options: Mapping[str, Any]) -> UserService | None:
        """What the sessions of a run share, made once per pool; None for users that need nothing."""
        return None

    @abstractmethod
    async def answer(self, question: str, turns: Sequence[Turn]) -> Answer:
        """Reply to `question`.

        Args:
            question: the agent's text, as it stands; untrusted.
            turns: the finished turns of the session before this one, with their observations and earlier answers.

        Raises:
            InfrastructureError: the model behind this user cannot be reached; never an answer that hides it.
            RunStoppedError: it will not come back, or its budget is used up.
        """
