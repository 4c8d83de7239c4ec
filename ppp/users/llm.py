"""A user played by a language model behind any OpenAI-compatible endpoint.

The model speaks; it is not believed. Whether a question follows the preference is decided by a rule where there is one,
what an answer cost by `evidence.py` where the texts tell, and what must not be said is held back by `leaks.py`: only
the rest is taken from the model's structured answer. Every text of the agent goes to the model as a JSON string.

The request of a question depends on task, preference, options and conversation only: a recorded run can be replayed.
Options and gateways are in `llm_options.py`, a judge of its own in `judge.py`. Source: PPP section 2.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property
from string import Template
from typing import Any

from ppp.chat.structured import structured_chat
from ppp.preferences import PREFERENCES
from ppp.prompts import load_prompt
from ppp.rewards import LEVELS, RESEARCH_ENVIRONMENT, RESEARCH_LEVELS
from ppp.types import Answer, Effort, RecipeError, Source, Task, Turn
from ppp.users.base import User
from ppp.users.evidence import TASK, UNKNOWN, Evidence, Grade
from ppp.users.judge import MAX_QUESTION_CHARS, NEEDS_WORK, as_data, judge_question, work_before
from ppp.users.leaks import Flaw, Secrets, shortened
from ppp.users.llm_options import LLMUserOptions, LLMUserService
from ppp.users.people import HARDNESS, one_fact, remembered
from ppp.users.scripted import DONT_KNOW, REFUSERS

__all__ = ["DONT_KNOW", "TIRED", "LLMUser", "LLMUserService", "answer_schema"]

logger = logging.getLogger(__name__)

TIRED = "Sorry, I can't answer any more."
MAX_REPORT_CHARS = 24_000  # of the precise prompt that the model sees
MAX_SOURCE_CHARS = 8_000  # of each source
MAX_SPOKEN_CHARS = 4_000  # of an answer that are looked at


def answer_schema(sources: Sequence[Source]) -> dict[str, Any]:
    """The schema of a user's reply to one question, for a user who has these sources."""
    return {
        "type": "object",
        "properties": {
            "answer": {"type": "string"},
            "source": {"type": "string", "enum": [TASK, *(source.name for source in sources), UNKNOWN]},
            "follows_preference": {"type": "boolean"},
        },
        "required": ["answer", "source", "follows_preference"],
        "additionalProperties": False,
    }


