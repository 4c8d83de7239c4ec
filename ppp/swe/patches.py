"""A unified diff as data, and what it does to a file: which old lines go, which new ones come.

Parsing is `unidiff`'s. Applying is here because labels need to know where each hunk went: hunks may stand some lines
off and go where `git apply` puts them, but their context has to match. Nothing is written to disk, and a last line
without a line feed is taken as it comes. What the lines belong to: `labels.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unidiff import PatchSet
from unidiff.constants import DEV_NULL
from unidiff.errors import UnidiffParseError

_ESCAPES = {"n": 10, "t": 9, "r": 13, "a": 7, "b": 8, "f": 12, "v": 11, '"': 34, "\\": 92}
_QUOTED = re.compile(rb'\\([0-7]{3}|[ntrabfv"\\])')

Line = tuple[str, str]  # " ", "-" or "+", and the text without its line feed


class PatchError(ValueError):
    """A patch that cannot be read, or that does not apply; the message names file and hunk."""


@dataclass(frozen=True, slots=True)
class Hunk:
    """One hunk: `old_start` is the number of its first old line, counted from 1, as its header has it."""

    old_start: int
    lines: tuple[Line, ...]

    @property
    def old(self) -> list[str]:
        """What has to stand in the old file."""
        return [text for kind, text in self.lines if kind != "+"]


@dataclass(frozen=True, slots=True)
class FileChange:
    """What a patch does to one file: a new file has no `old_path`, a deleted one no `new_path`."""

    old_path: str | None
    new_path: str | None
    hunks: tuple[Hunk, ...]
    is_binary: bool = False

    @property
    def path(self) -> str:
        """The path at the base commit, or the new one of a new file."""
        return self.old_path or self.new_path or ""


@dataclass(frozen=True, slots=True)
class Applied:
    """A file after its change.

    Attributes:
        text: the new text.
        changed: in the order of the patch: "-" and the number of an old line, or "+" and that of a new one; from 1.
        num_moved: hunks that applied at another line than their header says.
    """

    text: str
    changed: tuple[tuple[str, int], ...]
    num_moved: int


def parse_patch(patch: str) -> tuple[FileChange, ...]:
    """The files of a patch, in its order; none for an empty one.

    Raises:
        PatchError: this is no unified diff, or a hunk is not as long as it says.
    """
    text = patch if patch.endswith("\n") or not patch else patch + "\n"
    try:
        files = PatchSet(text)
    except UnidiffParseError as error:
        raise PatchError(f"the patch cannot be read: {str(error).strip()}") from error
    if not files and patch.strip():
        raise PatchError("the patch names no file; expected a unified diff")
    changes = []
    for file in files:
        hunks = tuple(
            Hunk(hunk.source_start, tuple(_lines((line.line_type, line.value) for line in hunk))) for hunk in file
        )
        changes.append(FileChange(_path(file.source_file), _path(file.target_file), hunks, file.is_binary_file))
    return tuple(changes)


def apply_change(change: FileChange, old: str) -> Applied:
    """The file after the change, given its old text ("" for a new file).

    Raises:
        PatchError: a hunk's old lines are not in the file, after those of the hunk before it.
    """
    lines = old.split("\n")
    ends_in_newline = not lines[-1]
    if ends_in_newline:
        lines.pop()
    result: list[str] = []
    changed: list[tuple[str, int]] = []
    done, num_moved = 0, 0  # `done`: old lines that are in `result` or removed
    for number, hunk in enumerate(change.hunks, start=1):
        # A hunk without old lines names the line that it comes after.
        expected = hunk.old_start - 1 if hunk.old else hunk.old_start
        start = _find(lines, hunk, expected, done)
        if start is None:
            raise PatchError(f"{change.path}: hunk {number} (line {hunk.old_start}) does not apply")
        num_moved += start != expected
        result += lines[done:start]
        done = start
        for kind, text in hunk.lines:
            if kind == "+":
                result.append(text)
                changed.append(("+", len(result)))
                continue
            if kind == "-":
                changed.append(("-", done + 1))
            else:
                result.append(lines[done])
            done += 1
    result += lines[done:]
    new = "\n".join(result) + ("\n" if result else "")
    return Applied(new, tuple(changed), num_moved)


def _find(lines: Sequence[str], hunk: Hunk, expected: int, first: int) -> int | None:
    """Where the old lines of a hunk stand in `lines`, at or after `first`; nearest to `expected`, below before above.

    As for git, a hunk without context after it belongs to the end of the file, unless it does not fit there.
    """
    wanted = [text.rstrip("\r") for text in hunk.old]
    last = len(lines) - len(wanted)

    def fits(start: int) -> bool:
        return first <= start <= last and all(
            lines[start + index].rstrip("\r") == text for index, text in enumerate(wanted)
        )

    if any(kind == " " for kind, _ in hunk.lines) and hunk.lines[-1][0] != " " and fits(last):
        return last
    for distance in range(max(abs(expected - first), abs(expected - last)) + 1):
        for start in (expected + distance, expected - distance):
            if fits(start):
                return start
    return None


def _path(name: str | None) -> str | None:
    """A path as git writes it in a patch: with `a/` or `b/` in front, in quotes where it is out of the ordinary."""
    if name is None or name == DEV_NULL:
        return None
    if name.startswith('"') and name.endswith('"') and len(name) > 1:
        raw = _QUOTED.sub(_unescape, name[1:-1].encode("utf-8"))
        name = raw.decode("utf-8", "replace")
    return name[2:] if name[:2] in ("a/", "b/") else name


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match[1].decode("ascii")
    return bytes([int(code, 8) & 255 if code.isdigit() else _ESCAPES[code]])


def _lines(body: Iterator[tuple[str, str]]) -> Iterator[Line]:
    """The lines of a hunk; a line that is removed and added again only because of its line feed stays.

    Else whoever appends a function to a file without a last line feed would have edited the function above it.
    """
    block: dict[str, list[str]] = {"-": [], "+": []}
    without_newline: set[str] = set()  # the kinds whose last line the marker stands after
    kind = ""
    for marker, value in body:
        if marker == "\\":
            without_newline.add(kind)
            continue
        kind = marker if marker in block else " "
        text = value.removesuffix("\n")
        if kind == " ":
            yield from _block(block["-"], block["+"], without_newline)
            block, without_newline = {"-": [], "+": []}, set()
            yield " ", text
        else:
            block[kind].append(text)
    yield from _block(block["-"], block["+"], without_newline)


def _block(removed: Sequence[str], added: Sequence[str], without_newline: set[str]) -> Iterator[Line]:
    """One run of removed and added lines."""
    parts: list[tuple[str, Sequence[str]]] = [("-", removed), ("+", added)]
    if removed and added and "-" in without_newline and removed[-1] == added[0]:
        parts = [("-", removed[:-1]), (" ", added[:1]), ("+", added[1:])]
    elif removed and added and "+" in without_newline and added[-1] == removed[0]:
        parts = [("+", added[:-1]), (" ", removed[:1]), ("-", removed[1:])]
    for kind, texts in parts:
        for text in texts:
            yield kind, text
