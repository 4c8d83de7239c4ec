"""The names that belong to a row's solution, and whether a text gives one of them away.

Names come from the fields of `GOLD_FIELDS`, from a patch, and from what an environment says its users know
(`Environment.sources`). Names in other case or spacing count, and spelled ones; what is an ordinary word at the same
time ("clear", "run") counts only where it is written as code. The checks are in `checks.py`.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ppp.vaguenizer.specifics import PRODUCTS

# Field of a row or its payload -> what stands in it.
GOLD_FIELDS: Mapping[str, str] = {
    "gold_functions": "code",
    "edited_functions": "code",
    "added_functions": "code",
    "edited_classes": "code",
    "module_level": "code",
    "gold_files": "code",
    "patch": "patch",
    "gold_patch": "patch",
    "answer": "text",
    "answer_aliases": "text",
    "gold_titles": "text",
    "gold_docs": "documents",
    "evidence_docs": "documents",
}
DOCUMENT_FIELDS = ("evidence_docids", "gold_docids")  # ids that a corpus turns into titles

MIN_TELLING_CHARS = 10  # a name of one part and this length is hardly an ordinary word
MIN_TEXT_CHARS = 2
_NO_ANSWERS = frozenset({"yes", "no", "true", "false", "none", "unknown", "both", "neither"})
_COMMON_FILES = frozenset(
    {"__init__", "__main__", "setup", "conftest", "main", "index", "utils", "core", "base", "test"}
)
_PARTS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_PATCH_FILE = re.compile(r"^(?:---|\+\+\+) [ab]/(\S+)", re.MULTILINE)
_PATCH_DEFINITION = re.compile(r"^[-+][ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)", re.MULTILINE)
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")


@dataclass(frozen=True, slots=True)
class GoldName:
    """One name of the solution.

    Attributes:
        text: as the solution has it, for reports.
        pattern: what gives it away in a text that `plain` evened out, case kept.
    """

    text: str
    pattern: re.Pattern[str]


def plain(text: str) -> str:
    """`text` without invisible signs and accents, compatibility forms replaced; what names are looked for in."""
    decomposed = unicodedata.normalize("NFKD", _INVISIBLE.sub("", text))
    return "".join(sign for sign in decomposed if not unicodedata.combining(sign))


def find_gold(text: str, names: Sequence[GoldName]) -> list[str]:
    """What in `text` gives a name away, as it is written there; each once, in the order of `names`."""
    flat = plain(text)
    found = (match.group() for name in names for match in [name.pattern.search(flat)] if match)
    return list(dict.fromkeys(found))


def gold_names(
    row: Mapping[str, Any], *, titles: Mapping[str, str] | None = None, items: Sequence[str] = ()
) -> tuple[GoldName, ...]:
    """The names of a row's solution.

    Args:
        row: a task row, an issue or a search question.
        titles: document id -> title, for rows that name their gold documents by id.
        items: more of them, from `Environment.sources`.
    """
    values = dict(row)
    for part in ("payload", "evaluation"):  # the fix itself stands apart from what is played, see `ppp/swe/rows.py`
        values |= inner if isinstance(inner := values.get(part), Mapping) else {}
    repo = str(values.get("repo") or "").casefold()
    names: dict[str, GoldName] = {}
    for field, kind in GOLD_FIELDS.items():
        for text in _texts(values.get(field)):
            if kind == "patch":
                codes = [*_PATCH_FILE.findall(text), *_PATCH_DEFINITION.findall(text)]
                found = [name for code in codes for name in _code_names(code, repo)]
            else:
                found = list(_code_names(text, repo)) if kind == "code" else list(_text_names(text))
            names.update((name.pattern.pattern, name) for name in found)
    known = titles or {}
    documents = [known[docid] for field in DOCUMENT_FIELDS for docid in _texts(values.get(field)) if docid in known]
    for title in documents:
        names.update((name.pattern.pattern, name) for name in _text_names(title))
    for item in items:
        is_code = re.fullmatch(r"[\w./:\\-]+", item) is not None and re.search(r"[_/.:]|[a-z][A-Z]", item) is not None
        found = list(_code_names(item, repo) if is_code else _text_names(item))
        names.update((name.pattern.pattern, name) for name in found)
    return tuple(names.values())


def _texts(value: Any) -> Iterator[str]:
    """The texts in a field: itself, those of a list, or the titles of documents."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, Mapping):
        yield from _texts(value.get("title"))
    elif isinstance(value, Sequence):
        for part in value:
            yield from _texts(part)


