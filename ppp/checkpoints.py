"""Checkpoints on disk: each is there as a whole or not at all.

One is written into a folder beside (`_saving-<step>`), by all processes, reaches the disk, and gets its name
(`checkpoint-<step>`) by one renaming; older ones are removed after that. A run that is killed at any moment leaves
leftovers that the next start removes, and every checkpoint it had. What goes into a checkpoint is transformers'
business, called by `trainer.py`; whether a run may go on from one is in `resume.py`, which comes next.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors import SafetensorError

from ppp.types import DiskError

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"  # the last file that transformers writes into a checkpoint
FACTS_FILE = "run_facts.json"
PREFIX = "checkpoint-"
# An underscore keeps both kinds of leftovers from the Hub: transformers pushes nothing that begins with one.
SAVING, REMOVING = "_saving-", "_removing-"

# How torch.save tells of a disk that takes no more; safetensors and everything else say it with an error of their own.
_TORCH_WRITE_FAILURES = ("inline_container", "PytorchStreamWriter", "iostream error")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_complete(checkpoint: Path) -> bool:
    """Whether a folder holds a checkpoint that was written to its end."""
    try:
        return "global_step" in json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def step_of(checkpoint: Path | None) -> int:
    """Finished updates of a complete checkpoint; 0 without one."""
    if checkpoint is None:
        return 0
    return int(json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))["global_step"])


def find_checkpoints(folder: Path) -> list[Path]:
    """All complete checkpoints of a run, the oldest first."""
    return sorted((path for path in folder.glob(f"{PREFIX}*") if is_complete(path)), key=step_of)


def remove_leftovers(folder: Path) -> None:
    """Remove what a run left behind that was killed while it wrote or removed a checkpoint."""
    for path in [*folder.glob(f"{SAVING}*"), *folder.glob(f"{REMOVING}*")]:
        logger.info("removing %s, the rest of a run that was killed", path)
        shutil.rmtree(path, ignore_errors=True)


class Checkpoints:
    """Writes the checkpoints of one run and removes old ones.

    Args:
        folder: the run's output folder.
        limit: how many to keep; None keeps all.
        chosen: a checkpoint that somebody named to go on from, which is never removed.
        facts: JSON values that are written into each, for `resume.py`.
    """

    def __init__(
        self,
        folder: Path,
        limit: int | None = None,
        chosen: Path | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.limit, self.chosen = folder, limit, chosen
        self.facts = dict(facts or {})
        self.run_dir = folder  # in which transformers makes `checkpoint-<step>`

    def path(self, step: int) -> Path:
        return self.folder / f"{PREFIX}{step}"

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """Give the body a folder to write the checkpoint of `step` into, then make it one; for all processes together.

        Raises:
            DiskError: it could not be written, on this process. The others wait until whoever started them ends
                them, as at the failure of any process.
        """
        processes = PartialState()
        beside = self.folder / f"{SAVING}{step}"
        inner = beside / f"{PREFIX}{step}"
        try:
            if processes.is_local_main_process:
                shutil.rmtree(beside, ignore_errors=True)
            processes.wait_for_everyone()
            self.run_dir = beside
            yield inner
            if processes.is_main_process:
                (inner / FACTS_FILE).write_text(json.dumps(self.facts) + "\n", encoding="utf-8")
            sync_tree(beside)
            processes.wait_for_everyone()
            if processes.is_main_process:
                self._publish(inner, step)
            processes.wait_for_everyone()
            # Machines without a common disk have a folder each.
            if processes.is_local_main_process and not processes.is_main_process and inner.is_dir():
                self._publish(inner, step)
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(text in str(error) for text in _TORCH_WRITE_FAILURES):
                raise
            shutil.rmtree(beside, ignore_errors=True)
            raise DiskError(self._complaint(step, error)) from error
        finally:
            self.run_dir = self.folder

    def rotate(self, best: str | None = None) -> None:
        """Remove the oldest checkpoints beyond the limit; for the process that writes.

        The newest, the chosen one and `best` stay, whatever the limit.
        """
        found = find_checkpoints(self.folder)
        if not self.limit or not found:
            return
        protected = {found[-1].resolve()}
        protected.update(Path(path).resolve() for path in (self.chosen, best) if path is not None)
        old = [path for path in found if path.resolve() not in protected]
        for path in old[: max(0, len(found) - self.limit)]:
            self._remove(path)

    def _publish(self, inner: Path, step: int) -> None:
        final = self.path(step)
        if final.exists():
            self._remove(final)
        os.rename(inner, final)
        inner.parent.rmdir()
        sync(self.folder)

    def _remove(self, path: Path) -> None:
        """Take the name away first: half a checkpoint must not pass for a whole one."""
        doomed = self.folder / f"{REMOVING}{path.name}"
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _complaint(self, step: int, error: Exception) -> str:
        found = find_checkpoints(self.folder)
        kept = f"{found[-1]} is complete and was kept" if found else "there is no earlier one"
        free = shutil.disk_usage(self.folder).free
        cause = " ".join(str(error).split())
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            cause = str(error.strerror)
        return (
            f"the checkpoint of step {step} could not be written to {self.folder} ({cause}; {free / 1e9:.1f} GB are "
            f"free there); {kept}; make room and go on with --resume_from_checkpoint true"
        )


def sync(path: Path) -> None:
    """Bring a file or the entries of a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Bring everything under a folder to the disk, of which other processes may still be writing their part."""
    for parent, _, names in os.walk(folder):
        for path in (*(Path(parent) / name for name in names), Path(parent)):
            with suppress(FileNotFoundError):  # somebody's temporary file
                sync(path)


def sync_files(paths: Iterable[Path]) -> None:
    """Bring those of the files that exist to the disk."""
    for path in paths:
        with suppress(FileNotFoundError):
            sync(path)
