"""Users played by a model whose server fails: what is trained on, what is not, and how a run ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import yaml
from asking_train import scripted_engine
from chat_server import ChatServer

import ppp.train
from ppp.trainer import PPPTrainer

NUM_TASKS, NUM_COPIES = 8, 4
FAULTS = {
    "500": 0.04, "503": 0.03, "429": 0.04, "hang": 0.03, "cut": 0.03, "disconnect": 0.03, "invalid_json": 0.03,
    "wrong_schema": 0.02, "empty": 0.02, "error_in_200": 0.02, "trickle": 0.01,
}  # fmt: skip
ANSWER = {"answer": "In the parser.", "source": "task", "follows_preference": True}


def user_reply(request: dict[str, Any]) -> str | dict[str, Any]:
    return ANSWER if "response_format" in request else "OK"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(user_reply) as server:
        yield server


@pytest.fixture(autouse=True)
def asking_policy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    toy.register()
    toy.ToyEnvironment.reset()
    monkeypatch.setattr(ppp.train, "build_engine", scripted_engine)
    yield
    toy.ToyEnvironment.reset()


def write_recipe(folder: Path, server: ChatServer, **changes: Any) -> list[str]:
    """The options of `ppp train`; `user` in `changes` is added to the user's."""
    rows = "".join(json.dumps(row) + "\n" for row in toy.toy_rows(NUM_TASKS))
    (folder / "tasks.jsonl").write_text(rows)
    user = {"kind": "llm", "model": "m", "base_url": server.base_url, "timeout_s": 0.5, "input_price": 1.0}
    recipe = {
        "tiny_model": True,
        "environments": {"toy": 1},
        "train_tasks": {"toy": str(folder / "tasks.jsonl")},
        "preferences": ["no_preference"],
        "num_precise_per_task": 0,
        "max_steps": 3,
        "per_device_train_batch_size": NUM_TASKS * NUM_COPIES,
        "num_generations": NUM_COPIES,
        "max_completion_length": 400,
        "limits": {"max_prompt_tokens": 2000},
        "reward_clip": None,
        "term_weights": {"proactivity": 0, "personalization": 0},
        "max_failure_rate": 0.9,
        "max_logprob_difference": 100.0,  # no model would have said what the scripted engine says
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        **changes,
        "user": {**user, "output_price": 1.0, **changes.get("user", {})},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return ["--config", str(path), "--output_dir", str(folder / "run")]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def advantages_of(rewards: list[float]) -> torch.Tensor:
    values = torch.tensor(rewards)
    return (values - values.mean()) / (values.std() + 1e-4)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Every batch that goes into the loss, in order."""
    found: list[dict[str, torch.Tensor]] = []
    generate = PPPTrainer._generate_and_score_completions

    def spy(self: PPPTrainer, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        found.append(generate(self, inputs))
        return found[-1]

    monkeypatch.setattr(PPPTrainer, "_generate_and_score_completions", spy)
    return found


def test_nothing_is_learned_from_an_outage_when_three_of_ten_calls_fail(
    server: ChatServer, batches: list[dict[str, torch.Tensor]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = write_recipe(tmp_path, server, user={"max_retries": 1})
    server.faults = dict(FAULTS)
    with caplog.at_level("INFO"):
        assert ppp.train.main(options) == 0
    records = read_lines(tmp_path / "run" / "trajectories.jsonl")
    size = NUM_TASKS * NUM_COPIES
    assert len(records) == 3 * size and len(batches) == 3
    failed = [record["stop_reason"] == "error" for record in records]
    assert 0 < sum(failed) < len(failed), "the failures of this test have to outlast some retries, not all"
    for step, batch in enumerate(batches):
        mask = (batch["tool_mask"] * batch["completion_mask"]).sum(1)
        for first in range(0, size, NUM_COPIES):
            rows = range(first, first + NUM_COPIES)
            group = [records[step * size + row] for row in rows]
            assert all((r["score"] is None) == (r["stop_reason"] == "error") for r in group)
            whole = [row for row, record in zip(rows, group, strict=True) if record["score"] is not None]
            assert [row for row in rows if mask[row] > 0] == whole
            gone = [row for row in rows if row not in whole]
            assert batch["advantages"][gone].eq(0).all()
            if len(whole) > 1:  # the baseline is that of those who remain
                expected = advantages_of([records[step * size + row]["score"]["reward"] for row in whole])
                torch.testing.assert_close(batch["advantages"][whole], expected)

    assert set(server.faults_served) == set(FAULTS)
    ledger = json.loads((tmp_path / "run" / "user_ledger.json").read_text())
    assert ledger["sessions"]["left_out"] and sum(ledger["sessions"]["left_out"].values()) == sum(failed)
    assert {"500", "503", "429", "timeout", "cut-off", "invalid JSON", "wrong schema"} <= set(ledger["failures"])
    assert set(ledger["sessions"]["left_out"]) <= set(ledger["failures"])
    assert "what happened" in caplog.text and f"{sum(failed)} of {len(failed)} sessions were left out" in caplog.text
    metrics = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert sum(line["users/calls"] for line in metrics) == ledger["users"]["user"]["calls"]
    assert sum(line["users/failures"] for line in metrics) > sum(failed)
    assert metrics[-1]["users/cost"] == pytest.approx(ledger["users"]["user"]["cost"], abs=1e-5)
    assert all(0 < line["users/latency_p50"] < 1 for line in metrics)


def end_of(capfd: pytest.CaptureFixture[str]) -> str:
    """The sentence at the end."""
    return [line for line in capfd.readouterr().err.strip().splitlines() if line.startswith("ppp train: ")][-1]


@pytest.mark.parametrize("how", ["500", "hang", "down"])
def test_a_server_that_fails_for_good_stops_the_run_with_a_checkpoint_and_one_sentence(
    server: ChatServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = write_recipe(tmp_path, server, user={"max_outage_s": 1.5}, max_steps=100)
    play = ppp.rollout.RolloutPool.run

    def run(self: Any, jobs: Any, step: int, **rest: Any) -> Any:
        if step == 1:
            server.down, server.faults = how == "down", {} if how == "down" else {how: 1.0}
        return play(self, jobs, step, **rest)

    monkeypatch.setattr(ppp.rollout.RolloutPool, "run", run)
    assert ppp.train.main(options) == 1
    sentence = end_of(capfd)
    cause = {"500": "status 500: The server had an error", "hang": "timeout after 0.5 s", "down": "connection ("}[how]
    assert f"m at {server.base_url} has answered nothing for 1.5 s; the last error: {cause}" in sentence
    assert (tmp_path / "run" / "checkpoint-1" / "trainer_state.json").is_file()
    steps = [line["step"] for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert steps == [1], "no step was made of an outage"
    assert {record["step"] for record in read_lines(tmp_path / "run" / "trajectories.jsonl")} == {1}


def with_key(server: ChatServer) -> dict[str, Any]:
    server.requires_key = "right"
    return {}


def changes_of(server: ChatServer, **values: Any) -> dict[str, Any]:
    for name, value in values.items():
        setattr(server, name, value)
    return {}


# what is wrong -> (what is done about server and user, what the sentence says)
BAD_USERS: dict[str, tuple[Callable[[ChatServer], dict[str, Any]], tuple[str, ...]]] = {
    "down": (lambda server: changes_of(server, down=True), ("user", "{url}", "connection")),
    "all calls fail": (lambda server: changes_of(server, faults={"500": 1.0}), ("{url}", "status 500")),
    "wrong key": (with_key, ("{url}", "401", "key")),
    "no key": (lambda server: {"api_key_env": "NO_SUCH_KEY"}, ("{url}", "NO_SUCH_KEY")),
    "unknown model": (lambda server: changes_of(server, models=["big", "small"]), ("{url}", "404", "big, small")),
    "no chat template": (lambda server: changes_of(server, has_chat_template=False), ("{url}", "chat template")),
    "unknown option": (lambda server: {"modle": "x"}, ("user.modle: unknown", "did you mean 'model'")),
    "no budget without a price": (lambda server: {"max_cost": 1.0, "input_price": None}, ("user.max_cost",)),
    "nothing to replay": (lambda server: {"cache": "replay", "cache_path": "none.sqlite"}, ("user.cache_path",)),
}


@pytest.mark.parametrize("name", BAD_USERS)
def test_users_that_cannot_be_reached_are_one_sentence_and_status_2_before_a_model_is_loaded(
    name: str, server: ChatServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ppp.train, "build_model", None)
    change, expected = BAD_USERS[name]
    assert ppp.train.main(write_recipe(tmp_path, server, user=change(server))) == 2
    sentence = end_of(capfd)
    assert all(text.format(url=server.base_url) in sentence for text in expected), sentence
    assert not (tmp_path / "run").exists()


def test_users_of_an_evaluation_that_is_not_held_need_not_be_there(server: ChatServer, tmp_path: Path) -> None:
    nowhere = {"base_url": "http://127.0.0.1:9/v1"}
    options = write_recipe(tmp_path, server, eval_user=nowhere, max_steps=1)
    assert ppp.train.main(options) == 0


def test_an_evaluation_in_training_asks_its_own_users(server: ChatServer, tmp_path: Path) -> None:
    rows = {"eval_tasks": {"toy": str(tmp_path / "tasks.jsonl")}, "eval_preferences": ["no_preference"]}
    options = write_recipe(tmp_path, server, eval_user={"model": "other"}, max_steps=1, eval_strategy="steps", **rows)
    assert ppp.train.main([*options, "--eval_steps", "1"]) == 0
    asked = {name: sum(r["model"] == name for r in server.requests) for name in ("m", "other")}
    assert asked == {"m": 1 + 2 * NUM_TASKS * NUM_COPIES, "other": 1 + 2 * NUM_TASKS}, "and one request each at first"
    ledger = json.loads((tmp_path / "run" / "user_ledger.json").read_text())
    assert {name: users["requests"] for name, users in ledger["users"].items()} == {
        "user": asked["m"],
        "eval_user": asked["other"],
    }
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["eval_users/calls"] for line in lines if "eval_users/calls" in line] == [asked["other"] - 1]


def test_a_used_up_budget_leaves_a_checkpoint_and_counts_on_when_the_run_is_resumed(
    server: ChatServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    num = 2 * NUM_TASKS * NUM_COPIES  # requests of a step; the check takes one more
    options = write_recipe(tmp_path, server, user={"max_calls": num + 20})
    assert ppp.train.main(options) == 1
    assert f"The budget is used up: max_calls {num + 20}" in end_of(capfd)
    assert (tmp_path / "run" / "checkpoint-1" / "trainer_state.json").is_file()
    assert server.num_requests == num + 20

    again = [*options, "--resume_from_checkpoint", "true"]
    assert ppp.train.main(again) == 1, "what was spent is spent"
    assert "The budget is used up" in end_of(capfd) and server.num_requests == num + 20
    assert ppp.train.main([*again, "--user.max_calls", str(4 * num)]) == 0
    ledger = json.loads((tmp_path / "run" / "user_ledger.json").read_text())
    assert ledger["users"]["user"]["requests"] == server.num_requests == num + 20 + 1 + 2 * num


def test_all_processes_stop_when_one_of_them_has_to(server: ChatServer, tmp_path: Path) -> None:
    num = NUM_TASKS * NUM_COPIES  # requests of a step, of the one process that asks, whose share is a half
    options = write_recipe(
        tmp_path, server, user={"max_calls": 3 * num}, per_device_train_batch_size=num // 2, max_steps=50
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment: Mapping[str, str] = {**os.environ, "OMP_NUM_THREADS": "1", "ASKING_RANK": "0"}
    script = str(Path(__file__).parent / "asking_train.py")
    found = subprocess.run([*launcher, script, *options], env=environment, capture_output=True, text=True, timeout=300)
    output = found.stdout + found.stderr
    assert found.returncode != 0
    assert output.count("ppp train: The budget is used up: max_calls") == 2, output
    assert (tmp_path / "run" / "checkpoint-1" / "trainer_state.json").is_file(), output
    ledger = json.loads((tmp_path / "run" / "user_ledger.json").read_text())
    assert len(ledger["processes"]) == 2 and ledger["users"]["user"]["requests"] == 3 * num // 2
