"""Weights & Biases: a training's curves and tables of sessions, and the scores of an evaluation.

Everything is on disk besides, so W&B is asked before a run whether it can be had, and cannot end one later. What agents
and users say goes into tables as text, never as HTML. Files of a run are `run_log.py`'s; what a report shows is made in
`reporting/`.
"""

from __future__ import annotations

import logging
import os
import random
import textwrap
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import WandbCallback

from ppp.config import PPPConfig
from ppp.encoder import clean
from ppp.evaluation.records import GROUPS
from ppp.run_folder import write_whole
from ppp.run_log import RunLog
from ppp.types import InfrastructureError, RecipeError

logger = logging.getLogger(__name__)

PROJECT = "ppp"  # unless WANDB_PROJECT names another
RUN_FILE = "wandb_run_id.txt"
NUM_TABLES = 10  # of training sessions, in a run
SAMPLES = {"train": 16, "eval": 64}  # sessions of a table
MAX_RESULTS = 200
MAX_CHARS = 20_000  # of a conversation
SCORES = ("productivity", "proactivity", "personalization", "ask_ratio", "ask_ratio_willing")

Record = Mapping[str, Any]

# Column of a table of sessions -> what stands there.
COLUMNS: dict[str, Callable[[Record], Any]] = {
    "step": lambda record: record["step"],
    "task": lambda record: record["task_id"],
    "environment": lambda record: record["environment"],
    "preference": lambda record: record["preference"],
    "prompt": lambda record: "precise" if record["is_precise"] else "vague",
    "reward": lambda record: record["score"]["reward"],
    "productivity": lambda record: record["session"]["productivity"],
    "effort": lambda record: record["session"]["session_effort"],
    "questions": lambda record: record["session"]["num_questions"],
    "follows preference": lambda record: record["session"]["follows_preference"],
    "verdicts": lambda record: verdicts(record),
    "turns": lambda record: len(record["turns"]),
    "ended": lambda record: record["stop_reason"],
    "conversation": lambda record: conversation(record),
}


def wants_wandb(args: PPPConfig) -> bool:
    return "wandb" in (args.report_to or ())


def check_wandb(args: PPPConfig) -> None:
    """Find out, before a model is loaded, whether W&B will take a run that is to be reported to it.

    Raises:
        RecipeError: it will not, on all processes alike.
    """
    if not wants_wandb(args):
        return
    problem = _problem() if PartialState().is_main_process else None
    if PartialState().num_processes > 1:
        problem = broadcast_object_list([problem])[0]
    if problem is not None:
        hint = "use wandb login or set WANDB_API_KEY, look at the network, or set WANDB_MODE=offline and sync later"
        raise RecipeError(f"report_to: W&B is not to be had ({problem}); {hint}")


def _problem() -> str | None:
    import wandb

    try:
        if wandb.setup().settings.mode not in ("offline", "disabled"):
            wandb.login(verify=True)
    except wandb_errors() as error:
        return _one_line(error)
    finally:
        wandb.teardown()  # or the run would not see what `set_up_wandb` puts into the environment
    return None


def wandb_errors() -> tuple[type[Exception], ...]:
    """What W&B raises: its own, and those of the connection to the process that sends everything."""
    import wandb  # takes a second, and most runs do without

    return (wandb.Error, OSError)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


# --- a training -------------------------------------------------------------------------------------------------------


def set_up_wandb(args: PPPConfig, folder: Path) -> None:
    """Give a run of W&B an id that a resumed run takes up again."""
    if args.process_index != 0 or not wants_wandb(args):
        return
    path = folder / RUN_FILE
    if not path.is_file():
        write_whole(path, uuid.uuid4().hex[:8] + "\n")
    os.environ.setdefault("WANDB_RUN_ID", path.read_text(encoding="utf-8").strip())
    os.environ.setdefault("WANDB_RESUME", "allow")
    os.environ.setdefault("WANDB_DIR", str(folder))
    os.environ.setdefault("WANDB_PROJECT", PROJECT)


