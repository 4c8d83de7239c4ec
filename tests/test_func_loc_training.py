"""Two steps of training on issues, with commands in the sandbox and questions to users of both kinds.

What the agent does is made of rules, as random weights ask nothing and call nothing; the trainer, its model, the pool,
the sandbox, the trees, the users and the server behind them are real. The issues are real ones where PPP_TEST_DATA is
set, on a repository made here whose files hold the functions that their fixes edited.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_server import ChatServer
from git_history import git

import ppp.train
from ppp.codec import Codec
from ppp.engines.scripted import ScriptedEngine
from ppp.recipe import Recipe
from ppp.types import Task, ToolCall, Turn

RECIPE = Path(__file__).parent.parent / "recipes" / "func_loc_smoke.yaml"
QUESTION = "Which file or class is this about?"
MADE_UP = {
    "instance_id": "acme__widgets-1",
    "repo": "acme/widgets",
    "problem_statement": "frobnication fails in Core.run of src/core.py",
    "vague_statement": "Something fails.",
    "hints_text": "",
    "edited_functions": ["src/core.py:Core.run"],
}
NUM_ISSUES, NUM_COPIES, NUM_STEPS = 3, 2, 2


class Investigator:
    """Looks and finishes: every second session of a task with the right functions, the others after a question."""

    def __init__(self) -> None:
        self.sessions: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)

    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall]:
        gold = task.payload["gold_functions"]
        path = gold[0].partition(":")[0]
        if not turns:
            is_right = next(self.sessions[task.task_id]) % 2
            plan: list[tuple[str, dict[str, Any]]] = [
                ("ask_user", {"query": QUESTION}),
                ("execute_bash", {"command": f"grep -n def {path}; git log --oneline | wc -l; echo x >{path}"}),
                ("str_replace_editor", {"command": "view", "path": path, "view_range": [1, 2]}),
                ("finish", {"answer": "\n".join(gold) if is_right else "nowhere.py:f"}),
            ]
            return json.dumps(plan[is_right:]), ToolCall(*plan[is_right])
        plan = json.loads(turns[0].message["content"])
        return "", ToolCall(*plan[len(turns)])


def scripted_engine(recipe: Recipe, codec: Codec, model_provider: Any) -> ScriptedEngine:
    """Takes the place of `build_engine`."""
    return ScriptedEngine(codec, Investigator())


def read_issues() -> list[dict[str, Any]]:
    if "PPP_TEST_DATA" not in os.environ:
        return [{**MADE_UP, "instance_id": f"acme__widgets-{number}"} for number in range(NUM_ISSUES)]
    lines = (Path(os.environ["PPP_TEST_DATA"]) / "swe" / "funcloc_dev.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["edited_functions"] and row["vague_statement"]][:NUM_ISSUES]


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """The options of a run that name issues and repositories."""
    issues = read_issues()
    for name in {issue["repo"] for issue in issues}:
        folder = tmp_path / "repositories" / name
        for function in (f for issue in issues if issue["repo"] == name for f in issue["edited_functions"]):
            path, _, qualified = function.partition(":")
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with (folder / path).open("a") as file:
                file.write(f"def {qualified.rpartition('.')[2]}(self):\n    raise ValueError\n")
        git(folder, "init", "-q")
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", "first")
    for issue in issues:
        issue["base_commit"] = git(tmp_path / "repositories" / issue["repo"], "rev-parse", "HEAD")
    (tmp_path / "issues.jsonl").write_text("".join(json.dumps(issue) + "\n" for issue in issues))
    return [
        *("--train_tasks.func_loc.path", str(tmp_path / "issues.jsonl")),
        *("--train_tasks.func_loc.repositories", str(tmp_path / "repositories")),
        *("--environment_options.func_loc.trees", str(tmp_path / "trees")),
    ]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """Plays users that know what the issue says and never look anything up."""

    def reply(request: dict[str, Any]) -> str | dict[str, Any]:
        if "response_format" not in request:
            return "OK"
        return {"answer": "I don't know.", "source": "unknown", "follows_preference": True}

    with ChatServer(reply) as server:
        yield server


def train(folder: Path, options: Sequence[str], **changes: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What `metrics.jsonl` and `trajectories.jsonl` hold after a run of the smoke recipe."""
    recipe = {
        **yaml.safe_load(RECIPE.read_text()),
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": 2 * NUM_COPIES,
        "num_generations": NUM_COPIES,
        "max_completion_length": 6000,
        "limits": {
            "max_turns": 6, "max_tokens_per_turn": 2000, "max_observation_tokens": 400, "max_prompt_tokens": 32768,
        },
        "preferences": ["no_preference"],
        "num_precise_per_task": 0,
        "reward_clip": None,
        "max_logprob_difference": 100.0,  # the engine is a script, which has no probabilities
        **changes,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arguments = ["--config", str(folder / "recipe.yaml"), "--output_dir", str(folder / "run"), *options]
    assert ppp.train.main(arguments) == 0
    metrics, trajectories = (
        [json.loads(line) for line in (folder / "run" / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "trajectories.jsonl")
    )
    return [line for line in metrics if "loss" in line], trajectories


@pytest.mark.parametrize("kind", ["scripted", "llm"])
def test_two_steps_on_issues_with_commands_and_questions(
    kind: str, data: list[str], server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppp.train, "build_engine", scripted_engine)
    user: dict[str, Any] = {"kind": kind}
    if kind == "llm":
        user |= {"model": "m", "base_url": server.base_url}
    metrics, trajectories = train(tmp_path, data, user=user)
    assert [line["step"] for line in metrics] == [1, 2]
    assert [line["failure_rate"] for line in metrics] == [0, 0]
    assert all(line["grad_norm"] > 0 for line in metrics), "groups with right and wrong answers teach something"
    assert len(trajectories) == NUM_STEPS * 2 * NUM_COPIES
    assert {record["stop_reason"] for record in trajectories} == {"finished"}
    asking = [record for record in trajectories if record["turns"][0]["call"]["name"] == "ask_user"]
    assert len(asking) == len(trajectories) / 2
    for record in trajectories:
        searched, viewed = (turn["observation"] for turn in record["turns"][-3:-1])
        assert "def " in searched and "\n1\n" in searched and "Read-only file system" in searched
        assert viewed.startswith("/testbed/") and "lines 1 to 2 of" in viewed
    assert {record["score"]["productivity"] for record in trajectories} == {0.0, 1.0}
    num_asked = sum(bool(request.get("response_format")) for request in server.requests)
    assert num_asked >= len(asking) if kind == "llm" else server.num_requests == 0
