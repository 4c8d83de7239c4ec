"""What is promised about the command line of `ppp evaluate`: a recipe is optional, and what is typed wins over it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ppp.environments.town import town_task_rows
from ppp.evaluate import main
from ppp.evaluation.agents import as_choice, sample_weights
from ppp.evaluation.plan import Counts, plan_sessions
from ppp.evaluation.settings import EvaluationSettings, SavedResults, parse_arguments
from ppp.preferences import PREFERENCES, SEEN, UNSEEN
from ppp.tiny_model import save_tiny_model
from ppp.types import RecipeError

RECIPE = """
model_name_or_path: some/model
environments: {town: 1, func_loc: 1}
environment_options: {func_loc: {toolset: read}}
train_tasks: {town: {num: 8}, func_loc: {path: train.jsonl, repositories: mirrors}}
eval_tasks: {town: {split: test, num: 30}, func_loc: {path: test.jsonl, repositories: mirrors}}
user: scripted
eval_user: {kind: llm, model: judge}
limits: {max_turns: 7}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


def parse(*options: str) -> EvaluationSettings:
    settings = parse_arguments(["--output_dir", "out", *options])
    assert isinstance(settings, EvaluationSettings)
    return settings


# --- without a recipe -------------------------------------------------------------------------------------------------


def test_the_town_needs_an_agent_and_nothing_else() -> None:
    settings = parse("--environment", "town", "--agent", "always_ask")
    assert (settings.agent.kind, settings.agent.name) == ("policy", "always_ask")
    assert settings.recipe.config.eval_tasks == {"town": {"split": "test", "num": 400}}
    assert settings.recipe.config.eval_preferences == list(PREFERENCES)
    assert settings.counts.num_per_preference == 20
    assert settings.baseline is None and settings.prompts == "both"


@pytest.mark.parametrize(
    "tasks",
    [
        ("--tasks", "issues.jsonl", "--tasks.repositories", "mirrors/"),
        ("--tasks", "{path: issues.jsonl, repositories: mirrors/}"),
        ("--tasks.path", "issues.jsonl", "--tasks.repositories=mirrors/"),
    ],
)
def test_tasks_are_a_file_a_mapping_or_its_entries(tasks: tuple[str, ...]) -> None:
    config = parse("--environment", "func_loc", "--agent", "func_loc", *tasks).recipe.config
    assert config.eval_tasks == {"func_loc": {"path": "issues.jsonl", "repositories": "mirrors/"}}
    assert config.build_limits(1).max_turns == 50, "limits fit the environment"


def test_options_of_the_towns_tasks_come_on_top_of_its_own() -> None:
    town = ("--environment", "town", "--agent", "always_ask")
    assert parse(*town, "--tasks.num", "7").recipe.config.eval_tasks == {"town": {"split": "test", "num": 7}}
    assert parse(*town, "--tasks", "towns.jsonl").recipe.config.eval_tasks == {"town": {"path": "towns.jsonl"}}


def test_what_a_recipe_says_can_be_said_without_one() -> None:
    more = ("--interaction", "false", "--limits.max_turns", "3", "--seed", "9", "--preference_visibility", "hidden")
    settings = parse("--environment", "town", "--agent", "never_ask", *more, "--max_concurrency", "5")
    config = settings.recipe.config
    assert (config.interaction, config.preference_visibility, config.max_concurrency) == (False, "hidden", 5)
    assert (config.limits, settings.recipe.args.seed) == ({"max_turns": 3}, 9)


def test_an_endpoint_has_options_and_needs_no_model_of_a_recipe() -> None:
    agent = ("--agent", "endpoint", "--agent.model", "m", "--agent.base_url", "http://h/v1")
    settings = parse("--environment", "town", *agent, "--agent.tool_calls", "text", "--agent.input_price", "0.5")
    assert (settings.agent.kind, settings.agent.name) == ("endpoint", "m")
    assert settings.agent.options == {
        "model": "m", "base_url": "http://h/v1", "tool_calls": "text", "input_price": 0.5
    }  # fmt: skip
    written = parse("--environment", "town", "--agent", "{kind: endpoint, model: m, base_url: 'http://h/v1'}")
    assert written.agent.options == {"model": "m", "base_url": "http://h/v1"}


def test_preferences_are_groups_or_names_with_commas_or_spaces() -> None:
    for texts in (["json", "no_ask"], ["no_ask,json"]):
        found = parse("--environment", "town", "--agent", "never_ask", "--preferences", *texts)
        assert found.recipe.config.eval_preferences == ["no_ask", "json"]
    unseen = parse("--environment", "town", "--agent", "never_ask", "--preferences", "unseen")
    assert unseen.recipe.config.eval_preferences == list(UNSEEN)


# --- with a recipe ----------------------------------------------------------------------------------------------------


