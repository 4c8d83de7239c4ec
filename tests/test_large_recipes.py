"""The recipes that need GPUs: their arithmetic, their memory plans, their commands; and what is refused early."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from ppp import train
from ppp.build import check_sharding, max_context
from ppp.engines import engine_class
from ppp.recipe import Recipe, read_recipe
from ppp.tiny_model import byte_tokenizer
from ppp.types import RecipeError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = Path(__file__).parent / "model_configs"
# recipe -> the config of its model, trajectories of a step
LARGE = {
    "qwen3_4b_lora.yaml": ("qwen3_4b", 64),
    "qwen3_8b_full.yaml": ("qwen3_8b", 512),
    "seed_oss_36b.yaml": ("seed_oss_36b", 512),
}
RECIPES = sorted(path.name for path in (ROOT / "recipes").glob("*.yaml"))


def read(name: str, *options: str) -> Recipe:
    return read_recipe(["--config", str(ROOT / "recipes" / name), *options])


def commands(path: Path, program: str) -> list[list[str]]:
    """The commands in the head of a file that start with this program, as a shell would split them."""
    head = "\n".join(line[1:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    found = re.findall(rf"^.*?\b({re.escape(program)} (?:.*\\\n)*.*)$", head, re.M)
    return [shlex.split(text.replace("\\\n", " ")) for text in found]


@pytest.mark.parametrize("name", RECIPES)
def test_the_engine_of_every_recipe_takes_its_options(name: str) -> None:
    recipe = read(name)
    engine_class(recipe.config.engine).check_options(recipe.config.engine_options)


@pytest.mark.parametrize("name", LARGE)
def test_every_way_to_launch_makes_the_same_step(name: str) -> None:
    launches = commands(ROOT / "recipes" / name, "accelerate launch")
    assert launches
    for command in launches:
        cluster = load_config_from_file(str(ROOT / command[command.index("--config_file") + 1]))
        options = command[command.index("ppp.train") + 1 :]
        assert options[:2] == ["--config", f"recipes/{name}"]
        args = read(name, *options[2:]).args
        trajectories = args.per_device_train_batch_size * args.gradient_accumulation_steps * cluster.num_processes
        assert trajectories == LARGE[name][1]
        assert trajectories % args.num_generations == 0
        assert ("--machine_rank" in command) is (cluster.num_machines > 1)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "accelerate_configs").glob("zero3_*x8.yaml")), ids=lambda path: path.name
)
def test_several_machines_make_the_step_of_the_paper(path: Path) -> None:
    ((*_, accumulation),) = commands(path, "accelerate launch")
    assert int(accumulation) * load_config_from_file(str(path)).num_processes == 512


def test_seed_oss_is_trained_as_in_the_paper() -> None:
    recipe = read("seed_oss_36b.yaml")
    args, config = recipe.args, recipe.config
    assert (args.learning_rate, args.max_steps, args.num_generations, args.beta) == (1e-6, 200, 8, 0.0)
    assert (args.max_completion_length, args.epsilon, args.epsilon_high, args.loss_type) == (32768, 0.2, 0.28, "dapo")
    assert args.model_init_kwargs == {"attention_dropout": 0.0, "residual_dropout": 0.0}
    assert (config.engine, config.num_precise_per_task, config.use_peft) == ("vllm_server", 1, False)
    assert config.max_concurrency == 512 // 8  # all trajectories of a process at once


def test_the_servers_of_a_recipe_are_started_for_it() -> None:
    recipe = read("seed_oss_36b.yaml")
    (command,) = commands(ROOT / "recipes" / "seed_oss_36b.yaml", "vllm serve")
    flags = dict(zip(command[3::2], command[4::2], strict=True))
    assert command[2] == recipe.config.model_name_or_path
    assert int(flags["--max-model-len"]) == max_context(recipe)
    assert flags["--dtype"] == recipe.config.dtype
    assert flags["--logprobs-mode"] == "processed_logprobs"
    assert json.loads(flags["--weight-transfer-config"]) == {"backend": "nccl"}


@pytest.mark.parametrize("name", LARGE)
def test_the_memory_plan_in_a_recipe_is_what_the_script_prints(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "recipes" / name
    ((_, script, *options),) = commands(path, "python scripts/memory_plan.py")
    monkeypatch.chdir(ROOT)
    main = runpy.run_path(script)["main"]
    assert main([*options, "--model", str(CONFIGS / LARGE[name][0]), "--format", "comment"]) == 0
    text = path.read_text(encoding="utf-8")
    assert capsys.readouterr().out in text, "print the plan again and put it into the recipe"


# --- refused before a model is loaded ---------------------------------------------------------------------------------


def test_training_refuses_a_model_that_cannot_fit_before_it_loads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "large"
    byte_tokenizer().save_pretrained(folder)
    described = json.loads((CONFIGS / "seed_oss_36b" / "config.json").read_text())
    # No machine that runs this has memory for it; and there are no weights that could be loaded.
    (folder / "config.json").write_text(json.dumps({**described, "num_hidden_layers": 512}))
    values: dict[str, Any] = {
        "model_name_or_path": str(folder),
        "environments": {"town": 1},
        "train_tasks": {"town": {"split": "train", "num": 64}},
        "output_dir": str(tmp_path / "run"),
        "use_cpu": True,
        "max_steps": 1,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    assert train.main(["--config", str(path)]) == train.EXIT_RECIPE
    message = capsys.readouterr().err
    assert "does not fit" in message and message.count("GiB") >= 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("engine", "version", "refused"),
    [
        ("transformers", "2", "engine: 'transformers'"),
        ("vllm_server", "1", "fsdp_version: '1'"),
        ("vllm_server", "2", None),
        ("vllm_colocate", "2", None),
    ],
)
def test_fsdp_goes_with_engines_that_are_given_weights(
    engine: str, version: str, refused: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read("seed_oss_36b.yaml", "--engine", engine, "--engine_options", "{}")
    check_sharding(recipe, engine_class(engine))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", version)
    if refused is None:
        check_sharding(recipe, engine_class(engine))
    else:
        with pytest.raises(RecipeError, match=refused):
            check_sharding(recipe, engine_class(engine))
