"""What produces the next tokens of a trajectory; `transformers.py` is the embedded engine, `scripted.py` has rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from ppp.types import RecipeError, Task, Turn


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One turn to be generated.

    Attributes:
        prompt_ids: prompt and everything that happened since, append-only.
        max_tokens: upper limit for this turn, >= 1.
        noise_key: 64-bit key of the trajectory's sampling noise: a hash of (seed, step, row, copy).
        position: index of the first new token in the trajectory's completion. The noise of a token is a function of
            (noise_key, position of that token) alone, never of arrival order.
        task, turns: the session so far, for engines that are made of rules.
        request_id: unique among the requests in flight.
    """

    prompt_ids: list[int]
    max_tokens: int
    noise_key: int
    position: int
    task: Task
    turns: Sequence[Turn]
    request_id: str


@dataclass(frozen=True, slots=True)
class Generation:
    """The tokens of one turn, their log-probabilities, and whether it ended ("stop") or was cut off ("length")."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]


class Engine(ABC):
    """Many trajectories call `generate` at once, from one event loop, inside one `phase`."""

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse `engine_options` of a recipe that this engine cannot use; by default there are none.

        Raises:
            RecipeError: names the option, its value and what is allowed.
        """
        if options:
            raise RecipeError(f"engine_options.{next(iter(options))}: unknown; this engine has no options")

    @contextmanager
    def phase(self, step: int) -> Iterator[None]:
        """A rollout phase: weights are current inside and do not change. `step` identifies the weights.

        Entered and left on the trainer's thread, around the whole batch; the default does nothing.
        """
        yield

    @abstractmethod
    async def generate(self, request: GenerationRequest) -> Generation:
        """Generate one turn.

        Raises:
            InfrastructureError: the engine failed; the trajectory leaves the batch.
        """

    def set_live(self, num: int) -> None:
        """Told by the pool, on its event loop, how many trajectories run or are about to start, whenever that changes.

        `num` counts the slots that are taken: min(max_concurrency, trajectories that have not ended).
        """

    def close(self) -> None:
        """Release threads, connections and memory. Called once, at the end of training or evaluation."""