def test_a_recipe_is_played_as_it_stands(recipe: str) -> None:
    settings = parse("--config", recipe)
    assert (settings.agent.kind, settings.agent.name) == ("checkpoint", "some/model")
    assert list(settings.recipe.config.eval_tasks) == ["town", "func_loc"]
    assert settings.counts == Counts(240, 100, None)
    assert settings.recipe.config.build_crowds().evaluation.options == {"model": "judge"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--user", "scripted"), {"kind": "scripted"}),
        (("--user", "{kind: llm, model: other}"), {"kind": "llm", "model": "other"}),
        (("--user", "llm", "--user.model", "other"), {"kind": "llm", "model": "other"}),
        (("--user.model", "other"), {"kind": "llm", "model": "other"}),
        (("--user", "scripted", "--eval_user", "{kind: llm, model: x}"), {"kind": "llm", "model": "x"}),
        ((), {"kind": "llm", "model": "judge"}),
    ],
)
def test_users_of_the_command_line_win_over_those_of_the_recipe(
    options: tuple[str, ...], expected: dict[str, Any], recipe: str
) -> None:
    crowd = parse("--config", recipe, *options).recipe.config.build_crowds().evaluation
    assert {"kind": crowd.kind, **crowd.options} == expected


def test_an_environment_is_picked_from_a_recipe_with_its_options_and_tasks(recipe: str) -> None:
    config = parse("--config", recipe, "--environment", "func_loc", "--agent", "func_loc_read").recipe.config
    assert config.eval_tasks == {"func_loc": {"path": "test.jsonl", "repositories": "mirrors"}}
    assert config.environment_options == {"func_loc": {"toolset": "read"}}
    assert config.limits == {"max_turns": 7}
    other = parse("--config", recipe, "--environment", "func_loc", "--agent", "func_loc_read", "--tasks", "b.jsonl")
    assert other.recipe.config.eval_tasks == {"func_loc": {"path": "b.jsonl", "repositories": "mirrors"}}


def test_agent_and_baseline_share_everything_but_the_model(recipe: str, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "trained", seed=0, max_length=64)
    settings = parse("--config", recipe, "--agent", str(tmp_path / "trained"), "--baseline", "base/model")
    assert settings.baseline is not None
    choice, other = settings.baseline
    assert (settings.agent.kind, choice.kind, choice.name) == ("checkpoint", "checkpoint", "base/model")
    ours, theirs = settings.recipe.values, other.values
    different = {name for name in ours if str(ours[name]) != str(theirs[name])}
    assert different == {"model_name_or_path"}


