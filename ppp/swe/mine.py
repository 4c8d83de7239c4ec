"""Tasks out of the history of a repository.

A commit that changes sources and tests is taken for the fix of an issue, and what its author wrote about it for the
issue. Its first parent is where the agent looks; the label is `labels.py`'s. Which commits those are is in
`mine_filters.py`, how history is read in `mine_history.py`, how texts are made in `mine_texts.py`; the command and its
files are in `mine_cli.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ppp.swe.labels import SUFFIXES, edited_functions
from ppp.swe.mine_filters import FILTERS, Draft, MineOptions, labels_of
from ppp.swe.mine_history import (
    Ancestry,
    Commit,
    check_repository,
    read_blobs,
    read_history,
    read_patches,
    repository_name,
)
from ppp.swe.mine_texts import Seen, changelog_entry, issue_text, pull_request, referred
from ppp.swe.patches import FileChange, PatchError, parse_patch
from ppp.swe.prepare import ContentKeys, PrepareOptions, TaskRow, content_keys, prepare_tasks
from ppp.swe.rows import EVALUATION
from ppp.swe.sources import Issue, Problem, read_source
from ppp.types import InfrastructureError, RecipeError
from ppp.vaguenizer.gold_names import GoldName, find_gold, gold_names, plain

CHUNK = 50  # commits that git is asked about at once
MASK = "[...]"

SHARED = 0.5  # of the lines of the smaller of two fixes: more, and they are one fix, told in other parts

Contents = tuple[str, Mapping[str, str]]  # a patch, and path -> text before it


class KnownFixes:
    """The fixes in files of issues or task rows, found again where a commit has them whole, in part, or with others.

    Raises:
        RecipeError: a file cannot be read, or a row in it has no patch.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self._rows_by_line: dict[tuple[str, str], list[int]] = {}
        self._sizes: list[int] = []
        for file in files:
            where = file
            try:
                for place, row, problem in read_source(file):
                    where = f"{file}, {place}"
                    if problem:
                        raise RecipeError(problem)
                    self._add(_changed_lines(parse_patch(_patch_in(row))))
            except (PatchError, RecipeError) as error:
                raise RecipeError(f"without: {where}: {error}") from error

    def _add(self, lines: set[tuple[str, str]]) -> None:
        for line in lines:
            self._rows_by_line.setdefault(line, []).append(len(self._sizes))
        self._sizes.append(len(lines))

    def has(self, changes: Sequence[FileChange]) -> bool:
        lines = _changed_lines(changes)
        shared = Counter(row for line in lines for row in self._rows_by_line.get(line, ()))
        return any(num > SHARED * min(len(lines), self._sizes[row]) for row, num in shared.items())


def _patch_in(row: Any) -> str:
    payload = row.get("payload", row) if isinstance(row, Mapping) else None
    holder = payload.get(EVALUATION, payload) if isinstance(payload, Mapping) else None
    patch = holder.get("patch") if isinstance(holder, Mapping) else None
    if not isinstance(patch, str) or not patch.strip():
        raise RecipeError("patch is missing; allowed: issues or task rows with their fixes")
    return patch


def _changed_lines(changes: Sequence[FileChange]) -> set[tuple[str, str]]:
    """(path, sign and text) of the lines of code that a patch changes."""
    return {
        (change.path, kind + text.strip())
        for change in changes
        if change.path.endswith(SUFFIXES)
        for hunk in change.hunks
        for kind, text in hunk.lines
        if kind != " " and text.strip()
    }


