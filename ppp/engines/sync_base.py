"""What a way to bring the trainer's weights to inference servers has to offer, and the way that brings none.

The table of all of them is in `weight_sync.py`, the two real ones in `sync_full.py` and `sync_adapter.py`.
"""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import httpx
from torch import nn

from ppp.checks import refuse, refuse_option
from ppp.engines.base import EngineSettings
from ppp.engines.server_info import CONNECT_TIMEOUT_S, ENGINE_KIND, ServerInfo, read_server_info
from ppp.types import InfrastructureError

_RESET_S = 10.0


class WeightSync(ABC):
    """Brings the weights of one trainer, which may be many processes, to any number of servers.

    Args:
        settings: of the engine.
        options: of this way, already checked by `check_options`.

    Attributes:
        bytes_sent: of the last `publish`, to each server; on the main process.
    """

    OPTIONS: ClassVar[Mapping[str, Any]] = {}
    """Option -> default value."""

    bytes_sent: int = 0

    def __init__(self, settings: EngineSettings, options: Mapping[str, Any]) -> None:
        self.check_options(options)
        self.settings = settings
        self.options = {**self.OPTIONS, **options}
        self.timeout_s = float(self.options.get("timeout_s", 0))
        key = os.environ.get(settings.options.get("api_key_env") or "")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        # One client, because each reads all certificates; no connection is kept, because its server may be restarted.
        self._client = httpx.Client(
            headers=self._headers,
            timeout=httpx.Timeout(self.timeout_s, connect=CONNECT_TIMEOUT_S),
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse options that this way does not have.

        Raises:
            RecipeError: names the option, its value and what is allowed.
        """
        for name in options:
            if name not in cls.OPTIONS:
                raise refuse_option("engine_options.sync_options", name, cls.OPTIONS)

    @classmethod
    @abstractmethod
    def check_server(cls, settings: EngineSettings, info: ServerInfo) -> None:
        """Refuse a server that cannot take the weights of this run; before a model is loaded.

        Raises:
            RecipeError: names the option and the values of both sides.
        """

    @abstractmethod
    def connect(self, base_url: str) -> None:
        """Get ready to publish to a server, also to one that comes back after it was lost. Main process only; blocks.

        The server still has the weights with which it was started: `publish` has to follow.

        Raises:
            InfrastructureError: the server does not answer, or refuses.
        """

    @abstractmethod
    def publish(self, model: nn.Module, step: int, base_urls: Sequence[str]) -> dict[str, str]:
        """Give the servers the model's current weights and empty their prefix caches. Blocks.

        All processes call it together, each with its own part of the model: weights are gathered by collectives. Only
        the main process talks to servers, and only its `base_urls` are read. The servers have no request in flight, and
        no process sends one until all have returned (a barrier of the caller's).

        Args:
            model: the policy, unwrapped, with its adapters.
            step: identifies the weights.
            base_urls: servers that are connected.

        Returns:
            The servers that were lost meanwhile, with the reason: they have to be connected again before the next
            publish. Empty on all processes but the main one.
        """

    def model_name(self) -> str | None:
        """What requests have to name as "model" after the last publish, the same on all processes; None: the server's
        own model."""
        return None

    def info(self, base_url: str) -> ServerInfo:
        """What the server says of itself, see `read_server_info`."""
        return read_server_info(base_url, headers=self._headers)

    def post(self, base_url: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """The server's answer to a request that changes it.

        Raises:
            InfrastructureError: it is gone, or refuses.
        """
        try:
            reply = self._client.post(base_url + path, json=body or {})
        except httpx.HTTPError as error:
            reason = f"{base_url}{path}: no answer ({type(error).__name__} {error})"
            raise InfrastructureError(reason, kind=ENGINE_KIND) from error
        if reply.is_error:
            reason = f"{base_url}{path}: answered {reply.status_code}: {reply.text[:500]}"
            raise InfrastructureError(reason, kind=ENGINE_KIND)
        return reply

    def reset_prefix_cache(self, base_url: str) -> None:
        """Make a server forget what it computed with other weights.

        Raises:
            InfrastructureError: it does not, because it still works on something.
        """
        deadline = time.monotonic() + _RESET_S
        while not self._was_reset(self.post(base_url, "/reset_prefix_cache")):
            # A request that was cancelled a moment ago holds on to its pages until the next step of the engine.
            if time.monotonic() > deadline:
                raise InfrastructureError(f"{base_url}: its prefix cache is in use", kind=ENGINE_KIND)
            time.sleep(0.05)

    @staticmethod
    def _was_reset(reply: httpx.Response) -> bool:
        try:
            return bool(reply.json()["success"])
        except (ValueError, LookupError, TypeError) as error:
            reason = f"{reply.request.url}: answered what vLLM does not: {error!r}"
            raise InfrastructureError(reason, kind=ENGINE_KIND) from error

    def disconnect(self, base_url: str) -> None:
        """Forget a server that was lost. Main process only; never fails."""

    def close(self) -> None:
        """Let go of all servers."""
        self._client.close()


class NoSync(WeightSync):
    """Servers whose weights do not change: an evaluation."""

    @classmethod
    def check_server(cls, settings: EngineSettings, info: ServerInfo) -> None:
        """Any server will do."""

    def connect(self, base_url: str) -> None:
        """There is nothing to get ready."""

    def publish(self, model: nn.Module, step: int, base_urls: Sequence[str]) -> dict[str, str]:
        """The servers have their weights already."""
        return {}


def check_dev_routes(info: ServerInfo) -> None:
    """Refuse a server without the routes that change it.

    Raises:
        RecipeError: names the server and what starts them.
    """
    if not info.has_dev_routes:
        raise refuse(
            "engine_options.base_urls",
            info.base_url,
            "a vLLM server with its development routes; start it with VLLM_SERVER_DEV_MODE=1 in its environment",
        )


def check_seconds(name: str, value: Any) -> None:
    """Refuse what is no length of time.

    Raises:
        RecipeError: names the option and its value.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise refuse(name, value, "a finite number of seconds above 0")
