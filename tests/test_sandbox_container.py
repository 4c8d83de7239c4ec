"""Containers as sandboxes, on whatever Docker API can be had: one that runs, or a Podman started for these tests."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from ppp.environments.sandbox import CommandResult, SandboxLimits, check_sandbox
from ppp.environments.sandbox_container import (
    OWNER_LABEL,
    ContainerSandbox,
    _owner,
    remove_abandoned,
)
from ppp.types import InfrastructureError, RecipeError

IMAGE = "ppp-sandbox-test:latest"
PROGRAMS = (
    "awk", "cat", "chmod", "dd", "echo", "env", "find", "grep", "head", "id", "ls", "mkdir",
    "ps", "rm", "sed", "seq", "sh", "sleep", "touch", "true", "wc", "yes",
)  # fmt: skip
LIMITS = SandboxLimits(
    timeout_s=60, memory_mb=64, max_processes=24, scratch_mb=8, max_file_mb=4, max_read_mb=1, cpu_s=20
)
PODMAN = """[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


def answers() -> bool:
    try:
        client = docker.from_env()
        try:
            return bool(client.ping())
        finally:
            client.close()
    except docker.errors.DockerException:
        return False


@contextlib.contextmanager
def podman(folder: Path) -> Iterator[None]:
    """Podman's service with a storage of its own; Docker's clients find it through DOCKER_HOST."""
    (folder / "containers.conf").write_text(PODMAN)
    storage = ["--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]
    address = f"unix://{folder}/api.sock"
    environment = {**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")}
    command = ["podman", *storage, "system", "service", "--time", "0", address]
    service = subprocess.Popen(command, env=environment, cwd=folder, stderr=subprocess.DEVNULL)  # it leaves files there
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", address)
        try:
            for _ in range(100):
                if answers():
                    break
                time.sleep(0.1)
            yield
        finally:
            service.terminate()
            service.wait()


def import_image(busybox: str) -> None:
    """An image that holds nothing but a static busybox."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(os.path.realpath(busybox), "bin/busybox")
        for name in PROGRAMS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    client = docker.from_env()
    client.api.import_image_from_data(archive.getvalue(), repository=IMAGE.partition(":")[0], tag="latest")
    client.close()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of an API that has the image, or a skip that says what is missing."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no static busybox to make an image of (Debian: busybox-static)")
    with contextlib.ExitStack() as stack:
        if not answers():
            if not (shutil.which("podman") and shutil.which("runc")) or os.geteuid():
                pytest.skip("no Docker API answers, and there is no Podman with runc to start as root")
            stack.enter_context(podman(tmp_path_factory.mktemp("podman")))
            if not answers():
                pytest.skip("Podman's service does not answer")
        import_image(busybox)
        client = docker.from_env()
        stack.callback(client.close)
        try:
            client.containers.run(IMAGE, ["true"], remove=True, network_mode="none")
        except docker.errors.DockerException as error:
            pytest.skip(f"the Docker API runs no containers here: {error}")
        yield client


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "module.py").write_text("def f():\n    return 1\n")
    return tmp_path / "tree"


def play(tree: Path | None, *commands: str, timeout_s: float | None = None) -> list[CommandResult]:
    async def session() -> list[CommandResult]:
        async with ContainerSandbox(IMAGE, LIMITS, tree=tree) as sandbox:
            return [await sandbox.run(command, timeout_s=timeout_s) for command in commands]

    return asyncio.run(session())


def own_containers(client: Any) -> list[Any]:
    return list(client.containers.list(all=True, filters={"label": OWNER_LABEL}))


def test_commands_give_codes_and_output_and_leave_folder_and_scratch(client: Any, tree: Path) -> None:
    commands = [
        "cat module.py",
        "exit 3",
        "kill -9 $$",
        "cd /tmp; echo x > x; sleep 77 &",
        "pwd; cat x; ps | grep -c '[s]leep 77'",
    ]
    results = play(tree, *commands)
    assert [result.exit_code for result in results] == [0, 3, 137, 0, 1]
    assert results[0].output == "def f():\n    return 1"
    assert results[-1].output == "/tmp\nx\n0"
    assert own_containers(client) == []


REFUSED = {
    "write in the tree": "echo x > module.py && echo ESCAPED",
    "write outside": "echo x > /bin/evil && echo ESCAPED",
    "network": "grep -v -e lo: -e '|' /proc/net/dev | grep . && echo ESCAPED",
    "user": "id -u | grep -x 0 && echo ESCAPED",
    "first process": "kill -9 1; cat /proc/1/environ && echo ESCAPED",
    "state of the sandbox": "rm -rf /tmp/.sandbox; echo /nowhere > /tmp/.sandbox/folder",
    "scratch": "for i in 1 2 3; do dd if=/dev/zero of=/tmp/$i bs=1M count=4 || exit; done; echo ESCAPED",
    "large file": "dd if=/dev/zero of=/tmp/x bs=1M count=5 && echo ESCAPED",
    "memory": "dd if=/dev/zero of=/dev/null bs=200M count=1 && echo ESCAPED",
    "endless output": "yes",
    "many processes": "for i in $(seq 100); do sleep 60 & done; wait; echo ESCAPED",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_things_end_as_results(client: Any, tree: Path, name: str) -> None:
    result, after = play(tree, REFUSED[name], "cat /testbed/module.py", timeout_s=10)
    assert "ESCAPED" not in result.output
    assert after.output.startswith("def f()")
    assert (result.stopped_by == "output") == (name == "endless output")


@pytest.mark.parametrize("command", ["sleep 60", "while :; do :; done", "f() { f | f & }; f; sleep 60"])
def test_time_ends_a_command_with_all_it_started(client: Any, tree: Path, command: str) -> None:
    result, after = play(tree, f"echo x; {command}", "ps | grep -c '[s]leep 60'", timeout_s=2)
    assert result.timed_out and result.exit_code is None
    assert after.output == "0"


def test_image_without_a_tree_runs_in_its_root(client: Any) -> None:
    assert play(None, "pwd; ls -d bin")[0].output == "/\nbin"


def test_missing_image_is_named(client: Any, tree: Path) -> None:
    async def session() -> None:
        async with ContainerSandbox("no-such-image:1", LIMITS, tree=tree):
            pass

    with pytest.raises(InfrastructureError, match="no-such-image:1"):
        asyncio.run(session())
    assert own_containers(client) == []


def test_lost_container_is_an_infrastructure_error(client: Any, tree: Path) -> None:
    async def session() -> None:
        async with ContainerSandbox(IMAGE, LIMITS, tree=tree) as sandbox:
            own_containers(client)[0].remove(force=True)
            with pytest.raises(InfrastructureError):
                await sandbox.run("true")

    asyncio.run(session())


def test_cancelled_call_is_not_followed_by_another(client: Any, tree: Path) -> None:
    async def session() -> None:
        async with ContainerSandbox(IMAGE, LIMITS, tree=tree) as sandbox:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await sandbox.run("sleep 60")
            with pytest.raises(InfrastructureError):
                await sandbox.run("true")

    asyncio.run(session())
    assert own_containers(client) == []


def test_containers_of_a_trainer_that_is_gone_are_removed_and_no_others(client: Any) -> None:
    with subprocess.Popen(["sleep", "0"]) as gone:
        dead = _owner(gone.pid)
    owners = {"dead": dead, "mine": _owner(os.getpid()), "elsewhere": "another-machine 1 1"}
    made = {
        name: client.containers.run(
            IMAGE, ["sleep", "600"], detach=True, network_mode="none", labels={OWNER_LABEL: owner}
        )
        for name, owner in owners.items()
    }
    try:
        check_sandbox("container")
        left = {container.labels[OWNER_LABEL] for container in own_containers(client)}
        assert left == {owners["mine"], owners["elsewhere"]}
        assert remove_abandoned(client) == 0
    finally:
        for name in ("mine", "elsewhere"):
            made[name].remove(force=True)


def test_missing_api_is_the_operator_s_to_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(RecipeError, match=r"no Docker API answers at unix://.*none\.sock"):
        check_sandbox("container")
