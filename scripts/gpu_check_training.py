"""The parts of `gpu_check.py` that train: a step of long trajectories, and runs of `ppp train` with
either vLLM engine."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import torch
import yaml
from datasets import Dataset
from gpu_check_engine import GIB, Scale, Setup, need_gpu, need_vllm
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from ppp.batch import RolloutSettings
from ppp.config import PPPConfig
from ppp.memory.plan import plan_memory
from ppp.memory.workload import Hardware, Workload
from ppp.rewards import RewardSettings
from ppp.rollout import RolloutJob
from ppp.trainer import PPPTrainer
from ppp.types import StopReason, Task, Trajectory, Turn
from ppp.users.crowd import Crowd

NUM_COPIES = 2
NUM_STEPS = 3
START_S = 600.0
PROMPT_TOKENS, OBSERVATION_TOKENS = 2048, 256  # at most, in the town


class CannedPool:
    """Stands in for a RolloutPool: trajectories of random tokens, all as long as can be."""

    def __init__(self, vocabulary: int, num_tokens: int) -> None:
        self.vocabulary, self.num_tokens = vocabulary, num_tokens
        self.crowd = Crowd()
        self.engine = _NoEngine()

    def run(self, jobs: Sequence[RolloutJob], step: int, **_: Any) -> list[Trajectory]:
        return [self._trajectory(job, score) for score, job in enumerate(jobs)]

    def _trajectory(self, job: RolloutJob, score: int) -> Trajectory:
        generator = torch.Generator().manual_seed(job.row * NUM_COPIES + job.copy)
        tokens = torch.randint(self.vocabulary, (self.num_tokens,), generator=generator).tolist()
        prompt, own = tokens[: self.num_tokens // 8], tokens[self.num_tokens // 8 :]
        turn = Turn(own, [-10.0] * len(own), {"role": "assistant", "content": ""})
        return Trajectory(job.task, prompt, [turn], StopReason.FINISHED, score % NUM_COPIES, "answer")


class _NoEngine:
    recovers = False
    uses_policy = False


class _StepTimes(TrainerCallback):
    """Seconds of each step, without the logging after it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._began)


def long_step(setup: Setup) -> dict[str, Any]:
    """Training steps of trajectories of 32k tokens, one at a time: seconds, and the peak of memory beside the plan."""
    num_tokens = setup.size.long_tokens
    model = AutoModelForCausalLM.from_pretrained(setup.model, dtype=getattr(torch, setup.dtype))
    tokenizer = AutoTokenizer.from_pretrained(setup.model)
    times = _StepTimes()
    args = PPPConfig(
        output_dir=str(Path(setup.folder) / "long_step"),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=NUM_COPIES,
        num_generations=NUM_COPIES,
        max_completion_length=num_tokens,
        max_steps=NUM_STEPS,
        learning_rate=1e-6,
        bf16=setup.is_gpu,
        use_cpu=not setup.is_gpu,
        gradient_checkpointing=True,
        save_strategy="no",
        disable_tqdm=True,
        report_to=[],
    )
    task = Task("t", "town", "vague", "precise", "no_preference", {}).to_json()
    rows = {"prompt": [[{"role": "user", "content": "x"}]] * NUM_STEPS, "task": [task] * NUM_STEPS}
    logging.disable(logging.WARNING)  # invented log-probabilities agree with no model
    trainer = PPPTrainer(
        model,
        args,
        Dataset.from_dict(rows),
        None,
        tokenizer,
        make_pool=lambda policy: CannedPool(model.config.vocab_size, num_tokens),  # type: ignore[arg-type, return-value]
        settings=RolloutSettings(
            RewardSettings(weights={"proactivity": 0, "personalization": 0}),
            correction=False,
            max_logprob_difference=float("inf"),
        ),
        callbacks=[times],
    )
    trainer.train()
    seconds = median(times.seconds[1:])
    found = {
        "num_tokens": num_tokens,
        "num_trajectories": NUM_COPIES,
        "attention": model.config._attn_implementation,
        "first_step_s": times.seconds[0],
        "step_s": seconds,
        "forward_backward_tokens_per_s": NUM_COPIES * num_tokens / seconds,
        "grad_norms": [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line],
    }
    if not all(0 < norm < float("inf") for norm in found["grad_norms"]):
        raise AssertionError(f"gradients are not finite or zero: {found['grad_norms']}")
    planned = _planned_bytes(setup, model.config, num_tokens)
    peak = torch.cuda.max_memory_reserved() if setup.is_gpu else None
    return found | {"planned_gb": planned / GIB, "peak_gb": None if peak is None else peak / GIB}


