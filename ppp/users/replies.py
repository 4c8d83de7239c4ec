"""How people reply without telling anything: refusals in a dozen wordings, a yes, a choice from a list.

Tables of wordings, read on folded text (see `words.py`). What a reply of such a kind costs is `evidence.py`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ppp.users.words import fold, stem, tokens_of

_NOT = (
    r"(?:(?:do|does|did|is|was|would|could) not|(?:do|does|did|is|was|would|could)n't|dont|didnt"
    r"|can ?not|can't|cant|am (?:not able|unable) to)"
)
_ADVERBS = r"(?:(?:really|actually|currently|honestly|just|even|exactly|quite|at all|simply) )*"
_KNOW = r"(?:know|remember|recall|tell|say|answer|help|think|understand)"
_TAIL = r"(?: (?:you|with|that|this|it|about|anything|any more|more|for sure|by heart|off ?hand|what you mean))*"
_ANY = r"(?:any |that |this |the |more |further |such )*"
_NEWS = r"(?:idea|clue|information|details?|memory|knowledge)"
_REFUSALS = (
    rf"(?:i'?m afraid )?(?:that )?i {_ADVERBS}{_NOT} {_ADVERBS}{_KNOW}{_TAIL}",
    rf"(?:i )?{_NOT} (?:know|remember|recall)",
    rf"(?:i )?(?:have|had|got|'ve got) (?:absolutely )?(?:no|not any) {_NEWS}",
    rf"(?:i )?{_NOT} have {_ANY}{_NEWS}",
    r"(?:absolutely )?no (?:idea|clue)|no information(?: about| on)?(?: that| this| it)?",
    r"dunno|beats me|search me|i wonder",
    r"(?:i'?m|i am|we are|we're) (?:(?:really|still|also) )*"
    r"(?:not (?:(?:so|quite|entirely|too) )?(?:sure|certain|aware)|unsure)(?: (?:of|about) (?:that|this|it))?",
    r"not (?:sure|certain)",
    r"(?:i'?d rather not|i would rather not|i (?:would )?prefer not to|i won't)(?: (?:say|answer|tell))?",
    r"(?:i'?d|i would) rather leave (?:that|it|this) to you",
    r"(?:that|it|this)(?:'s| is) (?:up to|for) you(?: to \w+)?(?: out)?",
    r"i (?:have )?(?:already|just) (?:said|told|answered|mentioned)(?: (?:that|this|it|you|so|everything))*",
    r"as i (?:already )?said|i told you(?: (?:that|already|so))*",
    r"(?:i have )?nothing (?:more |else )?to (?:add|say)",
    r"(?:that |it |this )?(?:is not|isn't|was not|wasn't) (?:mentioned|stated|specified|something i know)",
    rf"(?:(?:my|the) (?:report|issue|description|text) )?{_NOT} (?:say|mention|state|specify)(?: (?:that|this|it))?",
    r"non (?:lo )?(?:so|ricordo|saprei)|nessuna idea|mi (?:di)?spiace|no (?:lo )?se|ni idea|lo siento|no recuerdo",
    r"je ne sais pas|aucune idee|desole|(?:das )?weiss ich nicht|ich weiss (?:es )?nicht|keine ahnung|nao sei",
    r"我?不知道|不清楚|わかりません|모르겠|не знаю",
)
_REFUSAL = re.compile(rf"(?<!\w)(?:{'|'.join(map(fold, _REFUSALS))})(?!\w)")
# What people add to a refusal without telling anything.
_EXCUSE_WORDS = """
    afraid off hand head memory side moment time check checked checking test tested looked notice noticed paid attention
    expert technical developer programmer engineer familiar internals internal inside deep details detail information
    info idea sure certain really unfortunately regret apologize help helps thought considered wondered anything nothing
    beyond guess remember recall know known knowledge unknown answer already said told tell mentioned earlier previously
    lo siento mi dispiace spiace desole
