"""vLLM on the trainer's own devices: no server, no port, the weights are copied from one part of memory to another.

Each process (or group of `tensor_parallel_size` processes) has an engine of its own, in a thread of its own. It wakes
once per rollout phase: memory back, weights from the trainer, an empty cache of prefixes; then trajectories enter and
leave freely, and at the end of the phase it sleeps, so that the optimizer step has the whole device. Not for a model
that fills its devices in training: `vllm_server.py` generates on others. `stepping.py` comes next.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from ppp.checks import refuse, refuse_option
from ppp.engines.base import Engine, EngineSettings, Generation, GenerationRequest
from ppp.engines.sampling import request_seed
from ppp.engines.stepping import Stepper, Submission
from ppp.engines.vllm_core import CoreSettings, VLLMCore
from ppp.types import InfrastructureError, RecipeError

logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")
_GIB = 1 << 30
_MAX_TEMPERATURE = 2.0
_OWNER = "engine_options"


@dataclass(frozen=True, slots=True)
class ColocateOptions:
    """The recipe's `engine_options`.

    Attributes:
        gpu_memory_utilization: share of each GPU that vLLM may take for weights and cache; has to be free when it
            starts. In (0, 1].
        kv_cache_gb: size of the cache per process in GiB, instead of what the share leaves; on a CPU 1 if not set.
        tensor_parallel_size: processes that share one copy of the weights; divides their number.
        enable_sleep_mode: whether memory is given back between phases; None: on a GPU.
        max_model_length: tokens of the longest trajectory that vLLM takes; None: of the longest that the limits allow.
        max_num_seqs: trajectories that vLLM advances at once; None: all of them.
        max_batch_tokens: tokens per forward pass; long prompts are read in pieces of this size.
        dtype: of vLLM's weights; None: the trainer's, or bfloat16 where that is single precision on a GPU.
        enforce_eager: without CUDA graphs and compilation; None: on a CPU.
    """

    gpu_memory_utilization: float = 0.3
    kv_cache_gb: float | None = None
    tensor_parallel_size: int = 1
    enable_sleep_mode: bool | None = None
    max_model_length: int | None = None
    max_num_seqs: int | None = None
    max_batch_tokens: int = 4096
    dtype: str | None = None
    enforce_eager: bool | None = None


class VLLMColocateEngine(Engine):
    """Generates with vLLM in the trainer's process.

    Args:
        settings: of the run; `deterministic` admits requests only when every live trajectory waits for one, as the
            embedded engine does, so that all batches are the same in every run.

    Raises:
        RecipeError: an option that is unknown or cannot be used.
    """

    recovers = True

    def __init__(self, settings: EngineSettings) -> None:
        self.check_options(settings.options)
        self.settings = settings
        self.options = ColocateOptions(**settings.options)
        self._core: VLLMCore | None = None
        self._is_broken = False
        self._thread: ThreadPoolExecutor | None = None
        self._stepper: Stepper | None = None
        self._step: int | None = None
        self._live = 0
        self._held: dict[str, Submission] = {}  # deterministic: those that wait for the others, by the pool's id
        self._ids = itertools.count()

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise `RecipeError` for an option that is unknown or has the wrong type or range."""
        for name, value in options.items():
            if name not in _CHECKS:
                raise refuse_option(_OWNER, name, _CHECKS)
            is_allowed, allowed = _CHECKS[name]
            if not is_allowed(value) and not (value is None and _DEFAULTS[name] is None):
                raise refuse(f"{_OWNER}.{name}", value, allowed)

    @classmethod
    def check_run(cls, settings: EngineSettings) -> None:
        """Refuse what cannot work: without vLLM, with these processes, this device, this model."""
        if not has_vllm():
            raise RecipeError("engine: 'vllm_colocate' needs vLLM; install it with pip install 'ppp[vllm]'")
        if settings.temperature > _MAX_TEMPERATURE:
            raise refuse("temperature", settings.temperature, f"vLLM takes at most {_MAX_TEMPERATURE:g}")
        options = ColocateOptions(**settings.options)
        num_processes, size = PartialState().num_processes, options.tensor_parallel_size
        if num_processes % size:
            raise refuse(
                f"{_OWNER}.tensor_parallel_size", size, f"must divide the number of processes, {num_processes}"
            )
        if size > 1 and settings.deterministic:
            raise refuse(
                f"{_OWNER}.tensor_parallel_size",
                size,
                "1 with deterministic: true; processes that share an engine do not wait for each other's trajectories",
            )
        if options.max_model_length is not None and options.max_model_length < settings.max_length:
            raise refuse(
                f"{_OWNER}.max_model_length",
                options.max_model_length,
                f"limits and max_completion_length allow trajectories of {settings.max_length} tokens",
            )
        if options.enable_sleep_mode and not torch.cuda.is_available():
            raise refuse(f"{_OWNER}.enable_sleep_mode", True, "there is no GPU whose memory could be given back")
        config = _read_config(settings.model_name)
        if config is not None:
            _check_model(config, settings, options)

    @classmethod
    def build(cls, settings: EngineSettings) -> VLLMColocateEngine:
        """The engine of a run. vLLM itself starts with the first phase, when the trainer has its memory."""
        return cls(settings)

    @contextmanager
    def phase(self, step: int) -> Iterator[None]:
        """Wake vLLM, give it the weights unless it has those of this step, and let it generate."""
        core = self._woken(self.settings.model_provider(), step)
        assert self._thread is not None
        stepper = self._stepper = Stepper(core, self._thread, core.peers)
        stepper.start()
        try:
            yield
        finally:
            self._stepper = None
            self._held.clear()
            stepper.finish()
            if stepper.error is not None:
                self._is_broken = True  # the next phase starts another one, when all processes are there to do it
            elif core.settings.enable_sleep_mode:
                self._thread.submit(core.sleep).result()
                self._step = None  # the weights are gone

    async def generate(self, request: GenerationRequest) -> Generation:
        """Generate one turn.

        Raises:
            InfrastructureError: no phase is open, the context does not fit, or vLLM failed.
        """
        stepper, core = self._stepper, self._core
        if stepper is None or core is None:
            raise InfrastructureError("engine: generate was called outside of a phase")
        limit = core.settings.max_model_len
        if len(request.prompt_ids) + request.max_tokens > limit:
            raise InfrastructureError(
                f"engine: {len(request.prompt_ids)} tokens of context and {request.max_tokens} new ones exceed the "
                f"{limit} of {_OWNER}.max_model_length; lower the limits of a trajectory"
            )
        request_id = f"{PartialState().process_index}-{next(self._ids)}"
        seed = request_seed(request.noise_key, request.position)
        submission = Submission(request_id, request.prompt_ids, request.max_tokens, seed)
        future = stepper.expect(request_id)
        try:
            if self.settings.deterministic:
                self._held[request.request_id] = submission
                self._release()
            else:
                stepper.submit([submission])
            return await future
        finally:
            self._held.pop(request.request_id, None)
            stepper.abort(request_id)

    def set_live(self, num: int) -> None:
        """Told by the pool how many trajectories are running or about to start."""
        self._live = num
        self._release()

    def close(self) -> None:
        """End vLLM and free its memory."""
        core, self._core, self._step = self._core, None, None
        thread, self._thread = self._thread, None
        if thread is not None:
            with thread:
                if core is not None:
                    thread.submit(core.shutdown).result()

    def _release(self) -> None:
        """Submit the held requests once every live trajectory waits for one, so that no batch depends on timing."""
        if self._stepper is not None and self._held and len(self._held) >= self._live:
            ordered = [submission for _, submission in sorted(self._held.items())]
            self._held.clear()
            self._stepper.submit(ordered)

    def _woken(self, model: PreTrainedModel, step: int) -> VLLMCore:
        """vLLM with the weights of this step, started if there is none; all processes call it together."""
        is_missing = self._core is None or self._is_broken
        if PartialState().num_processes > 1:
            is_missing = any(gather_object([is_missing]))  # they start together, or not at all
        if is_missing:
            self.close()
            began = time.monotonic()
            self._thread = ThreadPoolExecutor(1, "ppp-vllm", _set_device, (PartialState().device,))
            self._core = self._thread.submit(VLLMCore, model.name_or_path, self._core_settings(model)).result()
            self._is_broken = False
            logger.info("vLLM started in %.1f s", time.monotonic() - began)
        core, thread = self._core, self._thread
        assert core is not None and thread is not None
        was_asleep = core.is_asleep
        if was_asleep:
            thread.submit(core.wake, "weights").result()
        if step != self._step or self.settings.deterministic:
            core.load(model)
            self._step = step
        if was_asleep:
            thread.submit(core.wake, "kv_cache").result()
        return core

    def _core_settings(self, model: PreTrainedModel) -> CoreSettings:
        """The recipe's options, and what stands for those that it leaves out."""
        settings, options = self.settings, self.options
        has_gpu = torch.cuda.is_available()
        max_num_seqs = options.max_num_seqs or settings.max_concurrency * options.tensor_parallel_size
        kv_cache_gb = options.kv_cache_gb if has_gpu or options.kv_cache_gb else 1.0
        return CoreSettings(
            eos_id=settings.eos_id,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            dtype=options.dtype or _dtype(model, has_gpu),
            max_model_len=options.max_model_length or settings.max_length,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max(options.max_batch_tokens, max_num_seqs),
            gpu_memory_utilization=options.gpu_memory_utilization,
            kv_cache_memory_bytes=None if kv_cache_gb is None else int(kv_cache_gb * _GIB),
            tensor_parallel_size=options.tensor_parallel_size,
            enforce_eager=not has_gpu if options.enforce_eager is None else options.enforce_eager,
            enable_sleep_mode=has_gpu if options.enable_sleep_mode is None else options.enable_sleep_mode,
            # Processes that share an engine, and runs that have to agree, must not depend on what overlaps with what.
            async_scheduling=options.tensor_parallel_size == 1 and not settings.deterministic,
        )


