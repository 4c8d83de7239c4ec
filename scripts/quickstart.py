"""The quickstart: the commands of the town's recipe one after the other, and their results in one report.

Nothing is done here that the commands do not do: `ppp warmstart`, `ppp evaluate`, `accelerate launch -m ppp.train`, and
`ppp report`. Started by quickstart.sh, which makes the virtual environment.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECIPE = "recipes/town.yaml"
SLICES = ("vague_seen", "vague_unseen", "precise")
POLICIES = ("always_ask", "never_ask", "plausible_name")
# While training, 40 sessions of each unseen preference every 20 steps: the curves of figure 8, for some twenty seconds.
CURVES = ["--eval_preferences", "unseen", "--eval_tasks.town.num", "40"]
CURVES += ["--eval_strategy", "steps", "--eval_steps", "20", "--eval_on_start", "true"]
# Figure 4: one user, who can be asked or cannot; folder -> options.
SETTINGS = {"silent": ["--prompts", "both", "--interaction", "false"], "asking": ["--prompts", "vague"]}
SETTING = ["--preferences", "detail_question", "--num_sessions", "100", "--sessions_per_unseen_preference", "0"]


def run(command: Sequence[str]) -> float:
    """Run a command of ours, shown first; returns its seconds. Ends the quickstart with its status if it fails."""
    sys.stdout.write(f"\n$ {shlex.join(command)}\n")
    sys.stdout.flush()
    environment = {
        "OMP_NUM_THREADS": "1",  # matrices this small lose more to a second thread than they gain
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    started = time.monotonic()
    try:
        status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    except KeyboardInterrupt:
        status = 130
    if status:
        sys.stderr.write(f"quickstart: stopped, the command above ended with status {status}\n")
        sys.exit(status)
    return time.monotonic() - started


def read_scores(folder: Path) -> dict[str, Any]:
    """What an evaluation found, by kind of session."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    found = {name: summary[name] for name in SLICES if name in summary}
    return {name: {key: value for key, value in kind.items() if key != "preferences"} for name, kind in found.items()}


def commands(seed: int, folder: Path, extra: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Everything from random weights to the report: what its seconds are counted as, and the command."""
    recipe = ["--config", RECIPE, "--seed", str(seed), *extra]
    warm, train = str(folder / "warmstart"), str(folder / "train")
    launch = ["accelerate", "launch", "--config_file", "accelerate_configs/cpu.yaml", "-m", "ppp.train"]

    def evaluation(agent: str, name: str, *options: str) -> tuple[str, list[str]]:
        command = ["ppp", "evaluate", *recipe, "--agent", agent, "--output_dir", str(folder / name), *options]
        return "evaluate", command

    return [
        ("warmstart", ["ppp", "warmstart", *recipe, "--output_dir", warm]),
        evaluation(warm, "before"),
        ("train", [*launch, *recipe, *CURVES, "--model_name_or_path", warm, "--output_dir", train]),
        evaluation(train, "after"),
        *(evaluation(name, f"policies/{name}", "--sessions_per_unseen_preference", "30") for name in POLICIES),
        *(
            evaluation(agent, f"figure4/{name}/{setting}", *SETTING, *options)
            for setting, options in SETTINGS.items()
            for name, agent in (("before", warm), ("after", train))
        ),
        ("report", ["ppp", "report", str(folder), "--output", str(folder / "report.html")]),
    ]


def quickstart(seed: int, folder: Path, extra: Sequence[str]) -> dict[str, Any]:
    """Run it all; returns what `summary.json` holds."""
    seconds: dict[str, float] = {}
    for kind, command in commands(seed, folder, extra):
        seconds[kind] = seconds.get(kind, 0.0) + run(command)
    metrics = (folder / "train" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    after = json.loads((folder / "after" / "summary.json").read_text(encoding="utf-8"))
    summary = {
        "seed": seed,
        "wall_s": {name: round(value, 1) for name, value in seconds.items()},
        "num_train_steps": max(json.loads(line)["step"] for line in metrics),
        "metric_version": after["metric_version"],
        "before": read_scores(folder / "before"),
        "after": read_scores(folder / "after"),
        "policies": {name: read_scores(folder / "policies" / name) for name in POLICIES},
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/quickstart.sh",
        description="Warm start, evaluate, train and evaluate again in the town, and report; about eight minutes on "
        "two cores. "
        "Further options go to every command as overrides of the recipe.",
        allow_abbrev=False,
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default 0)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/quickstart"), help="new folder for all results")
    own, extra = parser.parse_known_args()
    folder = own.output_dir.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        parser.error(f"argument --output-dir: {str(own.output_dir)!r} is not empty; name a new folder")
    summary = quickstart(own.seed, folder, extra)
    total, folder = sum(summary["wall_s"].values()), folder.resolve()
    sys.stdout.write(
        f"\nDone in {total / 60:.1f} minutes. The report, to be opened in a browser: {folder}/report.html\n"
    )


if __name__ == "__main__":
    main()
