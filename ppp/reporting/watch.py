"""The page of a run that goes on: served on this machine only, written anew when the run's files have changed.

The page asks every other second which version there is (`assets/main.js`) and reloads itself when it is a newer one;
its filters and its session stand in its address. Nobody looking means no work: files are looked at when a page asks.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from aiohttp import web

from ppp.checks import refuse
from ppp.reporting.content import Report
from ppp.reporting.page import write_page
from ppp.types import PPPError

logger = logging.getLogger(__name__)

SUFFIXES = (".json", ".jsonl")
CHECK_S = 1.0  # how often files are looked at while somebody looks at the page
LOOKED_AT_S = 30.0  # how long ago a page that still counts as looked at asked
BREAK = 4.0  # a page that took a second to write is written again after four at the earliest: the run needs the cores

HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}

Fingerprint = frozenset[tuple[str, int, int]]


def fingerprint(folders: Sequence[Path]) -> Fingerprint:
    """Path, size and time of every data file below the folders; a file that goes away meanwhile is left out."""
    found = set()
    for folder in folders:
        for path in folder.rglob("*"):
            if path.suffix in SUFFIXES:
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                found.add((str(path), status.st_size, status.st_mtime_ns))
    return frozenset(found)


class Watcher:
    """Writes the page when files have changed and says which version it is.

    Args:
        build: makes the report from what the files hold now.
        folders: where the files are.
        path: the page; versions are written over each other.
    """

    def __init__(self, build: Callable[[], Report], folders: Sequence[Path], path: Path) -> None:
        self.build, self.folders, self.path = build, folders, path
        self.version = ""
        self.seen: Fingerprint = frozenset()
        self.looked_at = 0.0
        self._not_before = 0.0
        self._lock = asyncio.Lock()

    async def refresh(self) -> None:
        """Write the page anew if its files have changed and the last time is long enough ago."""
        async with self._lock:
            if time.monotonic() < self._not_before:
                return
            # Taken before the build: what is written meanwhile counts as a change afterwards.
            found = await asyncio.to_thread(fingerprint, self.folders)
            if self.version and found == self.seen:
                return
            started = time.monotonic()
            try:
                self.version = await asyncio.to_thread(self.write)
            except (PPPError, OSError) as error:
                # A run may be caught in the middle of starting anew; the first page has to succeed.
                if not self.version:
                    raise
                logger.warning("the page stays as it was: %s", error)
            self.seen = found
            self._not_before = time.monotonic() + BREAK * (time.monotonic() - started)

    def write(self) -> str:
        """Write the page; returns the version that stands in it."""
        return write_page(self.build(), self.path, watch=True)

    async def watch(self) -> None:
        """Keep the page up to date for as long as somebody looks at it."""
        while True:
            await asyncio.sleep(CHECK_S)
            if time.monotonic() - self.looked_at < LOOKED_AT_S:
                await self.refresh()

    async def page(self, request: web.Request) -> web.FileResponse:
        self.looked_at = time.monotonic()
        await self.refresh()
        return web.FileResponse(self.path, headers=HEADERS)

    async def tell_version(self, request: web.Request) -> web.Response:
        self.looked_at = time.monotonic()
        return web.Response(text=self.version, headers=HEADERS)


def application(watcher: Watcher, hosts: frozenset[str]) -> web.Application:
    """The two addresses of the page, answered only when asked for by one of these hosts.

    A page on the web could have its own name resolve to 127.0.0.1 and read the sessions through the reader's browser;
    the name that the browser was given then stands in the Host header.
    """

    @web.middleware
    async def check_host(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.headers.get("Host") not in hosts:
            raise web.HTTPMisdirectedRequest(text="this page is served to this machine only\n")
        return await handler(request)

    served = web.Application(middlewares=[check_host])
    served.router.add_get("/", watcher.page)
    served.router.add_get("/version", watcher.tell_version)
    return served


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket of this machine; port 0 takes a free one.

    Raises:
        RecipeError: an address that others could reach, or a port that is taken.
    """
    if host != "localhost" and not is_loopback(host):
        raise refuse("host", host, "must be an address of this machine only, such as 127.0.0.1")
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise refuse("port", port, f"cannot be served on {host} ({error.strerror}); 0 takes a free one") from None


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ipaddress.AddressValueError:
        return False


async def serve_page(watcher: Watcher, listening: socket.socket) -> None:
    """Serve until cancelled."""
    host, port = listening.getsockname()
    await watcher.refresh()
    runner = web.AppRunner(application(watcher, frozenset({f"{host}:{port}", f"localhost:{port}"})), access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, listening, shutdown_timeout=1.0).start()
        logger.info("the page is at http://%s:%d/ and follows the run; Ctrl-C ends this", host, port)
        await watcher.watch()
    finally:
        await runner.cleanup()


def serve(build: Callable[[], Report], folders: Sequence[Path], port: int = 0, host: str = "127.0.0.1") -> None:
    """Serve the page of a report until Ctrl-C, and keep it up to date with the files in the folders.

    Raises:
        RecipeError: the port or the address cannot be used, or there is nothing to report on.
    """
    with open_socket(host, port) as listening, tempfile.TemporaryDirectory(prefix="ppp-report-") as folder:
        watcher = Watcher(build, folders, Path(folder) / "report.html")
        try:
            asyncio.run(serve_page(watcher, listening))
        except KeyboardInterrupt:
            logger.info("the page is not served any more")
