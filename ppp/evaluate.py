"""The three scores of any agent on held-out sessions: a trained checkpoint, or a policy made of rules.

Sessions go through the same pool, users and metrics as in training; a recipe says which. The sessions depend on the
recipe's tasks and seed alone, so two agents play the same ones, with the same sampling noise. Nothing is trained here,
and no plot is drawn: see `report.py`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ppp.baselines import POLICIES, build_policy
from ppp.batch import TooManyFailuresError, check_failures
from ppp.bookkeeping import Bookkeeper
from ppp.build import build_codec, build_engine, build_model, build_pool, build_tokenizer, check_crowds, check_engine
from ppp.codec import Codec
from ppp.data import TaskRow, expand, load_task_rows
from ppp.engines.scripted import ScriptedEngine
from ppp.preferences import SEEN, UNSEEN
from ppp.recipe import Recipe, read_recipe
from ppp.recipe_config import source_options
from ppp.rewards import METRIC_VERSION, RewardSettings, score_trajectory, summarize
from ppp.rollout import RolloutJob, RolloutPool
from ppp.run_log import trajectory_record
from ppp.session import Limits
from ppp.tiny_model import byte_tokenizer
from ppp.types import InfrastructureError, RecipeError, RunStoppedError, Task, Trajectory
from ppp.users.crowd import Crowd, Crowds

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.jsonl"
SUMMARY_FILE = "summary.json"
NO_LIMIT = 1_000_000_000

# Sessions of different slices never share a number, however many each has: numbers are keys of the sampling noise.
SLICES = {"vague_seen": 0, "vague_unseen": 1_000_000, "precise": 2_000_000}
SCORES_OF_PREFERENCE = ("productivity", "proactivity", "personalization", "ask_ratio", "num_sessions")


@dataclass(frozen=True, slots=True)
class Session:
    """One session to be played: its slice, and its number, which is the same for every agent."""

    slice: str
    number: int
    task: Task


def plan_sessions(
    rows: Sequence[TaskRow], preferences: Sequence[str], num_sessions: int, num_per_unseen: int, seed: int
) -> list[Session]:
    """The held-out sessions: every slice goes round the preferences and through the tasks, both evenly.

    Args:
        rows: task rows, see `data.py`; those without a vague prompt are for the slice precise alone.
        preferences: users to evaluate with; a slice without any of them, or without a row, is left out.
        num_sessions: of the slices vague_seen and precise.
        num_per_unseen: sessions of each unseen preference.
        seed: of the expansion.
    """
    seen = [name for name in preferences if name in SEEN]
    unseen = [name for name in preferences if name in UNSEEN]
    # As in training: a user who wants three questions would punish an agent that rightly stays silent.
    quiet = [name for name in seen if name != "answer_more"]
    plans = {
        "vague_seen": (seen, num_sessions),
        "vague_unseen": (unseen, num_per_unseen * len(unseen)),
        "precise": (quiet, num_sessions),
    }
    sessions = []
    vague = [row for row in rows if row["vague_prompt"] is not None]
    for name, (users, number) in plans.items():
        fitting = rows if name == "precise" else vague
        for index in range(number if users and fitting else 0):
            # Users and tasks both go round; where their rounds meet, a step aside gives pairs that were not there yet.
            aside = index // math.lcm(len(users), len(fitting))
            row = fitting[(index + aside) % len(fitting)]
            task = make_task(row, users[index % len(users)], precise=name == "precise", seed=seed)
            sessions.append(Session(name, SLICES[name] + index, task))
    return sessions


def make_task(row: TaskRow, preference: str, *, precise: bool, seed: int) -> Task:
    """One session of a task row."""
    if precise:
        return expand([row], [preference], seed, num_precise=1)[-1]
    return expand([row], [preference], seed, num_precise=0)[0]


def load_held_out_rows(recipe: Recipe) -> list[TaskRow]:
    """The task rows of `eval_tasks`; those of several environments take turns.

    Raises:
        RecipeError: the recipe names no held-out tasks, or they cannot be used.
    """
    sources = recipe.config.eval_tasks
    if not sources:
        raise RecipeError("eval_tasks: {} is not allowed; name the held-out tasks of at least one environment")
    tables = [load_task_rows("eval_tasks", name, source_options("eval_tasks", sources, name)) for name in sources]
    longest = max(len(table) for table in tables)
    return [table[index] for index in range(longest) for table in tables if index < len(table)]


def play(pool: RolloutPool, sessions: Sequence[Session], results: Path, rewards: RewardSettings) -> list[Trajectory]:
    """Play all sessions at once, with a progress bar; each is written to `results` (JSONL) as it ends."""
    slices = {session.number: session.slice for session in sessions}
    jobs = [RolloutJob(session.task, row=session.number, copy=0) for session in sessions]
    with results.open("w", encoding="utf-8") as file:

        def write(job: RolloutJob, trajectory: Trajectory) -> None:
            score = score_trajectory(trajectory, rewards)
            record = trajectory_record(trajectory, score, step=0, mode="eval", row=job.row, copy=job.copy)
            file.write(json.dumps({"slice": slices[job.row], **record}, ensure_ascii=False) + "\n")
            file.flush()

        return pool.run(jobs, step=0, on_finish=write, progress="evaluate")


def summarize_slices(sessions: Sequence[Session], trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Scores of each slice, in percent, and of each preference within it. Failed sessions are left out and counted."""
    pairs = list(zip(sessions, trajectories, strict=True))
    summary: dict[str, Any] = {}
    for name in SLICES:
        played = [trajectory for session, trajectory in pairs if session.slice == name]
        if not played:
            continue
        scores = summarize(played)
        del scores["metric_version"]
        scores["preferences"] = {
            preference: {key: value for key, value in summarize(theirs).items() if key in SCORES_OF_PREFERENCE}
            for preference, theirs in group_by_preference(played).items()
        }
        summary[name] = scores
    return {**summary, "metric_version": METRIC_VERSION}


