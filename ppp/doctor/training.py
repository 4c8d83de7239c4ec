"""Checks of one real step (`probe.py`): two whole sessions, loss and gradient, log-probabilities, the mask of the loss.

The first of them takes the step; the others read what was seen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch

from ppp.alignment import ALIGNED, LIKELY_CAUSES, MAXIMUM, MEAN
from ppp.doctor.patient import Patient
from ppp.doctor.probe import Gradients, Probe, Row, take_step
from ppp.doctor.results import Result, failed, ok, skipped, warning
from ppp.doctor.text import Line, one_line
from ppp.doctor.transcript import masked_text, transcript
from ppp.types import RecipeError, Trajectory

GIB = 2**30

SMALLER = (
    "take a smaller per_device_train_batch_size, max_completion_length or model, set gradient_checkpointing or "
    "use_peft, or shard the model over more GPUs"
)


def remedy_for(error: Exception | None, otherwise: str) -> str:
    """What to do about something that a library raised."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return SMALLER
    if isinstance(error, RecipeError):
        return "correct the recipe's field that is named"
    return otherwise


def told(error: Exception | None) -> str:
    """An error in a sentence."""
    return "nothing is known" if error is None else f"{type(error).__name__}: {one_line(str(error), 700)}"


def check_trajectories(patient: Patient) -> Result:
    """The model is loaded by its own loader, and plays two sessions through its own engine."""
    probe = patient.probe = take_step(patient)
    if probe.stage == "load":
        remedy = remedy_for(probe.error, "see whether model_name_or_path names a model that transformers can load")
        return failed(f"the model or its engine could not be set up: {told(probe.error)}", remedy)
    played = probe.trajectories
    if not played:
        remedy = remedy_for(probe.error, "see what the engine or the users said")
        return failed(f"no session was played to its end: {told(probe.error)}", remedy)
    block = [line for trajectory in played for line in transcript(trajectory)]
    lost = Counter(one_line(trajectory.error or "", 500) for trajectory in played if trajectory.failed)
    if lost:
        text = f"{lost.total()} of {len(played)} sessions failed, and not by the policy's fault: {'; '.join(lost)}"
        return failed(text, "mend what is named: the engine, a user's endpoint, a tool or a deadline", block=block)
    turns = [turn for trajectory in played for turn in trajectory.turns]
    num_read = sum(turn.call is not None for turn in turns)
    text = f"{_described(patient, probe)}; {num_read} of {len(turns)} turns made a call that could be read"
    if not num_read:
        remedy = "a model that never calls a tool has nothing to learn from: see call_format, or ppp warmstart first"
        return warning(text, remedy, {"seconds": probe.seconds}, block)
    return ok(text, {"seconds": probe.seconds}, block)


def _described(patient: Patient, probe: Probe) -> str:
    played, weights = probe.trajectories, "the model was"
    if patient.plan is not None:
        counts = patient.plan.counts
        trained = f"{counts.adapters:,} in adapters, which are trained" if counts.adapters else "all of them trained"
        weights = f"{counts.total + counts.adapters:,} weights, {trained},"
    num_tokens = sum(sum(trajectory.env_mask) for trajectory in played)
    reasons = Counter(trajectory.stop_reason.value for trajectory in played if trajectory.stop_reason is not None)
    ends = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
    return (
        f"{weights} loaded in {probe.seconds['load']:.1f} s; "
        f"{len(played)} sessions in {probe.seconds['rollout']:.1f} s ({ends}), {num_tokens} tokens by the policy"
    )


def check_backward(patient: Patient) -> Result:
    """Loss and gradient of the two sessions, as the run computes them: adapters, checkpointing, precision."""
    probe = _probe(patient)
    if probe.stage != "done" and not probe.losses:
        return failed(f"the loss could not be computed: {told(probe.error)}", remedy_for(probe.error, "report this"))
    if probe.stage != "done":
        return failed(f"the step could not be taken: {told(probe.error)}", remedy_for(probe.error, "report this"))
    norm = float(probe.logs.get("grad_norm", math.nan))
    details = {"losses": probe.losses, "grad_norm": norm, "seconds": probe.seconds, "peak_bytes": probe.peak_bytes}
    where = "on the GPU" if torch.cuda.is_available() else "resident"
    args = patient.told.args
    how = f"{patient.told.config.dtype}{', bf16 autocast' if args.bf16 else ''}"
    how += ", gradient checkpointing" if args.gradient_checkpointing else ""
    text = (
        f"loss {sum(probe.losses) / len(probe.losses):.3g}, gradient norm {norm:.3g} ({how}), forward and backward in "
        f"{probe.seconds['loss']:.2f} s; peak memory {probe.peak_bytes / GIB:.2f} GiB {where}"
    )
    if not all(map(math.isfinite, probe.losses)):
        return failed(f"the loss is no number; {text}", "use dtype bfloat16 or float32, not float16", details)
    if probe.gradients is None:  # sharded
        if not math.isfinite(norm) or norm == 0:
            return failed(f"the gradient is {norm:g}; {text}", "see whether anything is trained", details)
        return ok(text, details)
    return _judge_gradients(probe.gradients, text, patient.told.config.use_peft, details)


