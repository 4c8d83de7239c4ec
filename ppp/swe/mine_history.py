"""The history of a git repository as data: its commits, what each changes, patches and old files; nothing is written.

Everything comes through `run_git` out of the object database: no work tree and no index is looked at. A merge is
compared with its first parent, as if it were one commit. Which commits become tasks is decided in `mine.py`.
"""

from __future__ import annotations

import heapq
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ppp.swe.mirrors import git_folder, run_git
from ppp.types import InfrastructureError, RecipeError

_FORMAT = "%x00%x00%H%x00%P%x00%an <%ae>%x00%ct%x00%B%x00"
_HEAD = re.compile(rb"\0\0([0-9a-f]{40,64})\0([0-9a-f ]*)\0([^\0]*)\0(\d+)\0([^\0]*)\0")  # what `_FORMAT` writes
_ORIGIN = re.compile(r"([\w.-]+)[/:]([\w.-]+?)(?:\.git)?/*\Z")
_RAW = re.compile(r":\d+ (\d+) ([0-9a-f]+) [0-9a-f]+ ([A-Z])")
_SUBMODULE = "160000"


@dataclass(frozen=True, slots=True)
class FileEdit:
    """A file that a commit changes; `old_id` names its contents before, `status` is git's: A, D, M or T."""

    status: str
    path: str
    old_id: str


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit; `time` is the committer's, in seconds since 1970, `files` the difference to the first parent."""

    id: str
    parents: tuple[str, ...]
    author: str
    time: int
    message: str
    files: tuple[FileEdit, ...]


def check_repository(folder: Path) -> Path:
    """The folder where the repository at `folder` keeps its data.

    Raises:
        RecipeError: there is none, or not all of its history is there.
    """
    try:
        git = git_folder(folder.absolute())
        shallow = run_git([f"--git-dir={git}", "rev-parse", "--is-shallow-repository"], folder, what=f"{folder}")
        settings = run_git([f"--git-dir={git}", "config", "--list", "--name-only"], folder, what=f"{folder}")
    except InfrastructureError as error:
        raise RecipeError(f"REPO: {error}; allowed: the folder of a git repository") from error
    if shallow.strip() == b"true":
        advice = "get the rest of it with git fetch --unshallow"
        raise RecipeError(f"REPO: {str(folder)!r} is a shallow clone, whose history is cut off; {advice}")
    if re.search(rb"(?im)^(extensions\.partialclone|remote\..*\.promisor)$", settings):
        advice = "a full clone is needed, as reading this one would download file by file"
        raise RecipeError(f"REPO: {str(folder)!r} is a partial clone; {advice}")
    return git


def repository_name(git: Path) -> str:
    """The owner/name of where it was cloned from, else the name of its folder."""
    arguments = [f"--git-dir={git}", "config", "--default=", "--get", "remote.origin.url"]
    url = run_git(arguments, git, what=f"{git}").decode("utf-8", "replace").strip()
    match = _ORIGIN.search(url) if "://" in url or "@" in url else None
    if match is not None:
        return f"{match[1]}/{match[2]}"
    folder = git.parent if git.name == ".git" else git
    owner, plus, name = folder.name.removesuffix(".git").partition("+")
    return f"{owner}/{name}" if plus and owner and name else owner + plus + name


def read_history(git: Path, ref: str) -> list[Commit]:
    """All commits that `ref` has, the newest first, and never a commit before one that stands on it.

    Raises:
        RecipeError: there is no such commit, or the history cannot be read.
    """
    what = f"{git}, {ref!r}"
    arguments = ["log", "--date-order", "-z", "--raw", "--no-abbrev", "--no-renames", "--diff-merges=first-parent"]
    arguments += ["--no-relative", "--no-ext-diff", "--no-show-signature", "--no-notes", "--encoding=UTF-8"]
    arguments += ["--root", f"--format={_FORMAT}", "--end-of-options", ref, "--"]
    try:
        with tempfile.TemporaryFile() as file:
            run_git([f"--git-dir={git}", *arguments], git, what=what, stdout=file.fileno())
            file.seek(0)
            output = file.read()
    except InfrastructureError as error:
        raise RecipeError(f"ref: {error}; allowed: a branch, a tag or a commit of REPO") from error
    heads = list(_HEAD.finditer(output))
    ends = [head.start() for head in heads[1:]] + [len(output)]
    return [_parse(head, output[head.end() : end]) for head, end in zip(heads, ends, strict=True)]


