"""GRPO's part of a recipe: TRL's GRPOConfig with the paper's values as defaults and checks that come early.

The `help` of a field is its documentation. Everything that GRPO does not know is in `recipe_config.py`, which comes
next; what is done with both, in `train.py`.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import SchedulerType
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from trl import GRPOConfig

from ppp.checks import option, refuse, refuse_unknown

# Settings that GRPOConfig takes as any text and whose error would come in the middle of the first step.
CHOICES = {
    "loss_type": ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "importance_sampling_level": ("token", "sequence"),
    "lr_scheduler_type": tuple(scheduler.value for scheduler in SchedulerType),
    "eval_strategy": tuple(strategy.value for strategy in IntervalStrategy),
    "logging_strategy": tuple(strategy.value for strategy in IntervalStrategy),
    "save_strategy": tuple(strategy.value for strategy in SaveStrategy),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}
# Settings of TRL's own rollouts, of which nothing would come here -> what to set instead.
UNUSED = {
    **dict.fromkeys(
        ("min_p", "repetition_penalty", "generation_kwargs", "cache_implementation"),
        "rollouts are sampled with temperature, top_k and top_p alone, or the loss would mean another distribution",
    ),
    **dict.fromkeys(
        (
            *("vllm_mode", "vllm_server_base_url", "vllm_gpu_memory_utilization", "vllm_tensor_parallel_size"),
            *("vllm_max_model_length", "vllm_enable_sleep_mode", "vllm_structured_outputs_regex"),
            *("use_transformers_continuous_batching", "use_transformers_paged"),
        ),
        "choose what generates with engine and engine_options",
    ),
    "max_tool_calling_iterations": "set limits.max_turns",
}
MAX_SEED = 2**32 - 1


@dataclass
class PPPConfig(GRPOConfig):
    """GRPOConfig with the values of the paper and of DAPO as defaults. Source: PPP section 4."""

    output_dir: str | None = option("runs/ppp", "Folder for checkpoints, metrics, trajectories, the resolved recipe.")
    learning_rate: float = option(1e-6, "Peak learning rate.")
    loss_type: str = option("dapo", "How per-token losses are averaged; dapo: over all tokens of the batch.")
    epsilon: float = option(0.2, "Lower clip range of the policy ratio.")
    epsilon_high: float | None = option(0.28, "Upper clip range of the policy ratio (clip-higher).")
    importance_sampling_level: str = option(
        "token",
        "Ratios of the policies per token, or per sequence (GSPO), whose clip ranges are far smaller: epsilon 3e-4, "
        "epsilon_high 4e-4.",
    )
    multi_objective_aggregation: str = option(
        "sum_then_normalize",
        "sum_then_normalize: advantages of the summed reward; normalize_then_sum (GDPO): each term by itself first, so "
        "that no term drowns another and nothing is clipped.",
    )
    beta: float = option(0.0, "Weight of the KL term; above 0 the reference model is loaded from model_name_or_path.")
    num_generations: int = option(8, "Copies of each session in a group (G).")
    num_generations_eval: int | None = option(1, "Copies of each session in the evaluation.")
    temperature: float = option(1.0, "Sampling temperature of the rollouts.")
    max_completion_length: int | None = option(
        32768, "Tokens after the prompt, observations included; at this length a trajectory is truncated."
    )
    mask_truncated_completions: bool = option(
        False, "Leave trajectories out of the loss that ran out of tokens (decided from the stop reason)."
    )
    logging_steps: float = option(1, "Log every so many steps.")
    bf16: bool | None = option(None, "Mixed precision with bf16; default: on a GPU.")
    # HfArgumentParser asks whether None is an instance of the second of three types, which list[str] cannot answer.
    report_to: None | str | list[str] = option(  # noqa: RUF036
        "none", "wandb, tensorboard or none, beside the files in output_dir."
    )
    vllm_importance_sampling_mode: str = option(
        "token_truncate", "Importance-sampling correction; sequence_mask drops a third of long trajectories."
    )
    vllm_importance_sampling_clip_max: float | None = option(2.0, "Upper bound of a token's importance ratio.")
    ddp_timeout: int = option(
        14400,
        "Seconds that processes wait for each other; must exceed limits.trajectory_timeout_s, because those whose "
        "sessions have ended wait for the others.",
    )
    resume_from_checkpoint: str | None = option(
        None, "true: go on from the newest complete checkpoint in output_dir; or the path of a checkpoint."
    )

    def __post_init__(self) -> None:
        if self.use_vllm:
            raise refuse("use_vllm", True, "choose what generates with the field engine")
        if self.dataloader_num_workers:
            raise refuse("dataloader_num_workers", self.dataloader_num_workers, "rows are tiny, it must be 0")
        if self.bf16 is None and (self.use_cpu or not torch.cuda.is_available()):
            self.bf16 = False  # bf16 autocast is slow on CPUs, and GRPOConfig would choose it
        resume = str(self.resume_from_checkpoint).lower()
        if resume in ("none", "false"):
            self.resume_from_checkpoint = None
        elif resume == "true":
            self.resume_from_checkpoint = "true"
        elif not Path(str(self.resume_from_checkpoint)).is_dir():
            raise refuse("resume_from_checkpoint", self.resume_from_checkpoint, "true or an existing folder")
        for name, allowed in UNUSED.items():
            if vars(self)[name] != GRPOConfig.__dataclass_fields__[name].default:
                raise refuse(name, vars(self)[name], allowed)
        # Evaluation runs through the pool, whatever its batch size; GRPOConfig insists on a multiple.
        self.per_device_eval_batch_size = self.num_generations_eval or self.num_generations
        self._check_choices()
        self._check_numbers()
        self._check_loss()
        super().__post_init__()

    def _check_choices(self) -> None:
        """Check the names whose error would otherwise come late, from the middle of the first step."""
        for name, choices in CHOICES.items():
            if vars(self)[name] not in choices:
                raise refuse_unknown(name, vars(self)[name], [str(choice) for choice in choices])
        if self.reward_weights is not None:
            raise refuse("reward_weights", self.reward_weights, "set term_weights")
        if self.save_strategy == "best" and self.metric_for_best_model is None:
            raise refuse("save_strategy", "best", "set metric_for_best_model as well, such as eval_productivity")
        available = sorted(get_available_reporting_integrations())
        for name in [self.report_to] if isinstance(self.report_to, str) else self.report_to or ():
            if name not in ("none", "all", *available):
                raise refuse("report_to", name, f"none, all, or what is installed: {', '.join(available)}")

    def _check_loss(self) -> None:
        """Check settings of the loss that contradict each other: one of them would be ignored without a word."""
        if self.multi_objective_aggregation == "normalize_then_sum" and self.scale_rewards not in ("group", True):
            allowed = "multi_objective_aggregation normalize_then_sum always scales within groups; leave it at group"
            raise refuse("scale_rewards", self.scale_rewards, allowed)
        if self.loss_type == "vespo":
            if self.importance_sampling_level != "token":
                allowed = "loss_type vespo has ratios of its own; leave it at token"
                raise refuse("importance_sampling_level", self.importance_sampling_level, allowed)
            if not self.vllm_importance_sampling_mode.startswith("token_"):
                allowed = "loss_type vespo takes token_truncate or token_mask"
                raise refuse("vllm_importance_sampling_mode", self.vllm_importance_sampling_mode, allowed)
        if self.sync_ref_model and self.beta == 0:
            raise refuse("sync_ref_model", True, "with beta 0 there is no reference model")

    def _check_numbers(self) -> None:
        """Check the numbers whose error would otherwise come late or name another field."""
        if self.num_generations < 2:
            raise refuse("num_generations", self.num_generations, "a group needs at least 2 copies")
        for name, value in (
            ("per_device_train_batch_size", self.per_device_train_batch_size),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps),
            ("num_iterations", self.num_iterations),
            ("max_completion_length", self.max_completion_length),
        ):
            if value is None or value < 1:
                raise refuse(name, value, "must be at least 1")
        if not self.temperature > 0:
            raise refuse("temperature", self.temperature, "must be above 0: a group of equal copies teaches nothing")
        if not 0 < self.top_p <= 1:
            raise refuse("top_p", self.top_p, "must lie above 0 and at most at 1")
        if self.top_k < 0:
            raise refuse("top_k", self.top_k, "must be at least 1, or 0 to cut nothing off")
        for name in ("learning_rate", "beta", "epsilon", "max_grad_norm"):
            if not 0 <= vars(self)[name] < math.inf:
                raise refuse(name, vars(self)[name], "must be a finite number of at least 0")
        if not 0 <= self.seed <= MAX_SEED:
            raise refuse("seed", self.seed, f"must lie between 0 and {MAX_SEED}")
        if self.max_steps == 0:
            raise refuse("max_steps", 0, "must be at least 1, or -1 to go by num_train_epochs")
        if self.save_strategy == "steps" and not self.save_steps > 0:
            raise refuse("save_steps", self.save_steps, 'must be above 0; save_strategy: "no" saves at the end alone')
        per_step = self.generation_batch_size
        if per_step is None:
            steps = self.steps_per_generation or self.gradient_accumulation_steps
            num_processes = int(os.environ.get("WORLD_SIZE", "1"))  # GRPOConfig knows it only after its own checks
            per_step = self.per_device_train_batch_size * steps * num_processes
        if per_step % self.num_generations:
            raise refuse(
                "num_generations",
                self.num_generations,
                f"must divide the {per_step} trajectories of a generation batch (per_device_train_batch_size x "
                "processes x steps_per_generation, which is gradient_accumulation_steps unless set)",
            )
