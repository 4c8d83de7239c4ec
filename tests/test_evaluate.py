"""What is promised about an evaluation: the same held-out sessions for every agent, and scores of just those."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer
from town_user_server import town_reply

from ppp import evaluate as evaluation
from ppp.baselines import POLICIES
from ppp.baselines.town import NeverAsk
from ppp.environments.town import town_task_rows
from ppp.evaluation.folder import RESULTS_FILE, SUMMARY_FILE
from ppp.evaluation.plan import SLICES, Counts, load_held_out_rows, plan_sessions
from ppp.preferences import PREFERENCES, SEEN, UNSEEN
from ppp.recipe import read_recipe
from ppp.tiny_model import save_tiny_model
from ppp.types import InfrastructureError, Task, ToolCall, Turn

ALL = tuple(PREFERENCES)
RECIPE = (
    *("--tiny_model", "true"),
    *("--environments", "{town: 1}"),
    *("--train_tasks", "{town: {split: train, num: 8}}"),
    *("--eval_tasks", "{town: {split: test, num: 30}}"),
)


def rows(number: int = 30) -> list[dict[str, Any]]:
    return list(town_task_rows("test", number))


def run(folder: Path, *options: str) -> int:
    return evaluation.main(["--output_dir", str(folder), *RECIPE, *options])


def read_results(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / RESULTS_FILE).read_text(encoding="utf-8").splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda record: record["row"])


def read_summary(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    return summary


def test_slices_hold_the_users_and_prompts_that_they_are_named_for() -> None:
    sessions = plan_sessions(rows(), ALL, Counts(240, 100), seed=0)
    users = {name: Counter(s.task.preference for s in sessions if s.slice == name) for name in SLICES}
    assert users["vague_seen"] == dict.fromkeys(SEEN, 20)
    assert users["vague_unseen"] == dict.fromkeys(UNSEEN, 100)
    assert set(users["precise"]) == set(SEEN) - {"answer_more"}
    assert max(users["precise"].values()) - min(users["precise"].values()) <= 1
    assert all(session.task.is_precise == (session.slice == "precise") for session in sessions)
    assert len({session.number for session in sessions}) == len(sessions)


def test_a_task_meets_another_user_each_time() -> None:
    # 24 tasks and 12 users: going round both without a step aside, task 0 would meet its first user ten times.
    sessions = plan_sessions(rows(24), SEEN, Counts(240, 0), seed=0)
    vague = [session.task for session in sessions if session.slice == "vague_seen"]
    assert len({(task.precise_prompt, task.preference, task.prompt) for task in vague}) == 240


def test_tasks_without_a_vague_prompt_are_played_with_the_precise_one_alone() -> None:
    some = [{**row, "vague_prompt": None} if index % 2 else row for index, row in enumerate(rows())]
    sessions = plan_sessions(some, ALL, Counts(60, 2), seed=0)
    assert Counter(session.slice for session in sessions) == {"vague_seen": 60, "vague_unseen": 16, "precise": 60}
    assert all(session.task.is_precise == (session.slice == "precise") for session in sessions)
    none = plan_sessions([{**row, "vague_prompt": None} for row in rows()], ALL, Counts(60, 2), seed=0)
    assert {session.slice for session in none} == {"precise"}


def test_fewer_unseen_sessions_leave_the_others_and_their_noise_alone() -> None:
    many = plan_sessions(rows(), ALL, Counts(24, 10), seed=0)
    few = plan_sessions(rows(), ALL, Counts(24, 1), seed=0)
    assert [s for s in many if s.slice != "vague_unseen"] == [s for s in few if s.slice != "vague_unseen"]


@pytest.mark.parametrize("agent", [name for name, (environment, _) in POLICIES.items() if environment == "town"])
def test_every_rule_made_policy_plays_the_same_sessions_through_the_pool(agent: str, tmp_path: Path) -> None:
    assert run(tmp_path, "--agent", agent, "--num_sessions", "24", "--sessions_per_unseen_preference", "2") == 0
    planned = plan_sessions(rows(), ALL, Counts(24, 2), seed=42)
    results = read_results(tmp_path)
    assert [(r["row"], r["task_id"], r["preference"]) for r in results] == [
        (s.number, s.task.task_id, s.task.preference) for s in sorted(planned, key=lambda s: s.number)
    ]
    assert {result["stop_reason"] for result in results} == {"finished"}
    assert read_summary(tmp_path)["evaluation"]["agent"] == {"kind": "policy", "name": agent}


def test_scores_tell_policies_apart(tmp_path: Path) -> None:
    for agent in ("always_ask", "never_ask"):
        assert (
            run(tmp_path / agent, "--agent", agent, "--num_sessions", "48", "--sessions_per_unseen_preference", "2")
            == 0
        )
    asks, silent = (read_summary(tmp_path / agent) for agent in ("always_ask", "never_ask"))
    assert asks["vague_seen"]["ask_ratio"] == asks["precise"]["ask_ratio"] == 100
    assert silent["vague_seen"]["ask_ratio"] == 0
    assert silent["vague_seen"]["personalization"] is None, "nobody was asked, so nothing was followed"
    assert silent["precise"]["productivity"] == 100
    assert asks["vague_seen"]["productivity"] > silent["vague_seen"]["productivity"]


def test_summary_holds_every_key_that_is_promised(tmp_path: Path) -> None:
    run(tmp_path, "--agent", "always_ask", "--num_sessions", "24", "--sessions_per_unseen_preference", "1")
    summary = read_summary(tmp_path)
    for name in SLICES:
        assert {"productivity", "proactivity", "personalization", "ask_ratio", "ask_ratio_willing"} <= set(
            summary[name]
        )
        assert set(summary[name]["effort"]) == {"low", "medium", "high"}
        assert (
            sum(scores["num_sessions"] for scores in summary[name]["preferences"].values())
            == summary[name]["num_sessions"]
        )
    assert isinstance(summary["metric_version"], int)


def test_results_show_the_question_the_answer_and_the_verdicts(tmp_path: Path) -> None:
    run(tmp_path, "--agent", "always_ask", "--num_sessions", "24", "--sessions_per_unseen_preference", "0")
    first = read_results(tmp_path)[0]["turns"][0]
    assert first["call"]["name"] == "ask_user"
    assert json.loads(first["call"]["arguments"]) == {"query": first["question"]}
    assert first["answer"]["effort"] in ("low", "medium", "high")
    assert isinstance(first["answer"]["follows_preference"], bool)


@pytest.mark.parametrize("place", ["recipe", "folder"])
def test_a_model_plays_through_its_engine(place: str, tmp_path: Path) -> None:
    limits = ("--limits.max_turns", "2", "--limits.max_tokens_per_turn", "8", "--max_completion_length", "256")
    options: tuple[str, ...] = ("--num_sessions", "2", "--sessions_per_unseen_preference", "0", *limits)
    if place == "folder":
        save_tiny_model(tmp_path / "model", seed=0, max_length=4352)
        options += ("--agent", str(tmp_path / "model"))
    assert run(tmp_path / "out", *options) == 0
    results = read_results(tmp_path / "out")
    assert len(results) == 4
    assert all(1 <= record["num_completion_tokens"] <= 256 for record in results)


def test_limits_on_tokens_are_for_the_model_and_do_not_bind_a_policy_made_of_rules(tmp_path: Path) -> None:
    limits = ("--limits.max_tokens_per_turn", "8", "--limits.max_prompt_tokens", "8", "--max_completion_length", "16")
    run(tmp_path, "--agent", "always_ask", "--num_sessions", "2", "--sessions_per_unseen_preference", "0", *limits)
    assert {record["stop_reason"] for record in read_results(tmp_path)} == {"finished"}


def test_two_evaluations_are_equal(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        run(tmp_path / folder, "--agent", "always_ask", "--num_sessions", "24", "--sessions_per_unseen_preference", "2")
    one, two = (read_results(tmp_path / folder) for folder in ("one", "two"))
    for record in (*one, *two):
        del record["timings"]
    assert one == two


class Unreachable(NeverAsk):
    """Stands for an engine that is lost in the middle of some sessions."""

    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall]:
        if turns and task.preference == "joke":
            raise InfrastructureError("the endpoint is gone")
        return super().act(task, turns)


@pytest.mark.parametrize(("max_failure_rate", "status"), [("0.5", 0), ("0.01", 1)])
def test_failed_sessions_are_left_out_and_too_many_of_them_are_an_error_that_names_the_cause(
    max_failure_rate: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(POLICIES, "unreachable", ("town", f"{__name__}:Unreachable"))
    options = ("--num_sessions", "12", "--sessions_per_unseen_preference", "3", "--max_failure_rate", max_failure_rate)
    assert run(tmp_path, "--agent", "unreachable", *options) == status
    assert any(
        line.startswith("ppp evaluate: ") and "the endpoint is gone" in line
        for line in capsys.readouterr().err.splitlines()
    ) == (status == 1)
    unseen = read_summary(tmp_path)["vague_unseen"]
    assert (unseen["num_failed"], unseen["num_sessions"]) == (3, 21)
    assert unseen["preferences"]["joke"]["productivity"] is None, "an outage is not a score of 0"
    assert sum(record["error"] is not None for record in read_results(tmp_path)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--agent", "no_such_policy"), "agent: 'no_such_policy'"),
        (("--agent", "always_ask", "--num_sessions", "0"), "num_sessions: 0"),
        (("--agent", "always_ask", "--eval_tasks", "{}"), "eval_tasks"),
        (("--agent", "always_ask", "--no_such_option", "1"), "no_such_option"),
    ],
)
def test_the_operators_mistake_is_one_sentence_and_leaves_nothing_behind(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "out", *options) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert not (tmp_path / "out").exists()


def test_results_of_another_evaluation_are_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--num_sessions", "12", "--sessions_per_unseen_preference", "0")
    assert run(tmp_path, "--agent", "never_ask", *options) == 0
    before = (tmp_path / RESULTS_FILE).read_bytes()
    for changed, field in (
        (("--agent", "always_ask", *options), "agent.name is 'never_ask' and not 'always_ask'"),
        (("--agent", "never_ask", *options, "--seed", "7"), "seed is 42 and not 7"),
        (
            ("--agent", "never_ask", *options, "--user", "{kind: llm, model: m}"),
            "user.kind is 'scripted' and not 'llm'",
        ),
        (("--agent", "never_ask", *options, "--limits.max_turns", "9"), "limits.max_turns is 16 and not 9"),
        (("--agent", "never_ask", *options, "--prompts", "vague"), "prompts is 'both' and not 'vague'"),
    ):
        assert run(tmp_path, *changed) == 2
        assert field in capsys.readouterr().err
    assert (tmp_path / RESULTS_FILE).read_bytes() == before
    (tmp_path / "evaluation.json").unlink()
    assert run(tmp_path, "--agent", "never_ask", *options) == 2, "nobody knows what the results are results of"


def test_a_recipe_in_a_file_can_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("tiny_model: true\nenvironments: {town: 1}\ntrain_tasks: {town: {split: train, num: 8}}\n")
    recipe = read_recipe(["--config", str(path), "--eval_tasks", "{town: {split: test, num: 3}}"])
    assert len(load_held_out_rows(recipe)) == 3


# --- users played by a model -----------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(town_reply) as server:
        yield server


def llm(server: ChatServer, field: str = "user", **options: Any) -> list[str]:
    chosen = {"kind": "llm", "model": "m", "base_url": server.base_url, **options}
    return ["--agent", "always_ask", "--num_sessions", "12", f"--{field}", json.dumps(chosen)]


def test_users_played_by_a_model_leave_their_ledger(
    server: ChatServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert run(tmp_path / "run", *llm(server), "--sessions_per_unseen_preference", "1") == 0
    summary = read_summary(tmp_path / "run")
    assert summary["evaluation"]["user"] == {"kind": "llm", "model": "m", "base_url": server.base_url}
    assert summary["vague_seen"]["effort"]["low"] > 0
    ledger = json.loads((tmp_path / "run" / "user_ledger.json").read_text())
    assert ledger["users"]["user"]["requests"] == server.num_requests > 12
    assert "requests" in caplog.text and f"m@127.0.0.1:{server.port}" in caplog.text


def test_an_evaluation_asks_the_users_of_evaluations(server: ChatServer, tmp_path: Path) -> None:
    options = llm(server, "eval_user", model="other")
    assert run(tmp_path / "run", *options, "--user", "scripted", "--sessions_per_unseen_preference", "0") == 0
    assert {request["model"] for request in server.requests} == {"other"}
    assert read_summary(tmp_path / "run")["evaluation"]["user"]["model"] == "other"


def test_the_address_that_the_environment_decides_on_stands_in_the_manifest_and_is_not_changed_halfway(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    options = ("--agent", "always_ask", "--num_sessions", "2", "--sessions_per_unseen_preference", "0")
    options += ("--user", '{"kind": "llm", "model": "m"}')
    assert run(tmp_path / "run", *options) == 0
    manifest = json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))
    assert manifest["user"]["base_url"] == server.base_url
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert run(tmp_path / "run", *options) == 2
    assert "user.base_url" in capsys.readouterr().err


def test_users_that_cannot_be_reached_are_the_operators_mistake(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.down = True
    assert run(tmp_path / "run", *llm(server, "eval_user")) == 2
    assert f"ppp evaluate: eval_user: m at {server.base_url} cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_used_up_budget_ends_an_evaluation_with_the_results_so_far(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", *llm(server, max_calls=10), "--max_concurrency", "2") == 1
    assert "The budget is used up: max_calls 10" in capsys.readouterr().err
    assert 0 < len(read_results(tmp_path / "run")) < 24
    assert json.loads((tmp_path / "run" / "user_ledger.json").read_text())["users"]["user"]["requests"] == 10