def _parse(head: re.Match[bytes], raw: bytes) -> Commit:
    name, parents, author, time, message = (part.decode("utf-8", "replace") for part in head.groups())
    text = message.replace("\r\n", "\n").strip()
    return Commit(name, tuple(parents.split()), author, int(time), text, tuple(_file_edits(raw)))


def _file_edits(raw: bytes) -> Iterator[FileEdit]:
    fields = [part.decode("utf-8", "replace") for part in raw.split(b"\0")]
    for about, path in pairwise(fields):
        match = _RAW.fullmatch(about.lstrip("\n"))
        if match is not None and match[1] != _SUBMODULE:
            yield FileEdit(match[3], path, match[2])


class Ancestry:
    """Which commits a merge brought in.

    Args:
        commits: as `read_history` gives them.
    """

    def __init__(self, commits: Sequence[Commit]) -> None:
        self._commits = commits
        self._position = {commit.id: position for position, commit in enumerate(commits)}

    def brought_in(self, merge: Commit) -> set[str]:
        """Ids of the commits that `merge` has and its first parent has not, itself left out."""
        theirs: dict[int, bool] = {}  # position -> whether only the other parents have it, for those still to visit
        for number, name in enumerate(merge.parents):
            self._visit(theirs, name, number > 0)
        queue, found = sorted(theirs), set()
        num_theirs = sum(theirs.values())
        while num_theirs:  # a parent stands behind its children, so that all of them were visited before
            position = heapq.heappop(queue)
            only_theirs = theirs.pop(position)
            num_theirs -= only_theirs
            commit = self._commits[position]
            if only_theirs:
                found.add(commit.id)
            for name in commit.parents:
                new, change = self._visit(theirs, name, only_theirs)
                num_theirs += change
                if new is not None:
                    heapq.heappush(queue, new)
        return found

    def _visit(self, theirs: dict[int, bool], name: str, only_theirs: bool) -> tuple[int | None, int]:
        """Its position if it was not waiting yet, and by how much the number of those that are only theirs changes."""
        position = self._position.get(name)
        if position is None:
            return None, 0
        before = theirs.get(position)
        theirs[position] = only_theirs if before is None else before and only_theirs
        return (position if before is None else None), theirs[position] - bool(before)


def read_patches(git: Path, commits: Sequence[Commit]) -> dict[str, bytes]:
    """Commit id -> its patch against the first parent, renames found.

    Raises:
        InfrastructureError: the contents of one of them cannot be read.
    """
    arguments = ["diff-tree", "--stdin", "-r", "-p", "-M", "-U3", "--no-ext-diff", "--no-textconv", "--no-color"]
    arguments += ["--src-prefix=a/", "--dst-prefix=b/", "--indent-heuristic", "--diff-algorithm=myers", "--no-relative"]
    pairs = "".join(f"{commit.id} {commit.parents[0]}\n" for commit in commits)
    what = f"{git}, commit {commits[0].id}" + ("" if len(commits) == 1 else f" and {len(commits) - 1} others")
    output = run_git([f"--git-dir={git}", *arguments], git, what=what, stdin=pairs.encode())
    # A line that is nothing but an id cannot be part of a patch.
    parts = re.split(rb"(?m)^([0-9a-f]{40}|[0-9a-f]{64})\n", output)
    return {name.decode("ascii"): patch.lstrip(b"\n") for name, patch in zip(parts[1::2], parts[2::2], strict=True)}


def read_blobs(git: Path, ids: Sequence[str]) -> Mapping[str, str]:
    """Id -> text of files, undecodable bytes replaced; those that the repository lacks are left out.

    Raises:
        InfrastructureError: one of them is damaged.
    """
    if not ids:
        return {}
    request = "".join(f"{name}\n" for name in ids).encode()
    arguments = [f"--git-dir={git}", "cat-file", "--batch", "--buffer"]
    output = run_git(arguments, git, what=f"{git}, files of {len(ids)} commits", stdin=request)
    found, position = {}, 0
    for name in ids:
        end = output.index(b"\n", position)
        kind, *size = output[position:end].split()[1:]
        position = end + 1
        if size and kind == b"blob":
            found[name] = output[position : position + int(size[0])].decode("utf-8", "replace")
        position += int(size[0]) + 1 if size else 0
    return found
