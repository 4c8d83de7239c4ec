"""The sandbox as its users know it: commands, what they leave, limits, output, and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ppp.environments import sandbox_bubblewrap, sandbox_system
from ppp.environments.sandbox import (
    SANDBOXES,
    BubblewrapSandbox,
    CommandResult,
    Sandbox,
    SandboxLimits,
    check_sandbox,
    sandbox_class,
)
from ppp.environments.sandbox_seccomp import DENIED, MACHINES, filter_program
from ppp.types import InfrastructureError, RecipeError

TRAINER = """
import asyncio, sys
from pathlib import Path
from ppp.environments.sandbox import BubblewrapSandbox

async def main():
    sandboxes = [BubblewrapSandbox(Path(sys.argv[1]), mount_at=sys.argv[2]) for _ in range(3)]
    for sandbox in sandboxes:
        await sandbox.setup()
        await sandbox.run("echo x > /tmp/left; cd /tmp")
    print("up", flush=True)
    await asyncio.gather(*(sandbox.run("setsid sleep 98765 & while :; do sleep 1; done") for sandbox in sandboxes))

asyncio.run(main())
"""


@pytest.fixture(scope="module", autouse=True)
def sandboxes_can_be_had() -> None:
    """Without bubblewrap these tests fail and say how to get it; they are never skipped."""
    check_sandbox("bubblewrap")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "package").mkdir(parents=True)
    (tree / "package" / "module.py").write_text("def f():\n    return 1\n")
    return tree


def play(tree: Path, *commands: str, limits: SandboxLimits | None = None) -> list[CommandResult]:
    async def session() -> list[CommandResult]:
        async with BubblewrapSandbox(tree, limits) as sandbox:
            return [await sandbox.run(command) for command in commands]

    return asyncio.run(session())


def processes_with(word: str) -> list[str]:
    """Command lines of this machine's processes that contain a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # has ended
            continue
        if word in line:
            found.append(line[:200])
    return found


def none_left(word: str, within_s: float = 10.0) -> bool:
    until = time.monotonic() + within_s
    while processes_with(word) and time.monotonic() < until:
        time.sleep(0.02)
    return not processes_with(word)


