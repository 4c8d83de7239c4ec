"""What the gateway costs when many sessions ask at once: throughput, overhead and memory; no model, no network.

    python scripts/bench_gateway.py [--sessions 256] [--calls 20000] [--latency-s 1.0]

A server in a process of its own answers every request after a constant time. Each session asks one question after
another; their starts are spread evenly over the first latency, as sessions of a run drift apart. The ideal throughput
is sessions / latency. A call's overhead is what it took beyond the latency, the server's own time included, so that
the machine should have two quiet cores: the load before the start is printed, and a busy machine measures itself.
Memory is counted from the end of a warm-up, in which every session opens its connection, to the end of the run.
The last line is JSON: `throughput_over_ideal`, `p99_overhead_ms`, `rss_growth_mb`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

from ppp.chat.gateway import ChatEndpoint, ChatGateway

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "Which of the two modules did you mean when you wrote that the header is wrong? " * 10
WARM_UP_CALLS = 2  # of each session


async def play_session(gateway: ChatGateway, number: int, num_calls: int, delay_s: float) -> list[float]:
    """Seconds of each call of one session."""
    await asyncio.sleep(delay_s)
    seconds = []
    for turn in range(num_calls):
        messages = [
            {"role": "system", "content": "You are the user who wrote the issue."},
            {"role": "user", "content": f"{number}-{turn}: {QUESTION}"},
        ]
        started = time.perf_counter()
        reply = await gateway.chat(messages, max_tokens=64)
        seconds.append(time.perf_counter() - started)
        assert reply.text == "OK"
    return seconds


async def play(gateway: ChatGateway, num_sessions: int, num_calls: int, latency_s: float) -> tuple[float, list[float]]:
    """Wall seconds of all sessions, and the seconds of every call."""
    started = time.perf_counter()
    sessions = (
        play_session(gateway, number, num_calls, latency_s * number / num_sessions) for number in range(num_sessions)
    )
    seconds = [value for session in await asyncio.gather(*sessions) for value in session]
    return time.perf_counter() - started, seconds


async def measure(base_url: str, num_sessions: int, num_calls: int, latency_s: float) -> dict[str, float]:
    """All figures of one run."""
    endpoint = ChatEndpoint(model="any", base_url=base_url, max_concurrency=num_sessions)
    gateway = ChatGateway(endpoint)
    await play(gateway, num_sessions, WARM_UP_CALLS, latency_s)
    process = psutil.Process()
    gc.collect()
    memory_before, cpu_before = process.memory_info().rss, time.process_time()
    calls_per_session = -(-num_calls // num_sessions)
    wall_s, seconds = await play(gateway, num_sessions, calls_per_session, latency_s)
    cpu_s, memory_after = time.process_time() - cpu_before, process.memory_info().rss
    print(gateway.ledger.table())
    await gateway.close()
    overheads = [1000 * (value - latency_s) for value in seconds]
    throughput = len(seconds) / (wall_s - latency_s)  # the last session starts one latency after the first
    return {
        "num_calls": len(seconds),
        "wall_s": wall_s,
        "throughput": throughput,
        "throughput_over_ideal": throughput * latency_s / num_sessions,
        "median_overhead_ms": statistics.median(overheads),
        "p99_overhead_ms": statistics.quantiles(overheads, n=100)[98],
        "rss_growth_mb": (memory_after - memory_before) / 1e6,
        "cpu_ms_per_call": 1000 * cpu_s / len(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=256)
    parser.add_argument("--calls", type=int, default=20_000, help="in all, after the warm-up")
    parser.add_argument("--latency-s", type=float, default=1.0, help="of the server")
    arguments = parser.parse_args()
    print(f"load before the start: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    command = [sys.executable, "-m", "tests.chat_server", "--latency-s", str(arguments.latency_s)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        base_url = server.stdout.readline().strip()
        try:
            figures = asyncio.run(measure(base_url, arguments.sessions, arguments.calls, arguments.latency_s))
        finally:
            server.terminate()
    print(
        f"{figures['num_calls']} calls in {figures['wall_s']:.1f} s: {figures['throughput']:.1f} calls/s, "
        f"{figures['cpu_ms_per_call']:.2f} ms of CPU per call, median overhead {figures['median_overhead_ms']:.1f} ms"
    )
    keys = {"throughput_over_ideal": 3, "p99_overhead_ms": 1, "rss_growth_mb": 1}
    print(json.dumps({key: round(figures[key], digits) for key, digits in keys.items()}))


if __name__ == "__main__":
    main()
