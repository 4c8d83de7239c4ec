"""How a question is read: what is prose in it, where its sentences end, which languages they are in.

No verdicts here; `rules.py` beside it asks these functions and decides. Code, file names, addresses, numbers
and quotations become a placeholder first, because their dots and their English words would fool the two libraries that
do the real work: pysbd splits sentences, py3langid names languages (`languages.py`).
"""

from __future__ import annotations

import functools
import json
import re
import threading
from typing import Any

import pysbd

from ppp.questions.languages import rank_languages
from ppp.questions.options import find_options

PLACEHOLDER = "Xqx"
CONTINUED = "\x00"  # for a moment, a block in the middle of a sentence
MAX_CHARS = 6000  # of prose that are read; far beyond any question, and the libraries stay fast on hostile text
MAX_JSON_DEPTH = 50
MAX_WORD_CHARS = 80  # what is longer without a space is no word

BLOCK = re.compile(
    r"(?P<fence>```|~~~)[\s\S]*?(?:(?P=fence)|\Z)"
    r"|(?:^[ \t]*>.*(?:\n|\Z)){3,}"  # quoted lines
    r"|(?:^(?: {4}|\t)[ \t]*\S.*(?:\n|\Z)){3,}"  # indented lines
    r"|(?:^[ \t]*\d+(?:[ \t]*[:|→]|\t).*(?:\n|\Z)){3,}",  # numbered lines, as viewers print files
    re.MULTILINE,
)
LABEL = r"(?:[A-Ha-h]|[1-9]|[iv]{1,4}|[IV]{1,4})"
_LIST_MARK = re.compile(rf"\s*(?:[-+•–]\s|(?:[-+•–]\s*)?[(\[]?{LABEL}\s?[)\].:]\s)")
_CODE_SPAN = re.compile(r"(`+)(?!`)[^`\n]+\1")
_ADDRESS = re.compile(
    r"(?:\b[a-z][a-z+.-]{1,20}://|\bwww\.)\S*[^\s.,;:!?)\]}>\"'»”]|\b[\w.+-]{1,64}@[\w-]+\.[\w.-]*\w", re.I
)
SPACELESS_NAME = re.compile(rf"{_ADDRESS.pattern}|[^\s`]*\w(?:[/\\]|::)\w[^\s`]*", re.I)  # an address or a path
_QUOTATION = re.compile(
    r'"([^"\n]{1,300})"|“([^”\n]{1,300})”|«([^»\n]{1,300})»|„([^“”\n]{1,300})[“”]|(?<!\w)[\'‘]([^\'’\n]{1,80})[\'’](?!\w)'
)
_INITIALS = re.compile(
    r"[^\W\d]\.[^\W\d]|(?:[A-Z]\.)+[A-Z]|p\.e[jsx]|[afn]\.k\.a|w\.r\.t|[Ss]\.p\.[Aa]|[Ss]\.r\.l|u\.s\.w|Ph\.D|[BM]\.Sc|[BM]\.Eng"
)  # "e.g", "U.S", "z.B", "a.k.a"
_CODE_TOKEN = re.compile(
    r".*\w(?:\.|::|->)\w|.*[\\_=<>$%@{}]|.*\w\(.*\)|[-~/.]+\w|(?:[^/]*/){2,}|.*[a-z][A-Z]", re.DOTALL
)
# Their period ends no sentence: the first kind whatever follows, the second before a number or a small letter.
_TITLE = re.compile(
    r"\b(sig|sig\.?ra|dott|dott\.?ssa|prof|ing|avv|sr|sra|mme|herr|hr|fr|dr|mr|mrs|ms|st"
    r"|mio|mrd|ggf|bzgl|evtl|inkl|zzgl|sog)\.(?=\s)",
    re.I,
)
_ABBREVIATION = re.compile(
    r"\b((?i:ver|vers|vs|v|nr|no|num|núm|n|art|cap|pag|pág|p|pp|fig|sec|sez|rif|ref|ca|cf|approx|aprox|env"
    r"|eqs?|ch|chap|abs|abb|kap|tab|es|ecc|etc|bzw|usw|incl|excl|resp|ed|vol|min|max|phd|[bm]sc|dept|est|tel|al)|(?:S|Z|ll?)(?=\.\s+\d))\."
    r"(?=\s+(?:[a-zà-ÿ(\d]|Xqx|[IVXLC]{2,}\b|[VX]\b))"
)
_DEGREE = re.compile(r"\b(?:Ph\. ?D|[BM]\. ?(?:Sc|A)|[BM]\. ?Eng)(?=\.)")
_ORDINAL = re.compile(  # "am 3. Mai", "die 2. Auflage"
    r"\b(\d{1,2})\.(?=\s+(?:Jan|Feb|März|Mär|Apr|Mai|Jun|Jul|Aug|Sep|Okt|Nov|Dez|Jahr|Auflage|Ausgabe|Kapitel|Band|Welt|Zeile))"
)
_SPACED_ABBREVIATION = re.compile(
    r"\b(?:z\. ?B|d\. ?h|u\. ?a|o\. ?ä|u\. ?U|s\. ?o|v\. ?a|n\. ?Chr|v\. ?Chr|i\. ?e|e\. ?g|p\. ?ej|p\. ?es|ad es"
    r"|por ej|p\. ?ex|par ex|c\.-à-d"
    r"|EE\. ?UU(?=\.\s+(?-i:[a-zà-ÿ(\d]))|(?<!\w)[^\W\d](?:\.[^\W\d]){2,}(?=\.\s+(?-i:[a-zà-ÿ(\d])))\.",
    re.I,
)
# "Let us follow plan B. Which is that?" ends there, "ask Mr B. Which" hardly occurs: a small word stands before.
_LETTER_ENDS = re.compile(
    r"(?<=[a-z]\s)([A-Z]\.)[ \t]+(?=(?:I|It|Its|The|This|That|These|Those|There|They|He|She|We|You|Your|My"
    r"|What|Which|Whose|Who|When|Where|Why|How|Is|Are|Was|Were|Do|Does|Did|Has|Have|Can|Could|Should|Would|Will"
    r"|May|If|But|So|Or|Please)\b)"
)
_HESITATION = re.compile(r"\b(hm+|um+|uh+|er+|ah|oh|well|wait|so|ok(?:ay)?)\s*(?:\.{2,}|…)(?=\s)", re.I)
# A smile between two sentences stands for the stop that people leave out before it.
_SMILE = re.compile(
    r"([.?!])?\s*(?::-?[)(DP]|;-?\)|[\U0001f600-\U0001f64f\U0001f900-\U0001f9ff☺])(?=\s+[A-ZÀ-Þ¿¡][^A-Z]|\s*$)"
)
_MARKS = str.maketrans(
    dict.fromkeys("؟？\u037e⁇‽⁈⁉፧", "?") | dict.fromkeys("।॥۔．｡。", ".") | dict.fromkeys("*^|\\{}$", " ") | {"！": "!"}
)
_LABEL_BRACKETS = re.compile(r"(?<!\w)\(?\w{1,5}\)")
_HIDDEN = str.maketrans("()", "⦗⦘")
_SHOWN = str.maketrans("⦗⦘", "()")
_OUTER = "([{\"'<«“„‘¿¡"
_CLOSING = ")]}\"'>»”’.,;:!?…"