COMMANDS = {  # command -> exit code, output
    "pwd": (0, "/testbed"),
    "cat package/module.py": (0, "def f():\n    return 1"),
    "exit 3": (3, ""),
    "echo out; echo err >&2; false": (1, "out\nerr"),
    "kill -9 $$": (137, ""),
    "grep -rn 'def f' . | head -1": (0, "./package/module.py:1:def f():"),
    "find . -name '*.py' | xargs wc -l": (0, "2 ./package/module.py"),
    "python -c 'import ast, json, re; print(1)'": (0, "1"),
    "sed -n 1p package/module.py; awk '{print $1}' package/module.py": (0, "def f():\ndef\nreturn"),
    "git --version | cut -d' ' -f1-2": (0, "git version"),
    "whoami; echo ~; hostname": (0, "agent\n/tmp\nsandbox"),
    "echo äöü€ | wc -m": (0, "5"),
    "cat <<'END'\na\nEND": (0, "a"),
    "yes | head -1": (0, "y"),
    "echo a > /tmp/a; cat /tmp/a; diff <(echo b) <(echo b)": (0, "a"),
    "": (0, ""),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_command_gives_its_code_and_output(tree: Path, command: str) -> None:
    (result,) = play(tree, command)
    assert (result.exit_code, result.output) == COMMANDS[command]
    assert not result.timed_out and result.num_cut_chars == 0 and result.note == ""


def test_syntax_error_is_bash_s_own(tree: Path) -> None:
    (result,) = play(tree, "if then")
    assert result.exit_code == 2 and "syntax error" in result.output


def test_folder_and_scratch_stay_but_processes_and_variables_do_not(tree: Path) -> None:
    first = "cd package; export A=1; echo x > /tmp/x; sleep 77 &"
    results = play(tree, first, "pwd; echo [$A]; cat /tmp/x; pgrep sleep", "cd ..; exit 4", "pwd")
    assert [result.output for result in results] == ["", "/testbed/package\n[]\nx", "", "/testbed"]


def test_folder_that_is_gone_gives_way_to_the_tree(tree: Path) -> None:
    assert play(tree, "mkdir /tmp/a; cd /tmp/a", "rmdir /tmp/a", "pwd")[-1].output == "/testbed"


def test_sessions_share_nothing(tree: Path) -> None:
    async def sessions() -> list[str]:
        async with BubblewrapSandbox(tree) as one, BubblewrapSandbox(tree) as other:
            await one.run("echo secret > /tmp/x; cd package")
            return [(await other.run("cat /tmp/x; pwd")).output, (await one.run("cat /tmp/x; pwd")).output]

    theirs, own = asyncio.run(sessions())
    assert theirs == "cat: /tmp/x: No such file or directory\n/testbed"
    assert own == "secret\n/testbed/package"


def test_calls_of_one_session_take_turns(tree: Path) -> None:
    async def session() -> list[str]:
        async with BubblewrapSandbox(tree) as sandbox:
            results = await asyncio.gather(*(sandbox.run(f"sleep 0.0{9 - n}; echo {n}") for n in range(5)))
            return [result.output for result in results]

    assert asyncio.run(session()) == ["0", "1", "2", "3", "4"]


def test_many_sessions_run_at_once(tree: Path) -> None:
    async def session(number: int) -> str:
        async with BubblewrapSandbox(tree) as sandbox:
            await sandbox.run(f"echo {number} > /tmp/x")
            return (await sandbox.run("sleep 0.5; cat /tmp/x")).output

    async def sessions() -> list[str]:
        return await asyncio.gather(*map(session, range(24)))

    assert asyncio.run(sessions()) == [str(number) for number in range(24)]


def test_timeout_of_one_call_is_at_most_that_of_the_limits(tree: Path) -> None:
    async def session() -> list[CommandResult]:
        async with BubblewrapSandbox(tree, SandboxLimits(timeout_s=0.6)) as sandbox:
            return [await sandbox.run("echo x; sleep 60", timeout_s=seconds) for seconds in (0.3, 100.0, 0.0)]

    results = asyncio.run(session())
    notes = [f"The command was stopped after {seconds} seconds." for seconds in ("0.3", "0.6", "0")]
    assert [result.note for result in results] == notes
    assert all(result.timed_out and result.exit_code is None for result in results)
    assert [result.output for result in results[:2]] == ["x", "x"]


def test_processor_time_is_limited_for_each_process(tree: Path) -> None:
    (result,) = play(tree, "(while :; do :; done); echo $?", limits=SandboxLimits(cpu_s=1))
    assert result.output.splitlines()[-1] in ("137", "152") and not result.stopped_by


def test_processes_of_a_session_are_limited_for_root_too(tree: Path) -> None:
    forks = """python - <<'END'
import os, time
for number in range(200):
    try:
        if os.fork() == 0:
            time.sleep(60)
    except BlockingIOError:
        print(number)
        break
END"""
    results = play(tree, forks, forks, limits=SandboxLimits(max_processes=20))
    assert [result.output for result in results] == ["18", "18"]  # bash and Python count as well


def test_other_commands_run_after_one_that_filled_the_scratch(tree: Path) -> None:
    limits = SandboxLimits(max_files=500)
    fill = "mkdir /tmp/d; cd /tmp/d; python -c 'for n in range(5000): open(str(n), \"w\")'"
    full, after = play(tree, fill, "ls -A /tmp; pwd; touch /tmp/x && echo ok", limits=limits)
    assert full.stopped_by == "files" and "500 files" in full.note
    assert after.output == "/testbed\nok"


@pytest.mark.parametrize("command", ["echo \0", "echo " + "x" * 200_000])
def test_command_that_cannot_be_passed_on_is_an_observation(tree: Path, command: str) -> None:
    result, after = play(tree, command, "echo \udcff | wc -c")
    assert result.exit_code == 126 and "was not run" in result.output
    assert after.exit_code == 0


def test_root_runs_as_somebody_else(tree: Path) -> None:
    async def session() -> set[int]:
        async with BubblewrapSandbox(tree, mount_at=f"/testbed-{uuid.uuid4().hex}") as sandbox:
            (tree / "number").write_text("x")
            running = asyncio.create_task(sandbox.run(f"exec sleep 5.{os.getpid()}"))
            while not (lines := [p for p in Path("/proc").glob("[0-9]*") if is_running(p, f"sleep 5.{os.getpid()}")]):
                await asyncio.sleep(0.01)
            users = {path.stat().st_uid for path in lines}
            running.cancel()
            return users

    users = asyncio.run(session())
    assert users == {os.getuid() or sandbox_bubblewrap.UNPRIVILEGED_ID}


def is_running(process: Path, command: str) -> bool:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip() == command
    except OSError:
        return False


# What happens to sandboxes that do not end as they should.


def test_closed_and_broken_sandboxes_raise(tree: Path) -> None:
    async def session() -> None:
        sandbox = BubblewrapSandbox(tree)
        with pytest.raises(InfrastructureError, match="not open"):
            await sandbox.run("true")
        async with sandbox:
            assert sandbox._process is not None
            sandbox._process.kill()
            with pytest.raises(InfrastructureError) as caught:
                await sandbox.run("true")
            assert caught.value.kind == "sandbox"
        await sandbox.close()
        with pytest.raises(InfrastructureError, match="not open"):
            await sandbox.run("true")

    asyncio.run(session())


def test_cancelled_call_ends_the_sandbox_and_never_answers_the_next_one(tree: Path) -> None:
    mount_at = f"/testbed-{uuid.uuid4().hex}"

    async def session() -> None:
        async with BubblewrapSandbox(tree, mount_at=mount_at) as sandbox:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await sandbox.run("sleep 60")
            with pytest.raises(InfrastructureError):
                await sandbox.run("echo x")

    asyncio.run(session())
    assert none_left(mount_at)


@pytest.mark.parametrize("problem", ["missing", "file", "closed"])
def test_tree_that_cannot_be_used_is_named(tmp_path: Path, problem: str) -> None:
    tree = tmp_path / "tree"
    if problem == "file":
        tree.write_text("x")
    elif problem == "closed":
        if os.geteuid():
            pytest.skip(
                "run by an ordinary user, the sandbox keeps the rights of that user, to whom the folder is open"
            )
        tree.mkdir(mode=0o700)
    with pytest.raises(InfrastructureError, match=str(tree)):
        play(tree, "true")


def test_failed_start_says_what_bubblewrap_said(tree: Path) -> None:
    async def session() -> None:
        async with BubblewrapSandbox(tree, mount_at="/proc/1/x"):
            pass

    with pytest.raises(InfrastructureError, match="bwrap: "):
        asyncio.run(session())


def test_tree_behind_closed_folders_can_be_mounted(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "tree").mkdir(parents=True)
    (closed / "tree" / "x").write_text("seen")
    closed.chmod(0o700)
    assert play(closed / "tree", "cat x")[0].output == "seen"


def test_python_of_the_trainer_is_taken_where_the_system_has_none(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_system, "SYSTEM_PYTHON", "/usr/bin/no-such-python")
    found = (sandbox_system.python, sandbox_system.system_arguments)
    caches: list[Callable[[], None]] = [function.cache_clear for function in found]
    for clear in caches:
        clear()
    try:
        (result,) = play(tree, "python -c 'import sys; print(sys.version_info[:2])'; python -c 'import torch'; echo $?")
    finally:
        for clear in caches:
            clear()
    assert result.output.splitlines()[0] == str(sys.version_info[:2])
    assert result.output.endswith("\n1")


def test_nothing_is_left_after_the_trainer_is_killed(tree: Path, tmp_path: Path) -> None:
    mount_at, scratch = f"/testbed-{uuid.uuid4().hex}", tmp_path / "scratch"
    scratch.mkdir()
    mounts = Path("/proc/self/mounts").read_text()
    command = [sys.executable, "-c", TRAINER, str(tree), mount_at]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(scratch)}) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == b"up\n"
        assert len(processes_with(mount_at)) >= 7  # the trainer, and two processes of each sandbox
        trainer.send_signal(signal.SIGKILL)
    assert none_left(mount_at)
    assert Path("/proc/self/mounts").read_text() == mounts
    assert list(scratch.iterdir()) == []


