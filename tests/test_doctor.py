"""`ppp doctor` with real components: a healthy recipe passes, and everything that can be wrong is found and named, with
what to do about it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import yaml
from chat_server import ChatServer

from ppp import warmstart
from ppp.doctor import CHECKS, command, examination, machine, probe
from ppp.doctor.command import main, parse_arguments
from ppp.doctor.patient import Patient, stand_in
from ppp.doctor.results import Status, failed, ok, verdict, warning
from ppp.doctor.text import Palette, harmless
from ppp.doctor.transcript import transcript
from ppp.environments import ENVIRONMENTS
from ppp.memory.trace import NotTraceableError
from ppp.recipe import read_recipe
from ppp.types import Answer, Effort, StopReason, Task, ToolCall, Trajectory, Turn

RECIPES = Path(__file__).parent.parent / "recipes"
EVIL = "\x1b[2J\x1b]0;title\x07ok\r\x9b1m\u202egnp\u200b\ud800\x00"


@pytest.fixture(scope="module")
def toy_model(
    tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., Any], make_model: Callable[..., Any]
) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "model"
    tokenizer = make_tokenizer("town")
    toy.save_model(folder, tokenizer, make_model(tokenizer))
    return folder


@pytest.fixture(autouse=True)
def toy_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(ENVIRONMENTS, "toy", toy.ToyEnvironment)
    toy.ToyEnvironment.reset()
    yield
    toy.ToyEnvironment.reset()


@pytest.fixture
def values(toy_model: Path, tmp_path: Path) -> dict[str, Any]:
    """A recipe that is sound, with adapters and checkpointing."""
    rows = "".join(json.dumps(row) + "\n" for row in toy.toy_rows(3))
    (tmp_path / "tasks.jsonl").write_text(rows)
    return {
        "model_name_or_path": str(toy_model),
        "call_format": "line",
        "use_peft": True,
        "lora_r": 2,
        "output_dir": str(tmp_path / "runs" / "toy"),
        "environments": {"toy": 1},
        "train_tasks": {"toy": str(tmp_path / "tasks.jsonl")},
        "preferences": ["no_preference", "no_ask"],
        "max_steps": 6,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "num_generations": 4,
        "max_completion_length": 40,
        "limits": {"max_turns": 2, "max_tokens_per_turn": 12, "max_observation_tokens": 8, "max_prompt_tokens": 300},
        "gradient_checkpointing": True,
        "use_cpu": True,
    }


class Outcome:
    """What a call of the doctor came to."""

    def __init__(self, status: int, output: str, record: Mapping[str, Any]) -> None:
        self.status, self.output, self.record = status, output, record
        self.checks = record["checks"]

    def statuses(self) -> dict[str, str]:
        return {name: check["status"] for name, check in self.checks.items()}

    def said(self, name: str) -> str:
        return f"{self.checks[name]['text']} | {self.checks[name]['remedy']}"


@pytest.fixture
def ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`ppp doctor` on these values, or with these options alone."""

    def run(values: Mapping[str, Any] | None, *options: str) -> Outcome:
        recipe = tmp_path / "recipe.yaml"
        if values is not None:
            recipe.write_text(yaml.safe_dump(dict(values)))
            options = (str(recipe), *options)
        status = main([*options, "--json", str(tmp_path / "found.json")])
        return Outcome(status, capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text()))

    return run


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_is_a_function_that_comes_after_what_it_needs(name: str) -> None:
    module, _, function = CHECKS[name].function.partition(":")
    assert callable(vars(import_module(module))[function])
    before = list(CHECKS)[: list(CHECKS).index(name)]
    assert set(CHECKS[name].after) <= set(before)


# --- what is sound ---------------------------------------------------------------------------------------------------


