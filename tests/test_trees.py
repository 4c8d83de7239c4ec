"""The store of trees: shared by processes, bounded, and sound after any of them is killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from git_history import History, git, random_history

import ppp
from ppp.swe.checkouts import remove_tree
from ppp.swe.trees import TreeStore, default_folder
from ppp.types import InfrastructureError, RecipeError

GIT = shutil.which("git")
ONE_TREE_GB = 60e3 / 1e9  # a bound that one tree of these tests is over, as two of them are
WORKER = """
import sys
from pathlib import Path
from ppp.swe.checkouts import remove_tree
from ppp.swe.trees import TreeStore
folder, source, max_gb, *commits = sys.argv[1:]
store = TreeStore(Path(folder), float(max_gb))
"""
HOLD = (
    WORKER
    + """
with store.tree(source, commits[0]) as tree:
    print(tree, flush=True)
    sys.stdin.readline()
    assert (tree / ".git" / "HEAD").read_text().strip() == commits[0]
"""
)
CHURN = (
    WORKER
    + """
import random
rng = random.Random(int(commits.pop()))
for _ in range(12):
    commit = rng.choice(commits)
    with store.tree(source, commit) as tree:
        before = sorted(path.name for path in tree.rglob("*"))
        store.trim()
        assert (tree / ".git" / "HEAD").read_text().strip() == commit
        assert sorted(path.name for path in tree.rglob("*")) == before
"""
)


@pytest.fixture(autouse=True)
def no_read_only_folder_is_left(tmp_path: Path) -> Iterator[None]:
    """Or pytest could not clear up."""
    yield
    remove_tree(tmp_path)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    return random_history(tmp_path_factory.mktemp("trees") / "owner+name", seed=11)


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a process with one of the programs above; none outlives the test."""
    started: list[subprocess.Popen] = []

    def start(program: str, *arguments: object, path: str = "") -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(Path(ppp.__file__).parent.parent)}
        environment["PATH"] = path + os.environ["PATH"]
        command = [sys.executable, "-c", program, *map(str, arguments)]
        started.append(subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, env=environment, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen) -> str:
    output, errors = process.communicate("\n", timeout=100)
    assert process.returncode == 0, errors
    return output.strip()


def kept(folder: Path) -> set[str]:
    """The first twelve digits of the commits that a store has trees of."""
    return {path.name.split("-")[-2] for path in (folder / "trees").iterdir()}


def leftovers(folder: Path) -> list[Path]:
    return [*(folder / "building").iterdir(), *(folder / "trash").iterdir()]


