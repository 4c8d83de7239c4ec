"""Whether labelled items are there to choose from, or are facts, steps, requests or the parts of what is asked.

No labels are searched for here: `options.py` finds them. No verdicts either: `rules.py` gives those and comes next.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ppp.questions.options import option_texts
from ppp.questions.sentences import LABEL, read_json

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
_LISTS = (
    r"(?:orders?|sequence|steps?|plan|procedure|requirements?|assumptions?|summary|understanding|findings|facts|changes"
    r"|instructions|checklist|list|points|workflow|tasks|commands|prerequisites|conditions|statements|observations|items"
    r"|errors|warnings|messages|lines|results|rows|events|actions|settings|values|criteria|rules|examples|definitions|hypotheses)"
)
_POINTS_AT = r"(?:these|those|the\s+following|following|my)"
# A question about all the items together: "Did you follow these steps?", "For each of the following, what is ...?"
_ABOUT_LIST = re.compile(
    rf"^(?!.*\bshould\b).*\b{_POINTS_AT}\s+(?:\w+\s+){{0,2}}{_LISTS}\b|\b(?:each|all|both)\s+(?:of\s+)?{_POINTS_AT}\b"
    r"|\b(?:do|did|doing|done|run|try|tried|follow|followed)\s+(?:this|these|the\s+following)\s*[?:,]",
    re.I | re.S,
)
_CONFIRMS_LIST = re.compile(
    r"^\W*(?:(?:so|and|but|ok(?:ay)?|please)\W+)?(?:is|are|was|were|do|does|did|has|have|had|can|could|will|would"
    rf"|shall|should|may)(?:n['’]t)?\b.*\b(?:the|this|your)\s+(?:\w+\s+){{0,2}}{_LISTS}\b",
    re.I | re.S,
)
_YES_OR_NO = re.compile(r"\W*(?:yes|no|sì|sí|si|ja|nein|oui|non|sim|não|always|never|maybe|partly)\b", re.I)
_FACT_ITEM = re.compile(
    r"\W*(?:expected|actual|observed|given|input|output|known|got|symptom|cause|before|after)\s*:", re.I
)
_PART_OF_TEXT = re.compile(
    r"\b(?:point|section|item|clause|step|part|paragraph|row|line|figure|table|equation|example|note|footnote|article"
    r"|chapter|question|sentence)[ \t]*$",
    re.I,
)
_COMPARES = re.compile(r"\b(?:difference|compar\w+|relation\w*|interaction|conflict|distance|distinction)\b", re.I)
_AND = re.compile(r"(?:\b(?:and|e|ed|y|et|und|as\s+well\s+as|plus)|&)\s*$", re.I)
_ASKS_ANOTHER = re.compile(r"[,:;–—-]\s*(?:so\s+)?(?:why|how|when|where|who|whom|what)\b[^?]*\?", re.I)


_LABEL_KEY = re.compile(r"(?:label|id|key|letter|option|choice|value|number|no|nr)", re.I)
_OPTION_KEY = re.compile(rf"(?:option|choice|answer|alternative)[ _-]?({LABEL})", re.I)


def with_labels_as_keys(question: str) -> str:
    """A JSON question with {"label": "A", "text": "x"} or {"option_a": "x"} written as {"A": "x"}."""
    value = read_json(question)
    return question if value is None else json.dumps(_labels_as_keys(value), ensure_ascii=False)


def _labels_as_keys(value: Any) -> Any:
    if isinstance(value, list):
        return [_labels_as_keys(item) for item in value]
    if not isinstance(value, dict):
        return value
    labels = [key for key in value if _LABEL_KEY.fullmatch(key) and re.fullmatch(LABEL, str(value[key]))]
    texts = [item for key, item in value.items() if key not in labels and isinstance(item, str)]
    if len(labels) == 1 and texts:
        return {str(value[labels[0]]): texts[0]}
    named = {key: _OPTION_KEY.fullmatch(key) for key in value}
    return {(match[1] if (match := named[key]) else key): _labels_as_keys(item) for key, item in value.items()}


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
    if all(_FACT_ITEM.match(item) for item in items) or all(_PART_OF_TEXT.search(text[:start]) for start, _ in found):
        return False
    if _is_about_list(lead or question) and not _YES_OR_NO.match(items[0]):
        return False
    if not _has_words(lead) or all(text[:start].endswith(f" {lead} ") for start, _ in found):  # "Level 1) ... Level 2)"
        return bool(question) or _ASKS_ANOTHER.search(items[-1]) is None
    if _AND.search(items[-2].rstrip(" \n([-•")) and (_COMPARES.search(lead) or not _CHOICE.search(lead)):
        return _chosen_afterwards(items[-1])
    if not question or _CHOICE.search(lead) or _CHOICE_OF_QUESTION.search(question):
        return True
    label = text[slice(*found[0])].strip(" ()[].:-–—")
    return not _FACTS.search(lead) and (label == "A" or _CHOICE.search(question) is not None)


def _is_about_list(question: str) -> bool:
    if _CHOICE_OF_QUESTION.search(question):
        return False
    return bool(_ABOUT_LIST.search(question) or (_CONFIRMS_LIST.match(question) and question.endswith("?")))


def _has_words(lead: str) -> bool:
    return re.search(r"\w{2}", lead) is not None


def _chosen_afterwards(last_item: str) -> bool:
    return any(_CHOICE_OF_QUESTION.search(part) for part in re.findall(r"(?<=[.:;])[^.?]*\?", last_item))
