"""The sandbox of sessions: one bubblewrap process each, with the tree read-only and nothing else of the machine.

Inside are the programs of `sandbox_system.py`, a scratch in memory, and `sandbox_supervisor.py`, which runs commands.
All of it lives in namespaces that end with that process: there is nothing to clean up, however the trainer ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Coroutine, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ppp.environments.sandbox_base import Ended, Sandbox, SandboxLimits, lost
from ppp.environments.sandbox_output import Captured
from ppp.environments.sandbox_seccomp import MACHINES, filter_program
from ppp.environments.sandbox_supervisor import READY, REPLY, REQUEST, STOPPED_BY
from ppp.environments.sandbox_system import FILES, python, system_arguments
from ppp.types import RecipeError

UNPRIVILEGED_ID = 60_999  # user and group that root drops to; of nobody, and outside the ranges of systemd
START_S = 60.0  # for starting: many start at once
GRACE_S = 15.0  # for an answer beyond the time of a command
CLOSE_S = 2.0  # for ending by itself
_STAGES = ("/mnt", "/media", "/srv", "/opt", "/run", "/tmp")
# Binds folders that only root can come to ("$2", "$3") where all can, in a mount namespace that ends with the sandbox.
_STAGE_SCRIPT = """set -e
mount -t tmpfs -o mode=755,size=64k tmpfs "$1"
mkdir "$1/tree" "$1/python"
mount --bind "$2" "$1/tree"
mount --bind "$3" "$1/python"
shift 3
exec "$@"
"""
# When the machine runs out of memory, what is inside goes first and not the trainer.
_EXPENDABLE = ("/bin/sh", "-c", 'echo 1000 >/proc/self/oom_score_adj; exec "$@"', "sh")
_HELP = """{problem}
The tools of software tasks run in bubblewrap, and never without it.
- Not installed: apt install bubblewrap (dnf, pacman and conda-forge have it under the same name), 0.8 or newer.
- Namespaces are switched off: sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000
- Ubuntu from 23.10 on: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for bwrap.
- In a container: docker run --privileged, or --security-opt seccomp=unconfined --security-opt apparmor=unconfined
  --security-opt systempaths=unconfined.
