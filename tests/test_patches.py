"""Patches are read as git writes them and applied as git applies them."""

from __future__ import annotations

import difflib
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from git_history import git, git_text

from ppp.swe.patches import FileChange, PatchError, apply_change, parse_patch

OLD = "".join(f"line {number}\n" for number in range(1, 41))


def make_patch(old: str, new: str, path: str = "a.py", context: int = 3) -> str:
    """A unified diff as `git diff` writes it, as far as `difflib` can."""
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), f"a/{path}", f"b/{path}", n=context
    )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def only(patch: str) -> FileChange:
    (change,) = parse_patch(patch)
    return change


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("context", [0, 1, 3])
def test_a_random_edit_comes_out_as_it_was_made(seed: int, context: int) -> None:
    rng = random.Random(seed)
    lines = [rng.choice("abc") + "\n" for _ in range(30)]  # few different ones, so that much looks alike
    edited = list(lines)
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(edited))
        edited[place : place + rng.randint(0, 2)] = [f"new {n}\n" for n in range(rng.randint(0, 2))]
    old, new = "".join(lines), "".join(edited)
    if old == new:
        return
    applied = apply_change(only(make_patch(old, new, context=context)), old)
    assert applied.text == new and applied.num_moved == 0
    removed = {number for sign, number in applied.changed if sign == "-"}
    added = {number for sign, number in applied.changed if sign == "+"}
    kept_old = [line for number, line in enumerate(old.splitlines(), start=1) if number not in removed]
    kept_new = [line for number, line in enumerate(new.splitlines(), start=1) if number not in added]
    assert kept_old == kept_new


GIT_CASES: dict[str, Callable[[Path], object]] = {
    "changed": lambda root: (root / "old.py").write_text(OLD.replace("line 7\n", "line seven\n")),
    "several hunks": lambda root: (root / "old.py").write_text(OLD.replace("line 3\n", "").replace("line 33\n", "x\n")),
    "new": lambda root: (root / "new.py").write_text("x = 1\n"),
    "new and empty": lambda root: (root / "new.py").write_text(""),
    "deleted": lambda root: (root / "old.py").unlink(),
    "renamed": lambda root: (root / "old.py").rename(root / "moved.py"),
    "renamed and changed": lambda root: (
        (root / "old.py").rename(root / "moved.py"),
        (root / "moved.py").write_text(OLD.replace("line 9\n", "line nine\n")),
    ),
    "mode alone": lambda root: (root / "old.py").chmod(0o755),
    "a path with blanks": lambda root: (root / "a b.py").write_text("y = 2\n"),
    "a path with other letters": lambda root: (root / 'caf\u00e9 "q".py').write_text("y = 2\n"),
    "line feed lost at the end": lambda root: (root / "old.py").write_text(OLD.removesuffix("\n")),
    "line feed given at the end": lambda root: (root / "bare.py").write_text("x = 1\ny = 2\n"),
    "appended after no line feed": lambda root: (root / "bare.py").write_text("x = 1\ny = 2\nz = 3\n"),
    "carriage returns": lambda root: (root / "dos.py").write_bytes(b"a = 1\r\nb = 3\r\n"),
    "a separator of another kind": lambda root: (root / "odd.py").write_bytes("s = '\x0c\u2028'\nt = 4\n".encode()),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "old.py").write_text(OLD)
    (tmp_path / "bare.py").write_text("x = 1\ny = 2")
    (tmp_path / "dos.py").write_bytes(b"a = 1\r\nb = 2\r\n")
    (tmp_path / "odd.py").write_bytes("s = '\x0c\u2028'\nt = 3\n".encode())
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "old")
    return tmp_path


@pytest.mark.parametrize("name", GIT_CASES)
def test_a_patch_of_git_gives_the_file_that_git_has(name: str, tree: Path) -> None:
    before = {path.name: path.read_bytes().decode() for path in tree.glob("*.py")}
    GIT_CASES[name](tree)
    git(tree, "add", "-A")
    change = only(git_text(tree, "diff", "--cached", "-M"))
    after = {path.name: path.read_bytes().decode() for path in tree.glob("*.py")}
    gone, come = before.keys() - after.keys(), after.keys() - before.keys()
    assert change.old_path == (gone.pop() if gone else None if come else change.new_path)
    assert change.new_path == (come.pop() if come else None if name == "deleted" else change.old_path)
    old, new = before.get(change.old_path or "", ""), after.get(change.new_path or "", "")
    applied = apply_change(change, old)
    assert applied.text.rstrip("\n") == new.rstrip("\n")
    assert applied.num_moved == 0


@pytest.mark.parametrize("name", ["line feed lost at the end", "line feed given at the end"])
def test_a_line_feed_alone_changes_no_line(name: str, tree: Path) -> None:
    GIT_CASES[name](tree)
    change = only(git_text(tree, "diff"))
    assert apply_change(change, (OLD if "lost" in name else "x = 1\ny = 2")).changed == ()


def test_what_is_appended_after_no_line_feed_is_all_that_is_added(tree: Path) -> None:
    GIT_CASES["appended after no line feed"](tree)
    assert apply_change(only(git_text(tree, "diff")), "x = 1\ny = 2").changed == (("+", 3),)


def test_a_binary_file_has_no_hunks(tree: Path) -> None:
    (tree / "image.png").write_bytes(b"\x89PNG\0\1")
    for flags in ([], ["--binary"]):
        change = only(git_text(tree, "diff", *flags))
        assert change.path == "image.png" and not change.hunks


