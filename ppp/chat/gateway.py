"""The gateway to any OpenAI-compatible chat model: one `chat` call in, one text out, or one of two errors. `take_turn`
is the same for agents, whose turns may call tools.

Around the `openai` package's client (with its aiohttp transport) it puts what a run needs: retries that honour the
server's wishes, deadlines, rates, a cache, a ledger with a budget, and an end when an endpoint stays away. It knows
nothing of users or prompts, and it does not look into an answer: `structured.py` does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tenacity import AsyncRetrying

from ppp.chat.bodies import encodable, estimate_tokens, read_answer, read_turn, request_body
from ppp.chat.cache import ChatCache, Recorded
from ppp.chat.checking import check_endpoint
from ppp.chat.connection import Connection
from ppp.chat.endpoint import ChatEndpoint
from ppp.chat.failures import REPLACED_PARAMETERS, RequestFailure
from ppp.chat.ledger import ChatLedger, Prices, Usage
from ppp.chat.limits import OutageWatch, retrying_calls
from ppp.chat.messages import SaidTurn
from ppp.types import InfrastructureError, RunStoppedError

__all__ = ["ChatEndpoint", "ChatGateway", "ChatReply", "ChatTurn", "RequestRefusedError"]

logger = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, Any]]
Read = Callable[[str, Mapping[str, Any]], tuple[Recorded, Usage]]

PROBE_RETRIES = 2
CUT_OFF_REASONS = ("length", "max_tokens", "model_context_window_exceeded")


class RequestRefusedError(InfrastructureError):
    """The endpoint does not take this request (400, 413, 422): it works, and the same request never will."""


@dataclass(frozen=True, slots=True)
class ChatReply:
    """An answer. `cached`: from our cache, or shared with an identical request that was under way."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    cached: bool
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """A turn of an agent. `num_tokens`: as the endpoint counts them, thoughts included."""

    said: SaidTurn
    num_tokens: int
    is_cut_off: bool
    cached: bool


