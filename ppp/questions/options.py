"""Labelled options in a question: where they start, whether they are there to choose from.

No verdicts about questions as a whole; `rules.py` gives those and is the file to read next. Everything here
reads prose as `sentences.py` leaves it, with code, names and quotations masked.
"""

from __future__ import annotations

import re

MIN_OPTIONS = 2
MAX_CHARS_OF_LABELS = 8000  # no question is longer; white space without end would cost the patterns below their time
MAX_STARTS = 8  # of a series that are tried: "What is f(0)? A) ... B) ..." has a label before the first one

# Labels count up from the first one of a series; the first label names the series.
_SERIES = {
    "A": tuple("ABCDEFGH"),
    "a": tuple("abcdefgh"),
    "1": tuple("123456789"),
    "0": tuple("0123456789"),
    "i": ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii"),
    "I": ("I", "II", "III", "IV", "V", "VI", "VII", "VIII"),
}
_SIMPLE = r"[A-Ha-h]|\d"
_ROMAN = r"[iv]{1,4}|[IV]{1,4}"
_OPTION_WORD = r"(?:option|choice|alternative|variant|opzione|opción|opção|variante)"

STRONG_OPTION = re.compile(rf"(?<![\w(\[])[(\[]?({_ROMAN}|{_SIMPLE})\s?[)\]]")
_NAMED_OPTION = re.compile(rf"\b(?i:{_OPTION_WORD})\s+({_ROMAN}|{_SIMPLE})\s*[(:=–—]")
_PATTERNS = (
    STRONG_OPTION,
    _NAMED_OPTION,
    re.compile(rf"(?:^|(?<=\s)|(?<=[(–—-]))({_SIMPLE})\s?[.:=–—-](?=\s)"),
    re.compile(rf"^[^\w\n]*({_ROMAN})\s?[.:–—-](?=\s)", re.M),
    re.compile(rf"\b(?i:{_OPTION_WORD})\s+({_ROMAN}|{_SIMPLE})\b[\s:.,=–—-]"),
    re.compile(r"(?<!\w)#(\d)\s+(?=\w)"),
    re.compile(r"(?<!\w)(\d)\ufe0f?\u20e3"),
    re.compile(r"^[ \t]*([A-H]|\d)[ \t]{2,}(?=\w)", re.M),  # a row of a table whose bars `prose` has taken away
    re.compile(r"(?<!\w)([A-H]|\d)\s+(?=(?:for|if|means|stands|per|se|para|si|pour|für)\b)"),
)
# Without brackets a label may be an initial, a grade or the end of "Plan A.": the first one must stand like a label.
_OPENS = re.compile(
    rf"(?:^|[\n:;,.?(–—-]|{_OPTION_WORD}|\b(?:reply|answer|choose|type|press|enter|say|write|pick|with|either))"
    r"\s*[-•]?\s*$",
    re.I,
)
# A question after the options that is about them: "A) ... B) ... Which do you prefer?"
_CHOOSES = re.compile(
    r"\bwhich(?:\s*\?|\s+(?:ones?|of|do|does|should|shall|is|are|would|can|option|way|approach|choice|alternative"
    r"|variant|fits|applies|matches)\b)|\b(?:prefer|pick|choose|select)\b|\bwhat\s+(?:do|would)\s+you\s+(?:want|like)"
    r"|\b(?:quale|cosa)\s+(?:preferisc\w+|scegl\w+|vuoi|devo|è)|\bcuál\b|\bprefieres\b|\bpréfér\w+|\bwas\s+ist\b",
    re.I,
)
_WHICH = re.compile(rf"\b(?:which|quale?|quali|cuál(?:es)?|quelle?s?|welche[rsmn]?)\b|{_CHOOSES.pattern}", re.I)


