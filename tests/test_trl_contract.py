"""Every private thing of TRL and transformers that `ppp/trainer.py` and `ppp/training_step.py` lean on.

A failure here says what to look at after an upgrade, before a training run shows it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.integrations import deepspeed
from trl import GRPOConfig, GRPOTrainer
from trl.kernels import chunked_logprob
from trl.models.utils import disable_gradient_checkpointing, unwrap_model_for_generation
from trl.trainer import utils as trl_utils
from trl.trainer.utils import RepeatSampler

from ppp.memory import plan
from ppp.whole_models import whole_models

SIGNATURES = {
    "_generate": (GRPOTrainer._generate, ["self", "prompts"]),
    "_generate_and_score_completions": (GRPOTrainer._generate_and_score_completions, ["self", "inputs"]),
    "_get_per_token_logps_and_entropies": (
        GRPOTrainer._get_per_token_logps_and_entropies,
        ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"],
    ),
    "_prepare_inputs": (GRPOTrainer._prepare_inputs, ["self", "generation_batch"]),
    "compute_loss": (GRPOTrainer.compute_loss, ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
    "_log_metric": (GRPOTrainer._log_metric, ["self", "name", "value"]),
    "log": (GRPOTrainer.log, ["self", "logs", "start_time"]),
    "_get_train_sampler": (GRPOTrainer._get_train_sampler, ["self", "dataset"]),
    "_save_checkpoint": (Trainer._save_checkpoint, ["self", "model", "trial"]),
    "_run_epoch": (Trainer._run_epoch, ["self", "model", "epoch", "train_dataloader"]),
    "_get_output_dir": (Trainer._get_output_dir, ["self", "trial"]),
    "save_model": (Trainer.save_model, ["self", "output_dir", "_internal_call"]),
    "create_model_card": (GRPOTrainer.create_model_card, ["self", "model_name", "dataset_name", "tags"]),
    "unwrap_model_for_generation": (unwrap_model_for_generation, ["model", "accelerator", "gather_deepspeed3_params"]),
    "evaluate": (Trainer.evaluate, ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"]),
    "_init_training_state": (
        Trainer._init_training_state,
        ["self", "max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial"],
    ),
    "disable_gradient_checkpointing": (disable_gradient_checkpointing, ["model", "gradient_checkpointing_kwargs"]),
}

PROMPTS = [[5, 6, 7], [5, 6, 7], [8], [8]]
COMPLETIONS = [[11, 12, 13], [14], [15, 16], [17, 18, 19, 20]]
MASKS = [[1, 0, 1], [1], [0, 0], [1, 1, 1, 1]]  # the third row carries no loss
REWARDS = [1.0, 0.0, None, 0.5]


def test_version_is_the_one_that_was_read() -> None:
    assert trl.__version__.startswith("1.16.")


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    function, expected = SIGNATURES[name]
    assert list(inspect.signature(function).parameters)[: len(expected)] == expected


@pytest.fixture
def stock(tokenizer: PreTrainedTokenizerBase, make_model: Callable[..., Any], tmp_path: Path) -> GRPOTrainer:
    def reward(outcome: list[float | None], **_: Any) -> list[float | None]:
        return outcome

    args = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        loss_type="dapo",
        max_steps=1,
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=2.0,
    )
    dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in "ab"]})
    trainer = GRPOTrainer(make_model(tokenizer), reward, args, dataset, processing_class=tokenizer)
    trainer.rollout_func = lambda prompts, trainer: {
        "prompt_ids": PROMPTS,
        "completion_ids": COMPLETIONS,
        "logprobs": [[-0.5] * len(ids) for ids in COMPLETIONS],
        "env_mask": MASKS,
        "outcome": REWARDS,
    }
    return trainer


def test_generate_takes_strings_and_hands_on_what_a_rollout_function_returns(stock: GRPOTrainer) -> None:
    prompt_ids, completion_ids, tool_mask, completions, logprobs, extra, images, _ = stock._generate([""] * 4)
    assert (prompt_ids, completion_ids, tool_mask) == (PROMPTS, COMPLETIONS, MASKS)
    assert all(isinstance(completion, str) for completion in completions)
    assert logprobs[1] == [-0.5]
    assert extra == {"outcome": REWARDS}
    assert images is None


def test_mask_reward_and_advantage_of_a_row_without_reward(stock: GRPOTrainer) -> None:
    stock.model.train()
    batch = stock._generate_and_score_completions([{"prompt": "x"} for _ in range(4)])
    assert batch["tool_mask"][2, :2].tolist() == [0, 0]
    assert batch["num_items_in_batch"] == sum(map(sum, MASKS))
    # The only scored row of its group is its own baseline.
    torch.testing.assert_close(batch["advantages"][2:], torch.zeros(2))
    assert batch["advantages"][0] > 0 > batch["advantages"][1]
    assert "importance_sampling_ratio" not in batch


def test_correction_is_switched_by_use_vllm_alone(stock: GRPOTrainer) -> None:
    """`trainer.py` sets it without vLLM, and takes it back around TRL's `_generate`, which would sync weights."""
    stock.model.train()
    stock.use_vllm, stock._last_loaded_step = True, stock.state.global_step
    assert stock.vllm_importance_sampling_correction
    batch = stock._generate_and_score_completions([{"prompt": "x"} for _ in range(4)])
    assert batch["importance_sampling_ratio"].shape == batch["completion_ids"].shape
    assert batch["importance_sampling_ratio"].max() <= 2