def test_a_sound_recipe_passes_and_leaves_nothing_behind(
    values: dict[str, Any], ask: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    before = {path.name for path in tmp_path.iterdir()}
    found = ask({**values, "report_to": "wandb"})
    assert found.status == 0, found.output
    expected = dict.fromkeys(CHECKS, "ok") | {"trajectories": "warning"}  # random weights call no tool
    assert found.statuses() == expected, found.output
    assert {path.name for path in tmp_path.iterdir()} == before | {"recipe.yaml", "found.json"}
    assert "WANDB_RUN_ID" not in os.environ
    assert f"ppp train --config {tmp_path / 'recipe.yaml'}" in found.record["verdict"]
    assert "whose second ones are still zero" in found.said("backward")
    assert found.checks["backward"]["details"]["grad_norm"] > 0
    assert found.checks["logprobs"]["details"]["max"] < 1e-3
    numbers = found.checks["mask"]["details"]
    assert 0 < numbers["num_own"] < numbers["num_all"]
    assert "\x1b" not in found.output  # no terminal


def test_the_town_passes_after_a_small_warm_start(
    ask: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmstart, "ROWS_PER_EXERCISE", 10)
    small = ("--train_tasks.town.num", "20", "--eval_tasks.town.num", "5")
    options = (
        *("--warmstart.max_exercise_steps", "5", "--warmstart.exercise_accuracy", "0", "--warmstart.num_steps", "8"),
        *("--warmstart.exercise_batch_size", "4", "--warmstart.num_demonstrations", "40"),
        *("--warmstart.batch_size", "16"),
    )
    model = tmp_path / "model"
    town = ["--config", str(RECIPES / "town.yaml"), *small]
    assert warmstart.main(["--output_dir", str(model), *town, *options]) == 0
    found = ask(None, *town, "--model_name_or_path", str(model), "--output_dir", str(tmp_path / "run"))
    assert found.status == 0, found.output
    assert set(found.statuses().values()) <= {"ok", "warning"} and found.statuses()["mask"] == "ok", found.output
    assert not (tmp_path / "run").exists()
    played = "\n".join(found.checks["trajectories"]["block"])
    assert "(vague; its user: " in played and "(precise; its user: " in played  # two sessions that differ
    masked = "\n".join(found.checks["mask"]["block"])
    assert re.search(r"^ +prompt \| .*<\|user\|>", masked, re.M) and re.search(r"^ +policy \| ", masked, re.M)


def test_without_a_recipe_only_the_machine_is_looked_at(ask: Callable[..., Outcome]) -> None:
    found = ask(None)
    assert found.status == 0, found.output
    assert list(found.checks) == ["versions", "memory", "environments", "disk"]


def test_fast_loads_no_model(
    values: dict[str, Any], ask: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(probe, "build_model")
    found = ask(values, "--fast")
    assert found.status == 0, found.output
    skipped = {name for name, status in found.statuses().items() if status == "skipped"}
    assert skipped == {"trajectories", "backward", "logprobs", "mask"}
    assert "--fast" in found.said("mask")


def test_a_recipe_that_cannot_be_read_is_status_2_and_the_machine_is_still_looked_at(
    values: dict[str, Any], ask: Callable[..., Outcome]
) -> None:
    found = ask(values, "--temperature", "0")
    assert found.status == 2
    assert "temperature: 0.0 is not allowed" in found.said("recipe")
    assert found.statuses()["versions"] == "ok" and "trajectories" not in found.checks


def test_options_of_training_override_the_recipe() -> None:
    own, rest = parse_arguments(["town.yaml", "--max_steps", "3", "--fast", "--limits.max_turns", "2"])
    assert own.fast and rest == ["--config", "town.yaml", "--max_steps", "3", "--limits.max_turns", "2"]
    assert parse_arguments(["--config", "town.yaml"])[1] == ["--config", "town.yaml"]


def test_the_trial_keeps_model_engine_and_lengths_and_asks_nobody_who_must_not_be_asked(
    values: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**values, "per_device_train_batch_size": 4}))
    recipe = read_recipe(["--config", str(tmp_path / "recipe.yaml"), "--push_to_hub", "true", "--report_to", "wandb"])
    trial = Patient(recipe, tmp_path / "trial").trial
    assert trial.args.output_dir == str(tmp_path / "trial")
    assert not trial.args.push_to_hub and trial.args.report_to in ([], ["none"])
    assert trial.args.per_device_train_batch_size * trial.args.gradient_accumulation_steps == 2
    assert trial.config.lora_r == 2 and trial.config.limits == recipe.config.limits
    assert stand_in("human") == {"kind": "scripted"}
    assert stand_in({"kind": "llm", "cache": "replay"}) == {"kind": "scripted"}
    assert stand_in({"kind": "llm", "cache": "write", "model": "m"})["cache"] == "off"