# Ways to write a label that `prose` would take for code, for a file name or for a heading.
_SHOWN = r"(?:[(\[]?(?:[A-Ha-h]|[1-9])[)\].:])"
_UNUSUAL = (
    (re.compile(r"^([ \t]*(?:[-*•][ \t]+)?)`([A-Ha-h]|\d)`[ \t]+(?=\w)", re.M), r"\1\2) "),  # "`A` keep it"
    (re.compile(r"(?<!\S)([(\[]?(?:[A-Ha-h]|\d)[)\]])(?=[\w`])"), r"\1 "),  # "A)keep it"
    (re.compile(r"^([ \t]*(?:[A-H]|\d)\.)(?=[^\W\d])", re.M), r"\1 "),  # "A.keep it"
    (re.compile(r"^([ \t]*[A-Ha-h])[/>][ \t]", re.M), r"\1) "),  # "a/ keep it"
    (re.compile(rf"^[ \t]*#{{1,6}}[ \t]+(?={_SHOWN}\s|{_OPTION_WORD}\s)", re.M | re.I), ""),  # "### A. Keep it"
)
_WIDE = str.maketrans({"（": " (", "）": ") ", "：": ": ", "．": ". "})
_COUNTED = {word: number for number, word in enumerate(("one", "two", "three", "four", "five", "six"), start=1)}
_COUNTED_OPTION = re.compile(rf"\b({_OPTION_WORD})\s+({'|'.join(_COUNTED)})\b", re.I)
# A block that holds nothing but lettered lines, or numbered ones that are merely indented, is no code.
_LETTERED_LINE = r"[ \t]*[(\[]?[A-Ha-h][)\].:][ \t]+\S.*"
_LETTERED_BLOCKS = (
    re.compile(rf"^(?:```|~~~)(?:text|txt)?[ \t]*\n(?:{_LETTERED_LINE}\n+){{2,}}(?:```|~~~)[ \t]*$", re.M),
    re.compile(rf"(?:^[ \t]*>{_LETTERED_LINE}(?:\n|\Z)){{2,}}", re.M),
    re.compile(
        rf"(?:^(?: {{4}}|\t){_LETTERED_LINE}(?:\n|\Z)|^(?: {{4}}|\t)[ \t]*\d[).:][ \t]+\S.*(?:\n|\Z)){{2,}}", re.M
    ),
)


def with_plain_labels(question: str) -> str:
    """`question` with unusual labels written as "A) ..." and out of their blocks, so that `prose` leaves them."""
    if len(question) > MAX_CHARS_OF_LABELS:
        return question
    question = question.translate(_WIDE)
    for pattern in _LETTERED_BLOCKS:
        question = pattern.sub(_unblock, question)
    for pattern, plain in _UNUSUAL:
        question = pattern.sub(plain, question)
    return _COUNTED_OPTION.sub(lambda match: f"{match[1]} {_COUNTED[match[2].lower()]}", question)


def _unblock(match: re.Match[str]) -> str:
    lines = [line.strip("> \t") for line in match.group().splitlines()]
    return "\n".join(line for line in lines if not line.startswith(("```", "~~~"))) + "\n"


def find_options(text: str) -> list[tuple[int, int]]:
    """Start and end of each option's label, if there are two or more that count up from the first one."""
    for pattern in _PATTERNS:
        matches = list(pattern.finditer(text))
        starts = [place for place, match in enumerate(matches) if _is_first(pattern, match)][:MAX_STARTS]
        for start in starts:
            found = _series(matches[start:])
            if len(found) >= MIN_OPTIONS and all(re.search(r"\w", item) for item in option_texts(text, found)):
                return found
    return []


def _is_first(pattern: re.Pattern[str], match: re.Match[str]) -> bool:
    before = match.string[: match.start()][-14:]
    if match[1] not in _SERIES:
        return False
    if pattern in (STRONG_OPTION, _NAMED_OPTION) or _OPENS.search(before):
        return True
    return match.group() == "a." and match.string[match.end() :].lstrip()[:1].islower()  # "expect a. one or b. two"


def _series(matches: list[re.Match[str]]) -> list[tuple[int, int]]:
    """The labels that count up from the first of `matches`."""
    labels = _SERIES[matches[0][1]]
    found: list[tuple[int, int]] = []
    for match in matches:
        if len(found) < len(labels) and match[1] == labels[len(found)]:
            found.append(match.span())
    return found


def option_texts(text: str, found: list[tuple[int, int]]) -> list[str]:
    """What stands behind each label; the last text goes on to the end, because nothing shows where it ends."""
    stops = [start for start, _ in found[1:]] + [len(text)]
    return [text[end:stop] for (_, end), stop in zip(found, stops, strict=True)]


def chosen_from(text: str, found: list[tuple[int, int]]) -> bool:
    """Whether the options end in a question mark, or a question that follows them is one of choice."""
    last_item, _, after = re.sub(r"\s+\?", "?", text[found[-1][1] :]).lstrip().partition("\n")
    ending = re.search(r"[.?!](?=\s|$)", last_item)
    if ending is not None and ending.group() == "?":
        return True
    after = (last_item[ending.end() :] if ending else "") + "\n" + after
    opens = not text[: found[0][0]].strip(" \n([-•")
    opens = opens and not any("\n" in item.strip() for item in option_texts(text, found)[:-1])  # else: headings
    return "?" in after and (_CHOOSES if not opens else _WHICH).search(after) is not None
