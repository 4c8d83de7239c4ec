"""A person at the terminal as the user: `user: human`. For trying an agent oneself, and for evaluations with people.

The person sees what a user knows (the precise prompt, what is known beyond it, the preference), answers, and says what
the answer cost and, where no rule decides, whether the question was put well; with a `judge_model` those two come from
evidence and from the model, as for users played by one. Sessions take turns, a question at a time; no deadline hurries
the person. Everything that the agent wrote is shown as plain text, see `terminal.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ppp.chat.gateway import ChatEndpoint, ChatGateway
from ppp.chat.ledger import ChatLedger, world_size
from ppp.chat.structured import structured_chat
from ppp.checks import refuse
from ppp.preferences import PREFERENCES
from ppp.prompts import load_prompt
from ppp.types import Answer, Effort, RecipeError, RunStoppedError, Source, Task, Turn
from ppp.users.base import User, UserService
from ppp.users.evidence import TASK, UNKNOWN, Evidence, Grade
from ppp.users.judge import MAX_QUESTION_CHARS, judge_question
from ppp.users.terminal import LEFT, Terminal, one_line

EFFORTS = {
    "l": (Effort.LOW, "low: it stands in your report"),
    "m": (Effort.MEDIUM, "medium: you could not or did not want to answer"),
    "h": (Effort.HIGH, "high: you had to look it up or work it out"),
}
VERDICTS = {"y": (True, "yes"), "n": (False, "no")}


def judge_of(options: Mapping[str, Any]) -> ChatEndpoint | None:
    """The model that judges, if the recipe names one.

    Raises:
        RecipeError: it cannot be used; names `user.judge_model.<field>`.
    """
    choice = options.get("judge_model")
    if choice is None:
        return None
    if not isinstance(choice, str | Mapping):
        raise refuse("user.judge_model", choice, "must be the name of a model, or a mapping with a model")
    return ChatEndpoint.from_options({"model": choice} if isinstance(choice, str) else choice, "user.judge_model")


def show_report(terminal: Terminal, task: Task, sources: Sequence[Source]) -> None:
    """Show what the user of a session knows before the first question."""
    terminal.say(f"Your report ({one_line(task.task_id)}):", "bold")
    terminal.quote(task.precise_prompt)
    if not task.is_precise:
        terminal.say("The agent has read of it:", "bold")
        terminal.quote(task.prompt)
    for source in sources:
        if not (source.is_gold and task.preference == "amateur"):
            terminal.say(f"You could find out ({one_line(source.name)}), at high effort:", "bold")
            terminal.quote(source.text)
    terminal.say(f"How you like questions: {PREFERENCES[task.preference].description}")


class HumanService(UserService):
    """The terminal, which all sessions share, and the judge, if there is one.

    Attributes:
        shows_session: whether a question comes with everything that the person has to know; not where somebody else
            shows the session as it goes, and there is only one at a time.
    """

    shows_session = True

    def __init__(self, terminal: Terminal | None = None, judge: ChatEndpoint | None = None) -> None:
        self.terminal = terminal or Terminal()
        self.judge = None
        if judge is not None:
            self.ledger = ChatLedger()
            self.judge = ChatGateway(judge, ledger=self.ledger)
        self._turn: asyncio.Lock | None = None

    @property
    def turn(self) -> asyncio.Lock:
        """Held by the session whose question is on the screen."""
        if self._turn is None:
            self._turn = asyncio.Lock()
        return self._turn

    async def check(self) -> None:
        """Find out whether anybody is there, the judge included.

        Raises:
            RecipeError: there is no terminal, several processes would have to share it, or the judge cannot be reached.
        """
        if world_size() > 1:
            raise refuse("user.kind", "human", "in one process; several cannot share a terminal")
        if not self.terminal.has_person:
            raise refuse("user.kind", "human", "with a terminal for input and error output; here is none")
        if self.judge is not None:
            try:
                await self.judge.check()
            except RecipeError as error:
                raise RecipeError(f"user.judge_model: {error}") from error

    async def close(self) -> None:
        self._turn = None  # a lock belongs to its event loop
        if self.judge is not None:
            await self.judge.close()

    def summary(self) -> dict[str, Any]:
        return {} if self.ledger is None else self.ledger.summary()


class HumanUser(User):
    """Somebody who reads the question and types an answer."""

    takes_time: ClassVar[bool] = True

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        for name in options:
            if name != "judge_model":
                raise RecipeError(f"user.{name}: unknown; a person has no option but judge_model")
        judge_of(options)

    @classmethod
    def open_service(cls, options: Mapping[str, Any]) -> UserService:
        return HumanService(judge=judge_of(options))

    async def answer(self, question: str, turns: Sequence[Turn]) -> Answer:
        """Show the question, wait for an answer, and find out what it cost and whether the question was put well.

        Raises:
            RunStoppedError: the person has left.
            InfrastructureError: the judge cannot be reached.
        """
        assert isinstance(self.service, HumanService)
        follows = PREFERENCES[self.task.preference].rule(question)
        if follows is None and not self._criterion:
            follows = True
        judge = self.service.judge
        async with self.service.turn:
            self._show(question, turns)
            try:
                text = await self._ask("Your answer> ")
                if judge is None:
                    effort = await self._choose("What did it cost you?", EFFORTS)
                    if follows is not None:
                        return Answer(text, effort, follows, "rule")
                    wish = f"Was it put as you like it ({self._criterion})?"
                    return Answer(text, effort, await self._choose(wish, VERDICTS), "person")
            except EOFError:
                raise RunStoppedError(LEFT) from None
        grade = await self._grade(judge, question, text, turns)
        if follows is not None:
            return Answer(text, grade.effort, follows, grade.decided_by, grade.level)
        verdict = await judge_question(judge, self.task.preference, question, turns)
        return Answer(text, grade.effort, verdict, "judge", grade.level)

    async def _grade(self, judge: ChatGateway, question: str, text: str, turns: Sequence[Turn]) -> Grade:
        """What an answer cost, by the evidence; the judge says what it draws on where the texts do not tell."""
        data = {
            "report": self.task.precise_prompt,
            "sources": {source.name: source.text for source in self.sources},
            "question": question[:MAX_QUESTION_CHARS],
            "answer": text,
        }
        messages = [
            {"role": "system", "content": load_prompt("user_source.txt")},
            {"role": "user", "content": json.dumps(data, ensure_ascii=False)},
        ]
        names = [TASK, *(source.name for source in self.sources), UNKNOWN]
        schema = {
            "type": "object",
            "properties": {"source": {"type": "string", "enum": names}},
            "required": ["source"],
            "additionalProperties": False,
        }
        claim = await structured_chat(judge, messages, schema, "source")
        evidence = Evidence(self.task.precise_prompt, self.sources, said=self.task.prompt)
        earlier = [turn.question for turn in turns if turn.answer is not None and turn.question is not None]
        return evidence.grade(question, text, claim["source"], earlier)

    @property
    def _criterion(self) -> str:
        return PREFERENCES[self.task.preference].criterion

    def _show(self, question: str, turns: Sequence[Turn]) -> None:
        """Show a question, and before it what the person has to know, anew each time: sessions take turns."""
        assert isinstance(self.service, HumanService)
        terminal = self.service.terminal
        if self.service.shows_session:
            terminal.say(f"\n{'-' * terminal.width}")
            show_report(terminal, self.task, self.sources)
            for turn in turns:
                if turn.answer is not None and turn.question is not None:
                    terminal.say("The agent asked:", "bold")
                    terminal.quote(turn.question)
                    terminal.say("You said:", "bold")
                    terminal.quote(turn.answer.text)
        terminal.say("The agent asks:", "bold")
        terminal.quote(question)

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
        assert isinstance(self.service, HumanService)
        terminal = self.service.terminal
        while True:
            terminal.say("\n".join([prompt, *(f"  {letter} = {meaning}" for letter, (_, meaning) in choices.items())]))
            letter = (await self._ask("> "))[0].lower()
            if letter in choices:
                return choices[letter][0]
