"""What the benchmarks of rollouts play: sessions whose only tool takes its time, and turns made of rules.

`bench_rollout.py` plays them without a model, `bench_loops.py` with a real server.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from typing import ClassVar

from ppp.environments.base import Environment
from ppp.rollout import RolloutJob
from ppp.types import Observation, Task, ToolCall, ToolSpec, Turn

NUM_SESSIONS, NUM_CALLS = 16, 4
MAX_LENGTH = 8192

WORK = ToolSpec(
    name="work",
    description="Do a piece of work.",
    parameters={
        "type": "object",
        "properties": {"session": {"type": "integer"}, "turn": {"type": "integer"}},
        "required": ["session", "turn"],
    },
)


class Latencies:
    """How long each call of each session takes, in seconds; read by the tool on both sides."""

    table: ClassVar[Sequence[Sequence[float]]] = ()


async def work(session: int, turn: int) -> str:
    """Do a piece of work.

    Args:
        session: number of the session
        turn: number of the call
    """
    await asyncio.sleep(Latencies.table[session][turn] if Latencies.table else 0)
    return f"piece {turn} of {session} is done"


class Workshop(Environment):
    """One tool that takes its time."""

    tools = (WORK,)
    system_prompt = "town_system.txt"

    async def step(self, call: ToolCall) -> Observation:
        return Observation(await work(**call.arguments))

    async def score(self, answer: str | None) -> float:
        return 1.0


class Worker:
    """A policy that works a number of times and then finishes, or just stops calling tools."""

    def __init__(self, num_calls: int, finishes: bool) -> None:
        self.num_calls, self.finishes = num_calls, finishes

    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall | None]:
        if len(turns) < self.num_calls:
            return "Next piece.", ToolCall("work", {"session": task.payload["session"], "turn": len(turns)})
        return ("Done.", ToolCall("finish", {"answer": "all"})) if self.finishes else ("All done.", None)


def make_jobs(num_sessions: int) -> list[RolloutJob]:
    return [
        RolloutJob(Task(f"w{n}", "workshop", f"Job {n:04d}.", f"Job {n:04d}.", "no_preference", {"session": n}), n, 0)
        for n in range(num_sessions)
    ]


def draw_lognormal(seed: int, mean: float = 0.3, sigma: float = 1.0) -> list[list[float]]:
    """Seconds of each call of each session."""
    rng = random.Random(seed)
    mu = math.log(mean) - sigma**2 / 2
    return [[rng.lognormvariate(mu, sigma) for _ in range(NUM_CALLS)] for _ in range(NUM_SESSIONS)]
