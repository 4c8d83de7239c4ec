"""Padding, micro-batches of like length, chunked logits and activation checkpointing: less work, the same gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode
from toy import ToyEnvironment, register
from toy_trainer import build_trainer, generate, read_metrics
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

import ppp.training_step
from ppp.forward import BALANCED_LOSSES, MicroBatch, balanced, deal
from ppp.trainer import PPPTrainer
from ppp.types import Task, ToolCall, Turn

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


class Talker:
    """Looks as often as the number of its task says, so that sessions differ in length, and no copy says the same."""

    num_sessions = 0

    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall | None]:
        number = int(task.task_id.split("/")[0].removeprefix("toy-"))
        if len(turns) < number % 5:
            return "So.", ToolCall("look", {"where": "a" * number})
        self.num_sessions += 1
        return f"Number {self.num_sessions}.", ToolCall("finish", {"answer": "f1"})


@pytest.fixture(autouse=True)
def toy_environment() -> Iterator[None]:
    register()
    ToyEnvironment.reset()
    yield
    ToyEnvironment.reset()


@pytest.fixture
def make_trainer(
    tokenizer: PreTrainedTokenizerBase, make_model: Callable[..., Any], tmp_path: Path
) -> Callable[..., PPPTrainer]:
    def make(name: str = "run", **options: Any) -> PPPTrainer:
        options = {"player": Talker(), "num_tasks": 8, **options}
        return build_trainer(tokenizer, make_model(tokenizer), tmp_path / name, **options)

    return make


# --- which rows go together ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 4, 2), (2, 3, 4), (4, 2, 1), (3, 1, 5), (8, 4, 2)])
def test_every_row_is_dealt_once_and_rows_of_a_moment_are_of_like_length(shape: tuple[int, int, int]) -> None:
    lengths = torch.randint(10, 1000, shape, generator=torch.Generator().manual_seed(0))
    plan = deal(lengths)
    assert plan.shape == shape
    assert sorted(plan.flatten().tolist()) == list(range(lengths.numel()))
    dealt = lengths.flatten()[plan]
    moments = dealt.transpose(0, 1).flatten(1)  # all rows that are computed at the same time
    assert (moments[:-1].amin(1) >= moments[1:].amax(1)).all(), "longest first, without overlap"
    before, after = (which.amax(2).amax(0).sum() for which in (lengths, dealt))
    assert after <= before, "the slowest process of each moment sets the pace"


def test_rows_are_dealt_there_and_back() -> None:
    lengths = torch.tensor([8, 7, 6, 5, 4, 3, 2, 1]).view(2, 2, 2)
    dealt = lengths.flatten()[deal(lengths)]
    assert dealt.tolist() == [[[8, 5], [4, 1]], [[7, 6], [3, 2]]]
    assert dealt.sum((1, 2)).tolist() == [18, 18]


def batch_of(lengths: Sequence[int], first: int) -> MicroBatch:
    width = 20
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    numbers = torch.arange(first, first + len(lengths))
    return {
        "prompt_ids": numbers[:, None].repeat(1, 3),
        "prompt_mask": torch.ones(len(lengths), 3, dtype=torch.long),
        "completion_ids": numbers[:, None] * mask,
        "completion_mask": mask,
        "advantages": numbers.float(),
        "num_items_in_batch": torch.tensor(7),
        "old_per_token_logps": None,
    }


def test_rows_stay_whole_and_within_their_optimizer_step() -> None:
    batches = [batch_of(lengths, 2 * number) for number, lengths in enumerate([(3, 9), (7, 2), (1, 8), (4, 6)])]
    found = balanced(batches, 2, Accelerator(cpu=True))
    assert [batch["completion_mask"].sum(1).tolist() for batch in found] == [[9, 7], [3, 2], [8, 6], [4, 1]]
    for batch in found:
        numbers = batch["advantages"].long()
        assert (batch["prompt_ids"] == numbers[:, None]).all()
        assert (batch["completion_ids"] == numbers[:, None] * batch["completion_mask"]).all()
        assert batch["num_items_in_batch"] == 7 and batch["old_per_token_logps"] is None


def test_a_single_micro_batch_is_left_as_it_is() -> None:
    batch = batch_of((3, 9), 0)
    assert balanced([batch], 1, Accelerator(cpu=True))[0] is batch


@pytest.mark.parametrize("loss_type", BALANCED_LOSSES)
def test_loss_and_gradient_are_those_of_micro_batches_at_random(
    make_trainer: Callable[..., PPPTrainer], loss_type: str
) -> None:
    trainer = make_trainer(per_device_train_batch_size=4, gradient_accumulation_steps=4, loss_type=loss_type)
    batch = generate(trainer)
    trainer.accelerator.gradient_state._set_sync_gradients(True)
    trainer.current_gradient_accumulation_steps = 4
    at_random = split_tensor_dict(shuffle_sequence_dict(batch), 4)
    found, widths = [], []
    for micro_batches in (balanced(at_random, 4, trainer.accelerator), at_random):
        trainer.model.zero_grad()
        losses = [trainer.compute_loss(trainer.model, micro_batch) for micro_batch in micro_batches]
        sum(losses).backward()
        found.append([sum(losses).detach(), *(parameter.grad.clone() for parameter in trainer.model.parameters())])
        widths.append(sum(int(micro_batch["completion_mask"].sum(1).max()) for micro_batch in micro_batches))
    assert widths[0] < widths[1]
    assert max(gradient.abs().max() for gradient in found[0][1:]) > 1e-3
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_micro_batches_of_a_training_are_balanced(make_trainer: Callable[..., PPPTrainer]) -> None:
    trainer = make_trainer(per_device_train_batch_size=4, gradient_accumulation_steps=4, max_steps=1)
    trainer.train()
    widths = [int(batch["completion_mask"].sum(1).max()) for batch in trainer._buffered_inputs or []]
    assert len(widths) == 4 and len(set(widths)) == 4 and widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("options", [{"loss_type": "bnpo"}, {"top_entropy_quantile": 0.5}, {"entropy_coef": 0.1}])
def test_averages_within_a_micro_batch_keep_its_rows_at_random(
    make_trainer: Callable[..., PPPTrainer], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(ppp.training_step, "balanced", never)
    trainer = make_trainer(per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=1, **options)
    trainer.train()
    assert trainer.state.global_step == 1


# --- memory ----------------------------------------------------------------------------------------------------------


class Logits(TorchDispatchMode):
    """The number of elements of the largest tensor with a column for each token of the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.num = vocabulary, 0

    def __torch_dispatch__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.ndim and tensor.size(-1) == self.vocabulary:
                self.num = max(self.num, tensor.numel())
        return made


