"""A pseudo-terminal for tests: what a person types goes into `keys`, what is shown comes out of `screen`."""

from __future__ import annotations

import os
import pty
from pathlib import Path
from typing import TextIO

from ppp.users.human import HumanService
from ppp.users.terminal import Terminal


class Desk:
    """A terminal to read from, and a file to write to."""

    def __init__(self, folder: Path) -> None:
        self.keys, slave = pty.openpty()
        self.reader: TextIO = os.fdopen(slave, "r")
        self.path = folder / "screen.txt"
        self.writer = self.path.open("w", encoding="utf-8")
        self.terminal = Terminal(self.reader, self.writer)
        self.service = HumanService(self.terminal)

    def type(self, *lines: str) -> None:
        for line in lines:
            os.write(self.keys, f"{line}\n".encode())

    @property
    def screen(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def close(self) -> None:
        os.close(self.keys)
        self.reader.close()
        self.writer.close()
