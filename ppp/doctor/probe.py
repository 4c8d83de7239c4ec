"""One real step of the run with two trajectories: the same trainer, engine, pool and users, watched from outside.

Nothing is imitated: `PPPTrainer` plays, computes its loss, goes backward and updates, alone or in several processes,
and what is seen on the way is kept even if a later part fails. Rewards alone are made up, so that there is something to
learn from. What it means is said in `training.py`.
"""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from torch.nn import Module
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ppp.bookkeeping import Bookkeeper
from ppp.build import TINY_MODEL_DIR, build_engine, build_model, build_peft_config, build_pool
from ppp.doctor.boundary import attempt
from ppp.doctor.patient import Patient
from ppp.phase import Mode, Played, RolloutPhase
from ppp.rollout import RolloutJob
from ppp.train import rollout_settings
from ppp.trainer import PPPTrainer
from ppp.types import Task, Trajectory
from ppp.users.crowd import Crowds

logger = logging.getLogger(__name__)

Stage = Literal["load", "rollout", "loss", "update", "done"]


@dataclass(frozen=True, slots=True)
class Row:
    """One trajectory as the loss sees it, without padding.

    Attributes:
        prompt_ids, completion_ids: tokens.
        mask: of the completion; 1 where a token carries loss.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    mask: list[int]


@dataclass(frozen=True, slots=True)
class Gradients:
    """What a backward pass left in the weights that are trained.

    Attributes:
        num_tensors: that are trained.
        missing, zero, not_finite: names of those without a gradient, with one of zeros, with one that is no number.
    """

    num_tensors: int
    missing: tuple[str, ...]
    zero: tuple[str, ...]
    not_finite: tuple[str, ...]

    @classmethod
    def of(cls, model: Module) -> Gradients:
        found: dict[str, list[str]] = {"missing": [], "zero": [], "not_finite": []}
        trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        for name, weight in trained:
            if weight.grad is None:
                found["missing"].append(name)
            elif not bool(torch.isfinite(weight.grad).all()):
                found["not_finite"].append(name)
            elif not bool(weight.grad.any()):
                found["zero"].append(name)
        return cls(len(trained), **{kind: tuple(names) for kind, names in found.items()})


@dataclass
class Probe:
    """What was seen so far.

    Attributes:
        stage: what is being done; after a failure, what failed.
        error: what it raised.
        trajectories: as they were played, with made-up rewards.
        rows: the same as the loss saw them.
        losses: of each micro-batch.
        gradients: None where they are sharded, and known by their norm alone.
        logs: metrics of the step.
        seconds: by what they went into.
        peak_bytes: of this process: GPU memory, or resident memory without a GPU.
    """

    stage: Stage = "load"
    error: Exception | None = None
    trajectories: Sequence[Trajectory] = ()
    rows: list[Row] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    gradients: Gradients | None = None
    logs: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0


class _WatchedPhase(RolloutPhase):
    """Plays the tasks that were chosen, and keeps what came of them."""

    probe: Probe
    tasks: Sequence[Task]

    def roll(self, jobs: Sequence[RolloutJob], step: int, mode: Mode, goes_on: bool = False) -> Played:
        self.probe.stage = "rollout"
        chosen = [replace(job, task=self.tasks[number % len(self.tasks)]) for number, job in enumerate(jobs)]
        logger.info("playing %d sessions", len(jobs))
        started = time.perf_counter()
        played = super().roll(chosen, step, mode, goes_on)
        self.probe.seconds["rollout"] = time.perf_counter() - started
        self.probe.trajectories = played.trajectories
        # Real rewards of two sessions may well be equal, and then there is no gradient to look at.
        scores = [
            None if score is None else dict.fromkeys(score, float(number)) for number, score in enumerate(played.scores)
        ]
        return replace(played, scores=scores)


class _WatchedTrainer(PPPTrainer):
    """Keeps what its loss sees and what its backward pass leaves."""

    probe: Probe

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        probe = self.probe
        probe.stage = "loss"
        logger.info("computing loss and gradient")
        probe.rows += rows_of(inputs)
        self._started = time.perf_counter()
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        probe.losses.append(loss.detach().float().item())
        return loss

    def _log_metric(self, name: str, value: float) -> None:
        self.probe.logs[name] = value  # at once: what is found before a failure is not logged any more
        super()._log_metric(name, value)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        probe = self.probe
        probe.seconds["loss"] = probe.seconds.get("loss", 0.0) + time.perf_counter() - self._started
        if self.accelerator.distributed_type not in (DistributedType.DEEPSPEED, DistributedType.FSDP):
            probe.gradients = Gradients.of(self.model)
        probe.stage = "update"
        return loss


class _Listener(TrainerCallback):
    """Keeps the metrics of the step."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.probe.logs |= logs or {}


