"""TrainingStep: TRL's step, freed of padding, balanced between processes, and measured.

Which rows go together and which columns are cut off is decided in `forward.py`; what is measured is in
`update_meter.py` and `alignment.py`. Rollouts, evaluation and checkpoints come in `trainer.py`, which is the only other
file that touches TRL's internals.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from ppp.alignment import DifferenceMeter
from ppp.forward import BALANCED_LOSSES, LogProbs, MicroBatch, balanced, forward_trimmed, pieces
from ppp.update_meter import UpdateMeter


class TrainingStep(GRPOTrainer):
    """GRPOTrainer with another way through the rows of a step; loss and gradient are TRL's.

    Args:
        callbacks: of transformers; the rest is passed on.
    """

    _buffered_inputs: list[MicroBatch] | None  # TRL's: the micro-batches of the current generation batch

    def __init__(self, *args: Any, callbacks: Sequence[TrainerCallback] = (), **kwargs: Any) -> None:
        super().__init__(*args, callbacks=[*callbacks, _Measuring(self)], **kwargs)
        self.update_meter, self.difference_meter = UpdateMeter(self.accelerator), DifferenceMeter()
        self._loss_inputs: dict[str, Any] | None = None  # those of the loss that is being computed

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's, with the micro-batches of a new generation batch made anew so that their rows are of like length."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training or self._buffered_inputs is None or self._buffered_inputs is before:
            return inputs
        args = self.args
        if args.loss_type in BALANCED_LOSSES and args.top_entropy_quantile == 1 and not args.entropy_coef:
            self._buffered_inputs = balanced(self._buffered_inputs, args.gradient_accumulation_steps, self.accelerator)
        return self._buffered_inputs[self._step % args.steps_per_generation]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """TRL's; meanwhile its forward pass is compared with the engine's log-probabilities."""
        self._loss_inputs = inputs
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            self._loss_inputs = None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> LogProbs:
        """TRL's, without the columns that hold nothing but padding, and large micro-batches in pieces of like length.

        TRL pads to the longest of the generation batch, prompts on the left and completions on the right. Results have
        the shapes and the order that TRL expects; what was cut away is zero and masked.
        """
        # Not with several processes: wrappers of the model expect one forward pass before a backward pass.
        is_alone = self.accelerator.num_processes == 1 and not kwargs.get("compute_aux_loss")
        found = forward_trimmed(
            partial(super()._get_per_token_logps_and_entropies, model, **kwargs),
            input_ids,
            attention_mask,
            logits_to_keep,
            pieces(attention_mask, batch_size, may_sort=is_alone),
        )
        if self._loss_inputs is not None:
            self.difference_meter.add(found[0], self._loss_inputs)
        return found

    def _logprobs(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int) -> torch.Tensor:
        """Log-probabilities of the last `logits_to_keep` tokens as the loss sees them, without gradient."""
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            return self._get_per_token_logps_and_entropies(self.model, input_ids, attention_mask, logits_to_keep)[0]

    def note_step(self) -> None:
        """Tell what the step that was just finished did, before it is logged; all processes together."""
        found = {**self.update_meter.measure(), **self.difference_meter.take(self.accelerator)}
        for name, value in found.items():
            self._metrics["train"][name].append(value)


class _Measuring(TrainerCallback):
    """Calls the meters around each step."""

    def __init__(self, trainer: TrainingStep) -> None:
        self.trainer = trainer

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.update_meter.start(self.trainer.model)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.note_step()
