"""A person at a terminal: lines in, text out, and nothing that an agent writes can steer the terminal.

Lines are waited for in the event loop, not in a thread, so that Ctrl-C finds nothing that hangs. Who asks for them is
`human.py`, for people who play the user, and `ppp/agents/person.py`, for those who play the agent.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import unicodedata
from typing import TextIO

import wcwidth

MAX_SHOWN_CHARS = 6000  # of one text
READ_BYTES = 65_536
WIDTH = 80  # where nobody says how wide the screen is
WIDEST = 100  # longer lines are hard to read
NARROWEST = 20
MARK = "  | "  # stands before every line that is not ours
STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
LEFT = "The person at the terminal has left: the input has ended."

# Sequences that move the cursor, change colours or titles, or write to the clipboard; 7-bit and 8-bit forms.
_OPENERS = r"\x90\x98\x9d-\x9f"
_CONTROL_STRING = re.compile(rf"(?:\x1b[P\]X^_]|[{_OPENERS}])(?:[^\x1b\x07\x9c{_OPENERS}]*(?:\x07|\x9c|\x1b\\))?")
_SEQUENCE = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|\x1b[ -/]*[0-~]?")
_HIDDEN = ("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp")  # controls, invisible and direction-changing characters


def printable(text: str) -> str:
    """The text without anything that a terminal does not simply print; lines stay, a tab becomes spaces."""
    text = _SEQUENCE.sub("", _CONTROL_STRING.sub("", text)).replace("\r\n", "\n").replace("\r", "\n").expandtabs(4)
    return "".join(letter for letter in text if letter == "\n" or unicodedata.category(letter) not in _HIDDEN)


def one_line(text: str) -> str:
    """The printable text on a single line, for a place within a sentence of ours."""
    return " ".join(printable(text).split())


def wrapped(text: str, width: int, mark: str = "") -> str:
    """The text in lines of at most `width` columns, each behind `mark`; only the spaces where it is broken go."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines += wcwidth.wrap(
            line,
            width - len(mark),
            expand_tabs=False,
            replace_whitespace=False,
            break_on_hyphens=False,
        ) or [""]
    return "\n".join(f"{mark}{line}" for line in lines)


def quoted(text: str, width: int = WIDTH, max_chars: int = MAX_SHOWN_CHARS) -> str:
    """The text for a terminal, every line marked, so that it cannot pass for one of ours.

    Lines are broken here, because those that the terminal breaks go on at its left edge, where ours begin.
    """
    shown = printable(text)
    if len(shown) > max_chars:
        shown = f"{shown[:max_chars]}\n[{len(shown) - max_chars} more characters]"
    return wrapped(shown, width, MARK)


class Terminal:
    """Reads lines and writes text.

    Args:
        reader: has a file number; None is the standard input.
        writer: None is the standard error, which is where progress is shown, too.
    """

    def __init__(self, reader: TextIO | None = None, writer: TextIO | None = None) -> None:
        self.reader, self.writer = reader or sys.stdin, writer or sys.stderr
        self._buffer = b""

    @property
    def has_person(self) -> bool:
        """Whether somebody can read and answer."""
        return all(stream is not None and stream.isatty() for stream in (self.reader, self.writer))

    @property
    def width(self) -> int:
        """Columns of the screen as it is now, for lines that we break."""
        try:
            columns = os.get_terminal_size(self.writer.fileno()).columns
        except OSError:
            columns = 0
        return min(max(columns or WIDTH, NARROWEST), WIDEST)

    def write(self, text: str) -> None:
        """Write the text; what the terminal's encoding lacks is escaped."""
        self.writer.write(self._encodable(text))
        self.writer.flush()

    def say(self, text: str, *styles: str, indent: int = 0) -> None:
        """Write words of ours as lines that fit the screen."""
        self.write(self.styled(wrapped(text, self.width, " " * indent), *styles) + "\n")

    def quote(self, text: str, max_chars: int = MAX_SHOWN_CHARS) -> None:
        """Write somebody else's text, every line marked."""
        # Escaped before it is broken into lines: an escape is longer than what it stands for.
        self.write(quoted(self._encodable(printable(text)), self.width, max_chars) + "\n")

    def styled(self, text: str, *styles: str) -> str:
        """The text in bold or in colours, where the terminal has them and the person wants them (NO_COLOR)."""
        is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb" or not self.writer.isatty()
        if is_plain or not styles:
            return text
        return f"\x1b[{';'.join(STYLES[style] for style in styles)}m{text}\x1b[0m"

    async def read_line(self) -> str:
        """The next line, without its end, the spaces around it, and control characters.

        Raises:
            EOFError: there will be no more lines.
        """
        return (await self.read_row()).strip()

    async def read_row(self) -> str:
        """Like `read_line`, with the spaces around it: a line of a longer text.

        Raises:
            EOFError: there will be no more lines.
        """
        while b"\n" not in self._buffer:
            data = await self._read()
            if not data:
                raise EOFError
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            return printable(line.decode("utf-8"))
        except UnicodeDecodeError:
            return printable(line.decode(self.reader.encoding, "replace"))

    async def _read(self) -> bytes:
        loop = asyncio.get_running_loop()
        number = self.reader.fileno()
        ready = asyncio.Event()
        loop.add_reader(number, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(number)
        try:
            return os.read(number, READ_BYTES)
        except OSError:  # the other end of the terminal is gone
            return b""

    def _encodable(self, text: str) -> str:
        encoding = self.writer.encoding
        return text.encode(encoding, "backslashreplace").decode(encoding)
