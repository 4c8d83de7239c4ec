"""The sandbox for images: a container without network through the Docker API, which Podman speaks as well.

The second implementation of `sandbox_base.py`: slower to start and to call than bubblewrap (a tenth of a second where
that takes milliseconds), but with the programs of an image and with the kernel's control groups for memory and
processes. Nothing ends it with the trainer: containers that a killed one left end by themselves after an idle hour, or
when the next one checks for them.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

from ppp.environments.sandbox_base import Ended, Sandbox, SandboxLimits, lost
from ppp.environments.sandbox_output import Captured
from ppp.environments.sandbox_supervisor import MB, Output
from ppp.types import RecipeError

OWNER_LABEL = "ppp.sandbox.owner"  # host, number and start of the process that started a container
IDLE_MINUTES = 60
GRACE_S = 10.0  # for a stream to end after all processes were killed
API_TIMEOUT_S = 120
_STATE = "/tmp/.sandbox"
# The first process has to collect what the others leave behind, and ends when nobody calls any more.
_FIRST = f"""mkdir {_STATE} && touch {_STATE}/folder {_STATE}/used && chmod 666 {_STATE}/*
while [ -n "$(find {_STATE}/used -mmin -{IDLE_MINUTES})" ]; do sleep 30 & wait; done
"""
# $1 the shell, $2 the first folder, $3 the command. `kill -1` reaches all processes of the user but this one.
_CALL = f"""touch {_STATE}/used
folder=$(cat {_STATE}/folder)
cd "${{folder:-$2}}" 2>/dev/null || cd "$2" 2>/dev/null || cd /
"$1" -c "trap 'pwd -P > {_STATE}/folder' EXIT; $3" </dev/null
code=$?
kill -9 -1 2>/dev/null
exit $code
"""


def _docker() -> Any:
    try:
        import docker
    except ModuleNotFoundError as error:
        raise RecipeError("sandbox 'container': the package docker is missing: pip install 'ppp[swe]'") from error
    return docker


def _client() -> Any:
    return _docker().from_env(timeout=API_TIMEOUT_S)


def check_container() -> None:
    """See that a Docker API answers, and remove containers whose trainers are gone.

    Raises:
        RecipeError: there is none; says how to get it.
    """
    docker = _docker()
    try:
        client = _client()
        client.ping()
        remove_abandoned(client)
        client.close()
    except docker.errors.DockerException as error:
        where = os.environ.get("DOCKER_HOST", "the default socket")
        raise RecipeError(
            f"sandbox 'container': no Docker API answers at {where}: {error}. Start Docker, or Podman's with "
            "'podman system service --time 0', and set DOCKER_HOST to where it is"
        ) from error


def _owner(process: int) -> str:
    """What tells a process of this machine from all others, also from a later one with its number."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return f"{socket.gethostname()} {process} {fields[19]}"


def remove_abandoned(client: Any) -> int:
    """Remove containers of this module whose process on this machine has ended; returns how many."""
    num_removed = 0
    for container in client.containers.list(all=True, filters={"label": OWNER_LABEL}):
        owner = container.labels[OWNER_LABEL]
        host, _, rest = owner.partition(" ")
        process = rest.partition(" ")[0]
        if host != socket.gethostname():
            continue
        try:
            alive = _owner(int(process)) == owner
        except FileNotFoundError:
            alive = False
        if not alive:
            container.remove(force=True)
            num_removed += 1
    return num_removed


class ContainerSandbox(Sandbox):
    """A container of an image that is already on the machine; it needs a shell, and bash if commands are to have it.

    Args:
        image: its name.
        limits: the bounds of commands; `memory_mb` holds for all together, the scratch included, and `max_files` not
            at all (the memory that files take counts).
        tree: a folder to be mounted read-only, or None for the image as it is.
        mount_at: where, and the first working folder.
        user: who runs the commands; another one than root cannot disturb the container's first process.
        read_only: whether nothing but the scratch can be written to.
    """

    def __init__(
        self,
        image: str,
        limits: SandboxLimits | None = None,
        *,
        tree: Path | None = None,
        mount_at: str = "/testbed",
        user: str = "1000:1000",
        read_only: bool = True,
    ) -> None:
        super().__init__(limits)
        self.image, self.tree, self.mount_at, self.user, self.read_only = image, tree, mount_at, user, read_only
        self._docker = _docker()
        self._client: Any = None
        self._container: Any = None
        self._shell, self._is_lost = "/bin/sh", False

    async def setup(self) -> None:
        starting = asyncio.create_task(asyncio.to_thread(self._start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait({starting})  # so that there is something to remove
            raise
        except (self._docker.errors.DockerException, OSError) as error:
            raise lost(f"no container of {self.image!r} can be started", str(error)) from error

    def _start(self) -> None:
        limits, types = self.limits, self._docker.types
        self._client = self._client or _client()
        ulimits = {"fsize": limits.max_file_mb * MB, "nofile": limits.max_open_files, "cpu": limits.cpu_s, "core": 0}
        ulimits["nproc"] = 30_000  # of a user on the whole machine; Podman's own choice is more than some allow
        volumes = {str(self.tree.resolve()): {"bind": self.mount_at, "mode": "ro"}} if self.tree else {}
        scratch = f"size={limits.scratch_mb}m,mode=1777"
        self._container = self._client.containers.create(
            self.image,
            ["-c", _FIRST],
            entrypoint=["/bin/sh"],
            user="0:0",
            network_mode="none",
            read_only=self.read_only,
            volumes=volumes,
            tmpfs={"/tmp": scratch},
            mem_limit=limits.memory_mb * MB,
            memswap_limit=limits.memory_mb * MB,
            pids_limit=limits.max_processes + 4,  # the first process, its sleep, and those that start a call
            ulimits=[types.Ulimit(name=name, soft=value, hard=value) for name, value in ulimits.items()],
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            environment={"HOME": "/tmp", "PAGER": "cat", "GIT_PAGER": "cat", "GIT_OPTIONAL_LOCKS": "0"},
            labels={OWNER_LABEL: _owner(os.getpid())},
            auto_remove=True,
        )
        self._container.start()
        wait = f"until [ -w {_STATE}/used ]; do sleep 0.02; done; command -v bash || echo /bin/sh"
        code, said = self._container.exec_run(["/bin/sh", "-c", wait], user=self.user)
        if code:
            raise lost(f"a container of {self.image!r} does not run a shell", said.decode(errors="replace"))
        self._shell = said.decode().strip()

    async def close(self) -> None:
        container, client = self._container, self._client
        self._container = self._client = None
        if container is not None:
            await asyncio.shield(asyncio.to_thread(self._remove, container))
        if client is not None:
            client.close()

    def _remove(self, container: Any) -> None:
        try:
            container.remove(force=True)
        except self._docker.errors.NotFound:
            pass
        except self._docker.errors.APIError as error:
            if error.status_code != 409:  # it is being removed already
                raise lost("a container cannot be removed", str(error)) from error

    async def _run(self, command: bytes, timeout_s: float) -> Ended:
        if self._container is None or self._is_lost:
            raise lost("it is not open")
        output = Output(4 * self.limits.max_output_chars)
        words = ["/bin/sh", "-c", _CALL, "sh", self._shell, self.mount_at, command.decode("utf-8", "replace")]
        self._is_lost = True  # until this call has ended as it should: another one would meet its processes
        try:
            call = await asyncio.to_thread(self._begin, words)
            reading = asyncio.create_task(asyncio.to_thread(self._read, call, output))
            done, _ = await asyncio.wait({reading}, timeout=timeout_s)
            stopped_by = reading.result() if done else "time"
            code = 137 if stopped_by else await asyncio.to_thread(self._exit_code, call)
            if stopped_by:
                await asyncio.to_thread(self._kill_all)
                await asyncio.wait({reading}, timeout=GRACE_S)
        except (self._docker.errors.DockerException, OSError) as error:
            raise lost("the container does not answer", str(error)) from error
        if not reading.done():
            raise lost("a command could not be ended")
        self._is_lost = False
        output.trim()
        num_cut = output.num_bytes - len(output.head) - len(output.tail)
        captured = Captured(bytes(output.head), bytes(output.tail), num_cut, output.num_cut_lines)
        return Ended(code, stopped_by, captured)

    def _begin(self, words: list[str]) -> str:
        call: str = self._client.api.exec_create(self._container.id, words, user=self.user)["Id"]
        return call

    def _read(self, call: str, output: Output) -> str:
        """Read the output to its end; returns "output" if it is longer than allowed, else ""."""
        for data in self._client.api.exec_start(call, stream=True):
            output.add(data)
            if output.num_bytes > self.limits.max_read_mb * MB:
                return "output"
        return ""

    def _exit_code(self, call: str) -> int:
        found = self._client.api.exec_inspect(call)["ExitCode"]
        return 137 if found is None else int(found)

    def _kill_all(self) -> None:
        """Kill all processes of the commands; where not even that can be started, take a fresh container."""
        try:
            code, _ = self._container.exec_run(["/bin/sh", "-c", "kill -9 -1"], user=self.user)
        except self._docker.errors.APIError:
            code = 1
        if code:
            self._remove(self._container)
            self._start()