def group_by_preference(trajectories: Iterable[Trajectory]) -> Mapping[str, list[Trajectory]]:
    """Preference -> trajectories, in the order of the table of preferences."""
    groups: dict[str, list[Trajectory]] = {name: [] for name in (*SEEN, *UNSEEN)}
    for trajectory in trajectories:
        groups[trajectory.task.preference].append(trajectory)
    return {name: group for name, group in groups.items() if group}


def build_agent(recipe: Recipe, agent: str | None, crowd: Crowd) -> RolloutPool:
    """A pool whose engine plays the recipe's model, or the policy made of rules that is named `agent`.

    A policy made of rules writes a token per byte, so the recipe's limits on tokens, which are meant for its model, do
    not bind it; those on turns and seconds do.

    Raises:
        RecipeError: the model or the policy cannot be had.
    """
    if agent is not None:
        policy = build_policy(agent, list(recipe.config.eval_tasks), recipe.config.environment_options)
        codec = Codec.from_tokenizer(byte_tokenizer())
        pool = build_pool(recipe, codec, ScriptedEngine(codec, policy), crowd)
        unbound = {
            field.name: NO_LIMIT for field in fields(Limits) if field.name.endswith(("_tokens", "_tokens_per_turn"))
        }
        pool.limits = replace(pool.limits, **unbound)
        return pool
    tokenizer = build_tokenizer(recipe)
    codec = build_codec(recipe, tokenizer)
    check_engine(recipe, codec)
    model = build_model(recipe, tokenizer).to(recipe.args.device).eval()
    return build_pool(recipe, codec, build_engine(recipe, codec, lambda: model), crowd)


