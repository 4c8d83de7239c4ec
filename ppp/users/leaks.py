"""What must not reach the agent in an answer: the machinery behind the user, and anything but an answer.

`find_flaw` looks at the spoken answer alone, decoded in the ways of `names.py`, before the agent sees it. It decides
nothing about effort or preference. What happens to a flawed answer is `llm.py`'s business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from enum import StrEnum
from functools import cached_property, lru_cache

from ppp.users.names import decoded, respelled
from ppp.users.words import content_words, fold, stem_of

MAX_ANSWER_CHARS = 600
NGRAM_WORDS = 6  # of the instructions in a row
PREFERENCE_NGRAM_WORDS = 4  # of the preference's wording in a row
FIELDS = ("answer", "source", "follows_preference")

_FIELD_NAMES = re.compile(
    r"follows[_ ]preference|['\"](?:answer|source)['\"]\s*:|\bsource\s*[=:]\s*\W?(?:task|unknown|gold|hints)"
    r"|gold_(?:files|functions|documents)|\bjson[_ ]schema\b|additionalproperties|\bresponse_format\b"
)
_ROLE = re.compile(
    r"\bas an? (?:ai|assistant|(?:large )?language model|simulat\w+)\b"
    r"|\bi(?:'m| am) (?:an? )?(?:ai\b|bot\b|language model|simulat|playing|instructed|told to|programmed"
    r"|supposed to (?:play|answer|act)|asked to (?:play|act))"
    r"|\b(?:system|precise|hidden) prompt\b|\bmy (?:instructions|role|persona|criterion|judge)\b"
    r"|\bi (?:was|have been|'ve been) (?:told|instructed) to\b|\bi play (?:a|the) (?:part|role|person|user)\b"
    r"|\brole-?play\w*|\buser simulat\w+|\bsimulated user"
)
_TASTE = re.compile(
    r"\bi(?:'d| would| really| only| just)* (?:like|love|want|prefer|enjoy|answer|accept|read|hate|dislike)\b"
    r"[^.!?]*\b(?:questions?(?! mark)|asked|asking)\b"
    r"|\bmy preferences?\b|\bask(?:ed)? me (?:only|in|with)\b"
    r"|\bplease (?:ask|put|phrase|rephrase|word) (?:me|it|your|the|questions?|that)\b"
)


Row = tuple[str, ...]  # stems of content words in a row


class Flaw(StrEnum):
    """What is wrong with a spoken answer; the value ends the name of the prompt that asks for another one."""

    LEAK = "leak"
    QUESTION = "question"
    LENGTH = "length"


class Secrets:
    """What an answer must not quote.

    Args:
        instructions: the texts that tell the models their parts, as sent.
        preference: wording and criterion of the user's preference, and its name.
        report: what the user may quote, whatever else is similar to it.
    """

    def __init__(self, instructions: Iterable[str], preference: Iterable[str], report: str) -> None:
        self._report = " ".join(fold(report).split())
        self._rows = frozenset().union(*map(_rows_of_instructions, instructions))
        self._rows |= frozenset().union(*(_ngrams(text, PREFERENCE_NGRAM_WORDS) for text in preference))

    def find_flaw(self, answer: str) -> Flaw | None:
        """The worst flaw of an answer, None if it can be said."""
        if any(map(self._leaks, (answer, *respelled(answer), *decoded(answer)))) or _is_json(answer):
            return Flaw.LEAK
        if self._asks(answer):
            return Flaw.QUESTION
        return Flaw.LENGTH if len(answer) > MAX_ANSWER_CHARS else None

    def _leaks(self, text: str) -> bool:
        folded = fold(text)
        for pattern in (_FIELD_NAMES, _ROLE, _TASTE):
            if any(found.group() not in self._report for found in pattern.finditer(folded)):
                return True
        sizes = range(PREFERENCE_NGRAM_WORDS, NGRAM_WORDS + 1)
        quoted = frozenset().union(*(_ngrams(text, size) for size in sizes)) & self._rows
        return bool(quoted) and not quoted <= self._rows_of_report

    @cached_property
    def _rows_of_report(self) -> frozenset[Row]:
        """What looks like a quotation and is one of the report: asked for rarely."""
        sizes = range(PREFERENCE_NGRAM_WORDS, NGRAM_WORDS + 1)
        return frozenset().union(*(_ngrams(self._report, size) for size in sizes))

    def _asks(self, answer: str) -> bool:
        """Whether some sentence of an answer is a question that the report does not have."""
        bare = re.sub(r"`[^`]*`|\"[^\"]*\"|'[^'\n]*'(?!\w)|https?://\S+|\S*[=/&]\S*", " ", answer)
        asked = re.findall(r"[^.!?\n]*[?？؟](?=\s|$|[)\"'])", bare)
        return any(" ".join(fold(sentence).split()) not in self._report for sentence in asked)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


@lru_cache(maxsize=256)
def _ngrams(text: str, size: int) -> frozenset[Row]:
    """The rows of `size` content words in a text: grammar and separators hide nothing."""
    words = [stem_of(word) for word in content_words(text)]
    return frozenset(zip(*(words[start:] for start in range(size)), strict=False))


@lru_cache(maxsize=64)
def _rows_of_instructions(text: str) -> frozenset[Row]:
    """The rows of `NGRAM_WORDS` words in a text, and its shorter sentences that are long enough to be known."""
    sentences = (content_words(part) for part in re.split(r"(?<=[.:;])\s", text))
    kept = (words for words in sentences if PREFERENCE_NGRAM_WORDS <= len(words) < NGRAM_WORDS)
    return _ngrams(text, NGRAM_WORDS) | {tuple(map(stem_of, words)) for words in kept}


def shortened(answer: str, max_chars: int = MAX_ANSWER_CHARS) -> str:
    """The first sentences of an answer that fit, or as many of its words."""
    if len(answer) <= max_chars:
        return answer
    head = answer[:max_chars]
    ends = [match.end() for match in re.finditer(r"[.!](?=\s)", head)]
    return head[: ends[-1]] if ends else head.rsplit(maxsplit=1)[0]
