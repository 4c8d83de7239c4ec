"""The inference servers of a run: who is there, who has the current weights, and what happens while nobody is.

All processes of a run go through `refresh` together at the start of each rollout phase. The main process talks to the
servers and the others are told; they have nothing in flight then. How weights travel is in `weight_sync.py`, how one
server is watched during a phase in `server_link.py`.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from ppp.engines.base import ENGINE_KIND, EngineSettings
from ppp.engines.server_info import CONNECT_TIMEOUT_S
from ppp.engines.server_link import PROOF_TIMEOUT_S, PROOFS, Proof, Server
from ppp.engines.weight_sync import SYNCS
from ppp.types import InfrastructureError, RunStoppedError

logger = logging.getLogger(__name__)

POLL_S = 1.0

T = TypeVar("T")


@dataclass
class _Plan:
    """What the main process found: servers that need weights, servers that have them, and why the others have not.

    Attributes:
        stop: why the run has to end; None while there is hope.
    """

    publish: list[str] = field(default_factory=list)
    ready: list[str] = field(default_factory=list)
    down: dict[str, str] = field(default_factory=dict)
    stop: str | None = None


class Servers:
    """The servers of one run, the same on all processes.

    Args:
        settings: of the engine.
        servers: as this process sees them.
        sync: a key of SYNCS.
        sync_options: its options.
        headers: of every request.
        max_outage_s: how long to wait while no server answers.
    """

    def __init__(
        self,
        settings: EngineSettings,
        servers: Sequence[Server],
        sync: str,
        sync_options: Mapping[str, Any],
        headers: Mapping[str, str],
        max_outage_s: float,
    ) -> None:
        self._settings, self._servers, self._max_outage_s = settings, servers, max_outage_s
        self._way, self._sync = sync, SYNCS[sync](settings, sync_options)
        self._headers = headers
        self._run = ""  # tells our weights from those of another run on the same servers
        self._step: int | None = None
        self._connected: set[str] = set()  # on the main process

    @property
    def model_name(self) -> str | None:
        """What requests name as "model"; None: the server's own."""
        return self._sync.model_name()

    def refresh(self, step: int) -> None:
        """Give the current weights to every server that lacks them; all processes together, nothing being in flight.

        Servers that cannot be reached are left out as long as one is there. If none is, this waits.

        Raises:
            RunStoppedError: on all processes, no server having been there for `max_outage_s`.
        """
        is_main = PartialState().is_main_process
        views = gather_object([{server.base_url: server.lost for server in self._servers}])
        doubted = {url for view in views for url, reason in view.items() if reason is not None}
        if not self._run:
            self._run = _from_main(uuid.uuid4().hex[:8])
        deadline = time.monotonic() + self._max_outage_s
        while True:
            plan = _from_main(self._survey(step, doubted, deadline) if is_main else _Plan())
            if plan.stop is not None:
                raise RunStoppedError(plan.stop)
            if plan.publish:
                lost = self._publish(step, plan.publish)
                plan = _from_main(self._after(plan, lost) if is_main else plan)
            if plan.ready:
                break
            time.sleep(POLL_S)
        self._step = step
        proof = self._proof(step)
        for server in self._servers:
            server.start_phase(proof, None if server.base_url in plan.ready else plan.down[server.base_url])

    def close(self) -> None:
        self._sync.close()

    def _proof(self, step: int | None) -> Proof:
        return PROOFS[self._way](self._version(step) if self._way == "full" else self._sync.model_name())

    def _version(self, step: int | None) -> str:
        return f"ppp-{self._run}-{step}"

    # --- on the main process -----------------------------------------------------------------------------------------

    def _survey(self, step: int, doubted: Iterable[str], deadline: float) -> _Plan:
        """Who is there, and who needs weights: all for a new step, for the same step only those that lost them."""
        plan = _Plan()
        for server in self._servers:
            url = server.base_url
            try:
                is_new = self._reach(url)
            except InfrastructureError as error:
                plan.down[url] = str(error)
                continue
            (plan.publish if is_new or step != self._step or url in doubted else plan.ready).append(url)
        for url, reason in plan.down.items():
            logger.warning("%s is left out: %s", url, reason)
        if not plan.publish and not plan.ready and time.monotonic() > deadline:
            reasons = "; ".join(f"{url}: {reason}" for url, reason in plan.down.items())
            plan.stop = f"engine: no server was there for {self._max_outage_s:g} s (max_outage_s): {reasons}"
        return plan

    def _reach(self, url: str) -> bool:
        """Whether the server had to be connected, because it is new, was restarted or was lost.

        Raises:
            InfrastructureError: it cannot be reached.
        """
        if url in self._connected:
            if self._shows_proof(url):
                return False
            self._connected.discard(url)
            self._sync.disconnect(url)
        self._sync.connect(url)
        self._connected.add(url)
        logger.info("connected to %s", url)
        return True

    def _shows_proof(self, url: str) -> bool:
        """Whether the server still holds what it was last given."""
        proof = self._proof(self._step)
        try:
            reply = self._request("GET", url, proof.path)
            return bool(proof.holds(reply.json()))
        except (InfrastructureError, ValueError, LookupError, TypeError):
            return False

    def _after(self, plan: _Plan, lost: Mapping[str, str]) -> _Plan:
        """The plan once weights were sent: who could not take them is down, and starts anew when it is there again."""
        for url in plan.publish:
            if url in lost:
                plan.down[url] = lost[url]
                self._connected.discard(url)
                self._sync.disconnect(url)
                logger.warning("%s took no weights: %s", url, lost[url])
            else:
                plan.ready.append(url)
        plan.publish = []
        return plan

    def _request(self, method: str, url: str, path: str, body: Any = None) -> httpx.Response:
        timeout = httpx.Timeout(PROOF_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        try:
            reply = httpx.request(
                method, url + path, json=body, headers=dict(self._headers), timeout=timeout, trust_env=False
            )
            return reply.raise_for_status()
        except httpx.HTTPError as error:
            raise InfrastructureError(f"{path}: {type(error).__name__} {error}", kind=ENGINE_KIND) from error

    # --- on all processes --------------------------------------------------------------------------------------------

    def _publish(self, step: int, urls: Sequence[str]) -> dict[str, str]:
        """Send the weights; the servers that could not take them, with the reason (on the main process)."""
        started = time.monotonic()
        lost = dict(self._sync.publish(self._settings.model_provider(), step, urls))
        if not PartialState().is_main_process:
            return lost
        for url in urls if self._way == "full" else ():
            if url not in lost:
                try:
                    self._request("POST", url, "/update_weight_version", {"new_version": self._version(step)})
                except InfrastructureError as error:
                    lost[url] = str(error)
        seconds = time.monotonic() - started
        logger.info(
            "weights of step %d sent to %d servers in %.1f s (%.1f MB each)",
            step,
            len(urls) - len(lost),
            seconds,
            self._sync.bytes_sent / 1e6,
        )
        return lost


def _from_main(value: T) -> T:
    """The main process's value, on all processes, which have to call this together."""
    return broadcast_object_list([value])[0] if PartialState().num_processes > 1 else value
