"""What is promised about the warm start: loss on the policy's own tokens, training tasks only, a model that plays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ppp import demonstrations, evaluate, warmstart
from ppp.baselines.town_tokenizer import town_tokenizer
from ppp.build import build_codec, build_pool
from ppp.codec import Codec
from ppp.data import expand
from ppp.demonstrations import IGNORED
from ppp.engines.scripted import ScriptedEngine
from ppp.environments.town import is_held_out, town_task_rows
from ppp.evaluation.folder import RESULTS_FILE
from ppp.evaluation.folder import SUMMARY_FILE as EVALUATION_SUMMARY
from ppp.preferences import PREFERENCES
from ppp.recipe import Recipe, read_recipe
from ppp.rewards import RewardSettings, score_trajectory
from ppp.rollout import RolloutJob
from ppp.run_log import trajectory_record
from ppp.tiny_model import random_qwen3
from ppp.types import RecipeError, StopReason, Trajectory
from ppp.warmstart_config import WarmstartConfig

OPTIONS = (
    *("--model_name_or_path", "not-made-yet"),
    *("--environments", "{town: 1}"),
    *("--train_tasks", "{town: {split: train, num: 8}}"),
    *("--eval_tasks", "{town: {split: test, num: 8}}"),
    *("--limits", "{max_turns: 10, max_tokens_per_turn: 48, max_observation_tokens: 48, max_prompt_tokens: 128}"),
    *("--max_completion_length", "320"),
    *("--use_cpu", "true", "--bf16", "false", "--gradient_checkpointing", "false"),
)
TINY = (
    *("--warmstart.hidden_size", "8", "--warmstart.num_layers", "1"),
    *("--warmstart.num_demonstrations", "12", "--warmstart.num_steps", "5", "--warmstart.batch_size", "4"),
    *("--warmstart.max_exercise_steps", "5", "--warmstart.exercise_batch_size", "2", "--warmstart.max_attempts", "2"),
)


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmstart, "ROWS_PER_EXERCISE", 10)


def recipe_of(*options: str) -> Recipe:
    return read_recipe([*OPTIONS, *options])


def settings_of(recipe: Recipe) -> WarmstartConfig:
    return WarmstartConfig.of(recipe.config)


def run(folder: Path, *options: str) -> int:
    return warmstart.main(["--output_dir", str(folder), *OPTIONS, *TINY, *options])


def codec_of(recipe: Recipe) -> Codec:
    return build_codec(recipe, town_tokenizer())


def play_demonstrator(recipe: Recipe, codec: Codec, num: int = 60) -> list[Trajectory]:
    policy = demonstrations.build_policy("demonstrator", ["town"])
    tasks = expand(list(town_task_rows("train", num)), ["no_preference", "json", "answer_more"], seed=0)[:num]
    pool = build_pool(recipe, codec, ScriptedEngine(codec, policy))
    try:
        return pool.run([RolloutJob(task, number, 0) for number, task in enumerate(tasks)], step=0)
    finally:
        pool.close()


def write_log(path: Path, trajectories: list[Trajectory]) -> None:
    """As a run writes its `trajectories.jsonl`."""
    records = [
        trajectory_record(
            trajectory, score_trajectory(trajectory, RewardSettings()), step=0, mode="train", row=0, copy=0
        )
        for trajectory in trajectories
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_small_warm_start_writes_a_model_that_evaluate_plays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    assert run(model, "--warmstart.exercise_accuracy", "0") == 0
    told = json.loads(capsys.readouterr().out)
    summary = json.loads((model / warmstart.SUMMARY_FILE).read_text())
    assert told["num_demonstrations"] == summary["num_demonstrations"] == 12
    assert summary["num_steps"] == 5 and summary["settings"]["hidden_size"] == 8
    assert [exercise["name"] for exercise in summary["exercises"]] == ["repeat_pairs", "mixed_sessions"]
    assert {path.name for path in model.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not list(model.glob("checkpoint-*"))
    played = tmp_path / "played"
    few = ("--num_sessions", "4", "--sessions_per_unseen_preference", "0", "--limits.max_turns", "2")
    assert evaluate.main(["--output_dir", str(played), "--agent", str(model), *OPTIONS, *few]) == 0
    assert json.loads((played / EVALUATION_SUMMARY).read_text())["num_failed"] == 0


def test_number_of_steps_need_not_be_one_that_is_logged(tmp_path: Path) -> None:
    assert run(tmp_path / "model", "--warmstart.exercise_accuracy", "0", "--warmstart.num_steps", "2") == 0


def test_same_seed_makes_the_same_weights(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run(tmp_path / name, "--warmstart.exercise_accuracy", "0", "--seed", seed) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_exercise_that_stays_wrong_starts_again_and_gives_up_in_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "model", "--warmstart.exercise_accuracy", "2") == 1
    assert "in 2 attempts" in capsys.readouterr().err
    assert not list((tmp_path).rglob("model.safetensors"))


def test_demonstrations_carry_loss_on_the_policys_own_tokens_alone() -> None:
    recipe = recipe_of()
    codec = codec_of(recipe)
    for trajectory in play_demonstrator(recipe, codec):
        row = demonstrations.encode_trajectory(trajectory)
        own = [token for turn in trajectory.turns for token in turn.completion_ids]
        assert [label for label in row["labels"] if label != IGNORED] == own
        assert all(label in (IGNORED, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))
        assert row["labels"][: len(trajectory.prompt_ids)] == [IGNORED] * len(trajectory.prompt_ids)
        learned = codec.decode(own)
        assert (
            "<|user|>" not in learned
            and "<|tool|>" not in learned
            and learned.count("<|end|>") == len(trajectory.turns)
        )


def test_segments_carry_loss_where_they_say() -> None:
    tokenizer = town_tokenizer()
    row = demonstrations.encode_segments(tokenizer, [("In parser", False), (" f12", True), ("<|end|>", False)])
    assert tokenizer.decode(row["input_ids"]) == "In parser f12<|end|>"
    assert [label for label in row["labels"] if label != IGNORED] == [tokenizer.convert_tokens_to_ids(" f12")]


def test_demonstrations_are_of_training_tasks_and_meet_every_user(monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[Trajectory] = []
    encode = demonstrations.encode_trajectory

    def spy(trajectory: Trajectory) -> dict[str, list[int]]:
        played.append(trajectory)
        return encode(trajectory)

    monkeypatch.setattr(demonstrations, "encode_trajectory", spy)
    recipe = recipe_of("--warmstart.num_demonstrations", "150", "--train_tasks.town.num", "20")
    rows = demonstrations.play_demonstrations(recipe, settings_of(recipe), codec_of(recipe))
    assert len(rows) == len(played) == 150
    details = [trajectory.task.payload["details"] for trajectory in played]
    assert not any(is_held_out(place["module"], place["operation"], place["object"]) for place in details)
    assert {trajectory.task.preference for trajectory in played} == set(PREFERENCES)
    assert {trajectory.task.is_precise for trajectory in played} == {True, False}


def test_demonstrations_meet_only_the_users_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("--warmstart.preferences", "[seen]", "--warmstart.num_demonstrations", "1000")
    rows = demonstrations.play_demonstrations(recipe, settings_of(recipe), codec_of(recipe))
    assert len(rows) == 8 * (12 + 5), "no more than there are"
    text = "".join(codec_of(recipe).decode(row["input_ids"]) for row in rows)
    assert PREFERENCES["no_ask"].description in text and PREFERENCES["json"].description not in text


def test_file_of_a_run_gives_the_rows_of_its_trajectories(tmp_path: Path) -> None:
    recipe = recipe_of()
    codec = codec_of(recipe)
    trajectories = play_demonstrator(recipe, codec)
    write_log(tmp_path / "trajectories.jsonl", trajectories)
    good = [
        trajectory
        for trajectory in trajectories
        if trajectory.stop_reason is StopReason.FINISHED and not any(turn.is_error for turn in trajectory.turns)
    ]
    rewards = [(score_trajectory(trajectory, RewardSettings()) or {})["reward"] for trajectory in good]
    assert min(rewards) < 0.5 < max(rewards)
    for least in (0.0, 0.5):
        options = (
            "--warmstart.trajectories",
            f"[{tmp_path / 'trajectories.jsonl'}]",
            "--warmstart.min_reward",
            str(least),
        )
        chosen = recipe_of(*options)
        rows = demonstrations.read_trajectories(chosen, settings_of(chosen), codec)
        expected = [t for t, reward in zip(good, rewards, strict=True) if reward >= least]
        assert rows == [demonstrations.encode_trajectory(trajectory) for trajectory in expected]


def test_file_of_an_evaluation_can_be_learned_from(tmp_path: Path) -> None:
    played = ["--output_dir", str(tmp_path), "--agent", "always_ask", *OPTIONS]
    assert evaluate.main([*played, "--num_sessions", "12", "--sessions_per_unseen_preference", "0"]) == 0
    recipe = recipe_of("--warmstart.trajectories", f"[{tmp_path / RESULTS_FILE}]")
    codec = codec_of(recipe)
    rows = demonstrations.read_trajectories(recipe, settings_of(recipe), codec)
    assert rows and all("<function=finish>" in codec.decode(row["input_ids"]) for row in rows)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "warmstart.trajectories"),
        ("no JSON\n", "warmstart.trajectories"),
        ('{"stop_reason": "finished", "turns": []}\n', "line 1: there is no score"),
        ("", "no session with a reward of at least 0.5"),
    ],
)
def test_file_that_cannot_be_learned_from_is_refused(tmp_path: Path, content: str | None, problem: str) -> None:
    path = tmp_path / "log.jsonl"
    if content is not None:
        path.write_text(content)
    recipe = recipe_of("--warmstart.trajectories", f"[{path}]")
    with pytest.raises(RecipeError, match=problem):
        demonstrations.read_trajectories(recipe, settings_of(recipe), codec_of(recipe))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--warmstart.nonsense", "1"), ("nonsense", "num_steps", "hidden_size")),
        (("--warmstart.num_steps", "0"), ("warmstart.num_steps", "0", "at least 1")),
        (("--warmstart.num_heads", "3"), ("warmstart.num_heads", "3")),
        (("--warmstart.tokenizer", "city"), ("warmstart.tokenizer", "city", "town")),
        (("--warmstart.exercises", "city"), ("warmstart.exercises", "city", "town")),
        (("--warmstart.preferences", "[jsno]"), ("warmstart.preferences", "jsno", "lang_ita")),
        (("--warmstart.demonstrator", "nobody"), ("nobody", "demonstrator")),
        (("--warmstart.demonstrator", "func_loc"), ("func_loc", "town")),
        (("--warmstart.base_model", "./nowhere"), ("warmstart.base_model", "nowhere")),
        (("--warmstart.num_precise_per_task", "99"), ("num_precise_per_task", "99")),
        (("--warmstart.trajectories", "[nowhere.jsonl]"), ("warmstart.trajectories", "nowhere.jsonl")),
    ],
)
def test_mistake_is_told_with_what_is_allowed_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert run(tmp_path / "model", *options) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("ppp warmstart: ") and all(word in told for word in words), told
    assert not list(tmp_path.iterdir())


def test_folder_that_holds_something_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious").write_text("precious")
    assert run(tmp_path) == 2
    assert "output_dir" in capsys.readouterr().err
    assert run(tmp_path / "precious") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert (tmp_path / "precious").read_text() == "precious"


def test_model_can_be_warmed_up_again_from_its_folder(tmp_path: Path) -> None:
    assert run(tmp_path / "first", "--warmstart.exercise_accuracy", "0") == 0
    assert run(tmp_path / "second", "--warmstart.base_model", str(tmp_path / "first")) == 0
    summary: dict[str, Any] = json.loads((tmp_path / "second" / warmstart.SUMMARY_FILE).read_text())
    assert summary["exercises"] == [], "only random weights do exercises"


def test_random_weights_depend_on_the_seed_and_leave_the_global_noise_alone() -> None:
    sizes = {"max_length": 448, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_key_value_heads": 2}
    state = torch.get_rng_state()
    models = [random_qwen3(town_tokenizer(), seed, **sizes) for seed in (0, 0, 1)]
    first, again, other = (model.lm_head.weight for model in models)
    assert first.equal(again) and not first.equal(other)
    assert torch.get_rng_state().equal(state)
