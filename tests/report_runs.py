"""Runs on disk for the tests of the report: real records of sessions that are told by hand, and their folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ppp.evaluation.folder import MANIFEST_FILE, RESULTS_FILE
from ppp.preferences import UNSEEN
from ppp.resume import RECIPE_FILE
from ppp.rewards import METRIC_VERSION, RewardSettings, score_trajectory
from ppp.run_log import METRICS_FILE, TRAJECTORIES_FILE, trajectory_record
from ppp.types import Answer, Effort, StopReason, Task, ToolCall, Trajectory, Turn

Record = dict[str, Any]
LOW, MEDIUM, HIGH = Effort.LOW, Effort.MEDIUM, Effort.HIGH


def session(
    number: int,
    preference: str,
    solved: float | None,
    asked: Sequence[tuple[Effort, bool]] = (),
    *,
    precise: bool = False,
    environment: str = "town",
    step: int = 0,
    mode: str = "eval",
) -> Record:
    """One session about task `number` as a line of results: `asked` are effort and verdict of each answer, one a turn.

    `solved` is its productivity; None makes it a session that failed.
    """
    prompt = "It is broken." if not precise else "Saving the index in cache is broken."
    name = f"task-{number}/precise/{preference}" if precise else f"task-{number}/{preference}"
    task = Task(name, environment, prompt, "Saving the index in cache is broken.", preference, {})
    turns = [
        Turn([1, 2], [-0.5, -0.5], {"role": "assistant", "content": "hm"}, ToolCall("ask_user", {"query": "Which?"}))
        for _ in asked
    ]
    for turn, (effort, follows) in zip(turns, asked, strict=True):
        turn.question, turn.observation = "Which?", "The index."
        turn.answer = Answer("The index.", effort, follows)
    call = ToolCall("finish", {"answer": "f1"})
    turns.append(Turn([3], [-0.1], {"role": "assistant", "content": "done"}, call))
    reason = StopReason.ERROR if solved is None else StopReason.FINISHED
    played = Trajectory(task, [0], turns, reason, solved, "f1", error="gone" if solved is None else None)
    score = score_trajectory(played, RewardSettings())
    return trajectory_record(played, score, step=step, mode=mode, row=number, copy=0)


def write_evaluation(folder: Path, records: Sequence[Record], **manifest: Any) -> Path:
    """An evaluation's folder; `manifest` are fields of its `evaluation.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {
        "version": 1,
        "metric_version": METRIC_VERSION,
        "agent": {"kind": "policy", "name": folder.name},
        "user": {"kind": "scripted"},
        "interaction": True,
        "rewards": {"weights": {}, "personalization": "paper"},
        "sessions": {"total": len(records)},
        **manifest,
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(whole), encoding="utf-8")
    (folder / RESULTS_FILE).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return folder


def training_metrics(num_steps: int) -> list[dict[str, Any]]:
    """Lines as a trainer leaves them; productivity is the step, an evaluation comes every tenth step."""
    lines: list[dict[str, Any]] = []
    for step in range(1, num_steps + 1):
        shares = {"productivity": step, "proactivity": 2 * step % 100, "personalization": 50.0}
        ratios = {"ask_ratio/vague": 80.0, "ask_ratio/precise": 10.0}
        lines.append({"step": step, **shares, **ratios, "effort/low": 1.0, "effort/medium": 0.5, "effort/high": 0.25})
        if step % 10 == 0:
            scores = {f"eval_vague_seen/{name}": value for name, value in shares.items()}
            unseen = {f"eval_preference/{name}/personalization": float(step) for name in UNSEEN}
            lines.append({"step": step, **scores, **unseen})
    return lines


def write_training(
    folder: Path,
    metrics: Sequence[Mapping[str, Any]],
    weights: Mapping[str, float] | None = None,
    records: Sequence[Record] = (),
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in metrics), encoding="utf-8")
    (folder / TRAJECTORIES_FILE).write_text("".join(json.dumps(line) + "\n" for line in records), encoding="utf-8")
    (folder / RECIPE_FILE).write_text(yaml.safe_dump({"term_weights": dict(weights or {})}), encoding="utf-8")
    return folder


def checkpoint(folder: Path) -> dict[str, Any]:
    return {"kind": "checkpoint", "name": str(folder)}


def hand_made() -> list[Record]:
    """Five vague sessions in the town and one elsewhere, two precise ones; `test_report_tables.py` has their scores."""
    return [
        session(1, "concise_question", 1.0, [(LOW, True)]),
        session(2, "concise_question", 0.0),
        session(3, "capital", 0.5, [(MEDIUM, False)]),
        session(4, "no_preference", 1.0),
        session(5, "no_preference", None),
        session(6, "concise_question", 1.0, [(LOW, True)], environment="func_loc"),
        session(7, "capital", 1.0, precise=True),
        session(8, "no_preference", 0.0, [(HIGH, True)], precise=True),
    ]


def write_quickstart(folder: Path) -> Path:
    """Before, after, a policy, a training, and two ablations, as the quickstart leaves them."""
    silent = [session(n, "concise_question", 0.0) for n in range(1, 5)]
    asking = [session(n, "concise_question", 1.0, [(LOW, True)]) for n in range(1, 5)]
    write_training(folder / "train", training_metrics(40))
    write_evaluation(folder / "before", silent, agent=checkpoint(folder / "warmstart"))
    write_evaluation(folder / "after", asking, agent=checkpoint(folder / "train"))
    write_evaluation(folder / "policies" / "always_ask", asking)
    for name, weights in (
        ("without_r_proact", {"proactivity": 0}),
        ("r_prod_alone", {"proactivity": 0, "personalization": 0}),
    ):
        train = write_training(folder / "ablation" / name / "train", training_metrics(20), weights)
        write_evaluation(folder / "ablation" / name / "after", asking, agent=checkpoint(train))
    return folder