_lock = threading.Lock()


def read_json(text: str) -> dict[str, Any] | list[Any] | None:
    """The object or array that `text` is, or None if it is anything else.

    Strict where Python is not: NaN and Infinity are no JSON, and a repeated key would mean two different things to two
    readers. A nesting that no question needs counts as not JSON.
    """
    text = text.strip(" \t\r\n")
    if text[:1] not in ("{", "[") or text[-1:] not in ("}", "]"):
        return None

    def constant(name: str) -> Any:
        raise ValueError(name)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            raise ValueError("repeated key")
        return value

    try:
        value = json.loads(text, parse_constant=constant, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return None
    return value if _depth(value) <= MAX_JSON_DEPTH else None


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def strings_of(value: Any) -> list[str]:
    """The texts in a JSON value; a key that is an option's label stays before its text, other keys are no prose."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in strings_of(item)]
    if not isinstance(value, dict):
        return []
    found = []
    for key, item in value.items():
        label = f"{key}) " if re.fullmatch(LABEL, key) else ""
        found += [label + text for text in strings_of(item)]
    return found


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’]\w+)*", text)


def num_unspaced(text: str) -> int:
    """Letters of scripts that write no spaces between words (Chinese, Japanese, Thai): two are taken for a word."""
    return sum("\u0e00" <= sign <= "\u0eff" or "\u3040" <= sign <= "\u9fff" for sign in text)


def _mask_token(match: re.Match[str]) -> str:
    token = match.group()
    bare = token.lstrip(_OUTER)
    before = token[: len(token) - len(bare)]
    core = bare if re.fullmatch(r"[\w.:]+\([^()]*\)", bare) else bare.rstrip(_CLOSING)
    after = bare[len(core) :]
    if (
        not re.search(r"\w", core)
        or _INITIALS.fullmatch(core)
        or not (len(core) > MAX_WORD_CHARS or _CODE_TOKEN.match(core))
    ):
        return token
    return before + PLACEHOLDER + after


def _mask_quotation(match: re.Match[str]) -> str:
    ends = re.search(r"[.?!]$", match.group(match.lastindex or 0).strip())
    following = match.string[match.end() :].lstrip()
    return PLACEHOLDER + (ends.group() if ends and (not following or following[0].isupper()) else "")


def _mask_block(match: re.Match[str]) -> str:
    """A gap, unless a sentence goes on behind the block."""
    before, after = match.string[: match.start()].rstrip(), match.string[match.end() :].lstrip()
    goes_on = after[:1].islower() and before[-1:] not in (".", "?", "!")
    return PLACEHOLDER if "\n" not in match.group() else CONTINUED if goes_on else "\n\n"


def _mask(text: str, with_quotations: bool) -> str:
    text = re.sub(rf"\s*{CONTINUED}\s*", " ", BLOCK.sub(_mask_block, text))
    text = re.sub(rf"`({LABEL})`(?=\s?[).:])", r"\1", text)
    text = _ADDRESS.sub(PLACEHOLDER, _CODE_SPAN.sub(PLACEHOLDER, text))
    text = re.sub(r"\S+", _mask_token, text)
    quoted = sum(len(match.group()) for match in _QUOTATION.finditer(text))
    # A quotation inside a question is not the agent's own words; a question that is mostly quotation is.
    if not with_quotations and quoted <= 2 * (len(text) - quoted):
        text = _QUOTATION.sub(_mask_quotation, text)
    text = _SMILE.sub(lambda match: match.group(1) or ".", text)
    text = text.translate(_MARKS)
    text = re.sub(r"(?<=[\u0370-\u03ff]);", "?", text)
    text = re.sub(r"[?!]*\?[?!]*", "?", text)
    text = re.sub(r"!{2,}", "!", text)
    text = _LETTER_ENDS.sub("\\1\n\n", _HESITATION.sub(r"\1,", text))
    text = re.sub(r"(?:\.{2,}|…)(?=\s+[^\W\dA-ZÀ-Þ])", ",", text)  # "I tried... and failed" goes on
    text = re.sub(r"(?:\.{2,}|…)", ".", text)
    text = re.sub(r"([?!])(?=[^\W\d])", r"\1 ", text)
    text = re.sub(r"(?<! ) +([?!.,])(?=\s|$)", r"\1", text)
    for abbreviation in (_SPACED_ABBREVIATION, _DEGREE):
        text = abbreviation.sub(lambda match: match.group().replace(".", "").replace(" ", ""), text)
    return _ABBREVIATION.sub(r"\1", _TITLE.sub(r"\1", _ORDINAL.sub(r"\1", text)))


def _paragraphs(text: str) -> list[str]:
    """The lines of `text` put together again where they were only wrapped, or where a list goes on with a sentence."""
    paragraphs: list[str] = []
    previous = ""
    for line in text.splitlines():
        stripped = line.strip()
        wrapped = len(previous) >= 60 or not (stripped[:1].isupper() or stripped[:1] in "¿¡#")
        if previous and stripped and (_LIST_MARK.match(line) or wrapped) and not previous.startswith("#"):
            paragraphs[-1] += " " + stripped
        elif stripped:
            paragraphs.append(stripped)
        previous = stripped
    return paragraphs


def _with_inline_labels(text: str) -> str:
    """`text` with "1." written as "1)" where options stand inside one sentence: "is it 1. the disk 2. the clock?"."""
    for start, end in reversed(find_options(text)):
        before = text[:start].rstrip(" \t")
        if before and before[-1] not in ".?!\n":
            text = text[:start] + text[start:end].replace(".", ")") + text[end:]
    return text


def _hide(paragraph: str) -> str:
    """`paragraph` with the brackets of labels hidden: pysbd's own reading of lists takes minutes on a hostile one."""
    return _LABEL_BRACKETS.sub(lambda match: match.group().translate(_HIDDEN), paragraph)


def _unhide(part: str) -> str:
    return part.translate(_SHOWN)


@functools.cache
def _segmenter() -> pysbd.Segmenter:
    return pysbd.Segmenter(language="en", clean=False)


@functools.lru_cache(maxsize=2048)
def prose(question: str, with_quotations: bool = False) -> str:
    """What the agent says in its own words: code, names and quotations masked, the texts of a JSON value joined."""
    value = read_json(question)
    text = question if value is None else "\n\n".join(strings_of(value))
    return _mask(text[:MAX_CHARS].replace("\r\n", "\n"), with_quotations)


@functools.lru_cache(maxsize=2048)
def sentences(text: str) -> tuple[str, ...]:
    """The sentences of `text`, which `prose` gave; a list of options without an end belongs to what it follows."""
    found: list[str] = []
    for paragraph in _paragraphs(_with_inline_labels(text)):
        with _lock:  # pysbd keeps the text it works on in the segmenter
            parts = [_unhide(str(part)).strip() for part in _segmenter().segment(_hide(paragraph))]
        for part in parts:
            if not re.search(r"\w", part):
                continue
            if found and _LIST_MARK.match(part) and not re.search(r"[.?!:]\W*$", part):
                found[-1] += " " + part
            else:
                found.append(part)
    return tuple(found)


@functools.lru_cache(maxsize=2048)
def languages(sentence: str) -> tuple[tuple[str, float], ...]:
    """`rank_languages` of one sentence that `sentences` gave: what is masked in it is in no language."""
    return rank_languages(sentence.replace(PLACEHOLDER, " "))
