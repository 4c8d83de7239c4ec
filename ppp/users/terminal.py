"""A person at a terminal: lines in, text out, and nothing that an agent writes can steer the terminal.

Lines are waited for in the event loop, not in a thread, so that Ctrl-C finds nothing that hangs. Who asks for them is
`human.py`.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import unicodedata
from typing import TextIO

MAX_SHOWN_CHARS = 6000  # of one text
READ_BYTES = 65_536

# Sequences that move the cursor, change colours or titles, or write to the clipboard; 7-bit and 8-bit forms.
_OPENERS = r"\x90\x98\x9d-\x9f"
_CONTROL_STRING = re.compile(rf"(?:\x1b[P\]X^_]|[{_OPENERS}])(?:[^\x1b\x07\x9c{_OPENERS}]*(?:\x07|\x9c|\x1b\\))?")
_SEQUENCE = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|\x1b[ -/]*[0-~]?")
_HIDDEN = ("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp")  # controls, invisible and direction-changing characters


def printable(text: str) -> str:
    """The text without anything that a terminal does not simply print; lines stay, a tab becomes spaces."""
    text = _SEQUENCE.sub("", _CONTROL_STRING.sub("", text)).replace("\r\n", "\n").replace("\r", "\n").expandtabs(4)
    return "".join(letter for letter in text if letter == "\n" or unicodedata.category(letter) not in _HIDDEN)


def quoted(text: str) -> str:
    """The text for a terminal, every line marked, so that it cannot pass for one of ours."""
    shown = printable(text)
    if len(shown) > MAX_SHOWN_CHARS:
        shown = f"{shown[:MAX_SHOWN_CHARS]}\n[{len(shown) - MAX_SHOWN_CHARS} more characters]"
    return "\n".join(f"  | {line}" for line in shown.split("\n"))


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

    def write(self, text: str) -> None:
        self.writer.write(text)
        self.writer.flush()

    async def read_line(self) -> str:
        """The next line, without its end and without control characters.

        Raises:
            EOFError: there will be no more lines.
        """
        while b"\n" not in self._buffer:
            data = await self._read()
            if not data:
                raise EOFError
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return printable(line.decode("utf-8", "replace")).strip()

    async def _read(self) -> bytes:
        loop = asyncio.get_running_loop()
        number = self.reader.fileno()
        ready = asyncio.Event()
        loop.add_reader(number, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(number)
        return os.read(number, READ_BYTES)
