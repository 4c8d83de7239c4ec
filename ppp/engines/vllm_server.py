"""The engine for vLLM servers, beside the trainer or on machines of their own: one HTTP request per turn.

Each process sends the requests of its own trajectories. A trajectory stays with the server that it was given at its
first turn, whose prefix cache knows it, until that server is lost. Requests are written and read in `completions.py`,
sent by `server_link.py`; `servers.py` keeps the weights current.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx
from accelerate import PartialState
from accelerate.utils import gather_object

from ppp.checks import refuse, refuse_option, refuse_unknown
from ppp.engines.base import ENGINE_KIND, Engine, EngineSettings, Generation, GenerationRequest
from ppp.engines.completions import Encoder, decode
from ppp.engines.server_info import CONNECT_TIMEOUT_S
from ppp.engines.server_link import Server
from ppp.engines.servers import Servers
from ppp.engines.weight_sync import SYNCS, ServerInfo, read_server_info
from ppp.types import InfrastructureError, RecipeError

logger = logging.getLogger(__name__)

NUM_ATTEMPTS = 2  # for one turn; the second on another server where there is one
_MAX_TEMPERATURE = 2.0  # vLLM takes no more


@dataclass(frozen=True, slots=True)
class VLLMServerOptions:
    """The recipe's `engine_options`.

    Attributes:
        base_urls: one server or several, without `/v1`, each a vLLM process of its own: behind a balancer none could
            be told from another, nor given weights.
        api_key_env: environment variable that holds the servers' API key; None: they want none.
        sync: how weights get there, a key of SYNCS: "full", "adapter" or "none"; None: the adapter where one is
            trained, else all weights.
        sync_options: options of that.
        max_outage_s: how long the run waits for a server while there is none.
        request_timeout_s: for one turn, waiting in the server's queue included.
        max_connections: to each server, per process; None: as many as trajectories at the same time.
    """

    base_urls: str | list[str] = field(default_factory=list)
    api_key_env: str | None = None
    sync: str | None = None
    sync_options: dict[str, Any] = field(default_factory=dict)
    max_outage_s: float = 600.0
    request_timeout_s: float = 1800.0
    max_connections: int | None = None

    @property
    def urls(self) -> list[str]:
        """Of all servers, each without a slash at the end."""
        found = [self.base_urls] if isinstance(self.base_urls, str) else self.base_urls
        return [url.rstrip("/") for url in found]

    @property
    def headers(self) -> dict[str, str]:
        key = os.environ.get(self.api_key_env) if self.api_key_env else None
        return {"Authorization": f"Bearer {key}"} if key else {}

    def way(self, settings: EngineSettings) -> str:
        """The key of SYNCS."""
        return self.sync or ("full" if settings.lora_r is None else "adapter")


class VLLMServerEngine(Engine):
    """Generates on vLLM servers.

    Args:
        settings: of the run; its options are `VLLMServerOptions`.

    Raises:
        RecipeError: an option that is unknown or cannot be used.
    """

    recovers: ClassVar[bool] = True

    def __init__(self, settings: EngineSettings) -> None:
        self.check_options(settings.options)
        options = VLLMServerOptions(**settings.options)
        self.settings, self.options = settings, options
        limit = options.max_connections or settings.max_concurrency
        self.servers = [Server(url, options.headers, limit, options.request_timeout_s) for url in options.urls]
        self._fleet = Servers(
            settings, self.servers, options.way(settings), options.sync_options, options.headers, options.max_outage_s
        )
        self._encoder = Encoder(
            settings.eos_id, settings.temperature, settings.top_k, settings.top_p, settings.max_concurrency
        )
        self._routes: dict[int, Server] = {}  # trajectory, by its noise key -> where its prefix is cached
        self._is_open = False

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse options that are unknown or have a value that cannot be used."""
        known = [option.name for option in fields(VLLMServerOptions)]
        for name in options:
            if name not in known:
                raise refuse_option("engine_options", name, known)
        chosen = VLLMServerOptions(**options)
        _check_urls(chosen.base_urls)
        if chosen.sync is not None and chosen.sync not in SYNCS:
            raise refuse_unknown("engine_options.sync", chosen.sync, SYNCS)
        if not isinstance(chosen.sync_options, dict):
            raise refuse("engine_options.sync_options", chosen.sync_options, "expected a mapping of options to values")
        if chosen.sync is not None:
            SYNCS[chosen.sync].check_options(chosen.sync_options)
        for name in ("max_outage_s", "request_timeout_s"):
            value = options.get(name, 1.0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise refuse(f"engine_options.{name}", value, "give a finite number of seconds above 0")
        limit = chosen.max_connections
        if limit is not None and (type(limit) is not int or limit < 1):
            raise refuse("engine_options.max_connections", limit, "give a whole number of at least 1")
        if not isinstance(chosen.api_key_env, str | None):
            raise refuse("engine_options.api_key_env", chosen.api_key_env, "name an environment variable")

    @classmethod
    def check_run(cls, settings: EngineSettings) -> None:
        """Refuse settings that the servers cannot serve; all processes end alike."""
        problem: str | None = None
        try:
            cls._check_run(settings)
        except RecipeError as error:
            problem = str(error)
        problems = [text for text in gather_object([problem]) if text is not None]
        if problems:
            raise RecipeError(problems[0])

    @classmethod
    def _check_run(cls, settings: EngineSettings) -> None:
        options = VLLMServerOptions(**settings.options)
        way = options.way(settings)
        SYNCS[way].check_options(options.sync_options)
        if settings.is_training and way == "none":
            raise refuse("engine_options.sync", way, "full or adapter; servers that never change are for an evaluation")
        if settings.deterministic:
            raise refuse("deterministic", True, "a server's batches depend on timing: set it to false, or engine")
        if settings.temperature > _MAX_TEMPERATURE:
            raise refuse("temperature", settings.temperature, f"vLLM takes at most {_MAX_TEMPERATURE:g}")
        if options.api_key_env and not os.environ.get(options.api_key_env):
            raise refuse("engine_options.api_key_env", options.api_key_env, "this environment variable is not set")
        for url in options.urls:
            try:
                if not PartialState().is_main_process:  # that it can be reached may differ, what it is cannot
                    httpx.get(f"{url}/health", timeout=CONNECT_TIMEOUT_S, trust_env=False).raise_for_status()
                    continue
                info = read_server_info(url, headers=options.headers)
            except (InfrastructureError, httpx.HTTPError) as error:
                raise refuse("engine_options.base_urls", url, f"a vLLM server that answers ({error})") from error
            _check_server(settings, info)
            SYNCS[way].check_server(settings, info)
            if way != "full" and Path(info.model_path).name != Path(settings.model_name).name:
                logger.warning(
                    "%s serves %s, and the recipe's model is %s: the rollouts will be the server's",
                    url,
                    info.model_path,
                    settings.model_name,
                )

    @classmethod
    def build(cls, settings: EngineSettings) -> VLLMServerEngine:
        """The engine of a run; no server is asked before the first phase."""
        return cls(settings)

    @contextmanager
    def phase(self, step: int) -> Iterator[None]:
        """Have the weights of `step` on the servers.

        Raises:
            RunStoppedError: no server has been there for `max_outage_s`.
        """
        assert not self._num_in_flight, "the phase before has left requests behind"
        self._routes.clear()
        self._fleet.refresh(step)
        self._encoder.start_phase(self._fleet.model_name)
        self._is_open = True
        try:
            yield
        finally:
            self._is_open = False

    async def generate(self, request: GenerationRequest) -> Generation:
        """Generate one turn.

        Raises:
            InfrastructureError: no phase is open, or both attempts failed. Of kind "engine" where the servers are to
                blame, so that the session may be played again.
        """
        if not self._is_open:
            raise InfrastructureError("engine: generate was called outside of a phase")
        body = self._encoder.encode(request)
        server, failure = self._route(request.noise_key), None
        for _ in range(NUM_ATTEMPTS):
            try:
                return decode(await server.complete(body), request.max_tokens, self.settings.eos_id)
            except InfrastructureError as error:
                if error.kind != ENGINE_KIND:
                    raise
                failure = error
            await server.confirm()
            server = self._route(request.noise_key, failed=server)
        assert failure is not None
        raise failure

    async def leave_loop(self) -> None:
        """Close the connections, which belong to the pool's event loop."""
        for server in self.servers:
            await server.close()

    def close(self) -> None:
        """Let go of the servers, which go on."""
        self._fleet.close()

    def _route(self, noise_key: int, failed: Server | None = None) -> Server:
        """Where a trajectory's next turn goes: to the server that has its prefix, if that is still there and has not
        just failed, else to the one with the least to do.

        Raises:
            InfrastructureError: no server has the current weights.
        """
        server = self._routes.get(noise_key)
        if server is not None and server.lost is None and server is not failed:
            return server
        start = PartialState().process_index  # or the first servers would get what the processes do not share evenly
        order = [self.servers[(start + offset) % len(self.servers)] for offset in range(len(self.servers))]
        living = [server for server in order if server.lost is None]
        if not living:
            reasons = "; ".join(f"{server.base_url}: {server.lost}" for server in self.servers)
            raise InfrastructureError(f"engine: no server is left: {reasons}", kind=ENGINE_KIND)
        server = min(living, key=lambda server: (server is failed, server.num_in_flight, server.num_sessions))
        server.num_sessions += 1
        self._routes[noise_key] = server
        return server

    @property
    def _num_in_flight(self) -> int:
        return sum(server.num_in_flight for server in self.servers)


def _check_urls(urls: Any) -> None:
    found = [urls] if isinstance(urls, str) else urls
    if not isinstance(found, list) or not found:
        raise refuse("engine_options.base_urls", urls, "give the URL of a vLLM server, or a list of them")
    for url in found:
        parts = urlsplit(url) if isinstance(url, str) else None
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise refuse("engine_options.base_urls", url, "expected something like http://127.0.0.1:8000")
        if parts.path.strip("/"):
            raise refuse("engine_options.base_urls", url, "the server itself, without a path such as /v1")
    if len({url.rstrip("/") for url in found}) < len(found):
        raise refuse("engine_options.base_urls", urls, "each server once")


def _check_server(settings: EngineSettings, info: ServerInfo) -> None:
    """Refuse a server on which no trajectory of this run could be generated, or whose log-probabilities mean another
    distribution."""
    if info.max_length < settings.max_length:
        raise refuse(
            "engine_options.base_urls",
            info.base_url,
            f"it takes {info.max_length:,} tokens and the recipe's limits allow {settings.max_length:,}; start it with "
            f"--max-model-len {settings.max_length}, or lower max_completion_length or limits.max_prompt_tokens",
        )
    if info.logprobs_mode not in (None, "processed_logprobs"):
        raise refuse(
            "engine_options.base_urls",
            info.base_url,
            f"its log-probabilities are {info.logprobs_mode}; start it with --logprobs-mode processed_logprobs",
        )
