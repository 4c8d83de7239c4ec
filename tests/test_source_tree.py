from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from git_history import git

from ppp.environments.source_tree import (
    MAX_FILE_BYTES,
    MAX_OPEN_TREES,
    SourceTree,
    TreePathError,
    _cached_tree,
    check_source,
    git_dir_of,
    open_tree,
)
from ppp.types import InfrastructureError, RecipeError

OLD = {
    "pkg/__init__.py": b"",
    "pkg/core.py": b"class Core:\n    def run(self):\n        return 'old needle'\n",
    "pkg/deep/er/leaf.py": b"def leaf():\n    return 'needle'\n",
    "README.md": b"a needle in the readme\r\nna\xc3\xafve [x] * . needle\n",
    "odd [name] *.py": b"needle = 1\n",
    "data.bin": b"needle\0needle\n",
    "latin.txt": b"caf\xe9 needle\n",
    "empty.txt": b"",
}


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def build_repository(parent: Path) -> Path:
    """Two commits, the first tagged `old`; the work tree and the index differ from both."""
    folder = parent / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    write(folder, OLD)
    (folder / "link.py").symlink_to("pkg/core.py")
    (folder / "out").symlink_to("..")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "old")
    git(folder, "tag", "old")
    write(folder, {"pkg/core.py": b"def new():\n    return 'new needle'\n", "pkg/added.py": b"needle = 2\n"})
    git(folder, "rm", "-q", "README.md")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "new")
    write(folder, {"pkg/core.py": b"dirty = 'needle'\n", "pkg/staged.py": b"needle = 3\n", "loose.py": b"needle = 4\n"})
    git(folder, "add", "pkg/staged.py")
    (parent / "secret.txt").write_text("needle in secret\n")
    return folder


