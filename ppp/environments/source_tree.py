"""A source tree that can only be read: a folder, or a commit of a git repository that nobody has to check out.

A tree is indexed once, when it is opened; every path that an agent names is looked up in that index, so that `..`,
links and odd characters can lead nowhere. Git is given object ids of the index and never a path of the agent's. It is
not a sandbox and runs nothing. `func_loc.py` beside this file turns a tree into tools.
"""

from __future__ import annotations

import functools
import os
import posixpath
import subprocess
import tempfile
import threading
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from ppp.types import InfrastructureError, RecipeError

MAX_FILE_BYTES = 4 * 2**20  # larger files are listed, but neither viewed nor searched
MAX_OPEN_TREES = 64
GIT_TIMEOUT_S = 60.0
_IGNORED_NAMES = frozenset({".git", ".hg", ".svn", "__pycache__"})  # a history would hold the fix
_SNIFFED_BYTES = 8000  # where git, too, looks for a NUL to tell binary files from text
_MAX_MATCH_BYTES = 2000
# Set while git runs a hook; they would send our git to another repository than the one named.
_GIT_LOCATION_VARIABLES = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_PREFIX",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
)


class TreePathError(ValueError):
    """The agent named something that the tree does not have or does not show; the message is for the agent."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a tree; `handle` is what its owner reads it by: an object id, or a path below the folder."""

    kind: Literal["file", "dir", "link", "submodule"]
    size: int
    handle: str


@dataclass(frozen=True, slots=True)
class Match:
    """One line that holds the text searched for; `line` counts from 1."""

    path: str
    line: int
    text: str


class SourceTree(ABC):
    """An index of everything in the tree, by normalised path ("" is the root), and ways to read it.

    Lines end at a line feed and nowhere else, in `search` as in the lines of `read`, so that their numbers agree.
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = entries
        names: dict[str, list[str]] = {path: [] for path, entry in entries.items() if entry.kind == "dir"}
        for path in entries:
            if path:
                names[posixpath.dirname(path)].append(posixpath.basename(path))
        self._names = {path: tuple(sorted(children)) for path, children in names.items()}

    def resolve(self, path: str) -> str:
        """The key in `entries` that `path` means; absolute paths count from the root of the tree.

        Raises:
            TreePathError: it leads out of the tree, through a link, or nowhere.
        """
        key = posixpath.normpath(path.strip().lstrip("/") or ".")
        key = "" if key == "." else key
        if key == ".." or key.startswith("../"):
            raise TreePathError(f"{path!r} leads out of the source tree.")
        parts = key.split("/")
        for depth in range(1, len(parts) + 1):
            entry = self.entries.get("/".join(parts[:depth]))
            if entry is not None and entry.kind == "link":
                raise TreePathError(f"{'/'.join(parts[:depth])!r} is a symbolic link; links are not followed.")
        if key not in self.entries:
            raise TreePathError(f"There is no file or directory {path!r} in the source tree.")
        return key

    def children(self, path: str) -> list[str]:
        """Names in a directory, sorted; those of directories end with a slash.

        Raises:
            TreePathError: `path` is not a directory of the tree.
        """
        key = self.resolve(path)
        if key not in self._names:
            raise TreePathError(f"{path!r} is not a directory.")
        prefix = f"{key}/" if key else ""
        return [name + ("/" if self.entries[prefix + name].kind == "dir" else "") for name in self._names[key]]

    def read(self, path: str) -> str:
        """The text of a file, undecodable bytes replaced.

        Raises:
            TreePathError: `path` is not a text file of at most `MAX_FILE_BYTES`.
            InfrastructureError: the file is in the index, but can no longer be read.
        """
        entry = self.entries[self.resolve(path)]
        if entry.kind != "file":
            raise TreePathError(f"{path!r} is a {entry.kind}, not a file.")
        if entry.size > MAX_FILE_BYTES:
            raise TreePathError(f"{path!r} is too large to view ({entry.size} bytes).")
        content = self._read_bytes(entry)
        if _is_binary(content):
            raise TreePathError(f"{path!r} is a binary file.")
        return content.decode("utf-8", "replace")

    @abstractmethod
    def search(self, query: str, path: str, max_matches: int) -> list[Match]:
        """The first lines with the literal text `query` in text files at or below `path`: Python files first, by path.

        Raises:
            TreePathError: there is no such path, or the query is not a single line of text.
        """

    @abstractmethod
    def _read_bytes(self, entry: Entry) -> bytes: ...


class FolderTree(SourceTree):
    """A folder as it is on disk. It is taken to stay as it is for as long as the process runs."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        try:
            super().__init__(dict(_walk(self._root)))
        except OSError as error:
            raise InfrastructureError(f"cannot read the folder {root}: {error}") from error

    def search(self, query: str, path: str, max_matches: int) -> list[Match]:
        needle, key = _checked_query(query), self.resolve(path)
        matches: list[Match] = []
        for name in sorted(self.entries, key=_search_order):
            entry = self.entries[name]
            if entry.kind != "file" or entry.size > MAX_FILE_BYTES or not _is_below(name, key):
                continue
            content = self._read_bytes(entry)
            if needle not in content or _is_binary(content):
                continue
            for number, line in enumerate(content.split(b"\n"), start=1):
                if needle in line:
                    matches.append(Match(name, number, _decoded_line(line)))
                    if len(matches) == max_matches:
                        return matches
        return matches

    def _read_bytes(self, entry: Entry) -> bytes:
        path = self._root / entry.handle
        try:
            if path.resolve() != path:
                raise InfrastructureError(f"{path} has become a link since the folder was indexed")
            return path.read_bytes()
        except OSError as error:
            raise InfrastructureError(f"cannot read {path}: {error}") from error


