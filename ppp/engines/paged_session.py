"""One run of transformers' continuous batching: its manager, thread and cache, and the futures of those who wait.

The only file that touches the internals of transformers' continuous batching; `tests/test_transformers_engine.py` pins
them by what they do. Its sampling is replaced by ours (`sampling.py`, which comes next), its attention over requests of
unequal length by `ragged_attention.py`. CUDA graphs and double buffering are off: they fix the sampling into a graph.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cache import group_layers_by_attn_type
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.requests import GenerationOutput

from ppp.engines import ragged_attention
from ppp.engines.base import GenerationRequest
from ppp.engines.sampling import Sampler, uniforms
from ppp.types import InfrastructureError

logger = logging.getLogger(__name__)

_DRAIN_TIMEOUT_S = 60.0


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


class Session:
    """One manager of transformers with its thread and cache, for one model object."""

    def __init__(
        self,
        model: PreTrainedModel,
        eos_id: int,
        sampler: Sampler,
        *,
        page_size: int,
        num_blocks: int,
        max_batch_tokens: int,
    ) -> None:
        self.model = model
        self._eos_id = eos_id
        self._sampler = sampler
        self._requests: dict[str, GenerationRequest] = {}
        self._pause = ExitStack()
        self.is_paused = False
        self._max_cache_tokens = num_blocks * page_size
        config = ContinuousBatchingConfig(
            page_size=page_size,
            num_blocks=num_blocks,
            max_batch_tokens=max_batch_tokens,
            allow_block_sharing=True,
            return_logprobs=True,
            use_async_batching=False,
            use_cuda_graph=False,
            auto_switch_to_flash=False,
        )
        # Plain sampling without processors: temperature and the rest are applied by our sampler.
        generation = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=eos_id)
        self._manager = model.init_continuous_batching(generation, config)
        if model.config._attn_implementation == "sdpa" and list(
            group_layers_by_attn_type(model.config.get_text_config())
        ) == ["full_attention"]:
            model.set_attn_implementation(ragged_attention.NAME)
        self._router = self._manager.output_router = _Router()
        self._manager.warmup()  # creates the processor, here rather than in its thread
        self.attention: str = model.config._attn_implementation
        self._processor = self._manager.batch_processor
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
