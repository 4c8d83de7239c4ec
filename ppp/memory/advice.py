"""What to do about a memory plan: what would make it fit, and whether training may start at all.

`check_memory` is what training asks before a model is loaded. The plan itself is in `plan.py`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import asdict, replace

import torch

from ppp.checks import refuse
from ppp.engines.vllm_colocate import ColocateOptions
from ppp.memory.plan import MemoryPlan, plan_memory
from ppp.memory.trace import NotTraceableError, load_config
from ppp.memory.workload import GIB, Hardware, Sharding, Workload
from ppp.recipe import Recipe
from ppp.types import RecipeError

logger = logging.getLogger(__name__)

# Plans are for the longest trajectories that the limits allow, and not exact: only what is far beyond is refused.
REFUSED_ABOVE = 1.2
MORE_GPUS = (2, 4, 8, 16, 32, 64)
SHORTER = (16384, 8192, 4096, 2048)

Setting = tuple[Workload, Hardware]
Change = Callable[[Workload, Hardware], Setting | None]


def advise(plan: MemoryPlan) -> list[str]:
    """What would make it fit: of each kind the least change that is enough on its own, the cheapest kind first; where
    none is, several together."""
    if plan.fits:
        return []
    alone: dict[str, str] = {}
    for kind, words, change in CHANGES:
        changed = change(plan.workload, plan.hardware)
        if changed is not None and kind not in alone:
            found = plan_memory(*changed)
            if found.fits:
                alone[kind] = f"{words}: {_gib(found.total)}"
    return list(alone.values()) or [_together(plan)]


def _together(plan: MemoryPlan) -> str:
    """The changes, one after the other, until it fits; a later one of a kind takes the place of an earlier one."""
    best, made = plan, dict[str, str]()
    for kind, words, change in CHANGES:
        changed = change(best.workload, best.hardware)
        if changed is None:
            continue
        found = plan_memory(*changed)
        if found.total < best.total:
            best = found
            made[kind] = words
        if best.fits:
            return f"{' and '.join(made.values())}: {_gib(best.total)}"
    return f"nothing known here: with {' and '.join(made.values())} it still takes {_gib(best.total)}"


def _to_server(workload: Workload, hardware: Hardware) -> Setting | None:
    if workload.engine == "vllm_server" or not hardware.is_gpu:
        return None
    return replace(workload, engine="vllm_server", engine_options={}), hardware


def _to_zero3(workload: Workload, hardware: Hardware) -> Setting | None:
    if hardware.sharding == "zero3" or hardware.num_gpus == 1 or workload.engine == "transformers":
        return None
    return workload, replace(hardware, sharding="zero3")


def _to_offload(workload: Workload, hardware: Hardware) -> Setting | None:
    workload, hardware = _to_zero3(workload, hardware) or (workload, hardware)
    if hardware.offload or hardware.sharding != "zero3" or not hardware.is_gpu:
        return None
    return workload, replace(hardware, offload=True)


def _over(num_gpus: int) -> Change:
    def change(workload: Workload, hardware: Hardware) -> Setting | None:
        if num_gpus <= hardware.num_gpus or workload.engine == "transformers" or not hardware.is_gpu:
            return None
        return workload, replace(hardware, num_gpus=num_gpus, sharding="zero3")

    return change


def _shortened(num_tokens: int) -> Change:
    def change(workload: Workload, hardware: Hardware) -> Setting | None:
        if num_tokens >= workload.completion_tokens:
            return None
        return replace(workload, completion_tokens=num_tokens), hardware

    return change


def _checkpointing(workload: Workload, hardware: Hardware) -> Setting | None:
    return None if workload.checkpointing else (replace(workload, checkpointing=True), hardware)


def _one_row(workload: Workload, hardware: Hardware) -> Setting | None:
    return None if workload.num_rows == 1 else (replace(workload, num_rows=1), hardware)


def _bfloat16(workload: Workload, hardware: Hardware) -> Setting | None:
    if workload.dtype != torch.float32 or not hardware.is_gpu:
        return None
    return replace(workload, dtype=torch.bfloat16), hardware


def _adapters(workload: Workload, hardware: Hardware) -> Setting | None:
    return None if workload.lora_r is not None else (replace(workload, lora_r=32), hardware)


CHANGES: tuple[tuple[str, str, Change], ...] = (
    ("checkpointing", "gradient_checkpointing: true", _checkpointing),
    ("rows", "per_device_train_batch_size: 1, and more gradient_accumulation_steps", _one_row),
    ("dtype", "dtype: bfloat16", _bfloat16),
    ("engine", "engine: vllm_server, on GPUs of its own", _to_server),
    ("sharding", "ZeRO-3", _to_zero3),
    ("offload", "ZeRO-3 with the optimizer on the host", _to_offload),
    ("adapters", "use_peft: true", _adapters),
    *(("gpus", f"ZeRO-3 over {num} GPUs", _over(num)) for num in MORE_GPUS),
    *(("length", f"max_completion_length: {num}", _shortened(num)) for num in SHORTER),
)
"""Kind, words, change: what can be done about too little memory, the cheapest first."""


def check_memory(recipe: Recipe) -> None:
    """Refuse a recipe that is far from fitting, before its model is loaded; tell of one that may not fit.

    Raises:
        RecipeError: what it needs, what there is, and what would make it fit.
    """
    if not recipe.config.check_memory or recipe.config.tiny_model:
        return
    config = load_config(
        str(recipe.config.model_name_or_path), recipe.args.model_init_kwargs or {}, recipe.args.trust_remote_code
    )
    if "quantization_config" in (recipe.args.model_init_kwargs or {}) or "quantization_config" in config.to_dict():
        return  # weights of other widths than any planned for here
    hardware = this_hardware(recipe)
    try:
        plan = plan_memory(Workload.of(recipe, config, on_gpu=hardware.is_gpu), hardware)
    except NotTraceableError as error:
        logger.warning("%s", error)
        return
    _check_cache(plan)
    needed = plan.at(plan.peak)
    if needed <= hardware.num_bytes:
        return
    place = "the GPU of each process" if hardware.is_gpu else "each process on this host"
    finding = (
        f"the recipe needs {_gib(needed)} and {place} has {_gib(hardware.num_bytes)} "
        f"({hardware.num_gpus} x {hardware.sharding}); what would make it fit: {'; '.join(advise(plan))}"
    )
    if needed > REFUSED_ABOVE * hardware.num_bytes:
        raise RecipeError(
            f"model_name_or_path: {recipe.config.model_name_or_path!r} does not fit: {finding}. To try all the same, "
            "set check_memory false"
        )
    logger.warning("memory may be too small: %s", finding)


def _check_cache(plan: MemoryPlan) -> None:
    """Refuse a vLLM beside the trainer that would not start, for it has no room for one of the longest trajectories."""
    served, workload = plan.served, plan.workload
    if served is None or not plan.hardware.is_gpu or served.trajectories >= 1:
        return
    options = ColocateOptions(**workload.engine_options)
    name = "gpu_memory_utilization" if options.kv_cache_gb is None else "kv_cache_gb"
    finding = (
        f"it leaves {_gib(max(0, served.cache))} for vLLM's cache beside {_gib(served.weights)} of weights, room for "
        f"{served.trajectories:.2g} trajectories of {workload.num_tokens:,} tokens; what would make it fit: a larger "
        "one, or a smaller max_completion_length or limits.max_prompt_tokens"
    )
    if served.trajectories * REFUSED_ABOVE < 1:
        raise refuse(f"engine_options.{name}", asdict(options)[name], finding)
    logger.warning("engine_options.%s may be too small: %s", name, finding)


def this_hardware(recipe: Recipe) -> Hardware:
    """What this process has, and how it was launched."""
    args = recipe.args
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", str(num_processes)))
    sharding: Sharding = "none"
    offload = False
    if args.deepspeed_plugin is not None:
        stage = args.deepspeed_plugin.zero_stage
        sharding = "zero3" if stage == 3 else "zero2" if stage == 2 else "none"
        offload = args.deepspeed_plugin.offload_optimizer_device == "cpu"
    elif os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        sharding = "fsdp2"
    if args.use_cpu or not torch.cuda.is_available():
        share = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // per_node
        return Hardware(num_processes, share, sharding, offload, is_gpu=False, gpus_per_node=per_node)
    total = torch.cuda.get_device_properties(args.device).total_memory
    return Hardware(num_processes, total, sharding, offload, gpus_per_node=per_node)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
