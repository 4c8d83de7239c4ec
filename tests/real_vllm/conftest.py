"""One model and one server for all tests in here: a server takes half a minute to start."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # the helpers of the other tests

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]

import yaml
from vllm_process import VLLMProcess

from ppp.baselines.town_tokenizer import town_tokenizer
from ppp.tiny_model import random_qwen3
from ppp.warmstart import main as warm_start

RECIPE: dict[str, Any] = {
    "environments": {"town": 1},
    "train_tasks": {"town": {"split": "train", "num": 8}},
    "preferences": ["no_preference", "no_ask"],
    "per_device_train_batch_size": 16,
    "num_generations": 4,
    "max_steps": 1,
    "max_completion_length": 160,
    "limits": {"max_turns": 6, "max_tokens_per_turn": 32, "max_observation_tokens": 48, "max_prompt_tokens": 128},
    "reward_clip": None,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "save_strategy": "no",
}


@pytest.fixture(scope="session")
def town_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes part in sessions of the town, more badly than well, and that vLLM can run on a CPU."""
    folder = tmp_path_factory.mktemp("town_model")
    base, recipe, model = folder / "base", folder / "warmstart.yaml", folder / "model"
    tokenizer = town_tokenizer()
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "num_key_value_heads": 2}
    random_qwen3(tokenizer, 0, max_length=512, initializer_range=0.05, **sizes).save_pretrained(base)
    tokenizer.save_pretrained(base)
    settings = {"base_model": str(base), "num_demonstrations": 300, "num_steps": 80}
    recipe.write_text(yaml.safe_dump({**RECIPE, "model_name_or_path": str(base), "warmstart": settings}))
    assert warm_start(["--config", str(recipe), "--output_dir", str(model)]) == 0
    return model


@pytest.fixture(scope="session")
def town_recipe(town_model: Path) -> dict[str, Any]:
    """Short steps in which groups differ, so that the weights move."""
    return {**RECIPE, "model_name_or_path": str(town_model)}


@pytest.fixture(scope="session")
def server(town_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMProcess]:
    """Started with `town_model`; tests may give it other weights, see `fresh_server`."""
    process = VLLMProcess(town_model, tmp_path_factory.mktemp("server") / "log.txt")
    process.start()
    yield process
    process.kill()
