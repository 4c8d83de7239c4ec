"""How the doctor writes: text that nobody vouches for made harmless, colours where there is a terminal, long text cut.

What is written is decided elsewhere; `transcript.py`, which comes next, uses this for sessions.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TextIO

Style = Literal["good", "doubtful", "bad", "faint", "policy", "observation", "prompt"]

Line = tuple[str, Style | None]
"""A line of text and how it is painted."""

STYLES: Mapping[Style, str] = {
    "good": "32",
    "doubtful": "33",
    "bad": "1;31",
    "faint": "2",
    "policy": "1;32",
    "observation": "36",
    "prompt": "2",
}
"""Style -> parameters of the escape sequence that sets it (SGR of ECMA-48)."""

# Controls, what changes the direction of writing or joins characters, halves of surrogate pairs, what no font has.
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def harmless(text: str) -> str:
    """`text` with every character that could move the cursor, hide or reorder text written out, such as \\x1b.

    Line feeds stay; whoever prints them puts something of his own at the beginning of each line.
    """
    return "".join(
        letter.encode("unicode_escape").decode("ascii")
        if letter != "\n" and unicodedata.category(letter) in _HIDDEN
        else letter
        for letter in text
    )


def shortened(text: str, max_chars: int) -> str:
    """`text`, or its beginning and end around a note of how much is left out."""
    if len(text) <= max_chars:
        return text
    half = max_chars // 2
    return f"{text[:half]} [... {len(text) - 2 * half} characters ...] {text[-half:]}"


def one_line(text: str, max_chars: int = 300) -> str:
    """Text of a library or a server for use within a sentence: harmless, on one line, not too long."""
    return shortened(harmless(" ".join(text.split())), max_chars)


@dataclass(frozen=True)
class Palette:
    """Puts text into a style, or leaves it as it is."""

    is_coloured: bool = False

    @classmethod
    def of(cls, stream: TextIO) -> Palette:
        """Colours for a terminal, unless its user wants none. Source: https://no-color.org"""
        wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return cls(wanted and stream.isatty())

    def paint(self, text: str, style: Style | None) -> str:
        return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if self.is_coloured and style and text else text
