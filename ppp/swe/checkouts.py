"""One commit of a repository as a folder that can only be read, with the history up to it and nothing later.

The source is read through `git fetch` into an empty repository, so that of the source nothing comes along but the
commit and what it stands on: no other branch, tag, note, stash or reflog, no object that cannot be reached, and no
configuration. Nothing of the repository is run. Who keeps such folders, and for how long, is in `trees.py`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import stat
from pathlib import Path

from ppp.swe.mirrors import FAILURE_KIND, run_git, safe_settings
from ppp.types import InfrastructureError

DEFAULT_HISTORY = 50
_BLOCK_BYTES = 512  # what st_blocks counts, whatever the file system
_MAX_TIME = 2**31 - 1  # some file systems know no later year than 2038
# Files as they are in the repository: line ends, `$Id$` and encodings are left alone, and no filter (LFS) is run.
_ATTRIBUTES = "* -text -ident !eol !filter !working-tree-encoding\n"
# `git status` compares sizes and times of files with those in the index: owner, inode and change time may differ.
_CONFIG = """\
[core]
\trepositoryformatversion = {version}
\tfilemode = true
\tbare = false
\tlogallrefupdates = false
\tcheckStat = minimal
\ttrustctime = false
[gc]
\tauto = 0
"""


def build_checkout(source: Path, commit: str, tree: Path, history: int | None = DEFAULT_HISTORY) -> int:
    """Make `tree` a read-only checkout of the commit with the full id `commit`; its size in bytes on disk.

    `tree` must not exist. What is in it is readable by everybody and dated with the commit. Submodules are empty
    folders, links are kept as they are, and tags are left out.

    Args:
        history: how many generations of commits `tree/.git` holds. A merge has two parents, so 50 are 700 to 1,000
            commits in a busy repository. None means all; 0 leaves the tree without a `.git`.

    Raises:
        InfrastructureError: names the source and the commit, with git's message.
    """
    what = f"{source}, commit {commit}"
    try:
        tree.mkdir()
        object_format = "sha256" if len(commit) == 64 else "sha1"
        run_git(["init", "--quiet", "--template=", f"--object-format={object_format}"], tree, what=what)
        _fetch(source, commit, tree, history, what)
        _write_settings(tree / ".git", object_format)
        run_git(["checkout", "--quiet", "--force", "--detach", commit], tree, what=what)
        check_nothing_later(tree, what)
        seconds = int(run_git(["show", "-s", "--format=%ct", commit], tree, what=what))
        if history == 0:
            remove_tree(tree / ".git")
        return _seal(tree, min(max(seconds, 0), _MAX_TIME), what)
    except OSError as error:
        raise InfrastructureError(f"{what}: cannot build a tree: {error}", kind=FAILURE_KIND) from error


def remove_tree(folder: Path) -> None:
    """Delete a folder that may be read-only, as far as that is possible: others may be deleting it too."""
    for parent, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            os.chmod(parent, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _fetch(source: Path, commit: str, tree: Path, history: int | None, what: str) -> None:
    # The serving side runs under the source's own configuration, over which only its command line wins. Packs are not
    # passed on as they are: they may hold more than what was asked for.
    serving = safe_settings(("uploadpack.allowAnySHA1InWant", "true"), ("pack.allowPackReuse", "false"))
    depth = [] if history is None else [f"--depth={max(history, 1)}"]
    arguments = ["-c", "fetch.unpackLimit=1", "fetch", "--quiet", "--no-tags", "--no-write-fetch-head"]
    arguments += ["--no-recurse-submodules", "--update-shallow", *depth]
    arguments += [f"--upload-pack={shlex.join(['git', *serving, 'upload-pack'])}", "--", str(source), commit]
    run_git(arguments, tree, what=what)


def _write_settings(git: Path, object_format: str) -> None:
    config = _CONFIG.format(version=0 if object_format == "sha1" else 1)
    if object_format != "sha1":
        config += f"[extensions]\n\tobjectformat = {object_format}\n"
    (git / "config").write_text(config, encoding="utf-8")
    (git / "info").mkdir(exist_ok=True)
    (git / "info" / "attributes").write_text(_ATTRIBUTES, encoding="utf-8")


def check_nothing_later(tree: Path, what: str) -> None:
    """The promise of this module, checked on every tree that is built: each object belongs to HEAD or its history.

    Raises:
        InfrastructureError: starts with `what`, and counts them.
    """
    listing = ["cat-file", "--batch-all-objects", "--unordered", "--batch-check=%(objectname)"]
    there = run_git(listing, tree, what=what).count(b"\n")
    reachable = run_git(["rev-list", "--objects", "--no-object-names", "HEAD"], tree, what=what).count(b"\n")
    if there != reachable:
        reason = f"the tree holds {there} objects, of which {reachable} belong to the commit"
        raise InfrastructureError(f"{what}: {reason}", kind=FAILURE_KIND)


def _seal(tree: Path, seconds: int, what: str) -> int:
    """Take away the right to write and date everything; bytes on disk.

    The index of `.git` learns the dates before it is closed, so that `git status` need not read every file.
    """
    git = tree / ".git"
    size = _seal_folder(tree, seconds, leave_out=git)
    if git.exists():
        run_git(["update-index", "-q", "--refresh"], tree, what=what)
        size += _seal_folder(git, seconds + 2)  # an index as old as a file would not be trusted about it
    return size


def _seal_folder(folder: Path, seconds: int, leave_out: Path | None = None) -> int:
    size, parents = 0, []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(parent, name) != leave_out]
        parents.append(parent)
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for path in (os.path.join(parent, name) for name in (*files, *links)):
            status = os.lstat(path)
            size += status.st_blocks * _BLOCK_BYTES
            if not stat.S_ISLNK(status.st_mode):
                os.chmod(path, 0o555 if status.st_mode & 0o100 else 0o444)
            os.utime(path, (seconds, seconds), follow_symlinks=False)
    for parent in reversed(parents):  # a folder's date changes with what is in it
        size += os.lstat(parent).st_blocks * _BLOCK_BYTES
        os.chmod(parent, 0o555)
        os.utime(parent, (seconds, seconds))
    return size