class LLMUser(User):
    """Answers what the precise prompt says, looks into its sources if it has to, and refuses the rest.

    Without a service (`open_service`) it cannot be asked.
    """

    service: LLMUserService

    def __init__(self, task: Task, options: Mapping[str, Any] | None = None, **shared: Any) -> None:
        if not isinstance(shared.get("service"), LLMUserService):
            raise RecipeError(
                "user.kind: 'llm' is not allowed without the service of its run; see LLMUser.open_service"
            )
        super().__init__(task, options, **shared)
        for source in self.sources:
            if source.name in (TASK, UNKNOWN):
                raise RecipeError(f"task {task.task_id!r}: source {source.name!r}; the name has a meaning of its own")
        self.settings = self.service.options
        self.preference = PREFERENCES[task.preference]
        self.gateway = self.service.gateway_for(self.seed)
        self.seed_sent = self.seed % 2**31 if self.settings.sample_per_session else None
        self.hardness = HARDNESS[self.settings.hardness]
        self.report = remembered(task.precise_prompt, self.hardness.forgets, self.seed)
        is_layperson = task.preference == "amateur"
        self.shown = tuple(source for source in self.sources if not (is_layperson and source.is_gold))
        is_research = task.environment == RESEARCH_ENVIRONMENT
        self.refusal_level = (RESEARCH_LEVELS if is_research else LEVELS)[Effort.MEDIUM]

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        LLMUserOptions.parse(options)

    @classmethod
    def open_service(cls, options: Mapping[str, Any]) -> LLMUserService:
        return LLMUserService(LLMUserOptions.parse(options))

    async def answer(self, question: str, turns: Sequence[Turn]) -> Answer:
        follows = self.preference.rule(question)  # on all of it; models see the beginning of a very long one
        decided_by = "rule"
        if sum(turn.answer is not None for turn in turns) >= self.settings.max_answers:
            return self._refusal(follows is not False, decided_by, TIRED)
        if follows is None and not self.preference.criterion:
            follows = True
        elif follows is None and self.service.judge is not None:
            decided_by = "judge"
            judge, name = self.service.judge, self.preference.name
            follows = await judge_question(judge, name, question, turns, self.seed_sent)
        if follows is False and self.preference.name in REFUSERS:
            return self._refusal(False, decided_by)
        reply = await self._ask(self._messages(question, turns))
        if follows is None:
            decided_by, follows = "judge", bool(reply["follows_preference"])
            if not follows and self.preference.name in REFUSERS:
                return self._refusal(False, decided_by)
        text, grade = await self._spoken(question, turns, reply)
        decided_by = "judge" if "judge" in (decided_by, grade.decided_by) else grade.decided_by
        logger.debug("%s: %s: %s", self.task.task_id, grade.effort.label, grade.reason)
        return Answer(text, grade.effort, follows, decided_by, grade.level)

    def _refusal(self, follows: bool, decided_by: str, text: str = DONT_KNOW) -> Answer:
        return Answer(text, Effort.MEDIUM, follows, decided_by, self.refusal_level)

    async def _spoken(self, question: str, turns: Sequence[Turn], reply: Mapping[str, Any]) -> tuple[str, Grade]:
        """What the user says in the end, and what it cost; a reply that will not do is asked for again, once."""
        text = self._tidied(reply["answer"])
        problem = self._problem(question, text, reply["source"], turns)
        if problem:
            again = [
                *self._messages(question, turns),
                {"role": "assistant", "content": as_data(dict(reply))},
                {"role": "user", "content": load_prompt(f"user_repair_{problem}.txt")},
            ]
            reply = await self._ask(again)
            text = self._tidied(reply["answer"])
        if self._secrets.find_flaw(text) in (Flaw.LEAK, Flaw.QUESTION):
            text = DONT_KNOW
        text = self._as_this_person(shortened(text))
        if not text or (self._evidence.only_refuses(question, text) and self._evidence.named(text)):
            text = DONT_KNOW  # "I don't know whether it is <a part of the solution>" says it
        return text, self._grade(question, text, reply["source"], turns)

    def _problem(self, question: str, text: str, source: str, turns: Sequence[Turn]) -> str | None:
        """Why an answer will not do: the end of the name of the prompt that says so."""
        if flaw := self._secrets.find_flaw(text):
            return flaw.value
        grade = self._grade(question, self._as_this_person(text), source, turns)
        return "words" if grade.unsupported and source == TASK else None

    def _grade(self, question: str, text: str, source: str, turns: Sequence[Turn]) -> Grade:
        earlier = [turn.question[:MAX_QUESTION_CHARS] for turn in turns if turn.answer and turn.question]
        return self._evidence.grade(question[:MAX_QUESTION_CHARS], text, source, earlier)

    def _as_this_person(self, text: str) -> str:
        limit = self.hardness.max_words
        return text if limit is None else one_fact(text, limit)

    @staticmethod
    def _tidied(text: str) -> str:
        """An answer without invisible and control characters, which no person types."""
        text = text[:MAX_SPOKEN_CHARS]
        kept = (sign for sign in text if sign == "\n" or unicodedata.category(sign) not in ("Cc", "Cf", "Co", "Cs"))
        return "".join(kept).strip()

    async def _ask(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return await structured_chat(
            self.gateway, messages, answer_schema(self.shown), "user_answer", seed=self.seed_sent
        )

    def _messages(self, question: str, turns: Sequence[Turn]) -> list[dict[str, str]]:
        """The request: instructions, and all that the user knows as one JSON object whose beginning stays the same."""
        data: dict[str, Any] = {
            "report": self.report[:MAX_REPORT_CHARS],
            "sources": {source.name: source.text[:MAX_SOURCE_CHARS] for source in self.shown},
            "conversation": [
                {"question": (turn.question or "")[:MAX_QUESTION_CHARS], "answer": turn.answer.text}
                for turn in turns
                if turn.answer is not None
            ],
        }
        if self.preference.name in NEEDS_WORK and self.service.judge is None:
            data["work_before"] = work_before(turns)
        data["question"] = question[:MAX_QUESTION_CHARS]
        return [
            {"role": "system", "content": self._instructions},
            {"role": "user", "content": as_data(data)},
        ]

    @cached_property
    def _instructions(self) -> str:
        wish = self.preference
        criterion = load_prompt("user_no_criterion.txt")
        if wish.criterion and self.service.judge is None:  # asked for where a rule decides, too: to compare the two
            criterion = Template(load_prompt("user_criterion.txt")).substitute(criterion=wish.criterion)
        manner = load_prompt(self.hardness.prompt) if self.hardness.prompt else ""
        manner = Template(manner).substitute(max_words=self.hardness.max_words)
        return Template(load_prompt("user_answer.txt")).substitute(
            preference=wish.description, criterion=criterion, manner=manner
        )

    @cached_property
    def _evidence(self) -> Evidence:
        return Evidence(
            self.task.precise_prompt,
            self.sources,
            said=self.task.prompt,
            known=self.report,
            unknown_level=self.refusal_level,
        )

    @cached_property
    def _secrets(self) -> Secrets:
        told = (self._instructions, load_prompt("user_judge.txt"))
        wish = (self.preference.name, self.preference.description, self.preference.criterion)
        return Secrets(told, wish, self.task.precise_prompt)
