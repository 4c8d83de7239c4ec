"""What a tree holds, and what it must not: anything later than its commit, and anything of the machine's."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from git_history import History, git, random_history

from ppp.swe.checkouts import build_checkout, check_nothing_later, remove_tree
from ppp.types import InfrastructureError

HISTORIES = (None, 1, 2, 4, 50)


def all_files(folder: Path) -> dict[str, tuple]:
    """Everything below a folder with content, mode and date, links as links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (content, status.st_mode, status.st_mtime_ns)
    return found


def commit_files(path: Path, files: dict[str, bytes], message: str = "files") -> str:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    git(path, "add", "-A")
    git(path, "commit", "--quiet", "--allow-empty", "-m", message)
    return git(path, "rev-parse", "HEAD")


@pytest.fixture(autouse=True)
def no_read_only_folder_is_left(tmp_path: Path) -> Iterator[None]:
    """Or pytest could not clear up."""
    yield
    remove_tree(tmp_path)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    path.mkdir()
    git(path, "init", "--quiet")
    return path


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
@pytest.mark.parametrize("seed", range(6))
def test_tree_holds_its_history_and_no_other_object(tmp_path: Path, seed: int, object_format: str) -> None:
    history = random_history(tmp_path / "source", seed, object_format=object_format)
    rng = random.Random(seed)
    for number in rng.sample(range(len(history.ids)), k=3):
        depth = rng.choice(HISTORIES)
        tree = tmp_path / f"tree{number}"
        build_checkout(history.path, history.ids[number], tree, depth)
        expected = history.generations(number, depth)
        listed = git(tree, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)").split()
        assert set(listed) == history.objects(expected)
        assert set(git(tree, "rev-list", "--all", "HEAD").split()) == {history.ids[number] for number in expected}
        assert_nothing_but_head(tree, history.ids[number])
        assert {name: (tree / name).read_bytes() for name in git(tree, "ls-files").splitlines()} == history.files[
            number
        ]
        assert git(tree, "status", "--porcelain") == ""
        git(tree, "fsck", "--full", "--strict")


def assert_nothing_but_head(tree: Path, commit: str) -> None:
    git_folder = tree / ".git"
    files = {str(path.relative_to(git_folder)) for path in git_folder.rglob("*") if path.is_file()}
    packs = {name for name in files if name.startswith("objects/pack/pack-")}
    assert files - packs <= {"HEAD", "config", "index", "info/attributes", "shallow"}
    assert (git_folder / "HEAD").read_text().strip() == commit
    assert git(tree, "for-each-ref") == git(tree, "reflog", "--all") == git(tree, "remote") == ""
    assert git(tree, "stash", "list") == git(tree, "replace", "--list") == ""


def test_tree_with_an_object_that_does_not_belong_to_it_is_refused(tmp_path: Path) -> None:
    history = random_history(tmp_path / "source", 7)
    build_checkout(history.path, history.ids[4], tmp_path / "tree")
    check_nothing_later(tmp_path / "tree", "this tree")
    (tmp_path / "tree" / ".git" / "objects").chmod(0o755)
    git(tmp_path / "tree", "hash-object", "-w", "--stdin", stdin=b"def the_answer(): ...\n")
    with pytest.raises(InfrastructureError, match=r"this tree: .* objects, of which"):
        check_nothing_later(tmp_path / "tree", "this tree")


def test_commands_that_agents_use_work_in_a_tree(tmp_path: Path) -> None:
    history = random_history(tmp_path / "source", 0)
    last = len(history.ids) - 1
    build_checkout(history.path, history.ids[last], tmp_path / "tree")
    assert git(tmp_path / "tree", "log", "-1", "--format=%s") == f"commit {last}"
    assert git(tmp_path / "tree", "show", "--stat")
    name = next(name for name in history.files[last] if name.endswith(".py"))
    assert git(tmp_path / "tree", "blame", name)
    assert git(tmp_path / "tree", "log", "--oneline", "-S", "# ", "--", name)
    assert git(tmp_path / "tree", "grep", "-n", "of")
    assert git(tmp_path / "tree", "branch") == "* (no branch)"


