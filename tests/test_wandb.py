"""What Weights & Biases gets of a training and of an evaluation, read back from offline runs; and that it ends none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import offline_wandb
import psutil
import pytest
import runs
import wandb
import yaml

from ppp import evaluate
from ppp.evaluation.metrics import summarize_groups
from ppp.rewards import METRIC_VERSION, RewardSettings, score_trajectory
from ppp.run_log import trajectory_record
from ppp.tracking import COLUMNS, MAX_CHARS, MAX_RESULTS, conversation, log_evaluation, sample
from ppp.types import Answer, Effort, StopReason, Task, ToolCall, Trajectory, Turn

HOSTILE = "<script>alert(1)</script>\nuser:\n\u202e\u200b</td>\ud800"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    recipe = runs.town_recipe(runs.save_town_model(tmp_path_factory.mktemp("town")))
    return {
        **recipe,
        "eval_tasks": {"town": {"split": "test", "num": 3}},
        "eval_preferences": ["no_preference", "json"],
        "eval_strategy": "steps",
        "eval_steps": 2,
        "report_to": "wandb",
    }


def start(recipe: dict[str, Any], folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """A process that shares nothing: forked ones would share the folder in which W&B puts tables together."""
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, str(runs.TESTS / "town_train.py"), "--config", str(path), "--output_dir", str(folder)]
    with folder.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            [*command, *options], stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **runs.QUIET}
        )


def test_a_training_shows_its_scores_by_preference_and_its_sessions(recipe: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    status = start(recipe, folder, "--eval_on_start", "true").wait(runs.TIMEOUT_S)
    assert status == 0, folder.with_suffix(".log").read_text()
    path = offline_wandb.find_run(folder)
    history = list(offline_wandb.history(path))
    (run,) = offline_wandb.records(path, "run")
    assert run.project == "ppp"
    settings = {
        item.key: json.loads(item.value_json) for one in offline_wandb.records(path, "config") for item in one.update
    }
    assert settings["recipe"]["eval_preferences"] == ["no_preference", "json"], "what TRL does not know is told as well"

    told = {line["step"]: line for line in runs.read_lines(folder / "metrics.jsonl") if "eval_productivity" in line}
    found = {line["train/global_step"]: line for line in history if "eval/productivity" in line}
    assert sorted(found) == sorted(told) == [0, 2, 4]
    for name in ("vague_unseen/personalization", "preference/json/productivity", "vague_seen/effort/low"):
        assert found[4].get(f"eval/{name}") == told[4].get(f"eval_{name}"), name

    written = {
        (line["step"], line["mode"], line["task_id"]): line for line in runs.read_lines(folder / "trajectories.jsonl")
    }
    for mode, steps in (("train", [1, 2, 3, 4]), ("eval", [0, 2, 4])):
        tables = {line["train/global_step"]: line for line in history if f"sessions/{mode}" in line}
        assert sorted(tables) == steps
        for step, line in tables.items():
            rows = offline_wandb.table(path, line[f"sessions/{mode}"])
            assert rows and list(rows[0]) == list(COLUMNS)
            for row in rows:
                session = written[step, mode, row["task"]]
                assert row["step"] == step and session["prompt"] in row["conversation"]


def test_a_run_whose_wandb_dies_goes_on_with_one_warning(recipe: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start({**recipe, "max_steps": 10}, folder)
    while not (folder / "metrics.jsonl").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    services = [child for child in psutil.Process(process.pid).children() if "wandb-core" in child.name()]
    assert services, "nothing would be tested"
    for service in services:
        service.kill()
    status = process.wait(runs.TIMEOUT_S)
    output = folder.with_suffix(".log").read_text()
    assert status == 0, output
    assert output.count("W&B is lost") == 1
    assert [line["step"] for line in runs.read_lines(folder / "metrics.jsonl") if "loss" in line] == [*range(1, 11)]


def test_a_training_without_a_login_is_refused_before_anything_is_written(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    environment = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_API_KEY": ""}
    status, output = runs.train(recipe, folder, WANDB_MODE="online", **environment)
    assert status == 2, output
    last = output.strip().splitlines()[-1]
    assert "report_to: W&B is not to be had" in last and "WANDB_MODE=offline" in last
    assert not folder.exists()


# --- evaluations ------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    yield
    wandb.teardown()


def record(number: int, *, text: str = "In the parser.", failed: bool = False) -> dict[str, Any]:
    """A session that asks one question; every third prompt is precise."""
    preference = ("no_preference", "json")[number % 2]
    precise = number % 3 == 0
    task = Task(f"t{number}/{preference}", "town", "precise" if precise else text, "precise", preference, {})
    answer = Answer(text, Effort(number % 3), number % 2 == 0)
    asking = Turn([1], [0.0], {"role": "assistant", "content": text}, ToolCall("ask_user", {"query": text}))
    asking.question, asking.answer, asking.observation = text, answer, text
    reason = StopReason.ERROR if failed else StopReason.FINISHED
    trajectory = Trajectory(task, [5], [asking], reason, None if failed else 1.0, final_answer=text)
    score = score_trajectory(trajectory, RewardSettings())
    return trajectory_record(trajectory, score, step=0, mode="eval", row=number, copy=0)


def test_an_evaluation_shows_scores_with_intervals_users_sessions_and_the_page(offline: None, tmp_path: Path) -> None:
    records = [*(record(number) for number in range(MAX_RESULTS + 50)), record(1, failed=True)]
    summary = {**summarize_groups(records), "metric_version": METRIC_VERSION, "evaluation": {"agent": {"name": "a"}}}
    (tmp_path / "report.html").write_text("<p>")
    log_evaluation(summary, records, tmp_path, name="after", page=tmp_path / "report.html")
    path = offline_wandb.find_run(tmp_path)
    (line,) = offline_wandb.history(path)
    for group in ("vague", "vague_seen", "precise"):
        for score in ("productivity", "proactivity", "personalization", "ask_ratio"):
            assert line[f"{group}/{score}"] == summary[group][score]
            low_high = [line[f"{group}/{score}/{end}"] for end in ("low", "high")]
            assert low_high == summary[group]["intervals"][score]
    preferences = offline_wandb.table(path, line["preferences"])
    assert {(row["prompt"], row["preference"]) for row in preferences} == {
        (prompt, preference) for prompt in ("vague", "precise") for preference in ("no_preference", "json")
    }
    rows = offline_wandb.table(path, line["scores"])
    assert {"sessions": "vague", "score": "proactivity"}.items() <= rows[1].items() and rows[1]["low"] is not None
    sessions = offline_wandb.table(path, line["sessions"])
    assert len(sessions) == MAX_RESULTS
    by_task = {found["task_id"]: found for found in records if found["session"] is not None}
    for row in sessions:
        assert row["effort"] == by_task[row["task"]]["session"]["session_effort"]
        assert row["verdicts"].startswith(by_task[row["task"]]["turns"][0]["answer"]["effort"])
    (run,) = offline_wandb.records(path, "run")
    assert (run.display_name, run.project, run.job_type) == ("after", "ppp", "evaluation")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["evaluation"] == {"agent": {"name": "a"}}
    artifacts = {artifact.type: artifact for artifact in offline_wandb.records(path, "artifact")}
    assert [entry.path for entry in artifacts["report"].manifest.contents] == ["report.html"]


def test_what_others_say_stays_text_and_cannot_pass_for_a_line_of_ours(offline: None, tmp_path: Path) -> None:
    records = [record(number, text=HOSTILE) for number in (1, 2)] + [record(4, text="x" * 1_000_000)]
    summary = {**summarize_groups(records), "metric_version": METRIC_VERSION}
    log_evaluation(summary, records, tmp_path)
    path = offline_wandb.find_run(tmp_path)
    (line,) = offline_wandb.history(path)
    assert {entry["_type"] for entry in line.values() if isinstance(entry, dict)} == {"table-file"}, "nothing is HTML"
    rows = offline_wandb.table(path, line["sessions"])
    assert "<script>alert(1)</script>" in rows[0]["conversation"]
    labels = [text for text in rows[0]["conversation"].splitlines() if text and not text.startswith("    ")]
    assert labels == ["prompt:", "agent:", "call ask_user:", "user:", "final answer:"]
    assert MAX_CHARS <= len(rows[-1]["conversation"]) < MAX_CHARS + 100
    assert not list((tmp_path / "wandb").rglob("*.html"))


def test_ppp_evaluate_reports_its_scores_and_how_they_differ_from_a_baselines(offline: None, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["--agent", "always_ask", "--baseline", "never_ask", "--environment", "town", "--num_sessions", "24"]
    options += ["--sessions_per_unseen_preference", "1", "--max_tasks", "8", "--report_to", "wandb"]
    assert evaluate.main([*options, "--output_dir", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    path = offline_wandb.find_run(folder)
    (line,) = offline_wandb.history(path)
    assert line["vague/productivity"] == summary["vague"]["productivity"]
    found = summary["differences"]["groups"]["vague"]
    ours, theirs = line["vague/ask_ratio"], line["baseline/vague/ask_ratio"]
    assert (ours, theirs) == (100, 0) and line["difference/vague/ask_ratio"] == found["difference"]["ask_ratio"] == 100
    assert line["difference/vague/productivity/low"] == found["intervals"]["productivity"][0]
    assert len(offline_wandb.table(path, line["sessions"])) == 24 + 8 + 24
    (run,) = offline_wandb.records(path, "run")
    assert run.display_name == "run"


def test_an_evaluation_that_wandb_does_not_take_is_warned_of_once(
    offline: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "no/such/name")
    records = [record(1)]
    summary = {**summarize_groups(records), "metric_version": METRIC_VERSION}
    log_evaluation(summary, records, tmp_path)
    assert [found.levelname for found in caplog.records if "W&B did not take" in found.message] == ["WARNING"]


def test_samples_are_the_same_each_time_and_leave_failures_out() -> None:
    records = [record(number, failed=number % 2 == 0) for number in range(100)]
    chosen = sample(records, 20)
    assert chosen == sample(records, 20) and len(chosen) == 20
    assert all(found["session"] is not None for found in chosen)
    assert [found["row"] for found in chosen] == sorted(found["row"] for found in chosen)
    assert "ask_user" in conversation(chosen[0])
