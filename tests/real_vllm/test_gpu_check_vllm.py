"""The parts of scripts/gpu_check.sh that need vLLM, on a CPU; the others are in tests/test_gpu_check.py."""

from __future__ import annotations

from pathlib import Path

import test_gpu_check as others


def test_vllm_parts_run_on_a_cpu(tmp_path: Path) -> None:
    status, report, output = others.check(tmp_path, "--parts", "colocate", "bf16", "train_colocate", "sleep")
    assert status == 0, output
    parts = report["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {
        "colocate": "ok",
        "bf16": "ok",
        "train_colocate": "ok",
        "sleep": "skipped",
    }
    assert parts["colocate"]["second"]["logprob_difference_max"] < 1e-3
    assert parts["colocate"]["second"]["tokens_per_s"] > 0
    assert max(parts["train_colocate"]["alignment/logprob_difference_max"]) < 1e-3
