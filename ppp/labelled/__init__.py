"""Questions written and labelled by hand: the truth about questions to each of the twenty users.

The labels are in `questions.jsonl`, one JSON object a line. They follow the wording of `ppp/preferences.py`, not what a
rule says, so that rules and judges can be measured on them. Nothing here measures.

Labelling decisions beyond the wording:
    - A label is about the form of the question only, never about whether it is worth asking.
    - For the users who count (`COUNTED`) a label tells whether the session, ended right after this question, follows
      the preference; `context` holds the session before it.
    - Names of programs and of people are in no language, and technical terms that a language has borrowed ("il commit")
      are in that language.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from ppp.types import Answer, Effort, ToolCall, Turn

# Users about whom one question alone says nothing: their sessions are counted, see the penalties in `preferences.py`.
COUNTED = ("no_preference", "answer_more", "only_begin", "no_ask", "professional", "ask_many")
ASKED = "Asked: "  # begins an entry of `context` that was a question to the user


@dataclass(frozen=True, slots=True)
class LabelledQuestion:
    """One question to the user and the truth about it.

    Attributes:
        id: unique, e.g. "capital-007"; never given to another question.
        preference: a key of `ppp.preferences.PREFERENCES`: the user who is asked.
        question: the agent's text, as it stands.
        follows: whether it is put the way this user likes.
        hard: it is made to mislead: what catches the eye and what the wording of the preference decides differ, or an
            obvious way to decide would go wrong.
        note: why the label is what it is.
        context: what the agent did before, one entry per turn; one that begins with "Asked: " was a question.
        decided_by: "rule" where letters or counting can tell, "judge" where only someone who understands it can.
    """

    id: str
    preference: str
    question: str
    follows: bool
    hard: bool
    note: str
    context: tuple[str, ...] = ()
    decided_by: str = "rule"

    def earlier_turns(self) -> list[Turn]:
        """`context` as the finished turns of a session, with answers that found nothing wrong; no tokens."""
        return [_turn(entry) for entry in self.context]


def _turn(entry: str) -> Turn:
    if entry.startswith(ASKED):
        question = entry.removeprefix(ASKED)
        answer = Answer("I don't know.", Effort.MEDIUM, follows_preference=True)
        message = {"role": "assistant", "content": ""}
        call = ToolCall("ask_user", {"query": question})
        return Turn([], [], message, call=call, observation=answer.text, question=question, answer=answer)
    return Turn([], [], {"role": "assistant", "content": entry}, call=ToolCall("work", {}), observation=entry)


@cache
def labelled_questions() -> tuple[LabelledQuestion, ...]:
    """All questions that ship with the package, in the order of the file."""
    text = (resources.files(__package__) / "questions.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    return tuple(LabelledQuestion(**{**row, "context": tuple(row.get("context", ()))}) for row in rows)
