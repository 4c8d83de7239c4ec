"""The trainer's end of a group through which one server gets weights: the trainer is number 0, the server's workers
come after it.

Nothing in here waits forever: whatever the other side has to answer is watched from outside, and a group whose server
died is thrown away. What is sent through it is decided in `sync_full.py`.
"""

from __future__ import annotations

import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

from ppp.engines.weight_transfer import READY_KEY, STORE_PREFIX, from_trainer

T = TypeVar("T")

_ONE_TENSOR = 2**62  # bytes: what belongs to one request is one broadcast, however large


class Broadcast(ABC):
    """One tensor on its way."""

    @abstractmethod
    def is_done(self) -> bool:
        """Whether it has arrived.

        Raises:
            RuntimeError: it will not.
        """


class TransferGroup(ABC):
    """A trainer and the workers of one server."""

    @abstractmethod
    def __init__(
        self, listener: socket.socket, address: str, world_size: int, timeout_s: float, device: torch.device
    ) -> None:
        """Join as number 0; returns when everybody has joined, which workers do when they are told to.

        Args:
            listener: on a port of this machine, of which the workers are told.
            device: where tensors will be that are sent.

        Raises:
            RuntimeError: somebody did not come in time.
        """
        self.device = device

    @classmethod
    @abstractmethod
    def init_info(cls, address: str, port: int, world_size: int) -> dict[str, Any]:
        """What the server has to be told so that its workers can join."""

    @abstractmethod
    def broadcast(self, tensor: Tensor) -> Broadcast:
        """Begin to send a tensor of bytes; it must stay alive and unchanged until it has arrived."""

    @abstractmethod
    def abort(self) -> None:
        """End the group, also in the middle of a broadcast; never blocks for long."""


class GlooGroup(TransferGroup):
    """Over TCP between CPUs: for tests, and for servers without a GPU."""

    def __init__(
        self, listener: socket.socket, address: str, world_size: int, timeout_s: float, device: torch.device
    ) -> None:
        super().__init__(listener, address, world_size, timeout_s, device)
        timeout = timedelta(seconds=timeout_s)
        self._num_workers, self._num_expected = world_size - 1, 0
        port = listener.getsockname()[1]
        self._store = TCPStore(
            address,
            port,
            world_size,
            is_master=True,
            timeout=timeout,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        self._group: Any = ProcessGroupGloo(PrefixStore(STORE_PREFIX, self._store), 0, world_size, timeout)

    @classmethod
    def init_info(cls, address: str, port: int, world_size: int) -> dict[str, Any]:
        return {"master_address": address, "master_port": port, "rank_offset": 1, "world_size": world_size}

    def broadcast(self, tensor: Tensor) -> Broadcast:
        self._num_expected += self._num_workers
        return _GlooBroadcast(self._are_ready, lambda: self._group.broadcast([tensor], from_trainer()))

    def abort(self) -> None:
        """Nothing to do: what is under way fails when the other side is gone, and nothing else was begun."""

    def _are_ready(self) -> bool:
        return self._store.add(READY_KEY, 0) >= self._num_expected


class _GlooBroadcast(Broadcast):
    def __init__(self, are_ready: Callable[[], bool], begin: Callable[[], Any]) -> None:
        self._are_ready, self._begin = are_ready, begin
        self._work: Any = None

    def is_done(self) -> bool:
        if self._work is None and self._are_ready():
            self._work = self._begin()
        if self._work is None or not self._work.is_completed():
            return False
        self._work.wait()  # raises what went wrong
        return True


class NcclGroup(TransferGroup):
    """Between GPUs, with vLLM's own communicator, which the workers use as well."""

    def __init__(
        self, listener: socket.socket, address: str, world_size: int, timeout_s: float, device: torch.device
    ) -> None:
        super().__init__(listener, address, world_size, timeout_s, device)
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
        from vllm.distributed.utils import StatelessProcessGroup

        meeting = StatelessProcessGroup.create(
            address,
            listener.getsockname()[1],
            rank=0,
            world_size=world_size,
            store_timeout=int(timeout_s),
            listen_socket=listener,
        )
        self._stream = torch.cuda.Stream(device)
        self._communicator = PyNcclCommunicator(meeting, device=device)

    @classmethod
    def init_info(cls, address: str, port: int, world_size: int) -> dict[str, Any]:
        return {
            "master_address": address,
            "master_port": port,
            "rank_offset": 1,
            "world_size": world_size,
            "packed": True,
            "packed_buffer_size_bytes": _ONE_TENSOR,
        }

    def broadcast(self, tensor: Tensor) -> Broadcast:
        with torch.cuda.device(self.device):
            # A stream of its own: the trainer's would wait for a server that has died.
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            self._communicator.broadcast(tensor, src=0, stream=self._stream)
            tensor.record_stream(self._stream)
            event = torch.cuda.Event()
            event.record(self._stream)
        return _NcclBroadcast(event)

    def abort(self) -> None:
        self._communicator.destroy()


class _NcclBroadcast(Broadcast):
    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def is_done(self) -> bool:
        return self._event.query()


GROUPS: dict[str, type[TransferGroup]] = {"nccl": NcclGroup, "gloo": GlooGroup}
"""The server's name for the way that weights come in -> the trainer's end of it."""


def listen(address: str) -> socket.socket:
    """A socket on a free port of this machine, where workers can meet the trainer."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((address, 0))
    listener.listen()
    return listener


def address_towards(host: str, port: int) -> str:
    """The address of this machine under which `host` can reach it.

    Raises:
        OSError: there is no way there.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # sends nothing
        return str(probe.getsockname()[0])


def in_background(function: Callable[[], T]) -> Future[T]:
    """Call a function that may never return, on a thread that nobody waits for when the process ends."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except Exception as error:  # handed to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="weight-transfer").start()
    return future
