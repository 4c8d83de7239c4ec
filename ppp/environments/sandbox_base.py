"""What a sandbox promises: the limits of a command, what comes back from it, and the protocol of a session.

No sandbox is here: `sandbox_bubblewrap.py` is the one that sessions use, `sandbox_container.py` the one for images, and
`sandbox.py` the table of both.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self

from ppp.environments.sandbox_output import Captured, show
from ppp.types import InfrastructureError, RecipeError

MAX_COMMAND_BYTES = 120_000  # Linux takes no longer argument
_STOPPED_BY = {
    "time": "The command was stopped after {limits.timeout_s:g} seconds.",
    "output": "The command was stopped after {limits.max_read_mb} MB of output.",
    "memory": "The command was stopped: its processes took more than {limits.memory_mb} MB of memory together.",
    "files": "The command was stopped and the scratch emptied: it held more than {limits.max_files} files.",
}


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """The bounds of one command; those of the scratch hold for the whole session.

    Attributes:
        timeout_s: of wall time; all processes of the command end with it.
        cpu_s: of processor time, for each process.
        memory_mb: for each process at any moment, and for all of them together when looked at, ten times a second.
        max_processes: at a time, threads included.
        max_open_files: of each process.
        max_file_mb: size of one file that is written.
        scratch_mb: size of all of them together.
        max_files: number of files, folders and links in the scratch.
        max_read_mb: output after which a command is stopped.
        max_output_chars: what is shown of the output: its head and its tail.
        max_line_chars: what is shown of one line.
    """

    timeout_s: float = 30.0
    cpu_s: int = 60
    memory_mb: int = 1024
    max_processes: int = 64
    max_open_files: int = 256
    max_file_mb: int = 64
    scratch_mb: int = 256
    max_files: int = 20_000
    max_read_mb: int = 16
    max_output_chars: int = 30_000
    max_line_chars: int = 2_000

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            kinds = (int, float) if name == "timeout_s" else (int,)
            if type(value) not in kinds or not 0 < value < float("inf"):  # a bool is an int to isinstance
                allowed = "a positive number" if name == "timeout_s" else "an integer of at least 1"
                raise RecipeError(f"sandbox limits: {name}: {value!r} is not allowed; allowed: {allowed}")


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What one command did.

    Attributes:
        exit_code: 128 + n after signal n, as a shell says it; None when a limit of ours ended the command.
        output: what it wrote, both streams as they came, made harmless and shortened by `sandbox_output.py`.
        num_cut_chars: characters of the output that are not shown (those never decoded count as a character a byte).
        stopped_by: the limit that ended it: "time", "output", "memory" or "files"; "" for none.
        note: the same as a sentence for the policy.
    """

    exit_code: int | None
    output: str
    num_cut_chars: int = 0
    stopped_by: str = ""
    note: str = ""

    @property
    def timed_out(self) -> bool:
        return self.stopped_by == "time"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, before its output is made fit to be shown; what a sandbox of one kind reports."""

    exit_code: int
    stopped_by: str
    captured: Captured


class Sandbox(ABC):
    """One session's place to run commands, used as `async with`; bash with the tree as the first working folder.

    The working folder and the files in the scratch stay from one call to the next; processes, variables and functions
    do not. A command that breaks a limit or fails is a result; `InfrastructureError` means that the sandbox is lost.
    """

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        self.limits = limits or SandboxLimits()
        self._turn = asyncio.Lock()

    @abstractmethod
    async def setup(self) -> None:
        """Start it. Raises: InfrastructureError."""

    @abstractmethod
    async def close(self) -> None:
        """End it with everything in it; may be called twice, and after a failure."""

    @abstractmethod
    async def _run(self, command: bytes, timeout_s: float) -> Ended:
        """Run one command; never called while another one runs."""

    async def run(self, command: str, *, timeout_s: float | None = None) -> CommandResult:
        """Run `command` by bash and wait for its end, or for `timeout_s` (at most and by default that of the limits).

        Raises:
            InfrastructureError: the sandbox is lost; never for anything that a command did within it.
        """
        limits = self.limits
        timeout_s = limits.timeout_s if timeout_s is None else max(0.0, min(timeout_s, limits.timeout_s))
        encoded = command.encode("utf-8", "replace")
        if b"\0" in encoded or len(encoded) > MAX_COMMAND_BYTES:
            problem = "holds a NUL character" if b"\0" in encoded else f"is longer than {MAX_COMMAND_BYTES} bytes"
            return CommandResult(126, f"The command {problem}; it was not run.")
        async with self._turn:
            ended = await self._run(encoded, timeout_s)
        shown = show(ended.captured, limits.max_output_chars, limits.max_line_chars)
        if not ended.stopped_by:
            return CommandResult(ended.exit_code, shown.text, shown.num_cut_chars)
        note = _STOPPED_BY[ended.stopped_by].format(limits=limits)
        if ended.stopped_by == "time":
            note = f"The command was stopped after {timeout_s:g} seconds."
        return CommandResult(None, shown.text, shown.num_cut_chars, ended.stopped_by, note)

    async def __aenter__(self) -> Self:
        try:
            await self.setup()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def lost(what: str, detail: str = "") -> InfrastructureError:
    """The error for a sandbox that does not answer as it should."""
    return InfrastructureError(f"sandbox: {what}{': ' + detail if detail else ''}", kind="sandbox")