- Linux 5.14 or newer is needed, on {machines}."""


def _help(problem: str) -> RecipeError:
    return RecipeError(_HELP.format(problem=f"sandbox 'bubblewrap': {problem}", machines=" or ".join(MACHINES)))


@functools.cache
def check_bubblewrap() -> None:
    """Start a sandbox once to see that it can be done; a success is remembered.

    Raises:
        RecipeError: bubblewrap is missing, too old or not permitted; says how to get it.
    """
    kernel = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in os.uname().release.split(".")[:2])
    if sys.platform != "linux" or kernel < (5, 14) or os.uname().machine not in MACHINES:
        raise _help(f"this is {os.uname().sysname} {os.uname().release} on {os.uname().machine}")
    for name in ("bwrap", *(() if os.geteuid() else ("setpriv", "unshare", "mount"))):
        if shutil.which(name) is None:
            raise _help(f"there is no program {name!r}")
    process, channel = _start(Path("/usr/share"), SandboxLimits(), "/testbed")
    with channel:
        channel.settimeout(START_S)
        said = b""
        with contextlib.suppress(OSError):
            while piece := channel.recv(4096):
                said += piece
                if said.startswith(READY):
                    break
        channel.shutdown(socket.SHUT_RDWR)
    process.kill()
    process.wait()
    if said != READY:
        raise _help(f"it does not start: {said.decode(errors='replace').strip() or 'no answer'}")


@functools.cache
def _supervisor() -> str:
    return (resources.files("ppp.environments") / "sandbox_supervisor.py").read_text(encoding="utf-8")


@functools.cache
def _filter() -> bytes:
    return filter_program(os.uname().machine)


@functools.cache
def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise lost(f"there is no program {name!r}")
    return found


def _open_to_all(path: str) -> bool:
    """Whether any user may pass through all folders above a path."""
    return all(folder.stat().st_mode & 0o001 for folder in Path(path).parents)


def _without_root(tree: str, prefix: str) -> tuple[list[str], str, str]:
    """What to put before bubblewrap so that root, whom limits on processes do not bind, becomes someone else first.

    Returns also where the tree and Python are to be found then.
    """
    if os.geteuid():
        return [], tree, prefix
    drop = [_program("setpriv"), f"--reuid={UNPRIVILEGED_ID}", f"--regid={UNPRIVILEGED_ID}", "--clear-groups", "--"]
    if _open_to_all(tree) and _open_to_all(prefix or "/"):
        return drop, tree, prefix
    for stage in _STAGES:
        if os.path.isdir(stage) and not any(Path(path).is_relative_to(stage) for path in (tree, prefix)):
            private = [_program("unshare"), "--mount", "--propagation", "private", "--", "/bin/sh", "-c", _STAGE_SCRIPT]
            prefix_there = f"{stage}/python" if prefix else ""
            return [*private, "sh", stage, tree, prefix or tree, *drop], f"{stage}/tree", prefix_there
    raise lost(f"there is no folder to mount {tree} on; tried {', '.join(_STAGES)}")


def _command_line(tree: Path, limits: SandboxLimits, mount_at: str, files: Mapping[str, int]) -> list[str]:
    """The whole command; `files` are file descriptors to read from, by path inside, and "" for the filter."""
    inside = python()
    before, tree_path, prefix = _without_root(str(tree), inside.prefix)
    arguments = [*_EXPENDABLE, *before, _program("bwrap"), *system_arguments()]
    if prefix:
        arguments += ["--ro-bind", prefix, inside.prefix]
    for folder in inside.hidden:
        arguments += ["--size", "4096", "--tmpfs", folder, "--remount-ro", folder]
    arguments += ["--ro-bind", tree_path, mount_at, "--perms", "1777"]
    arguments += ["--size", str(limits.scratch_mb << 20), "--tmpfs", "/tmp"]
    for path, fd in files.items():
        arguments += ["--file", str(fd), path] if path else ["--seccomp", str(fd)]
    numbers = (
        *(limits.cpu_s, limits.memory_mb, limits.max_processes, limits.max_open_files),
        *(limits.max_file_mb, limits.max_files, limits.max_read_mb, 4 * limits.max_output_chars),
    )
    arguments += ["--remount-ro", "/", "--chdir", mount_at, "--", inside.executable, "-I", "-S", "-c", _supervisor()]
    return [*arguments, *map(str, numbers), mount_at]


def _start(tree: Path, limits: SandboxLimits, mount_at: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a sandbox; READY, or else what went wrong, comes over the channel.

    The sandbox ends with the thread that calls this. Nothing may run between fork and exec here: that would take
    Python's slow way of starting a process, which copies the page tables of a trainer and is unsafe beside threads.
    """
    ours, theirs = socket.socketpair()
    files: dict[str, int] = {}
    try:
        for path, data in (*((path, text.encode()) for path, text in FILES.items()), ("", _filter())):
            files[path], end = os.pipe()
            os.write(end, data)  # far less than a pipe holds
            os.close(end)
        process = subprocess.Popen(
            _command_line(tree, limits, mount_at, files),
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=theirs.fileno(),
            pass_fds=list(files.values()),
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            start_new_session=True,  # Ctrl-C is for the trainer, which then closes its sandboxes
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        for fd in files.values():
            os.close(fd)
    return process, ours


class BubblewrapSandbox(Sandbox):
    """A sandbox around a read-only tree.

    Args:
        tree: a folder that anybody may read; folders above it may be closed to others.
        limits: the bounds of commands.
        mount_at: where the tree is seen, and the first working folder.
    """

    def __init__(self, tree: Path, limits: SandboxLimits | None = None, *, mount_at: str = "/testbed") -> None:
        super().__init__(limits)
        self.tree, self.mount_at = tree, mount_at
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def setup(self) -> None:
        tree = self.tree.resolve()
        if not tree.is_dir():
            raise lost(f"there is no folder {tree}")
        if not os.geteuid() and tree.stat().st_mode & 0o005 != 0o005:
            raise lost(f"{tree} is closed to others, and root gives up its rights here: chmod -R go+rX it")
        try:
            self._process, channel = _start(tree, self.limits, self.mount_at)
        except OSError as error:
            raise lost("it cannot be started", str(error)) from error
        self._reader, self._writer = await asyncio.open_connection(sock=channel)
        said = await self._answer(self._reader.read(len(READY)), START_S)
        if said != READY:
            while piece := await self._answer(self._reader.read(4096), START_S):
                said += piece
            raise lost("it does not start", said.decode(errors="replace").strip())

    async def _run(self, command: bytes, timeout_s: float) -> Ended:
        if self._writer is None:
            raise lost("it is not open")
        try:
            self._writer.write(REQUEST.pack(timeout_s, len(command)) + command)
            header = await self._answer(self._reader.readexactly(REPLY.size), timeout_s + GRACE_S)
            code, limit, num_head, num_tail, num_cut, num_cut_lines = REPLY.unpack(header)
            most = 8 * self.limits.max_output_chars
            if limit >= len(STOPPED_BY) or num_head > most or num_tail > most:
                raise lost("it answers nonsense", header.decode(errors="replace"))
            head = await self._answer(self._reader.readexactly(num_head), GRACE_S)
            tail = await self._answer(self._reader.readexactly(num_tail), GRACE_S)
        except BaseException:  # also when cancelled: what is still to come must not be taken for the next answer
            self._kill()
            raise
        return Ended(code, STOPPED_BY[limit], Captured(head, tail, num_cut, num_cut_lines))

    async def _answer(self, read: Coroutine[Any, Any, bytes], timeout_s: float) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                return await read
        except asyncio.IncompleteReadError as error:
            raise lost("it ended", error.partial.decode(errors="replace")) from None
        except TimeoutError:
            raise lost(f"no answer within {timeout_s:g} s") from None
        except OSError as error:
            raise lost("it ended", str(error)) from error

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    async def close(self) -> None:
        """End the sandbox: its first process ends when the channel does, and everything in it with that process."""
        process, writer = self._process, self._writer
        self._process = self._writer = None
        if writer is not None:
            writer.close()
        if process is None:
            return
        try:
            if process.poll() is None:
                async with asyncio.timeout(CLOSE_S):
                    await _ended(process.pid)
        except TimeoutError:
            pass
        finally:
            process.kill()
            process.wait()


async def _ended(pid: int) -> None:
    """Wait for the end of a child, without a thread and without taking its status."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    fd = os.pidfd_open(pid)
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
