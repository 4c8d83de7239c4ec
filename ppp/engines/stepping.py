"""Stepping a generation engine in a thread, and the futures of the event loop that wait for its results.

Requests enter and leave between two steps. Several processes that share one model (tensor parallelism) have to step
alike: before each step they tell each other who came and who left, and all of them add and abort in the same order.
What is stepped is in `vllm_core.py`, which comes next.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.distributed import ProcessGroup

from ppp.engines.base import ENGINE_KIND, Generation
from ppp.types import InfrastructureError

logger = logging.getLogger(__name__)

_PEER_POLL_S = 0.005  # how long a process of a group waits for requests of its own before it asks the others


@dataclass(frozen=True, slots=True)
class Submission:
    """One turn as the engine is told of it; `request_id` is never used twice, in any process."""

    request_id: str
    prompt_ids: list[int]
    max_tokens: int
    seed: int


class Core(Protocol):
    """What can be stepped; used by one thread at a time."""

    def add(self, submission: Submission) -> None:
        """Take up a request.

        Raises:
            ValueError: it cannot be generated; the others can.
        """

    def abort(self, request_ids: Sequence[str]) -> None:
        """Forget requests; ids that are not known (any more) are no mistake."""

    def step(self) -> list[tuple[str, Generation]]:
        """One forward pass for all that is running; the requests that ended with it."""

    def is_busy(self) -> bool:
        """Whether there is anything to step for."""


@dataclass(frozen=True, slots=True)
class _Orders:
    """What one process wants done before the next step."""

    added: Sequence[Submission] = ()
    aborted: Sequence[str] = ()
    is_closing: bool = False
    failure: str | None = None


class _PeerError(RuntimeError):
    """Another process of the group failed."""


class Stepper:
    """Steps a core in a thread, from `start` to `finish`.

    Args:
        core: nobody else may use it meanwhile.
        thread: has nothing else to do meanwhile.
        peers: the processes that step the same model, in the same order; None where there is one.

    Attributes:
        error: why it ended early; the core is then of no use any more.
    """

    def __init__(self, core: Core, thread: ThreadPoolExecutor, peers: ProcessGroup | None = None) -> None:
        self.core, self.thread, self.peers = core, thread, peers
        self.error: Exception | None = None
        self._wake = threading.Condition()
        self._added: list[Submission] = []
        self._aborted: list[str] = []
        self._is_closing = False
        self._waiting: dict[str, asyncio.Future[Generation]] = {}
        self._stepping: Future[None] | None = None

    def start(self) -> None:
        self._stepping = self.thread.submit(self._run)

    def finish(self) -> None:
        """Wait until nothing runs any more, here and in the peers. What still waits is aborted."""
        with self._wake:
            self._aborted += self._waiting  # of an event loop that was stopped, if there are any
            self._waiting.clear()
            self._is_closing = True
            self._wake.notify()
        assert self._stepping is not None
        self._stepping.result()

    def expect(self, request_id: str) -> asyncio.Future[Generation]:
        """What a request will give, which is to be submitted next.

        Raises:
            InfrastructureError: a step has failed. One that fails later fails the future.
        """
        future: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        with self._wake:
            if self.error is not None:
                raise _failure(self.error)
            self._waiting[request_id] = future
        return future

    def submit(self, submissions: Sequence[Submission]) -> None:
        """Queue requests; all of them enter before the same step."""
        with self._wake:
            self._added += submissions
            self._wake.notify()

    def abort(self, request_id: str) -> None:
        """Stop generating for a request that nobody waits for any more; one that has ended is left alone."""
        with self._wake:
            if self._waiting.pop(request_id, None) is not None:
                self._aborted.append(request_id)
                self._wake.notify()

    def _run(self) -> None:
        try:
            while self._round():
                pass
        # Whatever it is, those who wait for a result in another thread have to learn of it.
        except Exception as error:
            logger.exception("a step of generation failed")
            self._fail(error)

    def _round(self) -> bool:
        """Take up what is new, and step; whether there will be more."""
        orders = self._exchange(self._take())
        for each in orders:
            if each.failure is not None:
                raise _PeerError(f"another process of the tensor-parallel group failed: {each.failure}")
        for each in orders:
            for submission in each.added:
                self._add(submission)
        aborted = [request_id for each in orders for request_id in each.aborted]
        if aborted:
            self.core.abort(aborted)
        if self.core.is_busy():
            self._deliver(self.core.step())
            return True
        return not all(each.is_closing for each in orders)

    def _add(self, submission: Submission) -> None:
        try:
            self.core.add(submission)
        except ValueError as error:  # it alone is refused, by all peers alike
            with self._wake:
                future = self._waiting.pop(submission.request_id, None)
            if future is not None:
                _call(future.get_loop(), _reject, future, error)

    def _take(self) -> _Orders:
        """What is new here; waits while there is nothing to do."""
        with self._wake:
            while not (self._added or self._aborted or self._is_closing or self.core.is_busy()):
                self._wake.wait(None if self.peers is None else _PEER_POLL_S)
                if self.peers is not None:
                    break
            orders = _Orders(self._added, self._aborted, self._is_closing)
            self._added, self._aborted = [], []
        return orders

    def _exchange(self, orders: _Orders) -> list[_Orders]:
        """The orders of all peers, the same in all of them, in the order of their ranks."""
        if self.peers is None:
            return [orders]
        everyone: list[_Orders] = [_Orders()] * self.peers.size()
        torch.distributed.all_gather_object(everyone, orders, group=self.peers)
        return everyone

    def _deliver(self, finished: Sequence[tuple[str, Generation]]) -> None:
        """One wake-up per event loop for all results of a step."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Generation], Generation]]] = {}
        with self._wake:
            for request_id, generation in finished:
                future = self._waiting.pop(request_id, None)  # None: a peer's, or nobody waits any more
                if future is not None:
                    by_loop.setdefault(future.get_loop(), []).append((future, generation))
        for loop, results in by_loop.items():
            _call(loop, _resolve, results)

    def _fail(self, error: Exception) -> None:
        with self._wake:
            self.error = error
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            _call(future.get_loop(), _reject, future, error)
        if not isinstance(error, (_PeerError, torch.distributed.DistError)):
            # The peers are about to exchange orders, unless they hang in the step that failed here: then the time limit
            # of their collectives ends them.
            self._exchange(_Orders(failure=str(error)))


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *args: object) -> None:
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        logger.debug("an event loop was closed before its requests ended")


def _resolve(results: Sequence[tuple[asyncio.Future[Generation], Generation]]) -> None:
    for future, generation in results:
        if not future.done():
            future.set_result(generation)


def _reject(future: asyncio.Future[Generation], error: Exception) -> None:
    if not future.done():
        future.set_exception(_failure(error))


def _failure(error: Exception) -> InfrastructureError:
    return InfrastructureError(f"engine: generation failed: {error}", kind=ENGINE_KIND)
