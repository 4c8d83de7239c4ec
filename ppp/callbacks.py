"""What shows a run: the progress bar, and the metrics on disk. What guards it is in `learning_signal.py`."""

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

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.run_log.tokens is not None:
            self.run_log.tokens.num_steps = state.max_steps

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
