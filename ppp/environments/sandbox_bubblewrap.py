"""The sandbox of sessions: one bubblewrap process each, with the tree read-only and nothing else of the machine.

Inside are the system's programs and libraries, a Python without installed packages (a later release of the repository
among them would hold the answer), a scratch in memory, and `sandbox_supervisor.py`, which runs the commands. All of it
lives in namespaces that end with that process: there is nothing to clean up, however the trainer ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ppp.environments.sandbox_base import Ended, Sandbox, SandboxLimits, lost
from ppp.environments.sandbox_output import Captured
from ppp.environments.sandbox_seccomp import MACHINES, filter_program
from ppp.environments.sandbox_supervisor import READY, REPLY, REQUEST, STOPPED_BY
from ppp.types import RecipeError

UNPRIVILEGED_ID = 60_999  # user and group that root drops to; of nobody, and outside the ranges of systemd
START_S = 60.0  # for starting: many start at once
GRACE_S = 15.0  # for an answer beyond the time of a command
CLOSE_S = 2.0  # for ending by itself
_ID = "1000"  # user and group as seen inside
_FILES = {
    "/etc/passwd": f"agent:x:{_ID}:{_ID}::/tmp:/bin/bash\n",
    "/etc/group": f"agent:x:{_ID}:\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\n",
}
# The configuration of a tree runs programs of its own through these.
_GIT_CONFIG = {
    "safe.directory": "*",
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.sshCommand": "false",
    "core.editor": "false",
    "gc.auto": "0",
    "core.packedGitWindowSize": "32m",  # the default maps a gigabyte, which counts as memory of the process
    "core.packedGitLimit": "256m",
}
_VARIABLES = {
    "PATH": "/opt/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "USER": "agent",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TERM": "dumb",
    "TZ": "UTC",
    "PAGER": "cat",
    "PYTHONDONTWRITEBYTECODE": "1",
    "GIT_PAGER": "cat",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "file",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_COUNT": str(len(_GIT_CONFIG)),
    **{f"GIT_CONFIG_KEY_{index}": name for index, name in enumerate(_GIT_CONFIG)},
    **{f"GIT_CONFIG_VALUE_{index}": value for index, value in enumerate(_GIT_CONFIG.values())},
}
_LIBRARIES = ("*-linux-*", "git-core", "locale", "python3.*", "terminfo")  # of /usr/lib, where it is laid out so
_SYSTEM = (
    "/usr/bin",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/libexec/git-core",
    "/usr/share/git-core",
    "/usr/share/terminfo",
)
_LINKS = ("/bin", "/lib", "/lib64")  # links into /usr today, folders of their own on older systems
_CONFIGURATION = ("/etc/alternatives", "/etc/ld.so.cache")
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
    if shutil.which("bwrap") is None:
        raise _help("there is no program 'bwrap'")
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


@dataclass(frozen=True)
class _Python:
    """The interpreter inside: the system's, or that of the trainer without what is installed for it."""

    executable: str
    prefix: str  # to be mounted; "" for the system's
    hidden: tuple[str, ...]  # folders of installed packages


@functools.cache
def _python() -> _Python:
    ask = (
        "import json, sys, site, sysconfig; "
        "print(json.dumps([sys.version_info[:2], sorted({*site.getsitepackages(), *map(sysconfig.get_path, "
        "['purelib', 'platlib'])}), sysconfig.get_path('stdlib')]))"
    )
    base = str(Path(sys.base_prefix).resolve())
    own = f"{base}/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    for executable in ("/usr/bin/python3", own):
        if not os.path.exists(executable):
            continue
        said = subprocess.run([executable, "-I", "-c", ask], capture_output=True, text=True, check=False)
        if said.returncode:
            continue
        version, packages, library = json.loads(said.stdout)
        if tuple(version) < (3, 9):
            continue
        prefix = "" if executable.startswith("/usr/bin/") else base
        folders = {*packages, f"{library}/site-packages", f"{library}/dist-packages", f"{library}/ensurepip"}
        folders |= {f"{base}/envs", f"{base}/pkgs"} if prefix else {"/usr/lib/python3/dist-packages"}
        return _Python(executable, prefix, tuple(sorted(str(Path(name)) for name in folders if os.path.isdir(name))))
    raise _help("there is no Python 3.9 or newer at /usr/bin/python3, and the one that runs this cannot be used either")


@functools.cache
def _system_arguments() -> tuple[str, ...]:
    """The part of bubblewrap's arguments that is the same for all sandboxes of a process."""
    arguments = ["--unshare-all", "--unshare-user", "--disable-userns", "--uid", _ID, "--gid", _ID]
    arguments += ["--hostname", "sandbox", "--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"]
    arguments += ["--cap-drop", "ALL"]
    multiarch = any(Path("/usr/lib").glob("*-linux-gnu"))
    libraries = (
        sorted(path for name in _LIBRARIES for path in Path("/usr/lib").glob(name)) if multiarch else ["/usr/lib"]
    )
    for path in (*_SYSTEM, *map(str, libraries), *_CONFIGURATION):
        arguments += ["--ro-bind-try", path, path]
    for name in _LINKS:
        if os.path.islink(name):
            arguments += ["--symlink", os.readlink(name), name]
        else:
            arguments += ["--ro-bind-try", name, name]
    for name in ("python", "python3"):
        arguments += ["--symlink", _python().executable, f"/opt/bin/{name}"]
    for name, value in _VARIABLES.items():
        arguments += ["--setenv", name, value]
    return (*arguments, "--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev", "--remount-ro", "/dev")


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
    python = _python()
    before, tree_path, prefix = _without_root(str(tree), python.prefix)
    arguments = [*_EXPENDABLE, *before, _program("bwrap"), *_system_arguments()]
    if prefix:
        arguments += ["--ro-bind", prefix, python.prefix]
    for folder in python.hidden:
        arguments += ["--size", "4096", "--tmpfs", folder, "--remount-ro", folder]
    arguments += ["--ro-bind", tree_path, mount_at, "--perms", "1777"]
    arguments += ["--size", str(limits.scratch_mb << 20), "--tmpfs", "/tmp"]
    for path, fd in files.items():
        arguments += ["--file", str(fd), path] if path else ["--seccomp", str(fd)]
    numbers = (
        *(limits.cpu_s, limits.memory_mb, limits.max_processes, limits.max_open_files),
        *(limits.max_file_mb, limits.max_files, limits.max_read_mb, 4 * limits.max_output_chars),
    )
    arguments += ["--remount-ro", "/", "--chdir", mount_at, "--", python.executable, "-I", "-S", "-c", _supervisor()]
    return [*arguments, *map(str, numbers), mount_at]


def _start(tree: Path, limits: SandboxLimits, mount_at: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a sandbox; READY, or else what went wrong, comes over the channel.

    The sandbox ends with the thread that calls this. Nothing may run between fork and exec here: that would take
    Python's slow way of starting a process, which copies the page tables of a trainer and is unsafe beside threads.
    """
    ours, theirs = socket.socketpair()
    files: dict[str, int] = {}
    try:
        for path, data in (*((path, text.encode()) for path, text in _FILES.items()), ("", _filter())):
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
            said += await self._answer(self._reader.read(4096), 1.0)
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