def _set_device(device: torch.device) -> None:
    """CUDA has a current device per thread."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def has_vllm() -> bool:
    """Whether vLLM is installed; a folder of that name on the path has no origin, and is none."""
    found = find_spec("vllm")
    return found is not None and found.origin is not None


def _dtype(model: PreTrainedModel, has_gpu: bool) -> str:
    name = str(model.dtype).removeprefix("torch.")
    return "bfloat16" if has_gpu and name == "float32" else name


def _read_config(name: str) -> PretrainedConfig | None:
    """The model's configuration; None where there is none yet, or it is an adapter's, or needs code of its own."""
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False).get_text_config()
    except (OSError, ValueError):
        return None


def _check_model(config: PretrainedConfig, settings: EngineSettings, options: ColocateOptions) -> None:
    """Refuse a model that cannot be split as asked, is too short, or whose new weights would not all be used."""
    values = config.to_dict()
    num_heads, size = values.get("num_attention_heads"), options.tensor_parallel_size
    if num_heads is not None and num_heads % size:
        raise refuse(f"{_OWNER}.tensor_parallel_size", size, f"must divide the model's {num_heads} attention heads")
    num_positions, rope = values.get("max_position_embeddings"), values.get("rope_parameters") or {}
    wanted = options.max_model_length or settings.max_length
    if num_positions is not None and rope.get("rope_type", "default") == "default" and wanted > num_positions:
        raise RecipeError(
            f"limits, max_completion_length: trajectories of {wanted} tokens are longer than the {num_positions} "
            f"positions of {settings.model_name}"
        )
    if values.get("tie_word_embeddings") and not torch.cuda.is_available():
        raise refuse(
            "model_name_or_path",
            settings.model_name,
            "on a CPU vLLM goes on with the old output layer of a model whose embeddings are tied to it",
        )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


_COUNT = (_is_count, "give a whole number of at least 1")
_FLAG = (lambda value: type(value) is bool, "give true or false")

_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "gpu_memory_utilization": (lambda value: _is_number(value) and value <= 1, "give a share in (0, 1]"),
    "kv_cache_gb": (_is_number, "give a number of GiB above 0"),
    "tensor_parallel_size": _COUNT,
    "enable_sleep_mode": _FLAG,
    "max_model_length": _COUNT,
    "max_num_seqs": _COUNT,
    "max_batch_tokens": _COUNT,
    "dtype": (lambda value: value in DTYPES, f"give one of {', '.join(DTYPES)}"),
    "enforce_eager": _FLAG,
}
"""Option -> whether a value can be used, and which can; None stands for the default where that is None."""

_DEFAULTS = {each.name: each.default for each in fields(ColocateOptions)}