def evaluate(
    recipe: Recipe, agent: str | None, output_dir: Path, num_sessions: int = 240, num_per_unseen: int = 100
) -> dict[str, Any]:
    """Play the held-out sessions with one agent and write `results.jsonl` and `summary.json` into `output_dir`.

    Args:
        agent: a name in `POLICIES`; None plays the recipe's model.

    Returns:
        What `summary.json` holds: slice -> scores, and how they came about.

    Raises:
        RecipeError: the operator's mistake, before a model is loaded.
        TooManyFailuresError: more sessions failed than the recipe's `max_failure_rate` allows; the results are kept.
        RunStoppedError: a budget is used up, or an endpoint stays away; the results so far are kept.
    """
    if (output_dir / RESULTS_FILE).exists():
        raise RecipeError(f"output_dir: {str(output_dir)!r} already holds results; name a new folder")
    rows = load_held_out_rows(recipe)
    seed = recipe.args.seed
    sessions = plan_sessions(rows, recipe.config.eval_preferences, num_sessions, num_per_unseen, seed)
    crowd = recipe.config.build_crowds().evaluation
    check_crowds([crowd] if recipe.config.interaction else [])
    started = time.perf_counter()
    with ExitStack() as stack:
        pool = build_agent(recipe, agent, crowd)
        books = Bookkeeper(Crowds(crowd, crowd), output_dir)
        stack.callback(books.tell)
        stack.callback(pool.engine.close)
        stack.callback(pool.close)
        output_dir.mkdir(parents=True, exist_ok=True)
        trajectories = play(pool, sessions, output_dir / RESULTS_FILE, recipe.config.reward_settings())
        books.count(trajectories)
    summary = summarize_slices(sessions, trajectories)
    summary["agent"] = agent or recipe.config.model_name_or_path
    summary["user"] = {"kind": crowd.kind, **crowd.options} if recipe.config.interaction else None
    summary["seed"] = seed
    summary["wall_s"] = round(time.perf_counter() - started, 2)
    summary["num_failed"] = sum(trajectory.failed for trajectory in trajectories)
    text = json.dumps(summary, indent=2, ensure_ascii=False)
    (output_dir / SUMMARY_FILE).write_text(text + "\n", encoding="utf-8")
    check_failures(trajectories, recipe.config.max_failure_rate)
    if summary["num_failed"]:
        logger.warning("%d of %d sessions failed and are left out", summary["num_failed"], len(trajectories))
    return summary


def parse_arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Recipe]:
    """Our own options, and the recipe from all others, which are those of `ppp train`.

    Raises:
        RecipeError: an option or a value of the recipe that is not allowed.
    """
    parser = argparse.ArgumentParser(
        prog="ppp evaluate",
        usage="%(prog)s --config FILE --output_dir DIR [--agent AGENT] [--option value ...]",
        description="Play held-out sessions and compute the three scores. Other options, those of ppp train, override "
        "the recipe; --eval_user says who plays the users, unless they are those of --user.",
        allow_abbrev=False,
    )
    parser.add_argument("--agent", help=f"folder of a checkpoint, or a policy made of rules: {', '.join(POLICIES)}")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for results.jsonl and summary.json")
    parser.add_argument("--num_sessions", type=int, default=240, help="sessions of the slices vague_seen and precise")
    parser.add_argument("--sessions_per_unseen_preference", type=int, default=100, help="of the slice vague_unseen")
    own, rest = parser.parse_known_args(argv)
    for name, least in (("num_sessions", 1), ("sessions_per_unseen_preference", 0)):
        if vars(own)[name] < least:
            raise RecipeError(f"{name}: {vars(own)[name]} is not allowed; must be at least {least}")
    if own.agent is not None and own.agent not in POLICIES:
        if not Path(own.agent).is_dir():
            allowed = f"the folder of a checkpoint, or one of {', '.join(POLICIES)}"
            raise RecipeError(f"agent: {own.agent!r} is unknown; allowed: {allowed}")
        rest += ["--model_name_or_path", own.agent, "--tiny_model", "false"]
        own.agent = None
    return own, read_recipe(rest, prog="ppp evaluate")


def main(argv: Sequence[str] | None = None) -> int:
    """`ppp evaluate --config RECIPE --output_dir DIR [--agent NAME_OR_FOLDER]`. Returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        own, recipe = parse_arguments(argv)
        summary = evaluate(recipe, own.agent, own.output_dir, own.num_sessions, own.sessions_per_unseen_preference)
    except RecipeError as error:
        sys.stderr.write(f"ppp evaluate: {error}\n")
        return 2
    except (TooManyFailuresError, RunStoppedError, InfrastructureError) as error:
        sys.stderr.write(f"ppp evaluate: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("ppp evaluate: interrupted\n")
        return 130
    shown = {
        name: {key: value for key, value in summary[name].items() if key != "preferences"}
        for name in SLICES
        if name in summary
    }
    sys.stdout.write(json.dumps(shown, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
