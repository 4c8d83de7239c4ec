"""The embedded engine: the trainer's own model generates, by the continuous batching of transformers, also on a CPU.

No weights are copied: inside a phase the model is in evaluation mode and attends to a paged cache, outside it is the
trainer's again. One session lives as long as the engine and is paused between phases. Sampling is ours (`sampling.py`,
which comes next), so that noise does not depend on who else is in a batch. CUDA graphs and double buffering are off; on
several GPUs an inference server is the better choice.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cache import group_layers_by_attn_type
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.requests import GenerationOutput

from ppp.engines import ragged_attention
from ppp.engines.base import Engine, Generation, GenerationRequest
from ppp.engines.sampling import Sampler, uniforms
from ppp.types import InfrastructureError, RecipeError

logger = logging.getLogger(__name__)

_MAX_DEFAULT_CACHE_TOKENS = 65_536
_DRAIN_TIMEOUT_S = 60.0


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


class _Router(OutputRouter):
    """Hands finished requests to the futures that wait for them, from the generation thread to their event loops.

    Results that nobody waits for any more, or whose loop is closed, are dropped: neither may end the generation thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[str, asyncio.Future[GenerationOutput]] = {}

    def expect(self, request_id: str) -> asyncio.Future[GenerationOutput]:
        future = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        return future

    def forget(self, request_id: str) -> None:
        self._waiting.pop(request_id, None)

    def deliver(self, output: GenerationOutput) -> None:
        self.deliver_batch([output])

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        """One wake-up per event loop for all results of a step."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[GenerationOutput], GenerationOutput]]] = {}
        for output in outputs:
            future = self._waiting.pop(output.request_id, None)
            if future is not None:
                by_loop.setdefault(future.get_loop(), []).append((future, output))
        for loop, results in by_loop.items():
            try:
                loop.call_soon_threadsafe(_resolve, results)
            except RuntimeError:
                logger.debug("the event loop of %d finished requests is closed", len(results))


def _resolve(results: list[tuple[asyncio.Future[GenerationOutput], GenerationOutput]]) -> None:
    for future, output in results:
        if not future.done():
            future.set_result(output)


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
        options: see `TransformersOptions`.

    Raises:
        RecipeError: an option that is unknown or cannot be used.
    """

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
        self._session: _Session | None = None
        self._step: int | None = None
        self._live = 0
        self._held: dict[str, GenerationRequest] = {}  # deterministic: requests that wait for the others, by our id
        self._ids = itertools.count()

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise `RecipeError` for an option that is unknown or has the wrong type or sign."""
        kinds = get_type_hints(TransformersOptions)
        for name, value in options.items():
            if name not in kinds:
                allowed = sorted(field.name for field in fields(TransformersOptions))
                raise RecipeError(f"engine_options.{name}: unknown; allowed are {allowed}")
            is_count = type(value) is int and value >= 1
            if not is_count and not (value is None and name == "num_blocks"):
                raise RecipeError(f"engine_options.{name}: {value!r} is not allowed; give a whole number of at least 1")

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
            self._session = _Session(model, self)
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


class _Session:
    """One manager of transformers with its thread and cache, for one model object."""

    def __init__(self, model: PreTrainedModel, engine: TransformersEngine) -> None:
        self.model = model
        self._eos_id = engine.eos_id
        self._requests: dict[str, GenerationRequest] = {}
        self._pause = ExitStack()
        self.is_paused = False
        options = engine.options
        num_blocks = options.num_blocks
        if num_blocks is None:
            wanted = engine.max_concurrency * engine.max_length
            num_tokens = max(min(wanted, _MAX_DEFAULT_CACHE_TOKENS), engine.max_length)
            # A fifth more: the scheduler admits nobody while less than 15 % is free.
            num_blocks = -(-6 * num_tokens // (5 * options.page_size))
        self._max_cache_tokens = num_blocks * options.page_size
        config = ContinuousBatchingConfig(
            page_size=options.page_size,
            num_blocks=num_blocks,
            max_batch_tokens=options.max_batch_tokens,
            allow_block_sharing=True,
            return_logprobs=True,
            use_async_batching=False,
            use_cuda_graph=False,
            auto_switch_to_flash=False,
        )
        # Plain sampling without processors: temperature and the rest are applied by our sampler.
        generation = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=engine.eos_id)
        self._manager = model.init_continuous_batching(generation, config)
        if model.config._attn_implementation == "sdpa" and list(
            group_layers_by_attn_type(model.config.get_text_config())
        ) == ["full_attention"]:
            model.set_attn_implementation(ragged_attention.NAME)
        self._router = self._manager.output_router = _Router()
        self._manager.warmup()  # creates the processor, here rather than in its thread
        self.attention: str = model.config._attn_implementation
        self._processor = self._manager.batch_processor
        self._sampler = Sampler(engine.temperature, engine.top_k, engine.top_p)
        self._processor.model_runner._sample = self._sample
        # The manager's thread inherits "daemon" from the one that starts it; otherwise an exception in the trainer
        # would leave the process waiting for a paused thread for ever.
        starter = threading.Thread(target=self._manager.start, daemon=True)
        starter.start()
        starter.join()

    def is_alive(self) -> bool:
        return self._manager.is_running() and self._denial() is None

    def check_fits(self, num_prompt_tokens: int, max_tokens: int) -> None:
        """Raise `InfrastructureError` for a request that the model or the whole cache cannot hold."""
        num_tokens = num_prompt_tokens + max_tokens
        for limit, name in (
            (self.model.config.get_text_config().max_position_embeddings, "positions of the model"),
            (self._max_cache_tokens, "tokens of the cache (engine_options.num_blocks times page_size)"),
        ):
            if num_tokens > limit:
                raise InfrastructureError(
                    f"engine: {num_prompt_tokens} tokens of context and {max_tokens} new ones exceed "
                    f"the {limit} {name}; lower the limits of a trajectory"
                )

    def expect(self, request_id: str, request: GenerationRequest) -> asyncio.Future[GenerationOutput]:
        self._requests[request_id] = request
        return self._router.expect(request_id)

    def submit(self, request_id: str, request: GenerationRequest) -> None:
        """Queue a request.

        Raises:
            InfrastructureError: the generation thread is gone. Asked after queueing: a thread that dies later still
                finds the request and fails it, so no request is ever lost.
        """
        self._manager.add_request(request.prompt_ids, request_id, request.max_tokens, eos_token_id=self._eos_id)
        denial = self._denial()
        if denial is not None:
            raise InfrastructureError(f"engine: {denial}") from self._manager.background_thread_status.fatal_error

    def forget(self, request_id: str, *, cancel: bool) -> None:
        self._router.forget(request_id)
        self._requests.pop(request_id, None)
        if cancel:
            self._manager.cancel_request(request_id)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the generation thread from looking at its queue; if it is gone, `submit` says so."""
        with ExitStack() as stack:
            if self.is_alive():
                try:
                    stack.enter_context(self._manager.pause())
                except RuntimeError:
                    logger.warning("the generation thread ended before it could be paused")
            yield

    def resume(self, *, forget_prefixes: bool) -> None:
        """Let the generation thread go on, with an empty cache if asked to."""
        if forget_prefixes:
            if not self.is_paused:
                self.pause()
            self._processor.cache.reset()
        self._pause.close()
        self.is_paused = False

    def pause(self) -> None:
        """Wait until nothing is being generated (what was cancelled may still be), then stop the generation thread."""
        deadline = time.monotonic() + _DRAIN_TIMEOUT_S
        while self.is_alive() and not self._is_idle():
            if time.monotonic() > deadline:
                raise InfrastructureError(f"engine: requests were still running {_DRAIN_TIMEOUT_S:g} s after the phase")
            time.sleep(0.001)
        self._pause.enter_context(self.held())
        self.is_paused = True

    def close(self) -> None:
        self._pause.close()
        self._manager.stop(hard_stop=True)
        self._manager.destroy()

    def _is_idle(self) -> bool:
        manager = self._manager
        return (
            manager.input_queue.empty() and manager.cancel_queue.empty() and not self._processor.has_pending_requests()
        )

    def _denial(self) -> str | None:
        """Why the generation thread takes no more requests; None if it does."""
        return self._manager.background_thread_status.can_accept_new_requests()

    def _sample(self, scores: torch.Tensor, output_ids: torch.Tensor) -> None:
        """Takes the place of `ModelRunner._sample`: the noise of a token depends on its trajectory and position alone.

        Runs in the generation thread. The first rows of `scores` belong to the requests of the batch that get a token,
        in their order; requests that are still reading their prompt have none.

        Args:
            scores: shape [1, num_rows, vocabulary], float32.
            output_ids: shape [2, >= num_rows], int32; row 0 takes the tokens, row 1 the bits of the log-probabilities.
        """
        keys, positions = [], []
        for future_state in self._processor.inputs_and_outputs.requests_in_batch:
            if not future_state.has_new_token:
                continue
            state = future_state.state
            request = self._requests.get(state.request_id)
            # A request that was cancelled meanwhile still gets a token, of no consequence. One that lost its place in
            # the cache starts over with its own tokens as part of `initial_tokens`.
            keys.append(request.noise_key if request is not None else 0)
            done = len(state.initial_tokens) + len(state.generated_tokens)
            positions.append(request.position + done - len(request.prompt_ids) if request is not None else 0)
        num_rows = len(keys)
        if num_rows == 0:
            return
        tokens, logprobs = self._sampler(scores[0, :num_rows], uniforms(keys, positions).to(scores.device))
        output_ids[0, :num_rows].copy_(tokens)
        output_ids[1, :num_rows].copy_(logprobs.view(torch.int32))