def _judge_gradients(found: Gradients, text: str, is_lora: bool, details: dict[str, object]) -> Result:
    if found.not_finite:
        names = _some(found.not_finite)
        remedy = "use dtype bfloat16 or float32, not float16"
        return failed(f"{len(found.not_finite)} gradients are no numbers ({names}); {text}", remedy, details)
    without = len(found.missing) + len(found.zero)
    if without == found.num_tensors:
        remedy = "see whether lora_target_modules name modules, and whether the policy wrote anything"
        return failed(f"none of {found.num_tensors} trained tensors has a gradient; {text}", remedy, details)
    # The second factor of an adapter begins at zero, which hides the first one from the loss for one step.
    doubtful = [*found.missing, *(name for name in found.zero if not (is_lora and "lora_A" in name))]
    text = f"{text}; a gradient in {found.num_tensors - without} of {found.num_tensors} trained tensors"
    if is_lora and without > len(doubtful):
        text += " (the others are first factors of adapters, whose second ones are still zero)"
    if doubtful:
        remedy = "right for experts that no token came by; otherwise see what is frozen"
        return warning(f"{text}; none in {len(doubtful)} ({_some(doubtful)})", remedy, details)
    return ok(text, details)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def check_logprobs(patient: Patient) -> Result:
    """Engine and forward pass give the policy's tokens the same probabilities."""
    probe, config = _probe(patient), patient.told.config
    if MEAN not in probe.logs:
        if probe.stage == "done":
            return skipped("the policy wrote no token that could be compared")
        return failed(f"the forward pass failed: {told(probe.error)}", remedy_for(probe.error, "see backward"))
    mean, worst, limit = probe.logs[MEAN], probe.logs[MAXIMUM], config.max_logprob_difference
    text = f"log-probabilities of {config.engine} and trainer differ by {mean:.2g} on average and by up to {worst:.2g}"
    details = {"mean": mean, "max": worst, "limit": limit}
    if not mean <= limit:
        return failed(f"{text}; {limit:g} is allowed (max_logprob_difference)", LIKELY_CAUSES, details)
    if mean > limit / 2:
        return warning(f"{text}; {limit:g} is allowed (max_logprob_difference)", LIKELY_CAUSES, details)
    if worst > ALIGNED:
        state = "off" if config.importance_sampling_correction == "false" else "on"
        text += f"; importance-sampling correction is {state}"
    return ok(text, details)


def check_mask(patient: Patient) -> Result:
    """What carries loss is what the policy wrote, no more and no less; shown as text."""
    probe, codec = _probe(patient), patient.codec
    if not probe.rows:
        return skipped("the loss was not reached, see backward")
    block: list[Line] = []
    wrong: list[str] = []
    num_known = 0
    for row in probe.rows:
        played = next((trajectory for trajectory in probe.trajectories if _is_of(row, trajectory)), None)
        if played is None:  # processes exchange rows to have equal work
            continue
        num_known += 1
        expected = [
            own for turn in played.turns for own in [1] * len(turn.completion_ids) + [0] * len(turn.observation_ids)
        ]
        if row.mask != expected:
            number = sum(mask != own for mask, own in zip(row.mask, expected, strict=True))
            wrong.append(f"{number} of {len(expected)} tokens of {one_line(played.task.task_id)}")
        block += [(f"session {one_line(played.task.task_id)}", None), *masked_text(row, codec)]
    num_own, num_all = sum(sum(row.mask) for row in probe.rows), sum(len(row.mask) for row in probe.rows)
    text = f"{num_own} of {num_all} tokens after the prompts carry loss, those that the policy wrote"
    if wrong:
        remedy = "do not train: the policy would learn what tools and users say; report this"
        return failed(f"the mask of the loss is wrong at {'; '.join(wrong)}", remedy, block=block)
    if not num_known and patient.told.args.world_size == 1:
        remedy = "do not train; report this"
        return failed("what the loss sees is none of the sessions that were played", remedy, block=block)
    if not num_own:
        return failed("no token carries loss", "see the limits of tokens", block=block)
    return ok(text, {"num_own": num_own, "num_all": num_all}, block)


def _is_of(row: Row, trajectory: Trajectory) -> bool:
    return row.prompt_ids == trajectory.prompt_ids and row.completion_ids == trajectory.completion_ids


def _probe(patient: Patient) -> Probe:
    assert patient.probe is not None, "the check of the trajectories comes first"
    return patient.probe
