"""From issues to labelled task rows, and to a train and a test set that share nothing.

Labels come with an issue or from its patch and the files at its base commit. An issue that cannot be used is named
with the reason, and the others go on. Reading is in `sources.py`; the files that are written, in `swe_cli.py`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppp.environments.source_tree import TreePathError, check_source, open_tree
from ppp.swe.labels import RULES, Labels, edited_functions
from ppp.swe.patches import PatchError, parse_patch
from ppp.swe.rows import EVALUATION, Repositories, find_repository, make_task_row
from ppp.swe.sources import Issue, Problem
from ppp.types import InfrastructureError, RecipeError

PROBLEM_KINDS: Mapping[str, str] = {
    "row": "malformed",
    "repository": "without a repository",
    "commit": "whose base commit cannot be read",
    "patch": "whose patch does not apply",
    "python": "with a file that is not valid Python",
}
LABEL_SOURCES = ("auto", "given", "patch")
# Part of a rule -> the field of an issue that holds it, where labels are given.
GIVEN_FIELDS = {"edited": "edited_functions", "added": "added_functions", "classes": "edited_classes"}

TaskRow = dict[str, Any]
ContentKeys = set[tuple[str, str]]


class _IssueError(Exception):
    """One issue cannot be used; `kind` is a key of `PROBLEM_KINDS`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class PrepareOptions:
    """How issues become tasks.

    Attributes:
        repositories: see `rows.find_repository`; None where every label is given.
        rule: a key of `labels.RULES`.
        labels: "given", "patch", or "auto": given where an issue has what the rule needs, else from the patch.
        keep_unlabelled: keep issues without a function, with an empty list.
        keep_vague: keep vague forms that came with the issues.
    """

    repositories: Repositories | None = None
    rule: str = "edited"
    labels: str = "auto"
    keep_unlabelled: bool = False
    keep_vague: bool = True

    def __post_init__(self) -> None:
        for name, value, allowed in (("rule", self.rule, tuple(RULES)), ("labels", self.labels, LABEL_SOURCES)):
            if value not in allowed:
                raise RecipeError(f"{name}: {value!r} is unknown; allowed: {', '.join(allowed)}")


@dataclass
class Prepared:
    """Task rows in the order of the issues, what could not be used, and what was counted on the way."""

    rows: list[TaskRow] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def prepare_tasks(
    issues: Sequence[Issue], options: PrepareOptions, advance: Callable[[], object] = lambda: None
) -> Prepared:
    """Label the issues and make task rows of them.

    Args:
        advance: called after each issue, for a progress bar.

    Raises:
        RecipeError: labels have to be read off patches, and no repositories were named.
    """
    num_to_label = sum(_given(issue, options) is None and _has_patch(issue, options) for issue in issues)
    if num_to_label and options.repositories is None:
        raise RecipeError(
            f"repositories: missing; {num_to_label} of {len(issues)} issues have no label, and those are made from the "
            "files at their base commits: name the folder with a git repository per project"
        )
    prepared = Prepared()
    for issue in issues:
        try:
            row = _prepare(issue, options, prepared.counts)
        except _IssueError as error:
            prepared.problems.append(Problem(issue.name, error.kind, str(error)))
        else:
            if row is not None:
                prepared.rows.append(row)
        advance()
    return prepared


def _prepare(issue: Issue, options: PrepareOptions, counts: Counter[str]) -> TaskRow | None:
    """The task row of an issue; None for one without a label that is not to be kept."""
    source = None if options.repositories is None else _repository(issue, options.repositories)
    given = _given(issue, options)
    labels: Labels | None = None
    if given is None and _has_patch(issue, options) and source is not None:
        labels = _labels_of_patch(issue, source, options.rule)
        counts["moved_hunks"] += labels.num_moved_hunks
    functions = list(labels.functions) if labels is not None else given or []
    if functions:
        counts["labels_from_patch" if labels is not None else "labels_given"] += 1
    else:
        counts["unlabelled"] += 1
        if not options.keep_unlabelled:
            return None
    vague = issue.vague if options.keep_vague else None
    row = make_task_row({**issue.fields, "vague_statement": vague}, functions, source)
    row["payload"] |= _further_labels(issue, labels)
    return row


def _repository(issue: Issue, repositories: Repositories) -> str:
    """The folder of the issue's repository, which holds its base commit."""
    try:
        source = find_repository(issue.fields["repo"], repositories)
    except RecipeError as error:
        raise _IssueError("repository", str(error)) from error
    try:
        check_source(source, issue.fields["base_commit"])
    except RecipeError as error:
        raise _IssueError("commit", str(error)) from error
    return source


