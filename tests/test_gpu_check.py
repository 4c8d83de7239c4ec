"""scripts/gpu_check.sh as far as a CPU goes: what runs, what is skipped and why, what a failure looks like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check.sh"


def check(folder: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    command = [str(SCRIPT), "--device", "cpu", "--scale", "tiny", "--output_dir", str(folder), *options]
    environment = {**os.environ, "PPP_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    path = folder / "gpu_check.json"
    return run.returncode, json.loads(path.read_text()) if path.is_file() else {}, run.stdout + run.stderr


def test_parts_run_on_a_cpu_or_say_what_they_need(tmp_path: Path) -> None:
    status, report, output = check(tmp_path, "--parts", "flash_attention", "long_step")
    assert status == 0, output
    parts = report["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {"flash_attention": "skipped", "long_step": "ok"}
    assert parts["flash_attention"]["reason"] == "needs 1 GPU, found 0"
    assert parts["long_step"]["forward_backward_tokens_per_s"] > 0
    assert parts["long_step"]["planned_gb"] > 0
    assert report["machine"]["versions"]["torch"]


def test_a_part_that_fails_is_told_with_its_reason_and_in_the_status(tmp_path: Path) -> None:
    status, report, output = check(tmp_path, "--parts", "long_step", "--model", str(tmp_path / "nowhere"))
    assert status == 1, output
    assert report["parts"]["long_step"]["status"] == "failed"
    assert "nowhere" in report["parts"]["long_step"]["reason"]
