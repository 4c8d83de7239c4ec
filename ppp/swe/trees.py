"""Read-only trees, one per commit, shared by all sessions and processes of a machine and bounded on disk.

Whoever asks first for a commit has it built (see `checkouts.py`), the others wait; after that a tree costs tens of
microseconds. A tree in use is held by a lock of the kernel's on a file beside it: it cannot be deleted, and a process
that dies, however it dies, lets go of it. Nothing here keeps an agent from writing: that is the sandbox's work.

Below the store's folder:
    trees/NAME/tree      a checkout; `trees/NAME/lease` is what its users lock, and holds its size in bytes
    building/, trash/    on the way there and back; what a process left when it was killed is cleared by the next one
    locks/               who builds, who cleans up; at most a few hundred empty files
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ppp.swe.checkouts import DEFAULT_HISTORY, build_checkout, remove_tree
from ppp.swe.mirrors import FAILURE_KIND, file_lock, is_full_id, resolve_commit
from ppp.types import InfrastructureError, RecipeError

logger = logging.getLogger(__name__)

_FORMAT = 1  # part of every name: raise it when trees are built differently, and old ones are never used again
_NUM_BUILD_LOCKS = 256  # two trees that share one are merely built one after the other


def default_folder() -> Path:
    """Where trees are kept unless a recipe says otherwise: in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppp" / "trees"


