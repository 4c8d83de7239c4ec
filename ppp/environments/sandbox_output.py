"""What commands write, made fit to be shown: decoded, harmless to a terminal, cut to size with a note of what was cut.

Nothing here runs commands; `sandbox_base.py` does that and shows the results through `show`.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from itertools import groupby

MIN_FOLDED = 4  # equal lines in a row that are shown as one and a note
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")


@dataclass(frozen=True, slots=True)
class Captured:
    """Bytes that a command wrote: all of them in `head`, or the first and the last with a gap between them.

    Attributes:
        head: the first bytes.
        tail: the last bytes; b"" without a gap.
        num_cut_bytes: size of the gap.
        num_cut_lines: line ends within it.
    """

    head: bytes
    tail: bytes = b""
    num_cut_bytes: int = 0
    num_cut_lines: int = 0


@dataclass(frozen=True, slots=True)
class Shortened:
    """A text to be shown, and how many characters of the original are missing from it."""

    text: str
    num_cut_chars: int


def clean(data: bytes) -> str:
    """Decode UTF-8 and spell out what is no text: escapes of terminals, control and direction characters, bad bytes.

    Line ends of other systems become plain ones; a byte that is not UTF-8 becomes U+FFFD.
    """
    text = data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub(_spelled, text)


def _spelled(match: re.Match[str]) -> str:
    code = ord(match.group())
    if unicodedata.category(match.group()) == "Cc":
        return f"\\x{code:02x}"
    return f"\\u{code:04x}"


def show(captured: Captured, max_chars: int, max_line_chars: int) -> Shortened:
    """The output as it is shown: cleaned, then shortened, without the end of its last line."""
    head, tail = clean(captured.head), clean(captured.tail).removesuffix("\n")
    if not captured.num_cut_bytes:
        return shorten(head.removesuffix("\n"), max_chars, max_line_chars)
    return shorten(head, max_chars, max_line_chars, tail, captured.num_cut_bytes, captured.num_cut_lines)


def shorten(
    text: str,
    max_chars: int,
    max_line_chars: int,
    tail: str = "",
    num_missing_chars: int = 0,
    num_missing_lines: int = 0,
) -> Shortened:
    """Keep the head and the tail of a text, cut its long lines and fold equal ones, and note what is not shown.

    Args:
        text: the text, or its head where `num_missing_chars` were left out between it and `tail`.
        max_chars: characters of the original to be shown; the notes come on top of them.
        max_line_chars: the same for one line.
        tail: the last part, where some are missing.
        num_missing_chars: how many those are.
        num_missing_lines: line ends among them.
    """
    max_line_chars = min(max_line_chars, max(1, max_chars // 2 - 1))  # so that one line of each end is shown
    head_rows, tail_rows = _rows(text, max_line_chars), _rows(tail, max_line_chars)
    if not num_missing_chars and sum(len(row.text) for row in head_rows) <= max_chars:
        return Shortened("\n".join(row.shown for row in head_rows), sum(row.num_cut for row in head_rows))
    if not num_missing_chars:
        tail_rows = head_rows
    first = _fitting(head_rows, max_chars // 2)
    room = len(head_rows) - first if tail_rows is head_rows else len(tail_rows)
    last = min(room, _fitting(tail_rows[::-1], max_chars - max_chars // 2))
    kept_head, kept_tail = head_rows[:first], tail_rows[len(tail_rows) - last :]
    if tail_rows is head_rows:
        between = head_rows[first : len(head_rows) - last]
    else:
        between = head_rows[first:] + tail_rows[: len(tail_rows) - last]
    num_chars = num_missing_chars + sum(row.size for row in between)
    num_lines = num_missing_lines + sum(row.num_lines for row in between)
    note = f"[{num_lines:,} lines with {num_chars:,} characters are left out here]"
    kept = kept_head + kept_tail
    shown = [*(row.shown for row in kept_head), note, *(row.shown for row in kept_tail)]
    return Shortened("\n".join(shown), num_chars + sum(row.num_cut for row in kept))


@dataclass(frozen=True, slots=True)
class _Row:
    """One line, or a run of equal ones that is shown as one."""

    text: str
    note: str
    num_lines: int
    num_cut: int  # characters of the original that are not shown

    @property
    def shown(self) -> str:
        return self.text + self.note

    @property
    def size(self) -> int:
        return len(self.text) + self.num_cut + self.num_lines


def _rows(text: str, max_line_chars: int) -> list[_Row]:
    rows = []
    for line, run in groupby(text.split("\n")):
        num_lines = sum(1 for _ in run)
        kept, num_over = line[:max_line_chars], max(0, len(line) - max_line_chars)
        note = f" [{num_over:,} more characters in this line]" if num_over else ""
        if num_lines >= MIN_FOLDED and line:
            repeats = f"\n[the line above comes {num_lines - 1:,} more times]"
            rows.append(_Row(kept, note + repeats, num_lines, num_over + (num_lines - 1) * len(line)))
        else:
            rows += [_Row(kept, note, 1, num_over)] * num_lines
    return rows


def _fitting(rows: list[_Row], max_chars: int) -> int:
    """How many of the first rows fit."""
    num_chars = 0
    for index, row in enumerate(rows):
        num_chars += len(row.text) + 1
        if num_chars > max_chars:
            return index
    return len(rows)
