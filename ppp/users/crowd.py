"""The users of a run: of which kind they are, with which options, and the service that all of them share.

What a recipe says in `user` and `eval_user` is read here; one user for one session comes out of `Crowd.invite`. What a
user does is in `base.py` and the files named in the table of `__init__.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from ppp.checks import refuse, refuse_unknown
from ppp.environments import environment_class
from ppp.types import RecipeError, Task
from ppp.users import USERS, user_class
from ppp.users.base import User, UserService

Choice = str | Mapping[str, Any]  # a kind, or {kind: ..., option: value}


def as_mapping(field: str, choice: Choice) -> dict[str, Any]:
    """A choice of users in its long form, with its kind.

    Raises:
        RecipeError: no kind, or none that there is.
    """
    options = {"kind": choice} if isinstance(choice, str) else {str(key): value for key, value in choice.items()}
    kind = options.get("kind")
    if kind is None:
        raise refuse(f"{field}.kind", kind, f"one of {', '.join(sorted(USERS))}")
    if kind not in USERS:
        raise refuse_unknown(field if isinstance(choice, str) else f"{field}.kind", kind, USERS)
    return options


def session_seed(seed: int, task: Task) -> int:
    """The number from which a user draws: 32 bits of the run's seed and the task.

    All copies of a session share it, in whichever step: a group whose users forget different things would compare
    different tasks.
    """
    return int.from_bytes(blake2b(f"user/{seed}/{task.task_id}".encode(), digest_size=4).digest(), "big")


class Crowd:
    """Everybody who answers questions in a run.

    Args:
        choice: a key of `USERS`, or a mapping with its `kind` and its options.
        field: what the recipe calls it; names the field in errors.

    Raises:
        RecipeError: an unknown kind or option, or a value that cannot be used; names `<field>.<option>`.
    """

    def __init__(self, choice: Choice = "scripted", field: str = "user") -> None:
        self.field = field
        self.options = as_mapping(field, choice)
        self.kind = str(self.options.pop("kind"))
        self.user_class = user_class(self.kind)
        self._service: UserService | None = None
        self._is_open = False
        try:
            self.user_class.check_options(self.options)
        except RecipeError as error:
            raise self._renamed(error) from error

    @property
    def service(self) -> UserService | None:
        """What the users share, opened when it is first asked for; None where they share nothing."""
        if not self._is_open:
            try:
                self._service = self.user_class.open_service(self.options)
            except RecipeError as error:
                raise self._renamed(error) from error
            self._is_open = True
        return self._service

    def invite(self, task: Task, seed: int) -> User:
        """The user of one session.

        Args:
            task: of the session.
            seed: of the run.
        """
        sources = environment_class(task.environment).sources(task)
        return self.user_class(task, self.options, sources=sources, service=self.service, seed=session_seed(seed, task))

    async def check(self) -> None:
        """Find out whether the users can be reached.

        Raises:
            RecipeError: they cannot; one sentence.
        """
        if self.service is not None:
            try:
                await self.service.check()
            except RecipeError as error:
                raise self._renamed(error) from error

    async def close(self) -> None:
        """Let go of what the service holds in this event loop."""
        if self._service is not None:
            await self._service.close()

    def _renamed(self, error: RecipeError) -> RecipeError:
        """The error under the recipe's name of these users; a user knows itself as `user`."""
        text = str(error)
        return RecipeError(self.field + text.removeprefix("user") if text.startswith(("user.", "user:")) else text)


@dataclass(frozen=True, slots=True)
class Crowds:
    """Who is asked in training and who in evaluation; one and the same unless the recipe says otherwise."""

    train: Crowd
    evaluation: Crowd

    @property
    def different(self) -> list[Crowd]:
        """Each crowd once."""
        return [self.train] if self.train is self.evaluation else [self.train, self.evaluation]
