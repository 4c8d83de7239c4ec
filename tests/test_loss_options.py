"""Options of the loss that are TRL's, through our trainer: each changes what it should, by hand-computed numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import ToyEnvironment, register
from toy_trainer import build_trainer, generate, read_trajectories
from transformers import PreTrainedTokenizerBase

from ppp.batch import RolloutSettings
from ppp.rewards import RewardSettings
from ppp.trainer import PPPTrainer
from ppp.types import Task, ToolCall

# Two groups of four; beyond 1 with any bonus, below 0 with any cost.
SCORES = [0.0, 1.0, 1.0, 0.5, 0.0, 0.0, 1.0, 0.25]
ASKS = [True, False, True, True, False, True, False, True]


class SomeAsk:
    """Asks in some sessions, by their number; a scripted user finds such a question costly."""

    def __init__(self) -> None:
        self.asks: dict[int, bool] = {}

    def act(self, task: Task, turns: Any) -> tuple[str, ToolCall | None]:
        if not turns:
            number = len(self.asks)
            self.asks[number] = ASKS[number % 8]
            if self.asks[number]:
                return "", ToolCall("ask_user", {"query": "Where is it?"})
        return "", ToolCall("finish", {"answer": "f1"})


@pytest.fixture(autouse=True)
def toy_environment() -> Iterator[None]:
    register()
    ToyEnvironment.reset(SCORES)
    yield
    ToyEnvironment.reset()


Make = Callable[..., PPPTrainer]


@pytest.fixture
def make_trainer(tokenizer: PreTrainedTokenizerBase, make_model: Callable[..., Any], tmp_path: Path) -> Make:
    def make(rewards: RewardSettings | None = None, **options: Any) -> PPPTrainer:
        settings = RolloutSettings(rewards or RewardSettings(), correction=False, max_failure_rate=0.5)
        options = {"player": SomeAsk(), **options}
        return build_trainer(tokenizer, make_model(tokenizer), tmp_path / "run", settings=settings, **options)

    return make


def scores_of(trainer: PPPTrainer) -> list[dict[str, float] | None]:
    """What the last batch earned, by its trajectories."""
    return [record["score"] for record in read_trajectories(trainer)[-8:]]


def normalised(values: list[float]) -> torch.Tensor:
    found = torch.tensor(values)
    return (found - found.mean()) / (found.std() + 1e-4)


def test_without_a_clip_the_bonus_of_a_solved_session_counts(make_trainer: Make) -> None:
    """Clipped to 1, asking well is worth nothing where the task is solved anyway."""
    clipped, free = make_trainer(), make_trainer(RewardSettings(reward_clip=None))
    for trainer, clips in ((clipped, True), (free, False)):
        ToyEnvironment.reset(SCORES)
        batch = generate(trainer)
        scores = [score for score in scores_of(trainer) if score is not None]
        sums = [sum(score[term] for term in ("productivity", "proactivity", "personalization")) for score in scores]
        assert max(sums) > 1, "otherwise there is nothing to clip"
        rewards = [min(max(value, 0.0), 1.0) if clips else value for value in sums]
        assert [score["reward"] for score in scores] == pytest.approx(rewards)
        expected = torch.cat([normalised(rewards[:4]), normalised(rewards[4:])])
        torch.testing.assert_close(batch["advantages"], expected)


def gdpo(rows: list[dict[str, float] | None], weights: dict[str, float]) -> torch.Tensor:
    """Advantages after GDPO (arXiv 2601.05242): each term by its group, weighted, summed, then by the batch."""
    summed: list[float | None] = [None] * len(rows)
    for start in range(0, len(rows), 4):
        whole = [index for index in range(start, start + 4) if rows[index] is not None]
        for index in whole:
            summed[index] = 0.0
        for term, weight in weights.items():
            values = torch.tensor([(rows[index] or {})[term] for index in whole])
            by_group = (values - values.mean()) / (values.std() + 1e-4)
            for index, value in zip(whole, by_group.tolist(), strict=True):
                summed[index] = (summed[index] or 0.0) + weight * value
    values = torch.tensor([value for value in summed if value is not None])
    spread = values.std() + 1e-4
    return torch.tensor([0.0 if value is None else float((value - values.mean()) / spread) for value in summed])


@pytest.mark.parametrize("failing", [{}, {2: "down"}, {0: "down", 5: "down"}], ids=["whole", "one gone", "two gone"])
@pytest.mark.parametrize("weight", [1.0, 0.25, 0.0])
def test_terms_are_normalised_one_by_one_and_weighted(
    make_trainer: Make, failing: dict[int, str], weight: float
) -> None:
    ToyEnvironment.reset(SCORES, failing)
    rewards = RewardSettings(weights={"proactivity": weight})
    trainer = make_trainer(rewards, multi_objective_aggregation="normalize_then_sum")
    batch = generate(trainer)
    rows = scores_of(trainer)
    assert [index for index, row in enumerate(rows) if row is None] == list(failing)
    expected = gdpo(rows, {"productivity": 1.0, "proactivity": weight, "personalization": 1.0})
    torch.testing.assert_close(batch["advantages"], expected, atol=1e-4, rtol=1e-4)
    assert batch["advantages"][list(failing)].eq(0).all()
    assert trainer._metrics["train"]["flat_groups"] == [0.0]


def test_a_small_term_is_not_drowned_when_terms_are_normalised_one_by_one(make_trainer: Make) -> None:
    """The clip makes all sessions that fail equal; by itself the cost of asking badly still counts."""
    ToyEnvironment.reset([0.0])
    rewards = RewardSettings(weights={"personalization": 0})
    summed = generate(make_trainer(rewards))
    assert summed["advantages"].eq(0).all()
    by_itself = make_trainer(rewards, multi_objective_aggregation="normalize_then_sum")
    assert generate(by_itself)["advantages"].abs().min() > 0.1
    assert by_itself._metrics["train"]["flat_groups"] == [0.0], "and the guard is told so"


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_ratios_are_per_token_or_per_sequence(make_trainer: Make, level: str) -> None:
    """GSPO: the ratio of a sequence is the geometric mean of its tokens', and is clipped as a whole."""
    trainer = make_trainer(importance_sampling_level=level, epsilon=0.03, epsilon_high=0.04)
    batch = generate(trainer)
    trainer.accelerator.gradient_state._set_sync_gradients(True)
    trainer.current_gradient_accumulation_steps = 1
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    mask = (batch["completion_mask"] * batch["tool_mask"]).float()
    logps = trainer._logprobs(ids, attention, batch["completion_ids"].size(1))
    noise = torch.randn(logps.shape, generator=torch.Generator().manual_seed(0)) * 0.2
    batch["old_per_token_logps"] = logps - noise
    ratio = noise.exp()
    if level == "sequence":
        ratio = ((noise * mask).sum(1) / mask.sum(1)).exp()[:, None].expand_as(noise)
    advantages = batch["advantages"][:, None]
    clipped = ratio.clamp(1 - 0.03, 1 + 0.04)
    assert (clipped != ratio).any() and (clipped == ratio).any()
    expected = -(torch.min(ratio * advantages, clipped * advantages) * mask).sum() / mask.sum()
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), expected, atol=1e-5, rtol=1e-4)
