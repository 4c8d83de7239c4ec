"""Which checkpoint a run goes on from, and what it must not have changed meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import toy
import yaml

from ppp.checkpoints import FACTS_FILE
from ppp.config import PPPConfig
from ppp.recipe import Recipe, read_recipe
from ppp.recipe_config import RecipeConfig
from ppp.resume import (
    ENTRIES_MAY_CHANGE,
    MAY_CHANGE,
    check_facts,
    check_recipe,
    checkpoint_to_resume,
    differences,
    may_change,
    run_facts,
)
from ppp.types import RecipeError

BASE: dict[str, Any] = {
    "tiny_model": True,
    "environments": {"town": 1},
    "train_tasks": {"town": {"split": "train", "num": 4}},
    "user": {"kind": "llm", "model": "m", "base_url": "http://a/v1"},
    "per_device_train_batch_size": 8,
    "max_steps": 4,
    "use_cpu": True,
}
Read = Callable[..., Recipe]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(*options: str, **changes: Any) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**BASE, "output_dir": str(tmp_path / "run"), **changes}))
        return read_recipe(["--config", str(path), *options])

    return read


def make_checkpoint(run: Path, step: int, facts: dict[str, Any] | None = None) -> Path:
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (folder / "rng_state.pth").touch()
    if facts is not None:
        (folder / FACTS_FILE).write_text(json.dumps(facts))
    return folder


# What a resumed run must not have otherwise -> what the message has to name.
OTHER_TRAINING: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 7}, "seed: 7 .*42"),
    "model": ({"tiny_model": False, "model_name_or_path": "x"}, "model_name_or_path: 'x' .*None"),
    "batch": ({"per_device_train_batch_size": 16}, "per_device_train_batch_size: 16 .*8"),
    "accumulation": ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps: 2 .*1"),
    "rate": ({"learning_rate": 0.5}, "learning_rate: 0.5 .*1e-06"),
    "schedule": ({"lr_scheduler_type": "constant"}, "lr_scheduler_type: 'constant' .*linear"),
    "group": ({"num_generations": 4}, "num_generations: 4 .*8"),
    "environment option": (
        {"environment_options": {"town": {}}, "environments": {"town": 2}},
        "environments.town: 2 .*1",
    ),
    "tasks": ({"train_tasks": {"town": {"split": "train", "num": 5}}}, "train_tasks.town.num: 5 .*4"),
    "preferences": ({"preferences": ["no_ask"]}, "preferences: .*no_ask.*seen"),
    "rewards": ({"term_weights": {"proactivity": 0}}, "term_weights.proactivity: 0 .*None"),
    "clip": ({"reward_clip": None}, "reward_clip: None .*0.0, 1.0"),
    "adapters": ({"use_peft": True}, "use_peft: True .*False"),
    "rank": ({"lora_r": 4}, "lora_r: 4 .*16"),
    "limits": ({"limits": {"max_turns": 3}}, "limits.max_turns: 3 .*None"),
    "user's model": ({"user": {**BASE["user"], "model": "n"}}, "user.model: 'n' .*'m'"),
    "user's temperature": ({"user": {**BASE["user"], "temperature": 0}}, "user.temperature: 0 .*None"),
    "kind of user": ({"user": "scripted"}, "user.base_url|user.kind"),
    "sampling": ({"temperature": 0.5}, "temperature: 0.5 .*1.0"),
}
SAME_TRAINING: dict[str, dict[str, Any]] = {
    "further": {"max_steps": 9},
    "logs": {"logging_steps": 5, "report_to": ["tensorboard"], "log_trajectories_every": 0},
    "saves": {"save_steps": 7, "save_total_limit": 1},
    "user's address": {"user": {**BASE["user"], "base_url": "http://b/v1", "max_concurrency": 2}},
    "user's budget": {"user": {**BASE["user"], "max_calls": 10}},
    "evaluation": {"eval_tasks": {"town": {"split": "test", "num": 4}}, "eval_strategy": "steps", "eval_steps": 2},
    "export": {"merge_lora": True},
    "guards": {"max_failure_rate": 0.5, "stop_without_signal_steps": 3},
    "short form": {"environments": {"town": 1.0}},
}


@pytest.mark.parametrize("name", OTHER_TRAINING)
def test_another_recipe_is_refused_with_the_field_and_both_values(name: str, read: Read, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "run", 2)
    (tmp_path / "run" / "recipe.yaml").write_text(read().to_yaml())
    changes, expected = OTHER_TRAINING[name]
    with pytest.raises(RecipeError, match=expected):
        check_recipe(read(**changes), checkpoint)


@pytest.mark.parametrize("name", SAME_TRAINING)
def test_what_trains_nothing_else_may_change(name: str, read: Read, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "run", 2)
    (tmp_path / "run" / "recipe.yaml").write_text(read().to_yaml())
    check_recipe(read(**SAME_TRAINING[name]), checkpoint)


def test_disk_space_of_an_environment_may_change_and_what_it_shows_may_not() -> None:
    assert may_change("environment_options.func_loc.max_trees_gb")
    assert not may_change("environment_options.func_loc.max_output_chars")


def test_a_short_form_is_the_same_as_the_long_one(read: Read) -> None:
    short = {"user": "scripted", "train_tasks": {"town": "x"}}
    long = {"user": {"kind": "scripted"}, "train_tasks": {"town": {"path": "x"}}}
    assert differences(short, long) == [] == differences(long, short)


def test_a_field_that_an_older_run_did_not_know_has_its_default(read: Read) -> None:
    after = read(max_resamples=3).values
    before = {key: value for key, value in read().values.items() if key != "max_resamples"}
    assert [name for name, _, _ in differences(before, after)] == ["max_resamples"]
    assert differences(before, read().values) == []


def test_the_tables_name_fields_that_there_are() -> None:
    known = [field.name for cls in (RecipeConfig, PPPConfig) for field in fields(cls) if field.init]
    for entry in MAY_CHANGE:
        assert any(may_change(name) and name.startswith(entry.rstrip("*")) for name in known), entry
    assert set(ENTRIES_MAY_CHANGE) <= set(known)


def test_a_broken_recipe_beside_a_checkpoint_is_refused(read: Read, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "run", 2)
    (tmp_path / "run" / "recipe.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match=r"recipe\.yaml cannot be read"):
        check_recipe(read(), checkpoint)


# --- which checkpoint -------------------------------------------------------------------------------------------------


def test_the_newest_complete_checkpoint_is_taken(read: Read, tmp_path: Path) -> None:
    for step in (2, 10, 4):
        make_checkpoint(tmp_path / "run", step)
    (tmp_path / "run" / "checkpoint-12").mkdir()
    (tmp_path / "run" / "_saving-14" / "checkpoint-14").mkdir(parents=True)
    assert checkpoint_to_resume(read("--resume_from_checkpoint", "true")) == tmp_path / "run" / "checkpoint-10"


def test_without_one_a_run_starts_at_the_beginning(read: Read) -> None:
    assert checkpoint_to_resume(read("--resume_from_checkpoint", "true")) is None


def test_an_older_one_is_refused_while_a_newer_one_stands_beside_it(read: Read, tmp_path: Path) -> None:
    """The logs would be cut to the older one's step, and a later resume would go on from the newer one."""
    older, newer = (make_checkpoint(tmp_path / "run", step) for step in (2, 4))
    with pytest.raises(RecipeError, match=r"checkpoint-2' .*checkpoint-4 is further"):
        checkpoint_to_resume(read("--resume_from_checkpoint", str(older)))
    assert checkpoint_to_resume(read("--resume_from_checkpoint", str(newer))) == newer


