"""The first process inside a bubblewrap sandbox: runs one command at a time and ends everything that it started.

Runs by itself, on any Python from 3.9 on, and imports nothing of ours; `sandbox_bubblewrap.py` starts it.
It is PID 1 of its namespace, so that commands cannot signal it, everything ends with it, and `kill(-1)` reaches all but
it. It is not dumpable, so that they cannot trace it or look into it either. What it imports is part of what a session
costs to start: the modules `signal` and `contextlib` would take longer than all the others together.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import struct
import sys
import time

REQUEST = struct.Struct("!dI")  # seconds, bytes of the command that follows
REPLY = struct.Struct("!iBIIQQ")  # exit code, index into STOPPED_BY, bytes of head and tail, bytes and lines between
STOPPED_BY = ("", "time", "output", "memory", "files")
READY = b"ready\n"

CHANNEL = 0
SHELL = "/bin/bash"
SCRATCH = "/tmp"
CHANGES_FOLDER = (b"cd", b"pushd", b"popd")
REMEMBER_FOLDER = b"trap 'pwd -P >&9' EXIT; "  # where it is not needed, bash need not stay until a command has ended
FOLDER_FD = 9
WATCH_S = 0.1  # between two looks at memory and files
LINGER_S = 0.05  # for what a finished command left in the background to finish writing
SIG_DFL, SIGINT, SIGKILL, SIGPIPE, SIGXFSZ = 0, 2, 9, 13, 25
IGNORED_BY_PYTHON = (SIGPIPE, SIGXFSZ)  # and so by its children, unless told otherwise
PR_SET_DUMPABLE = 4
MB = 1 << 20


class Settings:
    """Limits as numbers on the command line, in this order, and then the first working folder."""

    def __init__(self, arguments: list[str]) -> None:
        numbers = [int(argument) for argument in arguments[:8]]
        self.cpu_s, self.memory_mb, self.max_processes, self.max_open_files = numbers[:4]
        self.max_file_mb, self.max_files, self.max_read_mb, self.keep_bytes = numbers[4:]
        self.folder = os.fsencode(arguments[8])


class Output:
    """The first and the last bytes of a stream, and the size of what was between them."""

    def __init__(self, keep_bytes: int) -> None:
        self.keep_bytes = keep_bytes
        self.head, self.tail = bytearray(), bytearray()
        self.num_bytes = self.num_cut_lines = 0

    def add(self, data: bytes) -> None:
        self.num_bytes += len(data)
        room = self.keep_bytes - len(self.head)
        self.head += data[:room]
        self.tail += data[room:]
        if len(self.tail) > 2 * self.keep_bytes:
            self.trim()

    def trim(self) -> None:
        over = len(self.tail) - self.keep_bytes
        if over > 0:
            self.num_cut_lines += self.tail.count(b"\n", 0, over)
            del self.tail[:over]


def start_shell(command: bytes, settings: Settings, output_end: int, folder_end: int) -> int:
    """Start bash on a command in this process's working folder and with its limits; returns its number.

    `posix_spawn` copies no memory of this process, and costs half of what fork does.
    """
    if any(word in command for word in CHANGES_FOLDER):
        command = REMEMBER_FOLDER + command
    command = b"ulimit -t %d; " % settings.cpu_s + command  # this process must not have that limit itself
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output_end, 1),
        (os.POSIX_SPAWN_DUP2, output_end, 2),
        (os.POSIX_SPAWN_DUP2, folder_end, FOLDER_FD),
    ]
    words = [b"bash", b"--noprofile", b"--norc", b"-c", command]
    return os.posix_spawn(SHELL, words, os.environ, file_actions=files, setsid=True, setsigdef=IGNORED_BY_PYTHON)


def end_all(pid: int) -> int:
    """Kill every process but this one, wait until all are gone, and return the status of `pid`."""
    status = 0
    while True:
        try:
            os.kill(-1, SIGKILL)
        except ProcessLookupError:
            return status
        try:
            ended, ended_status = os.waitpid(-1, 0)
        except ChildProcessError:
            return status
        if ended == pid:
            status = ended_status


def memory_in_use() -> int:
    """Bytes of private and shared memory of all processes but this one; what two of them share counts twice."""
    num_kb = 0
    for name in os.listdir("/proc"):
        if not name.isdecimal() or name == "1":
            continue
        try:
            with open(f"/proc/{name}/status", "rb") as file:
                lines = file.read().splitlines()
        except OSError:  # has ended
            continue
        num_kb += sum(int(line.split()[1]) for line in lines if line.startswith((b"RssAnon:", b"RssShmem:")))
    return num_kb << 10


def num_files() -> int:
    """Inodes of the scratch, which also cost memory that its size does not count."""
    found = os.statvfs(SCRATCH)
    return found.f_files - found.f_ffree


def exceeded(output: Output, settings: Settings) -> str:
    """The limit on output, memory or files that the command is over, or ""."""
    if output.num_bytes > settings.max_read_mb * MB:
        return "output"
    if num_files() > settings.max_files:
        return "files"
    if memory_in_use() > settings.memory_mb * MB:
        return "memory"
    return ""


def follow(pid_fd: int, output_fd: int, output: Output, timeout_s: float, settings: Settings) -> str:
    """Read the output until the shell ends, time is up or a limit is exceeded; returns which limit, or "".

    Raises:
        EOFError: the other side of the channel is gone.
    """
    poll = select.poll()
    poll.register(pid_fd, select.POLLIN)
    poll.register(output_fd, select.POLLIN)
    poll.register(CHANNEL, 0)  # tells of its end whatever is asked for
    deadline = time.monotonic() + timeout_s
    next_look = time.monotonic() + WATCH_S
    while True:
        now = time.monotonic()
        if now >= deadline:
            return "time"
        if now >= next_look:
            limit = exceeded(output, settings)
            if limit:
                return limit
            next_look = time.monotonic() + WATCH_S
        for fd, _ in poll.poll(1000 * max(0, min(deadline, next_look) - now)):
            if fd == CHANNEL:
                raise EOFError
            if fd == pid_fd:
                return ""
            data = os.read(output_fd, 1 << 16)
            output.add(data)
            if not data:
                poll.unregister(output_fd)
        if output.num_bytes > settings.max_read_mb * MB:
            return "output"


def drain(output_fd: int, output: Output, settings: Settings, until: float) -> None:
    """Read what is left: to the end of the stream or, where processes hold it open, until a moment in time."""
    poll = select.poll()
    poll.register(output_fd, select.POLLIN)
    while output.num_bytes <= settings.max_read_mb * MB and poll.poll(1000 * max(0, until - time.monotonic())):
        data = os.read(output_fd, 1 << 16)
        if not data or time.monotonic() > until:
            output.add(data)
            return
        output.add(data)


def run(command: bytes, timeout_s: float, folder: bytes, settings: Settings) -> tuple[int, str, Output, bytes]:
    """Run one command to its end; returns exit code, limit, output and the working folder that it left."""
    try:
        os.chdir(folder)
    except OSError:  # it was in the scratch and is gone
        os.chdir(settings.folder)
    output, (output_fd, output_end), (folder_fd, folder_end) = Output(settings.keep_bytes), os.pipe(), os.pipe()
    pid = start_shell(command, settings, output_end, folder_end)
    os.close(output_end)
    os.close(folder_end)
    pid_fd = os.pidfd_open(pid)
    stopped_by = follow(pid_fd, output_fd, output, timeout_s, settings)
    if not stopped_by:
        drain(output_fd, output, settings, time.monotonic() + LINGER_S)
    status = end_all(pid)
    drain(output_fd, output, settings, time.monotonic() + 1)
    if num_files() > settings.max_files:
        stopped_by = "files"
        empty_scratch()
    left = os.read(folder_fd, 4096).removesuffix(b"\n")
    for fd in (output_fd, folder_fd, pid_fd):
        os.close(fd)
    output.trim()
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
    return code, stopped_by, output, left if os.path.isdir(left) else folder


def empty_scratch() -> None:
    """Delete all files of the scratch, whatever their modes and however deep."""
    for command in (["/bin/chmod", "-R", "u+rwx", SCRATCH], ["/usr/bin/find", SCRATCH, "-mindepth", "1", "-delete"]):
        pid = os.posix_spawn(command[0], command, os.environ)
        os.waitpid(pid, 0)


def receive(size: int) -> bytes:
    """Exactly `size` bytes from the channel. Raises: EOFError, when the other side is gone."""
    data = bytearray()
    while len(data) < size:
        piece = os.read(CHANNEL, size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def send(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(CHANNEL, view) :]


def confine(settings: Settings) -> None:
    """Take on the limits of commands, which inherit them, and what keeps commands from this process."""
    limits = {
        resource.RLIMIT_AS: settings.memory_mb * MB,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: settings.max_file_mb * MB,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_NOFILE: settings.max_open_files,
        resource.RLIMIT_NPROC: settings.max_processes + 1,  # this process counts as well
    }
    for name, value in limits.items():
        highest = resource.getrlimit(name)[1]
        value = value if highest == resource.RLIM_INFINITY else min(value, highest)
        resource.setrlimit(name, (value, value))
    libc = ctypes.CDLL(None)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError("prctl")
    libc.signal(SIGINT, SIG_DFL)  # Python handles it, and PID 1 is only safe from signals that it does not handle


def main() -> None:
    settings = Settings(sys.argv[1:])
    os.closerange(3, 256)  # what bubblewrap may have left open
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.set_inheritable(CHANNEL, False)
    os.umask(0o022)
    folder = settings.folder
    confine(settings)
    send(READY)
    while True:
        try:
            timeout_s, size = REQUEST.unpack(receive(REQUEST.size))
            command = receive(size)
            code, stopped_by, output, folder = run(command, timeout_s, folder, settings)
        except EOFError:
            return
        sizes = len(output.head), len(output.tail)
        num_cut = output.num_bytes - sum(sizes)
        send(REPLY.pack(code, STOPPED_BY.index(stopped_by), *sizes, num_cut, output.num_cut_lines))
        send(bytes(output.head + output.tail))


if __name__ == "__main__":
    main()
