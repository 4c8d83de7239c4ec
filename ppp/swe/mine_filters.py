"""Which commits become a task: the options, what is known of a commit at each stage, and the table of filters.

Nothing is read from a repository here; `Miner` in `mine.py` fills in drafts and asks the filters.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from ppp.checks import check_at_least, refuse
from ppp.swe.labels import RULES, SUFFIXES, Labels
from ppp.swe.mine_history import Commit
from ppp.swe.mine_texts import is_refactoring, is_revert, is_trivial, pull_request, without_noise

MERGES = ("join", "drop")
LEAKS = ("keep", "mask", "drop")
TEST_PATTERN = r"(^|/)tests?/|^testing/|(^|/)test_[^/]*\.py$|_tests?\.py$|(^|/)(conftest|tests)\.py$"
# Python that is not what a project is for; it can be named as a source folder all the same.
NO_SOURCE = re.compile(
    r"^(docs?|examples?|benchmarks?|asv_bench|scripts?|tools?|utils|ci|\.\w+)/|(^|/)(_?vendor(ed)?|third_party|extern)/|"
    r"^(setup|noxfile|conf|tasks|fabfile)\.py$",
)
_BOT = re.compile(
    r"\[bot\]|\b(dependabot|renovate|pre-commit-ci|github-actions?|greenkeeper|pyup-bot|weblate|mergify|allcontributors)\b|"
    r"[-_ .]bot\b|\bbot@|^bot\b|\bjenkins\b|\btravis ci\b|\bautomation\b",
    re.I,
)


@dataclass(frozen=True)
class MineOptions:
    """What becomes a task.

    Attributes:
        ref: branch, tag or commit whose history is mined.
        since, until: ISO dates in UTC; commits made from the first one on and before the second one.
        rule: a key of `labels.RULES`.
        merges: "join": a merged pull request is one task and its commits none; "drop": merges are none.
        leaks: what to do with a text that names every function to find.
        min_words: of the text, without trailers and references.
        source_folders: where sources are; none: everywhere but in tests, documentation and scripts.
        test_pattern: regular expression that the paths of tests match somewhere.
        without: files of issues or task rows whose fixes must not become tasks, such as those of a test set.
        max_tasks: drawn with `seed` from all that could be; None for all of them.
    """

    ref: str = "HEAD"
    since: str | None = None
    until: str | None = None
    rule: str = "edited"
    merges: str = "join"
    leaks: str = "keep"
    min_words: int = 6
    max_files: int = 5
    max_functions: int = 8
    max_lines: int = 250
    source_folders: tuple[str, ...] = ()
    test_pattern: str = TEST_PATTERN
    without: tuple[str, ...] = ()
    max_tasks: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("rule", tuple(RULES)), ("merges", MERGES), ("leaks", LEAKS)):
            if vars(self)[name] not in allowed:
                raise refuse(name, vars(self)[name], f"allowed: {', '.join(allowed)}")
        for name in ("min_words", "max_files", "max_functions", "max_lines"):
            check_at_least(name, vars(self)[name], 0 if name == "min_words" else 1)
        if self.max_tasks is not None:
            check_at_least("max_tasks", self.max_tasks, 1)
        for name in ("since", "until"):
            seconds(name, vars(self)[name])
        try:
            re.compile(self.test_pattern)
        except re.error as error:
            raise refuse("test_pattern", self.test_pattern, f"must be a regular expression ({error})") from error

    def is_test(self, path: str) -> bool:
        return re.search(self.test_pattern, path) is not None

    def is_source(self, path: str) -> bool:
        """Whether a path is one of Python that the project is made of."""
        if not path.endswith(SUFFIXES) or self.is_test(path):
            return False
        if self.source_folders:
            return any(path.startswith(f"{folder.strip('/')}/") for folder in self.source_folders)
        return NO_SOURCE.search(path) is None


def seconds(name: str, date: str | None) -> float | None:
    """An ISO date in seconds since 1970; UTC where it says nothing else.

    Raises:
        RecipeError: it is no date.
    """
    if date is None:
        return None
    try:
        moment = datetime.fromisoformat(date)
    except ValueError as error:
        raise refuse(name, date, "must be a date such as 2024-05-31") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@dataclass
class Draft:
    """A commit on its way to a task; what the later stages need is filled in on the way.

    Attributes:
        is_joined: it is the merge of a pull request, which is taken as one commit.
        is_part: a merge that is taken as one commit brought it in.
        title: of the pull request that it belongs to, or that its message names.
        text, text_from: what the issue says, see `issue_text`.
        is_known: its fix is one of those in `MineOptions.without`.
        named: for each function of the label, whether the text gives its name away.
        repeats: what it has in common with an earlier task: "text", "patch".
    """

    commit: Commit
    sources: list[str]
    tests: list[str]
    is_joined: bool = False
    is_part: bool = False
    title: str = ""
    text: str = ""
    text_from: list[str] = field(default_factory=list)
    patch: str = ""
    test_patch: str = ""
    num_lines: int = 0
    is_known: bool = False
    labels: Labels | None = None
    named: list[bool] = field(default_factory=list)
    repeats: set[str] = field(default_factory=set)

    @functools.cached_property
    def message(self) -> str:
        """What the author wrote; of a merge what stands below its first line."""
        found = pull_request(self.commit.message) if self.is_joined else None
        return self.commit.message if found is None else found[1]

    @functools.cached_property
    def subject(self) -> str:
        return without_noise(self.message.partition("\n")[0])


@dataclass(frozen=True, slots=True)
class Filter:
    """Takes commits away at `stage`, where `removes` says so; `words` say which those are."""

    stage: Literal["commit", "text", "label", "repeat"]
    words: str
    removes: Callable[[Draft, MineOptions], bool]


def _is_outside(draft: Draft, options: MineOptions) -> bool:
    since, until = seconds("since", options.since), seconds("until", options.until)
    time = draft.commit.time
    return (since is not None and time < since) or (until is not None and time >= until)


def labels_of(draft: Draft) -> Labels:
    assert draft.labels is not None
    return draft.labels


# In this order: a commit is counted at the first one that takes it away.
FILTERS: Mapping[str, Filter] = {
    "no_parent": Filter("commit", "first commits", lambda d, o: not d.commit.parents),
    "merge": Filter("commit", "merges of branches", lambda d, o: len(d.commit.parents) > 1 and not d.is_joined),
    "part": Filter("commit", "parts of a pull request, which is taken as a whole", lambda d, o: d.is_part),
    "period": Filter("commit", "made before since or after until", _is_outside),
    "bot": Filter("commit", "by bots", lambda d, o: _BOT.search(d.commit.author) is not None),
    "no_source": Filter("commit", "without a source file", lambda d, o: not d.sources),
    "no_test": Filter("commit", "without a test file", lambda d, o: not d.tests),
    "many_files": Filter("commit", "with more source files than max_files", lambda d, o: len(d.sources) > o.max_files),
    "revert": Filter("commit", "that take another one back", lambda d, o: is_revert(d.message)),
    "trivial": Filter("commit", "about typos, versions, formatting, ...", lambda d, o: is_trivial(d.subject)),
    "refactoring": Filter("commit", "that change no behaviour", lambda d, o: is_refactoring(d.subject)),
    "short": Filter("text", "with fewer words than min_words", lambda d, o: len(d.text.split()) < o.min_words),
    "many_lines": Filter("text", "with more lines than max_lines", lambda d, o: d.num_lines > o.max_lines),
    "without": Filter("text", "whose fix is in the files of --without", lambda d, o: d.is_known),
    "not_python": Filter("label", "with a file that Python cannot parse", lambda d, o: bool(labels_of(d).problems)),
    "no_label": Filter("label", "that edit no function", lambda d, o: not labels_of(d).functions),
    "many_functions": Filter(
        "label", "with more functions than max_functions", lambda d, o: len(labels_of(d).functions) > o.max_functions
    ),
    "leak": Filter("label", "whose text names every function", lambda d, o: o.leaks == "drop" and all(d.named)),
    "same_text": Filter("repeat", "whose text another task has, or nearly", lambda d, o: "text" in d.repeats),
    "same_patch": Filter("repeat", "whose fix another task has", lambda d, o: "patch" in d.repeats),
}