class GitTree(SourceTree):
    """A commit, read from the object database; no work tree and no index is looked at, written or locked."""

    def __init__(self, git_dir: Path, commit: str) -> None:
        self._git_dir = git_dir
        self._commit = resolve_commit(git_dir, commit)
        listing = _run_git(git_dir, ["ls-tree", "-r", "-t", "-z", "--long", "--full-tree", self._commit])
        super().__init__({"": Entry("dir", 0, self._commit), **dict(map(_parse_entry, listing.split(b"\0")[:-1]))})

    def search(self, query: str, path: str, max_matches: int) -> list[Match]:
        _checked_query(query)
        key = self.resolve(path)
        if self.entries[key].kind == "file":
            return self._grep(query, key, [], max_matches)
        matches = self._grep(query, key, [":(glob)**/*.py"], max_matches)
        if len(matches) < max_matches:
            rest = [":(top)", ":(exclude,glob)**/*.py"]
            matches += self._grep(query, key, rest, max_matches - len(matches))
        return matches

    def _grep(self, query: str, key: str, pathspecs: Sequence[str], max_matches: int) -> list[Match]:
        handle = self.entries[key].handle
        flags = ["-I", "-F", "-n", "-z", "--no-color", "--no-column", "--no-heading", "--no-recurse-submodules"]
        arguments = ["grep", "--threads=1", *flags, "-e", query, handle, "--", *pathspecs]
        matches: list[Match] = []
        with _git_stream(self._git_dir, arguments, allowed_codes=(0, 1)) as stream:
            for line in _bounded_lines(stream):
                origin, *rest = line.split(b"\0", 2)
                name = origin.decode("utf-8", "replace").removeprefix(handle).removeprefix(":")
                name = posixpath.join(key, name) if name else key
                # A file name with a line feed in it comes as two broken lines; the index knows neither half.
                if len(rest) == 2 and name in self.entries and self.entries[name].size <= MAX_FILE_BYTES:
                    matches.append(Match(name, int(rest[0]), _decoded_line(rest[1])))
                if len(matches) == max_matches:
                    break
        return matches

    def _read_bytes(self, entry: Entry) -> bytes:
        return _run_git(self._git_dir, ["cat-file", "blob", entry.handle])


def open_tree(source: str, commit: str | None = None) -> SourceTree:
    """The tree of a folder, or of a commit of the git repository there; one object is shared by all who ask.

    Raises:
        InfrastructureError: it cannot be read (any more), or there is no git to read it with.
    """
    with _opening[source, commit]:  # the copies of a task start at the same time
        return _cached_tree(source, commit)


_opening: defaultdict[tuple[str, str | None], threading.Lock] = defaultdict(threading.Lock)


@functools.lru_cache(maxsize=MAX_OPEN_TREES)
def _cached_tree(source: str, commit: str | None) -> SourceTree:
    if commit is None:
        return FolderTree(Path(source))
    return GitTree(git_dir_of(source), commit)


def git_dir_of(source: str) -> Path:
    """Where the repository at `source` keeps its objects, be it bare or with a work tree; never one further up."""
    path = Path(source).resolve()
    return path / ".git" if (path / ".git").exists() else path


@functools.lru_cache(maxsize=4096)
def check_source(source: str, commit: str | None) -> None:
    """Say before training that a folder, a repository or a commit is missing.

    Raises:
        RecipeError: naming the payload's field and value.
    """
    if not Path(source).is_dir():
        raise RecipeError(f"payload.source: {source!r} is not a folder; allowed: a folder or a git repository")
    if commit is None:
        return
    try:
        resolve_commit(git_dir_of(source), commit)
    except InfrastructureError as error:
        allowed = f"allowed: a commit of the git repository {source}"
        raise RecipeError(f"payload.commit: cannot read {commit!r} ({error}); {allowed}") from error


