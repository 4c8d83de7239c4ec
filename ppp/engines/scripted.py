"""An engine made of rules: for tests, demonstrations, baselines and benchmarks of everything around a model.

Nothing is sampled: log-probabilities are 0. `transformers.py` beside this file is the engine with a model.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from ppp.codec import Codec
from ppp.engines.base import Engine, Generation, GenerationRequest
from ppp.types import Task, ToolCall, Turn


class Policy(Protocol):
    """A rule that plays the agent."""

    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall | None]:
        """What to say next and which call to make, given the session so far."""


class ScriptedEngine(Engine):
    """Writes the turns of a policy made of rules.

    Args:
        codec: turns what the policy says into tokens.
        policy: the rules.
        latency: awaited before each turn, to stand for the time that a model takes; None for none.
    """

    def __init__(
        self, codec: Codec, policy: Policy, latency: Callable[[GenerationRequest], Awaitable[None]] | None = None
    ) -> None:
        self.codec = codec
        self.policy = policy
        self.latency = latency

    async def generate(self, request: GenerationRequest) -> Generation:
        """Generate one turn; a turn longer than `max_tokens` is cut off there."""
        if self.latency is not None:
            await self.latency(request)
        text, call = self.policy.act(request.task, request.turns)
        token_ids = self.codec.render_turn(text, call)
        is_cut = len(token_ids) > request.max_tokens
        token_ids = token_ids[: request.max_tokens]
        return Generation(token_ids, [0.0] * len(token_ids), "length" if is_cut else "stop")
