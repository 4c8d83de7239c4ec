"""A real HTTP server that speaks OpenAI's protocol, with faults that can be dialled.

    python -m tests.chat_server --port 0 --latency-s 1 --fault 500=0.1 --fault hang=0.05

prints its base_url and serves until it is killed. In a test: `with ChatServer(reply=...) as server: server.base_url`.
It is no model: `reply` says what is answered, by default the smallest object that fits the request's schema, or "OK".
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from aiohttp import web

Request = dict[str, Any]


class Said(dict[str, Any]):
    """A whole message to be answered, such as one with tool calls; `finish_reason` beside it."""

    def __init__(self, message: Mapping[str, Any], finish_reason: str | None = None) -> None:
        super().__init__(message)
        self.finish_reason = finish_reason or ("tool_calls" if message.get("tool_calls") else "stop")


Reply = Callable[[Request], str | dict[str, Any] | Said]

# Shares of requests by fault; any status of 400 or more is a fault, too.
FAULTS = ("hang", "cut", "disconnect", "invalid_json", "wrong_schema", "empty", "trickle", "length", "error_in_200")
WRONG_OBJECT = {"unexpected": True}
MESSAGES = {429: "Rate limit reached for requests.", 500: "The server had an error.", 503: "The engine is overloaded."}


def default_reply(request: Request) -> str | dict[str, Any]:
    """The smallest object that fits the schema of a request, or OK."""
    response_format = request.get("response_format") or {}
    if response_format.get("type") == "json_schema":
        return dict(smallest(response_format["json_schema"]["schema"]))
    return {} if response_format.get("type") == "json_object" else "OK"


def smallest(schema: Mapping[str, Any]) -> Any:
    """The smallest value of a schema, as far as tests need it."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return smallest(schema[key][0])
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: smallest(part) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [smallest(schema.get("items", {}))] * schema.get("minItems", 0)
    return {"string": "ok", "integer": schema.get("minimum", 0), "number": 0.5, "boolean": True, "null": None}[kind]