@contextlib.contextmanager
def git_that(folder: Path, script: str) -> Iterator[str]:
    """A PATH in front of the usual one on which git is a shell script that knows the true one as $GIT."""
    folder.mkdir()
    (folder / "git").write_text(f'#!/bin/sh\nGIT={GIT}\nHERE={folder}\n{script}\nexec $GIT "$@"\n')
    (folder / "git").chmod(0o755)
    yield f"{folder}{os.pathsep}"


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_second_time_the_tree_is_there_and_git_is_not_asked(
    tmp_path: Path, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TreeStore(tmp_path / "store")
    with store.tree(history.path, history.ids[3]) as first:
        assert first.name == "tree" and git(first, "rev-parse", "HEAD") == history.ids[3]
    monkeypatch.setenv("PATH", str(tmp_path))
    with store.tree(str(history.path), history.ids[3].upper()) as second:
        assert second == first
    with pytest.raises(InfrastructureError, match="cannot run git"), store.tree(history.path, history.ids[4]):
        pass


def test_branches_and_shortened_ids_lead_to_the_tree_of_their_commit(tmp_path: Path, history: History) -> None:
    store = TreeStore(tmp_path)
    with store.tree(history.path, history.ids[0]) as tree:
        for name in (history.ids[0][:14], "light0", "heavy0", git(history.path, "rev-parse", "heavy0")[:12]):
            with store.tree(history.path, name) as same:
                assert same == tree


def test_tag_object_leads_to_its_commit(tmp_path: Path, history: History) -> None:
    with TreeStore(tmp_path).tree(history.path, git(history.path, "rev-parse", "heavy3")) as tree:
        assert git(tree, "rev-parse", "HEAD") == history.ids[3]
        assert "told by" not in git(tree, "cat-file", "--batch-all-objects", "--batch")


def test_stores_with_other_histories_do_not_mix(tmp_path: Path, history: History) -> None:
    counts = {}
    for depth in (0, 1, None):
        with TreeStore(tmp_path, history=depth).tree(history.path, history.ids[6]) as tree:
            counts[depth] = len(git(tree, "rev-list", "HEAD").split()) if (tree / ".git").exists() else 0
    assert counts == {0: 0, 1: 1, None: len(history.generations(6, None))}


def test_folder_without_commit_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    store = TreeStore(tmp_path / "store", 1e-9)
    with store.tree(tmp_path / "plain", None) as tree:
        assert tree == tmp_path / "plain"
    store.trim()
    assert tree.is_dir() and kept(store.folder) == set()


def test_processes_that_ask_at_once_share_one_build(tmp_path: Path, history: History, spawn: Callable) -> None:
    count = 'for word; do [ "$word" = fetch ] && echo >> $HERE/fetches; done'
    with git_that(tmp_path / "bin", count) as path:
        arguments = (tmp_path / "store", history.path, 1, history.ids[8])
        processes = [spawn(HOLD, *arguments, path=path) for _ in range(6)]
        trees = {finish(process) for process in processes}
    assert len(trees) == 1 and leftovers(tmp_path / "store") == []
    assert (tmp_path / "bin" / "fetches").read_text() == "\n"


def test_threads_that_ask_at_once_share_one_build(tmp_path: Path, history: History) -> None:
    store, found = TreeStore(tmp_path), []

    def ask() -> None:
        with store.tree(history.path, history.ids[2]) as tree:
            found.append((tree, tree.stat().st_ino))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16 and len(set(found)) == 1


@pytest.mark.parametrize("step", ["init", "fetch", "checkout", "cat-file", "update-index"])
def test_killed_half_way_the_next_process_builds_the_tree(
    tmp_path: Path, history: History, spawn: Callable, step: str
) -> None:
    write_pid = "echo $$ > $HERE/pid.new && mv $HERE/pid.new $HERE/pid"
    hang = f'for word; do [ "$word" = {step} ] && {write_pid} && exec sleep 99; done'
    arguments = (tmp_path / "store", history.path, 1, history.ids[9])
    with git_that(tmp_path / "bin", hang) as path:
        process = spawn(HOLD, *arguments, path=path)
        wait_for((tmp_path / "bin" / "pid").exists, process)
    process.kill()
    process.wait()
    assert kept(tmp_path / "store") == set() and len(leftovers(tmp_path / "store")) == 1
    with TreeStore(tmp_path / "store").tree(history.path, history.ids[9]) as tree:
        assert git(tree, "status", "--porcelain") == ""
        git(tree, "fsck", "--full")
    os.kill(int((tmp_path / "bin" / "pid").read_text()), signal.SIGKILL)
    assert leftovers(tmp_path / "store") == []


def test_killed_in_the_middle_of_anything_at_any_time(tmp_path: Path, history: History, spawn: Callable) -> None:
    rng = random.Random(0)
    arguments = (tmp_path, history.path, ONE_TREE_GB, *history.ids[:4])
    for seed in range(5):
        process = spawn(CHURN, *arguments, seed)
        time.sleep(0.2 + rng.random())
        process.kill()
        process.wait()
    finish(spawn(CHURN, *arguments, 99))
    # Git's own processes end by themselves, and may leave a file behind until then.
    store = TreeStore(tmp_path, ONE_TREE_GB)
    store.trim()
    assert leftovers(tmp_path) == [] and store.trim() <= ONE_TREE_GB * 1e9


def test_processes_that_delete_what_others_want_never_take_it_from_them(
    tmp_path: Path, history: History, spawn: Callable
) -> None:
    arguments = (tmp_path, history.path, ONE_TREE_GB, *history.ids[:4])
    for process in [spawn(CHURN, *arguments, seed) for seed in range(3)]:
        finish(process)
    assert TreeStore(tmp_path, ONE_TREE_GB).trim() <= ONE_TREE_GB * 1e9 and leftovers(tmp_path) == []


def test_tree_used_least_recently_goes_first(tmp_path: Path, history: History) -> None:
    store = TreeStore(tmp_path)
    sizes = []
    for number in (1, 2, 1, 3):
        with store.tree(history.path, history.ids[number]) as tree:
            sizes.append(int((tree.parent / "lease").read_text()))
    bound = (sum(sizes[-2:]) + 1) / 1e9
    assert TreeStore(tmp_path, bound).trim() <= bound * 1e9
    assert kept(tmp_path) == {history.ids[number][:12] for number in (1, 3)}


def test_recorded_size_is_that_on_disk(tmp_path: Path, history: History) -> None:
    with TreeStore(tmp_path).tree(history.path, history.ids[4]) as tree:
        recorded = int((tree.parent / "lease").read_text())
        paths = [tree, *tree.rglob("*")]
        assert recorded == sum(path.lstat().st_blocks * 512 for path in paths)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_in_use_stays_and_the_rest_is_bounded(
    tmp_path: Path, history: History, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng, store = random.Random(seed), TreeStore(tmp_path, ONE_TREE_GB)
    held: list[tuple[contextlib.ExitStack, Path, str]] = []
    for _ in range(15):
        if held and rng.random() < 0.5:
            held.pop(rng.randrange(len(held)))[0].close()
        else:
            stack, commit = contextlib.ExitStack(), history.ids[rng.randrange(5)]
            held.append((stack, stack.enter_context(store.tree(history.path, commit)), commit))
        num_bytes = store.trim()
        in_use = {commit[:12] for _, _, commit in held}
        assert in_use <= kept(tmp_path)
        assert num_bytes <= ONE_TREE_GB * 1e9 or kept(tmp_path) == in_use
        for _, tree, commit in held:
            assert (tree / ".git" / "HEAD").read_text().strip() == commit
    for stack, _, _ in held:
        stack.close()


def test_more_in_use_than_allowed_is_said_and_goes_on(
    tmp_path: Path, history: History, caplog: pytest.LogCaptureFixture
) -> None:
    with TreeStore(tmp_path, 1e-6).tree(history.path, history.ids[1]) as tree:
        assert "more than the allowed" in caplog.text and (tree / ".git").is_dir()


def test_process_that_is_killed_lets_go_of_its_trees(tmp_path: Path, history: History, spawn: Callable) -> None:
    holder = spawn(HOLD, tmp_path, history.path, 1, history.ids[5])
    assert Path(holder.stdout.readline().strip()).is_dir()
    store = TreeStore(tmp_path, 1e-9)
    assert store.trim() > 0 and kept(tmp_path) == {history.ids[5][:12]}
    holder.kill()
    holder.wait()
    assert store.trim() == 0 and kept(tmp_path) == set()


def test_forked_child_does_not_keep_what_its_parent_gave_back(tmp_path: Path, history: History) -> None:
    reading, writing = os.pipe()
    with TreeStore(tmp_path).tree(history.path, history.ids[5]):
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
    try:
        assert TreeStore(tmp_path, 1e-9).trim() == 0
    finally:
        os.close(reading)
        os.close(writing)
        os.waitpid(child, 0)


def test_tree_that_is_deleted_while_somebody_waits_for_it_is_built_again(tmp_path: Path, history: History) -> None:
    store, found = TreeStore(tmp_path / "store"), []

    def ask() -> None:
        with store.tree(history.path, history.ids[5]) as tree:
            found.append((tree / ".git" / "HEAD").read_text().strip())

    with store.tree(history.path, history.ids[5]) as tree:
        pass
    with (tree.parent / "lease").open("r+") as lease:
        fcntl.flock(lease, fcntl.LOCK_EX)
        thread = threading.Thread(target=ask)
        thread.start()
        inode = f":{os.fstat(lease.fileno()).st_ino} "
        while not any("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines()):
            time.sleep(0.01)
        tree.parent.rename(tmp_path / "deleted")
    thread.join()
    assert found == [history.ids[5]]


def test_no_descriptor_and_no_lock_is_left_after_many_sessions(tmp_path: Path, history: History) -> None:
    store = TreeStore(tmp_path)
    with store.tree(history.path, history.ids[1]):
        pass
    before = len(os.listdir("/proc/self/fd"))
    for number in range(300):
        with contextlib.suppress(ZeroDivisionError), store.tree(history.path, history.ids[1]):
            1 / (number % 2)
    for _ in range(3):
        with pytest.raises(InfrastructureError), store.tree(history.path, "f" * 40):
            pass
    assert len(os.listdir("/proc/self/fd")) == before
    assert TreeStore(tmp_path, 1e-9).trim() == 0


def test_tree_that_somebody_has_half_deleted_is_built_again(tmp_path: Path, history: History) -> None:
    store = TreeStore(tmp_path)
    with store.tree(history.path, history.ids[1]) as tree:
        pass
    (tree.parent / "lease").unlink()
    with store.tree(history.path, history.ids[1]) as again:
        assert again == tree and git(again, "status", "--porcelain") == ""


def missing_repository(folder: Path, history: History) -> tuple[Path, str, str]:
    return folder / "nowhere", history.ids[0], "does not exist"


def folder_without_repository(folder: Path, history: History) -> tuple[Path, str, str]:
    (history.path / "inside").mkdir(exist_ok=True)  # of a repository, which is not the one that was named
    return history.path / "inside", history.ids[0], "not a git repository"


def missing_commit(folder: Path, history: History) -> tuple[Path, str, str]:
    return history.path, "0123456789" * 4, "no such commit"


def missing_branch(folder: Path, history: History) -> tuple[Path, str, str]:
    return history.path, "--no-such-branch", "no such commit"


def a_tree_object(folder: Path, history: History) -> tuple[Path, str, str]:
    return history.path, git(history.path, "rev-parse", "HEAD^{tree}"), "expected commit type"


def damaged_pack(folder: Path, history: History) -> tuple[Path, str, str]:
    mirror = folder / "owner+damaged"
    git(folder, "clone", "--quiet", "--mirror", str(history.path), str(mirror))
    git(mirror, "repack", "-a", "-d", "-q")
    (pack,) = mirror.glob("objects/pack/*.pack")
    pack.chmod(0o644)
    content = bytearray(pack.read_bytes())
    for offset in range(40, len(content) - 20, 40):
        content[offset] ^= 0xFF
    pack.write_bytes(content)
    return mirror, history.ids[8], ""


def truncated_pack(folder: Path, history: History) -> tuple[Path, str, str]:
    mirror = folder / "owner+truncated"
    git(folder, "clone", "--quiet", "--mirror", str(history.path), str(mirror))
    git(mirror, "repack", "-a", "-d", "-q")
    (pack,) = mirror.glob("objects/pack/*.pack")
    pack.chmod(0o644)
    pack.write_bytes(pack.read_bytes()[:100])
    return mirror, history.ids[8], ""


def hole_in_the_history(folder: Path, history: History) -> tuple[Path, str, str]:
    mirror = folder / "owner+hole"
    git(folder, "clone", "--quiet", "--mirror", str(history.path), str(mirror))
    git(mirror, "repack", "-a", "-d", "-q")
    (pack,) = mirror.glob("objects/pack/*.pack")
    content = pack.rename(folder / "pack").read_bytes()
    git(mirror, "unpack-objects", "-q", stdin=content)
    blob = git(history.path, "ls-tree", "-r", history.ids[8]).split("\n")[0].split()[2]
    (mirror / "objects" / blob[:2] / blob[2:]).unlink()
    return mirror, history.ids[8], blob


@pytest.mark.parametrize(
    "case",
    [
        missing_repository,
        folder_without_repository,
        missing_commit,
        missing_branch,
        a_tree_object,
        damaged_pack,
        truncated_pack,
        hole_in_the_history,
    ],
)
def test_what_cannot_be_had_is_named_and_leaves_nothing(
    tmp_path: Path, history: History, case: Callable[[Path, History], tuple[Path, str, str]]
) -> None:
    source, commit, reason = case(tmp_path, history)
    store = TreeStore(tmp_path / "store")
    with pytest.raises(InfrastructureError) as failure, store.tree(source, commit):
        pass
    message = str(failure.value)
    assert str(source) in message and commit in message and reason in message
    assert leftovers(store.folder) == [] and kept(store.folder) == set()
    with store.tree(history.path, history.ids[2]):
        pass  # the rest goes on


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="nowhere"), TreeStore(tmp_path).tree(tmp_path / "nowhere", None):
        pass


@pytest.mark.parametrize("options", [{"max_gb": 0}, {"max_gb": float("nan")}, {"history": -1}, {"history": True}])
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: dict) -> None:
    with pytest.raises(RecipeError, match=f"{next(iter(options))}: .*allowed"):
        TreeStore(tmp_path, **options)


def test_folder_that_cannot_hold_trees_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"folder: .*file"):
        TreeStore(tmp_path / "file" / "below")


def test_default_folder_is_in_the_cache_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "ppp" / "trees"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "ppp" / "trees"


@pytest.mark.skipif("PPP_TEST_MIRRORS" not in os.environ, reason="PPP_TEST_MIRRORS, a folder of mirrors, is not set")
def test_trees_of_real_repositories_end_at_their_commit(tmp_path: Path) -> None:
    for mirror in sorted(Path(os.environ["PPP_TEST_MIRRORS"]).iterdir()):
        commits = git(mirror, "rev-list", "-2000", "--all", "--no-merges").split()
        store = TreeStore(tmp_path)
        for commit in commits[600::700]:
            with store.tree(mirror, commit) as tree:
                later = git(mirror, "rev-list", "-1000", "--all", f"^{commit}").split()
                answers = git(tree, "cat-file", "--batch-check", stdin="\n".join(later).encode()).splitlines()
                assert answers == [f"{each} missing" for each in later] and len(later) > 500
                assert git(tree, "status", "--porcelain") == git(tree, "for-each-ref") == ""
                tracked = git(mirror, "ls-tree", "-r", "--name-only", "-z", commit)
                assert git(tree, "ls-files", "-z") == tracked