"""
_EXCUSES = frozenset(map(stem, _EXCUSE_WORDS.split()))
_ASSENTS = (
    r"yes|yeah|yep|yup|yea|aye|right|correct|exactly|precisely|indeed|true|affirmative|absolutely|definitely",
    r"certainly|of course|agreed|confirmed?|bingo|spot on|bullseye|warm|hot|nods?|nodding|i (?:think|guess|believe) so",
    r"seems so|looks like it|(?:you )?got it|that's (?:it|the one|right)|that is (?:it|right)|that one",
    r"(?:could|may|might|well) be|both|all of (?:them|those)|either|si|oui|ja|sim|esatto|exacto|exactement|genau",
    r"giusto|no|nope|nah|not (?:it|there|that)|neither|none|false|wrong|incorrect|cold|nein|non|claro",
)
_POLITE = r"ok|okay|sure|good|great|fine|alright|understood|done|thanks?|thank you|👍|👌|🆗"
_ASSENT = re.compile(rf"(?<!\w)(?:{'|'.join(_ASSENTS)})(?!\w)|[✓✔👎✅❌☑]|是的?|对|はい|네|(?<!\w)да(?!\w)")
_POLITE_REPLY = re.compile(rf"(?<!\w)(?:{_POLITE})(?!\w)")
_ORDINALS = {"first": 0, "former": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4, "sixth": 5}
_LAST = ("last", "latter")
_LABEL = re.compile(r"(?:^|(?<=[\s(\[,;:?]))[(\[]?([A-Ha-h]|[1-9])\s?(?:[):\]]|\.(?!\d))(?=\s|$|\w)")
_CHOICE = re.compile(
    r"(?:^|(?<=[\s(]))(?:(?:option|number|nr\.?|no\.?)\s*)?[(\[]?"
    r"([A-Ha-h]|[1-9])(?=[):,;\]!]|\.(?!\w)|\s*$|\s+(?:and|or|please)\b)"
)


def without_refusal(folded: str, text: str) -> tuple[str, bool]:
    """What is left of a folded text without the words that refuse, and True; `text` and False if it has none."""
    rest, number = _REFUSAL.subn(" ", folded)
    return (rest, True) if number else (text, False)


def tells_nothing(words: Sequence[str]) -> bool:
    """Whether these words of a refusal, those of the question left out, are mere excuses."""
    return all(stem(fold(word)) in _EXCUSES for word in words)


def is_polite(text: str) -> bool:
    """Whether a reply may be an assent, or no more than manners."""
    return bool(_POLITE_REPLY.search(fold(text)))


def affirms(text: str) -> bool:
    """Whether a reply commits itself to what was asked, by a yes or by a no."""
    return bool(_ASSENT.search(fold(text)))


def options_of(question: str) -> dict[str, str]:
    """The labelled options of a question: label in capitals -> text; empty unless there are two that count up."""
    found: list[tuple[str, int, int]] = []
    for match in _LABEL.finditer(question):
        label = match.group(1).upper()
        expected = chr(ord(found[0][0]) + len(found)) if found else label
        if label == expected and (found or label in "A1"):
            found.append((label, match.start(), match.end()))
    if len(found) < 2:
        return {}
    stops = [start for _, start, _ in found[1:]] + [len(question)]
    texts = (question[end:stop] for (_, _, end), stop in zip(found, stops, strict=True))
    return {label: re.split(r"[?\n]", text)[0].strip(" ,;(") for (label, _, _), text in zip(found, texts, strict=True)}


def selected(question: str, answer: str) -> list[str]:
    """The texts of the options that an answer chooses by label or by place; empty where it chooses none."""
    options = options_of(question)
    if not options:
        return []
    labels = [match.group(1).upper() for match in _CHOICE.finditer(answer)]
    texts = list(options.values())
    words = [fold(token) for token in tokens_of(answer)]
    places = [_ORDINALS[word] for word in words if word in _ORDINALS] + [-1 for word in words if word in _LAST]
    chosen = [options[label] for label in labels if label in options]
    return chosen + [texts[place] for place in places if place < len(texts)]


def without_labels(answer: str) -> str:
    """An answer that chooses, without the labels and places that it names."""
    places = "|".join((*_ORDINALS, *_LAST))
    return re.sub(rf"\b(?:{places}|options?)\b", " ", _CHOICE.sub(" ", answer), flags=re.IGNORECASE)
