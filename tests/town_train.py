"""`python tests/town_train.py ...` is `ppp train ...`, small and able to be killed.

With PPP_TEST_KILL_AT=<n> the process kills itself right before the n-th change that it makes to its output folder. What
a run leaves on disk when it is killed at any moment is what it leaves right before one of these changes.
PPP_TEST_CHANGES=<file> has them written down, one line each. PPP_TEST_MAX_FILE=<bytes> limits the size of every file,
as a disk does that is nearly full.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch

from ppp.train import main

# The events by which Python tells of a change to a folder, see `sys.addaudithook`.
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")


def watch(folder: Path) -> None:
    """Count the changes to a folder, and act as the environment says."""
    kill_at = int(os.environ.get("PPP_TEST_KILL_AT", "0"))
    log = os.environ.get("PPP_TEST_CHANGES")
    prefix = str(folder.absolute())
    num = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal num
        writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if not writes and event not in CHANGES:
            return
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes, os.PathLike)) else ""
        if not (os.path.abspath(path) + os.sep).startswith(prefix + os.sep):
            return
        num += 1
        if num == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if log is not None:
            with open(log, "a") as file:
                file.write(f"{event} {os.path.relpath(path, prefix)}\n")

    sys.addaudithook(hook)


def run(argv: list[str]) -> int:
    torch.set_num_threads(1)
    # DeepSpeed would compile its own communication for CPUs, a minute's work, and gloo does as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if "PPP_TEST_MAX_FILE" in os.environ:
        limit = int(os.environ["PPP_TEST_MAX_FILE"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if {"PPP_TEST_KILL_AT", "PPP_TEST_CHANGES"} & set(os.environ):
        watch(Path(argv[argv.index("--output_dir") + 1]))
    return main(argv)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
