"""The pool against TRL's own tool loop, and what the pool itself costs; needs no GPU and no download.

    python scripts/bench_rollout.py [--latencies 0.2 1.0] [--lognormal-seeds 0 1 2]
    python scripts/bench_rollout.py --engine vllm_server [--server http://127.0.0.1:8000]

The second form is about the engine for vLLM servers: what it costs (`bench_engine.py`), or with a server what the pool
gains over two other loops (`bench_loops.py`). The rest is the first.

Part 1, orchestration: 1,000 sessions of 8 turns at the same time, an engine that takes no time and a tool that does
nothing. Counted is the CPU time of the process, codec included, per turn, and the growth of its memory.

Part 2, latency: 16 sessions of 4 tool calls, both sides given the same scripted turns, so that prompt, completion and
mask must be (and are asserted to be) the same tokens. Generation takes no time; a call takes a constant time, or one
drawn from a lognormal distribution of mean 0.3 s and sigma 1. No loop can beat the session with the longest calls. It
says nothing about generation: see `bench_step.py` for the step after the rollout.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import psutil
import torch
from bench_sessions import (
    MAX_LENGTH,
    NUM_CALLS,
    NUM_SESSIONS,
    Latencies,
    Worker,
    Workshop,
    draw_lognormal,
    make_jobs,
)
from bench_trl import TRLSide

from ppp.codec import Codec
from ppp.engines.scripted import ScriptedEngine
from ppp.environments import ENVIRONMENTS
from ppp.rollout import Limits, RolloutJob, RolloutPool
from ppp.tiny_model import byte_tokenizer
from ppp.types import Trajectory

NUM_CONCURRENT, NUM_TURNS = 1000, 8


def make_pool(codec: Codec, num_calls: int, *, finishes: bool, max_concurrency: int) -> RolloutPool:
    """A pool whose scripted engine gives way to the others before each turn, as a real one does."""
    engine = ScriptedEngine(codec, Worker(num_calls, finishes), latency=lambda request: asyncio.sleep(0))
    limits = Limits(max_turns=num_calls + 1, max_completion_tokens=MAX_LENGTH // 2)
    return RolloutPool(engine, codec, limits, interaction=False, max_concurrency=max_concurrency)


def measure_orchestration() -> dict[str, float]:
    """CPU milliseconds per turn and megabytes for all sessions, engine and tool taking no time."""
    codec = Codec.from_tokenizer(byte_tokenizer())
    Latencies.table = ()
    pool = make_pool(codec, NUM_TURNS - 1, finishes=True, max_concurrency=NUM_CONCURRENT)
    pool.run(make_jobs(10), step=0)  # imports and caches
    jobs = make_jobs(NUM_CONCURRENT)
    process = psutil.Process()
    gc.collect()
    memory_before, highest = process.memory_info().rss, 0

    def watch(job: RolloutJob, trajectory: Trajectory) -> None:
        nonlocal highest
        if job.row % 100 == 0:
            highest = max(highest, process.memory_info().rss)

    started, cpu_before = time.perf_counter(), time.process_time()
    trajectories = pool.run(jobs, step=1, on_finish=watch)
    cpu_s, wall_s = time.process_time() - cpu_before, time.perf_counter() - started
    highest = max(highest, process.memory_info().rss)
    pool.close()
    num_turns = sum(len(trajectory.turns) for trajectory in trajectories)
    assert num_turns == NUM_CONCURRENT * NUM_TURNS and all(t.productivity == 1.0 for t in trajectories)
    return {
        "cpu_ms": 1000 * cpu_s / num_turns,
        "rss_mb": (highest - memory_before) / 1e6,
        "wall_s": wall_s,
        "num_tokens": statistics.mean(len(t.prompt_ids) + len(t.completion_ids) for t in trajectories),
    }


def compare(codec: Codec, jobs: Sequence[RolloutJob], trl: TRLSide, table: list[list[float]]) -> Mapping[str, float]:
    """Play the same sessions on both sides and assert that the tokens are the same."""
    Latencies.table = table
    pool = make_pool(codec, NUM_CALLS, finishes=False, max_concurrency=NUM_SESSIONS)
    started = time.perf_counter()
    trajectories = pool.run(jobs, step=0)
    pool_s = time.perf_counter() - started
    pool.close()
    trl_s, theirs = trl.run()
    ours = [(t.prompt_ids, t.completion_ids, t.env_mask) for t in trajectories]
    assert ours == theirs, "the two sides made different tokens or masks"
    assert all(len(t.turns) == NUM_CALLS + 1 for t in trajectories)
    return {"trl_s": trl_s, "pool_s": pool_s, "longest_s": max(map(sum, table))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latencies", type=float, nargs="*", default=[0.2, 1.0], help="constant seconds of a call")
    parser.add_argument(
        "--lognormal-seeds", type=int, nargs="*", default=[0, 1, 2], help="draws of lognormal latencies"
    )
    parser.add_argument("--engine", choices=["scripted", "vllm_server"], default="scripted")
    parser.add_argument("--server", help="a vLLM server; none stands for a stub that is started here")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore", FutureWarning)  # of the libraries
    torch.set_num_threads(1)
    ENVIRONMENTS["workshop"] = Workshop
    if arguments.engine == "vllm_server":
        # Imported here: memory that TRL has freed would hide what the pool takes in the other benchmark.
        if arguments.server:
            from bench_loops import compare_loops

            print(json.dumps(compare_loops(arguments.server)))
        else:
            from bench_engine import measure

            print(json.dumps(measure()))
        return

    # Before TRL is imported: memory that it has freed would hide what the pool takes.
    cost = measure_orchestration()
    print(f"orchestration: {NUM_CONCURRENT} sessions at once, {NUM_TURNS} turns, {cost['num_tokens']:.0f} tokens each")
    print(
        f"  {cost['cpu_ms']:.3f} ms of CPU per turn, {cost['rss_mb']:.1f} MB for all, {cost['wall_s']:.1f} s in total\n"
    )

    import trl

    tokenizer = byte_tokenizer()
    template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"  # one whose calls TRL can read
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    codec = Codec.from_tokenizer(tokenizer)
    jobs = make_jobs(NUM_SESSIONS)
    side = TRLSide(codec, jobs)
    constant = {f"constant {seconds:g} s": [[seconds] * NUM_CALLS] * NUM_SESSIONS for seconds in arguments.latencies}
    lognormal = {f"lognormal, seed {seed}": draw_lognormal(seed) for seed in arguments.lognormal_seeds}
    print(f"{NUM_SESSIONS} sessions x {NUM_CALLS} calls, same tokens and masks; seconds")
    titles = ("TRL loop", "pool", "ratio", "longest session", "pool/longest")
    print("latency of a call    {:>9} {:>9} {:>7} {:>16} {:>13}".format(*titles))
    figures: dict[str, Mapping[str, float]] = {}
    for name, table in {**constant, **lognormal}.items():
        figures[name] = row = compare(codec, jobs, side, table)
        ratio, over = row["trl_s"] / row["pool_s"], row["pool_s"] / row["longest_s"]
        print(
            f"{name:<20} {row['trl_s']:>9.2f} {row['pool_s']:>9.2f} {ratio:>7.1f} "
            f"{row['longest_s']:>16.2f} {over:>13.3f}",
            flush=True,
        )
    ratios = {name: row["trl_s"] / row["pool_s"] for name, row in figures.items()}
    drawn = [ratios[name] for name in lognormal]
    overs = [row["pool_s"] / row["longest_s"] for row in figures.values()]
    result = {
        "ratio_constant_1s": round(ratios["constant 1 s"], 2) if "constant 1 s" in ratios else None,
        "ratio_lognormal": round(statistics.median(drawn), 2) if drawn else None,
        "ratio_lognormal_worst": round(min(drawn), 2) if drawn else None,
        "wall_over_longest": round(max(overs), 3) if overs else None,
        "cpu_ms_per_turn_1000": round(cost["cpu_ms"], 3),
        "rss_mb_1000": round(cost["rss_mb"], 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
