"""How fast requests may leave, when to try again, and when an endpoint counts as gone for good.

All of it holds for one process: rates are those of the whole run, so each process takes its share. `gateway.py` is
next.
"""

from __future__ import annotations

import asyncio

from aiolimiter import AsyncLimiter
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from ppp.chat.endpoint import ChatEndpoint
from ppp.chat.failures import RequestFailure
from ppp.chat.ledger import world_size

BACKOFF = wait_random_exponential(multiplier=0.5, max=15)
MIN_FAILURES = 3  # in a row before an endpoint can count as gone: one slow request says little


class TokenRate:
    """Tokens per minute, taken by estimate before a request and corrected when it is answered.

    A bucket of ten seconds: one of a minute would let twice the rate pass in the first minute.
    """

    def __init__(self, tokens_per_minute: int) -> None:
        self._limiter = AsyncLimiter(max(1.0, tokens_per_minute / world_size() / 6), 10)
        self._debt = 0.0

    async def acquire(self, estimate: int) -> None:
        """Wait until `estimate` tokens, and what earlier requests took beyond theirs, may be sent."""
        self._debt += estimate
        amount = min(max(self._debt, 0.0), self._limiter.max_rate)
        self._debt -= amount
        try:
            await self._limiter.acquire(amount)
        except asyncio.CancelledError:
            self._debt += amount - estimate
            raise

    def correct(self, difference: int) -> None:
        """Tokens that a request took beyond (or, below zero, short of) its estimate."""
        self._debt += difference


def request_rate(requests_per_minute: int) -> AsyncLimiter:
    """A limiter that spreads requests over the minute: as many as fit a second at once, or one each so many seconds."""
    per_second = requests_per_minute / world_size() / 60
    return AsyncLimiter(per_second, 1) if per_second >= 1 else AsyncLimiter(1, 1 / per_second)


class OutageWatch:
    """Notices that nothing has succeeded for too long while requests were sent and failed.

    Args:
        max_outage_s: seconds of failures, and nothing else, after which the endpoint counts as gone.
    """

    def __init__(self, max_outage_s: float) -> None:
        self.max_outage_s = max_outage_s
        self._since: float | None = None
        self._last_failure = 0.0
        self._num_failures = 0

    def succeeded(self) -> None:
        self._since, self._num_failures = None, 0

    def failed(self, started: float, now: float) -> bool:
        """Count a request that failed, and say whether that was one too many; seconds of one monotonic clock."""
        # Nobody asked for a long time (a training step): what was before says nothing about now.
        if self._since is None or started - self._last_failure > self.max_outage_s:
            self._since, self._num_failures = started, 0
        self._last_failure = now
        self._num_failures += 1
        return self._num_failures >= MIN_FAILURES and now - self._since >= self.max_outage_s


def retrying_calls(endpoint: ChatEndpoint, max_retries: int | None = None) -> AsyncRetrying:
    """Attempts of one call at a time; a wait that would pass the deadline is not begun."""
    num_retries = endpoint.max_retries if max_retries is None else max_retries
    return AsyncRetrying(
        stop=stop_after_attempt(num_retries + 1) | stop_before_delay(endpoint.deadline_s),
        wait=_wait,
        retry=retry_if_exception(lambda error: isinstance(error, RequestFailure) and error.retry),
        sleep=asyncio.sleep,
        reraise=True,
    )


def _wait(state: RetryCallState) -> float:
    """Seconds until the next attempt: what the server asked for and a little more, or a random backoff that grows."""
    failure = state.outcome.exception() if state.outcome is not None else None
    if isinstance(failure, RequestFailure) and failure.retry_after_s is not None:
        return failure.retry_after_s + BACKOFF(state) * min(1.0, failure.retry_after_s / 10)
    return BACKOFF(state)
