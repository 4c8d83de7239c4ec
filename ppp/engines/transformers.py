"""The embedded engine: the trainer's own model generates, by the continuous batching of transformers, also on a CPU.

No weights are copied: inside a phase the model is in evaluation mode and attends to a paged cache, outside it is the
trainer's again. One session (`paged_session.py`, which comes next) lives as long as the engine and is paused between
phases. Not for large models on several GPUs: an inference server is the better choice there.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from ppp.engines.base import Engine, EngineSettings, Generation, GenerationRequest
from ppp.engines.paged_session import Session
from ppp.engines.sampling import Sampler
from ppp.types import InfrastructureError, RecipeError

logger = logging.getLogger(__name__)

_MAX_DEFAULT_CACHE_TOKENS = 65_536


@dataclass(frozen=True, slots=True)
class TransformersOptions:
    """The recipe's `engine_options`.

    Attributes:
        page_size: tokens per page of the cache; shared prefixes are found in whole pages.
        num_blocks: pages of the cache; None: enough for `max_concurrency` trajectories of `max_length` tokens, but for
            no more than 65,536 tokens. A smaller cache works, with fewer trajectories at once.
        max_batch_tokens: tokens per forward pass; long prompts are read in pieces of this size.
    """

    page_size: int = 16
    num_blocks: int | None = None
    max_batch_tokens: int = 1024


def cache_blocks(options: TransformersOptions, max_concurrency: int, max_length: int) -> int:
    """Pages of the cache, for trajectories of up to `max_length` tokens."""
    if options.num_blocks is not None:
        return options.num_blocks
    wanted = min(max_concurrency * max_length, _MAX_DEFAULT_CACHE_TOKENS)
    # A fifth more: the scheduler admits nobody while less than 15 % is free.
    return math.ceil(1.2 * max(wanted, max_length) / options.page_size)


class TransformersEngine(Engine):
    """Generates with the model that is being trained.

    Args:
        model_provider: returns the model as it is now, unwrapped (no DDP around it; LoRA may be).
        eos_id: the token that ends a turn.
        max_concurrency: trajectories at the same time, for the size of the cache.
        max_length: tokens of the longest trajectory, prompt included, for the size of the cache.
        temperature: 0 takes the most likely token.
        top_k, top_p: 0 and 1 leave the distribution whole. Log-probabilities are those of the distribution that is
            sampled from.
        deterministic: admit requests only when every live trajectory waits for one (`set_live`), all at once and in the
            order of their ids, and start each phase with an empty cache, so that all batches are the same in every run.
            Costs what waiting for the slowest tool of each turn costs: measured with 64 trajectories of 5 turns, 1.1
            times the time without tool latency, 1.4 times at 20 ms and 2.6 times at 0.3 s (lognormal, sigma 1).
        options: see `TransformersOptions`.

    Raises:
        RecipeError: an option that is unknown or cannot be used.
    """

    uses_policy = True

    def __init__(
        self,
        model_provider: Callable[[], PreTrainedModel | PeftModel],
        eos_id: int,
        *,
        max_concurrency: int,
        max_length: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        deterministic: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.check_options(options or {})
        self.model_provider = model_provider
        self.eos_id = eos_id
        self.max_concurrency, self.max_length = max_concurrency, max_length
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.deterministic = deterministic
        self.options = TransformersOptions(**(options or {}))
        self._session: Session | None = None
        self._step: int | None = None
        self._live = 0
        self._held: dict[str, GenerationRequest] = {}  # deterministic: requests that wait for the others, by our id
        self._ids = itertools.count()

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise `RecipeError` for an option that is unknown or has the wrong type or sign."""
        allowed = sorted(field.name for field in fields(TransformersOptions))
        for name, value in options.items():
            if name not in allowed:
                raise RecipeError(f"engine_options.{name}: unknown; allowed are {allowed}")
            is_count = type(value) is int and value >= 1
            if not is_count and not (value is None and name == "num_blocks"):
                raise RecipeError(f"engine_options.{name}: {value!r} is not allowed; give a whole number of at least 1")

    @classmethod
    def check_run(cls, settings: EngineSettings) -> None:
        if is_deepspeed_zero3_enabled() and PartialState().is_main_process:
            logger.warning(
                "engine: transformers generates with the trainer's model, whose weights ZeRO-3 then brings together on "
                "every process for each rollout; for a model that one device cannot hold choose vllm_server"
            )

    @classmethod
    def build(cls, settings: EngineSettings) -> TransformersEngine:
        """The engine of a run; it generates with the policy itself, in the same process."""
        return cls(
            settings.model_provider,
            settings.eos_id,
            max_concurrency=settings.max_concurrency,
            max_length=settings.max_length,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            deterministic=settings.deterministic,
            options=settings.options,
        )

    @contextmanager
    def phase(self, step: int) -> Iterator[None]:
        """Lend the model to generation; between phases it is the trainer's, as it was.

        The cache of shared prefixes is emptied when the weights may have changed, that is when `step` differs from the
        last phase's.
        """
        model = self.model_provider()
        if isinstance(model, PeftModel):
            model = model.get_base_model()
        was_training, attention = model.training, model.config._attn_implementation
        if self._session is None or self._session.model is not model or not self._session.is_alive():
            self.close()
            self._session = self._open(model)
        session = self._session
        model.eval()
        model.set_attn_implementation(session.attention)
        try:
            session.resume(forget_prefixes=step != self._step or self.deterministic)
            self._step = step
            yield
        finally:
            self._held.clear()
            session.pause()
            model.set_attn_implementation(attention)
            model.train(was_training)

    async def generate(self, request: GenerationRequest) -> Generation:
        """Generate one turn.

        Raises:
            InfrastructureError: no phase is open, the context does not fit the model or the cache, or the forward pass
                failed.
        """
        session = self._session
        if session is None or session.is_paused:
            raise InfrastructureError("engine: generate was called outside of a phase")
        session.check_fits(len(request.prompt_ids), request.max_tokens)
        request_id = str(next(self._ids))  # never used twice, so that a late cancellation cannot hit another request
        future = session.expect(request_id, request)
        try:
            if self.deterministic:
                self._held[request_id] = request
                self._release()
            else:
                session.submit(request_id, request)
            output = await future
        finally:
            self._held.pop(request_id, None)
            session.forget(request_id, cancel=not future.done() or future.cancelled())
        if output.error is not None:
            raise InfrastructureError(f"engine: generation failed: {output.error}")
        ended = output.generated_tokens[-1:] == [self.eos_id]
        return Generation(output.generated_tokens, output.logprobs, "stop" if ended else "length")

    def set_live(self, num: int) -> None:
        """Told by the pool how many trajectories are running or about to start."""
        self._live = num
        self._release()

    def close(self) -> None:
        """End the generation thread and free the cache."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _open(self, model: PreTrainedModel) -> Session:
        """A session on `model`, with a cache of the size that the trajectories need."""
        options = self.options
        return Session(
            model,
            self.eos_id,
            Sampler(self.temperature, self.top_k, self.top_p),
            page_size=options.page_size,
            num_blocks=cache_blocks(options, self.max_concurrency, self.max_length),
            max_batch_tokens=options.max_batch_tokens,
        )

    def _release(self) -> None:
        """Submit the held requests once every live trajectory waits for one, so that no batch depends on timing."""
        session = self._session
        if session is None or not self._held or len(self._held) < self._live:
            return
        ordered = sorted(self._held.items(), key=lambda item: item[1].request_id)
        self._held.clear()
        with session.held():
            for request_id, request in ordered:
                session.submit(request_id, request)
