"""How helpful a user is: how much it says at a time, and how much of its own report it still knows.

Simulated users are more patient and better informed than people are; `HARDNESS` holds three kinds, the first of them
the paper's. What a preference is stands in `preferences.py` and is not touched by this: a terse user likes questions to
be put in the same way as a patient one.

- cooperative: says up to 600 characters, knows the whole precise prompt.
- terse: one fact per answer: its first clause, at most 12 words. The rest of a longer answer is never said.
- forgetful: 40 % of the precise prompt's sentences, drawn once per session, are unknown to this user; at least one is
  forgotten where there are two, and at least one is kept. A precise prompt of fewer than three sentences is taken apart
  at its commas. What the vague prompt says stays known, and low effort is judged by what the user still knows.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

MIN_PARTS = 3  # a text with fewer sentences is taken apart at its commas
_FENCE = re.compile(r"(```.*?(?:```|\Z))", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_CLAUSE_END = re.compile(r"(?<=[,;:])\s+")
_FACT_END = re.compile(r"(?<=[.!;])\s|(?<=,)\s|\s(?:and|but|because|while|although|which|where)\s")


@dataclass(frozen=True, slots=True)
class Hardness:
    """One row of the table.

    Attributes:
        max_words: of an answer; None for no such limit.
        forgets: share of the precise prompt's sentences that the user has forgotten.
        prompt: the file in `ppp/prompts/` that tells the model so; "" for none.
    """

    max_words: int | None = None
    forgets: float = 0.0
    prompt: str = ""


HARDNESS: dict[str, Hardness] = {
    "cooperative": Hardness(),
    "terse": Hardness(max_words=12, prompt="user_terse.txt"),
    "forgetful": Hardness(forgets=0.4, prompt="user_forgetful.txt"),
}


def remembered(text: str, share_forgotten: float, seed: int) -> str:
    """What a user with this seed still knows of `text`: its sentences in their order, some left out."""
    if not share_forgotten:
        return text
    parts = _sentences(text)
    if len(parts) < MIN_PARTS:
        parts = [clause for part in parts for clause in _CLAUSE_END.split(part)]
    if len(parts) < 2:
        return text
    number = min(max(1, round(share_forgotten * len(parts))), len(parts) - 1)
    forgotten = set(random.Random(f"forgetful-{seed}").sample(range(len(parts)), number))
    return "\n".join(part for index, part in enumerate(parts) if index not in forgotten)


def _sentences(text: str) -> list[str]:
    """The sentences and lines of a text; a fenced block is one."""
    parts: list[str] = []
    for index, piece in enumerate(_FENCE.split(text)):
        parts += [piece] if index % 2 else _SENTENCE_END.split(piece)
    return [part for part in parts if part.strip()]


def one_fact(answer: str, max_words: int) -> str:
    """The first clause of an answer that says something, cut to `max_words` words."""
    words = answer.split()
    if len(words) <= max_words and not _FACT_END.search(answer.strip()):
        return answer
    kept = ""
    start = 0
    for end in [match.start() for match in _FACT_END.finditer(answer)] + [len(answer)]:
        kept = answer[:end]
        if len(answer[start:end].split()) > 1:  # "Yes," and "Well," are no facts
            break
        start = end
    return " ".join(kept.split()[:max_words]).rstrip(",;:")
