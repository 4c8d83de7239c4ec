"""PPPTrainer: what goes into the loss, what stays out of it, when a run stops. Rollouts are scripted, models are
tiny."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from toy import ToyEnvironment, register
from toy_trainer import UNCLIPPED, Player, build_trainer, generate, read_metrics
from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer

from ppp.alignment import CORRECTED
from ppp.batch import RolloutSettings, TooManyFailuresError
from ppp.codec import Codec
from ppp.engines.scripted import ScriptedEngine
from ppp.rewards import RewardSettings
from ppp.session import Limits
from ppp.trainer import PPPTrainer
from ppp.types import Task, ToolCall, Turn

SCORES = [0.1, 0.9, 0.4, 0.3, 0.0, 1.0, 0.5, 0.5]  # of two groups of four


@pytest.fixture(autouse=True)
def toy_environment() -> Iterator[None]:
    register()
    ToyEnvironment.reset(SCORES)
    yield
    ToyEnvironment.reset()


@pytest.fixture
def make_trainer(
    tokenizer: PreTrainedTokenizerBase, make_model: Callable[..., Any], tmp_path: Path
) -> Callable[..., PPPTrainer]:
    def make(settings: RolloutSettings | None = None, player: Player | None = None, **options: Any) -> PPPTrainer:
        return build_trainer(
            tokenizer, make_model(tokenizer), tmp_path / "run", settings=settings, player=player, **options
        )

    return make


def advantages_of(rewards: Sequence[float]) -> torch.Tensor:
    values = torch.tensor(rewards)
    return (values - values.mean()) / (values.std() + 1e-4)


def test_advantages_are_those_of_the_scores(make_trainer: Callable[..., PPPTrainer]) -> None:
    batch = generate(make_trainer())
    expected = torch.cat([advantages_of(SCORES[:4]), advantages_of(SCORES[4:])])
    torch.testing.assert_close(batch["advantages"], expected)


def test_failed_trajectory_leaves_the_loss_and_the_baseline_of_its_group(
    make_trainer: Callable[..., PPPTrainer],
) -> None:
    ToyEnvironment.reset(SCORES, failing={1: "the server is gone"})
    batch = generate(make_trainer())
    group = advantages_of([SCORES[0], *SCORES[2:4]])
    expected = torch.cat([group[:1], torch.zeros(1), group[1:], advantages_of(SCORES[4:])])
    torch.testing.assert_close(batch["advantages"], expected)
    mask = batch["tool_mask"] * batch["completion_mask"]
    assert mask[1].sum() == 0
    assert all(mask[row].sum() > 0 for row in range(8) if row != 1)
    assert batch["num_items_in_batch"] == mask.sum()


def test_only_tokens_of_the_policy_carry_loss(make_trainer: Callable[..., PPPTrainer], codec: Codec) -> None:
    batch = generate(make_trainer())
    own = codec.render_turn("Looking.", ToolCall("look", {"where": "there"}))
    own += codec.render_turn("Done.", ToolCall("finish", {"answer": "f1"}))
    mask = (batch["tool_mask"] * batch["completion_mask"]).bool()
    for row in range(8):
        assert batch["completion_ids"][row][mask[row]].tolist() == own


@pytest.mark.parametrize("is_masked", [True, False])
def test_truncation_is_decided_from_the_stop_reason(make_trainer: Callable[..., PPPTrainer], is_masked: bool) -> None:
    # The budget ends within the second turn: the last token is no EOS, which is all that TRL would look at.
    trainer = make_trainer(limits=Limits(max_completion_tokens=150), mask_truncated_completions=is_masked)
    batch = generate(trainer)
    carrying = (batch["tool_mask"] * batch["completion_mask"]).sum(1) > 0
    assert carrying.tolist() == [not is_masked] * 8
    assert batch["completion_mask"].sum(1).min() > 0, "attention must stay"

    whole = generate(make_trainer(mask_truncated_completions=is_masked))
    assert ((whole["tool_mask"] * whole["completion_mask"]).sum(1) > 0).all()


def ragged_inputs() -> tuple[torch.Tensor, torch.Tensor, int]:
    """Prompts of 3 to 9 tokens padded on the left, completions of 2 to 30 padded on the right."""
    generator = torch.Generator().manual_seed(0)
    lengths = [(3, 30), (9, 2), (4, 5), (5, 9), (3, 3), (6, 12)]
    prompts = [torch.randint(1, 200, (prompt,), generator=generator) for prompt, _ in lengths]
    completions = [torch.randint(1, 200, (completion,), generator=generator) for _, completion in lengths]
    left = pad_sequence([prompt.flip(0) for prompt in prompts], batch_first=True).flip(1)
    right = pad_sequence(completions, batch_first=True)
    input_ids = torch.cat([left, right], 1)
    return input_ids, (input_ids > 0).long(), right.size(1)


@pytest.mark.parametrize("piece_rows", [2, 4, 32])
@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_trimmed_micro_batches_give_what_padded_ones_give(
    make_trainer: Callable[..., PPPTrainer], batch_size: int | None, piece_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppp.forward.PIECE_ROWS", piece_rows)
    trainer = make_trainer()
    input_ids, attention_mask, num_completion = ragged_inputs()
    mask = attention_mask[:, -num_completion:].bool()
    found = {}
    for kind, cls in (("theirs", GRPOTrainer), ("ours", PPPTrainer)):
        trainer.model.zero_grad()
        logps, entropies, _ = cls._get_per_token_logps_and_entropies(
            trainer, trainer.model, input_ids, attention_mask, num_completion, batch_size, compute_entropy=True
        )
        assert logps.shape == entropies.shape == (6, num_completion)
        logps[mask].sum().backward()
        gradients = [parameter.grad.clone() for parameter in trainer.model.parameters()]
        found[kind] = (logps[mask], entropies[mask], *gradients)
    for ours, theirs in zip(found["ours"], found["theirs"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_micro_batch_runs_without_the_columns_that_are_all_padding(
    make_trainer: Callable[..., PPPTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = []

    def stock(self: Any, model: Any, input_ids: torch.Tensor, mask: torch.Tensor, keep: int, **_: Any) -> Any:
        widths.append(input_ids.size(1))
        return torch.zeros(len(input_ids), keep), None, None

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", stock)
    trainer = make_trainer()
    logps, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, *ragged_inputs(), batch_size=1)
    assert widths == [33, 11, 9, 14, 6, 18]
    assert logps.shape == (6, 30)


def test_correction_follows_the_agreement_of_engine_and_trainer(make_trainer: Callable[..., PPPTrainer]) -> None:
    """The scripted engine says log-probability 0 of every token, which no model would."""
    batch = generate(make_trainer(RolloutSettings(UNCLIPPED, correction=None)))
    assert "importance_sampling_ratio" in batch
    assert batch["importance_sampling_ratio"].max() <= 2
    assert batch["importance_sampling_ratio"].shape == batch["completion_ids"].shape, "token level"
    assert "importance_sampling_ratio" not in generate(make_trainer())


def test_correction_caps_the_ratio_of_each_token_at_two(
    make_trainer: Callable[..., PPPTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(RolloutSettings(UNCLIPPED, correction=True))
    monkeypatch.setattr(ScriptedEngine, "generate", _unlikely(ScriptedEngine.generate))
    batch = generate(trainer)
    ratio = batch["importance_sampling_ratio"][(batch["tool_mask"] * batch["completion_mask"]).bool()]
    assert ratio.eq(2).all()
    trainer.accelerator.gradient_state._set_sync_gradients(True)
    trainer.current_gradient_accumulation_steps = 1
    corrected = trainer.compute_loss(trainer.model, batch)
    trainer.use_vllm = False
    torch.testing.assert_close(corrected, 2 * trainer.compute_loss(trainer.model, batch))


def _unlikely(generate: Any) -> Any:
    """An engine that claims e^-50 for every token: each ratio would be astronomical."""

    async def wrapped(self: Any, request: Any) -> Any:
        generation = await generate(self, request)
        return type(generation)(generation.token_ids, [-50.0] * len(generation.token_ids), generation.finish_reason)

    return wrapped


def test_terms_can_be_normalised_one_by_one(make_trainer: Callable[..., PPPTrainer]) -> None:
    settings = RolloutSettings(RewardSettings(weights={"proactivity": 0.5}), correction=False)
    trainer = make_trainer(settings, multi_objective_aggregation="normalize_then_sum")
    assert trainer.reward_func_names == ["productivity", "proactivity", "personalization"]
    assert trainer.reward_weights.tolist() == [1.0, 0.5, 1.0]
    assert generate(trainer)["advantages"].abs().sum() > 0


def test_training_changes_the_policy_and_tells_every_step(make_trainer: Callable[..., PPPTrainer]) -> None:
    ToyEnvironment.reset()
    trainer = make_trainer()
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))
    steps = [line for line in read_metrics(trainer) if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    expected = {"session_reward", "terms/productivity", "ask_ratio/vague", "effort/low", "turns/unreadable"}
    expected |= {"failure_rate", "flat_groups", "stop/finished", "terms/proactivity_group_std", "productivity"}
    assert expected <= set(steps[0])
    assert steps[0]["stop/finished"] == 1.0
    records = (Path(trainer.args.output_dir) / "trajectories.jsonl").read_text().splitlines()
    assert [json.loads(record)["step"] for record in records] == [1] * 8 + [2] * 8 + [3] * 8


def test_a_checkpoint_knows_of_all_steps_however_rarely_they_are_logged(
    make_trainer: Callable[..., PPPTrainer],
) -> None:
    ToyEnvironment.reset()
    trainer = make_trainer(logging_steps=10, save_strategy="steps", save_steps=2)
    trainer.train()
    state = json.loads((Path(trainer.args.output_dir) / "checkpoint-2" / "trainer_state.json").read_text())
    assert [logs["step"] for logs in state["log_history"]] == [2]
    assert CORRECTED in state["log_history"][0], "a resumed run reads there whether ratios are corrected"


def test_evaluation_tells_scores_by_preference_and_leaves_training_metrics_alone(
    make_trainer: Callable[..., PPPTrainer],
) -> None:
    ToyEnvironment.reset()
    trainer = make_trainer(eval_strategy="steps", eval_steps=2)
    trainer.train()
    evaluations = [line for line in read_metrics(trainer) if "eval_productivity" in line]
    assert [line["step"] for line in evaluations] == [2, 3], "every two steps and at the end"
    assert evaluations[0]["eval_preference/no_preference/num_sessions"] == 2
    assert evaluations[0]["eval_vague_seen/productivity"] == evaluations[0]["eval_productivity"]
    assert not any(key.startswith("eval_") for line in read_metrics(trainer) if "loss" in line for key in line)


def test_too_many_failures_stop_the_run_and_name_the_most_frequent_cause(
    make_trainer: Callable[..., PPPTrainer],
) -> None:
    ToyEnvironment.reset(SCORES, failing={9: "quota", 10: "down", 11: "down", 12: "down", 13: "quota"})
    trainer = make_trainer()
    with pytest.raises(TooManyFailuresError, match=r"5 of 8 .*most often \(3 times\): InfrastructureError: down"):
        trainer.train()
    checkpoints = sorted(path.name for path in Path(trainer.args.output_dir).glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-1"], "of the last finished step"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_rollout_stops_at_once_and_leaves_a_checkpoint(
    make_trainer: Callable[..., PPPTrainer], number: signal.Signals
) -> None:
    ToyEnvironment.reset()
    trainer = make_trainer(max_steps=100)

    def interrupt(task: Task, turns: Sequence[Turn]) -> None:
        if trainer.state.global_step == 2 and turns:
            os.kill(os.getpid(), number)

    trainer.pool.engine.policy = Player(interrupt)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [path.name for path in Path(trainer.args.output_dir).glob("checkpoint-*")] == ["checkpoint-2"]
    assert signal.getsignal(number) is before


def test_a_signal_outside_of_a_rollout_waits_for_the_end_of_the_step(make_trainer: Callable[..., PPPTrainer]) -> None:
    ToyEnvironment.reset()
    trainer = make_trainer(max_steps=100)
    optimizer_step = trainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return optimizer_step(*args, **kwargs)

    trainer.compute_loss = compute_loss
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [path.name for path in Path(trainer.args.output_dir).glob("checkpoint-*")] == ["checkpoint-3"]


def test_sampling_noise_differs_between_rounds_of_one_step(make_trainer: Callable[..., PPPTrainer]) -> None:
    trainer = make_trainer()
    trainer._tasks = [Task("t", "toy", "p", "q", "no_ask", {})] * 8
    first, second = trainer._jobs(), trainer._jobs()
    assert [(job.row, job.copy) for job in first] == [(row, copy) for row in (0, 1) for copy in range(4)]
    assert {job.row for job in second} == {2, 3}
    trainer.state.global_step = 1
    assert trainer._jobs() == first
