"""What a vague text must be like: bounds per level, and one check per property in a literal table.

A check gives None, or one sentence that tells the writer what to change. Whether the intent is still the same is for a
judge and stands in `rewriting.py`, which comes next; everything here is decided by rules. The text to be checked comes
from a model that read an untrusted issue: it is only looked at.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ppp.prompts import load_prompt
from ppp.questions.sentences import languages, prose, sentences
from ppp.vaguenizer.gold_names import GoldName, find_gold, plain
from ppp.vaguenizer.specifics import count_specifics, distinct_specifics


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of a precise text may stay in the vague one.

    Attributes:
        max_share: of its characters, white space counted once.
        max_chars: of the vague text, whatever the precise one has.
        max_specifics_share: of its different details, rounded down.
        max_specifics: of the vague text, whatever the precise one has.
        banned: kinds of details of which nothing may stay.
    """

    max_share: float
    max_chars: int
    max_specifics_share: float
    max_specifics: int
    banned: tuple[str, ...] = ("code",)


_TELLING = ("code", "url", "message", "path", "version", "reference")
# Level -> bounds for the description of a problem and for a search question. The prompts say the same in words.
LEVELS: Mapping[str, Mapping[str, Bounds]] = {
    "mild": {"problem": Bounds(0.6, 800, 0.5, 8), "question": Bounds(0.95, 800, 0.5, 4)},
    "vague": {"problem": Bounds(0.5, 400, 0.25, 3, _TELLING), "question": Bounds(0.85, 400, 0.25, 1)},
    "extreme": {"problem": Bounds(0.35, 160, 0.0, 0, _TELLING), "question": Bounds(0.7, 160, 0.0, 0)},
}
MIN_ROOM_CHARS = 60  # a share of a short text would leave no room for a sentence; shorter it has to be anyway

MIN_WORDS = 3
MIN_LETTERS = 8
SHINGLE_WORDS = 7  # so many words in a row of our instructions are no accident
MIN_LANGUAGE_SHARE = 0.15
MIN_CERTAINTY = 0.9
PROMPTS = ("vaguenize_problem.txt", "vaguenize_question.txt", "vaguenize_judge.txt", "vaguenize_feedback.txt")

# What only somebody says who talks about the task of rewriting instead of doing it.
LEAKS: Mapping[str, str] = {
    "a field of the answer's form": r"same_intent|vague_text|\"(?:text|reason)\"\s*:",
    "words about the rewriting": (
        r"\b(?:rewritten|vague|vaguer|generali[sz]ed|simplified|underspecified)\s+"
        r"(?:version|text|prompt|statement|description|issue|report|question|form)\b"
        r"|\bprecise\s+(?:prompt|text|statement|version)\b|\boriginal\s+(?:issue|text|question|prompt|report)\b"
        r"|\b(?:i|we)(?:['’]ve|\s+have)?\s+(?:rewritten|generali[sz]ed|removed|omitted|anonymi[sz]ed)\b"
        r"|\bhere(?:['’]s|\s+is)\s+(?:the|a|your|my)\s+(?:\w+\s+)?(?:version|rewrite|rewriting|text|question|statement)\b"
        r"|\b(?:specific\s+)?details?\s+(?:were|was|have\s+been|are)\s+(?:removed|omitted|left\s+out)\b"
    ),
    "words of a model about itself": (
        r"\bas an ai\b|\blanguage model\b|\bi (?:cannot|can['’]t) (?:help|assist|comply)\b"
    ),
    "markup of a conversation": r"<\|?/?(?:system|user|assistant|think|im_start|im_end|tool_call|endoftext)\b",
    "the form of data instead of a text": r"\A\s*(?:[{\[]\s*[\"{\[]|```)",
}
# These an issue may be about. The others have no place in a text, not even where a stranger has put them.
_EXCUSED = ("words about the rewriting", "words of a model about itself")
_LEAKS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in LEAKS.items()}


