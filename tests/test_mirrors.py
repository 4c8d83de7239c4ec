"""Mirrors: made whole or not at all, updated when a commit is missing, and nothing else is ever written to."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from git_history import git
from test_checkouts import all_files, commit_files

from ppp.swe.mirrors import _url_and_name, check_mirror, clone_mirror, git_folder, resolve_commit, run_git
from ppp.types import InfrastructureError, RecipeError


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    path = tmp_path / "upstream" / "project"
    path.mkdir(parents=True)
    git(path, "init", "--quiet", "--initial-branch=main")
    commit_files(path, {"a.py": b"x = 1\n"})
    return path


@pytest.mark.parametrize(
    ("origin", "url", "name"),
    [
        ("psf/requests", "https://github.com/psf/requests.git", "psf+requests"),
        ("https://example.org/a/group/project.git", "https://example.org/a/group/project.git", "group+project"),
        ("git@example.org:owner/name.git", "git@example.org:owner/name.git", "owner+name"),
        ("ssh://git@example.org/owner/name/", "ssh://git@example.org/owner/name/", "owner+name"),
    ],
)
def test_origins_are_known_by_their_form(origin: str, url: str, name: str) -> None:
    assert _url_and_name(origin) == (url, name)


@pytest.mark.parametrize("origin", ["", "/", "--upload-pack=touch x"])
def test_what_is_no_origin_is_refused(tmp_path: Path, origin: str) -> None:
    with pytest.raises(RecipeError, match="owner/name"):
        clone_mirror(origin, tmp_path / "mirrors")


def test_mirror_is_bare_has_every_branch_and_leaves_the_origin_as_it_is(tmp_path: Path, origin: Path) -> None:
    git(origin, "branch", "other")
    git(origin, "tag", "v1")
    before = all_files(origin)
    mirror = clone_mirror(str(origin), tmp_path / "mirrors")
    assert mirror == tmp_path / "mirrors" / "project" and git(mirror, "rev-parse", "--is-bare-repository") == "true"
    assert git(mirror, "for-each-ref") == git(origin, "for-each-ref")
    assert all_files(origin) == before
    check_mirror(mirror)


def test_mirror_is_updated_only_when_a_commit_is_missing(tmp_path: Path, origin: Path) -> None:
    first = git(origin, "rev-parse", "HEAD")
    mirror = clone_mirror(str(origin), tmp_path, [first])
    second = commit_files(origin, {"b.py": b""})
    before = all_files(mirror)
    assert clone_mirror(str(origin), tmp_path, [first]) == mirror and all_files(mirror) == before
    clone_mirror(str(origin), tmp_path, [first, second])
    assert resolve_commit(mirror, second) == second


def test_commits_that_were_rewritten_upstream_are_kept_and_found(tmp_path: Path, origin: Path) -> None:
    seen = commit_files(origin, {"b.py": b""})
    mirror = clone_mirror(str(origin), tmp_path)
    never_seen = commit_files(origin, {"c.py": b""})
    git(origin, "reset", "--hard", "--quiet", "HEAD~2")
    newest = commit_files(origin, {"d.py": b""})
    clone_mirror(str(origin), tmp_path, [newest, never_seen])
    git(mirror, "gc", "--quiet", "--prune=now")
    assert [resolve_commit(mirror, commit) for commit in (newest, never_seen)] == [newest, never_seen]
    assert git(mirror, "cat-file", "-t", seen) == "commit"


def test_commit_that_nobody_has_is_named(tmp_path: Path, origin: Path) -> None:
    with pytest.raises(InfrastructureError) as failure:
        clone_mirror(str(origin), tmp_path / "mirrors", ["0123" * 10])
    assert "0123" * 10 in str(failure.value) and str(origin) in str(failure.value)


def test_origin_that_cannot_be_cloned_leaves_no_mirror(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        with pytest.raises(InfrastructureError, match="empty"):
            clone_mirror(str(tmp_path / "empty"), tmp_path / "mirrors")
    assert [path.name for path in (tmp_path / "mirrors").iterdir()] == [".empty.lock"]


def test_repository_that_is_no_mirror_is_never_written_to(tmp_path: Path, origin: Path) -> None:
    copy = tmp_path / "mirrors" / "project"
    git(tmp_path, "clone", "--quiet", str(origin), str(copy))
    first, second = git(copy, "rev-parse", "HEAD"), commit_files(origin, {"b.py": b""})
    before = all_files(copy)
    assert clone_mirror(str(origin), tmp_path / "mirrors", [first]) == copy
    with pytest.raises(RecipeError, match="not a mirror"):
        clone_mirror(str(origin), tmp_path / "mirrors", [second])
    assert all_files(copy) == before


def test_processes_that_want_a_mirror_at_once_share_it(tmp_path: Path, origin: Path) -> None:
    arguments = (str(origin), tmp_path / "mirrors", [git(origin, "rev-parse", "HEAD")])
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        mirrors = [future.result() for future in [pool.submit(clone_mirror, *arguments) for _ in range(3)]]
    assert set(mirrors) == {tmp_path / "mirrors" / "project"}
    assert {path.name for path in (tmp_path / "mirrors").iterdir()} == {"project", ".project.lock"}


def test_damaged_mirror_is_named(tmp_path: Path, origin: Path) -> None:
    mirror = clone_mirror(str(origin), tmp_path)
    (pack,) = mirror.glob("objects/pack/*.pack")
    pack.chmod(0o644)
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 0xFF
    pack.write_bytes(content)
    with pytest.raises(InfrastructureError, match=str(mirror)) as failure:
        check_mirror(mirror)
    assert pack.name[:20] in str(failure.value) or "corrupt" in str(failure.value)


def test_repository_further_up_is_not_taken(origin: Path) -> None:
    (origin / "inside").mkdir()
    assert git_folder(origin) == origin / ".git"
    with pytest.raises(InfrastructureError, match="not a git repository"):
        git_folder(origin / "inside")


def test_git_that_does_not_end_is_stopped_with_its_children(tmp_path: Path) -> None:
    script = "!echo $$ > new; mv new pid; sleep 100 & wait"
    timeout_s = 0.5
    while not (tmp_path / "pid").exists():  # a busy machine may need longer to start anything
        with pytest.raises(InfrastructureError, match="did not end within"):
            run_git(["-c", f"alias.hang={script}", "hang"], tmp_path, what="a test", timeout_s=timeout_s)
        timeout_s *= 2
    child = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is gone
        while child.read_text().rpartition(")")[2].split()[0] != "Z":  # it is on its way out
            time.sleep(0.01)