def test_several_files_stay_in_order(tree: Path) -> None:
    GIT_CASES["changed"](tree)
    GIT_CASES["carriage returns"](tree)
    assert [change.path for change in parse_patch(git_text(tree, "diff"))] == ["dos.py", "old.py"]


@pytest.mark.parametrize("shift", [-5, -1, 1, 2, 7])
def test_hunks_that_stand_elsewhere_apply_there(shift: int) -> None:
    patch = make_patch(OLD, OLD.replace("line 12\n", "twelve\n").replace("line 30\n", ""))
    moved = "new line\n" * shift + OLD if shift > 0 else "".join(OLD.splitlines(keepends=True)[-shift:])
    applied = apply_change(only(patch), moved)
    assert applied.text == moved.replace("line 12\n", "twelve\n").replace("line 30\n", "")
    assert applied.num_moved == 2
    assert applied.changed == (("-", 12 + shift), ("+", 12 + shift), ("-", 30 + shift))


def test_of_two_places_that_fit_the_nearer_one_is_taken() -> None:
    old = "def f():\n    return 1\n\n\n" * 6
    patch = "--- a/a.py\n+++ b/a.py\n@@ -9,3 +9,3 @@\n def f():\n-    return 1\n+    return 2\n \n"
    for shift in (0, 1, -1):
        moved = "# new\n" * shift + old if shift >= 0 else old.removeprefix("def f():\n")
        assert apply_change(only(patch), moved).changed == (("-", 10 + shift), ("+", 10 + shift))


def test_a_hunk_goes_where_git_puts_it(tmp_path: Path) -> None:
    num_compared = 0
    for seed in range(150):
        rng = random.Random(seed)
        lines = [rng.choice("abcd") + "\n" for _ in range(rng.randint(3, 25))]  # most hunks fit in many places
        edited, moved = list(lines), list(lines)
        place = rng.randrange(len(edited) + 1)
        edited[place : place + rng.randint(0, 2)] = [rng.choice("xyab") + "\n" for _ in range(rng.randint(0, 2))]
        place = rng.randrange(len(moved) + 1)
        moved[place:place] = [rng.choice("abcdq") + "\n" for _ in range(rng.randint(0, 4))]
        patch = make_patch("".join(lines), "".join(edited), context=rng.randint(1, 3))
        (tmp_path / "a.py").write_text("".join(moved))
        (tmp_path / "p").write_text(patch)
        done = subprocess.run(["git", "apply", "p"], cwd=tmp_path, capture_output=True, check=False)
        if patch and done.returncode == 0:
            num_compared += 1
            assert apply_change(only(patch), "".join(moved)).text == (tmp_path / "a.py").read_text(), seed
    assert num_compared > 80


def test_of_two_places_as_far_away_git_takes_the_one_below(tmp_path: Path) -> None:
    patch = "--- a/a.py\n+++ b/a.py\n@@ -4,3 +4,3 @@\n a\n-b\n+x\n c\n"
    old = "z\na\nb\nc\nz\na\nb\nc\nz\n"  # from line 2 and from line 6
    (tmp_path / "a.py").write_text(old)
    subprocess.run(["git", "apply"], cwd=tmp_path, input=patch.encode(), check=True)
    assert apply_change(only(patch), old).text == (tmp_path / "a.py").read_text() == old[:12] + "x" + old[13:]


def test_a_hunk_at_an_end_of_its_file_may_stand_elsewhere_in_another_one() -> None:
    first, last = make_patch("a\nb\nc\n", "x\nb\nc\n"), make_patch("a\nb\nc\n", "a\nb\nx\n")
    assert apply_change(only(first), "new\na\nb\nc\n").text == "new\nx\nb\nc\n"
    assert apply_change(only(last), "a\nb\nc\nnew\n").text == "a\nb\nx\nnew\n"


def test_hunks_apply_in_their_order_and_never_twice_at_one_place() -> None:
    patch = "--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-x\n+y\n@@ -3 +3 @@\n-x\n+y\n"
    assert apply_change(only(patch), "x\nz\nx\n").text == "y\nz\ny\n"
    for rest in (1, 5):
        with pytest.raises(PatchError, match="hunk 2"):
            apply_change(only(patch), "x\n" + "z\n" * rest)


@pytest.mark.parametrize("old", ["", "other\n", OLD.replace("line 11\n", "eleven\n"), OLD[:60]])
def test_a_patch_that_does_not_fit_names_file_and_hunk(old: str) -> None:
    patch = make_patch(OLD, OLD.replace("line 12\n", "twelve\n"), "src/a.py")
    with pytest.raises(PatchError, match=r"src/a\.py: hunk 1 \(line 9\) does not apply"):
        apply_change(only(patch), old)


@pytest.mark.parametrize(
    "patch",
    [
        "This is no patch.\n",
        "--- a/a.py\n+++ b/a.py\n@@ -1,3 +1,3 @@\n x\n",
        "--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-x\n+y\n+z\n@@ -1 +1 @@\nwhat\n",
        "@@ -1 +1 @@\n-x\n+y\n",
    ],
)
def test_what_is_no_patch_is_refused(patch: str) -> None:
    with pytest.raises(PatchError):
        parse_patch(patch)


def test_an_empty_patch_changes_nothing_and_a_last_line_feed_may_be_missing() -> None:
    assert parse_patch("") == () == parse_patch(" \n")
    patch = make_patch("a\n", "b\n")
    assert parse_patch(patch.removesuffix("\n")) == parse_patch(patch)
