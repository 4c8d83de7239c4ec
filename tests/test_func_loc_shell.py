"""Sessions of `func_loc` with a shell: what an agent can come to, what an operator is told, what is ours to fail."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from git_history import git

from ppp.codec import Codec
from ppp.engines.scripted import ScriptedEngine
from ppp.environments import environment_class
from ppp.environments.func_loc import FuncLocEnvironment
from ppp.environments.func_loc_shell import FuncLocShell, _Lease, _make_sandbox
from ppp.environments.sandbox import SandboxLimits
from ppp.environments.sandbox_bubblewrap import check_bubblewrap
from ppp.environments.sandbox_container import ContainerSandbox
from ppp.rollout import Limits, RolloutJob, RolloutPool
from ppp.swe.trees import TreeStore
from ppp.types import InfrastructureError, Observation, RecipeError, Task, ToolCall, Turn

OLD = "class Core:\n    def run(self):\n        raise ValueError('frobnication failed')\n"
SECRETS = {  # field of the payload -> what must be nowhere
    "gold_functions": ["src/core.py:Core.gold_marker_a41f"],
    "hints_text": "hints_marker_b52e",
    "evaluation": {"patch": "+    return 'patch_marker_c63d'", "test_patch": "+def test_patch_marker_d74c(): ..."},
}
MARKERS = ("gold_marker_a41f", "hints_marker_b52e", "patch_marker_c63d", "patch_marker_d74c", "later_marker_e85b")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two commits up to the tag `old`, a later one with the fix, and a dirty work tree."""
    folder = tmp_path_factory.mktemp("repositories") / "acme+widgets"
    (folder / "src").mkdir(parents=True)
    git(folder, "init", "-q")
    (folder / "src/core.py").write_text("")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    (folder / "src/core.py").write_text(OLD)
    git(folder, "commit", "-q", "-a", "-m", "second")
    git(folder, "tag", "old")
    (folder / "src/core.py").write_text("# later_marker_e85b\n")
    git(folder, "commit", "-q", "-a", "-m", "fix later_marker_e85b")
    (folder / "src/core.py").write_text("dirty = True\n")
    return folder


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("trees"))


@pytest.fixture
def task(repository: Path) -> Task:
    payload = {"source": str(repository), "commit": "old", **SECRETS}
    return Task("t", "func_loc", "It fails.", "core.py fails.", "no_preference", payload)


def run_commands(task: Task, trees: str, *commands: str, **options: Any) -> list[Observation]:
    async def session() -> list[Observation]:
        async with FuncLocShell(task, {"trees": trees, **options}) as environment:
            return [await environment.step(ToolCall("execute_bash", {"command": command})) for command in commands]

    return asyncio.run(session())


# ---------------------------------------------------------------- what an agent can come to


def test_a_session_sees_the_commit_and_its_history_and_nothing_later(task: Task, trees: str) -> None:
    code, log, tags, status = run_commands(
        task, trees, "cat src/core.py", "git log --all --format=%s", "git tag; git branch -a", "git status --short"
    )
    assert code == Observation(OLD.rstrip("\n"))
    assert log == Observation("second\nfirst")
    assert "later" not in tags.text and "main" not in tags.text
    assert status == Observation("[no output]")


def test_nothing_of_the_payload_and_nothing_later_can_be_found_anywhere(task: Task, trees: str) -> None:
    pattern = "|".join(MARKERS)
    found, own, history, control = run_commands(
        task,
        trees,
        f"grep -rlE '{pattern}' / --exclude-dir=proc --exclude-dir=sys --exclude-dir=usr 2>/dev/null",
        f"env | grep -E '{pattern}'; grep -laE '{pattern}' /proc/[0-9]*/environ /proc/1/cmdline 2>/dev/null; true",
        f"git cat-file --batch-all-objects --batch | grep -aE '{pattern}'; true",
        "git cat-file --batch-all-objects --batch | grep -ac frobnication; grep -rl frobnication / 2>/dev/null "
        "--exclude-dir=proc --exclude-dir=sys --exclude-dir=usr",
        timeout_s=60,
    )
    assert found.text == "[exit status 1]" or found.text == "[exit status 2]"  # 2: some folder cannot be read
    assert own == Observation("[no output]")
    assert history == Observation("[no output]")
    assert control.text.split("\n")[:2] == ["1", "/testbed/src/core.py"]  # such a search does find what is there


def test_sessions_at_the_same_time_share_the_tree_and_nothing_else(task: Task, trees: str) -> None:
    async def session(number: int) -> str:
        async with FuncLocShell(task, {"trees": trees}) as environment:
            for command in (f"echo {number} >>/tmp/note", "sleep 0.1", "cat /tmp/note; grep -c frobn src/core.py"):
                seen = await environment.step(ToolCall("execute_bash", {"command": command}))
            return seen.text

    async def sessions() -> list[str]:
        return await asyncio.gather(*(session(number) for number in range(8)))

    assert asyncio.run(sessions()) == [f"{number}\n1" for number in range(8)]
    assert len(list(Path(trees, "trees").iterdir())) == 1


