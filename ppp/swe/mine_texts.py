"""Issue texts out of commits: messages without their trailers, entries of changelogs, titles of pull requests.

Nothing is rewritten by a model here: a line is kept as its author wrote it, or goes. Also here: which subjects say
nothing, and which texts say the same. What becomes of a commit with such a text is decided in `mine.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ppp.swe.patches import FileChange

MAX_ENTRIES = 3  # more paragraphs than that are a changelog put together, not an entry of this commit
MAX_ENTRY_WORDS = 250
COVERED = 0.75  # share of an entry's words that the message has, from which on it says nothing more
SAME = 0.7  # share of the pairs of words that two texts have in common, from which on they say the same
_WORD = r"(?:issues?|pr|pull requests?|bug|bpo|ticket|gh|merge request)"
_REFERENCE = rf"(?:{_WORD}[ \t]*[-:#!]?[ \t]*#?\d+|(?:\w[\w.-]*/[\w.-]+)?[#!]\d{{2,}})"
_REFERENCES = rf"{_REFERENCE}(?:[ \t]*(?:,|&|and|/|;)[ \t]*{_REFERENCE})*"
_FIX = r"(?:fix(?:e[sd])?|clos(?:e[sd]?|ing)|resolv(?:e[sd]?|ing))"
_SEE = (
    rf"(?:{_FIX}|refs?|references?|see(?: also)?|related(?: to)?|part of|follow[- ]?up (?:to|of)|backport(?: of)?|"
    r"re|per|from|cf\.?)"
)
_ISSUE_URL = r"<?https?://\S*/(?:issues?|pull(?:-requests?)?|merge_requests|commits?|ticket|bugs?)/\S*"
_THANKS = r"thanks|thank you|patch|contributed|reported|initial patch|pull request|original patch|courtesy"


def _any_of(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.I | re.M)


# What is cut out of messages and entries, in this order; group 1 stays.
NOISE: Mapping[str, re.Pattern[str]] = {
    "import": _any_of(r"^--HG--$(?s:.*)|^\[svn r\d+\][ \t]*"),
    "trailer": _any_of(
        r"^[ \t]*(?:[a-z]+(?:-[a-z]+)*-(?:by|to|on)|cc|change-id|git-svn-id|git-hg-rev|pr-url|branch)[ \t]*:.*$",
        r"^[ \t]*(?:piperorigin-revid|differential revision)[ \t]*:.*$",
        rf"^[ \t]*(?:{_SEE}|bug|issues?|ticket)[ \t]*:[ \t]*(?:{_REFERENCES}|{_ISSUE_URL}|[0-9a-f]{{7,40}}\b).*$",
    ),
    "cherry-pick": _any_of(r"^[ \t]*\(?(?:cherry[- ]?picked|backported|ported|adapted) from\b.*$"),
    "backport": _any_of(
        r"^[ \t]*(?:\[(?:backport[^\]\n]*|v?\d+(?:\.\w+)+)\][ \t:]*)+",
        r"^[ \t]*backport (?:of )?(?:pr )?#?\d+[^:\n]*:[ \t]*",
    ),
    "ci": _any_of(r"\[(?:skip[ -]ci|ci[ -]skip|no ci|skip actions)\]", r"^[ \t]*for more information, see \S+$"),
    "url": _any_of(rf"(?:\b{_SEE}:?[ \t]+)?{_ISSUE_URL}"),
    "bracketed": _any_of(rf"[ \t]*[(\[][ \t]*(?:{_SEE}:?[ \t]*)?{_REFERENCES}[ \t]*[)\]]"),
    "leading": _any_of(
        rf"^([ \t]*(?:[*-][ \t]+)?)(?:{_SEE}[ \t]*)?{_REFERENCES}[ \t]*(?:[:,.-]+[ \t]*|$)",
        rf"^{_FIX}[ \t]+#?\d{{3,}}[ \t]*[:,.-]+[ \t]*",
    ),
    "fixing": _any_of(
        rf"[ \t]*[,;-]?[ \t]*\b{_SEE}:?[ \t]+{_REFERENCES}\b", rf"^[ \t]*{_FIX}\b[^.\n]{{0,20}}#\d+[ \t]*\.?$"
    ),
    "rst": _any_of(r"[ \t]*\(?:(?:issue|pull|pr|gh|ghpull|ghissue|user|bug|ticket):`[^`]*`\)?:?"),
    "bare": _any_of(r"[ \t]*(?<![\w&])#\d{2,}\b"),
    "mention": _any_of(
        rf"[ \t]*\(?\b(?:{_THANKS})(?: to| by| of| from| goes to)[ \t]+[`@*:A-Z][^.\n]{{0,80}}(?:\.(?=\s|\Z)|\)|$)",
        r"^[ \t]*-?-[ \t]*by[ \t]+[`@*:A-Z][^.\n]{0,80}$",
    ),
}

_VERB = (
    r"(?:add|fix|update|improve|more|skip|extend|adjust|correct|enhance|mark|split|adapt|include|write|convert|use|"
    r"new|remove)\w*"
)
_TEST = r"(?:unit ?)?(?:tests?|test ?cases?|testsuite|test suite|coverage)"
_DOCS = r"(?:docs?|documentation|doc ?strings?|change ?log|changes|news|authors|readme|copyright|comments?)"
_REMARK = (
    r"(?:comments?|feedback|suggestions?|nits?|fix(?:es)?|fix-?ups?|changes?|tweaks?|updates?|adjustments?|"
    r"improvements?)"
)
_LINTER = r"(?:flake8|pep[- ]?8|isort|ruff|pylint|pyflakes|pyupgrade|lint(?:ing|er)?|reformat\w*|blacken\w*)"

# What a subject is about, where that makes no issue.
TRIVIAL: Mapping[str, re.Pattern[str]] = {
    "typo": _any_of(r"\b(typos?|spelling|misspell\w*|grammar|grammatical)\b"),
    "version": _any_of(
        r"^(bump|pin|upgrade|releas(e|ing)\b|set version|version\b|(update|increase|change) (the )?version)",
        r"^prepar\w+\W+(for\W+)?(the\W+)?(next\W+)?(release|version|\d)|^start\w*\W.*development|^v?\d+(\.\d+)+\S*$",
        r"^(update|upgrade)\b.*\b(dependenc\w+|requirements|pre-commit|to v?\d+(\.\d+)+$)|pre-commit|\bdependabot\b",
    ),
    "formatting": _any_of(
        rf"\b{_LINTER}\b|^(run |apply |use )?black\b|\bwhite ?space (fix|clean|only)",
        r"^(fix |clean ?up )?(code ?)?(style|format(ting)?|whitespaces?|indentation|line (length|ends?|endings?))\W*$",
    ),
    "review": _any_of(
        r"^(fixup|squash|amend)!|^wip\b|^(pr|code)?[ -]?review\b",
        rf"^(address|apply|incorporate|integrate|more|minor|small|some|post)?\W*(pr|code|review|peer)?\W*{_REMARK}"
        r"(\W+(from|by|after|in|of|for)\b.*(review|pr|comments?|feedback)\b.*)?\W*$",
    ),
    "tests": _any_of(
        r"^(unit )?tests?\s*[:(]|^tests?\W*$",
        rf"^{_VERB}\s+([\w-]+\s+){{0,3}}?{_TEST}(\s+(for|of|in|on|to|with)\b.*)?\W*$",
    ),
    "documentation": _any_of(
        rf"^{_DOCS}\b\s*[:(]|^(start )?document(ing)?\b",
        rf"^(update|add|fix|improve|correct|polish|rewrite)\w*\s+((the|some|missing)\s+)*{_DOCS}\b",
    ),
    "translation": _any_of(r"^update\w*\W+(the\W+)?(message catalogs?|(\w+ )?translations?)\b|^translations?\b"),
    "merge": _any_of(r"^merged?\b(?! sort)"),
    "housekeeping": _any_of(
        r"^(ci|build|chore|tox|travis|appveyor|github actions|setup\.py|packaging)\b\s*(\([^)]*\))?\s*:",
        r"^initial (commit|import)|^regen(erate)?\b|^update \S+\.\w{1,4}\W*$",
    ),
}
_TYPES = r"(?:type[- ]?(?:hints?|annotations?|checking)|typing|annotations?|f-strings?|mypy|pathlib)"
_UNUSED = (
    r"(?:unused|dead|redundant|unnecessary|unneeded|obsolete|duplicated?|needless|leftover|py2|python ?2|compat\w*|six)"
)
REFACTORING = _any_of(
    r"\brefactor(s|ed|ing|ings)?\b",
    r"^\[?(internal )?(clean(ing|ed)?[- ]?ups?|restructur\w*|reorgani[sz]\w*|simplif\w*|moderni[sz]\w*|cosmetic\w*)\b",
    r"^\[?(tidy\w*|style|dedup\w*|typing|mypy|perf|performance)\b",
    r"^(\w+: )?(factor\w*[- ]out|inline|extract|renam(e|es|ing)|mov(e|es|ing)|split(s|ting)?( up)?|unify|cleanup)\b",
    rf"^(add|use|more|introduce|complete|enable|apply)\w*\s+(\w+\s+){{0,2}}?{_TYPES}\b",
    rf"^(remove|drop|delete)\w*\s+(\w+\s+){{0,2}}?{_UNUSED}\b",
)
_REVERT = re.compile(r"^(revert|reverted|reverting|back(ed)? ?out|undo)\b|^this reverts commit\b", re.I | re.M)
_PULL_REQUEST = re.compile(
    r"\AMerge (?:pull request|PR) [#!]?(?P<hub>\d+)\b(?:[ \t]+from \S+)?:?|"
    r"\AMerged in \S+ \(pull request #(?P<bucket>\d+)\)|"
    r"\AMerge branch '[^'\n]*'(?: into \S+)?(?=\n(?s:.)*^See merge request \S*!(?P<lab>\d+)$)",
    re.M,
)
_NUMBERED = re.compile(r"\(#(\d+)\)[ \t]*\Z")
_NEWS = r"(?:change[-_]?logs?|changes|news ?(?:fragments?)?|release[-_]?notes?|what'?s?[-_ ]?new\w*|history)"
_CHANGELOG = _any_of(
    rf"(?:^|/){_NEWS}(?:\.d)?/[^/]+(?:/[^/]+)?\Z", rf"(?:^|/){_NEWS}(?:[-_.][\w.-]+?)?(?:\.(?:rst|md|txt))?\Z"
)
_BULLET = re.compile(r"(?:[*+-]|\d+[.)])[ \t]+")
_RULE = re.compile(r"([=\-~^#*+'\"`.])\1{2,}\s*")
_HEADING = re.compile(
    r"#+ |(?:version|release)\b.*\d|v?\d+(?:\.\w+)+\b[^a-z]*(?:\(.*\))?\Z|\.\. |:\w+:(?!`)|\[unreleased\]", re.I
)


def is_changelog(path: str) -> bool:
    """Whether people look for what has changed in this file."""
    return _CHANGELOG.search(path) is not None and not path.endswith((".py", ".pyi"))


def without_noise(text: str) -> str:
    """A message without trailers, references to other places, and thanks; blank lines at most one in a row."""
    for pattern in NOISE.values():
        text = pattern.sub(_kept, text)
    lines = [re.sub(r"(?<=\S)[ \t]{2,}(?=\S)", " ", line).rstrip() for line in text.split("\n")]
    lines = [line for line in lines if line == "" or re.search(r"\w", line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip().lstrip(":;,. ").rstrip(" ,;-")


def _kept(match: re.Match[str]) -> str:
    return match[1] or "" if match.re.groups else ""


def pull_request(message: str) -> tuple[str, str] | None:
    """The number of the pull request that a merge brings in, and its title with what follows; None for other merges."""
    match = _PULL_REQUEST.search(message)
    if match is not None:
        return next(filter(None, match.groups())), message[match.end() :].strip()
    subject = message.partition("\n")[0]
    numbered = _NUMBERED.search(subject)
    return (numbered[1], message) if numbered is not None else None


def referred(message: str) -> list[str]:
    """Numbers of issues and pull requests in a message."""
    return re.findall(r"(?<![\w&])(?:#|gh-|pull/)(\d+)\b", message)


def is_revert(message: str) -> bool:
    """Whether the message says that a change is taken back."""
    return _REVERT.search(message) is not None


def is_trivial(subject: str) -> bool:
    """Whether a subject is about nothing that somebody would open an issue for."""
    bare = re.sub(r"^\W+", "", subject)
    return any(pattern.search(bare) for pattern in TRIVIAL.values())


def is_refactoring(subject: str) -> bool:
    """Whether a subject promises that nothing changes for users."""
    return REFACTORING.search(subject) is not None


def changelog_entry(changes: Iterable[FileChange]) -> str:
    """What a patch adds to changelogs, as paragraphs; "" for nothing, or for more than an entry."""
    paragraphs: list[list[str]] = []
    for change in changes:
        if not is_changelog(change.path) or change.new_path is None:
            continue
        for hunk in change.hunks:
            removed = {_words_of(text) for kind, text in hunk.lines if kind == "-"}
            added = [text for kind, text in hunk.lines if kind == "+" and _words_of(text) not in removed]
            paragraphs += _paragraphs(added)
    texts = [without_noise(" ".join(lines)) for lines in paragraphs]
    texts = [text for text in texts if len(text.split()) > 2]
    if len(texts) > MAX_ENTRIES or sum(len(text.split()) for text in texts) > MAX_ENTRY_WORDS:
        return ""
    return "\n\n".join(texts)


def _paragraphs(lines: Sequence[str]) -> list[list[str]]:
    """Bullets and blocks of lines, headings and rules left out."""
    found: list[list[str]] = [[]]
    for number, line in enumerate(lines):
        text = line.strip()
        is_underlined = number + 1 < len(lines) and _RULE.fullmatch(lines[number + 1].strip()) is not None
        if not text or is_underlined or _RULE.fullmatch(text) or _HEADING.match(text):
            found.append([])
            continue
        bullet = _BULLET.match(text)
        if bullet is not None:
            found.append([])
            text = text[bullet.end() :]
        found[-1].append(text)
    return [part for part in found if part]


def issue_text(message: str, title: str, entry: str) -> tuple[str, list[str]]:
    """The text of an issue, and which of "message", "pull_request" and "changelog" it is made of.

    The message comes first. A pull request's title and a changelog's entry follow where they say more than it does.
    """
    parts: list[str] = []
    used: list[str] = []
    entries = entry.split("\n\n")
    described = _without_steps(without_noise(message))
    if described.endswith("…") and any(text.startswith(described[:-1].rstrip()) for text in entries):
        described = ""  # a title that was cut
    texts = [("message", described), ("pull_request", without_noise(title)), *(("changelog", text) for text in entries)]
    for name, text in texts:
        known, words = set(_words_of(" ".join(parts))), set(_words_of(text))
        if words and (not parts or len(words & known) < COVERED * len(words)):
            parts.append(text)
            used.append(name)
    return "\n\n".join(parts), list(dict.fromkeys(used))


def _without_steps(text: str) -> str:
    """A message without what tools put there: the list of commits of a squash, and a title once more that was cut."""
    subject, _, body = text.partition("\n")
    body = body.strip("\n")
    if subject.endswith("…") and body.startswith(subject[:-1]):
        subject, body = "", body
    paragraphs = body.split("\n\n")
    steps = [part for part in paragraphs if re.match(r"\* \S", part) and "\n" not in part]
    if len(steps) > 1:
        paragraphs = [part for part in paragraphs if part not in steps]
    return "\n\n".join(part for part in (subject, *paragraphs) if part)


def _words_of(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.casefold()))


@dataclass
class Seen:
    """The texts so far, by pairs of neighbouring words with numbers evened out; finds one that says the same again."""

    def __post_init__(self) -> None:
        self._by_pair: dict[tuple[str, str], list[int]] = {}
        self._sizes: list[int] = []

    def add(self, text: str) -> bool:
        """Whether `text` says what an earlier one said; if it does not, it is remembered."""
        words = ["0" if word.isdigit() else word for word in _words_of(text)]
        pairs = set(zip(["", *words], [*words, ""], strict=True))
        shared = Counter(number for pair in pairs for number in self._by_pair.get(pair, ()))
        if any(num >= SAME * (len(pairs) + self._sizes[number] - num) for number, num in shared.items()):
            return True
        for pair in pairs:
            self._by_pair.setdefault(pair, []).append(len(self._sizes))
        self._sizes.append(len(pairs))
        return False
