"""Git, run so that nothing of the machine's configuration takes part, and bare mirrors of public repositories.

`run_git` is how this room calls git: no hooks, no filters, no prompts, no fetching of what a partial clone lacks.
A mirror is the only thing ever written to here, and only one that `clone_mirror` made. What is done with a repository
comes next, in `checkouts.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ppp.types import InfrastructureError, RecipeError

GIT_TIMEOUT_S = 600.0  # one command on a repository of gigabytes; a clone has a longer one
CLONE_TIMEOUT_S = 4 * 3600.0
FAILURE_KIND = "git"
MAX_REASON_CHARS = 600
# Given on the command line they win over the configuration of a repository, which is somebody else's.
SAFE_SETTINGS = (
    ("safe.directory", "*"),  # mirrors are often another user's
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.useReplaceRefs", "false"),
    ("core.logAllRefUpdates", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("pack.threads", "1"),  # many are built at the same time
)
_FULL_ID = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})")
_REPO_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_.][\w.-]*")


def safe_settings(*more: tuple[str, str]) -> list[str]:
    """`-c name=value` for each of `SAFE_SETTINGS` and `more`."""
    return [part for name, value in (*SAFE_SETTINGS, *more) for part in ("-c", f"{name}={value}")]


def run_git(
    arguments: Sequence[str],
    folder: Path,
    *,
    what: str,
    stdin: bytes | None = None,
    timeout_s: float = GIT_TIMEOUT_S,
    with_user_config: bool = False,
    stdout: int | None = subprocess.PIPE,
) -> bytes:
    """Standard output of `git arguments`, run in `folder`.

    Args:
        what: names what it was about, in front of git's own message: a source and a commit.
        with_user_config: for talking to servers, which takes the user's proxies and credentials.

    Raises:
        InfrastructureError: git ended with another status than 0, did not end in time, or is not there.
    """
    # Of the environment only what git needs to run: GIT_DIR and its kin are set while a hook runs, and HOME and
    # XDG_CONFIG_HOME lead to attributes and filters of the user's.
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "TMPDIR", "LD_LIBRARY_PATH")}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    environment |= {"GIT_ATTR_NOSYSTEM": "1", "HOME": os.devnull}
    if with_user_config:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    with tempfile.TemporaryFile() as messages:
        try:
            process = subprocess.Popen(
                ["git", *safe_settings(), *arguments],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=stdout,
                stderr=messages,
                start_new_session=True,  # git has children of its own, which end with it
            )
        except OSError as error:
            raise InfrastructureError(f"{what}: cannot run git: {error}", kind=FAILURE_KIND) from error
        timed_out = False
        try:
            output, _ = process.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        if timed_out:
            raise InfrastructureError(f"{what}: git did not end within {timeout_s:g} s", kind=FAILURE_KIND)
        if process.returncode != 0:
            messages.seek(0)
            text = messages.read(20_000).decode("utf-8", "replace").strip()
            reason = " / ".join(text.splitlines())[:MAX_REASON_CHARS] or f"exit status {process.returncode}"
            raise InfrastructureError(f"{what}: {reason}", kind=FAILURE_KIND)
    return output or b""


def git_folder(source: Path) -> Path:
    """Where the repository at `source` keeps its data, be it bare or with a work tree; never one further up.

    Raises:
        InfrastructureError: there is no repository.
    """
    if (source / ".git").exists():
        return source / ".git"
    if (source / "objects").is_dir() and (source / "HEAD").exists():
        return source
    found = "is not a git repository" if source.is_dir() else "does not exist"
    raise InfrastructureError(f"{source} {found}", kind=FAILURE_KIND)


def is_full_id(commit: str) -> bool:
    """Whether `commit` is an object id, which always means the same, and no branch, tag or shortened id."""
    return _FULL_ID.fullmatch(commit) is not None


def resolve_commit(source: Path, commit: str) -> str:
    """The full id of a commit of `source`, given by id, tag or branch.

    Raises:
        InfrastructureError: the repository or the commit is missing or damaged; names both.
    """
    what = f"{source}, commit {commit!r}"
    try:
        arguments = [f"--git-dir={git_folder(source)}", "rev-parse", "--verify", "--end-of-options"]
    except InfrastructureError as error:
        raise InfrastructureError(f"{what}: {error}", kind=FAILURE_KIND) from error
    try:
        return run_git([*arguments, f"{commit}^{{commit}}"], source, what=what).decode("ascii").strip()
    except InfrastructureError as error:
        if "Needed a single revision" in str(error) and "error:" not in str(error):
            raise InfrastructureError(f"{what}: the repository has no such commit", kind=FAILURE_KIND) from error
        raise


def clone_mirror(origin: str, folder: Path, commits: Iterable[str] = ()) -> Path:
    """The bare mirror of `origin` below `folder`: cloned if it is not there, updated if it lacks one of `commits`.

    Several processes may ask for the same mirror. One that is interrupted leaves a file name that starts with a dot,
    and no half a mirror. Commits of branches that were deleted or rewritten upstream are kept.

    Args:
        origin: "owner/name" on GitHub, or anything that git clones. The mirror is called `owner+name`, or after the
            last part of a path.

    Raises:
        RecipeError: a folder of that name is there, lacks a commit, and is not a mirror that may be updated.
        InfrastructureError: git's message, or a commit that `origin` does not have.
    """
    url, name = _url_and_name(origin)
    folder.mkdir(parents=True, exist_ok=True)
    mirror, what = folder / name, f"mirror of {origin}"
    with file_lock(folder / f".{name}.lock"):
        if not mirror.exists():
            _clone(url, mirror, what)
        missing = [commit for commit in commits if not _has_commit(mirror, commit)]
        if not missing:
            return mirror
        if not _is_mirror(mirror, what):
            raise RecipeError(f"{mirror}: has no commit {missing[0]!r} and is not a mirror, so it is not updated")
        run_git(["fetch", "--quiet", "origin"], mirror, what=what, timeout_s=CLONE_TIMEOUT_S, with_user_config=True)
        for commit in missing:
            if not _has_commit(mirror, commit):  # on no branch; servers such as GitHub still hand it out
                refspec = f"{commit}:refs/kept/{commit}"
                arguments = ["fetch", "--quiet", "--no-tags", "--refmap=", "origin", refspec]
                run_git(arguments, mirror, what=f"{what}, commit {commit!r}", with_user_config=True)
    return mirror


def check_mirror(mirror: Path) -> None:
    """Have git read everything in a repository; minutes for a large one.

    Raises:
        InfrastructureError: names the repository and what `git fsck` says is wrong with it.
    """
    arguments = [f"--git-dir={git_folder(mirror)}", "fsck", "--full", "--no-dangling", "--no-progress"]
    run_git(arguments, mirror, what=f"{mirror} is damaged", timeout_s=CLONE_TIMEOUT_S)


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold `path` against every other process and thread; the kernel lets go of it when the process dies.

    Raises:
        BlockingIOError: somebody else holds it, and `wait` is False.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may hold the descriptor too
        os.close(descriptor)


def _url_and_name(origin: str) -> tuple[str, str]:
    if _REPO_NAME.fullmatch(origin) and not Path(origin).exists():
        return f"https://github.com/{origin}.git", origin.replace("/", "+")
    parts = [part for part in re.split(r"[/:]", origin.rstrip("/").removesuffix(".git").rstrip("/")) if part]
    if not parts or origin.startswith("-"):
        raise RecipeError(f"{origin!r} is not a repository; allowed: owner/name, a URL, or a path")
    if Path(origin).exists():
        return str(Path(origin).resolve()), parts[-1]
    return origin, "+".join(parts[-2:])


def _clone(url: str, mirror: Path, what: str) -> None:
    unfinished = Path(tempfile.mkdtemp(prefix=f".{mirror.name}.", dir=mirror.parent))
    try:
        # `--no-local`: hard links into another repository would share its damage.
        arguments = ["clone", "--quiet", "--mirror", "--no-local", "--template=", "--", url, str(unfinished)]
        run_git(arguments, mirror.parent, what=what, timeout_s=CLONE_TIMEOUT_S, with_user_config=True)
        unfinished.chmod(0o755)
        unfinished.rename(mirror)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _has_commit(mirror: Path, commit: str) -> bool:
    try:
        resolve_commit(mirror, commit)
    except InfrastructureError:
        git_folder(mirror)
        return False
    return True


def _is_mirror(mirror: Path, what: str) -> bool:
    arguments = ["config", "--local", "--default=false", "--type=bool", "--get", "remote.origin.mirror"]
    if git_folder(mirror) != mirror or not (mirror / "config").exists():
        return False
    return run_git(arguments, mirror, what=what).strip() == b"true"
