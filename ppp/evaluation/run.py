"""Plays an evaluation: one agent, or two one after the other, through the pool and into a folder, until all is there.

What is played stands in `plan.py`, who plays it in `agents.py`, what is kept in `folder.py`, what comes of it in
`summary.py`. The command line is `ppp/evaluate.py`.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ppp.batch import TooManyFailuresError
from ppp.bookkeeping import Bookkeeper
from ppp.build import check_crowds
from ppp.chat.endpoint import default_url, shown_url
from ppp.chat.ledger import ChatLedger
from ppp.evaluation.agents import CHECKPOINT, Contender
from ppp.evaluation.folder import BASELINE_DIR, EvaluationFolder
from ppp.evaluation.plan import Session, describe_plan, load_held_out_rows, plan_sessions
from ppp.evaluation.records import Record, failed
from ppp.evaluation.settings import EvaluationSettings
from ppp.evaluation.summary import summarize_evaluation, warn_of_few_tasks, with_differences, write_summary
from ppp.recipe import Recipe
from ppp.recipe_config import source_options
from ppp.rewards import METRIC_VERSION, TERMS, RewardSettings, score_trajectory
from ppp.rollout import RolloutJob, RolloutPool
from ppp.run_log import trajectory_record
from ppp.token_log import TOKENS_FILE, TokenLog
from ppp.tracking import check_wandb, log_evaluation, wants_wandb
from ppp.types import RunStoppedError, Trajectory
from ppp.users.crowd import Crowd, Crowds

logger = logging.getLogger(__name__)

VERSION = 1  # of the manifest
PAGE_FILE = "report.html"  # what ppp report may have left in the folder; goes to W&B with the scores


class InterruptedEvaluation(KeyboardInterrupt):
    """Ctrl-C or a signal ended an evaluation; says how far it is, and how to go on."""


@dataclass(frozen=True)
class Evaluated:
    """One agent after its evaluation: the records of all sessions in the order of the plan, and their summary."""

    records: Sequence[Record]
    summary: dict[str, Any]


def evaluate(settings: EvaluationSettings) -> dict[str, Any]:
    """Play what is still missing of an evaluation, and of its baseline, and write their summaries.

    Returns:
        What `summary.json` holds.

    Raises:
        RecipeError: the operator's mistake, before a model is loaded and before anything is written.
        TooManyFailuresError: more sessions failed than the recipe's `max_failure_rate` allows; the results are kept.
        RunStoppedError: a budget is used up, or an endpoint stays away; the results so far are kept.
        InterruptedEvaluation: likewise, for Ctrl-C.
    """
    config = settings.recipe.config
    check_wandb(settings.recipe.args)
    rows = load_held_out_rows(settings.recipe, settings.max_tasks)
    seed = settings.recipe.args.seed
    sessions = plan_sessions(rows, config.eval_preferences, settings.counts, seed, settings.prompts)
    plan = describe_plan(sessions, config.eval_preferences, settings.prompts)
    who = [("agent", settings.agent, settings.recipe, settings.output_dir)]
    if settings.baseline is not None:
        who.append(("baseline", *settings.baseline, settings.output_dir / BASELINE_DIR))
    parts = []
    for field, choice, recipe, folder in who:
        contender = Contender(choice, recipe, field)
        manifest = make_manifest(recipe, contender.description(), plan, rows)
        parts.append(_Part(contender, EvaluationFolder(folder, manifest, sessions), recipe))
    for part in parts:  # all of them before the first model is loaded
        part.check()
    played = [part.play() for part in parts]
    ours, summary = played[0].records, played[0].summary
    if len(played) > 1:
        summary = with_differences(summary, played[1].records, ours)
        write_summary(summary, settings.output_dir)
    warn_of_few_tasks(ours)
    if wants_wandb(settings.recipe.args):
        folder, name = settings.output_dir, settings.recipe.args.run_name
        page = folder / PAGE_FILE
        log_evaluation(summary, ours, folder, name=name, page=page if page.is_file() else None)
    for part, found in zip(parts, played, strict=True):
        check_failure_rate(found.records, part.recipe.config.max_failure_rate)
    return summary


class _Part:
    """One agent of an evaluation, with its own users, ledger and folder."""

    def __init__(self, contender: Contender, folder: EvaluationFolder, recipe: Recipe) -> None:
        self.contender, self.folder, self.recipe = contender, folder, recipe
        config = recipe.config
        self.crowd = config.build_crowds().evaluation if config.interaction else Crowd()
        self.books = open_books(self.crowd, folder, contender.ledger)

    def check(self) -> None:
        """Find out whether everyone who is needed can be reached; nobody is when everything was played."""
        if self.folder.missing:
            self.contender.check(self.folder.manifest)
            check_crowds([self.crowd])

    def play(self) -> Evaluated:
        """Play what is missing."""
        if not self.folder.missing:
            logger.info("%s: all %d sessions are there", self.folder.path, len(self.folder.sessions))
            return finish(self.folder, None)
        started = time.perf_counter()
        with ExitStack() as stack:
            stack.callback(self.books.tell)
            pool = self.contender.enter_pool(stack, self.crowd)
            is_model = self.contender.choice.kind == CHECKPOINT
            label = "evaluate" if self.contender.field_name == "agent" else self.contender.field_name
            rewards = self.recipe.config.reward_settings()
            play_missing(pool, self.folder, rewards, self.books, is_model=is_model, label=label)
        return finish(self.folder, time.perf_counter() - started)


def evaluate_sessions(
    pool: RolloutPool,
    sessions: Sequence[Session],
    output_dir: Path,
    *,
    manifest: Mapping[str, Any],
    rewards: RewardSettings | None = None,
    ledger: ChatLedger | None = None,
    label: str = "evaluate",
) -> dict[str, Any]:
    """Play what is still missing of an evaluation in a pool that the caller has built, and closes.

    Args:
        sessions: all of them, see `plan_sessions`.
        output_dir: the folder of the evaluation; one that was begun by the same evaluation is gone on with.
        manifest: what is evaluated, see `make_manifest`; needs `rewards.personalization`, see `describe_rewards`.
        rewards: how sessions are scored; None stands for the paper's way.
        ledger: what the agent's model takes.
        label: of the progress bar; "" shows none.

    Returns:
        What `summary.json` holds.

    Raises:
        RecipeError: `output_dir` holds another evaluation.
        RunStoppedError: a budget is used up, or an endpoint stays away; the results so far are kept.
        InterruptedEvaluation: likewise, for Ctrl-C.
    """
    folder = EvaluationFolder(output_dir, manifest, sessions)
    if not folder.missing:
        return finish(folder, None).summary
    books = open_books(pool.crowd, folder, ledger)
    started = time.perf_counter()
    try:
        play_missing(pool, folder, rewards or RewardSettings(), books, label=label)
    finally:
        books.tell()
    return finish(folder, time.perf_counter() - started).summary


def open_books(crowd: Crowd, folder: EvaluationFolder, ledger: ChatLedger | None) -> Bookkeeper:
    """The count of what users and agent take; goes on where an earlier part of the evaluation stopped."""
    books = Bookkeeper(Crowds(crowd, crowd), folder.path, agent=ledger)
    books.resume("output_dir")
    books.num_sessions = len(folder.records)
    books.left_out.clear()  # they are played again
    return books


def play_missing(
    pool: RolloutPool,
    folder: EvaluationFolder,
    rewards: RewardSettings,
    books: Bookkeeper,
    *,
    is_model: bool = False,
    label: str = "evaluate",
) -> None:
    """Play all missing sessions at once, with a progress bar; each is on disk as soon as it has ended.

    Args:
        is_model: whether the agent's tokens are worth keeping.
        label: of the progress bar; "" shows none.
    """
    missing = {session.number: session for session in folder.missing}
    jobs = [RolloutJob(session.task, row=session.number, copy=0) for session in missing.values()]
    num_all, num_failed = len(folder.sessions), 0
    with folder.opened(), tqdm(total=num_all, initial=num_all - len(jobs), desc=label, disable=not label) as bar:
        tokens = None
        if is_model:
            rows = (session.number for session in folder.sessions)
            tokens = TokenLog(folder.path / TOKENS_FILE, pool.codec, rows, pool.limits.max_completion_tokens)

        def write(job: RolloutJob, trajectory: Trajectory) -> None:
            nonlocal num_failed
            score = score_trajectory(trajectory, rewards)
            record = trajectory_record(trajectory, score, step=0, mode="eval", row=job.row, copy=job.copy)
            folder.add(missing[job.row], record)
            if tokens is not None:
                tokens.offer(trajectory, row=job.row, copy=job.copy)
            books.count([trajectory])
            num_failed += trajectory.failed
            trajectory.turns, trajectory.prompt_ids = [], []  # thousands of sessions would fill the memory
            bar.set_postfix_str(", ".join([f"{num_failed} failed", *cost_so_far(books)]), refresh=False)
            bar.update()

        with _told(folder), _terminable():
            pool.run(jobs, step=0, on_finish=write)


def cost_so_far(books: Bookkeeper) -> list[str]:
    """USD so far, where all prices are known."""
    accounts = [account for ledger in books.ledgers for account in ledger.accounts.values()]
    costs = [account.cost for account in accounts]
    known = [cost for cost in costs if cost is not None]
    return [f"{sum(known):.4f} USD"] if known and len(known) == len(costs) else []


@contextmanager
def _told(folder: EvaluationFolder) -> Iterator[None]:
    """Let whatever ends the body early say how far the evaluation is."""
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedEvaluation(f"interrupted; {folder.told()}") from None
    except RunStoppedError as error:
        raise type(error)(f"{error} {folder.told()}") from error


@contextmanager
def _terminable() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C while the body runs, so that environments are closed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Shells let what they start with & ignore SIGINT: raising that would then come to nothing.
    is_ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    end = signal.default_int_handler if is_ignored else lambda number, frame: signal.raise_signal(signal.SIGINT)
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def finish(folder: EvaluationFolder, wall_s: float | None) -> Evaluated:
    """Write the summary of an evaluation that is complete.

    Args:
        wall_s: seconds of this part; None where nothing was played.
    """
    records = folder.in_order
    summary = summarize_evaluation(records, folder.manifest, folder.path, wall_s)
    write_summary(summary, folder.path)
    return Evaluated(records, summary)


def check_failure_rate(records: Sequence[Record], max_failure_rate: float) -> None:
    """Say how many sessions failed.

    Raises:
        TooManyFailuresError: more than this share; names the most frequent cause.
    """
    causes = Counter(record["error"] for record in records if failed(record))
    if not causes:
        return
    told = f"{causes.total()} of {len(records)} sessions failed and are left out"
    cause, number = causes.most_common(1)[0]
    if causes.total() > max_failure_rate * len(records):
        raise TooManyFailuresError(
            f"{told}, more than max_failure_rate ({max_failure_rate:g}) allows; most often ({number} times): {cause}; "
            "the same command plays them again"
        )
    logger.warning("%s; the same command plays them again", told)


def make_manifest(
    recipe: Recipe, agent: Mapping[str, Any], plan: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What `evaluation.json` says: everything on which the sessions and their scores depend.

    Args:
        agent: see `Contender.description`.
        plan: see `describe_plan`.
        rows: of the tasks.
    """
    config = recipe.config
    crowd = config.build_crowds().evaluation
    numbers = Counter(row["environment"] for row in rows)
    tasks = {
        name: {"source": source_options("eval_tasks", config.eval_tasks, name), "num_tasks": numbers[name]}
        for name in config.eval_tasks
    }
    return {
        "version": VERSION,
        "metric_version": METRIC_VERSION,
        "agent": dict(agent),
        "user": describe_users(crowd) if config.interaction else None,
        "environments": list(config.eval_tasks),
        "environment_options": {name: config.environment_options.get(name, {}) for name in config.eval_tasks},
        "tasks": tasks,
        "interaction": config.interaction,
        "preference_visibility": config.preference_visibility,
        "seed": recipe.args.seed,
        "limits": asdict(config.build_limits(recipe.args.max_completion_length or 1)),
        "rewards": describe_rewards(config.reward_settings()),
        **plan,
    }


def describe_users(crowd: Crowd) -> dict[str, Any]:
    """What a manifest says of the users; also the address of their model where the environment decides on it."""
    address = {"base_url": shown_url(default_url())} if crowd.kind == "llm" else {}
    return {"kind": crowd.kind, **address, **crowd.options}


def describe_rewards(settings: RewardSettings) -> dict[str, Any]:
    """What a manifest says of how sessions are scored."""
    return {
        "weights": {name: settings.weights.get(name, 1.0) for name in TERMS},
        "effort_costs": settings.effort_costs,
        "personalization": settings.personalization,
        "reward_clip": None if settings.reward_clip is None else list(settings.reward_clip),
    }
