"""What the engine for vLLM servers costs on our side, at 1,000 trajectories of 8 turns at the same time.

    python scripts/bench_rollout.py --engine vllm_server

A stub in another process answers at once; counted is the CPU time of this process alone, per turn, for three histories.
"bare" is the same traffic by nothing but aiohttp and orjson, "engine" by the engine, "pool" by the whole rollout: pool,
codec and engine, each turn being read as a message and answered by an observation.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import orjson
from bench_sessions import make_jobs

from ppp.codec import Codec
from ppp.engines.base import EngineSettings, GenerationRequest
from ppp.engines.completions import noise_seed
from ppp.engines.vllm_server import VLLMServerEngine
from ppp.rollout import Limits, RolloutPool
from ppp.tiny_model import byte_tokenizer

NUM_CONCURRENT, NUM_TURNS = 1000, 8
TURN_TOKENS, OBSERVATION_TOKENS = 64, 64
HISTORIES = {"short": 256, "8k": 8_192, "32k": 32_768}  # tokens before the first turn
NUM_ROUNDS = 3
MAX_LENGTH = 131_072
STUB = Path(__file__).parents[1] / "tests" / "vllm_stub.py"


@contextmanager
def stub_server() -> Iterator[str]:
    """The URL of a stub in another process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(STUB), "--port", str(port), "--num-tokens", str(TURN_TOKENS)])
    url = f"http://127.0.0.1:{port}"
    try:
        while not _answers(url):
            time.sleep(0.1)
            if process.poll() is not None:
                raise RuntimeError("the stub ended")
        yield url
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def open_engine(url: str, eos_id: int) -> VLLMServerEngine:
    """An engine whose server keeps its weights."""
    return VLLMServerEngine.build(
        EngineSettings(
            model_provider=lambda: None,
            model_name="stub",
            dtype="float32",
            lora_r=None,
            eos_id=eos_id,
            max_concurrency=NUM_CONCURRENT,
            max_length=MAX_LENGTH,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            deterministic=False,
            output_dir=Path("unused"),
            options={"base_urls": url, "sync": "none"},
        )
    )


Ask = Callable[[int, list[int], int], Awaitable[list[int]]]  # trajectory, history, position -> tokens of the turn


async def play(ask: Ask, history: list[int]) -> float:
    """CPU milliseconds per turn of trajectories that do nothing but grow."""
    observation = list(range(OBSERVATION_TOKENS))

    async def trajectory(key: int) -> None:
        context, position = [key, *history], 0
        for _ in range(NUM_TURNS):
            new = await ask(key, context, position) + observation
            context += new
            position += len(new)

    gc.collect()
    started = time.process_time()
    await asyncio.gather(*(trajectory(key) for key in range(NUM_CONCURRENT)))
    return 1000 * (time.process_time() - started) / (NUM_CONCURRENT * NUM_TURNS)


async def play_bare(url: str, eos_id: int, history: list[int]) -> float:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(key: int, context: list[int], position: int) -> list[int]:
            body = {
                "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0,
                "presence_penalty": 0.0, "frequency_penalty": 0.0, "stop_token_ids": [eos_id], "ignore_eos": True,
                "logprobs": 0, "return_tokens_as_token_ids": True, "prompt": context, "max_tokens": 1024,
                "seed": noise_seed(key, position),
            }  # fmt: skip
            headers = {"Content-Type": "application/json"}
            async with session.post(f"{url}/v1/completions", data=orjson.dumps(body), headers=headers) as response:
                found = orjson.loads(await response.read())["choices"][0]["logprobs"]
            return [int(token[9:]) for token in found["tokens"]]

        return await play(ask, history)


async def play_engine(engine: VLLMServerEngine, history: list[int]) -> float:
    async def ask(key: int, context: list[int], position: int) -> list[int]:
        request = GenerationRequest(context, 1024, key, position, None, [], str(key))  # type: ignore[arg-type]
        return (await engine.generate(request)).token_ids

    try:
        return await play(ask, history)
    finally:
        await engine.leave_loop()


def play_pool(engine: VLLMServerEngine, codec: Codec) -> float:
    """The whole rollout, with the short history of a session's prompt."""
    limits = Limits(max_turns=NUM_TURNS, max_completion_tokens=MAX_LENGTH // 2)
    pool = RolloutPool(engine, codec, limits, interaction=False, max_concurrency=NUM_CONCURRENT)
    gc.collect()
    started = time.process_time()
    trajectories = pool.run(make_jobs(NUM_CONCURRENT), step=0)
    cost = time.process_time() - started
    pool.close()
    assert all(len(trajectory.turns) == NUM_TURNS for trajectory in trajectories), "a session was lost"
    return 1000 * cost / (NUM_CONCURRENT * NUM_TURNS)


def measure() -> dict[str, Any]:
    """Print the table; medians of some rounds, in turns, so that a busy machine is busy for all."""
    codec = Codec.from_tokenizer(byte_tokenizer())
    result: dict[str, Any] = {}
    print(f"{NUM_CONCURRENT} trajectories at once, {NUM_TURNS} turns of {TURN_TOKENS} + {OBSERVATION_TOKENS} tokens")
    print("CPU ms per turn      bare    engine     ratio")
    with stub_server() as url:
        engine = open_engine(url, codec.eos_id)
        for name, length in HISTORIES.items():
            history = [150_000 + index % 1000 for index in range(length)]
            bare, own = [], []
            for step in range(NUM_ROUNDS):
                bare.append(asyncio.run(play_bare(url, codec.eos_id, history)))
                with engine.phase(step):
                    own.append(asyncio.run(play_engine(engine, history)))
            ratio = statistics.median(ours / theirs for ours, theirs in zip(own, bare, strict=True))
            result[f"engine_ms_{name}"] = round(statistics.median(own), 3)
            result[f"bare_ms_{name}"] = round(statistics.median(bare), 3)
            result[f"ratio_{name}"] = round(ratio, 2)
            print(
                f"{name:<12} {statistics.median(bare):>12.3f} {statistics.median(own):>9.3f} {ratio:>9.2f}", flush=True
            )
        result["pool_ms_short"] = round(statistics.median(play_pool(engine, codec) for _ in range(NUM_ROUNDS)), 3)
        engine.close()
    print(f"pool, codec and engine together, short history: {result['pool_ms_short']:.3f} ms")
    return result
