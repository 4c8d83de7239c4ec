"""Checks of the machine: memory of GPUs or host against the plan of the recipe, and the disk of what it saves."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import psutil
import torch

from ppp.build import max_context
from ppp.doctor.patient import Patient
from ppp.doctor.results import Result, failed, ok, warning
from ppp.doctor.text import one_line
from ppp.memory.advice import advise, this_hardware
from ppp.memory.advice import check_memory as refuse_what_cannot_fit
from ppp.memory.plan import MemoryPlan, plan_memory
from ppp.memory.trace import NotTraceableError, load_config
from ppp.memory.workload import GIB, Workload
from ppp.recipe import Recipe
from ppp.resume import check_recipe, checkpoint_to_resume
from ppp.run_log import trajectory_record
from ppp.tiny_model import byte_tokenizer, tiny_model
from ppp.types import RecipeError
from ppp.whole_models import whole_models

TIGHT = 0.9
LOW_DISK_BYTES = 5 * GIB  # without a recipe


def check_memory(patient: Patient) -> Result:
    """GPUs, or the host where there are none, and whether the largest step of the recipe fits."""
    gpus = describe_gpus()
    host = psutil.virtual_memory()
    found = f"{', '.join(gpus) or 'no GPU'}; host: {host.available / GIB:.1f} of {host.total / GIB:.1f} GiB free"
    details: dict[str, Any] = {"gpus": gpus, "host_bytes": host.total, "host_free_bytes": host.available}
    if not gpus and Path("/dev/nvidiactl").exists():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs"
        remedy = "install a torch that fits the driver (see nvidia-smi), or look at CUDA_VISIBLE_DEVICES"
        return warning(f"there is a GPU that this torch, built for {built}, cannot use; {found}", remedy, details)
    if patient.recipe is None:
        return ok(found, details)
    try:
        plan = patient.plan = plan_for(patient.recipe)
    except RecipeError as error:
        return failed(f"{one_line(str(error), 500)}; {found}", "name a model that is there", details)
    except NotTraceableError as error:
        remedy = "watch the memory of the first steps, or begin with a smaller max_completion_length"
        return warning(f"its memory cannot be planned: {one_line(str(error), 300)}; {found}", remedy, details)
    try:
        refuse_what_cannot_fit(patient.recipe)
    except RecipeError as error:
        problem, _, advice = one_line(str(error), 1200).partition("; what would make it fit: ")
        remedy = f"{advice}. For several GPUs: accelerate launch -m ppp.doctor RECIPE"
        return failed(f"{problem}; {found}", remedy, details)
    return _judge_plan(patient.recipe, plan, found, details)


def _judge_plan(recipe: Recipe, plan: MemoryPlan, found: str, details: dict[str, Any]) -> Result:
    """The plan against what is free right now."""
    hardware, needed = plan.hardware, plan.at(plan.peak)
    free = torch.cuda.mem_get_info()[0] if hardware.is_gpu else psutil.virtual_memory().available // hardware.num_gpus
    details |= {
        "planned_bytes": plan.total,
        "free_bytes": free,
        "items": {item.name: item.num_bytes for item in plan.items},
        "planned_host_bytes": plan.host_bytes,
    }
    largest = sorted(plan.items, key=lambda item: item.num_bytes, reverse=True)[:3]
    made_of = ", ".join(f"{item.name} {item.num_bytes / GIB:.2g}" for item in largest)
    where = "on the GPU" if hardware.is_gpu else "of this host"
    processes = f"{hardware.num_gpus} process{'es' if hardware.num_gpus > 1 else ''}, sharding {hardware.sharding}"
    text = (
        f"the longest sessions take {plan.total / GIB:.2g} GiB in each process of {free / GIB:.1f} that are free "
        f"{where} ({made_of}; {processes}); {found}"
    )
    if needed > free:
        return failed(f"too little is free: {text}", "end what else takes memory there", details)
    if hardware.is_gpu and plan.host_bytes > psutil.virtual_memory().available:
        wanted = f"loading takes {plan.host_bytes / GIB:.1f} GiB of the host"
        return warning(f"{wanted}; {text}", "free memory of the host", details)
    if not hardware.is_gpu and not recipe.args.use_cpu:
        return warning(f"the run would take place on the CPU; {text}", "set use_cpu: true if that is meant", details)
    if not plan.fits or plan.total > free:
        remedy = "; ".join(advise(plan)) or "end what else takes memory there"
        return warning(f"it may not fit; {text}", one_line(remedy, 700), details)
    if hardware.is_gpu and recipe.config.dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
        return warning(f"this GPU has no bfloat16; {text}", "set dtype: float32 and bf16: false", details)
    return ok(text, details)


def plan_for(recipe: Recipe) -> MemoryPlan:
    """The plan of the recipe on this machine.

    Raises:
        RecipeError: the model has no config that can be read.
    """
    config, args = recipe.config, recipe.args
    if config.tiny_model:
        with whole_models():
            described = tiny_model(byte_tokenizer(), args.seed, max_context(recipe)).config
    else:
        described = load_config(str(config.model_name_or_path), args.model_init_kwargs or {}, args.trust_remote_code)
    hardware = this_hardware(recipe)
    return plan_memory(Workload.of(recipe, described, on_gpu=hardware.is_gpu), hardware)


def describe_gpus() -> list[str]:
    """Name and memory of each GPU that torch can use."""
    found = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        found.append(f"{name} ({free / GIB:.0f} of {total / GIB:.0f} GiB free)")
    return found


def check_disk(patient: Patient) -> Result:
    """Whether output_dir can be written, and takes what the run will leave there."""
    recipe = patient.recipe
    if recipe is None:
        free = shutil.disk_usage(Path.cwd()).free
        text = f"{free / GIB:.1f} GiB are free in {Path.cwd()}"
        return ok(text) if free >= LOW_DISK_BYTES else warning(text, "make room for models and checkpoints")
    output_dir = Path(str(recipe.args.output_dir))
    folder = nearest_folder(output_dir)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"ppp doctor")
    except OSError as error:
        remedy = "name another output_dir, or mend the permissions of this one"
        return failed(f"nothing can be written for output_dir {str(output_dir)!r}: {one_line(str(error))}", remedy)
    try:
        checkpoint = checkpoint_to_resume(recipe)
        if checkpoint is not None:
            check_recipe(recipe, checkpoint)
    except RecipeError as error:
        return failed(one_line(str(error), 500), "name another output_dir, or go on with that run")
    free = shutil.disk_usage(folder).free
    if patient.plan is None:
        remedy = "see the check of memory first"
        return warning(f"{free / GIB:.1f} GiB are free in {folder}; sizes are unknown without a plan", remedy)
    sizes = sizes_on_disk(recipe, patient.plan)
    sizes["trajectories"] = trajectory_bytes(patient)
    needed = sum(sizes.values())
    made_of = ", ".join(f"{name} {size / GIB:.2g}" for name, size in sizes.items() if size)
    text = f"the run leaves up to {needed / GIB:.2g} GiB ({made_of}); {free / GIB:.1f} GiB are free in {folder}"
    details = {"needed_bytes": needed, "free_bytes": free, "sizes": sizes}
    if needed > free:
        remedy = "set save_total_limit, save less often (save_steps), set save_only_model, or name another disk"
        return failed(text, remedy, details)
    if needed > TIGHT * free:
        return warning(text, "make room, or set save_total_limit", details)
    return ok(text, details)


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the first one above it that exists."""
    path = path.absolute()
    return next((parent for parent in (path, *path.parents) if parent.exists()), Path("/"))