def test_a_folder_that_is_no_repository_is_mounted_as_it_is(tmp_path: Path, trees: str) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("x = 1\n")
    task = Task(
        "t", "func_loc", "p", "p", "no_preference", {"source": str(tmp_path / "code"), "gold_functions": ["a:b"]}
    )
    FuncLocShell.check_task(task)
    assert run_commands(task, trees, "cat a.py") == [Observation("x = 1")]


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sandbox": "chroot"}, r"func_loc\.sandbox: 'chroot' is not allowed; allowed: .*bubblewrap"),
        ({"sandbox": "container"}, r"func_loc\.image: None is not allowed; allowed: the image of a container"),
        ({"image": "python:3.11"}, r"func_loc\.image: 'python:3.11' is not allowed"),
        ({"image": 5, "trees": "t"}, r"func_loc\.image: 5 is not allowed"),
        ({"trees": 5}, r"func_loc\.trees: 5 is not allowed; allowed: a folder"),
        ({"trees": ""}, r"func_loc\.trees: '' is not allowed"),
        ({"trees": "/proc/nowhere"}, r"func_loc.*trees cannot be kept in '/proc/nowhere'"),
        ({"max_trees_gb": 0}, r"func_loc\.max_trees_gb: 0 is not allowed; allowed: a number > 0"),
        ({"max_trees_gb": True}, r"func_loc\.max_trees_gb: True"),
        ({"max_trees_gb": float("inf")}, r"func_loc\.max_trees_gb: inf"),
        ({"history": -1}, r"func_loc\.history: -1"),
        ({"history": [1]}, r"func_loc\.history: \[1\]"),
        ({"timeout_s": 0}, r"func_loc.*timeout_s: 0 is not allowed"),
        ({"memory_mb": "1G"}, r"func_loc.*memory_mb: '1G' is not allowed"),
        ({"max_view_lines": 3}, r"func_loc\.max_view_lines: unknown option; allowed .*timeout_s"),
        ({"toolset": "read", "timeout_s": 3}, r"func_loc\.timeout_s: unknown option; allowed .*max_view_lines"),
        ({"sandbox": ["bubblewrap"]}, r"func_loc\.sandbox: \['bubblewrap'\] is not allowed"),
        ({"toolset": ["shell"]}, r"func_loc\.toolset: \['shell'\] is unknown"),
        ({"toolset": None}, r"func_loc\.toolset: None is unknown; allowed: shell, read"),
        ({"accept_bullets": "yes"}, r"func_loc\.accept_bullets: 'yes' is not allowed"),
    ],
)
def test_a_bad_option_is_refused_by_name_and_value(options: dict[str, Any], message: str, trees: str) -> None:
    with pytest.raises(RecipeError, match=message):
        environment_class("func_loc").check_options({"trees": trees, **options} if len(options) < 2 else options)


def test_every_limit_of_the_sandbox_is_an_option(trees: str) -> None:
    limits = {field.name: 7 for field in fields(SandboxLimits)}
    FuncLocEnvironment.check_options({"trees": trees, "sandbox": "bubblewrap", "history": 0, **limits})


def test_options_reach_the_sandbox_and_the_trees(task: Task, trees: str) -> None:
    assert run_commands(task, trees, "sleep 9", timeout_s=0.2)[0].text == "[The command was stopped after 0.2 seconds.]"
    assert run_commands(task, trees, "ls -A", history=0) == [Observation("src")]


def test_a_container_is_made_of_its_image_around_the_tree(tmp_path: Path) -> None:
    made = _make_sandbox({"sandbox": "container", "image": "some/image", "timeout_s": 7}, tmp_path)
    assert isinstance(made, ContainerSandbox)
    assert (made.image, made.tree, made.limits.timeout_s) == ("some/image", tmp_path, 7)


def test_a_machine_without_bubblewrap_is_told_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, trees: str
) -> None:
    check_bubblewrap.cache_clear()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RecipeError, match="apt install bubblewrap"):
        FuncLocEnvironment.check_options({"trees": trees})


# ---------------------------------------------------------------- failures of ours


class Calls:
    """Plays the same calls in every session."""

    def __init__(self, *commands: str) -> None:
        self.commands = commands

    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall]:
        if len(turns) < len(self.commands):
            return "", ToolCall("execute_bash", {"command": self.commands[len(turns)]})
        return "", ToolCall("finish", {"answer": task.payload["gold_functions"][0]})