# --- what a checkpoint is bound to ------------------------------------------------------------------------------------

OTHER_FACTS = {
    "processes": ({"num_processes": 2}, "num_processes is 1 now and 2"),
    "sharding": ({"sharding": "zero3"}, "sharding is 'none' now and 'zero3'"),
    "sessions": ({"sessions": "3 (abc)"}, "train_tasks were others"),
}


@pytest.mark.parametrize("name", OTHER_FACTS)
def test_other_processes_or_sessions_are_refused(name: str, read: Read, tmp_path: Path) -> None:
    facts = run_facts(read().args, ["a", "b"])
    changes, expected = OTHER_FACTS[name]
    check_facts(make_checkpoint(tmp_path / "run", 2, facts), facts)
    with pytest.raises(RecipeError, match=expected):
        check_facts(make_checkpoint(tmp_path / "run", 4, {**facts, **changes}), facts)


def test_the_number_of_processes_shows_without_facts(read: Read, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "run", 2)
    for rank in (0, 1):
        (checkpoint / f"rng_state_{rank}.pth").touch()
    (checkpoint / "rng_state.pth").unlink()
    with pytest.raises(RecipeError, match="num_processes is 1 now and 2"):
        check_facts(checkpoint, run_facts(read().args, []))


def test_a_checkpoint_with_nothing_but_the_model_is_refused(read: Read, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "run", 2)
    (checkpoint / "rng_state.pth").unlink()
    with pytest.raises(RecipeError, match="save_only_model"):
        check_facts(checkpoint, run_facts(read().args, []))


def test_sessions_are_told_apart_by_text_and_order(read: Read) -> None:
    digests = [run_facts(read().args, texts)["sessions"] for texts in (["a", "b"], ["b", "a"], ["ab"], ["a", "b"])]
    assert digests[0] == digests[3] and len(set(digests)) == 3


def test_training_refuses_before_it_loads_or_writes_anything(
    read: Read, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from ppp.train import main

    toy.register()
    checkpoint = make_checkpoint(tmp_path / "run", 2)
    plain = {"user": "scripted"}
    (tmp_path / "run" / "recipe.yaml").write_text(read(**plain).to_yaml())
    before = sorted(path.name for path in checkpoint.parent.iterdir())
    read(**plain, seed=7)
    assert main(["--config", str(tmp_path / "recipe.yaml"), "--resume_from_checkpoint", "true"]) == 2
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("ppp train: seed: 7 ") and "42" in message
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == before