def track(trainer: Trainer, run_log: RunLog, recipe: Mapping[str, Any]) -> None:
    """Let a trainer report to W&B through us, if it reports there.

    Args:
        recipe: what is told of it beside GRPO's arguments, as JSON values and without secrets.
    """
    if wants_wandb(trainer.args):
        # TRL sends the seconds of its functions past all callbacks, and would end the run where W&B fails.
        trainer.args.report_to = [name for name in trainer.args.report_to if name != "wandb"]
        trainer.remove_callback(WandbCallback)
        trainer.add_callback(TrackedRun(run_log, recipe))


class TrackedRun(WandbCallback):
    """transformers' callback, which has every metric, with tables of sessions; after the start it ends no run.

    Args:
        run_log: tells of the sessions that it writes down.
        recipe: see `track`.
    """

    def __init__(self, run_log: RunLog, recipe: Mapping[str, Any]) -> None:
        super().__init__()
        self._recipe = dict(recipe)
        self._sampled: dict[str, Sequence[Record]] = {}
        self._lost: set[str] = set()  # of "tables" and "metrics", which stands for everything
        run_log.listeners.append(self._note)

    def _note(self, records: Sequence[Record]) -> None:
        """Keep a sample of the newest batch of each kind."""
        kept = [record for record in records if not record.get("discarded")]
        if kept:
            self._sampled[kept[0]["mode"]] = sample(kept, SAMPLES[kept[0]["mode"]])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        try:
            super().on_train_begin(args, state, control, **kwargs)
            if state.is_world_process_zero:
                self._wandb.config.update({"recipe": self._recipe}, allow_val_change=True)
        except wandb_errors() as error:
            raise InfrastructureError(
                f"W&B does not start ({_one_line(error)}); set WANDB_MODE=offline and sync later", kind="wandb"
            ) from error

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._try("metrics", super().on_log, args, state, control, **kwargs)
        step, last = state.global_step, state.max_steps
        is_due = step % max(1, last // NUM_TABLES) == 0 or step == last
        if is_due and "loss" in (kwargs.get("logs") or {}):
            self._try("tables", self._log_table, "train", state)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._try("tables", self._log_table, "eval", state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._try("metrics", super().on_save, args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._try("metrics", super().on_train_end, args, state, control, **kwargs)

    def _log_table(self, mode: str, state: TrainerState) -> None:
        records = self._sampled.pop(mode, ())
        if state.is_world_process_zero and records:
            self._wandb.log({f"sessions/{mode}": session_table(records), "train/global_step": state.global_step})

    def _try(self, what: str, log: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Log something, unless that failed before; the run goes on without it."""
        if self._lost & {what, "metrics"}:
            return
        try:
            log(*args, **kwargs)
        except wandb_errors() as error:
            is_local = isinstance(error, OSError) and not isinstance(error, ConnectionError)  # a full disk, say
            self._lost.add(what if is_local else "metrics")
            logger.warning("W&B is lost (%s); the run goes on and logs to its folder alone", _one_line(error))


# --- an evaluation ----------------------------------------------------------------------------------------------------


def log_evaluation(
    summary: Mapping[str, Any],
    records: Sequence[Record],
    folder: Path,
    *,
    name: str | None = None,
    page: Path | None = None,
) -> None:
    """Send an evaluation to W&B: scores with their intervals, users, a sample of the sessions.

    If that fails there is one warning: everything stands in `folder`. Whether W&B can be had is `check_wandb`'s.

    Args:
        summary: what `summary.json` holds.
        records: of its sessions.
        folder: of the evaluation.
        name: of the run; None names it after the folder.
        page: the HTML report, sent as a file.
    """
    import wandb

    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name or folder.name,
            dir=folder,
            job_type="evaluation",
            config={"evaluation": summary.get("evaluation"), "metric_version": summary["metric_version"]},
        )
        with run:
            run.log({**scores(summary), **_tables(summary, records)})
            if page is not None:
                artifact = wandb.Artifact(f"report-{run.id}", type="report")
                artifact.add_file(str(page))
                run.log_artifact(artifact)
    except wandb_errors() as error:
        logger.warning("W&B did not take the evaluation (%s); it stands in %s", _one_line(error), folder)


def groups(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The groups of sessions that a summary tells of."""
    return {name: summary[name] for name in GROUPS if name in summary}


def scores(summary: Mapping[str, Any]) -> dict[str, float]:
    """`group/score` -> value, and `group/score/low` and `/high` where there is an interval.

    If there was a baseline, its scores stand under `baseline/`, without intervals, and `difference/` is ours minus its.
    """
    found: dict[str, float] = {}
    for name, group in groups(summary).items():
        found |= _with_bounds(name, group, group["intervals"])
        found |= {f"{name}/effort/{key}": value for key, value in group["effort"].items() if value is not None}
        found[f"{name}/num_sessions"] = group["num_sessions"]
    for name, group in summary.get("differences", {}).get("groups", {}).items():
        found |= _with_bounds(f"baseline/{name}", group["first"], {})
        found |= _with_bounds(f"difference/{name}", group["difference"], group["intervals"])
    return found


def _with_bounds(name: str, values: Mapping[str, Any], intervals: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for score in SCORES:
        if values[score] is not None:
            found[f"{name}/{score}"] = values[score]
            bounds = intervals.get(score) or ()
            found |= {f"{name}/{score}/{end}": value for end, value in zip(("low", "high"), bounds, strict=False)}
    return found


def _tables(summary: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    import wandb

    parts = groups(summary)
    values = [
        [name, score, group[score], *(group["intervals"].get(score) or (None, None))]
        for name, group in parts.items()
        for score in SCORES
    ]
    shown = [name for name in ("vague", "precise") if name in parts]
    users = [
        [name, preference, found["num_sessions"], *(found[score] for score in SCORES)]
        for name in shown
        for preference, found in parts[name]["preferences"].items()
    ]
    return {
        "scores": wandb.Table(columns=["sessions", "score", "value", "low", "high"], data=values),
        "preferences": wandb.Table(columns=["prompt", "preference", "sessions", *SCORES], data=users),
        "sessions": session_table(sample(records, MAX_RESULTS)),
    }


# --- sessions ---------------------------------------------------------------------------------------------------------


def sample(records: Sequence[Record], number: int) -> list[Record]:
    """Some of those that did not fail, in their order; of the same records always the same."""
    whole = [record for record in records if record["session"] is not None]
    chosen = random.Random("sessions").sample(range(len(whole)), min(number, len(whole)))
    return [whole[index] for index in sorted(chosen)]


def session_table(records: Sequence[Record]) -> Any:
    """A table of W&B with a row per session."""
    import wandb

    return wandb.Table(columns=list(COLUMNS), data=[[cell(record) for cell in COLUMNS.values()] for record in records])


def verdicts(record: Record) -> str:
    """What each question was found to be: "low, follows (rule)"."""
    answers = [turn["answer"] for turn in record["turns"] if "answer" in turn]
    words = {True: "follows", False: "breaks"}
    return "; ".join(f"{a['effort']}, {words[a['follows_preference']]} ({a['decided_by']})" for a in answers)


def conversation(record: Record) -> str:
    """A session as text. Lines that somebody else wrote are indented, so that none can pass for one of ours."""
    parts = [("prompt", record["prompt"])]
    for turn in record["turns"]:
        parts.append(("agent", turn["text"]))
        if "call" in turn:
            parts.append((f"call {turn['call']['name']}", turn["call"]["arguments"]))
        if "answer" in turn:
            parts.append(("user", turn["answer"]["text"]))
        elif turn["observation"] is not None:
            parts.append(("observation", turn["observation"]))
    if record["final_answer"] is not None:
        parts.append(("final answer", record["final_answer"]))
    text = "\n".join(f"{' '.join(label.split())}:\n{textwrap.indent(str(said), '    ')}" for label, said in parts)
    text = clean(text)
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}\n[... {len(text) - MAX_CHARS} characters cut]"
