"""A real vLLM server on the CPU, as a process that can be killed and started again at the same address."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

START_S = 300

ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # the routes that take weights
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # two processes bound to the same core would wait for each other
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
FLAGS = (
    "--dtype=float32",
    "--max-model-len=512",
    "--enforce-eager",
    # A prompt that is read in pieces takes a step back in its request's generator, which those of a CPU cannot do: with
    # seeds, the server dies as soon as there are more prompts than one batch holds.
    "--no-enable-chunked-prefill",
    "--max-num-batched-tokens=8192",
    "--logprobs-mode=processed_logprobs",
    "--enable-lora",
    "--max-lora-rank=16",
)


class VLLMProcess:
    """Not started yet; `start` returns when it answers.

    Args:
        model: a folder. Its heads have at least 32 numbers, and its output layer is its own: vLLM's kernels for CPUs
            take no smaller ones, and of tied weights they keep an old copy.
        log: file for what it prints.
        backend: how it takes weights; None: not at all.
    """

    def __init__(
        self,
        model: Path,
        log: Path,
        *,
        backend: str | None = "gloo",
        flags: tuple[str, ...] = FLAGS,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.model, self.log, self.port = model, log, free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        transfer = () if backend is None else ("--weight-transfer-config", json.dumps({"backend": backend}))
        self._command = [
            # `vllm serve` asks for a package of the name vllm, and that for CPUs has another.
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(model), "--served-model-name", "policy"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *flags,
            *transfer,
        ]
        self._environment = {**os.environ, **ENVIRONMENT, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            RuntimeError: it ended instead; with the end of its log.
        """
        self.launch()
        self.wait()

    def launch(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, stdout=output, stderr=output, env=self._environment, start_new_session=True
            )

    def wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                if httpx.get(f"{self.base_url}/health", timeout=5, trust_env=False).is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        raise RuntimeError(f"no server:\n{self.log.read_text(errors='replace')[-5000:]}")

    def kill(self) -> None:
        """Without a chance to say goodbye: the server, its engine and its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