def test_a_checkpoint_is_played_as_it_was_trained_and_its_baseline_too(tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    save_tiny_model(folder, seed=0, max_length=64)
    trained = {"environments": {"town": 1}, "limits": {"max_turns": 3, "max_prompt_tokens": 40}}
    trained |= {
        "max_completion_length": 24,
        "preference_visibility": "hidden",
        "learning_rate": 5.0,
        "call_format": None,
    }
    (folder / "recipe.yaml").write_text(json.dumps(trained), encoding="utf-8")
    town = ("--environment", "town", "--agent", str(folder))
    settings = parse(*town, "--baseline", "never_ask", "--limits.max_turns", "5")
    assert settings.baseline is not None
    for recipe in (settings.recipe, settings.baseline[1]):
        assert recipe.config.limits == {"max_turns": 5, "max_prompt_tokens": 40}
        assert (recipe.args.max_completion_length, recipe.config.preference_visibility) == (24, "hidden")
        assert recipe.args.learning_rate != 5.0
    checkpoint = folder / "checkpoint-7"
    save_tiny_model(checkpoint, seed=0, max_length=64)
    assert parse("--environment", "town", "--agent", str(checkpoint)).recipe.config.limits["max_turns"] == 3
    elsewhere = parse("--environment", "func_loc", "--tasks", "issues.jsonl", "--agent", str(folder))
    assert elsewhere.recipe.config.limits["max_turns"] == 50


def test_a_model_that_cannot_hold_the_longest_session_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny_model(tmp_path / "model", seed=0, max_length=64)
    options = ["--environment", "town", "--agent", str(tmp_path / "model"), "--limits.max_prompt_tokens", "40"]
    assert main([*options, "--max_completion_length", "25", "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "sessions of 65 tokens" in error and "64 positions" in error
    assert not (tmp_path / "out").exists()


# --- which sessions ---------------------------------------------------------------------------------------------------


def test_every_preference_has_the_same_number_of_sessions() -> None:
    rows = list(town_task_rows("test", 30))
    sessions = plan_sessions(rows, list(PREFERENCES), Counts(num_per_preference=30), seed=0)
    vague = [session.task for session in sessions if session.slice != "precise"]
    assert Counter(task.preference for task in vague) == dict.fromkeys(PREFERENCES, 30)
    for name in PREFERENCES:
        assert len({task.task_id for task in vague if task.preference == name}) == 30, "each on every task"
    precise = [session.task for session in sessions if session.slice == "precise"]
    assert Counter(task.preference for task in precise) == dict.fromkeys(set(SEEN) - {"answer_more"}, 30)


@pytest.mark.parametrize(("prompts", "kinds"), [("vague", {False}), ("precise", {True}), ("both", {True, False})])
def test_prompts_are_those_that_were_asked_for(prompts: Any, kinds: set[bool]) -> None:
    rows = list(town_task_rows("test", 8))
    for preferences in (["detail_question"], ["json"], list(PREFERENCES)):
        sessions = plan_sessions(rows, preferences, Counts(num_per_preference=4), seed=0, prompts=prompts)
        assert {session.task.is_precise for session in sessions} == kinds
        assert len({session.number for session in sessions}) == len(sessions)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--agent", "no_such"], "agent: 'no_such' is unknown"),
        (["--agent", "runs/missing/model"], "agent: 'runs/missing/model' is unknown"),
        (["--environment", "town"], "agent: missing"),
        (["--agent", "never_ask"], "environment: None"),
        (["--agent", "never_ask", "--environment", "city"], "environments: 'city' is unknown"),
        (["--agent", "never_ask", "--environment", "func_loc"], "tasks: missing"),
        (["--agent", "never_ask", "--environment", "town", "--prompts", "x"], "prompts: invalid choice"),
        (["--agent", "never_ask", "--environment", "town", "--preferences", "x"], "eval_preferences: 'x' is unknown"),
        (["--agent", "never_ask", "--environment", "town", "--max_tasks", "0"], "max_tasks: 0"),
        (["--agent", "never_ask", "--environment", "town", "--max_tasks", "x"], "max_tasks: invalid int value"),
        (["--agent", "never_ask", "--environment", "town", "--nothing", "1"], "--nothing"),
        (["--agent", "never_ask", "--environment", "town", "--agent.model", "m"], "agent.model: 'm'"),
        (["--agent", "{kind: robot}", "--environment", "town"], "agent.kind: 'robot'"),
        (["--agent", "{kind: policy, name: always}", "--environment", "town"], "agent.name: 'always'"),
        (["--baseline", "nobody", "--agent", "never_ask", "--environment", "town"], "baseline: 'nobody'"),
        (["--sessions_per_preference", "0", "--agent", "never_ask", "--environment", "town"], "sessions_per_pref"),
        (
            ["--sessions_per_preference", "2", "--num_sessions", "2", "--agent", "never_ask", "--environment", "town"],
            "sessions_per_preference: 2",
        ),
        (["--results", "x", "--agent", "never_ask"], "results: 'x' is not allowed; nothing is played"),
        (["--results", "x", "--seed", "1"], "leave out --seed"),
        (["--results", "x", "--prompts", "both"], "leave out --prompts"),
        (["--results", "x", "--preferences", "seen"], "leave out --preferences"),
        (["--results", "x", "--user", "scripted"], "leave out --user"),
        (["--results", "x", "--max_tasks", "3"], "leave out --max_tasks"),
        (["--results", "x", "--num_sessions", "3"], "leave out --num_sessions"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_that_names_the_option(options: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_arguments(["--output_dir", "out", *options])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": "precise", "preferences": ["answer_more"]}, "other than answer_more"),
        ({"prompts": "vague", "is_vague": False}, "no task has a vague prompt"),
        ({"prompts": "vague", "preferences": list(UNSEEN)}, "sessions_per_unseen_preference: 0"),
        ({"counts": Counts(num_sessions=1_000_001)}, "num_sessions: 1000001"),
    ],
)
def test_a_plan_without_sessions_or_with_too_many_says_why(changes: dict[str, Any], message: str) -> None:
    rows = list(town_task_rows("test", 3))
    if not changes.get("is_vague", True):
        rows = [{**row, "vague_prompt": None} for row in rows]
    preferences, counts = changes.get("preferences", ["no_ask"]), changes.get("counts", Counts(1, 0))
    with pytest.raises(RecipeError, match=message):
        plan_sessions(rows, preferences, counts, seed=0, prompts=changes.get("prompts", "both"))


def test_output_dir_is_needed_to_play_and_not_to_sum_up() -> None:
    with pytest.raises(RecipeError, match="output_dir: missing"):
        parse_arguments(["--environment", "town", "--agent", "never_ask"])
    assert parse_arguments(["--results", "x"]) == SavedResults(Path("x"), None)


# --- agents -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("never_ask", ("policy", "never_ask")),
        ("Qwen/Qwen3-0.6B", ("checkpoint", "Qwen/Qwen3-0.6B")),
        ({"model": "m"}, ("endpoint", "m")),
        ({"kind": "policy", "name": "func_loc"}, ("policy", "func_loc")),
        ({"kind": "checkpoint", "name": "a/b"}, ("checkpoint", "a/b")),
    ],
)
def test_an_agent_is_known_by_its_name(choice: Any, expected: tuple[str, str]) -> None:
    found = as_choice("agent", choice)
    assert (found.kind, found.name) == expected


def test_other_weights_give_another_digest(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        save_tiny_model(tmp_path / name, seed=seed, max_length=64)
    one, same, other = (sample_weights(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same != other
    assert sample_weights(tmp_path / "none") is None
    assert json.dumps(one)
