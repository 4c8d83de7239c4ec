"""What a recipe needs of each GPU, and whether it fits, computed from the model's config; nothing is loaded.

    python scripts/memory_plan.py --recipe recipes/qwen3_8b_full.yaml
    python scripts/memory_plan.py --recipe recipes/seed_oss_36b.yaml --model tests/model_configs/seed_oss_36b \\
        --num_gpus 8 16 32 --sharding zero3 zero3_offload --gpu_gb 80 141

Columns are numbers of GPUs and ways to spread the trainer over them: none (every GPU has all of it), zero2, zero3,
zero3_offload (optimizer on the host), fsdp2. Figures are GiB per GPU in the largest step that the recipe's limits
allow: the longest prompt and the longest trajectory, in every row of a micro-batch. What is in parentheses is there at
another moment of the step than the peak and not in the total. "margin" is what the allocator cannot use because it is
in pieces, a tenth of what comes and goes; "trajectories" is how many of full length vLLM's cache holds at once. Below
are the servers that generate, where the recipe has any, and what would make it fit. Any further option goes to the
recipe, as in ppp train (--max_completion_length 16384).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from dataclasses import replace

from ppp.memory.advice import advise
from ppp.memory.engines import plan_server
from ppp.memory.plan import MemoryPlan, plan_memory
from ppp.memory.trace import NotTraceableError, load_config
from ppp.memory.workload import GIB, USABLE, Hardware, Workload
from ppp.recipe import read_recipe
from ppp.types import RecipeError

SHARDINGS = ("none", "zero2", "zero3", "zero3_offload", "fsdp2")
SERVER_GPUS = (1, 2, 4, 8)
KEPT = "activations"
WIDTH = 15


def usable_bytes(gpu_gb: float) -> int:
    """What can be allocated of a GPU that is sold with so many GB."""
    return int(gpu_gb * USABLE * GIB)


def hardware(num_gpus: int, sharding: str, gpu_gb: float) -> Hardware:
    offload = sharding == "zero3_offload"
    return Hardware(num_gpus, usable_bytes(gpu_gb), "zero3" if offload else sharding, offload)  # type: ignore[arg-type]


def shardings_for(num_gpus: int, wanted: Sequence[str] | None) -> list[str]:
    """The columns of a number of GPUs; on a single one there is nothing to spread."""
    if num_gpus == 1:
        return ["none"]
    return list(wanted or ("zero3", "zero3_offload"))


def render(workload: Workload, options: argparse.Namespace) -> Iterator[str]:
    """The tables, line by line."""
    sizes = sorted(options.gpu_gb)
    spread = [(num, sharding) for num in options.num_gpus for sharding in shardings_for(num, options.sharding)]
    # vLLM in the trainer's processes takes a share of the GPU; everything else takes what it takes.
    shown = sizes if workload.engine == "vllm_colocate" else sizes[-1:]
    columns = [(*column, size) for column in spread for size in shown]
    plans = [plan_memory(workload, hardware(*column)) for column in columns]
    counts = plans[0].counts
    adapters = f" and {counts.adapters / 1e6:.1f} M of adapters" if counts.adapters else ""
    batch = f"{workload.num_rows} x {workload.num_tokens} tokens"
    yield f"{counts.total / 1e9:.2f} B weights{adapters}; {batch}; GiB per GPU"
    yield ""
    yield _row("", [f"{num_gpus} GPU{'s' * (num_gpus > 1)}" for num_gpus, *_ in columns])
    if set(options.num_gpus) != {1}:
        yield _row("", ["" if sharding == "none" else sharding for _, sharding, _ in columns])
    if len(shown) > 1:
        yield _row("", [f"of {size:g} GB" for *_, size in columns])
    for name in dict.fromkeys(item.name for plan in plans for item in plan.items):
        yield _row(name, [_cell(plan, name) for plan in plans])
    yield _row("margin", [_gib(plan.margin(plan.peak)) for plan in plans])
    yield _row("total", [_gib(plan.total) for plan in plans])
    if len(shown) > 1:
        yield _row("", [_verdict(plan.fits) for plan in plans])
    else:
        for size in sizes:
            fits = [plan_memory(workload, hardware(*column, size)).fits for column in spread]
            yield _row(f"on {size:g} GB", [_verdict(found) for found in fits])
    if any(plan.served for plan in plans):
        yield _row("trajectories", [f"{plan.served.trajectories:.1f}" if plan.served else "-" for plan in plans])
    yield _row("host, per node", [_gib(plan.host_bytes) for plan in plans])
    other = replace(workload, checkpointing=not workload.checkpointing)
    word = "without" if workload.checkpointing else "with"
    yield ""
    yield f"activations {word} gradient_checkpointing: {_gib(plan_memory(other, plans[-1].hardware).bytes_of(KEPT))}"
    if workload.engine == "vllm_server":
        yield ""
        yield from _server_rows(workload, sizes)
    yield from _advice(workload, spread, sizes)


def _verdict(fits: bool) -> str:
    return "fits" if fits else "does not fit"


def _server_rows(workload: Workload, sizes: Sequence[float]) -> Iterator[str]:
    found = [(gb, plan_server(workload, usable_bytes(gb), num)) for gb in sizes for num in SERVER_GPUS]
    yield "a server of the rollouts, per GPU; trajectories of full length that it holds at once"
    yield _row("", [f"{plan.num_gpus} x {gb:g} GB" for gb, plan in found], 12)
    yield _row("weights", [_gib(plan.weights) for _, plan in found], 12)
    yield _row("cache", [_gib(plan.cache) if plan.cache > 0 else "none" for _, plan in found], 12)
    yield _row("trajectories", [f"{plan.trajectories:.1f}" for _, plan in found], 12)


def _advice(workload: Workload, columns: Sequence[tuple[int, str]], sizes: Sequence[float]) -> Iterator[str]:
    for (num_gpus, sharding), size in itertools.product(columns, sizes):
        plan = plan_memory(workload, hardware(num_gpus, sharding, size))
        if not plan.fits:
            yield ""
            yield f"{num_gpus} x {size:g} GB{'' if sharding == 'none' else ', ' + sharding}: what would make it fit"
            yield from (f"  {advice}" for advice in advise(plan))


def as_json(workload: Workload, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The same for programs: one entry per column and size of GPU."""
    entries = []
    for num_gpus, size in itertools.product(options.num_gpus, options.gpu_gb):
        for sharding in shardings_for(num_gpus, options.sharding):
            plan = plan_memory(workload, hardware(num_gpus, sharding, size))
            entries.append(
                {
                    "num_gpus": num_gpus,
                    "gpu_gb": size,
                    "sharding": sharding,
                    "num_weights": plan.counts.total,
                    "bytes": {item.name: item.num_bytes for item in plan.items},
                    "peak": plan.peak,
                    "total_bytes": plan.total,
                    "host_bytes": plan.host_bytes,
                    "fits": plan.fits,
                    "advice": advise(plan),
                }
            )
    return entries