def rows_of(inputs: Mapping[str, Any]) -> list[Row]:
    """The trajectories of a micro-batch, which TRL pads on the left of prompts and on the right of completions."""
    rows = []
    owns = inputs["tool_mask"] if "tool_mask" in inputs else inputs["completion_mask"]
    for prompt, prompt_mask, completion, mask, own in zip(
        *(inputs[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")),
        owns,
        strict=True,
    ):
        is_there = mask.bool()
        rows.append(
            Row(prompt[prompt_mask.bool()].tolist(), completion[is_there].tolist(), own[is_there].long().tolist())
        )
    return rows


def choose_tasks(sessions: Dataset) -> list[Task]:
    """Two sessions that are as different as can be: of two environments, or a vague and a precise one."""
    tasks = [Task.from_json(text) for text in sessions["task"]]
    first = next((task for task in tasks if not task.is_precise), tasks[0])
    contrasts: Sequence[Callable[[Task], bool]] = (
        lambda task: task.environment != first.environment,
        lambda task: task.is_precise != first.is_precise,
        lambda task: task.task_id != first.task_id,
    )
    for is_other in contrasts:
        second = next((task for task in tasks if is_other(task)), None)
        if second is not None:
            return [first, second]
    return [first]


def take_step(patient: Patient) -> Probe:
    """Load the model, play, and take one step; whatever fails is told by the probe's stage and error."""
    probe = Probe()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    _, probe.error = attempt(lambda: _take_step(patient, probe))
    probe.peak_bytes = peak_bytes()
    return probe


def _take_step(patient: Patient, probe: Probe) -> None:
    trainer = _build_trainer(patient, probe)
    try:
        trainer.train()
        probe.stage = "done"
    finally:
        trainer.pool.close()
        trainer.pool.engine.close()


def _build_trainer(patient: Patient, probe: Probe) -> _WatchedTrainer:
    trial, codec = patient.trial, patient.codec
    crowd = trial.config.build_crowds().train
    tasks = choose_tasks(patient.sessions)
    messages = {task: prompt for task, prompt in zip(patient.sessions["task"], patient.sessions["prompt"], strict=True)}
    rows = [{"prompt": messages[task.to_json()], "task": task.to_json()} for task in tasks]
    books = Bookkeeper(Crowds(crowd, crowd), None, trial.args.process_index, PartialState().num_processes)
    logger.info("loading the model %s", trial.config.model_name_or_path or "(tiny, random weights)")
    started = time.perf_counter()
    trainer = _WatchedTrainer(
        model=build_model(trial, patient.tokenizer, patient.folder / TINY_MODEL_DIR),
        args=trial.args,
        train_dataset=Dataset.from_list(rows * PartialState().num_processes * 2),
        eval_dataset=None,
        processing_class=patient.tokenizer,
        make_pool=lambda policy: build_pool(trial, codec, build_engine(trial, codec, policy), crowd),
        # How far log-probabilities may be apart is judged afterwards; the step is to be taken in any case.
        settings=replace(rollout_settings(trial), max_logprob_difference=math.inf, max_failure_rate=0.0),
        books=books,
        peft_config=build_peft_config(trial),
        callbacks=[_Listener(probe)],
    )
    probe.seconds["load"] = time.perf_counter() - started
    trainer.probe = probe
    plain = trainer.phase
    phase = _WatchedPhase(
        plain.pool, plain.settings, plain.accelerator, plain.interruption, plain.books, None, plain.lend
    )
    phase.probe, phase.tasks = probe, tasks
    trainer.phase = phase
    return trainer


def peak_bytes() -> int:
    """The most memory that this process had: on the GPU, or resident where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # elsewhere it counts kilobytes
