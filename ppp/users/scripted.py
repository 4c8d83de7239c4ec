"""A user made of rules: no model, no randomness, the same answer to the same conversation.

It knows the precise prompt and has one of the twenty preferences. Whether a question is put well is decided by the
rules of `preferences.py` on the question's real text; the four preferences that only a judge can tell get the
deterministic criteria of `CRITERIA` below. It is no model of a person: it understands a question by its nouns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ppp.preferences import PREFERENCES
from ppp.types import Answer, Effort, RecipeError, Task, Turn
from ppp.users.base import User

DONT_KNOW = "I don't know."
ALREADY_SAID = "I already said that."

MIN_DETAIL_WORDS = 25
JARGON = re.compile(
    r"\b(stack trace|race condition|regression|runtime|mutex|backend|payload|api|deadlock|refactor)\b", re.I
)
CODE = re.compile(r"```|`[^`]+`|\w+\.(py|cfg|toml|json|md|txt)\b|\w+\(\)|\w+_\w+")
BLOCKER = re.compile(r"\b(stuck|blocked|cannot|can't|could not|couldn't|unable|no success|does not tell)\b", re.I)
JOKE = re.compile(r"\bwhy\b[^?]*\?\s*because\b[^!]*!", re.I | re.S)

# What a question is about, by the nouns in it, in the languages that the preferences ask for.
NOUNS = {
    "module": ("module", "modulo", "módulo", "modul"),
    "operation": ("operation", "operazione", "operación", "opération"),
    "object": ("object", "oggetto", "objeto", "objet", "objekt"),
}
SOLUTION = re.compile(r"\b(functions?|funzion[ei]|solution|soluzione|patch|fix)\b", re.I)
WORD = re.compile(r"[^\W\d_]+")


def tried_first(question: str, turns: Sequence[Turn]) -> bool:
    """The session has used a tool with success before, and the question names what blocks the agent."""
    worked = any(turn.call is not None and turn.answer is None and not turn.is_error for turn in turns)
    return worked and BLOCKER.search(question) is not None


# preference -> (question, earlier turns) -> follows; for the preferences that no rule of the table can decide
CRITERIA: dict[str, Callable[[str, Sequence[Turn]], bool]] = {
    "detail_question": lambda question, turns: len(question.split()) >= MIN_DETAIL_WORDS,
    "amateur": lambda question, turns: not JARGON.search(question) and not CODE.search(question),
    "first_try": tried_first,
    "joke": lambda question, turns: JOKE.search(question) is not None,
}
REFUSERS = ("do_selection", "amateur")  # who answers nothing when asked in another way (PPP table 1)


class ScriptedUser(User):
    """Answers from the details of the task (`payload["details"]`, of which `payload["missing"]` names those that its
    vague prompt leaves out) or, where there are none, from the precise prompt.

    An answer is low effort when a missing detail was asked for, and high when the question asks for the solution: the
    user then works out and states every detail, though never the function. It is medium when the question is about
    nothing the user can help with, about something already said, or put in a way this user refuses.
    """

    def __init__(self, task: Task, options: Mapping[str, Any] | None = None, **shared: Any) -> None:
        super().__init__(task, options, **shared)
        self._told: set[str] = set()

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        if options:
            raise RecipeError(f"user.{next(iter(options))}: unknown; the scripted user has no options")

    async def answer(self, question: str, turns: Sequence[Turn]) -> Answer:
        follows = self.follows(question, turns)
        if self.task.preference in REFUSERS and not follows:
            return Answer(DONT_KNOW, Effort.MEDIUM, follows)
        has_details = {"details", "missing"} <= self.task.payload.keys()
        text, effort = self._from_details(question) if has_details else self._from_text(question)
        return Answer(text, effort, follows)

    def follows(self, question: str, turns: Sequence[Turn]) -> bool:
        """Whether this question is put the way this user likes; True where the preference is about something else."""
        name = self.task.preference
        if name in CRITERIA:
            return CRITERIA[name](question, turns)
        return PREFERENCES[name].rule(question) is not False

    def _from_details(self, question: str) -> tuple[str, Effort]:
        details: Mapping[str, str] = self.task.payload["details"]
        if SOLUTION.search(question):
            self._told.update(details)
            return self._state(details, list(details)), Effort.HIGH
        words = {word.lower() for word in WORD.findall(question)}
        named = [detail for detail, nouns in NOUNS.items() if words.intersection(nouns)]
        unknown = [d for d in named if d in self.task.payload["missing"] and d not in self._told]
        if self.task.is_precise or not unknown:
            return (ALREADY_SAID if named else DONT_KNOW), Effort.MEDIUM
        self._told.update(unknown)
        return self._state(details, unknown), Effort.LOW

    @staticmethod
    def _state(details: Mapping[str, str], names: Sequence[str]) -> str:
        text = " and ".join(f"the {name} is {details[name]}" for name in names)
        return text[0].upper() + text[1:] + "."

    def _from_text(self, question: str) -> tuple[str, Effort]:
        """For tasks without details: the sentence of the precise prompt that shares most words with the question."""
        gold = self.task.payload.get("gold_functions") or []
        if gold and SOLUTION.search(question):
            return f"It should be somewhere in {str(gold[0]).partition(':')[0]}.", Effort.HIGH
        asked = {word.lower() for word in WORD.findall(question) if len(word) > 3}
        best, overlap = None, 0
        for sentence in re.split(r"(?<=[.!?])\s+|\n+", self.task.precise_prompt):
            shared = len(asked & {word.lower() for word in WORD.findall(sentence)})
            if shared > overlap and sentence not in self.task.prompt and sentence not in self._told:
                best, overlap = sentence, shared
        if best is None:
            return DONT_KNOW, Effort.MEDIUM
        self._told.add(best)
        return best, Effort.LOW