def test_no_tensor_holds_the_logits_of_a_micro_batch(
    make_trainer: Callable[..., PPPTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    batch = generate(trainer)
    trainer.accelerator.gradient_state._set_sync_gradients(True)
    trainer.current_gradient_accumulation_steps = 1
    num_tokens, vocabulary = batch["completion_ids"].numel(), trainer.model.config.vocab_size
    largest = []
    for chunk in (64, 1 << 20):
        monkeypatch.setattr("trl.kernels.chunked_logprob.TOKEN_CHUNK_SIZE", chunk)
        trainer.model.zero_grad()
        with Logits(vocabulary) as seen:
            trainer.compute_loss(trainer.model, batch).backward()
        largest.append(seen.num)
    assert largest[0] == 64 * vocabulary, "tokens are chunked, forwards and backwards"
    assert largest[1] >= num_tokens * vocabulary, "otherwise this test sees nothing"


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["all weights", "adapters"])
@pytest.mark.parametrize("piece_rows", [2, 32])
def test_activation_checkpointing_gives_the_same_step(
    make_trainer: Callable[..., PPPTrainer], peft_config: Any, piece_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppp.forward.PIECE_ROWS", piece_rows)
    found = []
    for name, checkpoints in (("with", True), ("without", False)):
        trainer = make_trainer(
            name, gradient_checkpointing=checkpoints, peft_config=peft_config, optim="sgd", max_steps=2
        )
        trainer.train()
        assert trainer.accelerator.unwrap_model(trainer.model).is_gradient_checkpointing is checkpoints
        lines = [line for line in read_metrics(trainer) if "loss" in line]
        found.append([[line[key] for key in ("loss", "grad_norm", "update/norm")] for line in lines])
        ToyEnvironment.reset()
    assert found[0] == [pytest.approx(line, rel=1e-4, abs=1e-6) for line in found[1]]
    assert all(update > 0 for _, _, update in found[0])
