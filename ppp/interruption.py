"""Ctrl-C and SIGTERM as an orderly stop: at once where nothing can be lost, otherwise at the end of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Remembers that the run was told to stop; whoever runs it asks `told_by` where stopping is safe."""

    def __init__(self) -> None:
        self.told_by: str | None = None
        self._at_once = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Take the two signals while the body runs; a second one of them always stops at once.

        Raises:
            KeyboardInterrupt: from the body, where it was declared `interruptible`, or at a second signal.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach the main thread only, and so does the permission to handle them
            return

        def stop(number: int, frame: FrameType | None) -> None:
            is_second = self.told_by is not None
            self.told_by = signal.Signals(number).name
            if is_second or self._at_once:
                raise KeyboardInterrupt

        before = {number: signal.signal(number, stop) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal end the body at once; one that came before ends it before it begins."""
        if self.told_by is not None:
            raise KeyboardInterrupt
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False