def test_sessions_leave_no_files_open(tree: Path) -> None:
    async def sessions(number: int) -> int:
        for _ in range(number):
            async with BubblewrapSandbox(tree) as sandbox:
                await sandbox.run("true")
        return len(os.listdir("/proc/self/fd"))

    async def measure() -> tuple[int, int]:
        return await sessions(3), await sessions(12)

    before, after = asyncio.run(measure())
    assert before == after


# What is said where a sandbox cannot be had.


@pytest.mark.parametrize("kind", SANDBOXES)
def test_table_names_classes_and_checks(kind: str) -> None:
    assert issubclass(sandbox_class(kind), Sandbox)


def test_unknown_kind_is_the_operator_s_mistake() -> None:
    with pytest.raises(RecipeError, match=r"'none' is unknown, allowed are .*bubblewrap"):
        check_sandbox("none")


@pytest.fixture
def unchecked() -> Iterator[None]:
    sandbox_bubblewrap.check_bubblewrap.cache_clear()
    yield
    sandbox_bubblewrap.check_bubblewrap.cache_clear()


@pytest.mark.usefixtures("unchecked")
def test_missing_bubblewrap_is_an_error_that_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox_bubblewrap._program.cache_clear()
    with pytest.raises(RecipeError, match="apt install bubblewrap"):
        check_sandbox("bubblewrap")


@pytest.mark.usefixtures("unchecked")
def test_forbidden_namespaces_are_an_error_that_quotes_bubblewrap(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusing = tmp_path / "bwrap"
    refusing.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    refusing.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setattr(sandbox_bubblewrap, "_program", {"bwrap": str(refusing)}.get)
    monkeypatch.setattr(sandbox_bubblewrap, "_without_root", lambda tree, prefix: ([], tree, prefix))
    with pytest.raises(RecipeError, match="uid map: Permission denied") as caught:
        check_sandbox("bubblewrap")
    assert "apparmor_restrict_unprivileged_userns" in str(caught.value) and "--privileged" in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "value"),
    [("timeout_s", 0), ("timeout_s", float("inf")), ("memory_mb", -1), ("memory_mb", True), ("max_processes", 2.5)],
)
def test_limit_that_makes_no_sense_is_named(limit: str, value: float) -> None:
    with pytest.raises(RecipeError, match=limit):
        SandboxLimits(**{limit: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("machine", MACHINES)
def test_filter_has_the_form_that_the_kernel_takes(machine: str) -> None:
    program = filter_program(machine)
    assert len(program) % 8 == 0 and len(program) // 8 < 255  # so that every jump fits into a byte
    column = MACHINES.index(machine)
    assert len({numbers[column] for numbers in DENIED.values()}) == len(DENIED)