def sizes_on_disk(recipe: Recipe, plan: MemoryPlan) -> dict[str, int]:
    """Bytes of what a run leaves: checkpoints that are there at the same time, and the model at the end."""
    args, workload, counts = recipe.args, plan.workload, plan.counts
    is_lora = workload.lora_r is not None
    trained, width = (counts.adapters, 4) if is_lora else (counts.total, workload.dtype.itemsize)
    model = trained * width
    # Under ZeRO the optimizer's states are float32, and so is its copy of the weights.
    states = trained * (12 if plan.hardware.sharding.startswith("zero") else 2 * width)
    checkpoint = model if args.save_only_model else model + states
    final = counts.total * workload.dtype.itemsize if is_lora and recipe.config.merge_lora else model
    return {"checkpoints": checkpoint * num_checkpoints(recipe), "model": final}


def num_steps(recipe: Recipe) -> int:
    """Steps of the run; at least 1."""
    return max(recipe.args.max_steps, 1)


def num_checkpoints(recipe: Recipe) -> int:
    """How many are there at the same time; one that is being written counts, and one for an interruption."""
    args = recipe.args
    if args.save_strategy != "steps":
        return 1
    steps = num_steps(recipe)
    every = args.save_steps if args.save_steps >= 1 else math.ceil(args.save_steps * steps)
    number = steps // int(every)
    return min(number, args.save_total_limit or number) + 1


def trajectory_bytes(patient: Patient) -> int:
    """Bytes of `trajectories.jsonl`, if all sessions are like those that were played; 0 where none was."""
    recipe, probe = patient.told, patient.probe
    every = recipe.config.log_trajectories_every
    if probe is None or not probe.trajectories or not every:
        return 0
    records = [
        trajectory_record(trajectory, None, step=0, mode="train", row=0, copy=0) for trajectory in probe.trajectories
    ]
    mean = sum(len(json.dumps(record)) for record in records) / len(records)
    return int(mean * recipe.args.generation_batch_size * num_steps(recipe) / every)
