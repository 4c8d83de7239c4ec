"""A server that speaks the part of vLLM's API that we use; its tokens are a function of seed and weights.

It listens on a real socket, in a thread of its own or as a process (`python vllm_stub.py --port 8110`), can die with
its connections, be restarted on the same port with its first weights, and fail on demand.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from aiohttp import web

EOS = 258
FIRST = "default"  # the version of the weights that a server starts with, as vLLM calls it
NUM_TOKENS = 12  # of a turn that is not cut off


def tokens_of(seed: int, weights: str, max_tokens: int, num_tokens: int = NUM_TOKENS) -> tuple[list[int], list[float]]:
    """The turn that a server with these weights draws: ids, the last of which is EOS if it fits, and log-probs."""
    rng = random.Random(f"{seed}/{weights}")
    ids = [rng.randrange(200) for _ in range(num_tokens - 1)] + [EOS]
    return ids[:max_tokens], [-rng.random() for _ in ids[:max_tokens]]


def answer(body: dict[str, Any], weights: str, num_tokens: int) -> dict[str, Any]:
    """What vLLM 0.31 answers to a completion with `logprobs: 0` and `return_tokens_as_token_ids`."""
    ids, logprobs = tokens_of(body["seed"], weights, body["max_tokens"], num_tokens)
    tokens = [f"token_id:{token}" for token in ids]
    num_prompt = len(body["prompt"])
    choice = {
        "index": 0,
        "text": "...",
        "logprobs": {
            "text_offset": list(range(len(ids))),
            "token_logprobs": logprobs,
            "tokens": tokens,
            "top_logprobs": [{token: value} for token, value in zip(tokens, logprobs, strict=True)],
        },
        "finish_reason": "stop" if ids[-1] in body["stop_token_ids"] else "length",
        "stop_reason": EOS if ids[-1] == EOS else None,
        "token_ids": None,
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "routed_experts": None,
    }
    usage = {"prompt_tokens": num_prompt, "completion_tokens": len(ids), "total_tokens": num_prompt + len(ids)}
    return {"id": "cmpl-1", "object": "text_completion", "model": "tiny", "choices": [choice], "usage": usage}


def _spoil(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], web.Response]:
    def spoiled(reply: dict[str, Any]) -> web.Response:
        change(reply["choices"][0])
        return web.Response(body=orjson.dumps(reply), content_type="application/json")

    return spoiled


BAD_ANSWERS: dict[str, Callable[[dict[str, Any]], web.Response]] = {
    "500": lambda reply: web.json_response({"error": {"message": "engine died"}}, status=500),
    "503": lambda reply: web.Response(status=503),
    "404": lambda reply: web.json_response({"error": {"message": "The model `x` does not exist."}}, status=404),
    "empty": lambda reply: web.Response(status=200),
    "html": lambda reply: web.Response(text="<html>Bad gateway</html>", content_type="text/html"),
    "cut_json": lambda reply: web.Response(body=orjson.dumps(reply)[:-40], content_type="application/json"),
    "no_choices": lambda reply: web.json_response({"choices": []}),
    "no_logprobs": _spoil(lambda choice: choice.update(logprobs=None)),
    "few_logprobs": _spoil(lambda choice: choice["logprobs"]["token_logprobs"].pop()),
    "null_logprob": _spoil(lambda choice: choice["logprobs"]["token_logprobs"].__setitem__(0, None)),
    "words": _spoil(lambda choice: choice["logprobs"]["tokens"].__setitem__(0, "hello")),
    "no_tokens": _spoil(lambda choice: choice["logprobs"].update(tokens=[], token_logprobs=[])),
    "too_many": _spoil(
        lambda choice: choice["logprobs"].update(tokens=["token_id:1"] * 999, token_logprobs=[0.0] * 999)
    ),
    "abort": _spoil(lambda choice: choice.update(finish_reason="abort")),
}
"""Fault -> answer to a completion. Beside these: "400", "hang", "disconnect", "die"."""


class VLLMStub:
    """One server; use it as a context manager.

    Attributes:
        weights: what its tokens depend on; an adapter that a request names is used instead.
        version: of the weights, as `/weight_info` tells it.
        lives: how often it was started.
        requests: bodies of the completions that came, with the life in which they came.
        faults: for the next completions, one each; None answers well.
        hold: answers wait until this is set.
        num_proofs, num_aborted, num_open: requests for the version or the models, completions whose client went away,
            connections.
    """

    def __init__(
        self,
        port: int = 0,
        max_length: int = 4096,
        num_tokens: int = NUM_TOKENS,
        max_requests: int | None = None,
        **config: Any,
    ) -> None:
        self.port, self.max_length, self.num_tokens = port, max_length, num_tokens
        self.config = {"logprobs_mode": "processed_logprobs", "dtype": "torch.float32", **config}
        self.lives = self.num_proofs = self.num_aborted = 0
        self.requests: deque[tuple[int, dict[str, Any]]] = deque(maxlen=max_requests)
        self.faults: deque[str | None] = deque()
        self.on_completion: Callable[[], None] = lambda: None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None

    def __enter__(self) -> VLLMStub:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._runner is not None:
            self.die()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def num_open(self) -> int:
        return 0 if self._runner is None or self._runner.server is None else len(self._runner.server.connections)

    def start(self) -> None:
        """Start, with the first weights and without adapters."""
        self.lives += 1
        self.weights = self.version = FIRST
        self.adapters: set[str] = set()
        self.hold: asyncio.Event | None = None
        self._do(self._start())

    def die(self) -> None:
        """End at once, connections with it."""
        self._do(self._die())

    def restart(self) -> None:
        self.die()
        self.start()

    def hold_answers(self) -> None:
        self._do(self._hold())

    def release_answers(self) -> None:
        assert self.hold is not None
        self._loop.call_soon_threadsafe(self.hold.set)

    def bodies(self, life: int | None = None) -> list[dict[str, Any]]:
        return [body for number, body in self.requests if number == (life or self.lives)]

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _hold(self) -> None:
        self.hold = asyncio.Event()

    async def _start(self) -> None:
        app = web.Application(client_max_size=2**26)
        app.add_routes(
            [
                web.post("/v1/completions", self._complete),
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.get("/weight_info", self._weight_info),
                web.post("/update_weight_version", self._update_version),
                web.get("/server_info", self._server_info),
                web.get("/get_world_size", self._world_size),
                web.post("/v1/load_lora_adapter", self._load_adapter),
                web.post("/v1/unload_lora_adapter", self._unload_adapter),
                web.post("/reset_prefix_cache", self._health),
                web.post("/stub/weights", self._set_weights),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True, backlog=2048).start()
        self.port = self._runner.addresses[0][1]

    async def _die(self) -> None:
        runner, self._runner = self._runner, None
        assert runner is not None and runner.server is not None
        for site in list(runner.sites):
            await site.stop()
        for connection in runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()

    # --- routes ------------------------------------------------------------------------------------------------------

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        self.requests.append((self.lives, body))
        self.on_completion()
        fault = self.faults.popleft() if self.faults else None
        try:
            if self.hold is not None:
                await self.hold.wait()
            if fault == "hang":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.num_aborted += 1
            raise
        if fault == "disconnect":
            assert request.transport is not None
            request.transport.abort()
        if fault == "400":
            return web.json_response({"error": {"message": "too long"}}, status=400)
        model = body.get("model")
        if model is not None and model not in self.adapters:
            return BAD_ANSWERS["404"]({})
        reply = answer(body, model or self.weights, self.num_tokens)
        if fault in BAD_ANSWERS:
            return BAD_ANSWERS[fault](reply)
        return web.Response(body=orjson.dumps(reply), content_type="application/json")

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        self.num_proofs += 1
        own = {"id": "tiny", "root": "tiny", "parent": None, "max_model_len": self.max_length}
        return web.json_response({"data": [own, *({"id": name, "parent": "tiny"} for name in self.adapters)]})

    async def _weight_info(self, request: web.Request) -> web.Response:
        self.num_proofs += 1
        return web.json_response({"weight_version": self.version})

    async def _update_version(self, request: web.Request) -> web.Response:
        self.version = (await request.json())["new_version"]
        return web.json_response({"success": True})

    async def _set_weights(self, request: web.Request) -> web.Response:
        self.weights = (await request.json())["weights"]
        return web.Response()

    async def _load_adapter(self, request: web.Request) -> web.Response:
        self.adapters.add((await request.json())["lora_name"])
        return web.Response()

    async def _unload_adapter(self, request: web.Request) -> web.Response:
        self.adapters.discard((await request.json())["lora_name"])
        return web.Response()

    async def _server_info(self, request: web.Request) -> web.Response:
        config = {
            "model_config": self.config,
            "lora_config": {"max_lora_rank": 16},
            "weight_transfer_config": {"backend": "gloo"},
            "instance_id": f"{self.lives:05d}",
        }
        return web.json_response({"vllm_config": config, "vllm_env": {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": True}})

    async def _world_size(self, request: web.Request) -> web.Response:
        return web.json_response({"world_size": 1})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--num-tokens", type=int, default=NUM_TOKENS, help="of a turn")
    parser.add_argument("--max-length", type=int, default=131_072)
    arguments = parser.parse_args()
    with VLLMStub(arguments.port, arguments.max_length, arguments.num_tokens, max_requests=0):
        threading.Event().wait()


if __name__ == "__main__":
    main()