@pytest.fixture
def make_pool(codec: Codec, trees: str) -> Iterator[Callable[..., RolloutPool]]:
    with contextlib.ExitStack() as stack:

        def make(*commands: str, **limits: Any) -> RolloutPool:
            engine = ScriptedEngine(codec, Calls(*commands))
            bounds = Limits(max_prompt_tokens=16_000, max_completion_tokens=100_000, **limits)
            pool = RolloutPool(engine, codec, bounds, environment_options={"func_loc": {"trees": trees}})
            stack.callback(pool.close)
            return pool

        yield make


def test_a_session_through_the_pool_is_scored(make_pool: Callable[..., RolloutPool], task: Task) -> None:
    (trajectory,) = make_pool("ls", "exec 1>&-; kill -9 -1; echo gone").run([RolloutJob(task, 0, 0)], step=0)
    assert trajectory.error is None and trajectory.productivity == 1.0
    assert trajectory.turns[0].observation == "src"


@pytest.mark.parametrize(
    ("toolset", "names"),
    [("shell", ["execute_bash", "str_replace_editor", "think"]), ("read", ["list_dir", "search_code", "view"])],
)
def test_the_prompt_tells_of_the_tools_that_the_recipe_names(
    codec: Codec, task: Task, trees: str, toolset: str, names: list[str]
) -> None:
    options = {"toolset": toolset, **({"trees": trees} if toolset == "shell" else {})}
    pool = RolloutPool(ScriptedEngine(codec, Calls()), codec, Limits(), environment_options={"func_loc": options})
    prompt = codec.decode(pool.prompt_ids(task))
    known = ("execute_bash", "str_replace_editor", "think", "list_dir", "search_code", "view")
    assert [name for name in known if f'"name": "{name}"' in prompt] == names
    assert ("/testbed" in prompt) == (toolset == "shell")


def test_a_tree_that_cannot_be_built_leaves_the_batch_and_the_others_go_on(
    make_pool: Callable[..., RolloutPool], task: Task, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    bad = Task("bad", "func_loc", "p", "p", "no_preference", {**task.payload, "source": str(tmp_path / "broken")})
    missing = Task("missing", "func_loc", "p", "p", "no_preference", {**task.payload, "commit": "f" * 40})
    jobs = [RolloutJob(each, row, 0) for row, each in enumerate((bad, task, missing))]
    broken, whole, lost = make_pool("ls").run(jobs, step=0)
    assert whole.productivity == 1.0
    assert broken.failed and str(tmp_path / "broken") in str(broken.error)
    assert lost.failed and "f" * 40 in str(lost.error) and lost.error_kind == "git"


def test_a_sandbox_that_dies_is_no_fault_of_the_agent(task: Task, trees: str) -> None:
    async def session() -> None:
        async with FuncLocShell(task, {"trees": trees}) as environment:
            sandbox = environment._sandbox
            assert sandbox is not None
            os.kill(sandbox._process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
            await environment.step(ToolCall("execute_bash", {"command": "ls"}))

    with pytest.raises(InfrastructureError, match="sandbox"):
        asyncio.run(session())


def num_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_sessions_leave_no_open_file_and_no_tree_in_use(task: Task, trees: str) -> None:
    run_commands(task, trees, "ls")
    before = num_open_files()
    for _ in range(3):
        run_commands(task, trees, "ls")
    assert num_open_files() == before
    assert TreeStore(Path(trees), max_gb=1e-9).trim() == 0  # one that is in use would be kept


class SlowStore:
    """A store whose trees are ready when it is told."""

    def __init__(self) -> None:
        self.asked, self.ready, self.num_held = threading.Event(), threading.Event(), 0

    @contextlib.contextmanager
    def tree(self, source: str, commit: str | None) -> Iterator[Path]:
        self.asked.set()
        self.ready.wait(10)
        self.num_held += 1
        try:
            yield Path("/")
        finally:
            self.num_held -= 1


def test_a_tree_that_comes_after_its_session_has_ended_is_given_back() -> None:
    store, lease, failures = SlowStore(), _Lease(), []

    def take() -> None:
        try:
            lease.take(store, "s", "c")  # type: ignore[arg-type]
        except InfrastructureError as error:
            failures.append(error)

    thread = threading.Thread(target=take)
    thread.start()
    store.asked.wait(10)
    lease.give_back()
    store.ready.set()
    thread.join()
    assert len(failures) == 1 and store.num_held == 0


def test_a_tree_is_held_until_it_is_given_back_twice_even() -> None:
    store, lease = SlowStore(), _Lease()
    store.ready.set()
    assert lease.take(store, "s", "c") == Path("/") and store.num_held == 1  # type: ignore[arg-type]
    lease.give_back()
    lease.give_back()
    assert store.num_held == 0