def _code_names(code: str, repo: str) -> Iterator[GoldName]:
    """The names in "path.py:Class.method", in a path, or in a plain identifier."""
    path, _, qualified = code.partition(":") if ":" in code else (code, "", "")
    if not qualified and not re.search(r"[/\\]|\.\w{1,5}\Z", path):
        path, qualified = "", code
    if path:
        yield from _path_names(path)
    for name in re.split(r"[.:]+", qualified):
        pattern = _identifier_pattern(name, repo)
        if pattern is not None:
            yield GoldName(name, pattern)


def _path_names(path: str) -> Iterator[GoldName]:
    """A path as it is, its end with one folder, its file, its stem if that is telling, and as a dotted module."""
    path = posixpath.normpath(path.lstrip("/"))
    folders, file = posixpath.split(path)
    stem = file.partition(".")[0]
    if stem not in _COMMON_FILES:
        yield GoldName(path, re.compile(rf"(?<![\w]){re.escape(file)}\b", re.I))
    elif folders:
        yield GoldName(
            path, re.compile(rf"(?<!\w){re.escape(posixpath.basename(folders))}[/\\]{re.escape(file)}\b", re.I)
        )
    if len(_PARTS.findall(stem)) > 1 and stem not in _COMMON_FILES:
        # Not as separate words: the extension for inheritance diagrams is about nothing else than those.
        joined = "[_.-]?".join(map(re.escape, _PARTS.findall(stem)))
        yield GoldName(stem, re.compile(rf"(?<![^\W_]){joined}(?![^\W_])", re.I))
    module = [part for part in [*folders.split("/"), "" if stem == "__init__" else stem] if part]
    if len(module) > 1:
        # Without the outermost folder too: `src/_pytest/logging.py` is imported as `_pytest.logging`.
        tail = r"\.".join(map(re.escape, module[-2:]))
        yield GoldName(".".join(module), re.compile(rf"(?<![^\W_]){tail}\b", re.I))


def _identifier_pattern(name: str, repo: str) -> re.Pattern[str] | None:
    """What gives an identifier away; None for a name that nothing can be told from."""
    parts = _PARTS.findall(name)
    bare = "".join(parts)
    if not bare or len(bare) < 2:
        return None
    if name.startswith("__") and name.endswith("__"):
        return re.compile(re.escape(name))
    if len(parts) > 1 or len(bare) >= MIN_TELLING_CHARS:
        return _spelled(bare)
    word = re.escape(name)
    forms = [
        rf"`[^`\n]*(?<!\w){word}(?!\w)[^`\n]*`",
        rf"(?<!\w){word}\((?!s\))",
        rf"(?<=\w\.){word}(?!\w)",
        rf"(?<!\w){word}\s+(?:function|method|class|helper)\b",
        rf"\b(?:function|method|class|helper)\s+(?:named\s+|called\s+)?[\"']?{word}(?!\w)",
    ]
    if name.startswith("_"):
        forms.append(rf"(?<!\w){word}(?!\w)")
    elif name[0].isupper() and bare.casefold() not in PRODUCTS and bare.casefold() not in repo:
        forms.append(rf"(?<=[a-z,] ){word}(?!\w)")  # capitalised in mid-sentence: the class, not the word
    return re.compile("|".join(forms))


@lru_cache(maxsize=4096)
def _spelled(name: str) -> re.Pattern[str]:
    """A name in any case, with anything but letters and digits between its signs: `getName`, "get name", g-e-t..."""
    signs = [re.escape(sign) for sign in name if sign.isalnum()]
    return re.compile(r"(?<![^\W_])" + r"[\W_]{0,3}".join(signs) + r"(?:s|es)?(?![^\W_])", re.I)


def _text_names(text: str) -> Iterator[GoldName]:
    """An answer or a title, at the borders of words; "yes" and its like tell nothing.

    Several words count in any case. One word with a capital needs it: "Brand" is a play, "brand" a word.
    """
    words = re.findall(r"\w+", plain(re.sub(r"\s\([^()]*\)\Z", "", text)))
    if len(words) > 1 and words[0].casefold() in ("the", "a", "an"):
        words = words[1:]
    joined = "".join(words)
    if len(joined) < MIN_TEXT_CHARS or joined.casefold() in _NO_ANSWERS:
        return
    flags = re.I if len(words) > 1 or joined == joined.casefold() else re.NOFLAG
    between = r"[\W_]{1,3}"
    yield GoldName(text, re.compile(r"(?<!\w)" + between.join(map(re.escape, words)) + r"(?!\w)", flags))
