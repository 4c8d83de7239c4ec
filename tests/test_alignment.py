"""Engine and trainer are compared on the same tokens; a run in which they differ too much ends, and says why."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig
from toy import ToyEnvironment, register
from toy_trainer import UNCLIPPED, build_trainer, generate, read_metrics
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from ppp.alignment import CORRECTED, MAXIMUM, MEAN, NUM_ROWS, DifferenceMeter, compare, is_due
from ppp.batch import RolloutSettings
from ppp.engines.base import Engine
from ppp.engines.transformers import TransformersEngine
from ppp.session import Limits
from ppp.trainer import PPPTrainer
from ppp.types import RunStoppedError

SHORT = Limits(max_turns=2, max_tokens_per_turn=12, max_observation_tokens=8, max_completion_tokens=40)


@pytest.fixture(autouse=True)
def toy_environment() -> Iterator[None]:
    register()
    ToyEnvironment.reset()
    yield
    ToyEnvironment.reset()


MakeTrainer = Callable[..., PPPTrainer]


@pytest.fixture
def make_trainer(
    tokenizer: PreTrainedTokenizerBase, make_model: Callable[..., Any], tmp_path: Path
) -> Iterator[MakeTrainer]:
    """Trainers with the embedded engine, whose weights, or whose temperature, may be wrong."""
    trainers: list[PPPTrainer] = []

    def make(
        every: int = 1,
        limit: float = 0.1,
        *,
        name: str = "run",
        correction: bool | None = None,
        stale: bool = False,
        temperature: float = 1.0,
        **options: Any,
    ) -> PPPTrainer:
        model = make_model(tokenizer)
        old = copy.deepcopy(model)

        def make_engine(policy: Callable[[], Any]) -> Engine:
            return TransformersEngine(
                (lambda: old) if stale else policy,
                tokenizer.eos_token_id,
                max_concurrency=8,
                max_length=400,
                temperature=temperature,
                deterministic=True,
            )

        settings = RolloutSettings(
            UNCLIPPED, correction, check_logprobs_every=every, max_logprob_difference=limit, log_trajectories_every=0
        )
        trainers.append(
            build_trainer(
                tokenizer,
                model,
                tmp_path / name,
                settings=settings,
                make_engine=make_engine,
                limits=SHORT,
                **{"lr_scheduler_type": "constant", **options},
            )
        )
        return trainers[-1]

    yield make
    for trainer in trainers:
        trainer.pool.close()
        trainer.pool.engine.close()


def steps_of(trainer: PPPTrainer) -> list[dict[str, Any]]:
    return [line for line in read_metrics(trainer) if "loss" in line]


@pytest.mark.parametrize(("every", "expected"), [(0, [1]), (1, [1, 2, 3, 4]), (2, [1, 3]), (50, [1])])
def test_a_run_that_agrees_tells_so_at_the_start_and_every_so_many_steps(
    make_trainer: MakeTrainer, every: int, expected: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(every, max_steps=4)
    with caplog.at_level("INFO", "ppp.alignment"):
        trainer.train()
    checked = [line for line in steps_of(trainer) if MAXIMUM in line]
    assert [line["step"] for line in checked] == expected
    assert all(0 <= line[MEAN] <= line[MAXIMUM] < 1e-4 and line[CORRECTED] == 0 for line in checked)
    assert sum("differ by" in record.getMessage() for record in caplog.records) == len(expected)
    assert not trainer.use_vllm


def test_the_loss_tells_the_difference_of_every_step(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(0, max_steps=3)
    trainer.train()
    assert all(line["sampling/logprob_difference"] < 1e-4 for line in steps_of(trainer))
    trainer = make_trainer(0, math.inf, name="stale", stale=True, correction=False, learning_rate=0.1, max_steps=3)
    trainer.train()
    first, *later = [line["sampling/logprob_difference"] for line in steps_of(trainer)]
    assert first < 1e-4 and min(later) > 1e-2


def test_an_engine_with_old_weights_ends_the_run_before_the_second_update(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(1, 1e-3, stale=True, learning_rate=0.1, max_steps=5)
    with pytest.raises(RunStoppedError, match=r"differ by .* max_logprob_difference \(0.001\).*current weights"):
        trainer.train()
    assert [line["step"] for line in steps_of(trainer)] == [1]
    assert [path.name for path in Path(trainer.args.output_dir).glob("checkpoint-*")] == ["checkpoint-1"]


def test_an_engine_at_another_temperature_ends_the_run_before_the_first_update(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(0, 0.01, temperature=0.5)
    with pytest.raises(RunStoppedError, match="temperature"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_small_difference_switches_the_correction_on_for_good(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(1, math.inf, stale=True, learning_rate=0.1, max_steps=3)
    trainer.train()
    assert [line[CORRECTED] for line in steps_of(trainer)] == [0, 1, 1]
    assert trainer.use_vllm and "sampling/importance_sampling_ratio/mean" in steps_of(trainer)[-1]


@pytest.mark.parametrize("correction", [True, False])
def test_a_correction_that_the_recipe_fixes_is_left_alone(make_trainer: MakeTrainer, correction: bool) -> None:
    trainer = make_trainer(1, math.inf, temperature=0.9, correction=correction, max_steps=2)
    trainer.train()
    assert trainer.use_vllm is correction


def lines_from(trainer: PPPTrainer, step: int) -> list[dict[str, Any]]:
    varying = ("seconds/", "step_time", "train_")
    return [
        {name: value for name, value in line.items() if not name.startswith(varying)}
        for line in steps_of(trainer)
        if line["step"] >= step
    ]


def test_a_resumed_run_tells_what_the_uninterrupted_one_would_have_told(make_trainer: MakeTrainer) -> None:
    """The first batch after a resume is checked, too, but neither told nor allowed to decide anything."""
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "temperature": 0.9}
    whole = make_trainer(4, math.inf, name="whole", **saving)
    whole.train()
    assert whole.use_vllm and [MAXIMUM in line for line in steps_of(whole)] == [True, False, False, False, True, False]
    checkpoint = str(Path(whole.args.output_dir) / "checkpoint-2")
    resumed = make_trainer(4, math.inf, name="resumed", **saving)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert json.dumps(lines_from(resumed, 3)) == json.dumps(lines_from(whole, 3))
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True)
    )


def test_a_resumed_run_is_checked_at_its_start(make_trainer: MakeTrainer) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    first = make_trainer(0, name="first", **saving)
    first.train()
    checkpoint = str(Path(first.args.output_dir) / "checkpoint-1")
    trainer = make_trainer(0, 0.01, name="again", temperature=0.5, **saving)
    with pytest.raises(RunStoppedError, match="temperature"):
        trainer.train(resume_from_checkpoint=checkpoint)


# --- the comparison itself ----------------------------------------------------------------------------------------


def batch_of(model: Qwen3ForCausalLM, lengths: list[int], shift: float = 0.0) -> dict[str, list[Any]]:
    """Rows of so many own tokens after a prompt of three, with the model's own log-probabilities plus `shift`."""
    batch: dict[str, list[Any]] = {"prompt_ids": [], "completion_ids": [], "logprobs": [], "env_mask": []}
    generator = torch.Generator().manual_seed(1)
    for length in lengths:
        ids = torch.randint(1, 200, (3 + max(length, 1),), generator=generator)
        with torch.no_grad():
            logps = model(ids[None]).logits[0, 2:-1].log_softmax(-1).gather(-1, ids[3:, None]).squeeze(-1)
        batch["prompt_ids"].append(ids[:3].tolist())
        batch["completion_ids"].append(ids[3:].tolist())
        batch["logprobs"].append((logps + shift).tolist())
        batch["env_mask"].append([int(length > 0)] * max(length, 1))
    return batch