def build_folder(parent: Path) -> Path:
    """The files of the old commit as a folder, beside things that must not be seen."""
    folder = parent / "folder"
    write(folder, OLD)
    write(folder, {".git/config": b"needle", "pkg/.git": b"needle", "pkg/__pycache__/core.pyc": b"needle"})
    (parent / "secret.txt").write_text("needle in secret\n")
    (folder / "link.py").symlink_to("pkg/core.py")
    (folder / "out").symlink_to("..")
    os.mkfifo(folder / "pipe")
    return folder


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that no test changes."""
    return build_repository(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def repository(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    (tmp_path / "secret.txt").write_text("needle in secret\n")
    return Path(shutil.copytree(pristine, tmp_path / "repository", symlinks=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_folder(tmp_path)


@pytest.fixture(scope="module", params=["folder", "commit", "bare"])
def tree(request: pytest.FixtureRequest, pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> SourceTree:
    """The same files, once as a folder and twice as a commit."""
    parent = tmp_path_factory.mktemp("tree")
    if request.param == "folder":
        return open_tree(str(build_folder(parent)))
    if request.param == "bare":
        git(parent, "clone", "-q", "--bare", str(pristine), "bare.git")
        return open_tree(str(parent / "bare.git"), "old")
    return open_tree(str(pristine), git(pristine, "rev-parse", "old"))


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and modification time of everything below a folder, index and objects included."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_every_kind_of_tree_shows_the_same_files(tree: SourceTree) -> None:
    assert tree.children("") == sorted([*{name.split("/")[0] for name in OLD} - {"pkg"}, "pkg/", "link.py", "out"])
    assert tree.children("./pkg/deep/../deep/") == ["er/"]
    for name, content in OLD.items():
        if name != "data.bin":
            assert tree.read(name) == content.decode("utf-8", "replace")


def test_search_is_literal_bounded_and_puts_python_files_first(tree: SourceTree) -> None:
    places = [(match.path, match.line) for match in tree.search("needle", "", 100)]
    assert places == [
        ("odd [name] *.py", 1),
        ("pkg/core.py", 3),
        ("pkg/deep/er/leaf.py", 2),
        ("README.md", 1),
        ("README.md", 2),
        ("latin.txt", 1),
    ]
    for num in (1, 2, 3, 4, 6):
        assert [(match.path, match.line) for match in tree.search("needle", "", num)] == places[:num]
    assert [match.text for match in tree.search("[x] * .", "", 9)] == ["naïve [x] * . needle"]
    assert [match.text for match in tree.search("ï", "", 9)] == ["naïve [x] * . needle"]
    assert tree.search("Needle", "", 9) == []
    assert tree.search("n.*e", "", 9) == []
    assert [match.text for match in tree.search("readme", "", 9)] == ["a needle in the readme"]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("pkg", ["pkg/core.py", "pkg/deep/er/leaf.py"]),
        ("pkg/deep/", ["pkg/deep/er/leaf.py"]),
        ("/pkg/core.py", ["pkg/core.py"]),
        ("odd [name] *.py", ["odd [name] *.py"]),
        ("empty.txt", []),
    ],
)
def test_search_stays_at_or_below_its_path(tree: SourceTree, path: str, found: list[str]) -> None:
    assert [match.path for match in tree.search("needle", path, 9)] == found


@pytest.mark.parametrize("query", ["-e", "--help", "--open-files-in-pager=touch", "; touch x", "$(touch x)", ":(top)"])
def test_a_query_is_never_an_option_or_a_command(tree: SourceTree, query: str) -> None:
    assert tree.search(query, "", 9) == []


@pytest.mark.parametrize("query", ["", "  ", "two\nlines", "nul\0", "\ud800"])
def test_an_impossible_query_is_the_agents_mistake(tree: SourceTree, query: str) -> None:
    with pytest.raises(TreePathError):
        tree.search(query, "", 9)


@pytest.mark.parametrize(
    "path",
    ["..", "../secret.txt", "pkg/../../secret.txt", "/../secret.txt", "out/secret.txt", "out", "link.py", "nowhere",
     "/etc/passwd", ".git/config", ".git", "pkg/.git", "pkg/core.py/x", "pkg/__pycache__/core.pyc", "a\0b", ":/pkg",
     "old:pkg", "\ud800", "pipe", "~"],
)  # fmt: skip
def test_no_path_leads_out_of_the_tree(tree: SourceTree, path: str) -> None:
    for use in (tree.read, tree.children, lambda path: tree.search("needle", path, 9)):
        with pytest.raises(TreePathError):
            use(path)


def test_a_path_above_the_root_is_told_from_one_that_is_missing(tree: SourceTree) -> None:
    with pytest.raises(TreePathError, match="leads out"):
        tree.read("pkg/../../README.md")
    with pytest.raises(TreePathError, match="no file or directory"):
        tree.read("pkg/README.md")


@pytest.mark.parametrize("path", ["data.bin", "pkg", "", "large.txt"])
def test_what_is_not_a_text_file_of_bounded_size_cannot_be_read(folder: Path, path: str) -> None:
    (folder / "large.txt").write_bytes(b"needle\n" * (MAX_FILE_BYTES // 7 + 1))
    tree = open_tree(str(folder))
    with pytest.raises(TreePathError):
        tree.read(path)
    assert "large.txt" not in {match.path for match in tree.search("needle", "", 99)}


def test_files_too_large_for_the_folder_are_left_out_of_a_commit_too(repository: Path) -> None:
    (repository / "large.txt").write_bytes(b"needle\n" * (MAX_FILE_BYTES // 7 + 1))
    git(repository, "add", "large.txt")
    git(repository, "commit", "-q", "-m", "large")
    tree = open_tree(str(repository), "main")
    assert "large.txt" not in {match.path for match in tree.search("needle", "", 99)}
    with pytest.raises(TreePathError, match="too large"):
        tree.read("large.txt")


def test_a_commit_is_read_without_looking_at_or_touching_a_dirty_work_tree(repository: Path) -> None:
    before = snapshot(repository)
    old, new = open_tree(str(repository), "old"), open_tree(str(repository), "main")
    assert "old needle" in old.read("pkg/core.py")
    assert "new needle" in new.read("pkg/core.py")
    assert new.children("pkg") == ["__init__.py", "added.py", "core.py", "deep/"]
    assert [match.text.strip() for match in old.search("needle'", "pkg/core.py", 9)] == ["return 'old needle'"]
    assert {match.path for match in new.search("needle", "", 99)}.isdisjoint({"README.md", "loose.py", "pkg/staged.py"})
    assert snapshot(repository) == before


def test_the_users_git_settings_and_a_running_hook_change_nothing(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_tree(str(repository), "old").search("needle", "", 99)
    settings = "[color]\n ui = always\n[grep]\n lineNumber = false\n column = true\n patternType = perl\n"
    (tmp_path / "gitconfig").write_text(settings)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path / "objects"))
    _cached_tree.cache_clear()
    assert open_tree(str(repository), "old").search("needle", "", 99) == expected


def test_a_linked_work_tree_is_a_repository_too(repository: Path, tmp_path: Path) -> None:
    git(repository, "worktree", "add", "-q", str(tmp_path / "linked"), "old")
    assert "old needle" in open_tree(str(tmp_path / "linked"), "old").read("pkg/core.py")


def test_a_folder_inside_a_repository_is_not_taken_for_it(repository: Path) -> None:
    assert git_dir_of(str(repository / "pkg")) == (repository / "pkg").resolve()
    with pytest.raises(RecipeError, match=r"payload\.commit"):
        check_source(str(repository / "pkg"), "old")


@pytest.mark.parametrize("commit", ["f" * 40, "nowhere", "--help", "old:pkg", ""])
def test_a_missing_commit_is_the_operators_mistake(repository: Path, commit: str) -> None:
    with pytest.raises(RecipeError, match=r"payload\.commit.*allowed"):
        check_source(str(repository), commit)


def test_a_missing_folder_is_the_operators_mistake(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"payload\.source.*allowed"):
        check_source(str(tmp_path / "nowhere"), None)
    check_source(str(tmp_path), None)


def test_without_git_a_session_fails_for_infrastructure_reasons(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = open_tree(str(repository), "old")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InfrastructureError, match="cannot run git"):
        tree.read("pkg/core.py")
    with pytest.raises(InfrastructureError, match="cannot run git"):
        tree.search("needle", "", 9)
    _cached_tree.cache_clear()
    with pytest.raises(InfrastructureError, match="cannot run git"):
        open_tree(str(repository), "old")


def test_a_repository_that_breaks_fails_for_infrastructure_reasons(repository: Path) -> None:
    tree = open_tree(str(repository), "old")
    subprocess.run(["rm", "-rf", str(repository / ".git" / "objects")], check=True)
    for use in (lambda: tree.read("pkg/core.py"), lambda: tree.search("needle", "", 9)):
        with pytest.raises(InfrastructureError, match="git"):
            use()


def test_a_folder_that_changes_under_a_session_fails_for_infrastructure_reasons(folder: Path, tmp_path: Path) -> None:
    tree = open_tree(str(folder))
    (folder / "README.md").unlink()
    with pytest.raises(InfrastructureError, match="cannot read"):
        tree.read("README.md")
    (folder / "README.md").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(InfrastructureError, match="link"):
        tree.read("README.md")


def test_one_tree_is_shared_and_their_number_bounded(repository: Path) -> None:
    assert open_tree(str(repository), "old") is open_tree(str(repository), "old")
    assert _cached_tree.cache_info().maxsize == MAX_OPEN_TREES


def test_a_very_long_line_is_cut_and_the_lines_after_it_keep_their_numbers(repository: Path) -> None:
    write(repository, {"long.js": b"needle" * 100_000 + b"\nneedle 2\n"})
    git(repository, "add", "long.js")
    git(repository, "commit", "-q", "-m", "long")
    for tree in (open_tree(str(repository), "main"), open_tree(str(repository))):
        first, second = tree.search("needle", "long.js", 9)
        assert (first.line, second.line, second.text) == (1, 2, "needle 2")
        assert len(first.text) <= 2000
