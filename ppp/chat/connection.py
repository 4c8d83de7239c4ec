"""The HTTP client of one endpoint in one event loop, with its slots and rates; nothing is tried twice here.

Every error of the `openai` package and of the network ends in this file, as a `RequestFailure` without secrets.
`gateway.py` decides what follows.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

import aiohttp
from openai import (
    DEFAULT_CONNECTION_LIMITS,
    APIConnectionError,
    APIStatusError,
    AsyncOpenAI,
    DefaultAioHttpClient,
    Omit,
    OpenAIError,
    Timeout,
)

from ppp.chat.endpoint import ChatEndpoint
from ppp.chat.failures import RequestFailure, of_exception, of_status
from ppp.chat.limits import TokenRate, request_rate

CONNECT_TIMEOUT_S = 10.0
NOISY_LOGGERS = ("httpx", "httpx2")  # a line of INFO for each request


class Connection:
    """What belongs to one event loop.

    Attributes:
        slots: to be held while the endpoint works on a request.
        requests, tokens: rates to wait for before that; None without a limit.
        deadlines: of the calls under way, so that all of them can be ended at once.
    """

    def __init__(self, endpoint: ChatEndpoint) -> None:
        for name in NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        self.loop = asyncio.get_running_loop()
        self.slots = asyncio.Semaphore(endpoint.max_concurrency)
        self.requests = request_rate(endpoint.requests_per_minute) if endpoint.requests_per_minute else None
        self.tokens = TokenRate(endpoint.tokens_per_minute) if endpoint.tokens_per_minute else None
        self.deadlines: set[asyncio.Timeout] = set()
        self._timeout_s, self._key = endpoint.timeout_s, endpoint.api_key()
        # Sent with each request, because the client adds to its own what it finds in the environment.
        self._headers: dict[str, str | Omit] = {"Authorization": f"Bearer {self._key}" if self._key else Omit()}
        if endpoint.base_url is not None:  # who pays at OpenAI is no business of another host
            self._headers |= {"OpenAI-Organization": Omit(), "OpenAI-Project": Omit()}
        timeout = Timeout(endpoint.timeout_s, connect=min(CONNECT_TIMEOUT_S, endpoint.timeout_s))
        self._client = AsyncOpenAI(
            api_key=self._key or "none",
            base_url=endpoint.url,
            max_retries=0,
            timeout=timeout,
            http_client=DefaultAioHttpClient(limits=DEFAULT_CONNECTION_LIMITS, timeout=timeout),
        )

    async def post(self, body: Mapping[str, Any]) -> str:
        """The body of the endpoint's answer to a chat completion.

        Raises:
            RequestFailure: there was none, or a status of 400 or more.
        """
        failure: RequestFailure
        try:
            async with asyncio.timeout(self._timeout_s):  # until the last byte: a trickle is no answer
                # Not `client.chat.completions.create`: walking its types costs as much as all the rest together.
                return await self._client.post(
                    "/chat/completions", cast_to=str, body=body, options={"headers": self._headers}
                )
        except TimeoutError:
            failure = RequestFailure("timeout", f"timeout after {self._timeout_s:g} s", retry=True)
        except APIStatusError as error:
            failure = of_status(error.status_code, error.response.headers, error.response.content, self._key)
        except (APIConnectionError, aiohttp.ClientError, OSError) as error:
            failure = of_exception(error, self._key)
        # Raised outside of the handlers: what they caught may quote a part of the key.
        raise failure

    async def models(self) -> list[str]:
        """Names of the models that the endpoint offers; none if it does not say."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                text = await self._client.get("/models", cast_to=str, options={"headers": self._headers})
            return [str(model["id"]) for model in json.loads(text)["data"]]
        except (OpenAIError, TimeoutError, ValueError, LookupError, TypeError):
            return []

    async def close(self) -> None:
        await self._client.close()


def remedy(endpoint: ChatEndpoint, failure: RequestFailure) -> str:
    """What an operator can do about a failed check, as a clause of a sentence."""
    if "chat template" in failure.text.lower() or "chat_template" in failure.text.lower():
        return "; its tokenizer has no chat template, so serve the model with one (vllm serve --chat-template)"
    if failure.status in (401, 403):
        if not endpoint.api_key():
            return "; no key was sent, name the environment variable that holds it in api_key_env"
        return f"; look at the key in {endpoint.api_key_env or 'OPENAI_API_KEY'}"
    if failure.status == 404:
        return "; base_url usually ends in /v1" if not endpoint.url.rstrip("/").endswith("/v1") else ""
    if failure.status is not None and failure.status >= 500:  # all that transformers serve says of these two mistakes
        return "; its log tells why, perhaps it has no such model, or the model has no chat template"
    return "; nothing listens there" if failure.kind == "connection" else ""