class ChatGateway:
    """One endpoint as the sessions of a run see it.

    Works in any event loop, with its own connections in each; `close` lets go of those of the running loop.

    Args:
        endpoint: what to ask, and how.
        cache: where answers are kept; None asks every time.
        ledger: where calls are counted; shared by the gateways of a run. None makes one.

    Raises:
        RecipeError: the ledger has a `max_cost`, but the endpoint no prices.
    """

    def __init__(
        self, endpoint: ChatEndpoint, *, cache: ChatCache | None = None, ledger: ChatLedger | None = None
    ) -> None:
        self.endpoint, self.cache = endpoint, cache
        self.ledger = ChatLedger() if ledger is None else ledger
        self.ledger.open_account(
            endpoint.label, Prices(endpoint.input_price, endpoint.output_price, endpoint.cached_input_price)
        )
        self._connections: dict[asyncio.AbstractEventLoop, Connection] = {}
        self._outage = OutageWatch(endpoint.max_outage_s)
        self._stopped: str | None = None
        self._replaced: set[str] = set()
        self._refused_formats: set[str] = set()
        # Used again and again: each is a cycle of objects, and there are hundreds of calls a second.
        self._idle_retrying: list[AsyncRetrying] = []

    async def chat(
        self,
        messages: Messages,
        *,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> ChatReply:
        """Ask once, whatever it takes.

        Args:
            messages: as the protocol has them.
            response_format: as the protocol has it; None for free text.
            max_tokens, temperature: None takes the endpoint's.
            seed: passed on; also tells otherwise identical requests apart in the cache.

        Raises:
            InfrastructureError: no answer within the deadline and the retries; `RequestRefusedError` if the endpoint
                does not take this request.
            RunStoppedError: the budget is used up, the endpoint stays away or refuses for good, or a replay has no
                recorded answer.
        """
        request = self._request(messages, response_format, max_tokens, temperature, seed)
        answer, cached = await self._answer(request, read_answer)
        return ChatReply(answer.text, answer.prompt_tokens, answer.completion_tokens, cached, answer.finish_reason)

    async def take_turn(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]] = (), *, max_tokens: int | None, seed: int
    ) -> ChatTurn:
        """Ask for the turn of an agent: a text, calls, both, or nothing at all.

        Args:
            messages, tools: as the protocol has them; without tools the request does not speak of any.
            max_tokens: None leaves it to the endpoint.
            seed: passed on.

        Raises:
            InfrastructureError, RunStoppedError: as `chat`; of kind `CONTEXT_LENGTH` where the conversation, together
                with `max_tokens`, is longer than what the model can take in.
        """
        request = self._request(messages, None, max_tokens, None, seed)
        if max_tokens is None:
            request.pop("max_tokens", None)
        if tools:
            request |= {"tools": list(tools), "parallel_tool_calls": False}
        answer, cached = await self._answer(request, read_turn)
        is_cut_off = answer.finish_reason in CUT_OFF_REASONS
        return ChatTurn(SaidTurn.from_json(answer.text), answer.completion_tokens, is_cut_off, cached)

    async def _answer(self, request: Mapping[str, Any], read: Read) -> tuple[Recorded, bool]:
        """What is read off the answer to a request, and whether it came from the cache."""
        cached = False
        try:
            if self.cache is None:
                answer = await self._ask(request, read)
            else:
                key = request if read is read_answer else {**request, "read": "turn"}  # what is kept of it differs
                answer, cached = await self.cache.answer(key, partial(self._ask, request, read))
        except InfrastructureError:
            self.ledger.record(self.endpoint.label, given_up=True)
            raise
        self.ledger.record(self.endpoint.label, cached=cached)
        return answer, cached

    async def check(self) -> None:
        """Send one tiny request, unless answers are replayed, and let the connections go again.

        Raises:
            RecipeError: one sentence that names model, address and cause.
        """
        if self.cache is not None and self.cache.replays:
            return
        try:
            await check_endpoint(self)
        finally:
            await self.close()

    async def probe(self, messages: Messages, *, max_tokens: int, tools: Sequence[Mapping[str, Any]] = ()) -> SaidTurn:
        """One small request before anything begins, past the cache, tried again a little.

        Raises:
            RequestFailure: no answer, and why.
        """
        request = self._request(messages, None, max_tokens, None, None)
        if tools:
            request |= {"tools": list(tools), "parallel_tool_calls": False}
        retrying = retrying_calls(self.endpoint, PROBE_RETRIES)
        recorded: Recorded = await retrying(self._request_once, self._connect(), request, read_turn)
        return SaidTurn.from_json(recorded.text)

    async def models(self) -> list[str]:
        """Names of the models that the endpoint offers; none if it does not say."""
        return await self._connect().models()

    async def close(self) -> None:
        """Close the connections of the running event loop; they are opened again when needed."""
        connection = self._connections.pop(asyncio.get_running_loop(), None)
        if connection is not None:
            await connection.close()

    def refuses_format(self, response_format: Mapping[str, Any]) -> bool:
        """Whether the endpoint is known not to take this `response_format`."""
        text = json.dumps(response_format, sort_keys=True)
        if text not in self._refused_formats and self.cache is not None and self.cache.knows(self._refusal(text)):
            self._refused_formats.add(text)
        return text in self._refused_formats

    def remember_refusal(self, response_format: Mapping[str, Any]) -> None:
        """Never ask for this `response_format` again; kept in the cache, so that a replay asks as the run did."""
        text = json.dumps(response_format, sort_keys=True)
        if text not in self._refused_formats:
            self._refused_formats.add(text)
            logger.warning("%s does not take response_format %s", self.endpoint.name, response_format.get("type"))
            if self.cache is not None:
                self.cache.remember(self._refusal(text))

    def _refusal(self, text: str) -> dict[str, str]:
        return {"model": self.endpoint.model, "refused_format": text}

    def _request(
        self,
        messages: Messages,
        response_format: Mapping[str, Any] | None,
        max_tokens: int | None,
        temperature: float | None,
        seed: int | None,
    ) -> dict[str, Any]:
        """The request as it is meant, which is what the cache goes by: without address, key, and absent fields."""
        request: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": [encodable(message) for message in messages],
            "response_format": response_format,
            "max_tokens": self.endpoint.max_tokens if max_tokens is None else max_tokens,
            "temperature": self.endpoint.temperature if temperature is None else temperature,
            "seed": seed,
            "extra_body": dict(self.endpoint.extra_body) or None,
        }
        return {name: value for name, value in request.items() if value is not None}

    def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        if loop not in self._connections:
            self._connections = {old: kept for old, kept in self._connections.items() if not old.is_closed()}
            self._connections[loop] = Connection(self.endpoint)
        return self._connections[loop]

    async def _ask(self, request: Mapping[str, Any], read: Read) -> Recorded:
        """Attempts until one succeeds, the deadline passes, or the run has to stop."""
        self._raise_if_stopped()
        connection = self._connect()
        error: Exception
        last_failure: list[RequestFailure] = []
        attempt = partial(self._attempt, connection, request, read, last_failure)
        try:
            async with asyncio.timeout(self.endpoint.deadline_s) as deadline:
                connection.deadlines.add(deadline)
                retrying = self._idle_retrying.pop() if self._idle_retrying else retrying_calls(self.endpoint)
                try:
                    return await retrying(attempt)
                finally:
                    self._idle_retrying.append(retrying)
                    connection.deadlines.discard(deadline)
        except TimeoutError:
            last = f"; the last attempt: {last_failure[-1]}" if last_failure else ", not even a turn to ask"
            late = f"{self.endpoint.name}: no answer within {self.endpoint.deadline_s:g} s{last}"
            error = InfrastructureError(late, kind=last_failure[-1].kind if last_failure else "deadline")
        except RequestFailure as failure:
            refused = failure.status is not None and not failure.retry
            error_class = RequestRefusedError if refused else InfrastructureError
            error = error_class(f"{self.endpoint.name}: {failure}", kind=failure.kind)
        # Raised outside of the handlers: what they caught may quote a part of the key.
        self._raise_if_stopped()
        raise error

    async def _attempt(
        self, connection: Connection, request: Mapping[str, Any], read: Read, last_failure: list[RequestFailure]
    ) -> Recorded:
        """One request, with what its failure means for the run."""
        self._raise_if_stopped()
        started = time.monotonic()
        try:
            answer = await self._request_once(connection, request, read)
        except RunStoppedError as error:  # the budget; what is under way is paid for and may arrive
            self._stopped = str(error)
            raise
        except RequestFailure as failure:
            last_failure[:] = [failure]
            if failure.is_final:
                self._stop(f"{self.endpoint.name} will not answer in this run: {failure}.")
            elif failure.retry and failure.unsupported is None and self._outage.failed(started, time.monotonic()):
                self._stop(
                    f"{self.endpoint.name} has answered nothing for {self.endpoint.max_outage_s:g} s; "
                    f"the last error: {failure}."
                )
            raise
        self._outage.succeeded()
        return answer

    async def _request_once(self, connection: Connection, request: Mapping[str, Any], read: Read) -> Recorded:
        """Wait for a turn, send, count. A slot is held only while the endpoint works."""
        estimate = estimate_tokens(request)
        if connection.requests is not None:
            await connection.requests.acquire()
        if connection.tokens is not None:
            await connection.tokens.acquire(estimate)
        label = self.endpoint.label
        async with connection.slots:
            self.ledger.begin_request(label)
            started = time.monotonic()
            usage: Usage | None = None
            latency_s, failed = None, "cancelled"
            try:
                content = await self._send(connection, request)
                answer, usage = read(content, request)
                failed = "length" if answer.finish_reason == "length" else ""
                latency_s = time.monotonic() - started
            except RequestFailure as failure:
                usage, failed = failure.usage, failure.kind
                raise
            finally:
                self.ledger.end_request(label, usage=usage, latency_s=latency_s, failure=failed or None)
                if connection.tokens is not None and usage is not None:
                    connection.tokens.correct(usage.prompt_tokens + usage.completion_tokens - estimate)
        return answer

    async def _send(self, connection: Connection, request: Mapping[str, Any]) -> str:
        """The body of the answer, after which the endpoint's words for the fields may have been learnt."""
        body = request_body(request, self._replaced)
        try:
            return await connection.post(body)
        except RequestFailure as failure:
            name = failure.unsupported
            if name is not None and name in body:
                failure.retry, failure.retry_after_s = True, 0.0
                if name not in self._replaced:
                    other = REPLACED_PARAMETERS[name]
                    instead = f"it gets {other}" if other else "left out"
                    logger.warning("%s does not take %s: %s", self.endpoint.name, name, instead)
                    self._replaced.add(name)
            raise

    def _stop(self, message: str) -> None:
        """End every call under way, and all that are still to come."""
        if self._stopped is not None:
            return
        self._stopped = message
        connection = self._connect()
        for deadline in connection.deadlines:
            if not deadline.expired():
                deadline.reschedule(connection.loop.time())

    def _raise_if_stopped(self) -> None:
        if self._stopped is not None:
            raise RunStoppedError(self._stopped)