class TreeStore:
    """Trees below `folder`; any number of stores in any number of processes may share it.

    History cannot be shared between trees, as it would show a session what was done later, so it is what a tree costs
    beside its files. Of one tree of pytest / sphinx (504 / 1,466 files, both in 2020), by processor time of one core:

        history   commits in .git   seconds to build   MB on disk
        0               0 / 0           0.4 / 0.9        5 / 22
        50            716 / 991         0.7 / 2.2        8 / 30
        200         4,816 / 10,165      2.1 / 6.0       14 / 63
        None       12,364 / 16,389      3.3 / 7.0       30 / 73

    A power cut may damage a tree that was written seconds before: delete the folder then. The folder has to be on a
    file system with working locks, which a local disk always is.

    Args:
        max_gb: in units of 10**9 bytes. Beyond it the trees that were not used for the longest time are deleted, but
            none that is in use, and the one being built comes on top.
        history: generations of commits in a tree's `.git`, see `build_checkout`; None for all, 0 for no `.git`.
    """

    def __init__(self, folder: Path, max_gb: float = 20.0, *, history: int | None = DEFAULT_HISTORY) -> None:
        """Raises `RecipeError` for a folder that cannot be written to, or a number that makes no sense."""
        if not max_gb > 0:
            raise RecipeError(f"max_gb: {max_gb!r} is not allowed; allowed: a number > 0")
        if history is not None and (type(history) is not int or history < 0):
            raise RecipeError(f"history: {history!r} is not allowed; allowed: an integer >= 0, or null for all of it")
        self.folder = Path(folder).expanduser().resolve()
        self._max_bytes = int(max_gb * 10**9)
        self._history = history
        self._trees, self._building, self._trash, self._locks = (
            self.folder / name for name in ("trees", "building", "trash", "locks")
        )
        try:
            for path in (self._trees, self._building, self._trash, self._locks):
                path.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=path).close()
        except OSError as error:
            raise RecipeError(f"folder: trees cannot be kept in {str(folder)!r}: {error}") from error

    @contextlib.contextmanager
    def tree(self, source: str | Path, commit: str | None) -> Iterator[Path]:
        """The folder with `commit` of the repository at `source`; it stays as it is for as long as the block runs.

        Blocks: 0.1 ms or less if the tree is there, else for as long as it takes to build. Without a commit, `source`
        is a folder that is used as it is.

        Raises:
            InfrastructureError: the source or the commit is missing or damaged, or the tree cannot be written; names
                both, with git's message.
        """
        root = Path(source).expanduser().resolve()
        if commit is None:
            if not root.is_dir():
                raise InfrastructureError(f"{source} is not a folder", kind=FAILURE_KIND)
            yield root
            return
        full_id = commit.lower() if is_full_id(commit.lower()) else resolve_commit(root, commit)
        entry = self._trees / self._name(Path(source).name, root, full_id)
        lease = _take(entry)
        while lease is None:  # nobody has built it, or it was deleted a moment ago
            lease = self._build(root, full_id, entry)
        try:
            yield entry / "tree"
        finally:
            os.utime(lease, ns=(time.time_ns(),) * 2)  # the kernel's own clock for files ticks every few milliseconds
            fcntl.flock(lease, fcntl.LOCK_UN)  # a forked child may hold the descriptor too
            os.close(lease)

    def trim(self) -> int:
        """Delete unused trees until those that are left fit into `max_gb`, and what killed processes left; bytes kept.

        Done after every tree that is built, too.
        """
        try:
            with file_lock(self._locks / "trim"):
                self._sweep()
                kept = sorted(_entries(self._trees))
                num_bytes = sum(size for _, size, _ in kept)
                for _, size, entry in kept:
                    if num_bytes <= self._max_bytes:
                        break
                    if self._discard(entry):
                        num_bytes -= size
        except OSError as error:
            raise InfrastructureError(f"cannot clear up in {self.folder}: {error}", kind=FAILURE_KIND) from error
        if num_bytes > self._max_bytes:
            logger.warning(
                "%s: the trees in use take %.1f GB, more than the allowed %.1f", self.folder, num_bytes / 1e9,
                self._max_bytes / 1e9,
            )  # fmt: skip
        return num_bytes

    def _name(self, source_name: str, root: Path, full_id: str) -> str:
        """Begins with what a person looks for; the hash at its end tells everything apart that makes another tree."""
        digest = hashlib.sha256(repr((_FORMAT, str(root), full_id, self._history)).encode("utf-8", "replace"))
        readable = re.sub(r"[^\w.+-]", "_", source_name)[:80]
        return f"{readable}-{full_id[:12]}-{digest.hexdigest()[:16]}"

    def _build_lock(self, name: str) -> Path:
        return self._locks / f"build-{int(name[-4:], 16) % _NUM_BUILD_LOCKS:02x}"

    def _build(self, root: Path, full_id: str, entry: Path) -> int:
        """Put a tree where it belongs, unless somebody else has by now; a descriptor that holds its lock."""
        try:
            with file_lock(self._build_lock(entry.name)):
                lease = _take(entry)
                if lease is not None:
                    return lease
                if entry.exists():
                    self._delete(entry)  # somebody has deleted files in it
                lease = self._build_entry(root, full_id, entry)
        except OSError as error:
            message = f"{root}, commit {full_id}: cannot keep a tree in {self.folder}: {error}"
            raise InfrastructureError(message, kind=FAILURE_KIND) from error
        try:
            self.trim()
        except BaseException:
            os.close(lease)
            raise
        return lease

    def _build_entry(self, root: Path, full_id: str, entry: Path) -> int:
        unfinished = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", dir=self._building))
        try:
            unfinished.chmod(0o755)
            size = build_checkout(root, resolve_commit(root, full_id), unfinished / "tree", self._history)
            (unfinished / "lease").write_text(str(size), encoding="ascii")
            lease = _take(unfinished)  # from before anybody can find it, or it might be deleted before it is used
            assert lease is not None
            try:
                unfinished.rename(entry)
            except OSError:
                os.close(lease)
                raise
            return lease
        finally:
            remove_tree(unfinished)

    def _discard(self, entry: Path) -> bool:
        """Delete a tree unless it is in use; whether it is gone."""
        lease = _take(entry, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lease is None:
            return not entry.exists()
        try:
            self._delete(entry)
        finally:
            os.close(lease)
        return True

    def _delete(self, entry: Path) -> None:
        doomed = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", dir=self._trash))
        entry.rename(doomed / "entry")  # at once: nobody ever sees half a tree
        remove_tree(doomed)

    def _sweep(self) -> None:
        """Delete what processes that were killed had in hand; called by one process at a time."""
        for doomed in self._trash.iterdir():
            remove_tree(doomed)
        for unfinished in self._building.iterdir():
            with (
                contextlib.suppress(BlockingIOError),
                file_lock(self._build_lock(unfinished.name.rpartition(".")[0]), wait=False),
            ):
                remove_tree(unfinished)  # whoever builds holds the lock


def _take(entry: Path, operation: int = fcntl.LOCK_SH) -> int | None:
    """A descriptor that holds the lock of a tree, or None where there is no such tree, or its lock cannot be had."""
    path = entry / "lease"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InfrastructureError(f"cannot use the tree {entry}: {error}", kind=FAILURE_KIND) from error
    try:
        fcntl.flock(descriptor, operation)
        if os.path.samestat(os.stat(path), os.fstat(descriptor)):
            return descriptor
    except (FileNotFoundError, BlockingIOError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)  # in use, or deleted (and perhaps built again) between the opening and the lock
    return None


def _entries(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """When each tree was last used, its size in bytes, and where it is."""
    for entry in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            lease = entry / "lease"
            yield lease.stat().st_mtime_ns, int(lease.read_text(encoding="ascii")), entry
