"""Every weight to every server, straight into its workers' memory, through vLLM's routes for it.

The weights travel in buckets, each as one tensor of bytes that is broadcast to the workers of each server, beside a
request that says what is in it. Each server has a group of its own, so that one may die and come back while the others
go on. The trainer's end of such a group is in `transfer_groups.py`, the server's for CPUs in `weight_transfer.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar

import httpx
import torch
from accelerate import PartialState
from torch import nn

from ppp.checks import check_at_least, refuse, refuse_unknown
from ppp.engines.base import EngineSettings
from ppp.engines.server_info import ENGINE_KIND, ServerInfo
from ppp.engines.sync_base import WeightSync, check_dev_routes, check_seconds
from ppp.engines.trained_weights import NamedTensors, model_weights, num_bytes
from ppp.engines.transfer_groups import GROUPS, Broadcast, TransferGroup, address_towards, in_background, listen
from ppp.types import InfrastructureError

_POLL_S = 0.0005


class FullSync(WeightSync):
    """Options: `backend`: "nccl" or "gloo", what the servers were started with; `master_address`: where their workers
    find the trainer, by default the address of this machine on the way to them; `bucket_mb`: what is made whole and
    sent at once; `timeout_s`: how long any of it may take."""

    OPTIONS: ClassVar[Mapping[str, Any]] = {
        "backend": "nccl",
        "master_address": None,
        "bucket_mb": 512,
        "timeout_s": 600.0,
    }

    def __init__(self, settings: EngineSettings, options: Mapping[str, Any]) -> None:
        super().__init__(settings, options)
        self._bucket_bytes = int(self.options["bucket_mb"]) * 2**20
        self.groups: dict[str, TransferGroup] = {}

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        super().check_options(options)
        name = "engine_options.sync_options"
        values = {**cls.OPTIONS, **options}
        if values["backend"] not in GROUPS:
            raise refuse_unknown(f"{name}.backend", values["backend"], GROUPS)
        if not isinstance(values["master_address"], str | None):
            raise refuse(f"{name}.master_address", values["master_address"], "expected an address of this machine")
        if isinstance(values["bucket_mb"], bool) or not isinstance(values["bucket_mb"], int):
            raise refuse(f"{name}.bucket_mb", values["bucket_mb"], "expected a whole number")
        check_at_least(f"{name}.bucket_mb", values["bucket_mb"], 1)
        check_seconds(f"{name}.timeout_s", values["timeout_s"])

    @classmethod
    def check_server(cls, settings: EngineSettings, info: ServerInfo) -> None:
        check_dev_routes(info)
        backend = {**cls.OPTIONS, **settings.options.get("sync_options", {})}["backend"]
        name = "engine_options.sync_options.backend"
        if backend != info.transfer_backend:
            flag = f'--weight-transfer-config \'{{"backend": "{backend}"}}\''
            has = "no way to take weights" if info.transfer_backend is None else repr(info.transfer_backend)
            raise refuse(name, backend, f"{info.base_url} has {has}; start it with {flag}")
        if backend == "nccl" and not torch.cuda.is_available():
            raise refuse(name, backend, "there is no GPU here; start the server with gloo, and say so")
        if backend == "nccl" and find_spec("vllm") is None:
            raise refuse(name, backend, "it takes vLLM's communicator; install ppp[vllm] beside the trainer as well")

    def connect(self, base_url: str) -> None:
        self.disconnect(base_url)
        info = self.info(base_url)
        if info.world_size is None:
            raise InfrastructureError(f"{base_url}: came back without its development routes", kind=ENGINE_KIND)
        self.groups[base_url] = self._join(base_url, info.world_size + 1)

    def publish(self, model: nn.Module, step: int, base_urls: Sequence[str]) -> dict[str, str]:
        sending = _Sending(self, base_urls) if PartialState().is_main_process else None
        if sending is not None:
            sending.start()
        self.bytes_sent = 0
        for bucket in model_weights(model, self._bucket_bytes):
            if sending is not None:
                self.bytes_sent += num_bytes(bucket)
                sending.send(bucket)
        if sending is None:
            return {}
        sending.finish()
        for base_url in sending.lost:
            self.disconnect(base_url)
        return sending.lost

    def disconnect(self, base_url: str) -> None:
        group = self.groups.pop(base_url, None)
        if group is not None:
            group.abort()

    def close(self) -> None:
        super().close()
        for base_url in list(self.groups):
            self.disconnect(base_url)

    def _join(self, base_url: str, world_size: int) -> TransferGroup:
        """Meet the workers of a server; they are told where, and both sides wait for each other."""
        backend, timeout_s = self.options["backend"], self.timeout_s
        url = httpx.URL(base_url)
        try:
            address = self.options["master_address"] or address_towards(url.host, url.port or 80)
            listener = listen(address)
        except OSError as error:
            raise InfrastructureError(f"{base_url}: no way to it from here ({error})", kind=ENGINE_KIND) from error
        info = GROUPS[backend].init_info(address, listener.getsockname()[1], world_size)
        told: Future[Any] = in_background(
            lambda: self.post(base_url, "/init_weight_transfer_engine", {"init_info": info})
        )
        # The current GPU is a thread's own.
        device = torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
        joined: Future[Any] = in_background(lambda: GROUPS[backend](listener, address, world_size, timeout_s, device))
        # A server that refuses would be waited for in vain.
        wait([told, joined], timeout_s, return_when=FIRST_EXCEPTION)
        try:
            told.result(timeout=0)
            return joined.result(timeout=0)
        except (RuntimeError, OSError, TimeoutError) as error:
            raise InfrastructureError(
                f"{base_url}: its workers did not join ({type(error).__name__} {error})", kind=ENGINE_KIND
            ) from error


class _Sending:
    """One publish to several servers at once; those that fail are left behind.

    Attributes:
        lost: server -> what went wrong with it.
    """

    def __init__(self, sync: FullSync, base_urls: Sequence[str]) -> None:
        self._sync = sync
        self.lost = {url: "is not connected" for url in base_urls if url not in sync.groups}
        self._groups = {url: sync.groups[url] for url in base_urls if url in sync.groups}

    def start(self) -> None:
        self._everywhere(self._start)

    def send(self, bucket: NamedTensors) -> None:
        """Send one bucket to every server and wait until it is there."""
        body = {"update_info": describe(bucket)}
        groups = list(self._groups.items())
        if not groups:
            return
        packed = pack(bucket, groups[0][1].device)
        told = {url: in_background(partial(self._sync.post, url, "/update_weights", body)) for url, _ in groups}
        sent: dict[str, Broadcast] = {}
        for url, group in groups:
            try:
                sent[url] = group.broadcast(packed)
            except RuntimeError as error:  # the other processes are waiting for the gathering of the next bucket
                self._lose(url, str(error))
        self._wait({url: told[url] for url in sent}, sent)

    def finish(self) -> None:
        self._everywhere(self._finish)

    def _start(self, base_url: str) -> None:
        try:
            self._sync.post(base_url, "/start_weight_update")
        except InfrastructureError as error:
            # It may be in the middle of an update whose trainer was killed.
            try:
                self._sync.post(base_url, "/finish_weight_update")
                self._sync.post(base_url, "/start_weight_update")
            except InfrastructureError:
                raise error from None

    def _finish(self, base_url: str) -> None:
        self._sync.post(base_url, "/finish_weight_update")
        self._sync.reset_prefix_cache(base_url)

    def _everywhere(self, call: Callable[[str], None]) -> None:
        """Call something that talks to a server for each of them, side by side."""
        calls = {url: in_background(partial(call, url)) for url in self._groups}
        for url, future in calls.items():
            try:
                future.result(timeout=3 * self._sync.timeout_s)
            except (InfrastructureError, TimeoutError) as error:
                self._lose(url, str(error) or "no answer in time")

    def _wait(self, told: Mapping[str, Future[Any]], sent: Mapping[str, Broadcast]) -> None:
        """Until each server has both answered and got its tensor, or has failed at one of them."""
        deadline = time.monotonic() + self._sync.timeout_s
        open_urls = set(told)
        while open_urls:
            for url in sorted(open_urls):
                try:
                    if told[url].done():
                        told[url].result()
                    if sent[url].is_done() and told[url].done():
                        open_urls.discard(url)
                    elif time.monotonic() > deadline:
                        raise TimeoutError(f"no weights got there in {self._sync.timeout_s:.0f} s")
                except (InfrastructureError, RuntimeError, TimeoutError) as error:
                    self._lose(url, str(error))
                    open_urls.discard(url)
            time.sleep(_POLL_S)

    def _lose(self, base_url: str, reason: str) -> None:
        self.lost[base_url] = reason
        self._groups.pop(base_url).abort()


def describe(bucket: NamedTensors) -> dict[str, Any]:
    """What a server has to know of a bucket."""
    return {
        "names": [name for name, _ in bucket],
        "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
        "shapes": [list(tensor.shape) for _, tensor in bucket],
    }


def pack(bucket: NamedTensors, device: torch.device) -> torch.Tensor:
    """The bucket as one tensor of bytes, in order."""
    parts = [tensor.to(device).contiguous().view(-1).view(torch.uint8) for _, tensor in bucket]
    return torch.cat(parts)
