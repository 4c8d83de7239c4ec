from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from page_sessions import record, report

from ppp.reporting import watch
from ppp.reporting.content import Report, Session
from ppp.reporting.watch import Watcher, application, open_socket, serve_page
from ppp.types import RecipeError

Scenario = Callable[[aiohttp.ClientSession, str, Watcher], "asyncio.Future[None]"]


def growing(folder: Path) -> Callable[[], Report]:
    """A report with as many sessions as the folder's log has lines."""
    return lambda: report([Session("run", record(n)) for n in range(len((folder / "log.jsonl").read_text().split()))])


def served(folder: Path, scenario: Scenario, build: Callable[[], Report] | None = None) -> Watcher:
    """Serve the page of a folder and run a scenario against it."""

    async def both() -> Watcher:
        watcher = Watcher(build or growing(folder), [folder], folder / "report.html")
        with open_socket("127.0.0.1", 0) as listening:
            task = asyncio.ensure_future(serve_page(watcher, listening))
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            async with aiohttp.ClientSession() as client:
                await scenario(client, address, watcher)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return watcher

    return asyncio.run(asyncio.wait_for(both(), 60))


async def version_other_than(client: aiohttp.ClientSession, address: str, old: str) -> str:
    while True:
        async with client.get(f"{address}/version") as answer:
            version = await answer.text()
        if version != old:
            return version
        await asyncio.sleep(0.02)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(watch, "CHECK_S", 0.02)
    monkeypatch.setattr(watch, "BREAK", 0.0)
    (tmp_path / "log.jsonl").write_text("1\n")
    return tmp_path


def test_page_and_version_belong_together_and_change_with_the_files(folder: Path) -> None:
    async def scenario(client: aiohttp.ClientSession, address: str, watcher: Watcher) -> None:
        first = await version_other_than(client, address, "")
        async with client.get(address) as answer:
            assert f'data-version="{first}"' in await answer.text()
            assert answer.headers["Cache-Control"] == "no-store"
        with (folder / "log.jsonl").open("a") as file:
            file.write("2\n")
        second = await version_other_than(client, address, first)
        async with client.get(address) as answer:
            assert f'data-version="{second}"' in await answer.text()

    served(folder, scenario)


def test_files_that_do_not_change_are_not_read_again(folder: Path) -> None:
    built = []

    def build() -> Report:
        built.append(1)
        return report([])

    async def scenario(client: aiohttp.ClientSession, address: str, watcher: Watcher) -> None:
        for _ in range(5):
            async with client.get(address) as answer:
                assert answer.status == 200
            await asyncio.sleep(0.05)

    served(folder, scenario, build)
    assert len(built) == 1


def test_nobody_looking_means_that_nothing_is_read(folder: Path) -> None:
    async def scenario(client: aiohttp.ClientSession, address: str, watcher: Watcher) -> None:
        while not watcher.version:
            await asyncio.sleep(0.01)
        first = watcher.version
        watcher.looked_at = time.monotonic() - watch.LOOKED_AT_S - 1
        (folder / "log.jsonl").write_text("1\n2\n3\n")
        await asyncio.sleep(0.3)
        assert watcher.version == first

    served(folder, scenario)


def test_a_report_that_fails_meanwhile_leaves_the_page_as_it_was(folder: Path) -> None:
    def build() -> Report:
        if (folder / "log.jsonl").stat().st_size > 2:
            raise RecipeError("the run is being started anew")
        return report([])

    async def scenario(client: aiohttp.ClientSession, address: str, watcher: Watcher) -> None:
        first = await version_other_than(client, address, "")
        seen = watcher.seen
        (folder / "log.jsonl").write_text("1\n2\n")
        while watcher.seen == seen:
            async with client.get(address) as answer:
                assert f'data-version="{first}"' in await answer.text()

    served(folder, scenario, build)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", ""])
@pytest.mark.parametrize("path", ["/", "/version"])
def test_a_request_under_another_name_gets_nothing(folder: Path, host: str, path: str) -> None:
    async def scenario(client: aiohttp.ClientSession, address: str, watcher: Watcher) -> None:
        await version_other_than(client, address, "")
        name = host.format(port=address.rpartition(":")[2])
        async with client.get(address + path, headers={"Host": name}) as answer:
            assert answer.status in (400, 421)
            assert watcher.version not in await answer.text()

    served(folder, scenario)


def test_localhost_is_a_name_of_this_machine_and_other_paths_are_not_served(folder: Path) -> None:
    async def scenario(client: aiohttp.ClientSession, address: str, watcher: Watcher) -> None:
        host = {"Host": "localhost:" + address.rpartition(":")[2]}
        for path, status in (("/", 200), ("/log.jsonl", 404), ("/../log.jsonl", 404), ("/report.html", 404)):
            async with client.get(address + path, headers=host) as answer:
                assert answer.status == status

    served(folder, scenario)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.1", "example.org", "::"])
def test_an_address_that_others_reach_is_refused(host: str) -> None:
    with pytest.raises(RecipeError, match=r"host: .*127\.0\.0\.1"):
        open_socket(host, 0)


def test_a_port_that_is_taken_is_refused_in_a_sentence() -> None:
    with open_socket("127.0.0.1", 0) as taken, pytest.raises(RecipeError, match=r"port: .*0 takes a free one"):
        open_socket("127.0.0.1", taken.getsockname()[1])


def test_a_first_report_that_fails_ends_the_command(folder: Path) -> None:
    def build() -> Report:
        raise RecipeError("nothing to report on")

    with pytest.raises(RecipeError, match="nothing to report on"):
        watch.serve(build, [folder])


PROGRAM = """
import logging, sys
from pathlib import Path
from ppp.reporting.content import Report
from ppp.reporting.watch import serve
logging.basicConfig(level=logging.INFO)
serve(lambda: Report("A run", [], [], [], [], 0), [Path(sys.argv[1])])
print("ended")
"""


def test_the_address_is_told_and_ctrl_c_ends_it_without_a_traceback(folder: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        assert process.stderr is not None and process.stdout is not None
        line = process.stderr.readline()
        assert re.search(r"http://127\.0\.0\.1:\d+/", line), line
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.stdout.read() == "ended\n" and process.wait() == 0
        assert "Traceback" not in rest
        watchdog.cancel()


def test_only_two_addresses_are_served(folder: Path) -> None:
    async def paths() -> list[str]:
        watcher = Watcher(lambda: report([]), [folder], folder / "report.html")
        routes = application(watcher, frozenset()).router.resources()
        return sorted(resource.canonical for resource in routes)

    assert asyncio.run(paths()) == ["/", "/version"]
