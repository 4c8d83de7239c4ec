"""Rows of a batch and the padding between them: which columns a forward pass needs, and which rows go together.

Tensors only, no model: TRL pads to the longest trajectory of a generation batch and cuts that batch into micro-batches
in a random order. Here padding is cut off again, and rows of like length are put side by side, so that processes which
wait for each other have equal work. `training_step.py` comes next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.functional import pad

PIECE_ROWS = 32  # of a large micro-batch that go through the model together, sorted by length

# Losses whose gradient is the same however rows are grouped into micro-batches; bnpo averages within each of them.
BALANCED_LOSSES = ("dapo", "grpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")

LogProbs = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
MicroBatch = dict[str, Any]  # of tensors with a row for each trajectory, scalars, and None


def pieces(attention_mask: torch.Tensor, batch_size: int | None, may_sort: bool) -> Sequence[torch.Tensor]:
    """Numbers of the rows that go through the model together.

    Args:
        batch_size: rows of a piece; None takes all together.
        may_sort: many rows may go in smaller pieces, each of like length.
    """
    num_rows = len(attention_mask)
    size = batch_size or num_rows
    if may_sort and num_rows > PIECE_ROWS:
        return attention_mask.sum(1).argsort(stable=True).split(min(PIECE_ROWS, size))
    return torch.arange(num_rows, device=attention_mask.device).split(size)


def forward_trimmed(
    forward: Callable[[torch.Tensor, torch.Tensor, int], LogProbs],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    logits_to_keep: int,
    pieces_of_rows: Sequence[torch.Tensor],
) -> LogProbs:
    """Log-probabilities, entropies and auxiliary loss, each piece without the columns that hold nothing but padding.

    Args:
        forward: (input_ids, attention_mask, logits_to_keep) -> what this returns.
        input_ids, attention_mask: prompts padded on the left, completions on the right.
        logits_to_keep: columns of the completions.
        pieces_of_rows: row numbers.

    Returns:
        In the order of the rows, with `logits_to_keep` columns; what was cut away is zero, and masked.
    """
    num_prompt = input_ids.size(1) - logits_to_keep
    parts = []
    for rows in pieces_of_rows:
        columns = attention_mask[rows].any(0).nonzero().flatten()
        first = min(int(columns[0]), num_prompt - 1)
        last = max(int(columns[-1]) + 1, num_prompt + 1)
        cut = input_ids.size(1) - last
        logps, entropies, aux_loss = forward(
            input_ids[rows, first:last], attention_mask[rows, first:last], logits_to_keep - cut
        )
        parts.append((pad(logps, (0, cut)), None if entropies is None else pad(entropies, (0, cut)), aux_loss))
    if len(parts) == 1:
        return parts[0]
    back = torch.cat(list(pieces_of_rows)).argsort()
    all_logps, all_entropies, all_aux_losses = zip(*parts, strict=True)
    return (
        torch.cat(all_logps)[back],
        None if all_entropies[0] is None else torch.cat(all_entropies)[back],
        None if all_aux_losses[0] is None else torch.stack(all_aux_losses).mean(),
    )


def deal(lengths: torch.Tensor) -> torch.Tensor:
    """Which rows each process takes in each of its micro-batches, so that those that run together are of like length.

    The longest rows come first: what does not fit into memory shows at once. Rows of a round are dealt to the processes
    there and back, so that none gets the longer one each time.

    Args:
        lengths: of all rows, (processes, micro-batches, rows).

    Returns:
        Numbers of rows, counted through `lengths`; same shape.
    """
    num_processes, num_batches, num_rows = lengths.shape
    order = lengths.flatten().argsort(descending=True, stable=True)
    rounds = order.view(num_batches * num_rows, num_processes).clone()
    rounds[1::2] = rounds[1::2].flip(-1)
    return rounds.view(num_batches, num_rows, num_processes).permute(2, 0, 1)


def balanced(micro_batches: Sequence[MicroBatch], window: int, accelerator: Accelerator) -> list[MicroBatch]:
    """The same rows in micro-batches of like length, exchanged between processes; all of them must call this together.

    Rows stay within the `window` micro-batches of one optimizer step, each of which TRL has drawn at random.
    """
    balanced_batches: list[MicroBatch] = []
    for start in range(0, len(micro_batches), window):
        balanced_batches += _balanced_window(micro_batches[start : start + window], accelerator)
    return balanced_batches


def _balanced_window(micro_batches: Sequence[MicroBatch], accelerator: Accelerator) -> list[MicroBatch]:
    num_batches, num_processes = len(micro_batches), accelerator.num_processes
    lengths = torch.cat([batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1) for batch in micro_batches])
    num_rows = len(lengths) // num_batches
    if 1 in (num_batches * num_rows, num_batches * num_processes):
        return list(micro_batches)  # there is nothing to exchange, or only within one micro-batch
    plan = deal(accelerator.gather(lengths).view(num_processes, num_batches, num_rows))[accelerator.process_index]
    found: list[MicroBatch] = [{} for _ in micro_batches]
    for name, first in micro_batches[0].items():
        if not isinstance(first, torch.Tensor) or first.ndim == 0:
            for batch, source in zip(found, micro_batches, strict=True):
                batch[name] = source[name]
            continue
        rows = torch.cat([batch[name] for batch in micro_batches])
        if num_processes > 1:  # one kind of tensor after the other: all of them at once would take the memory of many
            rows = accelerator.pad_across_processes(rows, dim=1, pad_first=name.startswith("prompt"))
            rows = accelerator.gather(rows.contiguous())
        for batch, numbers in zip(found, plan, strict=True):
            batch[name] = rows[numbers]
    return found