@dataclass(frozen=True)
class Original:
    """A precise text and what the checks need to know of it.

    Attributes:
        text: the precise text.
        form: "problem" or "question", a key of each level.
        gold: names of the solution.
        specifics: kind -> {key: detail}, see `distinct_specifics`.
    """

    text: str
    form: str
    gold: tuple[GoldName, ...] = ()
    specifics: Mapping[str, Mapping[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "specifics", distinct_specifics(self.text, names=self.form == "question"))

    @cached_property
    def languages(self) -> dict[str, float]:
        return language_shares(self.text)

    @property
    def num_specifics(self) -> int:
        return sum(map(len, self.specifics.values()))


def nothing_to_remove(original: Original) -> str | None:
    """Why a precise text has no vaguer form, or None: there is hardly anything in it, or no detail in a short text."""
    num_words = len(original.text.split())
    if num_words < 2 * MIN_WORDS:
        return f"{num_words} words leave nothing to remove"
    room = MIN_ROOM_CHARS if original.form == "question" else 2 * MIN_ROOM_CHARS
    if original.num_specifics == 0 and len(_even(original.text)) < room:
        return "a short text without any specific detail"
    return None


def check_not_empty(original: Original, text: str, bounds: Bounds) -> str | None:
    letters = sum(sign.isalpha() for sign in text)
    if letters == 0:
        return "The text is empty."
    words = len(re.findall(r"\w+", text))
    if letters < MIN_LETTERS or (words < MIN_WORDS and text.isascii()):
        return f"{text[:40]!r} is not a sentence; say what the person wants."
    return None


def check_no_leak(original: Original, text: str, bounds: Bounds) -> str | None:
    source = original.text.casefold()
    for name, pattern in _LEAKS.items():
        for match in pattern.finditer(text):
            if name not in _EXCUSED or match.group().casefold().strip() not in source:
                return f"The text holds {name} ({match.group().strip()[:60]!r}); write only what the person would say."
    words = re.findall(r"\w+", text.casefold())
    of_source = " ".join(re.findall(r"\w+", source))
    for start in range(len(words) - SHINGLE_WORDS + 1):
        shingle = " ".join(words[start : start + SHINGLE_WORDS])
        if shingle in _instructions() and shingle not in of_source:
            return f"The text repeats the instructions ({shingle!r}); write only what the person would say."
    return None


def check_shorter(original: Original, text: str, bounds: Bounds) -> str | None:
    length, before = len(_even(text)), len(_even(original.text))
    allowed = max_chars(original, bounds)
    if length <= allowed:
        return None
    return f"The text has {length} characters and the original {before}; at most {allowed} are allowed."


def check_same_language(original: Original, text: str, bounds: Bounds) -> str | None:
    spoken = language_shares(text)
    before = original.languages
    if not spoken or not before:
        return None
    language, share = max(spoken.items(), key=lambda item: item[1])
    if share < MIN_CERTAINTY or before.get(language, 0.0) >= MIN_LANGUAGE_SHARE:
        return None
    wanted = max(before, key=lambda name: before[name])
    return f"The text is in another language ({language}) than the original ({wanted}); keep the original's."


def check_no_gold(original: Original, text: str, bounds: Bounds) -> str | None:
    found = find_gold(text, original.gold)
    if not found:
        return None
    named = ", ".join(repr(name[:80]) for name in found[:5])
    return f"The text names what has to be found ({named}); leave it out or say it in everyday words."


def check_fewer_specifics(original: Original, text: str, bounds: Bounds) -> str | None:
    after = distinct_specifics(text, names=original.form == "question")
    num_after = sum(map(len, after.values()))
    allowed = max_specifics(original, bounds)
    problems = []
    if num_after > allowed:
        problems.append(
            f"The text has {num_after} specific details and the original {original.num_specifics}; "
            f"at most {allowed} are allowed"
        )
    banned = [kind for kind in bounds.banned if kind in after]
    if banned:
        problems.append(f"Nothing of these kinds may stay: {', '.join(banned)}")
    if not problems:
        return None
    listed = [f"{detail[:60]!r}" for kind in after for detail in after[kind].values()]
    return f"{'. '.join(problems)}. Specific details in it: {', '.join(listed[:10])}."


def check_nothing_added(original: Original, text: str, bounds: Bounds) -> str | None:
    source = _squeezed(original.text)
    known = {key for details in original.specifics.values() for key in details}
    added = [
        detail
        for kind, details in distinct_specifics(text, names=original.form == "question").items()
        for key, detail in details.items()
        if key not in known and _squeezed(detail) not in source and kind != "message"
    ]
    if not added:
        return None
    listed = ", ".join(repr(detail[:60]) for detail in added[:5])
    return f"The text adds what the original does not say: {listed}; add nothing."


# Name -> check, in the order in which they are made and told. "same_intent" comes after them, see `rewriting.py`.
CHECKS: Mapping[str, Callable[[Original, str, Bounds], str | None]] = {
    "not_empty": check_not_empty,
    "no_leak": check_no_leak,
    "shorter": check_shorter,
    "same_language": check_same_language,
    "no_gold": check_no_gold,
    "fewer_specifics": check_fewer_specifics,
    "nothing_added": check_nothing_added,
}
JUDGED = "same_intent"


def find_problems(original: Original, text: str, level: str) -> dict[str, str]:
    """Check -> what is wrong; empty where every rule is kept. An empty text is not looked at any further."""
    bounds = LEVELS[level][original.form]
    found: dict[str, str] = {}
    for name, check in CHECKS.items():
        problem = check(original, text, bounds)
        if problem is not None:
            found[name] = problem
            if name == "not_empty":
                break
    return found


def max_chars(original: Original, bounds: Bounds) -> int:
    """How long the vague text may be; always shorter than the precise one."""
    before = len(_even(original.text))
    return min(before - 1, bounds.max_chars, max(MIN_ROOM_CHARS, int(before * bounds.max_share)))


def max_specifics(original: Original, bounds: Bounds) -> int:
    """How many details may stay; always fewer than there were, unless there were none."""
    before = original.num_specifics
    return max(0, min(before - 1, bounds.max_specifics, int(before * bounds.max_specifics_share)))


def removed_specifics(original: Original, text: str) -> dict[str, list[str]]:
    """Kind -> details of the precise text that the vague one does not hold any more."""
    left = _squeezed(text)
    removed = {
        kind: [detail for detail in details.values() if _squeezed(detail) not in left]
        for kind, details in original.specifics.items()
    }
    return {kind: details for kind, details in removed.items() if details}


def remaining_specifics(original: Original, text: str) -> dict[str, int]:
    return count_specifics(text, names=original.form == "question")


def language_shares(text: str) -> dict[str, float]:
    """Language -> its share of the words of the prose in `text`, weighted with how certain it is; sums to at most 1."""
    shares: defaultdict[str, float] = defaultdict(float)
    num_words = 0
    for sentence in _some_sentences(text):
        ranked = languages(sentence)
        weight = len(re.findall(r"\w+", sentence))
        if ranked and weight > 3:
            language, certainty = ranked[0]
            shares[language] += certainty * weight
            num_words += weight
    return {language: weight / num_words for language, weight in shares.items()}


def _some_sentences(text: str, most: int = 12) -> Sequence[str]:
    return sentences(prose(text))[:most]


def _instructions() -> str:
    return " ".join(re.findall(r"\w+", " ".join(load_prompt(name) for name in PROMPTS).casefold()))


def _even(text: str) -> str:
    return " ".join(text.split())


def _squeezed(text: str) -> str:
    return re.sub(r"[\W_]+", "", plain(text).casefold())