@pytest.fixture
def forward(model: Qwen3ForCausalLM) -> Callable[..., torch.Tensor]:
    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor, keep: int) -> torch.Tensor:
        forward.num_calls += 1  # type: ignore[attr-defined]
        with torch.no_grad():
            logits = model(input_ids).logits[:, -keep - 1 : -1]
        return logits.log_softmax(-1).gather(-1, input_ids[:, -keep:, None]).squeeze(-1)

    forward.num_calls = 0  # type: ignore[attr-defined]
    return forward


def test_mean_and_maximum_are_over_own_tokens(model: Qwen3ForCausalLM, forward: Any) -> None:
    batch = batch_of(model, [4, 2], shift=0.25)
    batch["logprobs"][0][0] += 0.5
    batch["logprobs"][1][1], batch["env_mask"][1][1] = 9.0, 0  # an observation's
    found = compare(batch, forward, model, Accelerator(cpu=True))
    assert found.num_tokens == 5
    assert found.mean == pytest.approx((0.75 + 4 * 0.25) / 5, abs=1e-5)
    assert found.maximum == pytest.approx(0.75, abs=1e-5)


def test_trajectories_without_own_tokens_are_looked_at_last(model: Qwen3ForCausalLM, forward: Any) -> None:
    batch = batch_of(model, [0] * NUM_ROWS + [3, 3], shift=0.25)
    found = compare(batch, forward, model, Accelerator(cpu=True))
    assert found.num_tokens == 6 and forward.num_calls == NUM_ROWS
    nothing = compare(batch_of(model, [0, 0]), forward, model, Accelerator(cpu=True))
    assert nothing.metrics == {} and nothing.is_close


def test_a_log_probability_that_is_no_number_is_a_difference(model: Qwen3ForCausalLM, forward: Any) -> None:
    batch = batch_of(model, [3])
    batch["logprobs"][0][1] = math.nan
    found = compare(batch, forward, model, Accelerator(cpu=True))
    assert found.mean == found.maximum == math.inf


def test_dropout_neither_disturbs_the_comparison_nor_draws_numbers(make_trainer: MakeTrainer) -> None:
    adapters = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = make_trainer(1, math.inf, peft_config=adapters, learning_rate=0.1, max_steps=1)
    trainer.train()
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0), std=0.5)
    trainer.state.global_step = 2
    trainer.model.train()
    state = torch.get_rng_state()
    generate(trainer)
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer._metrics["train"][MAXIMUM][-1] < 1e-4
    assert trainer.model.training


def test_the_meter_counts_own_tokens_alone() -> None:
    meter, accelerator = DifferenceMeter(), Accelerator(cpu=True)
    inputs = {
        "completion_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "tool_mask": torch.tensor([[1, 0, 1], [1, 1, 1]]),
        "sampling_per_token_logps": torch.zeros(2, 3),
    }
    meter.add(torch.tensor([[-1.0, math.nan, -2.0], [3.0, 0.0, 9.0]]), inputs)
    assert meter.take(accelerator) == {"sampling/logprob_difference": 1.5}
    assert meter.take(accelerator) == {}


@pytest.mark.parametrize(("step", "every", "expected"), [(0, 0, True), (5, 0, False), (5, 5, True), (6, 5, False)])
def test_when_it_is_time(step: int, every: int, expected: bool) -> None:
    assert is_due(step, every) is expected