def _planned_bytes(setup: Setup, config: Any, num_tokens: int) -> int:
    """What `scripts/memory_plan.py` would say of this step."""
    workload = Workload(
        config,
        dtype=getattr(torch, setup.dtype),
        mixed=setup.is_gpu,
        num_rows=1,
        prompt_tokens=num_tokens // 8,
        completion_tokens=num_tokens - num_tokens // 8,
        checkpointing=True,
        attention=config._attn_implementation,
        lora_r=None,
        lora_targets=(),
        has_reference=False,
        engine="vllm_server",  # on a device of its own
        engine_options={},
        max_concurrency=1,
    )
    num_bytes = torch.cuda.mem_get_info()[1] if setup.is_gpu else 64 * GIB
    return plan_memory(workload, Hardware(1, num_bytes, "none", is_gpu=setup.is_gpu)).total


def train_colocate(setup: Setup) -> dict[str, Any]:
    """`ppp train` on the town with vLLM in the trainer's process."""
    need_vllm()
    options = {"kv_cache_gb": setup.size.kv_cache_gb} if setup.size.kv_cache_gb else {"gpu_memory_utilization": 0.4}
    return _train(setup, "train_colocate", {"engine": "vllm_colocate", "engine_options": options})


def train_server(setup: Setup) -> dict[str, Any]:
    """`ppp train` on the town with a vLLM server on another GPU, weights over NCCL; over gloo where there is no GPU."""
    need_vllm()
    if setup.is_gpu:
        need_gpu(setup, 2)
    with serving(setup) as url:
        options = {"base_urls": url, "sync_options": {"backend": "nccl" if setup.is_gpu else "gloo"}}
        return _train(setup, "train_server", {"engine": "vllm_server", "engine_options": options})


def _train(setup: Setup, name: str, engine: dict[str, Any]) -> dict[str, Any]:
    """A run with one engine, on the first GPU; what its metrics say."""
    size, folder = setup.size, Path(setup.folder) / name
    num_groups = max(1, size.num_trajectories // 8)
    recipe = {
        "model_name_or_path": setup.model,
        "dtype": setup.dtype,
        "output_dir": str(folder),
        **engine,
        "environments": {"town": 1},
        "train_tasks": {"town": {"split": "train", "num": 50}},
        "preferences": ["seen"],
        "check_logprobs_every": 1,
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": num_groups,
        "num_generations": 4,
        "max_completion_length": _max_length(size) - PROMPT_TOKENS,
        "limits": {
            "max_turns": size.num_turns,
            "max_tokens_per_turn": size.turn_tokens,
            "max_observation_tokens": OBSERVATION_TOKENS,
            "max_prompt_tokens": PROMPT_TOKENS,
        },
        "max_concurrency": size.num_trajectories,
        "weight_decay": 10.0,  # changes the weights where nothing is earned
        "learning_rate": 1e-4,
        "bf16": setup.is_gpu,
        "use_cpu": not setup.is_gpu,
        "save_strategy": "no",
    }
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": "0"} if setup.is_gpu else {})}
    command = [sys.executable, "-m", "ppp.train", "--config", str(path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise AssertionError((run.stderr.strip() or run.stdout.strip())[-2000:])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    kept = ("step_time", "alignment/logprob_difference_max", "alignment/logprob_difference_mean", "seconds/generate")
    found: dict[str, Any] = {key: [step.get(key) for step in steps] for key in kept}
    seconds = median(step["step_time"] for step in steps[1:])
    return found | {"trajectories_per_min": 60 * 4 * num_groups / seconds}


def _max_length(size: Scale) -> int:
    return PROMPT_TOKENS + size.num_turns * (size.turn_tokens + OBSERVATION_TOKENS)


@contextmanager
def serving(setup: Setup) -> Iterator[str]:
    """A vLLM server on the last GPU (or on the CPU) that takes weights; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    backend = "nccl" if setup.is_gpu else "gloo"
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if setup.is_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = str(torch.cuda.device_count() - 1)
    else:
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    # `vllm serve` asks for a package of the name vllm, and that for CPUs has another.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", setup.model]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", setup.dtype]
    command += ["--max-model-len", str(_max_length(setup.size)), "--logprobs-mode", "processed_logprobs"]
    command += ["--weight-transfer-config", json.dumps({"backend": backend})]
    command += [] if setup.is_gpu else ["--enforce-eager"]
    url = f"http://127.0.0.1:{port}"
    with (Path(setup.folder) / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            _wait_for(url, process, Path(log.name))
            yield url
        finally:
            process.terminate()
            process.wait(60)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    end = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    raise AssertionError(f"the server did not come up: {end}")


TRAINING: dict[str, Callable[[Setup], dict[str, Any]]] = {
    "long_step": long_step,
    "train_colocate": train_colocate,
    "train_server": train_server,
}
