"""A run whose users are played by a model, recorded once and played again without the model."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_server import ChatServer
from town_user_server import town_reply

import ppp.train
from ppp.codec import Codec
from ppp.engines.base import Generation, GenerationRequest
from ppp.engines.scripted import ScriptedEngine
from ppp.environments.town import town_task_rows
from ppp.run_log import replayable
from ppp.types import Task, ToolCall, Turn

QUESTIONS = ("Which module is it?", "Which operation and which object?", "What is the function to fix?", "Why?")


class Wanderer(ScriptedEngine):
    """Asks what the noise of its session says, and acts on the answers."""

    def __init__(self, recipe: Any, codec: Codec, model: Any) -> None:
        super().__init__(codec, self)
        self.noise_key = 0

    async def generate(self, request: GenerationRequest) -> Generation:
        self.noise_key = request.noise_key  # `act` is called before anything else can be
        return await super().generate(request)

    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall | None]:
        said = "|".join(turn.observation or "" for turn in turns)
        rng = random.Random(f"{self.noise_key}-{said}-{len(turns)}")
        if len(turns) < 3 and rng.random() < 0.8:
            return "", ToolCall("ask_user", {"query": rng.choice(QUESTIONS)})
        return "", ToolCall("finish", {"answer": f"f{rng.randrange(64)}\n{said}"})


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(town_reply) as server:
        yield server


def recipe_of(folder: Path, server: ChatServer, **changes: Any) -> list[str]:
    recipe = {
        "tiny_model": True,
        "environments": {"town": 1},
        "train_tasks": {"town": {"split": "train", "num": 4}},
        "preferences": ["no_preference", "joke", "one_question"],
        "user": {"kind": "llm", "model": "m", "base_url": server.base_url, "cache_path": str(folder / "users.sqlite")},
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "learning_rate": 1e-2,
        "max_completion_length": 400,
        "limits": {"max_prompt_tokens": 2000, "max_turns": 4},
        "reward_clip": None,
        "max_logprob_difference": 100.0,  # the engine is a script, which has no probabilities
        "deterministic": True,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return ["--config", str(path)]


def train(folder: Path, options: Sequence[str], cache: str) -> list[dict[str, Any]]:
    """What there is to compare of a run."""
    assert ppp.train.main([*options, "--user.cache", cache, "--output_dir", str(folder)]) == 0
    lines = (folder / "trajectories.jsonl").read_text().splitlines()
    return [replayable(json.loads(line)) for line in lines]


def test_a_replay_without_the_server_gives_the_same_trajectories_and_rewards(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppp.train, "build_engine", Wanderer)
    options = recipe_of(tmp_path, server)
    recorded = train(tmp_path / "recorded", options, "write")
    server.down = True
    num_requests = server.num_requests
    replayed = train(tmp_path / "replayed", options, "replay")
    assert replayed == recorded
    assert server.num_requests == num_requests
    answers = [turn["answer"] for record in recorded for turn in record["turns"] if "answer" in turn]
    assert len(answers) > 24 and {answer["effort"] for answer in answers} == {"low", "medium", "high"}
    assert len({record["score"]["reward"] for record in recorded}) > 2
    calls = [json.loads((tmp_path / name / "user_ledger.json").read_text()) for name in ("recorded", "replayed")]
    assert calls[0]["users"]["user"]["calls"] == calls[1]["users"]["user"]["calls"]
    assert calls[1]["users"]["user"]["requests"] == 0 and calls[1]["users"]["user"]["cached_share"] == 1.0


def test_failures_are_replayed_as_failures(server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that was left out stays out, so that its group has the same baseline."""
    monkeypatch.setattr(ppp.train, "build_engine", Wanderer)
    options = recipe_of(tmp_path, server, max_failure_rate=1.0)
    # Whole conversations fail or do not, whoever asks: an answer that came later would be in the record as well.
    unlucky = [row["precise_prompt"] for row in town_task_rows("train", 2)]
    server.reply = lambda request: "" if any(text in str(request) for text in unlucky) else town_reply(request)
    recorded = train(tmp_path / "recorded", [*options, "--user.max_retries", "0"], "write")
    server.down = True
    assert train(tmp_path / "replayed", options, "replay") == recorded
    stops = [record["stop_reason"] for record in recorded]
    assert 0 < stops.count("error") < len(stops)


def test_a_replay_that_would_have_to_ask_stops_with_a_sentence(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ppp.train, "build_engine", Wanderer)
    options = recipe_of(tmp_path, server)
    train(tmp_path / "recorded", [*options, "--max_steps", "1"], "write")
    server.down = True
    options = [*options, "--user.cache", "replay", "--output_dir", str(tmp_path / "replayed")]
    assert ppp.train.main(options) == 1
    assert "holds no answer to a request to 'm', and replay never asks" in capfd.readouterr().err
    assert (tmp_path / "replayed" / "checkpoint-1" / "trainer_state.json").is_file()
    assert server.num_requests


def test_a_model_that_is_trained_plays_the_same_again(server: ChatServer, tmp_path: Path) -> None:
    """With the real engine, whose updates must be the same to the last bit for the next step to be."""
    options = recipe_of(tmp_path, server, max_completion_length=60, limits={"max_turns": 2, "max_prompt_tokens": 2000})
    recorded = train(tmp_path / "recorded", options, "write")
    assert train(tmp_path / "replayed", options, "replay") == recorded
    assert len({json.dumps(record["turns"]) for record in recorded}) == len(recorded)
