"""Training from a recipe, as a user starts it: in a process of its own, with everything real but the size of the
model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import yaml
from git_history import git
from safetensors.torch import load_file

TOY_TRAIN = [sys.executable, str(Path(__file__).parent / "toy_train.py")]
RECIPES = Path(__file__).parent.parent / "recipes"
VARYING = ("step_time", "seconds/", "train_", "eval_seconds/")  # what a clock says


@pytest.fixture(scope="module")
def recipe(
    tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., Any], make_model: Callable[..., Any]
) -> dict[str, Any]:
    """Six steps of two epochs on sessions that take a tenth of a second."""
    folder = tmp_path_factory.mktemp("toy")
    tokenizer = make_tokenizer("town")
    toy.save_model(folder / "model", tokenizer, make_model(tokenizer))
    rows = "".join(json.dumps(row) + "\n" for row in toy.toy_rows(2))
    (folder / "tasks.jsonl").write_text(rows)
    return {
        "model_name_or_path": str(folder / "model"),
        "call_format": "line",
        "environments": {"toy": 1},
        "train_tasks": {"toy": str(folder / "tasks.jsonl")},
        "preferences": ["no_preference", "no_ask"],
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 40,
        "limits": {"max_turns": 2, "max_tokens_per_turn": 12, "max_observation_tokens": 8, "max_prompt_tokens": 256},
        "learning_rate": 1e-2,
        "reward_clip": None,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "deterministic": True,
        "save_strategy": "no",
    }


def start(command: list[str], recipe: Mapping[str, Any], output_dir: Path, *options: str) -> subprocess.Popen[str]:
    path = output_dir.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(dict(recipe)))
    return subprocess.Popen(
        [*command, "--config", str(path), "--output_dir", str(output_dir), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"},
        start_new_session=True,  # so that a launcher can be ended together with its workers
    )


def train(command: list[str], recipe: Mapping[str, Any], output_dir: Path, *options: str) -> tuple[int, str]:
    process = start(command, recipe, output_dir, *options)
    try:
        output, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


def wait_for_steps(process: subprocess.Popen[str], output_dir: Path, num: int) -> None:
    while process.poll() is None:
        if (output_dir / "metrics.jsonl").is_file() and len(read_lines(output_dir / "metrics.jsonl")) >= num:
            return
        time.sleep(0.02)
    raise AssertionError(f"the run ended before step {num}")


def read_lines(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    for line in lines:
        line.pop("timings", None)
    return [{key: value for key, value in line.items() if not key.startswith(VARYING)} for line in lines]


def test_a_run_killed_in_the_middle_and_resumed_ends_like_one_that_was_not(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = {**recipe, "save_strategy": "steps", "save_steps": 2}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    status, output = train(TOY_TRAIN, recipe, whole)
    assert status == 0, output

    process = start(TOY_TRAIN, recipe, killed)
    wait_for_steps(process, killed, 5)  # beyond the checkpoint of step 4, in the second epoch
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (killed / "checkpoint-5").mkdir(exist_ok=True)  # half-written: must not be taken
    status, output = train(TOY_TRAIN, recipe, killed, "--resume_from_checkpoint", "true")
    assert status == 0, output

    for name in ("metrics.jsonl", "trajectories.jsonl", "tokens.jsonl"):
        assert read_lines(killed / name) == read_lines(whole / name)
    expected, found = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert len(read_lines(whole / "metrics.jsonl")) == 6 + 1  # the last line sums up the run
    assert len({line["session_reward"] for line in read_lines(whole / "metrics.jsonl") if "loss" in line}) > 1


def test_an_interrupt_leaves_a_checkpoint_and_status_130(recipe: dict[str, Any], tmp_path: Path) -> None:
    output_dir = tmp_path / "run"
    process = start(TOY_TRAIN, {**recipe, "max_steps": 500}, output_dir)
    wait_for_steps(process, output_dir, 2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "--resume_from_checkpoint true" in output
    steps = [line["step"] for line in read_lines(output_dir / "metrics.jsonl") if "loss" in line]
    assert (output_dir / f"checkpoint-{steps[-1]}" / "trainer_state.json").is_file(), sorted(output_dir.iterdir())


def test_two_processes_take_the_steps_of_one(recipe: dict[str, Any], tmp_path: Path) -> None:
    """Advantages, noise, metrics and the loss's normaliser are all defined over processes."""
    recipe = {**recipe, "max_steps": 3}
    status, output = train(TOY_TRAIN, recipe, tmp_path / "one")
    assert status == 0, output
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    halves = {**recipe, "per_device_train_batch_size": recipe["per_device_train_batch_size"] // 2}
    status, output = train([*launcher, *TOY_TRAIN[1:]], halves, tmp_path / "two")
    assert status == 0, output
    one, two = (read_lines(tmp_path / name / "metrics.jsonl")[:3] for name in ("one", "two"))
    for name in ("loss", "grad_norm", "session_reward", "terms/productivity_group_std", "turns/mean", "num_tokens"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], abs=1e-5), name
    records = [read_lines(tmp_path / "two" / name) for name in ("trajectories.jsonl", "trajectories.rank1.jsonl")]
    assert [len(lines) for lines in records] == [12, 12]
    whole = read_lines(tmp_path / "one" / "trajectories.jsonl")
    order = sorted([*records[0], *records[1]], key=lambda line: (line["step"], line["row"], line["copy"]))
    assert order == whole