class ChatServer:
    """A server in its own thread; what is dialled can be changed at any time.

    Args:
        reply: request -> text, or an object that is sent as JSON text.
        faults: share of the requests by kind, see `FAULTS`; drawn in the order of arrival from `seed`.
        script: faults of the first requests (None: a good answer), before shares count.
        latency_s: seconds before anything is answered.
        models: names that it knows; None takes any.
        knows_schema, knows_json_mode: whether `response_format` may ask for them; 400 otherwise.
        requires_key: refuses other keys with 401, quoting a part of what it got, as OpenAI does.
        retry_after: value of the header that goes with 429 and 503; None sends none.
        has_chat_template: without one it refuses every chat, as vLLM does.
        unsupported: fields that a request must not have, as with OpenAI's reasoning models.
        error_code: `code` of the errors that are dialled by status.
        cached_prompt_tokens: what it reports of its own cache.
        keeps: whether it keeps what it was asked; off for long benchmarks.
        tools: what it does with tools: "take", "refuse" with 400 as vLLM, or "ignore".
        context_length: characters of messages and tokens of the answer that it takes in; more is refused as by vLLM.
    """

    def __init__(
        self,
        reply: Reply = default_reply,
        *,
        faults: Mapping[str, float] | None = None,
        script: Sequence[str | None] = (),
        seed: int = 0,
        latency_s: float = 0.0,
        models: Sequence[str] | None = None,
        knows_schema: bool = True,
        knows_json_mode: bool = True,
        requires_key: str | None = None,
        retry_after: str | None = "0.01",
        has_chat_template: bool = True,
        unsupported: Sequence[str] = (),
        error_code: str | None = None,
        cached_prompt_tokens: int = 0,
        keeps: bool = True,
        tools: str = "take",
        context_length: int | None = None,
        port: int = 0,
    ) -> None:
        self.reply, self.latency_s, self.models = reply, latency_s, models
        self.faults, self.script = dict(faults or {}), list(script)
        self.knows_schema, self.knows_json_mode, self.requires_key = knows_schema, knows_json_mode, requires_key
        self.retry_after, self.has_chat_template, self.unsupported = retry_after, has_chat_template, unsupported
        self.error_code, self.cached_prompt_tokens, self.keeps = error_code, cached_prompt_tokens, keeps
        self.tools, self.context_length = tools, context_length
        self.port = port
        self.requests: list[Request] = []
        self.headers: list[dict[str, str]] = []
        self.num_requests = self.num_in_flight = self.max_in_flight = 0
        self.faults_served: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._down = False
        self.resume = threading.Event()  # while it is cleared, requests arrive but are not answered
        self.resume.set()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def down(self) -> bool:
        """Whether connections are refused; can be set, and then also breaks those that are open."""
        return self._down

    @down.setter
    def down(self, value: bool) -> None:
        if value != self._down:
            self._down = value
            assert self._loop is not None
            asyncio.run_coroutine_threadsafe(self._close() if value else self._listen(), self._loop).result()

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._main(ready),), daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._loop is not None and self._thread is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _main(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await self._listen()
        ready.set()
        await self._stop.wait()
        if not self._down:
            await self._close()

    async def serve(self) -> None:
        """Serve in the running event loop until cancelled."""
        await self._listen()
        print(self.base_url, flush=True)
        await asyncio.Event().wait()

    async def _listen(self) -> None:
        self._server = web.Server(self._handle, access_log=None)
        self._site = await asyncio.get_running_loop().create_server(
            self._server, "127.0.0.1", self.port, backlog=1024, reuse_address=True
        )
        self.port = self._site.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._site.close()
        await self._server.shutdown(timeout=0.001)  # 0 would be for ever

    async def _handle(self, http: web.BaseRequest) -> web.StreamResponse:
        self.num_requests += 1
        self.num_in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.num_in_flight)
        try:
            return await self._route(http)
        finally:
            self.num_in_flight -= 1

    async def _route(self, http: web.BaseRequest) -> web.StreamResponse:
        content = await http.read()
        if self.keeps:
            self.headers.append(dict(http.headers))
        sent_key = http.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.requires_key is not None and sent_key != self.requires_key:
            quoted = f"{sent_key[:8]}{'*' * 20}{sent_key[-4:]}" if sent_key else "none"
            return error_response(401, f"Incorrect API key provided: {quoted}.", code="invalid_api_key")
        if http.path == "/v1/models":
            names = self.models or ("any",)
            return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})
        if http.path != "/v1/chat/completions":
            return error_response(404, f"Invalid URL ({http.method} {http.path})")
        try:
            request: Request = json.loads(content)
        except ValueError:
            return error_response(400, "The body is no JSON.")
        if self.keeps:
            self.requests.append(request)
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        while not self.resume.is_set():
            await asyncio.sleep(0.005)
        return self._refusal(request) or await self._answer(http, request)

    def _refusal(self, request: Request) -> web.Response | None:
        """The errors that a request deserves."""
        if not isinstance(request.get("messages"), list) or not request["messages"]:
            return error_response(400, "'messages' is missing or empty.", param="messages")
        if self.models is not None and request.get("model") not in self.models:
            return error_response(
                404, f"The model `{request.get('model')}` does not exist.", param="model", code="model_not_found"
            )
        if not self.has_chat_template:
            return error_response(
                400,
                "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat "
                "template if the tokenizer does not define one.",
            )
        kind = (request.get("response_format") or {}).get("type")
        if (kind == "json_schema" and not self.knows_schema) or (kind == "json_object" and not self.knows_json_mode):
            return error_response(
                400, f"Invalid parameter: 'response_format' of type '{kind}' is not supported.", param="response_format"
            )
        if "tools" in request and self.tools == "refuse":
            return error_response(
                400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            )
        asked = int(request.get("max_tokens") or 1)
        num_chars = sum(len(str(message.get("content", ""))) for message in request["messages"])
        if self.context_length is not None and num_chars + asked > self.context_length:
            return error_response(
                400,
                f"This model's maximum context length is {self.context_length} tokens. However, you requested {asked} "
                f"output tokens and your prompt contains {num_chars} input tokens. Please reduce the length.",
            )
        for name in self.unsupported:
            if name in request:
                return error_response(
                    400, f"Unsupported parameter: '{name}'.", param=name, code="unsupported_parameter"
                )
        return None

    def _draw_fault(self) -> str | None:
        if self.script:
            scripted = self.script.pop(0)
            self.faults_served.update([scripted] if scripted else [])
            return scripted
        draw = self._random.random()
        for name, share in self.faults.items():
            draw -= share
            if draw < 0:
                self.faults_served[name] += 1
                return name
        return None

    async def _answer(self, http: web.BaseRequest, request: Request) -> web.StreamResponse:
        fault = self._draw_fault()
        if fault is not None and fault.isdigit():
            status = int(fault)
            headers = {"Retry-After": self.retry_after} if self.retry_after and status in (429, 503) else {}
            message = MESSAGES.get(status, f"Fault {status}.")
            return error_response(status, message, code=self.error_code, headers=headers)
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "disconnect":
            assert http.transport is not None
            http.transport.abort()
            return web.Response()
        if fault == "error_in_200":
            return web.json_response({"error": {"message": "Provider returned error", "code": 502}})
        if self.tools == "ignore":
            request.pop("tools", None)
        content: str | dict[str, Any] = WRONG_OBJECT if fault == "wrong_schema" else self.reply(request)
        if isinstance(content, Said) and fault is None:
            body = self._completion(request, json.dumps(content), content.finish_reason, content)
            return web.Response(body=body, content_type="application/json")
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        text = {"empty": "", "length": text[: len(text) // 2]}.get(fault or "", text)
        body = self._completion(request, text, "length" if fault == "length" else "stop")
        if fault == "invalid_json":
            return web.Response(body=body[: len(body) // 2], content_type="application/json")
        if fault == "cut":
            return await self._cut(http, body)
        if fault == "trickle":
            return await self._trickle(http, body)
        return web.Response(body=body, content_type="application/json")

    def _completion(
        self, request: Request, text: str, finish_reason: str, message: Mapping[str, Any] | None = None
    ) -> bytes:
        num_prompt = sum(len(str(message.get("content", "")).split()) for message in request["messages"])
        num_completion = len(text.split())
        usage: dict[str, Any] = {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_completion,
            "total_tokens": num_prompt + num_completion,
            "prompt_tokens_details": {"cached_tokens": min(self.cached_prompt_tokens, num_prompt)},
        }
        message = message or {"role": "assistant", "content": text, "refusal": None}
        completion = {
            "id": f"chatcmpl-{self.num_requests}",
            "object": "chat.completion",
            "created": 0,
            "model": request.get("model"),
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}],
            "usage": usage,
        }
        return json.dumps(completion).encode()

    async def _cut(self, http: web.BaseRequest, body: bytes) -> web.StreamResponse:
        """Half of the promised bytes, then the end of the connection."""
        response = web.StreamResponse(headers={"Content-Length": str(len(body)), "Content-Type": "application/json"})
        await response.prepare(http)
        await response.write(body[: len(body) // 2])
        assert http.transport is not None
        http.transport.close()
        return response

    async def _trickle(self, http: web.BaseRequest, body: bytes) -> web.StreamResponse:
        """A byte now and then: never silent for long, and never done."""
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(http)
        with contextlib.suppress(ConnectionError):
            for byte in body:
                await response.write(bytes([byte]))
                await asyncio.sleep(0.02)
        return response


def error_response(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """An error as OpenAI writes it."""
    kind = "invalid_request_error" if status < 429 else "server_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return web.json_response({"error": error}, status=status, headers=headers)


def parse_fault(text: str) -> tuple[str, float]:
    name, _, share = text.partition("=")
    if name not in FAULTS and not name.isdigit():
        raise argparse.ArgumentTypeError(f"{name!r}: a status, or one of {', '.join(FAULTS)}")
    return name, float(share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--fault", type=parse_fault, action="append", default=[], metavar="NAME=SHARE")
    parser.add_argument("--model", action="append", help="a name that it knows; default: any")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    server = ChatServer(
        faults=dict(arguments.fault),
        latency_s=arguments.latency_s,
        models=arguments.model,
        seed=arguments.seed,
        port=arguments.port,
        keeps=False,
    )
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(server.serve())


if __name__ == "__main__":
    main()