def _cell(plan: MemoryPlan, name: str) -> str:
    found = [item for item in plan.items if item.name == name]
    if not found:
        return "-"
    text = _gib(sum(item.num_bytes for item in found))
    return text if plan.peak in found[0].moments else f"({text})"


def _row(name: str, cells: Sequence[str], width: int = WIDTH) -> str:
    return (f"{name:<20}" + "".join(f"{cell:>{width}}" for cell in cells)).rstrip()


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--recipe", required=True, help="a recipe: a file, or the name of one that ships with ppp")
    parser.add_argument("--model", help="folder with a config.json, or a name on the Hub; default: the recipe's model")
    parser.add_argument("--num_gpus", type=int, nargs="+", default=[1, 8, 16], help="GPUs that train")
    parser.add_argument("--gpu_gb", type=float, nargs="+", default=[80, 141], help="their memory, as they are sold")
    parser.add_argument("--sharding", nargs="+", choices=SHARDINGS, help="how several GPUs share the trainer")
    parser.add_argument(
        "--format", choices=("table", "comment", "json"), default="table", help="comment: for the head of a recipe"
    )
    options, rest = parser.parse_known_args(argv)
    warnings.simplefilter("ignore", FutureWarning)  # new names of transformers
    try:
        recipe = read_recipe(["--config", options.recipe, *rest], "memory_plan.py")
        name = options.model or str(recipe.config.model_name_or_path)
        config = load_config(name, recipe.args.model_init_kwargs or {}, recipe.args.trust_remote_code)
        workload = Workload.of(recipe, config, on_gpu=True)
        if options.format == "json":
            lines = [json.dumps(as_json(workload, options), indent=2)]
        else:
            lines = list(render(workload, options))
    except (RecipeError, NotTraceableError) as error:
        sys.stderr.write(f"memory_plan.py: {error}\n")
        return 2
    for line in lines:
        print(f"# {line}".rstrip() if options.format == "comment" else line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