# --- what is wrong ---------------------------------------------------------------------------------------------------


def damage_row(values: dict[str, Any], folder: Path) -> None:
    with Path(values["train_tasks"]["toy"]).open("a") as file:
        file.write('{"task_id": "toy-9", "vague_prompt": \n')


def name_another_format(values: dict[str, Any], folder: Path) -> None:
    values["call_format"] = "hermes"


def take_eos_away(values: dict[str, Any], folder: Path) -> None:
    model = folder / "model"
    shutil.copytree(values["model_name_or_path"], model)
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": None}))
    values["model_name_or_path"] = str(model)


def write_below_a_file(values: dict[str, Any], folder: Path) -> None:
    (folder / "file").write_text("")
    values["output_dir"] = str(folder / "file" / "run")


def use_a_folder_again(values: dict[str, Any], folder: Path) -> None:
    (folder / "used").mkdir()
    (folder / "used" / "metrics.jsonl").write_text("")
    values["output_dir"] = str(folder / "used")


def save_too_often(values: dict[str, Any], folder: Path) -> None:
    values |= {"max_steps": 10**9, "save_steps": 1}


def take_a_large_model(values: dict[str, Any], folder: Path) -> None:
    model = folder / "model"
    shutil.copytree(values["model_name_or_path"], model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": 10**10}))
    values |= {"model_name_or_path": str(model), "use_peft": False}


def take_a_long_prompt(values: dict[str, Any], folder: Path) -> None:
    values["limits"] = {**values["limits"], "max_prompt_tokens": 20}


# damage -> (the check that finds it, what it says, what it says to do, what is skipped for it)
DAMAGES: dict[Callable[[dict[str, Any], Path], None], tuple[str, str, str, set[str]]] = {
    damage_row: ("data", r"tasks\.jsonl, line 4: not a JSON object", "mend the rows", {"trajectories"}),
    take_a_long_prompt: ("data", r"the prompt has \d+ tokens; at most 20 fit", "change what", {"trajectories"}),
    name_another_format: ("tokenizer", "'hermes'", "call_format", {"trajectories"}),
    take_eos_away: ("tokenizer", "no EOS token", "tokenizer_config.json", {"trajectories", "mask"}),
    take_a_large_model: ("memory", r"does not fit: the recipe needs \d+", "accelerate launch", {"trajectories"}),
    write_below_a_file: ("disk", "nothing can be written for output_dir", "another output_dir", set()),
    use_a_folder_again: ("disk", "a new or empty folder", "go on with that run", set()),
    save_too_often: ("disk", r"the run leaves up to [\d.e+]+ GiB", "save_total_limit", set()),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_is_wrong_is_found_and_named_with_what_to_do(
    damage: Callable[[dict[str, Any], Path], None],
    values: dict[str, Any],
    ask: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, said, remedy, skipped = DAMAGES[damage]
    damage(values, tmp_path)
    if not skipped:  # then the model would be loaded, which other tests do
        found = ask(values, "--fast")
    else:
        monkeypatch.delattr(probe, "build_model")
        found = ask(values)
    assert found.status == 1, found.output
    failing = [check for check, status in found.statuses().items() if status == "failed"]
    assert failing == [name] or (damage is take_a_large_model and failing == [name, "disk"]), found.output
    assert re.search(said, found.checks[name]["text"]), found.said(name)
    assert remedy in found.checks[name]["remedy"], found.said(name)
    assert f"Begin with {name}" in found.record["verdict"]
    for other in skipped:
        assert found.statuses()[other] == "skipped"
        assert ("trajectories" if other == "mask" else name) in found.said(other)
    assert not list(tmp_path.rglob(".ppp_doctor_*"))


@pytest.mark.parametrize("is_down", [False, True])
def test_users_models_are_asked_once_and_a_server_that_is_down_is_named(
    is_down: bool, values: dict[str, Any], ask: Callable[..., Outcome], tmp_path: Path
) -> None:
    with ChatServer() as server:
        server.down = is_down
        user = {"kind": "llm", "model": "m", "base_url": server.base_url, "max_retries": 0}
        user |= {"cache": "write", "cache_path": str(tmp_path / "users.sqlite")}
        found = ask({**values, "user": user}, "--fast")
        assert not (tmp_path / "users.sqlite").exists()
        if is_down:
            assert found.status == 1
            assert server.base_url in found.said("endpoints") and "start the server" in found.said("endpoints")
        else:
            assert found.status == 0, found.output
            assert server.num_requests == 1 and "user: llm answers" in found.said("endpoints")


def test_a_server_of_the_engine_that_is_down_is_named(values: dict[str, Any], ask: Callable[..., Outcome]) -> None:
    with ChatServer() as server:
        server.down = True
        url = server.base_url.removesuffix("/v1")
        found = ask({**values, "engine": "vllm_server", "engine_options": {"base_urls": url}}, "--fast")
    assert found.status == 1 and found.statuses()["endpoints"] == "failed", found.output
    assert url in found.said("endpoints") and "start the server" in found.said("endpoints")


def test_processes_that_have_not_found_each_other_are_refused(
    values: dict[str, Any], ask: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*arguments: Any) -> Any:
        recipe = read_recipe(*arguments)
        monkeypatch.setenv("WORLD_SIZE", "2")  # as if a launcher had started another one
        return recipe

    monkeypatch.setattr(command, "read_recipe", read)
    found = ask(values)
    assert found.status == 2 and "2 were started and 1 found each other" in found.said("recipe")
    assert "trajectories" not in found.checks


def test_an_old_library_is_named_with_the_version_that_is_needed(
    ask: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site" / "peft-0.1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = ask(None)
    assert found.status == 1
    assert "ppp needs peft>=0.19, found 0.1.0" in found.said("versions")
    assert "pip install 'peft>=0.19'" in found.said("versions")


def test_libraries_that_do_not_go_together_are_named(
    ask: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site" / "vllm-0.99.0.dist-info"
    folder.mkdir(parents=True)
    wishes = "Requires-Dist: torch==2.13.0+cpu\nRequires-Dist: transformers<5,>=4\n"
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: 0.99.0\n{wishes}")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    said = ask(None).said("versions")
    assert re.search(r"trl needs vllm<=0\.\d+\.0,>=0\.\d+\.0, found 0\.99\.0", said)  # what TRL says of itself
    assert "vllm needs transformers<5,>=4, found 5" in said
    assert "vllm needs torch" not in said or not torch.__version__.startswith("2.13.0")


# --- what only shows when the model runs -----------------------------------------------------------------------------


def poison_gradients(factor: float) -> Callable[[pytest.MonkeyPatch], None]:
    def damage(monkeypatch: pytest.MonkeyPatch) -> None:
        load = probe.build_model

        def build_model(*arguments: Any) -> Any:
            model = load(*arguments)
            model.model.norm.register_forward_hook(lambda module, inputs, output: _scaled(output, factor))
            return model

        monkeypatch.setattr(probe, "build_model", build_model)

    return damage


def _scaled(output: torch.Tensor, factor: float) -> torch.Tensor:
    if output.requires_grad:
        output.register_hook(lambda gradient: gradient * factor)
    return output


def run_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    load = probe.build_model

    def refuse(module: Any, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            raise torch.OutOfMemoryError("out of memory: tried to allocate 80 GiB")

    def build_model(*arguments: Any) -> Any:
        model = load(*arguments)
        model.model.norm.register_forward_hook(refuse)
        return model

    monkeypatch.setattr(probe, "build_model", build_model)


def sample_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine samples at another temperature than the trainer believes."""
    build_engine = probe.build_engine

    def build(recipe: Any, codec: Any, provider: Any) -> Any:
        engine = build_engine(recipe, codec, provider)
        engine.temperature = 3.0
        return engine

    monkeypatch.setattr(probe, "build_engine", build)


def learn_from_observations(monkeypatch: pytest.MonkeyPatch) -> None:
    def env_mask(trajectory: Trajectory) -> list[int]:
        return [1] * len(trajectory.completion_ids)

    monkeypatch.setattr(Trajectory, "env_mask", property(env_mask))


def lose_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.ToyEnvironment.reset(failing={2: "the disk of the sandbox is full"})  # 0 is the check of the environment


def open_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.ToyEnvironment.reset(failing={0: "no sandbox"})


def lose_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_model(*arguments: Any) -> Any:
        raise OSError("model.safetensors is cut off")

    monkeypatch.setattr(probe, "build_model", build_model)


AFTER_LOADING: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, str, str, set[str]]] = {
    "nan": (poison_gradients(float("nan")), "backward", r"\d+ gradients are no numbers \(.*lora_", "bfloat16", set()),
    "zero": (poison_gradients(0.0), "backward", r"none of \d+ trained tensors has a gradient", "lora_target", set()),
    "memory": (run_out_of_memory, "backward", "OutOfMemoryError.*80 GiB", "per_device_train_batch_size", set()),
    "engine": (sample_otherwise, "logprobs", "differ by .* is allowed", "another temperature", set()),
    "mask": (learn_from_observations, "mask", r"the mask of the loss is wrong at \d+ of \d+", "do not train", set()),
    "session": (lose_a_session, "trajectories", "1 of 2 sessions .*disk of the sandbox is full", "a tool", {"mask"}),
    "environment": (open_nothing, "environments", "toy: InfrastructureError: no sandbox", "sandbox", {"trajectories"}),
    "model": (lose_the_model, "trajectories", "OSError: model.safetensors is cut off", "model_name_or_path", {"mask"}),
}


@pytest.mark.parametrize("kind", AFTER_LOADING)
def test_what_shows_when_the_model_runs_is_named_and_the_rest_is_still_looked_at(
    kind: str, values: dict[str, Any], ask: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, name, said, remedy, skipped = AFTER_LOADING[kind]
    if kind == "session":
        values["per_device_train_batch_size"] = 4
    damage(monkeypatch)
    found = ask(values)
    assert found.status == 1, found.output
    failing = {check for check, status in found.statuses().items() if status == "failed"}
    # What the loss should not see has no probability that the engine told of.
    assert failing == {name} | ({"logprobs"} if kind == "mask" else set()), found.output
    assert re.search(said, found.checks[name]["text"]), found.said(name)
    assert remedy in found.checks[name]["remedy"], found.said(name)
    assert skipped <= {check for check, status in found.statuses().items() if status == "skipped"}
    assert found.statuses()["disk"] == "ok"


def test_a_model_whose_memory_cannot_be_planned_is_tried_all_the_same(
    values: dict[str, Any], ask: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(*arguments: Any) -> None:
        raise NotTraceableError("the model's code looks at values")

    monkeypatch.setattr(machine, "plan_memory", give_up)
    found = ask(values)
    assert found.status == 0
    assert found.statuses()["memory"] == "warning" and "looks at values" in found.said("memory")
    assert found.statuses()["trajectories"] in ("ok", "warning") and found.statuses()["backward"] == "ok"


def test_a_check_that_breaks_fails_and_the_others_go_on(
    values: dict[str, Any], ask: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(patient: Patient) -> None:
        raise ZeroDivisionError("of its own")

    monkeypatch.setattr(import_module("ppp.doctor.versions"), "check_versions", break_down)
    found = ask(values, "--fast")
    assert found.status == 1
    assert "ZeroDivisionError: of its own" in found.said("versions") and found.statuses()["data"] == "ok"


def test_two_processes_check_together_and_one_of_them_tells(
    values: dict[str, Any], tmp_path: Path, toy_model: Path
) -> None:
    values |= {"environments": {"town": 1}, "train_tasks": {"town": {"split": "train", "num": 3}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "ppp.doctor", str(tmp_path / "recipe.yaml")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("differ by") == 1 and "2 processes, sharding none" in " ".join(done.stdout.split())
    assert not (tmp_path / "runs").exists() and not list(tmp_path.rglob(".ppp_doctor_*"))


# --- what is printed -------------------------------------------------------------------------------------------------


def test_a_transcript_has_no_control_characters_and_nobody_can_write_a_line_of_ours() -> None:
    task = Task(f"id{EVIL}", "toy", f"Fix.{EVIL}\nok       versions", "Fix it.", "no_ask", {})
    turns = [
        Turn(
            [1], [0.0], {"role": "assistant", "content": f"text{EVIL}", "reasoning_content": EVIL},
            call=ToolCall("look", {"where": EVIL}), observation=f"seen{EVIL}\nNothing is wrong", is_error=True,
        ),
        Turn(
            [1], [0.0], {"role": "assistant", "content": ""}, observation=EVIL, question=EVIL,
            answer=Answer(EVIL, Effort.LOW, True),
        ),
    ]  # fmt: skip
    trajectory = Trajectory(task, turns=turns, stop_reason=StopReason.ERROR, error=f"lost{EVIL}")
    lines = [line for line, _ in transcript(trajectory)]
    assert all(line.isprintable() and line.isascii() for line in lines), lines
    assert all(line.startswith("session ") or re.match(r" *\w+ \| ", line) for line in lines)
    assert "    task | ok       versions" in lines and " mistake | Nothing is wrong" in lines
    assert any(r"\x1b[2J" in line for line in lines)


def test_a_long_session_is_shown_by_its_beginning_and_its_end() -> None:
    task = Task("id", "toy", "Fix.", "Fix it.", "no_ask", {})
    said = [Turn([1], [0.0], {"role": "assistant", "content": f"turn {number}" + "a" * 9000}) for number in range(90)]
    lines = [line for line, _ in transcript(Trajectory(task, turns=said, stop_reason=StopReason.MAX_TURNS))]
    assert len(lines) < 50 and max(map(len, lines)) < 800
    assert "turn 0a" in lines[2] and lines[-1].endswith("max_turns") and any("left out" in line for line in lines)


@pytest.mark.parametrize("text", ["plain é 漢字 🙂", "two\nlines", "a b\\x"])
def test_text_that_does_no_harm_stays_as_it_is(text: str) -> None:
    assert harmless(text) == text


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "stream, variables, is_coloured",
    [
        (Screen(), {"TERM": "xterm"}, True),
        (Screen(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Screen(), {"TERM": "xterm", "NO_COLOR": ""}, True),
        (Screen(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
    ],
)
def test_colours_are_for_terminals_whose_user_wants_them(
    stream: io.StringIO, variables: Mapping[str, str], is_coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ("\x1b[" in Palette.of(stream).paint("word", "policy")) == is_coloured


def test_the_verdict_names_what_failed_and_what_to_do_first() -> None:
    results = {"a": ok("fine"), "b": failed("broken", "mend it"), "c": failed("lost", "find it")}
    assert verdict(results, "ppp train") == "2 of 3 checks failed (b, c). Begin with b: mend it"
    good = {"a": ok("fine"), "b": warning("odd", "look")}
    assert verdict(good, "ppp train x") == "Nothing failed; worth a look: b; start with: ppp train x"


def test_all_processes_get_the_worst_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "gather_object", lambda own: [*own, failed("no disk", "make room")])
    assert examination.worst_of_all(ok("fine")).status is Status.FAILED
