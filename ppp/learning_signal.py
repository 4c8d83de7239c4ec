"""The guard that notices when a run learns nothing, and says why: a table of causes, and the callback that reads it.

Everything that it reads stands in `metrics.jsonl`; where those numbers come from is in `step_metrics.py` and
`update_meter.py`. It changes nothing but when a run ends.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ppp.rewards import TERMS
from ppp.step_metrics import FAILURES, FLAT

logger = logging.getLogger(__name__)

Logs = Mapping[str, Any]

MANY_FAILURES = 0.5
FEW_CHANGED = 0.01  # of the weights, by one update; Adam changes nearly all that had a gradient
NO_ENTROPY = 0.01  # nats per token
FAR_APART = 0.1  # log-probabilities of engine and trainer, on average


@dataclass(frozen=True)
class Cause:
    """Why steps teach nothing, or less than they could.

    Attributes:
        signal: the metric that shows it first.
        holds: whether it does, by the metrics of one step.
        text: what is the matter and what is likely behind it.
        remedy: what to do.
        weight: "dead": a step with it taught nothing. "broken": nor will any later one; the run stops at once.
            "warns": worth a warning. "explains": only says why a step is dead.
        hides: causes that follow from this one, and are not told beside it.
        detail: more about this step, behind the text.
    """

    signal: str
    holds: Callable[[Logs], bool]
    text: str
    remedy: str
    weight: Literal["dead", "broken", "warns", "explains"]
    hides: tuple[str, ...] = ()
    detail: Callable[[Logs], str] = lambda logs: ""


def value(logs: Logs, name: str, default: float = 0.0) -> float:
    """A metric, or `default` where this step has none."""
    found = logs.get(name)
    return default if found is None else float(found)


def is_flat(logs: Logs) -> bool:
    return value(logs, "flat_groups") == 1.0


def terms_vary(logs: Logs) -> bool:
    """Whether some term of the reward differs within groups."""
    return any(value(logs, f"terms/{name}_group_std") > FLAT for name in TERMS)


def most_frequent_failure(logs: Logs) -> str:
    """What failed most often, as the end of a sentence."""
    shares = {name.removeprefix(FAILURES): value(logs, name) for name in logs if name.startswith(FAILURES)}
    return f", most often of the kind {max(shares, key=lambda kind: shares[kind])!r}" if shares else ""


def how_hard(logs: Logs) -> str:
    """What the mean productivity says of equal rewards."""
    mean = value(logs, "terms/productivity", math.nan)
    if mean < 0.05:
        return f" (mean productivity {mean:.2f}: the tasks are too hard)"
    return f" (mean productivity {mean:.2f}: the tasks are too easy)" if mean > 0.95 else ""


NO_SIGNAL = ("flat_groups", "clipped_rewards", "zero_gradient")

# From the root to the symptom. name -> signal, condition, likely cause, remedy.
CAUSES: dict[str, Cause] = {
    "broken_weights": Cause(
        "update/norm",
        lambda logs: not math.isfinite(value(logs, "update/norm")),
        "an update made the weights infinite or not a number",
        "go on from the last checkpoint with a lower learning_rate or max_grad_norm, in bfloat16 instead of float16",
        "broken",
        hides=(*NO_SIGNAL, "broken_gradient", "no_update", "lost_updates", "different_engine", "nothing_parses"),
    ),
    "broken_gradient": Cause(
        "grad_norm",
        lambda logs: not math.isfinite(value(logs, "grad_norm")),
        "the gradient was infinite or not a number, and the step was skipped",
        "use bf16 instead of fp16, lower learning_rate, look for infinite rewards or log-probabilities",
        "dead",
        hides=("no_update", "lost_updates"),
    ),
    "failures": Cause(
        "failure_rate",
        lambda logs: value(logs, "failure_rate") >= MANY_FAILURES,
        "sessions failed on our side: a simulator, a tool or an engine is down",
        "see `error` in trajectories.jsonl and the table of failures at the end of the log; restart what is down",
        "explains",
        hides=(*NO_SIGNAL, "no_update", "no_entropy"),
        detail=lambda logs: f" ({value(logs, 'failure_rate'):.0%} of the batch{most_frequent_failure(logs)})",
    ),
    "nothing_parses": Cause(
        "turns/unreadable",
        lambda logs: value(logs, "turns/unreadable") == 1.0,
        "no turn held a tool call that could be read (wrong call_format, or a model that cannot call tools)",
        "set call_format or chat_template, or teach the format first with ppp warmstart",
        "dead",
        hides=("flat_groups", "zero_gradient", "all_truncated"),
    ),
    "all_truncated": Cause(
        "stop/max_tokens",
        lambda logs: value(logs, "stop/max_tokens") == 1.0,
        "every session ran out of tokens before it ended",
        "raise max_completion_length or lower limits.max_tokens_per_turn",
        "explains",
        hides=("flat_groups", "zero_gradient"),
    ),
    "no_entropy": Cause(
        "entropy",
        lambda logs: 0.0 < value(logs, "entropy") < NO_ENTROPY,
        "the policy has become certain of every token, so that all copies of a session are alike",
        "raise temperature, lower learning_rate, set beta above 0, or go on from an earlier checkpoint",
        "explains",
        hides=("flat_groups", "zero_gradient"),
    ),
    "clipped_rewards": Cause(
        "session_reward_group_std",
        lambda logs: is_flat(logs) and terms_vary(logs),
        "all rewards of every group were equal, although their terms were not (reward_clip cuts the differences off, "
        "or term_weights of 0 drop them)",
        "set reward_clip to null, or multi_objective_aggregation to normalize_then_sum",
        "dead",
        hides=("flat_groups", "zero_gradient"),
    ),
    "flat_groups": Cause(
        "flat_groups",
        is_flat,
        "in no group did one copy earn more than another",
        "mix in easier or harder tasks, raise num_generations or temperature, set max_resamples",
        "dead",
        hides=("zero_gradient",),
        detail=how_hard,
    ),
    "zero_learning_rate": Cause(
        "learning_rate",
        lambda logs: value(logs, "learning_rate", 1.0) == 0.0,
        "the learning rate was 0",
        "set learning_rate, or look at lr_scheduler_type, warmup_steps and max_steps",
        "dead",
        hides=("no_update", "lost_updates"),
    ),
    "zero_gradient": Cause(
        "grad_norm",
        lambda logs: value(logs, "grad_norm", 1.0) == 0.0,
        "the gradient was zero although rewards differed (no token carries loss, every ratio is clipped, or what is "
        "trained does not take part in the forward pass)",
        "look at mask_truncated_completions, epsilon and lora_target_modules",
        "dead",
        hides=("no_update", "lost_updates"),
    ),
    "no_update": Cause(
        "update/norm",
        lambda logs: value(logs, "update/norm", 1.0) == 0.0 and value(logs, "grad_norm") > 0.0,
        "no weight changed although there was a gradient (the step was skipped, or is below the precision of the "
        "weights)",
        "load the weights with dtype float32 (bf16: true keeps the speed), or raise learning_rate",
        "dead",
        hides=("lost_updates",),
    ),
    "lost_updates": Cause(
        "update/changed",
        lambda logs: value(logs, "update/changed", 1.0) < FEW_CHANGED and value(logs, "grad_norm") > 0.0,
        "fewer than 1 % of the weights changed (the rest of the update is below their precision)",
        "load the weights with dtype float32 (bf16: true keeps the speed), or raise learning_rate",
        "warns",
    ),
    "different_engine": Cause(
        "sampling/logprob_difference",
        lambda logs: value(logs, "sampling/logprob_difference") > FAR_APART,
        "log-probabilities of engine and trainer are far apart",
        "see that the engine has the current weights, the same dtype, temperature, top_p and top_k",
        "warns",
    ),
}


def found_causes(logs: Logs) -> list[str]:
    """The names of what holds in these metrics, the consequences of another cause included."""
    return [name for name, cause in CAUSES.items() if cause.holds(logs)]


def told(names: Sequence[str]) -> list[str]:
    """Those of `names` that do not follow from another one."""
    hidden = {other for name in names for other in CAUSES[name].hides}
    return [name for name in names if name not in hidden]


def describe(names: Sequence[str], logs: Logs) -> str:
    """What is the matter and what to do, as one line."""
    parts = [
        f"{cause.text}{cause.detail(logs)} [{cause.signal}; to do: {cause.remedy}]"
        for cause in map(CAUSES.__getitem__, names)
    ]
    return "; ".join(parts)


def missing_signals(logs: Logs) -> list[str]:
    """Names of the causes why a step with these metrics taught nothing, roots only; empty if it did teach."""
    names = found_causes(logs)
    if not any(CAUSES[name].weight in ("dead", "broken") for name in names):
        return []
    return [name for name in told(names) if CAUSES[name].weight != "warns"]


class LearningSignalGuard(TrainerCallback):
    """Warns, and then stops the run, when step after step has nothing to learn from.

    A resumed run counts on from the logs in its checkpoint.

    Args:
        warn_after, stop_after: steps in a row; 0 stands for never. Weights that are no numbers stop the run at once
            unless `stop_after` is 0, and keep it from saving them.
    """

    def __init__(self, warn_after: int, stop_after: int) -> None:
        self.warn_after, self.stop_after = warn_after, stop_after
        self.last_step: int | None = None  # the last one that was logged
        self.since: dict[str, int] = {}  # what holds, "dead" for a dead step -> the last step before it did
        self.warned: set[str] = set()
        self.stop_message: str | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for logs in state.log_history:
            if "loss" in logs:
                self._count(logs, int(logs["step"]))
        if self.last_step is None:
            self.last_step = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Logs | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        step = state.global_step
        causes = self._count(logs, step)
        if state.is_world_process_zero:
            self._warn(causes, logs, step)
        if not causes or not self.stop_after:
            return
        num_steps = step - self.since["dead"]
        is_broken = any(CAUSES[name].weight == "broken" for name in causes)
        if num_steps >= self.stop_after or is_broken:
            self.stop_message = self._text(causes, logs, num_steps)
            if not is_broken:
                self.stop_message += f" (stop_without_signal_steps is {self.stop_after})"
            control.should_training_stop = True
            control.should_save = not is_broken

    def _count(self, logs: Logs, step: int) -> list[str]:
        """Note what holds at this step; the causes why it taught nothing."""
        before = step - 1 if self.last_step is None else self.last_step
        self.last_step = step
        causes = missing_signals(logs)
        holding = {name for name in told(found_causes(logs)) if CAUSES[name].weight == "warns"}
        holding |= {"dead"} if causes else set()
        self.since = {name: self.since.get(name, before) for name in holding}
        self.warned &= holding
        return causes

    def _warn(self, causes: Sequence[str], logs: Logs, step: int) -> None:
        is_broken = any(CAUSES[name].weight == "broken" for name in causes)
        for name, since in self.since.items():
            num_steps = step - since
            is_due = (self.warn_after and num_steps >= self.warn_after) or (name == "dead" and is_broken)
            if not is_due or name in self.warned:
                continue
            self.warned.add(name)
            if name == "dead":
                logger.warning("%s", self._text(causes, logs, num_steps))
            else:
                logger.warning("for %d steps: %s", num_steps, describe([name], logs))

    @staticmethod
    def _text(causes: Sequence[str], logs: Logs, num_steps: int) -> str:
        return f"nothing to learn from in the last {num_steps} steps: {describe(causes, logs)}"
