"""One inference server as one process sees it: may it be asked, over which connections, and has it our weights?

A server that was restarted answers as before, with the weights that it was started with. So no connection is used
before the server has shown, after the connection was made, that it holds what was last published: connections do not
survive a restart, and a proof that is younger than a connection speaks for its other end. Proofs are shared, so that a
burst of new connections costs two of them. `servers.py` publishes and decides who may be asked at all.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from ppp.engines.base import ENGINE_KIND
from ppp.engines.server_info import CONNECT_TIMEOUT_S
from ppp.types import InfrastructureError

logger = logging.getLogger(__name__)

REFUSED_KIND = "engine_refused"
"""The server understood the request and will never serve it, unlike ENGINE_KIND: to try again is no use."""

PROOF_TIMEOUT_S = 60.0  # the engine answers between two forward passes
KEEPALIVE_S = 4.0  # vLLM closes idle connections after 5 s: be first, or a request meets a connection that is closing
AGAIN = frozenset({404, 408, 429})  # beside 5xx; 404: no such adapter, as after a restart


@dataclass(frozen=True, slots=True)
class Proof:
    """What shows that a server has the weights of the last publish: the JSON at `path`, if `holds`."""

    path: str
    holds: Callable[[Any], bool]


def _has_version(version: str | None) -> Proof:
    return Proof("/weight_info", lambda reply: reply["weight_version"] == version)


def _has_model(name: str | None) -> Proof:
    return Proof("/v1/models", lambda reply: name is None or any(model["id"] == name for model in reply["data"]))


PROOFS: dict[str, Callable[[str | None], Proof]] = {"full": _has_version, "adapter": _has_model, "none": _has_model}
"""Way of weight sync -> proof from what was published: the version of the weights, or the adapter's name. A server that
starts has neither."""


class Server:
    """One server.

    Args:
        base_url: without `/v1`.
        headers: of every request.
        max_connections: at the same time.
        timeout_s: for one turn, waiting for a connection included.

    Attributes:
        lost: why it may not be asked; None if it may.
        num_in_flight: requests under way.
        num_sessions: trajectories that were sent here in this phase.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str], max_connections: int, timeout_s: float) -> None:
        self.base_url = base_url
        self.lost: str | None = "it has no weights of ours yet"
        self.num_in_flight = self.num_sessions = 0
        self._headers, self._max_connections, self._timeout_s = headers, max_connections, timeout_s
        self._proof: Proof | None = None
        self._link: _Link | None = None

    def start_phase(self, proof: Proof | None, reason: str | None) -> None:
        """Ask it in this phase if it shows `proof`, or not at all for `reason`."""
        self.lost, self._proof, self.num_sessions = reason, proof, 0
        if self._link is not None and self._link.is_closed:
            self._link = None
        elif self._link is not None:
            self._link.forget_proofs()

    async def complete(self, body: bytes) -> bytes:
        """Send a request and return the body of the answer.

        Raises:
            InfrastructureError: of kind ENGINE_KIND where another attempt may help.
        """
        self.num_in_flight += 1
        try:
            return await self._current_link().post(body)
        finally:
            self.num_in_flight -= 1

    async def confirm(self) -> None:
        """Find out after a failure whether the server is still there with our weights; `lost` says so."""
        if self.lost is None:
            with suppress(InfrastructureError):
                await self._current_link().prove()

    async def close(self) -> None:
        """Close its connections, which belong to the running event loop."""
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    def _current_link(self) -> _Link:
        if self._link is None or self._link.loop is not asyncio.get_running_loop():
            self._link = _Link(self, self._headers, self._max_connections, self._timeout_s)
        return self._link

    async def check(self, session: aiohttp.ClientSession) -> None:
        """Have the server show its proof, or lose it.

        Raises:
            InfrastructureError: it did not.
        """
        if self.lost is None and self._proof is not None:
            self.lost = await _disproof(session, self.base_url, self._proof)
            if self.lost is not None:
                logger.warning("%s is left out: %s", self.base_url, self.lost)
        if self.lost is not None:
            raise InfrastructureError(f"engine: {self.base_url}: {self.lost}", kind=ENGINE_KIND)


async def _disproof(session: aiohttp.ClientSession, base_url: str, proof: Proof) -> str | None:
    """Why the server does not hold the weights; None if it does."""
    try:
        async with session.get(base_url + proof.path) as response:
            body = await response.read()
        if response.status != 200:
            return f"status {response.status} at {proof.path}"
        return None if proof.holds(orjson.loads(body)) else "it was restarted, or has other weights"
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return f"it does not answer: {_words(error)}"
    except (ValueError, LookupError, TypeError) as error:
        return f"it does not answer as vLLM does at {proof.path}: {error!r}"


class _Link:
    """What of a server belongs to one event loop: its connections, and the proof that is under way."""

    def __init__(self, server: Server, headers: Mapping[str, str], max_connections: int, timeout_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self._server = server
        self._url = server.base_url + "/v1/completions"
        self._connector = _ProvenConnector(
            self.prove, limit=max_connections, limit_per_host=0, keepalive_timeout=KEEPALIVE_S
        )
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            headers={"Content-Type": "application/json", **headers},
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S),
        )
        self._control = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),  # whoever answers has to be there now
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=PROOF_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S),
        )
        self._proving = asyncio.Lock()
        self._num_wanted = self._num_served = 0

    async def post(self, body: bytes) -> bytes:
        """One request. Cancelling it closes its connection, and vLLM aborts what nobody waits for."""
        try:
            async with self._session.post(self._url, data=body) as response:
                content = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise InfrastructureError(f"engine: {self._server.base_url}: {_words(error)}", kind=ENGINE_KIND) from error
        if response.status != 200:
            kind = ENGINE_KIND if response.status >= 500 or response.status in AGAIN else REFUSED_KIND
            text = content[:300].decode(errors="replace")
            raise InfrastructureError(f"engine: {self._server.base_url}: status {response.status}: {text}", kind=kind)
        return content

    async def prove(self) -> None:
        """Return once the server has answered a question for its proof that was put after this call.

        Raises:
            InfrastructureError: it has no proof, or is lost already; all its connections are closed.
        """
        self._num_wanted += 1
        number = self._num_wanted
        async with self._proving:
            if self._num_served >= number:
                return
            covers = self._num_wanted
            try:
                await self._server.check(self._control)
            except InfrastructureError:
                await self.close()  # whoever still waits for an answer would wait in vain
                raise
            self._num_served = covers

    def forget_proofs(self) -> None:
        """Let every connection be proven anew: weights have changed."""
        self._connector.proven.clear()

    @property
    def is_closed(self) -> bool:
        return self._session.closed

    async def close(self) -> None:
        await self._session.close()
        await self._control.close()


class _ProvenConnector(aiohttp.TCPConnector):
    """Hands out a connection only if a proof that is younger than the connection spoke for its other end."""

    def __init__(self, prove: Callable[[], Awaitable[None]], **options: Any) -> None:
        super().__init__(**options)
        self.proven: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()
        self._prove = prove

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        """A connection from the pool, or a new one."""
        connection = await super().connect(req, traces, timeout)
        transport = connection.transport
        if transport not in self.proven:
            try:
                await self._prove()
            except BaseException:
                connection.close()
                raise
            if transport is not None:
                self.proven.add(transport)
        return connection


def _words(error: BaseException) -> str:
    return f"{type(error).__name__} {error}".strip()