def resolve_commit(git_dir: Path, commit: str) -> str:
    """The full object id of a commit, given by id, tag or branch."""
    arguments = ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}"]
    return _run_git(git_dir, arguments).decode("ascii").strip()


def _run_git(git_dir: Path, arguments: Sequence[str]) -> bytes:
    with _git_stream(git_dir, arguments) as stream:
        return stream.read()


@contextmanager
def _git_stream(git_dir: Path, arguments: Sequence[str], allowed_codes: tuple[int, ...] = (0,)) -> Iterator[IO[bytes]]:
    """Standard output of one git command; a body that stops before the end stops the command, which is no failure."""
    environment = {name: value for name, value in os.environ.items() if name not in _GIT_LOCATION_VARIABLES}
    # No locks, no questions, and no fetching of what a partial clone lacks.
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"}
    command = ["git", "--bare", f"--git-dir={git_dir}", *arguments]
    with tempfile.TemporaryFile() as messages:
        try:
            process = subprocess.Popen(
                command, cwd=git_dir.parent, env=environment, stdin=subprocess.DEVNULL, stdout=-1, stderr=messages
            )
        except OSError as error:
            raise InfrastructureError(f"cannot run git: {error}") from error
        timer = threading.Timer(GIT_TIMEOUT_S, process.kill)
        timer.start()
        assert process.stdout is not None
        try:
            yield process.stdout
            stopped_early = bool(process.stdout.read(1))
            if not stopped_early:
                process.wait()
        finally:
            timed_out = not timer.is_alive()
            timer.cancel()
            process.kill()
            process.stdout.close()
            process.wait()
        if not stopped_early and process.returncode not in allowed_codes:
            messages.seek(0)
            reason = messages.read(2000).decode("utf-8", "replace").strip() or "no such object"
            reason = f"no end after {GIT_TIMEOUT_S:.0f} s" if timed_out else reason
            raise InfrastructureError(f"git {arguments[0]} failed in {git_dir}: {reason}")


def _bounded_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines cut at `_MAX_MATCH_BYTES`: a minified file is one line of megabytes."""
    while line := stream.readline(_MAX_MATCH_BYTES):
        rest = line
        while not rest.endswith(b"\n") and rest:
            rest = stream.readline(_MAX_MATCH_BYTES)
        yield line.removesuffix(b"\n")


def _walk(root: Path) -> Iterator[tuple[str, Entry]]:
    yield "", Entry("dir", 0, "")
    pending = [""]
    while pending:
        parent = pending.pop()
        for item in os.scandir(root / parent):
            if item.name in _IGNORED_NAMES:
                continue
            handle = f"{parent}/{item.name}" if parent else item.name
            path = os.fsencode(handle).decode("utf-8", "replace")
            if item.is_symlink():
                yield path, Entry("link", 0, handle)
            elif item.is_dir():
                pending.append(handle)
                yield path, Entry("dir", 0, handle)
            elif item.is_file():  # sockets, pipes and devices are left out
                yield path, Entry("file", item.stat().st_size, handle)


def _parse_entry(line: bytes) -> tuple[str, Entry]:
    """One line of `git ls-tree --long`: mode, type, object id, size ("-" for no file, BAD if damaged), a tab, path."""
    head, path = line.split(b"\t", 1)
    mode, kind, handle, size = head.decode("ascii").split()
    kinds: dict[str, Literal["file", "dir", "link", "submodule"]] = {
        "blob": "link" if mode == "120000" else "file",
        "tree": "dir",
        "commit": "submodule",
    }
    return path.decode("utf-8", "replace"), Entry(kinds[kind], int(size) if size.isdigit() else 0, handle)


def _checked_query(query: str) -> bytes:
    try:
        encoded = query.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TreePathError("The query is not valid text.") from error
    if not query.strip() or any(character in query for character in "\n\r\0"):
        raise TreePathError("The query must be one line of text that is not blank.")
    return encoded


def _search_order(path: str) -> tuple[bool, str]:
    return not path.endswith(".py"), path


def _is_below(path: str, parent: str) -> bool:
    return not parent or path == parent or path.startswith(f"{parent}/")


def _is_binary(content: bytes) -> bool:
    return b"\0" in content[:_SNIFFED_BYTES]


def _decoded_line(line: bytes) -> str:
    return line[:_MAX_MATCH_BYTES].decode("utf-8", "replace").rstrip("\r")
