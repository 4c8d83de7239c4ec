"""What a recipe may say and what it may not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy import register

from ppp.config import PPPConfig
from ppp.preferences import PREFERENCES, SEEN, UNSEEN
from ppp.recipe import Recipe, check_together, field_types, read_recipe, read_yaml
from ppp.recipe_config import RecipeConfig, expand_preferences
from ppp.types import Answer, RecipeError, Task, Turn
from ppp.users import USERS
from ppp.users.base import User
from ppp.users.crowd import session_seed

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
MINIMAL: dict[str, Any] = {
    "tiny_model": True,
    "environments": {"toy": 1},
    "train_tasks": {"toy": "tasks.jsonl"},
    "use_cpu": True,
}


@pytest.fixture(autouse=True)
def toy_environment() -> Iterator[None]:
    register()
    yield


def read(tmp_path: Path, *options: str, **changes: Any) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **changes}))
    return read_recipe(["--config", str(path), *options])


def test_defaults_are_those_of_the_paper(tmp_path: Path) -> None:
    recipe = read(tmp_path)
    args = recipe.args
    assert (args.loss_type, args.epsilon, args.epsilon_high, args.beta) == ("dapo", 0.2, 0.28, 0.0)
    assert (args.num_generations, args.learning_rate, args.temperature) == (8, 1e-6, 1.0)
    assert (args.vllm_importance_sampling_mode, args.vllm_importance_sampling_clip_max) == ("token_truncate", 2.0)
    assert recipe.config.preferences == list(SEEN)
    assert recipe.config.reward_settings().reward_clip == (0.0, 1.0)
    assert recipe.config.num_precise_per_task == 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_ours_is_accepted(path: Path) -> None:
    read_recipe(["--config", str(path)])


def test_any_option_is_overridable_on_the_command_line(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        *(
            "--learning_rate",
            "0.5",
            "--limits.max_turns",
            "3",
            "--limits.max_prompt_tokens=99",
            "--preferences",
            "no_ask",
        ),
        *("--interaction", "false", "--reward_clip", "none", "--train_tasks.toy.split", "test"),
        *("--term_weights", "{proactivity: 0}"),
        learning_rate=1.0,
        limits={"max_turns": 9, "max_tokens_per_turn": 5},
    )
    assert recipe.args.learning_rate == 0.5
    assert recipe.config.limits == {"max_turns": 3, "max_tokens_per_turn": 5, "max_prompt_tokens": 99}
    assert recipe.config.preferences == ["no_ask"]
    assert recipe.config.interaction is False and recipe.config.reward_clip is None
    assert recipe.config.train_tasks == {"toy": {"path": "tasks.jsonl", "split": "test"}}
    assert recipe.config.term_weights == {"proactivity": 0}


def test_the_resolved_recipe_gives_the_same_run(tmp_path: Path) -> None:
    recipe = read(tmp_path, "--learning_rate", "0.5", lr_scheduler_type="cosine", preferences="unseen")
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    again = read_recipe(["--config", str(tmp_path / "again.yaml")])
    assert again.values == recipe.values
    assert again.config == recipe.config


def test_yaml_texts_that_are_numbers_are_numbers(tmp_path: Path) -> None:
    assert read(tmp_path, learning_rate="1e-3").args.learning_rate == 1e-3  # YAML 1.1 reads 1e-3 as a text


def test_without_interaction_only_productivity_counts_unless_weights_say_otherwise(tmp_path: Path) -> None:
    assert read(tmp_path).config.reward_settings().weights == {}
    silent = read(tmp_path, interaction=False, term_weights={"proactivity": 1})
    assert silent.config.reward_settings().weights == {"proactivity": 1, "personalization": 0}


def test_several_trackers_and_an_unquoted_no_are_understood(tmp_path: Path) -> None:
    recipe = read(tmp_path, "--report_to", "tensorboard", "wandb", save_strategy=False)
    assert recipe.args.report_to == ["tensorboard", "wandb"]
    assert recipe.args.save_strategy == "no"


@pytest.mark.parametrize(("value", "expected"), [(True, "true"), ("false", "false"), ("auto", "auto")])
def test_a_choice_that_looks_like_a_boolean_may_be_written_as_one(tmp_path: Path, value: Any, expected: str) -> None:
    assert read(tmp_path, importance_sampling_correction=value).config.importance_sampling_correction == expected


class Moody(User):
    """Has options; `mood` is a text."""

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        if not isinstance(options.get("mood"), str):
            raise RecipeError(f"user.mood: {options.get('mood')!r} is not allowed; a text")

    async def answer(self, question: str, turns: Sequence[Turn]) -> Answer:
        raise NotImplementedError


USER_FORMS: dict[str, tuple[tuple[str, ...], dict[str, Any], tuple[Any, Any]]] = {
    "nothing said": ((), {}, ("scripted", "scripted")),
    "a name": ((), {"eval_user": "scripted"}, ("scripted", "scripted")),
    "a mapping": ((), {"user": {"kind": "moody", "mood": "a"}}, (("moody", "a"), ("moody", "a"))),
    "another one for evaluation": ((), {"eval_user": {"kind": "moody", "mood": "b"}}, ("scripted", ("moody", "b"))),
    "a part of it for evaluation": (
        (),
        {"user": {"kind": "moody", "mood": "a"}, "eval_user": {"mood": "b"}},
        (("moody", "a"), ("moody", "b")),
    ),
    "a name on the command line": (("--user", "scripted"), {"user": {"kind": "moody"}}, ("scripted", "scripted")),
    "a mapping on the command line": (("--user", "{kind: moody, mood: a}"), {}, (("moody", "a"), ("moody", "a"))),
    "an entry on the command line": (
        ("--user.mood", "b"),
        {"user": {"kind": "moody", "mood": "a"}},
        (("moody", "b"), ("moody", "b")),
    ),
    "an entry for a name": (("--user.mood=b", "--user", "moody"), {}, (("moody", "b"), ("moody", "b"))),
    "an entry for evaluation": (
        ("--eval_user.mood", "b"),
        {"user": {"kind": "moody", "mood": "a"}},
        (("moody", "a"), ("moody", "b")),
    ),
}


@pytest.mark.parametrize("name", USER_FORMS)
def test_users_may_be_named_or_described_in_recipe_and_command_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(USERS, "moody", Moody)
    options, changes, expected = USER_FORMS[name]
    recipe = read(tmp_path, *options, **changes)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    for config in (recipe.config, read_recipe(["--config", str(tmp_path / "again.yaml")]).config):
        crowds = config.build_crowds()
        found = [(c.kind, c.options["mood"]) if c.options else c.kind for c in (crowds.train, crowds.evaluation)]
        assert tuple(found) == expected
        assert len(crowds.different) == len(set(expected)), "one service where users are the same"


def test_the_seed_of_a_user_depends_on_run_and_session_alone() -> None:
    task = Task("t", "toy", "p", "q", "no_ask", {})
    other = Task("u", "toy", "p", "q", "no_ask", {})
    assert session_seed(1, task) == session_seed(1, task) == 1541665801
    assert len({session_seed(1, task), session_seed(2, task), session_seed(1, other)}) == 3


BAD_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"num_generation": 4}, r"recipe key: 'num_generation' is unknown.*did you mean 'num_generations'"),
    "float for an integer": ({"max_steps": 2.5}, r"max_steps: 2.5 is not allowed; expected an integer"),
    "boolean for an integer": ({"lora_r": True}, r"lora_r: True"),
    "text for a number": (
        {"max_failure_rate": "often"},
        r"^max_failure_rate: 'often' is not allowed; expected a number",
    ),
    "list for a mapping": ({"limits": [1]}, r"limits: \[1\] is not allowed; expected a mapping"),
    "text for a truth": ({"interaction": "maybe"}, r"^interaction: 'maybe' is not allowed; expected true or false"),
    "text for a mapping": ({"limits": "short"}, r"^limits: 'short' is not allowed; expected a mapping"),
    "numbers for texts": ({"preferences": [1]}, r"preferences: \[1\] is not allowed; expected a list of texts"),
    "text for bounds": ({"reward_clip": "wide"}, r"reward_clip: 'wide' .*a list of numbers or none"),
    "number for a text": ({"call_format": 3}, r"call_format: 3 is not allowed; expected a text"),
    "number for a user": ({"user": 3}, r"^user: 3 is not allowed; expected a mapping or a text"),
    "unknown choice": ({"preference_visibility": "shown"}, r"preference_visibility: 'shown'.*stated, hidden"),
    "unknown loss": ({"loss_type": "dap"}, r"loss_type: 'dap' is unknown.*did you mean 'dapo'"),
    "unknown scheduler": (
        {"lr_scheduler_type": "cosin"},
        r"lr_scheduler_type: 'cosin' is unknown.*did you mean 'cosine'",
    ),
    "unknown strategy": (
        {"save_strategy": "often"},
        r"save_strategy: 'often' is unknown; allowed: best, epoch, no, steps",
    ),
    "unknown tracker": ({"report_to": ["wandb", "paper"]}, r"report_to: 'paper' .*none.*tensorboard"),
    "negative rate": ({"learning_rate": -1.0}, r"learning_rate: -1.0"),
    "negative weight of the KL term": ({"beta": -1.0}, r"^beta: -1.0 .*at least 0"),
    "negative clip range": ({"epsilon": -0.2}, r"^epsilon: -0.2 .*at least 0"),
    "no number for a norm": ({"max_grad_norm": float("nan")}, r"^max_grad_norm: nan .*finite"),
    "negative seed": ({"seed": -1}, r"^seed: -1 .*between 0 and 4294967295"),
    "no step": ({"max_steps": 0}, r"^max_steps: 0 .*at least 1, or -1"),
    "save at no step": ({"save_strategy": "steps", "save_steps": 0}, r"^save_steps: 0 .*above 0"),
    "best of nothing": ({"save_strategy": "best"}, r"^save_strategy: 'best' .*metric_for_best_model"),
    "strategies that do not match": (
        {"load_best_model_at_end": True, "save_strategy": "steps"},
        r"load_best_model_at_end requires the save and eval strategy to match",
    ),
    "negative top_k": ({"top_k": -3}, r"^top_k: -3 .*0 to cut nothing off"),
    "sampling that no engine does": ({"min_p": 0.1}, r"^min_p: 0.1 .*temperature, top_k and top_p alone"),
    "penalty that no engine knows": ({"repetition_penalty": 1.2}, r"^repetition_penalty: 1.2 .*another distribution"),
    "engine's option in another place": (
        {"vllm_gpu_memory_utilization": 0.6},
        r"^vllm_gpu_memory_utilization: 0.6 .*engine_options",
    ),
    "all of an adapter dropped": ({"lora_dropout": 1.0}, r"^lora_dropout: 1.0 .*below 1"),
    "too much of the distribution": ({"top_p": 1.5}, r"top_p: 1.5"),
    "unknown preference": ({"preferences": ["seen", "jso"]}, r"preferences: 'jso' is unknown.*did you mean 'json'"),
    "no preference": ({"preferences": []}, r"preferences: \[\] is not allowed"),
    "unknown environment": ({"environments": {"toi": 1}}, r"environments: 'toi' is unknown.*did you mean 'toy'"),
    "no environment": ({"environments": {}}, r"environments: \{\}"),
    "share of nothing": ({"environments": {"toy": 0}}, r"environments.toy: 0 .*above 0"),
    "endless share": ({"environments": {"toy": float("inf")}}, r"environments.toy: inf .*finite"),
    "options that are no mapping": ({"environment_options": {"toy": 5}}, r"environment_options.toy: 5 .*a mapping"),
    "no tasks": ({"train_tasks": {}}, r"train_tasks: nothing says where the tasks of 'toy'"),
    "tasks of another environment": ({"eval_tasks": {"town": "x"}}, r"eval_tasks: 'town' is unknown; allowed: toy"),
    "unknown user": ({"user": "scriptd"}, r"user: 'scriptd' is unknown.*did you mean 'scripted'"),
    "user without a kind": ({"user": {"model": "x"}}, r"^user.kind: None is not allowed; one of .*scripted"),
    "unknown kind": ({"user": {"kind": "scriptd"}}, r"^user.kind: 'scriptd' is unknown.*did you mean 'scripted'"),
    "option that a user does not have": ({"user": {"kind": "scripted", "mood": 1}}, r"^user.mood: unknown"),
    "evaluation with an unknown user": ({"eval_user": "scriptd"}, r"^eval_user: 'scriptd' is unknown"),
    "evaluation with an unknown option": ({"eval_user": {"mood": 1}}, r"^eval_user.mood: unknown"),
    "options of the user on their own": ({"user_options": {}}, r"recipe key: 'user_options' is unknown"),
    "unknown engine": ({"engine": "vlm"}, r"engine: 'vlm' is unknown"),
    "unknown limit": ({"limits": {"max_turn": 3}}, r"limits: 'max_turn' is unknown.*did you mean 'max_turns'"),
    "bad limit": ({"limits": {"max_turns": 0}}, r"^limits.max_turns: 0"),
    "bad deadline": ({"limits": {"user_timeout_s": "soon"}}, r"^limits.user_timeout_s: 'soon'"),
    "total limit in the wrong place": ({"limits": {"max_completion_tokens": 9}}, r"set max_completion_length"),
    "sandbox slower than its tool may be": (
        {
            "environments": {"func_loc": 1},
            "environment_options": {"func_loc": {"toolset": "shell", "timeout_s": 60}},
            "train_tasks": {"func_loc": "tasks.jsonl"},
            "limits": {"tool_timeout_s": 60},
        },
        r"^environment_options.func_loc.timeout_s: 60 .*must be below limits.tool_timeout_s \(60\)",
    ),
    "unknown term": ({"term_weights": {"speed": 1}}, r"term_weights: 'speed' is unknown"),
    "bad weight": ({"term_weights": {"proactivity": -1}}, r"^term_weights.proactivity: -1 .*>= 0"),
    "unknown key of the warm start": ({"warmstart": {"num_step": 1}}, r"warmstart: 'num_step' .*mean 'num_steps'"),
    "wrong type in the warm start": ({"warmstart": {"num_steps": "x"}}, r"warmstart.num_steps: 'x' .*an integer"),
    "no environment variables": ({"env": "A=1"}, r"^env: 'A=1' .*a mapping"),
    "no weight at all": (
        {"interaction": False, "term_weights": {"productivity": 0}},
        r"^term_weights: .*no weight above 0",
    ),
    "too many attempts": ({"max_resamples": 101}, r"^max_resamples: 101 .*at most 100"),
    "clip without a sum": (
        {"multi_objective_aggregation": "normalize_then_sum", "reward_clip": [0.0, 2.0]},
        r"^reward_clip: \[0.0, 2.0\] .*normalize_then_sum",
    ),
    "scale without a sum": (
        {"multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "batch"},
        r"^scale_rewards: 'batch' .*normalize_then_sum",
    ),
    "ratios that are not used": (
        {"loss_type": "vespo", "importance_sampling_level": "sequence"},
        r"^importance_sampling_level: 'sequence' .*vespo",
    ),
    "correction that vespo does not take": (
        {"loss_type": "vespo", "vllm_importance_sampling_mode": "sequence_mask"},
        r"^vllm_importance_sampling_mode: 'sequence_mask' .*vespo",
    ),
    "reference that is not there": ({"sync_ref_model": True}, r"^sync_ref_model: True .*beta 0"),
    "reference of an adapter": (
        {"sync_ref_model": True, "beta": 0.1, "use_peft": True},
        r"^sync_ref_model: .*use_peft",
    ),
    "adapter of the head": (
        {"use_peft": True, "lora_target_modules": ["lm_head"]},
        r"^lora_target_modules: .*lm_head cannot",
    ),
    "bad clip": ({"reward_clip": [1.0, 0.0]}, r"reward_clip"),
    "group of one": ({"num_generations": 1}, r"num_generations: 1"),
    "group does not divide": ({"num_generations": 3}, r"num_generations: 3 .*must divide the 8 trajectories"),
    "no temperature": ({"temperature": 0.0}, r"temperature: 0.0"),
    "rate above one": ({"max_failure_rate": 1.5}, r"max_failure_rate: 1.5 .*between 0 and 1"),
    "no model": ({"tiny_model": False}, r"model_name_or_path: None"),
    "two models": ({"model_name_or_path": "x"}, r"model_name_or_path: 'x' .*not both"),
    "vllm switched on behind our back": ({"use_vllm": True}, r"use_vllm: True .*engine"),
    "weights of reward functions": ({"reward_weights": [1.0]}, r"reward_weights: .*term_weights"),
    "missing checkpoint": ({"resume_from_checkpoint": "nowhere"}, r"resume_from_checkpoint: 'nowhere'"),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_bad_value_is_refused_with_field_value_and_what_is_allowed(name: str, tmp_path: Path) -> None:
    changes, message = BAD_VALUES[name]
    with pytest.raises(RecipeError, match=message) as caught:
        read(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_processes_wait_for_each_other_longer_than_a_session_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read(tmp_path, limits={"trajectory_timeout_s": 50_000})  # one process waits for nobody
    usual = read(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match=r"ddp_timeout: 14400 .*limits\.trajectory_timeout_s \(50000\)"):
        check_together(recipe.config, recipe.args)
    recipe.args.ddp_timeout = 60_000
    for accepted in (recipe, usual):
        check_together(accepted.config, accepted.args)


BAD_COMMAND_LINES = {
    "unknown option": (["--num_generation", "4"], r"option: '--num_generation' is unknown.*'--num_generations'"),
    "entry of no mapping": (["--seed.x", "4"], r"option: '--seed.x' is unknown"),
    "no mapping": (["--limits", "3"], r"^limits: '3' is not allowed; expected a mapping"),
    "missing value": (["--limits.max_turns"], r"--limits.max_turns: a value is missing"),
    "wrong type": (["--max_steps", "two"], r"^max_steps: 'two' is not allowed; expected an integer"),
    "no option": (["fast"], r"^option: 'fast' .*--name value"),
    "no such recipe": (["--config", "nowhere.yaml"], r"config: 'nowhere.yaml' .*existing YAML file"),
}


@pytest.mark.parametrize("name", BAD_COMMAND_LINES)
def test_a_bad_command_line_is_refused(name: str, tmp_path: Path) -> None:
    options, message = BAD_COMMAND_LINES[name]
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, *options)


def test_a_recipe_of_the_package_is_found_by_name_but_never_stands_in_for_a_missing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site" / "recipes").mkdir(parents=True)
    (tmp_path / "site" / "recipes" / "shipped.yaml").write_text(yaml.safe_dump(MINIMAL))
    monkeypatch.setattr("ppp.recipe.resources.files", lambda package: tmp_path / "site")
    for name in ("shipped.yaml", "recipes/shipped.yaml"):
        assert read_recipe(["--config", name]).config.tiny_model
    with pytest.raises(RecipeError, match=r"config: 'mine/shipped.yaml' .*or one of shipped.yaml"):
        read_recipe(["--config", "mine/shipped.yaml"])


@pytest.mark.parametrize("text", ["a: [", "- a", "a: \x00"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match="config: "):
        read_recipe(["--config", str(tmp_path / "recipe.yaml")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nbeta: 0.0\nseed: 2\n", "'seed' is given twice, in line 1 and in line 3"),
        ("limits:\n  max_turns: 2\n  max_turns: 3\n", "'max_turns' is given twice, in line 2 and in line 3"),
        ("user: [{kind: a, kind: b}]\n", "'kind' is given twice, in line 1 and in line 1"),
        ("seed: 1\n'seed': 1\n", "'seed' is given twice"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_yaml(tmp_path / "recipe.yaml")


def test_keys_that_are_merged_may_be_given_anew(tmp_path: Path) -> None:
    text = "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, x: 3}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    assert read_yaml(tmp_path / "recipe.yaml") == {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 3}}


def test_every_field_of_ours_says_what_it_is() -> None:
    for name in RecipeConfig.__dataclass_fields__:
        assert len(RecipeConfig.__dataclass_fields__[name].metadata["help"]) > 10, name


def test_no_field_of_ours_hides_one_of_grpo() -> None:
    assert not set(RecipeConfig.__dataclass_fields__) & set(PPPConfig.__dataclass_fields__)
    assert not {"env", "config"} & set(field_types()), "reserved by TRL's parser"


@pytest.mark.parametrize(("group", "names"), [("seen", SEEN), ("unseen", UNSEEN), ("all", PREFERENCES)])
def test_groups_of_preferences_stand_for_their_names(group: str, names: Any) -> None:
    assert expand_preferences("preferences", group) == list(names)
    assert expand_preferences("preferences", ["json", group]).count("json") <= 1
