"""Dynamic sampling: which groups are replaced, by what, how often, and that nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import ChatServer
from toy import ToyEnvironment, register
from toy_trainer import UNCLIPPED, Player, build_trainer, generate, read_metrics, read_trajectories
from transformers import PreTrainedTokenizerBase

from ppp.batch import RolloutSettings, TooManyFailuresError
from ppp.resampling import ATTEMPT_ROWS
from ppp.rewards import RewardSettings
from ppp.trainer import PPPTrainer
from ppp.types import InfrastructureError, Task, ToolCall, Turn
from ppp.users.crowd import Crowd

NUM_COPIES = 4


class ByTask(ToyEnvironment):
    """All copies of a task score alike unless it is among `lively`."""

    lively: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()

    async def setup(self) -> None:
        await super().setup()
        if self.name() in self.broken:
            raise InfrastructureError("down")

    def name(self) -> str:
        return self.task.task_id.split("/")[0]

    async def score(self, answer: str | None) -> float:
        return 0.25 * self.copy if self.name() in self.lively else 0.5


@pytest.fixture(autouse=True)
def toy_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from ppp.environments import ENVIRONMENTS

    register()
    ByTask.reset()
    monkeypatch.setitem(ENVIRONMENTS, "toy", ByTask)
    yield
    ByTask.lively = ByTask.broken = frozenset()


Make = Callable[..., PPPTrainer]


@pytest.fixture
def make_trainer(tokenizer: PreTrainedTokenizerBase, make_model: Callable[..., Any], tmp_path: Path) -> Make:
    def make(max_resamples: int, name: str = "run", rewards: RewardSettings = UNCLIPPED, **options: Any) -> PPPTrainer:
        settings = RolloutSettings(rewards, correction=False, max_failure_rate=0.5, max_resamples=max_resamples)
        options = {"num_tasks": 8, **options}
        return build_trainer(tokenizer, make_model(tokenizer), tmp_path / name, settings=settings, **options)

    return make


def lively(*numbers: int) -> frozenset[str]:
    return frozenset(f"toy-{number}" for number in numbers)


def test_a_flat_group_gives_way_to_another_session(make_trainer: Make) -> None:
    ByTask.lively = lively(0, 2, 3, 4, 5, 6, 7)  # toy-1, the second of the batch, is flat
    trainer = make_trainer(1)
    batch = generate(trainer)
    assert batch["advantages"].abs().gt(0).sum() == 8, "both groups teach"
    records = read_trajectories(trainer)
    gone = [record for record in records if record.get("discarded")]
    kept = [record for record in records if not record.get("discarded")]
    assert [record["task_id"] for record in gone] == ["toy-1/no_preference"] * NUM_COPIES
    assert [record["row"] for record in gone] == [1] * NUM_COPIES
    assert [record["task_id"] for record in kept[:4]] == ["toy-0/no_preference"] * NUM_COPIES
    (new,) = {record["task_id"] for record in kept[4:]}
    assert new not in ("toy-0/no_preference", "toy-1/no_preference")
    assert [(record["row"], record["copy"]) for record in kept[4:]] == [(ATTEMPT_ROWS + 1, copy) for copy in range(4)]
    assert trainer._metrics["train"]["resampled_groups"] == [1.0]
    assert trainer._metrics["train"]["flat_groups_drawn"] == [0.5]
    assert trainer._metrics["train"]["flat_groups"] == [0.0]


def test_tasks_and_prompts_are_those_that_were_played(make_trainer: Make) -> None:
    ByTask.lively = lively(0, 2, 3, 4, 5, 6, 7)
    trainer = make_trainer(1)
    generate(trainer)
    kept = [record for record in read_trajectories(trainer) if not record.get("discarded")]
    assert [task.task_id for task in trainer._tasks] == [record["task_id"] for record in kept]
    prompts = [messages[0]["content"] for messages in trainer._logs["prompt"]]
    assert prompts == [record["prompt"] for record in kept]


def test_attempts_are_bounded_and_no_session_is_drawn_twice(make_trainer: Make) -> None:
    trainer = make_trainer(2)  # every session is flat
    batch = generate(trainer)
    assert batch["advantages"].eq(0).all()
    records = read_trajectories(trainer)
    assert len(records) == 3 * 8 and sum(record.get("discarded", False) for record in records) == 2 * 8
    played = [record["task_id"] for record in records]
    assert len(set(played)) == 6 and all(played.count(name) == NUM_COPIES for name in played)
    assert [record["row"] // ATTEMPT_ROWS for record in records] == [0] * 8 + [1] * 8 + [2] * 8
    assert trainer._metrics["train"]["resampled_groups"] == [4.0]


def test_a_set_that_is_used_up_leaves_flat_groups_as_they_are(make_trainer: Make) -> None:
    trainer = make_trainer(5, num_tasks=3)
    generate(trainer)
    assert len(read_trajectories(trainer)) == 8 + 4
    assert trainer._metrics["train"]["resampled_groups"] == [1.0]
    assert trainer._metrics["train"]["flat_groups"] == [1.0]


def test_draws_differ_by_step_and_round_and_are_the_same_in_every_run(make_trainer: Make) -> None:
    trainers = [make_trainer(1, name) for name in ("one", "two")]
    draws = [
        trainer.sampling._draw(8, set(), seed) for trainer in trainers for seed in ("7/0/0/1", "7/1/0/1", "8/0/0/1")
    ]
    assert draws[:3] == draws[3:]
    assert len({tuple(draw) for draw in draws}) == 3
    assert sorted(draws[0]) == list(range(8))


def test_groups_are_flat_where_no_term_that_counts_differs(make_trainer: Make) -> None:
    """With one advantage per term, equal sums teach all the same."""
    ByTask.lively = lively(0)
    clipped = RewardSettings({"proactivity": 0, "personalization": 0}, reward_clip=(5.0, 6.0))
    trainer = make_trainer(1, rewards=clipped, multi_objective_aggregation="normalize_then_sum")
    generate(trainer)
    assert trainer._metrics["train"]["flat_groups_drawn"] == [0.5], "the first group differs in productivity"


def test_the_advantages_of_a_replaced_group_are_those_of_its_own_scores(make_trainer: Make) -> None:
    ByTask.lively = lively(*range(1, 8))
    batch = generate(make_trainer(1))
    scores = torch.tensor([0.0, 0.25, 0.5, 0.75])
    expected = (scores - scores.mean()) / (scores.std() + 1e-4)
    torch.testing.assert_close(batch["advantages"], expected.repeat(2))


def test_failures_are_not_resampled_without_end(make_trainer: Make) -> None:
    ByTask.broken = lively(*range(8))
    trainer = make_trainer(3)
    with pytest.raises(TooManyFailuresError):
        generate(trainer)
    assert ByTask.num_opened == 8, "nothing is played again while everything fails"
    assert [record["error"] for record in read_trajectories(trainer)] == ["InfrastructureError: down"] * 8


def test_sessions_that_are_thrown_away_are_counted(make_trainer: Make) -> None:
    ByTask.lively = lively(0, 2, 3, 4, 5, 6, 7)
    trainer = make_trainer(1)
    generate(trainer)
    assert trainer.phase.books.num_sessions == 12


class Asker:
    """Asks and finishes."""

    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall | None]:
        if not turns:
            return "", ToolCall("ask_user", {"query": "Where?"})
        return "", ToolCall("finish", {"answer": "f1"})


def test_what_users_took_in_sessions_that_are_thrown_away_is_told(make_trainer: Make) -> None:
    with ChatServer(lambda request: {"answer": "There.", "source": "task", "follows_preference": True}) as server:
        crowd = Crowd({"kind": "llm", "model": "m", "base_url": server.base_url})
        trainer = make_trainer(2, player=Asker(), crowd=crowd)
        generate(trainer)
        assert trainer._metrics["train"]["resampled_groups"] == [4.0]
        assert trainer._metrics["train"]["users/calls"] == [3 * 8]
        generate(trainer)
        trainer.pool.close()
    assert trainer._metrics["train"]["users/calls"] == [3 * 8, 3 * 8], "and counted from the start of each batch"


def lines_of(trainer: PPPTrainer) -> list[dict[str, Any]]:
    keep = ("seconds/", "step_time", "train_")
    return [
        {name: value for name, value in line.items() if not name.startswith(keep)} for line in read_metrics(trainer)
    ]


def test_a_training_without_flat_groups_is_the_same_bit_for_bit(make_trainer: Make) -> None:
    ByTask.lively = lively(*range(8))
    found = []
    for name, max_resamples in (("without", 0), ("with", 3)):
        trainer = make_trainer(max_resamples, name)
        trainer.train()
        lines = [
            {key: value for key, value in line.items() if key not in ("resampled_groups", "flat_groups_drawn")}
            for line in lines_of(trainer)
        ]
        found.append((lines, [parameter.detach().clone() for parameter in trainer.model.parameters()]))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(*pair) for pair in zip(found[0][1], found[1][1], strict=True))
    assert "resampled_groups" not in json.dumps(found[0][0])


def test_an_evaluation_is_played_as_it_stands(make_trainer: Make) -> None:
    trainer = make_trainer(3, eval_strategy="steps", eval_steps=1, max_steps=1)
    trainer.train()
    records = [record for record in read_trajectories(trainer) if record["mode"] == "eval"]
    assert len(records) == 8 and not any("discarded" in record for record in records)


def test_a_player_sees_the_sessions_that_take_the_place_of_others(make_trainer: Make) -> None:
    seen: list[str] = []

    def note(task: Task, turns: Any) -> None:
        seen.append(task.task_id)

    generate(make_trainer(1, player=Player(note)))
    assert len(set(seen)) == 4