def test_history_of_zero_leaves_no_git_folder(tmp_path: Path) -> None:
    history = random_history(tmp_path / "source", 1)
    build_checkout(history.path, history.ids[5], tmp_path / "tree", 0)
    assert {path.name for path in (tmp_path / "tree").iterdir()} == {name.split("/")[0] for name in history.files[5]}


@pytest.mark.parametrize("kind", ["bare mirror", "shallow clone", "shared clone", "linked work tree", "someone else's"])
def test_every_kind_of_source_can_be_read_and_is_left_as_it_was(tmp_path: Path, kind: str) -> None:
    history = random_history(tmp_path / "source", 3)
    git(history.path, "replace", "-d", history.ids[0])
    source, number = tmp_path / "copy", len(history.ids) // 2 - 1  # an ancestor of what is checked out, or nearly
    number = next(iter(history.parents[(len(history.ids) - 1) // 2]))
    commit = history.ids[number]
    expected = history.generations(number, None)
    if kind == "bare mirror":
        git(tmp_path, "clone", "--quiet", "--mirror", str(history.path), str(source))
    elif kind == "shallow clone":
        git(tmp_path, "clone", "--quiet", "--depth=2", f"file://{history.path}", str(source))
        expected = {number}
    elif kind == "shared clone":
        git(tmp_path, "clone", "--quiet", "--shared", str(history.path), str(source))
    elif kind == "linked work tree":
        git(history.path, "worktree", "add", "--quiet", str(source))
    else:
        git(tmp_path, "clone", "--quiet", str(history.path), str(source))
        if os.geteuid() == 0:
            for parent, _, files in os.walk(source):
                for path in (parent, *(os.path.join(parent, name) for name in files)):
                    os.lchown(path, 12345, 12345)
    before = all_files(source), all_files(history.path)
    build_checkout(source, commit, tmp_path / "tree", None)
    assert (all_files(source), all_files(history.path)) == before
    assert set(git(tmp_path / "tree", "rev-list", "HEAD").split()) == {history.ids[each] for each in expected}
    assert_nothing_but_head(tmp_path / "tree", commit)


def test_nothing_of_the_machine_or_of_the_source_is_run(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch = f"touch {tmp_path}/has_run; cat"
    home = tmp_path / "home"
    (home / "hooks").mkdir(parents=True)
    for hook in ("post-checkout", "post-index-change", "reference-transaction", "pre-auto-gc"):
        (home / "hooks" / hook).write_text(f"#!/bin/sh\n{touch} </dev/null\n")
        (home / "hooks" / hook).chmod(0o755)
    settings = f"""
[core]
    hooksPath = {home}/hooks
    fsmonitor = {touch}
    autocrlf = true
    sshCommand = {touch}
[filter "evil"]
    smudge = {touch}
    process = {touch}
    required = true
[uploadpack]
    packObjectsHook = {touch}
[init]
    templateDir = {home}
[gc]
    auto = 1
"""
    (home / ".gitconfig").write_text(settings)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.hooksPath")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(home / "hooks"))
    files = {
        "a.txt": b"one\ntwo\r\n$Id$\n$Format:%H$\n",
        "b.txt": b"o\x00n\x00e\x00\n\x00",
        "c.bin": b"version https://git-lfs.github.com/spec/v1\n",
    }
    commit_files(repository, files)
    attributes = b"*.txt text eol=crlf ident export-subst\nb.txt working-tree-encoding=UTF-16LE\n*.bin filter=evil\n"
    commit = commit_files(repository, {".gitattributes": attributes})
    stored = {name: git(repository, "cat-file", "blob", f"{commit}:{name}") for name in files}
    (repository / ".git" / "config").open("a").write(settings)
    build_checkout(repository, commit, tmp_path / "tree")
    assert not (tmp_path / "has_run").exists()
    for name in files:
        content = (tmp_path / "tree" / name).read_bytes().decode("utf-8", "surrogateescape").strip()
        assert content == stored[name]
    assert git(tmp_path / "tree", "status", "--porcelain") == ""


def test_links_modes_submodules_and_odd_names_are_kept(tmp_path: Path, repository: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("not in the tree\n")
    before = outside.stat()
    odd = os.fsdecode(b"caf\xe9 \n.py")
    commit_files(repository, {"run.sh": b"#!/bin/sh\n", odd: b"", "big.bin": random.Random(0).randbytes(3_000_000)})
    (repository / "run.sh").chmod(0o755)
    (repository / "link").symlink_to(outside)
    (repository / "folder_link").symlink_to(tmp_path)
    git(repository, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},lib/sub")
    (repository / "lib" / "sub").mkdir(parents=True)
    commit = commit_files(repository, {".gitmodules": b'[submodule "sub"]\n\tpath = lib/sub\n\turl = ../sub\n'})
    build_checkout(repository, commit, tmp_path / "tree")
    tree = tmp_path / "tree"
    assert (tree / "run.sh").stat().st_mode & 0o777 == 0o555
    assert os.readlink(tree / "link") == str(outside) and os.readlink(tree / "folder_link") == str(tmp_path)
    assert list((tree / "lib" / "sub").iterdir()) == []
    assert (tree / odd).read_bytes() == b"" and (tree / "big.bin").stat().st_size == 3_000_000
    assert (outside.stat().st_mode, outside.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert git(tree, "status", "--porcelain") == ""


def test_everybody_may_read_and_nobody_may_write(tmp_path: Path) -> None:
    history = random_history(tmp_path / "source", 4)
    old = os.umask(0o077)
    try:
        build_checkout(history.path, history.ids[3], tmp_path / "tree")
    finally:
        os.umask(old)
    for path in (tmp_path / "tree", *(tmp_path / "tree").rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode == (0o555 if path.is_dir() else 0o444), path


def test_two_trees_of_a_commit_are_the_same_to_the_second(tmp_path: Path) -> None:
    history = random_history(tmp_path / "source", 5)
    trees = tmp_path / "one", tmp_path / "two"
    for tree in trees:
        build_checkout(history.path, history.ids[6], tree)
    stamps = [{name: (mode, time) for name, (_, mode, time) in all_files(tree).items()} for tree in trees]
    assert stamps[0] == stamps[1]
    assert (tmp_path / "one").stat().st_mtime == 1_500_006_000


def test_git_status_need_not_read_the_files(tmp_path: Path) -> None:
    history = random_history(tmp_path / "source", 6)
    build_checkout(history.path, history.ids[6], tmp_path / "tree")
    assert git(tmp_path / "tree", "diff-files", "--name-only") == ""  # which goes by sizes and dates


def corrupt(history: History) -> None:
    """Change bytes of every loose object and of the objects in packs."""
    for path in (history.path / ".git" / "objects").rglob("*"):
        if path.is_file() and path.suffix in ("", ".pack"):
            path.chmod(0o644)
            content = bytearray(path.read_bytes())
            for offset in range(min(40, len(content) // 2), len(content), 40):
                content[offset] ^= 0xFF
            path.write_bytes(content)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_source_is_named_with_its_commit(tmp_path: Path, seed: int) -> None:
    history = random_history(tmp_path / "source", seed, num_commits=8)
    corrupt(history)
    with pytest.raises(InfrastructureError) as failure:
        build_checkout(history.path, history.ids[7], tmp_path / "tree", None)
    assert str(history.path) in str(failure.value) and history.ids[7] in str(failure.value)


def test_read_only_folder_is_removed(tmp_path: Path, repository: Path) -> None:
    commit = commit_files(repository, {"a/b/c.py": b"", "d.py": b""})
    build_checkout(repository, commit, tmp_path / "tree")
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    remove_tree(tmp_path / "tree")
