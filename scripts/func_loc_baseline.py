"""F1 of the rule-made agents on real issues, precise and vague, through the same pool and metrics as a trained policy.

    python scripts/func_loc_baseline.py --issues issues.jsonl --repositories DIR [--toolset read] [--limit N] [--ask]

`issues.jsonl` holds issues in the style of SWE-bench with the functions that their fixes edited (see
`ppp/swe/rows.py`); DIR holds a git repository per project, such as `pytest-dev__pytest.git` from
`git clone --bare https://github.com/pytest-dev/pytest`. With the tools of the shell each base commit is checked out
once and kept (`--trees`); the first run takes longer. Nothing is downloaded and no model is needed. Issues without an
edited function are left out. Intervals are 95 % by bootstrap over issues. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import count
from typing import Any

from ppp.baselines.func_loc_read import ReadAgent
from ppp.baselines.func_loc_shell import ShellAgent
from ppp.codec import Codec
from ppp.engines.scripted import ScriptedEngine
from ppp.environments import environment_class
from ppp.environments.func_loc import TOOLSETS
from ppp.rewards import summarize
from ppp.rollout import Limits, RolloutJob, RolloutPool
from ppp.swe.rows import load_func_loc_tasks
from ppp.tiny_model import byte_tokenizer
from ppp.types import RecipeError, Task, Trajectory

# The tokenizer writes a token per byte, so the bounds on tokens are wide and those on turns decide.
LIMITS = Limits(
    max_turns=80,
    trajectory_timeout_s=36_000,  # the first run on a small machine builds many trees
    setup_timeout_s=36_000,
    max_tokens_per_turn=10_000,
    max_observation_tokens=100_000,
    max_prompt_tokens=200_000,
    max_completion_tokens=10_000_000,
)
AGENTS = {"shell": ShellAgent, "read": ReadAgent}
NUM_RESAMPLES = 10_000


def select(tasks: Sequence[Task], limit: int | None) -> list[Task]:
    """The tasks of the first `limit` issues."""
    issues = list(dict.fromkeys(issue_of(task) for task in tasks))
    chosen = set(issues[:limit])
    return [task for task in tasks if issue_of(task) in chosen]


def issue_of(task: Task) -> str:
    return task.task_id.rpartition(":")[0]


def play(tasks: Sequence[Task], ask: bool, max_concurrency: int, environment: dict[str, Any]) -> list[Trajectory]:
    codec = Codec.from_tokenizer(byte_tokenizer())
    environment_options = {"func_loc": environment}
    engine = ScriptedEngine(codec, AGENTS[environment["toolset"]](ask=ask))
    pool = RolloutPool(engine, codec, LIMITS, environment_options=environment_options, max_concurrency=max_concurrency)
    try:
        return pool.run([RolloutJob(task, row, 0) for row, task in zip(count(), tasks)], step=0, progress="sessions")
    finally:
        pool.close()
        engine.close()


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of the means of `NUM_RESAMPLES` draws with replacement; the same in every run."""
    rng = random.Random(0)
    means = sorted(statistics.fmean(rng.choices(scores, k=len(scores))) for _ in range(NUM_RESAMPLES))
    return means[int(0.025 * NUM_RESAMPLES)], means[int(0.975 * NUM_RESAMPLES) - 1]


def table(trajectories: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """One row per project and kind of prompt; precise prompts also over the issues alone that have a vague one."""
    has_vague = {issue_of(t.task) for t in trajectories if not t.task.is_precise}
    kinds = {
        "precise": lambda t: t.task.is_precise,
        "precise, of issues with a vague form": lambda t: t.task.is_precise and issue_of(t.task) in has_vague,
        "vague": lambda t: not t.task.is_precise,
    }
    repositories = sorted({str(t.task.payload["repo"]) for t in trajectories})
    rows: list[dict[str, Any]] = []
    for name in [*repositories, "all"]:
        for kind, belongs in kinds.items():
            group = [t for t in trajectories if belongs(t) and name in (t.task.payload["repo"], "all")]
            scores = [100 * t.productivity for t in group if t.productivity is not None]
            if not scores:
                continue
            found = sum(score > 0 for score in scores)
            turns = statistics.mean(len(t.turns) for t in group)
            metrics = summarize(group)
            row = {
                "issues": name,
                "prompt": kind,
                "f1": metrics["productivity"],
                "interval": interval(scores),
                "turns": turns,
            }
            rows.append({**row, "found": found, "num_sessions": len(scores), "effort": metrics["effort"]})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--issues", required=True, help="JSONL file of issues")
    parser.add_argument("--repositories", required=True, help="folder with a git repository per project")
    parser.add_argument("--limit", type=int, help="only the first LIMIT issues")
    parser.add_argument("--ask", action="store_true", help="let the agent ask the scripted user one question")
    parser.add_argument("--toolset", choices=list(TOOLSETS), default="shell", help="what the agent explores with")
    parser.add_argument("--trees", help="folder for checkouts; default: in the user's cache")
    parser.add_argument("--max-concurrency", type=int, default=64, help="sessions at the same time")
    options = parser.parse_args(argv)
    environment = {"toolset": options.toolset, **({"trees": options.trees} if options.trees else {})}
    try:
        environment_class("func_loc", environment).check_options(environment)
        tasks = select(load_func_loc_tasks(options.issues, options.repositories, skip_empty_gold=True), options.limit)
        for task in tasks:
            environment_class("func_loc", environment).check_task(task)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    started = time.perf_counter()
    trajectories = play(tasks, options.ask, options.max_concurrency, environment)
    wall_s = time.perf_counter() - started
    rows = table(trajectories)
    print("| issues | prompt | F1 (%) | 95 % | a right function named | turns | questions: low, medium, high effort |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        low, high = row["interval"]
        found = f"{row['found']} of {row['num_sessions']}"
        efforts = ", ".join(f"{number:.2f}" for number in row["effort"].values())
        score = f"{row['f1']:.1f} | {low:.1f} - {high:.1f}"
        print(f"| {row['issues']} | {row['prompt']} | {score} | {found} | {row['turns']:.0f} | {efforts} |")
    for trajectory in trajectories:
        if trajectory.failed:
            print(f"failed: {trajectory.task.task_id}: {trajectory.error}", file=sys.stderr)
    everything = {row["prompt"]: row["f1"] for row in rows if row["issues"] == "all"}
    num_failed = sum(trajectory.failed for trajectory in trajectories)
    result = {"f1": everything, "num_sessions": len(trajectories), "num_failed": num_failed, "wall_s": round(wall_s, 1)}
    print(json.dumps({**result, "toolset": options.toolset, "ask": options.ask}))
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