def test_a_run_that_cannot_learn_is_stopped_with_status_1(recipe: dict[str, Any], tmp_path: Path) -> None:
    options = ("--reward_clip", "5", "6", "--stop_without_signal_steps", "2")
    status, output = train(TOY_TRAIN, recipe, tmp_path / "run", *options)
    assert status == 1, output
    assert "ppp train: nothing to learn from in the last 2 steps: no turn held" in output
    assert "all rewards of every group were equal" in output
    assert (tmp_path / "run" / "checkpoint-2" / "trainer_state.json").is_file()


def test_the_smoke_recipe_trains_on_issues_of_a_git_repository(tmp_path: Path) -> None:
    repository = tmp_path / "repositories" / "owner" / "name"
    repository.mkdir(parents=True)
    (repository / "parser.py").write_text("def parse(text):\n    return text\n")
    git(repository, "init", "-q")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "first")
    issue = {
        "instance_id": "owner__name-1",
        "repo": "owner/name",
        "base_commit": git(repository, "rev-parse", "HEAD"),
        "problem_statement": "parse() returns its input.",
        "vague_statement": "Something is off.",
        "edited_functions": ["parser.py:parse"],
    }
    (tmp_path / "issues.jsonl").write_text(json.dumps(issue) + "\n")
    recipe = yaml.safe_load((RECIPES / "func_loc_smoke.yaml").read_text())
    options = ["--train_tasks.func_loc.path", str(tmp_path / "issues.jsonl")]
    options += ["--train_tasks.func_loc.repositories", str(tmp_path / "repositories")]
    options += ["--environment_options.func_loc.trees", str(tmp_path / "trees")]
    status, output = train([sys.executable, "-m", "ppp.cli", "train"], recipe, tmp_path / "run", *options)
    assert status == 0, output
    steps = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert [line["failure_rate"] for line in steps] == [0, 0]


def test_recipe_and_versions_stand_beside_the_metrics_and_the_recipe_can_be_read_again(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    output_dir = tmp_path / "run"
    status, output = train(
        TOY_TRAIN, {**recipe, "max_steps": 1}, output_dir, "--learning_rate", "0.5", "--report_to", "wandb"
    )
    assert status == 0, output
    resolved = yaml.safe_load((output_dir / "recipe.yaml").read_text())
    assert resolved["learning_rate"] == 0.5
    assert json.loads((output_dir / "versions.json").read_text())["trl"].startswith("1.16")
    run_id = (output_dir / "wandb_run_id.txt").read_text().strip()
    assert list(output_dir.glob(f"wandb/*{run_id}")), output
    again = tmp_path / "again"
    status, output = train(TOY_TRAIN, resolved, again, "--report_to", "none")
    assert status == 0, output
    assert read_lines(again / "trajectories.jsonl") == read_lines(output_dir / "trajectories.jsonl")


BAD_RECIPES = {
    "unknown key": ({"lerning_rate": 1.0}, "'lerning_rate' is unknown", "'learning_rate'"),
    "unknown preference": ({"preferences": ["no_aks"]}, "preferences: 'no_aks'", "'no_ask'"),
    "missing file": ({"train_tasks": {"toy": "missing.jsonl"}}, "train_tasks.toy: the file 'missing.jsonl'", "JSONL"),
    "missing model": ({"model_name_or_path": "./nowhere"}, "model_name_or_path: './nowhere'", "folder"),
    "group does not divide the batch": ({"num_generations": 3}, "num_generations: 3", "must divide the 8"),
    "unknown engine option": ({"engine_options": {"pages": 1}}, "engine_options.pages", "page_size"),
    "engine without a model": ({"engine": "scripted"}, "engine: 'scripted'", "transformers"),
    "no module for adapters": (
        {"use_peft": True, "lora_target_modules": ["q_porj"]},
        "lora_target_modules: 'q_porj'",
        "did you mean 'q_proj'",
    ),
    "prompt too long": ({"limits": {"max_prompt_tokens": 5}}, "the prompt has", "at most 5"),
    "nothing to resample": ({"gradient_accumulation_steps": 6, "max_resamples": 1}, "max_resamples: 1", "all 6"),
    "a step takes more than there is": ({"gradient_accumulation_steps": 8}, "train_tasks: 6 sessions", "takes 8"),
}


@pytest.mark.parametrize("name", BAD_RECIPES)
def test_bad_recipe_ends_with_status_2_and_one_sentence_and_writes_nothing(
    name: str,
    recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from ppp.train import main

    toy.register()
    changes, *expected = BAD_RECIPES[name]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, **changes}))
    assert main(["--config", str(path), "--output_dir", str(tmp_path / "run")]) == 2
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("ppp train: ")
    assert all(text in message for text in expected), message
    assert not (tmp_path / "run").exists()


def test_a_filled_output_folder_is_refused(
    recipe: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from ppp.train import main

    toy.register()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("precious\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert main(["--config", str(path), "--output_dir", str(tmp_path / "run")]) == 2
    assert "resume_from_checkpoint" in capfd.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "precious\n"
    assert len(list((tmp_path / "run").iterdir())) == 1