def test_metrics_logged_before_the_rewards_are_told_under_their_names(stock: GRPOTrainer) -> None:
    stock.model.train()
    stock._log_metric("ours", 1.0)
    stock._log_metric("ours", 2.0)
    stock._generate_and_score_completions([{"prompt": "x"} for _ in range(4)])
    assert stock._metrics["train"]["ours"] == [1.5]


def test_a_generation_batch_is_cut_into_micro_batches_of_rows_and_scalars(stock: GRPOTrainer) -> None:
    """`training_step.py` puts their rows into another order; a new list tells of a new generation batch."""
    stock.args.steps_per_generation, stock._step = 2, 0
    stock.model.train()
    first = stock._prepare_inputs([{"prompt": "x"} for _ in range(4)])
    micro_batches = stock._buffered_inputs
    assert len(micro_batches) == 2 and first is micro_batches[0]
    for name, value in first.items():
        assert value is None or value.ndim == 0 or len(value) == 2, name
    assert {name for name, value in first.items() if value is not None and value.ndim == 0} == {"num_items_in_batch"}
    assert {name for name in first if name.startswith("prompt")} == {"prompt_ids", "prompt_mask"}, "padded on the left"
    assert {"completion_mask", "tool_mask", "sampling_per_token_logps"} <= set(first)
    stock._step = 1
    assert stock._prepare_inputs([]) is micro_batches[1] and stock._buffered_inputs is micro_batches


def test_prompts_that_are_replaced_in_place_are_logged_as_they_are_then(stock: GRPOTrainer) -> None:
    generate = stock._generate

    def replacing(prompts: list[Any]) -> Any:
        result = generate(list(prompts))
        prompts[1] = "y"
        return result

    stock._generate = replacing
    stock.model.train()
    stock._generate_and_score_completions([{"prompt": "x"} for _ in range(4)])
    assert list(stock._logs["prompt"]) == ["x", "y", "x", "x"]


def test_metrics_of_a_step_may_be_added_until_it_is_logged(stock: GRPOTrainer) -> None:
    stock.model.train()
    stock._metrics["train"]["ours"].append(2.0)
    logs = {"loss": 1.0}
    stock.log(logs)
    assert logs["ours"] == 2.0 and not stock._metrics["train"]


def test_attributes_that_are_set_from_outside_exist(stock: GRPOTrainer) -> None:
    for name in ("use_vllm", "mask_truncated_completions", "rollout_func", "num_generations", "num_generations_eval"):
        assert name in vars(stock), name
    assert stock._tokenizer is stock.processing_class


def test_each_epoch_draws_its_order_from_one_generator_of_the_sampler(stock: GRPOTrainer) -> None:
    sampler, again = stock._get_train_sampler(), stock._get_train_sampler()
    assert isinstance(sampler, RepeatSampler) and sampler.shuffle
    orders = [list(sampler) for _ in range(6)]
    for _ in range(5):
        torch.randperm(again.num_samples, generator=again.generator)
    assert list(again) == orders[5]
    assert len({tuple(order) for order in orders}) > 1


def test_the_state_is_the_last_file_of_a_checkpoint(stock: GRPOTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`checkpoints.py` tells a complete checkpoint from half of one by it."""
    stock.train()
    seen: list[list[str]] = []
    save = type(stock.state).save_to_json

    def spy(state: Any, path: str) -> None:
        seen.append(sorted(file.name for file in Path(path).parent.iterdir()))
        save(state, path)

    monkeypatch.setattr(type(stock.state), "save_to_json", spy)
    stock.state.global_step = 2
    stock._save_checkpoint(stock.model, None)
    folder = Path(stock.args.output_dir) / "checkpoint-2"
    assert sorted(file.name for file in folder.iterdir()) == sorted([*seen[0], "trainer_state.json"])
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= set(seen[0])


def test_a_checkpoint_is_written_where_the_run_dir_says_and_nowhere_else(
    stock: GRPOTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`checkpoints.py` has it written beside, and `trainer.py` writes no card and removes old ones itself."""
    stock.train()
    monkeypatch.setattr(stock, "_get_output_dir", lambda trial: str(tmp_path / "beside"))
    monkeypatch.setattr(stock, "create_model_card", lambda **_: None)
    before = set(tmp_path.iterdir())
    stock.args.save_total_limit = None
    for step in (2, 3, 4):
        stock.state.global_step = step
        stock._save_checkpoint(stock.model, None)
    assert set(tmp_path.iterdir()) - before == {tmp_path / "beside"}
    assert len(list((tmp_path / "beside").iterdir())) == 3


def test_zero_3_is_decided_by_a_global_of_transformers() -> None:
    """`whole_models.py` takes it away for a while."""

    class Config:
        def is_zero3(self) -> bool:
            return True

    config = Config()
    deepspeed.set_hf_deepspeed_config(config)
    try:
        assert deepspeed.is_deepspeed_zero3_enabled()
        with whole_models():
            assert not deepspeed.is_deepspeed_zero3_enabled()
        assert deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()


def test_the_memory_plan_knows_the_tiles_of_the_fused_head() -> None:
    assert (plan.TOKEN_CHUNK_SIZE, plan.VOCAB_CHUNK_SIZE) == (
        chunked_logprob.TOKEN_CHUNK_SIZE,
        trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE,
    )