def _given(issue: Issue, options: PrepareOptions) -> list[str] | None:
    """The label that came with an issue; None if it is not to be used, or a part that the rule needs is missing."""
    if options.labels == "patch":
        return None
    names = [GIVEN_FIELDS[part] for part in RULES[options.rule]]
    if any(issue.fields.get(name) is None for name in names):
        return None
    return list(dict.fromkeys(function for name in names for function in issue.fields[name]))


def _has_patch(issue: Issue, options: PrepareOptions) -> bool:
    return options.labels != "given" and bool((issue.fields.get("patch") or "").strip())


def _labels_of_patch(issue: Issue, source: str, rule: str) -> Labels:
    commit = issue.fields["base_commit"]

    def read_old(path: str) -> str | None:
        try:
            return open_tree(source, commit).read(path)
        except TreePathError:
            return None

    try:
        labels = edited_functions(issue.fields["patch"], read_old, rule)
    except PatchError as error:
        raise _IssueError("patch", str(error)) from error
    except InfrastructureError as error:
        raise _IssueError("commit", str(error)) from error
    if labels.problems:  # what it edits there cannot be told, so the label would be half of one
        raise _IssueError("python", "; ".join(labels.problems))
    return labels


def _further_labels(issue: Issue, labels: Labels | None) -> dict[str, list[str]]:
    """What else the patch touches, for the checks of vague texts and for users who know it."""
    if labels is not None:
        found = {
            "added_functions": list(labels.added),
            "edited_classes": list(labels.classes),
            "module_level": list(labels.module_level),
        }
    else:
        names = ("added_functions", "edited_classes", "module_level")
        found = {name: issue.fields[name] for name in names if isinstance(issue.fields.get(name), list)}
    try:
        files = [change.path for change in parse_patch(issue.fields.get("patch") or "") if change.old_path]
    except PatchError:
        files = []  # the label was given, so nothing depends on the patch
    return {**found, "gold_files": list(dict.fromkeys(files))}


# ---------------------------------------------------------------- train and test


def content_keys(row: Mapping[str, Any]) -> ContentKeys:
    """What makes two task rows or issues the same one: the id, the text of the issue, or the fix."""
    payload = row.get("payload")
    payload = payload if isinstance(payload, Mapping) else {}
    name = row.get("task_id") or row.get("instance_id")
    text = row.get("precise_prompt") or row.get("problem_statement")
    evaluation = payload.get(EVALUATION)
    patch = (evaluation if isinstance(evaluation, Mapping) else row).get("patch")
    keys = {("id", str(name))} if name else set()
    for kind, value in (("text", text), ("patch", patch)):
        if isinstance(value, str) and value.strip():
            even = " ".join(value.split()).casefold()
            keys.add((kind, hashlib.sha256(even.encode("utf-8", "replace")).hexdigest()))
    return keys


def leave_out(rows: Sequence[TaskRow], taken: ContentKeys) -> list[TaskRow]:
    """The rows whose id, text and patch are all not among `taken`."""
    return [row for row in rows if taken.isdisjoint(content_keys(row))]


def group_rows(rows: Sequence[TaskRow]) -> list[list[int]]:
    """Positions of rows that have an id, a text or a patch in common, directly or through others; in order."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(key: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    keys_of = [sorted(content_keys(row)) for row in rows]
    for keys in keys_of:
        for key in keys:
            parent[root(key)] = root(keys[0])
    groups: dict[tuple[str, str], list[int]] = {}
    for position, keys in enumerate(keys_of):
        groups.setdefault(root(keys[0]), []).append(position)
    return list(groups.values())


def split_by_share(rows: Sequence[TaskRow], share: float, seed: int) -> tuple[list[TaskRow], list[TaskRow]]:
    """(train, test): whole groups of the same content, drawn by a hash of their first id, up to the share."""
    groups = group_rows(rows)

    def drawn(members: Sequence[int]) -> str:
        return hashlib.sha256(f"{seed}-{rows[members[0]]['task_id']}".encode("utf-8", "replace")).hexdigest()

    wanted, test = round(share * len(rows)), set[int]()
    for members in sorted(groups, key=drawn):
        if len(test) + len(members) <= wanted:
            test.update(members)
    train = [row for position, row in enumerate(rows) if position not in test]
    return train, [rows[position] for position in sorted(test)]


def split_by_name(rows: Sequence[TaskRow], names: set[str]) -> tuple[list[TaskRow], list[TaskRow], list[str]]:
    """(train, test, names of rows left out because they have the content of a test row)."""
    test = [row for row in rows if row["task_id"] in names]
    rest = [row for row in rows if row["task_id"] not in names]
    train = leave_out(rest, {key for row in test for key in content_keys(row)})
    kept = {row["task_id"] for row in train}
    return train, test, [row["task_id"] for row in rest if row["task_id"] not in kept]
