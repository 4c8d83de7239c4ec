"""Whether labelled items are there to choose from, or are facts, steps, requests or the parts of what is asked.

No labels are searched for here: `options.py` finds them. No verdicts either: `rules.py` gives those and comes next.
"""

from __future__ import annotations

import re

from ppp.questions.options import option_texts

_CHOICE = re.compile(
    r"\b(?:options?|choices?|alternatives?|candidates?|possib\w+|choos\w+|pick|select|prefer\w*|either|whether|one\s+of"
    r"|any\s+of|which(?:ever)?(?:\s+(?:ones?|of))?|repl(?:y|ies)|answers?|letter|number|ways?|approach(?:es)?|rather|readings?"
    r"|interpretations?|do\s+you\s+(?:mean|want|need)|is\s+meant|can\s+(?:think|offer|see)|could\s+(?:be|mean)|should\s+i"
    r"|opzion[ei]|scelt[ae]|scegl\w+|preferi\w+|quale|quali|opcion(?:es)?|cuál(?:es)?|elige|quel(?:le)?s?|choisi\w*"
    r"|welche[rsmn]?|wähl\w*)\b",
    re.I,
)
_CHOICE_OF_QUESTION = re.compile(
    r"\bwhich\s+(?:of|ones?|options?|choice|alternative)\b|\bwhich\s*[?:]|\b(?:prefer|choose|pick|select)\b"
    r"|\b(?:do|did|would)\s+you\s+(?:mean|want|like|need)\b|\bis\s+meant\b|\bone\s+of\b|\bfits\b|\bmatches\b",
    re.I,
)
# A statement that leads to what is known or was done, however the question before it reads.
_FACTS = re.compile(
    r"\b(?:so\s+far|until\s+now|already|notic\w+|observ\w+|tried|did|done|checked|ruled\s+out|ran|facts?|findings?|known"
    r"|know|steps?|reproduc\w+|requires?|requirements?|background|context|setup|things|changes?|symptoms?|says?|states?"
    r"|because|happened|learned|learnt|read)\b",
    re.I,
)
_LISTED = re.compile(
    r"\b(?:order|sequence|steps?|plan|procedure|requirements?|assumptions?|summary|understanding|findings|facts|changes"
    r"|instructions|checklist|points|workflow|tasks|commands|prerequisites|conditions)\b",
    re.I,
)
_YES_NO = re.compile(
    r"^\W*(?:(?:so|and|but|ok(?:ay)?|please)\W+)?(?:is|are|was|were|do|does|did|has|have|had|can|could|will|would)(?:n['’]t)?\b",
    re.I,
)
_COMPARES = re.compile(r"\b(?:difference|compar\w+|relation\w*|interaction|conflict|distance|distinction)\b", re.I)
_AND = re.compile(r"(?:\b(?:and|e|ed|y|et|und|as\s+well\s+as|plus)|&)\s*$", re.I)
_ASKS_ANOTHER = re.compile(r"[,:;–—-]\s*(?:so\s+)?(?:why|how|when|where|who|whom|what)\b[^?]*\?", re.I)


def lead_of(text: str, found: list[tuple[int, int]]) -> tuple[str, str]:
    """The last question before the options, and the unfinished sentence (or nothing) that leads to them."""
    *before, lead = re.split(r"(?<=[.!?])\s+", text[: found[0][0]])
    lead = lead.strip(" \n([-•")
    if lead.endswith(("?", ".", "!")):
        before, lead = [*before, lead], ""
    asked = [part for part in before if part.endswith("?")]
    return (asked[-1] if asked else ""), lead


def are_alternatives(text: str, found: list[tuple[int, int]]) -> bool:
    """Whether nothing tells that the items stand for something else than a choice."""
    question, lead = lead_of(text, found)
    items = option_texts(text, found)
    if not _has_words(lead):
        if question:
            return not (
                _YES_NO.match(question) and _LISTED.search(question) and not _CHOICE_OF_QUESTION.search(question)
            )
        return _ASKS_ANOTHER.search(items[-1]) is None
    if _AND.search(items[-2].rstrip(" \n([-•")) and (_COMPARES.search(lead) or not _CHOICE.search(lead)):
        return _chosen_afterwards(items[-1])
    if not question or _CHOICE.search(lead) or _CHOICE_OF_QUESTION.search(question):
        return True
    label = text[slice(*found[0])].strip(" ()[].:-–—")
    return not _FACTS.search(lead) and (label == "A" or _CHOICE.search(question) is not None)


def _has_words(lead: str) -> bool:
    return re.search(r"\w{2}", lead) is not None


def _chosen_afterwards(last_item: str) -> bool:
    return any(_CHOICE_OF_QUESTION.search(part) for part in re.findall(r"(?<=[.:;])[^.?]*\?", last_item))