class Miner:
    """One run over a repository: `drafts` are what may become a task, `step` works on some of them, `rows` come out.

    Args:
        folder: of the repository.
        name: owner/name; None asks the repository.

    Raises:
        RecipeError: there is no such repository or history, or no commit in it that may become a task.
    """

    def __init__(self, folder: Path, options: MineOptions, name: str | None = None) -> None:
        self.folder, self.options = folder.absolute(), options
        self.git = check_repository(folder)
        self._known = KnownFixes(options.without)
        self.name = name or repository_name(self.git)
        commits = read_history(self.git, options.ref)
        self.head, self.num_commits = commits[0].id, len(commits)
        self._position = {commit.id: position for position, commit in enumerate(commits)}
        self.removed: Counter[str] = Counter()
        self.drafts = self._choose(commits)
        self.rows: list[TaskRow] = []
        self.problems: list[Problem] = []
        self.num_done = 0
        self._texts, self._patches = Seen(), set[tuple[str, str]]()
        if not self.drafts:
            raise RecipeError(f"REPO: {self.nothing_left()}")

    @property
    def is_finished(self) -> bool:
        num_wanted = self.options.max_tasks
        return self.num_done == len(self.drafts) or (num_wanted is not None and len(self.rows) >= num_wanted)

    def split(self, share: float) -> tuple[list[TaskRow], list[TaskRow]]:
        """(train, test), old to new: the newest are for test, and nothing in training stands on one of them."""
        ordered = sorted(self.rows, key=lambda row: -self._position[row["mined"]["commit"]])
        num_train = len(ordered) - round(share * len(ordered))
        return ordered[:num_train], ordered[num_train:]

    def nothing_left(self) -> str:
        """Why there is no task, in one sentence."""
        reasons = ", ".join(f"{num} {FILTERS[kind].words} ({kind})" for kind, num in self.removed.most_common())
        return f"none of the {self.num_commits} commits of {str(self.folder)!r} can become a task: {reasons}"

    def resume(
        self, rows: Sequence[TaskRow], removed: Mapping[str, int], problems: Sequence[Problem], num: int
    ) -> None:
        """Take over what an earlier run with the same options had after `num` drafts."""
        self.rows, self.problems, self.num_done = list(rows), list(problems), num
        self.removed = Counter(removed)
        for row in rows:
            self._texts.add(row["precise_prompt"])
            self._patches |= _patch_keys(row)

    def step(self) -> int:
        """Work on the next drafts; how many those were."""
        drafts = self.drafts[self.num_done : self.num_done + CHUNK]
        contents = self._read(drafts)
        for number, draft in enumerate(drafts):
            if self.is_finished:
                return number
            found = contents[draft.commit.id]
            problem = found if isinstance(found, str) else self._finish(draft, *found)
            if problem:
                self.problems.append(Problem(draft.commit.id, "commit", problem))
            self.num_done += 1
        return len(drafts)

    def _choose(self, commits: Sequence[Commit]) -> list[Draft]:
        """What passes the filters of the first stage, the oldest first; in the order of a draw if there is a limit."""
        requests = {c.id: found for c in commits if len(c.parents) > 1 and (found := pull_request(c.message))}
        titles = {number: text.partition("\n")[0] for number, text in requests.values()}
        ancestry, parts = Ancestry(commits), set[str]()
        drafts = []
        for commit in commits:  # a merge comes before what it brought in
            draft = Draft(
                commit,
                [file.path for file in commit.files if self.options.is_source(file.path)],
                [file.path for file in commit.files if self.options.is_test(file.path)],
                is_joined=commit.id in requests and self.options.merges == "join",
                is_part=commit.id in parts,
            )
            if self._passes(draft, "commit"):
                drafts.append(draft)
                if draft.is_joined:
                    parts |= ancestry.brought_in(commit)
                else:
                    named = (titles[number] for number in referred(commit.message) if number in titles)
                    draft.title = next(named, "")
        if self.options.max_tasks is None:
            return drafts[::-1]
        seed = self.options.seed
        return sorted(drafts, key=lambda draft: hashlib.sha256(f"{seed}-{draft.commit.id}".encode()).hexdigest())

    def _passes(self, draft: Draft, stage: str) -> bool:
        """Whether no filter of a stage takes the draft away; counts the first that does."""
        for name, entry in FILTERS.items():
            if entry.stage == stage and entry.removes(draft, self.options):
                self.removed[name] += 1
                return False
        return True

    def _read(self, drafts: Sequence[Draft]) -> dict[str, Contents | str]:
        """Commit id -> its patch and the files that it changes as they were, or what is wrong with it."""
        try:
            patches = read_patches(self.git, [draft.commit for draft in drafts])
            wanted = {draft.commit.id: dict(self._old_files(draft)) for draft in drafts}
            blobs = read_blobs(self.git, sorted({blob for files in wanted.values() for blob in files.values()}))
        except InfrastructureError as error:
            if len(drafts) == 1:
                return {drafts[0].commit.id: str(error)}
            half = len(drafts) // 2
            return self._read(drafts[:half]) | self._read(drafts[half:])
        found: dict[str, Contents | str] = {}
        for name, files in wanted.items():
            lost = [path for path, blob in files.items() if blob not in blobs]
            patch = patches.get(name, b"").decode("utf-8", "replace")
            old = {path: blobs[blob] for path, blob in files.items() if blob in blobs}
            found[name] = f"{lost[0]}: its contents before the commit are missing" if lost else (patch, old)
        return found

    def _old_files(self, draft: Draft) -> Iterator[tuple[str, str]]:
        for file in draft.commit.files:
            if file.status != "A" and file.path.endswith(SUFFIXES) and not self.options.is_test(file.path):
                yield file.path, file.old_id

    def _finish(self, draft: Draft, patch: str, old_files: Mapping[str, str]) -> str:
        """Take a draft through the other stages; what is wrong with its patch, if something is."""
        try:
            changes = self._divide(draft, patch)
            draft.is_known = self._known.has(changes)
            draft.text, draft.text_from = issue_text(draft.message, draft.title, changelog_entry(changes))
            if not self._passes(draft, "text"):
                return ""
            draft.labels = edited_functions(draft.patch, old_files.get, self.options.rule)
        except PatchError as error:
            return str(error)
        self._look_for_names(draft)
        if self._passes(draft, "label"):
            row = self._task_row(draft)
            patch_keys = _patch_keys(row)
            draft.repeats = {kind for kind, keys in (("patch", patch_keys & self._patches),) if keys}
            if self._texts.add(draft.text):
                draft.repeats.add("text")
            if self._passes(draft, "repeat"):
                self._patches |= patch_keys
                self.rows.append(row)
        return ""

    def _divide(self, draft: Draft, patch: str) -> list[FileChange]:
        """Split a patch into that of the sources and that of the tests; the changes of the first."""
        kept: list[FileChange] = []
        parts: dict[bool, list[str]] = {False: [], True: []}
        for part in re.split(r"(?m)^(?=diff --git )", patch):
            changes = parse_patch(part)
            path = changes[0].path if changes else part.partition("\n")[0].rpartition(" b/")[2]
            is_test = self.options.is_test(path)
            parts[is_test].append(part)
            kept += () if is_test else changes
        draft.patch, draft.test_patch = "".join(parts[False]), "".join(parts[True])
        hunks = (hunk for change in kept if change.path.endswith(SUFFIXES) for hunk in change.hunks)
        draft.num_lines = sum(kind != " " for hunk in hunks for kind, _ in hunk.lines)
        return kept

    def _look_for_names(self, draft: Draft) -> None:
        """Find out which functions the text names, and put a mask over them where all are named and that is wanted."""
        patterns = [_own_name(function) for function in labels_of(draft).functions]
        draft.named = [bool(find_gold(draft.text, names)) for names in patterns]
        if self.options.leaks == "mask" and draft.named and all(draft.named):
            text = plain(draft.text)
            for name in (name for names in patterns for name in names):
                text = name.pattern.sub(MASK, text)
            draft.text = text

    def _task_row(self, draft: Draft) -> TaskRow:
        """The row, by way of `prepare_tasks`, as for an issue of a data set that came with its labels."""
        labels, commit = labels_of(draft), draft.commit
        name = f"{self.name.replace('/', '__')}-{commit.id[:12]}"
        fields = {
            "instance_id": name,
            "repo": self.name,
            "base_commit": commit.parents[0],
            "problem_statement": draft.text,
            "patch": draft.patch,
            "test_patch": draft.test_patch,
            "edited_functions": list(labels.edited),
            "added_functions": list(labels.added),
            "edited_classes": list(labels.classes),
            "module_level": list(labels.module_level),
        }
        plan = PrepareOptions(rule=self.options.rule, labels="given")
        (row,) = prepare_tasks([Issue(name, fields, None)], plan).rows
        row["payload"]["source"] = str(self.folder)
        row["mined"] = {
            "commit": commit.id,
            "date": datetime.fromtimestamp(commit.time, UTC).isoformat(),
            "text_from": draft.text_from,
            "is_pull_request": draft.is_joined,
            "names": "all" if all(draft.named) else "some" if any(draft.named) else "none",
        }
        return row


def _own_name(function: str) -> tuple[GoldName, ...]:
    """What gives a function's own name away: neither its file nor its class."""
    return gold_names({"gold_functions": [f":{re.split(r'[.:]', function)[-1]}"]})


def _patch_keys(row: TaskRow) -> ContentKeys:
    return {key for key in content_keys(row) if key[0] == "patch"}
