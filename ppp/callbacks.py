"""What watches a run: the progress bar, the metrics on disk, and the guard that notices when nothing is being
learned."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ppp.run_log import RunLog

logger = logging.getLogger(__name__)

# What the bar shows: label -> key of the metrics.
BAR = {
    "reward": "session_reward",
    "prod": "terms/productivity",
    "proact": "terms/proactivity",
    "pers": "terms/personalization",
    "ask": "ask_ratio/vague",
    "ask precise": "ask_ratio/precise",
}


class MetricsWriter(TrainerCallback):
    """Writes what the trainer logs to `metrics.jsonl`, one line per log, on the main process."""

    def __init__(self, run_log: RunLog) -> None:
        self.run_log = run_log

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            self.run_log.write_metrics(state.global_step, logs)


class Progress(TrainerCallback):
    """One bar with step, reward, the three terms and the ask ratios; one line per log where there is no terminal."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and sys.stderr.isatty():
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="train", dynamic_ncols=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        shown = {label: f"{logs[key]:.3g}" for label, key in BAR.items() if logs.get(key) is not None}
        if self.bar is not None:
            self.bar.set_postfix(shown)
        else:
            text = ", ".join(f"{label} {value}" for label, value in shown.items())
            logger.info("step %d/%d: %s", state.global_step, state.max_steps, text)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class LearningSignalGuard(TrainerCallback):
    """Warns, and then stops the run, when step after step has nothing to learn from.

    Args:
        warn_after, stop_after: steps in a row; 0 stands for never.
    """

    def __init__(self, warn_after: int, stop_after: int) -> None:
        self.warn_after, self.stop_after = warn_after, stop_after
        self.last_good_step: int | None = None
        self.has_warned = False
        self.stop_message: str | None = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        step = state.global_step
        if self.last_good_step is None:
            self.last_good_step = step - 1
        causes = missing_signals(logs)
        if not causes:
            self.last_good_step, self.has_warned = step, False
            return
        num_steps = step - self.last_good_step
        text = f"nothing to learn from in the last {num_steps} steps: {'; '.join(causes)}"
        if self.warn_after and num_steps >= self.warn_after and not self.has_warned:
            self.has_warned = True
            logger.warning("%s", text)
        if self.stop_after and num_steps >= self.stop_after:
            self.stop_message = f"{text} (stop_without_signal_steps is {self.stop_after})"
            control.should_save = control.should_training_stop = True


def missing_signals(logs: Mapping[str, Any]) -> list[str]:
    """Why the steps of this log taught nothing; empty if they did."""
    causes = []
    if logs.get("turns/unreadable") == 1.0:
        causes.append(
            "no turn held a tool call that could be read (wrong call_format, or a model that cannot call tools)"
        )
    if logs.get("flat_groups") == 1.0:
        causes.append("all rewards of every group were equal (tasks too hard or too easy, or clipped: reward_clip)")
    if logs.get("grad_norm") == 0.0:
        causes.append("the gradient was zero")
    return causes
