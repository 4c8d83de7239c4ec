"""A person at the terminal as the user: `user: human`. For trying an agent oneself, and for evaluations with people.

The person sees what a user knows (the precise prompt, what is known beyond it, the preference), answers, and says what
the answer cost and, where no rule decides, whether the question was put well. Sessions take turns, a question at a
time; no deadline hurries the person. Everything that the agent wrote is shown as plain text, see `terminal.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ppp.chat_ledger import world_size
from ppp.checks import refuse
from ppp.preferences import PREFERENCES
from ppp.types import Answer, Effort, RecipeError, RunStoppedError, Turn
from ppp.users.base import User, UserService
from ppp.users.terminal import Terminal, quoted

EFFORTS = {
    "l": (Effort.LOW, "low: it stands in your report"),
    "m": (Effort.MEDIUM, "medium: you could not or did not want to answer"),
    "h": (Effort.HIGH, "high: you had to look it up or work it out"),
}
VERDICTS = {"y": (True, "yes"), "n": (False, "no")}


class HumanService(UserService):
    """The terminal, which all sessions share."""

    def __init__(self, terminal: Terminal | None = None) -> None:
        self.terminal = terminal or Terminal()
        self._turn: asyncio.Lock | None = None

    @property
    def turn(self) -> asyncio.Lock:
        """Held by the session whose question is on the screen."""
        if self._turn is None:
            self._turn = asyncio.Lock()
        return self._turn

    async def check(self) -> None:
        """Find out whether anybody is there.

        Raises:
            RecipeError: there is no terminal, or several processes would have to share it.
        """
        if world_size() > 1:
            raise refuse("user.kind", "human", "in one process; several cannot share a terminal")
        if not self.terminal.has_person:
            raise refuse("user.kind", "human", "with a terminal for input and error output; here is none")

    async def close(self) -> None:
        self._turn = None  # a lock belongs to its event loop

    def summary(self) -> dict[str, Any]:
        return {}


class HumanUser(User):
    """Somebody who reads the question and types an answer."""

    takes_time: ClassVar[bool] = True

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        if options:
            raise RecipeError(f"user.{next(iter(options))}: unknown; a person has no options")

    @classmethod
    def open_service(cls, options: Mapping[str, Any]) -> UserService:
        return HumanService()

    async def answer(self, question: str, turns: Sequence[Turn]) -> Answer:
        """Show the question and wait for an answer and for what it cost.

        Raises:
            RunStoppedError: the person has left.
        """
        assert isinstance(self.service, HumanService)
        follows = PREFERENCES[self.task.preference].rule(question)
        decided_by = "person" if follows is None and self._criterion else "rule"
        async with self.service.turn:
            self.service.terminal.write(self._screen(question, turns))
            try:
                text = await self._ask("Your answer> ")
                effort = await self._choose("What did it cost you?", EFFORTS)
                if follows is None:
                    wish = f"Was it put as you like it ({self._criterion})?"
                    follows = await self._choose(wish, VERDICTS) if self._criterion else True
            except EOFError:
                raise RunStoppedError("The person at the terminal has left: the input has ended.") from None
        return Answer(text, effort, follows, decided_by)

    @property
    def _criterion(self) -> str:
        return PREFERENCES[self.task.preference].criterion

    def _screen(self, question: str, turns: Sequence[Turn]) -> str:
        """Everything that the person has to know, anew for each question: sessions take turns."""
        parts = [f"\n{'-' * 80}\nYour report ({self.task.task_id}):\n{quoted(self.task.precise_prompt)}"]
        if not self.task.is_precise:
            parts.append(f"The agent has read of it:\n{quoted(self.task.prompt)}")
        for source in self.sources:
            if not (source.is_gold and self.task.preference == "amateur"):
                parts.append(f"You could find out ({source.name}), at high effort:\n{quoted(source.text)}")
        parts.append(f"How you like questions: {PREFERENCES[self.task.preference].description}")
        for turn in turns:
            if turn.answer is not None and turn.question is not None:
                parts.append(f"The agent asked:\n{quoted(turn.question)}\nYou said:\n{quoted(turn.answer.text)}")
        return "\n".join([*parts, f"The agent asks:\n{quoted(question)}\n"])

    async def _ask(self, prompt: str) -> str:
        """A line that is not empty."""
        assert isinstance(self.service, HumanService)
        while True:
            self.service.terminal.write(prompt)
            line = await self.service.terminal.read_line()
            if line:
                return line

    async def _choose(self, prompt: str, choices: Mapping[str, tuple[Any, str]]) -> Any:
        """The value of the choice whose letter was typed; asks again until there is one."""
        listing = "".join(f"\n  {letter} = {meaning}" for letter, (_, meaning) in choices.items())
        while True:
            letter = (await self._ask(f"{prompt}{listing}\n> "))[0].lower()
            if letter in choices:
                return choices[letter][0]
