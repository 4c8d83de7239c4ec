"""What produces the next tokens of a trajectory; `transformers.py` is the embedded engine, `scripted.py` has rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from transformers import PreTrainedModel

from ppp.turn_reader import ParsedTurn
from ppp.types import PPPError, RecipeError, Task, Turn

ENGINE_KIND = "engine"
"""Kind of an `InfrastructureError` by which an engine says that it lost a session through no fault of the session."""


class ContextFullError(PPPError):
    """The session is longer than what generates can take in, so that there will be no further turn.

    It is scored as it stands, like one that has used up its tokens. Only for engines whose context the limits of the
    session do not describe, such as a model behind an endpoint.
    """


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
    """One turn as it was generated.

    Attributes:
        token_ids, logprobs: its tokens and their log-probabilities; same length, at least one.
        finish_reason: whether it ended ("stop") or was cut off ("length").
        parsed: the turn as an agent that speaks messages means it (`ppp/agents/`); None: it is read off the tokens.
        num_tokens: see `Turn`.
    """

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]
    parsed: ParsedTurn | None = None
    num_tokens: int | None = None


@dataclass(frozen=True)
class EngineSettings:
    """What a recipe says to the engine that generates its rollouts.

    Attributes:
        model_provider: the policy as it is now, unwrapped, with its adapters; asked for at the start of a phase.
        model_name: folder or name on the Hub from which the policy was loaded.
        dtype: in what precision its weights are loaded: "auto", "float32", "bfloat16", "float16".
        lora_r: rank of the adapters that are trained; None where all weights are.
        eos_id: the token that ends a turn.
        max_concurrency: trajectories at the same time, per process.
        max_length: tokens of the longest trajectory, prompt included.
        temperature, top_k, top_p: of the sampling; top_k 0 and top_p 1 cut nothing off.
        deterministic: two runs must agree bit for bit.
        output_dir: the run's folder.
        options: `engine_options` of the recipe.
        is_training: whether the policy changes between phases; False for an evaluation.
    """

    model_provider: Callable[[], PreTrainedModel]
    model_name: str
    dtype: str
    lora_r: int | None
    eos_id: int
    max_concurrency: int
    max_length: int
    temperature: float
    top_k: int
    top_p: float
    deterministic: bool
    output_dir: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    is_training: bool = False


class Engine(ABC):
    """Many trajectories call `generate` at once, from one event loop, inside one `phase`.

    Attributes:
        uses_policy: it generates with the policy itself, which has to be whole on every process during a phase.
        recovers: a session that the engine lost (`InfrastructureError` of kind "engine") may be played again: entering
            the next phase brings back what failed, or ends the run.
        takes_time: a person takes the turns, whom no deadline of a session hurries.
    """

    uses_policy: ClassVar[bool] = False
    recovers: ClassVar[bool] = False
    takes_time: bool = False

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse `engine_options` of a recipe that this engine cannot use; by default there are none.

        Raises:
            RecipeError: names the option, its value and what is allowed.
        """
        if options:
            raise RecipeError(f"engine_options.{next(iter(options))}: unknown; this engine has no options")

    @classmethod
    def check_run(cls, settings: EngineSettings) -> None:
        """Find out, on every process and before a model is loaded, what else would keep this engine from working: a
        server that does not answer, adapters that it does not take, processes that cannot be split as asked.

        Raises:
            RecipeError: names the field, its value and what is allowed.
        """

    @classmethod
    def build(cls, settings: EngineSettings) -> Engine:
        """The engine of a run.

        Raises:
            RecipeError: this engine has no model of its own.
        """
        raise RecipeError(f"engine: {cls.__name__} has no model that could be trained")

    @contextmanager
    def phase(self, step: int) -> Iterator[None]:
        """A rollout phase: weights are current inside and do not change. `step` identifies the weights.

        Entered and left on the trainer's thread, around the whole batch; the default does nothing. All processes enter
        it together, those without a trajectory to play included, so that it may talk to the others.
        """
        yield

    @abstractmethod
    async def generate(self, request: GenerationRequest) -> Generation:
        """Generate one turn.

        Raises:
            InfrastructureError: the engine failed; the trajectory leaves the batch.
            ContextFullError: there is no room for another turn; the trajectory ends here.
        """

    def set_live(self, num: int) -> None:
        """Told by the pool, on its event loop, how many trajectories run or are about to start, whenever that changes.

        `num` counts the slots that are taken: min(max_concurrency, trajectories that have not ended).
        """

    async def leave_loop(self) -> None:
        """Told by the pool, on its event loop, that this loop is about to be closed: close what belongs to it. A later
        `generate` comes from another loop."""

    def close(self) -> None:
        """Release threads, connections and memory. Called once, at the end of training or evaluation."""
