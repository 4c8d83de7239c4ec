"""vLLM's engine inside the trainer's process: started, given weights, put to sleep, stepped, ended.

The only file that imports vLLM, and only when an engine is started; it touches internals of 0.31, which
`tests/real_vllm/test_colocate.py` pins by what they do. Who steps it is in `stepping.py`, when it wakes and sleeps in
`vllm_colocate.py`.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from torch import Tensor
from torch.distributed import ProcessGroup
from transformers import PreTrainedModel

from ppp.engines.base import Generation
from ppp.engines.stepping import Submission
from ppp.engines.trained_weights import model_weights
from ppp.types import RecipeError

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine

_BUCKET_BYTES = 1 << 30  # of weights that are gathered together


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """How vLLM is started; names and meaning of most are those of vLLM's own arguments."""

    eos_id: int
    temperature: float
    top_k: int
    top_p: float
    dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None
    tensor_parallel_size: int
    enforce_eager: bool
    enable_sleep_mode: bool
    async_scheduling: bool


class VLLMCore:
    """One vLLM engine on this process's device; with several processes all of them make, load and end one together.

    It starts with random weights: what is not loaded from the trainer is noise, which the first comparison of
    log-probabilities finds, instead of the old checkpoint, which it would not.

    Everything but `load` belongs into one thread that is not the trainer's: vLLM gives the thread that it is in a CUDA
    stream of its own, with memory that no other stream reuses.

    Args:
        name: folder or name on the Hub of the model's configuration.

    Raises:
        RecipeError: vLLM does not start with these settings; in its own words.
    """

    def __init__(self, name: str, settings: CoreSettings) -> None:
        self.settings = settings
        # With a process group of the trainer's, vLLM joins in; without one it makes its own, and may end it too.
        self._owns_group = not torch.distributed.is_initialized()
        self._engine = _start(name, settings)
        self._client: Any = self._engine.engine_core
        # Would run when this object is forgotten, and end the trainer's process group as well.
        self._client._finalizer.detach()
        self.is_asleep = False

    @property
    def peers(self) -> ProcessGroup | None:
        """The processes of the tensor-parallel group, as a group of CPUs; None where there is one."""
        if self.settings.tensor_parallel_size == 1:
            return None
        from vllm.distributed import get_tp_group

        return get_tp_group().cpu_group

    def load(self, model: PreTrainedModel) -> None:
        """Copy the policy's weights, adapters merged. All processes call it together, in the trainer's thread."""
        _synchronize()  # what vLLM computes is on a stream of its own
        weights = self._copies(model)
        with torch.no_grad():
            self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            for _ in weights:  # the other processes are waiting for the gathering of what vLLM did not ask for
                pass
        _synchronize()
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM could not empty its cache of prefixes")

    def wake(self, part: str) -> None:
        """Allocate what `sleep` gave back: "weights", whose content is gone, and after they are loaded "kv_cache"."""
        torch.cuda.empty_cache()  # vLLM allocates beside PyTorch's own pool
        self._engine.wake_up([part])
        self.is_asleep = part == "weights"  # until the cache is there as well

    def sleep(self) -> None:
        """Give the memory of weights and cache back."""
        self._engine.sleep(level=2)
        self.is_asleep = True

    def add(self, submission: Submission) -> None:
        from vllm.inputs import tokens_input

        params = self._sampling_params(submission)
        self._engine.add_request(submission.request_id, tokens_input(submission.prompt_ids), params)

    def abort(self, request_ids: Sequence[str]) -> None:
        self._engine.abort_request(list(request_ids))

    def step(self) -> list[tuple[str, Generation]]:
        finished = []
        for output in self._engine.step():
            completion = output.outputs[0]
            token_ids = list(completion.token_ids)
            ended = token_ids[-1:] == [self.settings.eos_id]
            # One entry per token, the sampled one's: no others were asked for.
            logprobs = list(completion.logprobs.logprobs)
            finished.append((output.request_id, Generation(token_ids, logprobs, "stop" if ended else "length")))
        return finished

    def is_busy(self) -> bool:
        """Whether requests run, or the workers have yet to be told that the last ones ended."""
        core = self._client.engine_core
        return self._engine.has_unfinished_requests() or core.scheduler.has_requests() or bool(core.batch_queue)

    def shutdown(self) -> None:
        """Free memory and parallel groups; the trainer's process group stays."""
        core = self._client.engine_core
        if self._owns_group:
            core.shutdown()
        else:
            from vllm.distributed import destroy_model_parallel

            # Its own `shutdown` without the last step, which ends the process group of the trainer.
            core.structured_output_manager.clear_backend()
            core.model_executor.shutdown()
            core.scheduler.shutdown()
            gc.unfreeze()
            destroy_model_parallel()
        del self._engine, self._client, core
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _copies(self, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        """vLLM keeps what it is given until a layer is complete, which may be after the next bucket was gathered."""
        dtype = getattr(torch, self.settings.dtype)
        for bucket in model_weights(model, _BUCKET_BYTES):
            for name, tensor in bucket:
                yield name, tensor.to(dtype, copy=True) if tensor.is_floating_point() else tensor.clone()

    def _sampling_params(self, submission: Submission) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        settings = self.settings
        return SamplingParams(
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            seed=submission.seed,
            max_tokens=submission.max_tokens,
            logprobs=0,
            flat_logprobs=True,
            # The recipe's end of a turn and no other: a model's own configuration may name several.
            stop_token_ids=[settings.eos_id],
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _start(name: str, settings: CoreSettings) -> LLMEngine:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    arguments = EngineArgs(
        model=name,
        skip_tokenizer_init=True,
        load_format="dummy",
        generation_config="vllm",
        logprobs_mode="processed_logprobs",  # those of the distribution that is drawn from
        enable_prefix_caching=True,
        disable_log_stats=True,
        # Processes that the trainer's launcher started are taken as they are.
        distributed_executor_backend="external_launcher" if PartialState().num_processes > 1 else None,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        kv_cache_memory_bytes=settings.kv_cache_memory_bytes,
        tensor_parallel_size=settings.tensor_parallel_size,
        enforce_eager=settings.enforce_eager,
        enable_sleep_mode=settings.enable_sleep_mode,
        async_scheduling=settings.async_scheduling,
    )
    try:
        return LLMEngine.from_engine_args(arguments)
    except (ValueError, torch.OutOfMemoryError) as error:
        raise RecipeError(f"engine_options: vLLM does not start with {settings}: {error}") from error
