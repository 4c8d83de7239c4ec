"""`ppp play`: a person takes part in sessions at the terminal, as the user of an agent or as the agent of a user.

The sessions are those of an evaluation and are kept like one: results of a person can be summed up, compared, shown and
learned from like all others. Which sessions is decided in `playroom/choosing.py`; how an evaluation without people is
played, in `evaluation/run.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ppp.agents.build import message_pool
from ppp.agents.person import PersonAgent
from ppp.build import check_crowds
from ppp.checks import check_at_least, refuse
from ppp.environments import environment_class
from ppp.evaluation.agents import CHECKPOINT, AgentChoice, Contender, without_token_limits
from ppp.evaluation.folder import EvaluationFolder, read_manifest
from ppp.evaluation.plan import Session, load_held_out_rows
from ppp.evaluation.records import base_task, read_records
from ppp.evaluation.run import cost_so_far, finish, make_manifest, open_books
from ppp.evaluation.settings import EvaluationSettings
from ppp.evaluation.settings import parse_arguments as parse_evaluation
from ppp.playroom.choosing import Wish, check_wish, choose, listing, sessions_of
from ppp.playroom.outcome import show_outcome
from ppp.playroom.watching import WatchedEngine
from ppp.preferences import PREFERENCES
from ppp.recipe import Recipe
from ppp.rewards import score_trajectory
from ppp.rollout import RolloutJob, RolloutPool
from ppp.run_log import trajectory_record
from ppp.token_log import TOKENS_FILE, TokenLog
from ppp.types import InfrastructureError, RecipeError, RunStoppedError, Trajectory
from ppp.users.crowd import Crowd
from ppp.users.human import HumanService, show_report
from ppp.users.terminal import Terminal, one_line

PROG = "ppp play"
USER, AGENT = "user", "agent"
PLAY_DIR = Path("runs/play")
PERSON = {"kind": "person", "name": "person"}
PASSED_ON = ("config", "agent", "environment", "tasks", "user")
# Options of `ppp evaluate` that choose among its sessions or agents; here a person does.
NOT_HERE = (
    "baseline",
    "max_tasks",
    "preferences",
    "prompts",
    "results",
    "sessions_per_preference",
    "sessions_per_unseen_preference",
)
# What a person has to be told of environments whose agents are told nothing, because they learn it.
HINTS = {
    "town": "Find the function to edit, and finish with its name, such as f7. Files are named module/operation.py."
}
EXAMPLES = """\
examples:
  ppp play --as user --agent runs/town/train --config town.yaml   be the user of a trained agent
  ppp play --as user --agent always_ask                           of an agent made of rules, in the town
  ppp play --as agent                                             be the agent, for users made of rules
  ppp play --as agent --list                                      the tasks there are
"""


@dataclass(frozen=True)
class PlaySettings:
    """What a command line asks for.

    Attributes:
        role: whom the person plays, `USER` or `AGENT`.
        agent: who plays the agent, where the person does not.
        recipe: everything that holds for all sessions.
        wish: which sessions.
        num_sessions: in a row.
        output_dir: where they are kept.
        lists: show the tasks instead.
    """

    role: str
    agent: AgentChoice | None
    recipe: Recipe
    wish: Wish
    num_sessions: int
    output_dir: Path
    lists: bool


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage="%(prog)s --as user|agent [--config FILE] [--agent AGENT] [--environment NAME --tasks TASKS] "
        "[--option value ...]",
        description="Take part in held-out sessions at this terminal, see how they went, and keep them like an\n"
        "evaluation. Options that are not listed here are those of ppp evaluate and ppp train.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    add = parser.add_argument
    add("--as", dest="role", choices=(USER, AGENT), help="whom you play")
    add("--agent", help="who plays the agent for you as the user; see ppp evaluate --help")
    add("--user", help="who plays the user for you as the agent (scripted); as the user: {kind: human, judge_model: M}")
    add("--config", metavar="FILE", help="a recipe; without one it is made of the other options")
    add("--environment", metavar="NAME", help="where it is played; default: as the recipe says, or else town")
    add("--tasks", help="a file of tasks, or a mapping, as for ppp evaluate")
    add("--task", metavar="ID", help="the task; default: drawn by --seed and the number of sessions kept so far")
    add("--preference", metavar="NAME", help="the user's; default: drawn in the same way")
    add(
        "--prompt", choices=("vague", "precise"), help="what the agent is told at first; default: vague if there is one"
    )
    add("--num_sessions", type=int, default=1, metavar="N", help="one after the other (1)")
    add("--output_dir", type=Path, metavar="DIR", help=f"folder for the sessions; default: one in {PLAY_DIR}")
    add("--list", dest="lists", action="store_true", help="show the tasks and preferences, and play nothing")
    return parser


def parse_arguments(argv: Sequence[str]) -> PlaySettings:
    """Read the command line.

    Raises:
        RecipeError: an option or a value that is not allowed.
    """
    try:
        own, rest = build_parser().parse_known_args(argv)
    except argparse.ArgumentError as error:
        name = (error.argument_name or "").rpartition("--")[2]
        raise RecipeError(f"{name}: {error.message}" if name else error.message) from error
    if own.role is None and not own.lists:
        raise RecipeError("as: missing; say whom you play: --as user or --as agent")
    check_at_least("num_sessions", own.num_sessions, 1)
    for text in rest:
        name = re.split(r"[.=]", text.removeprefix("--"), maxsplit=1)[0]
        if text.startswith("--") and name in NOT_HERE:
            raise RecipeError(f"{name}: no option of {PROG}; choose by --task, --preference and --prompt")
    if own.role == AGENT and own.agent is not None:
        raise refuse("agent", own.agent, "you are the agent; leave it out")
    given = {name: value for name in PASSED_ON if (value := vars(own)[name]) is not None}
    if own.role == USER:
        given.setdefault("user", "human")
    else:
        given["agent"] = "endpoint"  # stands for somebody whose model is not ours; never built
    if not {"config", "environment", "tasks"} & set(given) and "--environments" not in rest:
        given["environment"] = "town"
    options = [text for name, value in given.items() for text in (f"--{name}", value)]
    found = parse_evaluation([*options, "--output_dir", str(PLAY_DIR), *rest])
    assert isinstance(found, EvaluationSettings)
    agent = found.agent if own.role == USER else None
    _check_users(found.recipe, own.role)
    folder = own.output_dir or PLAY_DIR / _folder_name(found.recipe, agent)
    wish = Wish(own.task, own.preference, own.prompt)
    return PlaySettings(own.role, agent, found.recipe, wish, own.num_sessions, folder, own.lists)


def _check_users(recipe: Recipe, role: str) -> None:
    kind = recipe.config.build_crowds().evaluation.kind
    if role == USER and kind != "human":
        raise refuse("user.kind", kind, "you are the user; leave it out, or name human")
    if role == AGENT and kind == "human":
        raise refuse("user.kind", kind, "you are the agent and cannot be the user as well; name scripted or llm")
    if role == USER and not recipe.config.interaction:
        raise refuse("interaction", False, "nobody would ask you anything")


def _folder_name(recipe: Recipe, agent: AgentChoice | None) -> str:
    """A folder for each who plays with the person, since their sessions are not mixed."""
    partner = recipe.config.build_crowds().evaluation.kind if agent is None else agent.name
    role = AGENT if agent is None else USER
    name = re.sub(r"[^\w]+", "-", partner).strip("-")
    return f"{'-'.join(recipe.config.eval_tasks)}-{role}-with-{name}"


class Game:
    """The sessions of one person at one terminal.

    Args:
        settings: what is asked for.

    Raises:
        RecipeError: it cannot be played.
    """

    def __init__(self, settings: PlaySettings) -> None:
        self.settings, self.recipe = settings, settings.recipe
        config = self.recipe.config
        self.crowd = config.build_crowds().evaluation if config.interaction else Crowd()
        self.terminal = self._sit_down()
        if not self.terminal.has_person:
            raise refuse("as", settings.role, "only at a terminal, for input and for error output; here is none")
        self.rows = load_held_out_rows(self.recipe)
        check_wish(settings.wish, self.rows)
        self.contender = None if settings.agent is None else Contender(settings.agent, self.recipe)
        self.manifest = self._manifest()
        self._is_under_way = False
        self.sessions = self._earlier()  # grows as sessions are played
        self.folder = EvaluationFolder(settings.output_dir, self.manifest, self.sessions)
        self.books = open_books(self.crowd, self.folder, None if self.contender is None else self.contender.ledger)

    def play(self) -> None:
        """Play the sessions, and say what to do with them.

        Raises:
            RunStoppedError: the person has left, or a budget is used up; finished sessions are kept.
            KeyboardInterrupt: likewise, for Ctrl-C.
        """
        if self.contender is not None:
            self.contender.check(self.folder.manifest)
        check_crowds([self.crowd])
        number_before = len(self.folder.records)
        try:
            with ExitStack() as stack:
                stack.callback(self.books.save)
                pool = self._enter_pool(stack)
                with self.folder.opened():
                    self._play_all(pool)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"Interrupted. {self._told()}") from None
        except RunStoppedError as error:
            raise type(error)(f"{error} {self._told()}") from error
        finally:
            if len(self.folder.records) > number_before:
                finish(self.folder, None)
        self._say_goodbye()

    def _sit_down(self) -> Terminal:
        """The terminal; where the person is the user, that of all users."""
        service = self.crowd.service
        if not isinstance(service, HumanService):
            return Terminal()
        service.shows_session = False  # there is one at a time, and it is on the screen
        return service.terminal

    def _manifest(self) -> dict[str, Any]:
        """Like that of an evaluation, but open: any preference, prompt and seed, and as many sessions as one likes."""
        plan = {"preferences": list(PREFERENCES), "prompts": "both", "sessions": None}
        agent = PERSON if self.contender is None else self.contender.description()
        manifest = make_manifest(self.recipe, agent, plan, self.rows) | {"seed": None}
        if self.contender is None:
            limits = self.recipe.config.build_limits(self.recipe.args.max_completion_length or 1)
            manifest["limits"] = asdict(without_token_limits(limits))
        return manifest

    def _earlier(self) -> list[Session]:
        """The sessions that are in the folder already."""
        folder = self.settings.output_dir
        results = folder / "results.jsonl"
        if read_manifest(folder) is None or not results.is_file():
            return []
        return sessions_of([record for record in read_records(results).records if record["mode"] == "play"])

    def _enter_pool(self, stack: ExitStack) -> RolloutPool:
        if self.contender is None:
            limits = self.recipe.config.build_limits(self.recipe.args.max_completion_length or 1)
            pool = message_pool(self.recipe, PersonAgent(self.terminal, limits.max_turns), self.crowd)
            pool.limits = without_token_limits(pool.limits)  # they are meant for the recipe's model
            stack.callback(pool.close)
            return pool
        pool = self.contender.enter_pool(stack, self.crowd)
        pool.engine = WatchedEngine(pool.engine, pool.codec, self.terminal, pool.limits, pool.environment_options)
        return pool

    def _play_all(self, pool: RolloutPool) -> None:
        settings = self.settings
        for number in range(1, settings.num_sessions + 1):
            session = choose(
                settings.wish, self.rows, self.recipe.config.eval_preferences, self.sessions, self.recipe.args.seed
            )
            self._introduce(session, number)
            (trajectory,) = pool.run([RolloutJob(session.task, row=session.number, copy=0)], step=0)
            self._keep(session, trajectory, pool)
            if number < settings.num_sessions and not self._goes_on():
                return

    def _introduce(self, session: Session, number: int) -> None:
        terminal, task, config = self.terminal, session.task, self.recipe.config
        self._is_under_way = True
        terminal.say("=" * terminal.width, "dim")
        of = f"Session {number} of {self.settings.num_sessions}"
        name = base_task({"task_id": task.task_id, "preference": task.preference, "is_precise": task.is_precise})
        prompt = "precise" if task.is_precise else "vague"
        told = f", preference {task.preference}" if self._knows_preference else ""
        how = "" if self.settings.wish.task else f" (drawn with seed {self.recipe.args.seed})"
        terminal.say(f"{of}: {one_line(name)}, {prompt} prompt{told}{how}", "bold")
        if self.contender is not None:
            terminal.say("You are the user. The agent works on what it has read, and may ask you.\n")
            environment = environment_class(task.environment, config.environment_options.get(task.environment))
            show_report(terminal, task, environment.sources(task))
        else:
            hint = HINTS.get(task.environment, "")
            terminal.say(f"You are the agent. Work with the tools; the user answers what you ask. {hint}".rstrip())

    @property
    def _knows_preference(self) -> bool:
        return self.contender is not None or self.recipe.config.preference_visibility == "stated"

    def _keep(self, session: Session, trajectory: Trajectory, pool: RolloutPool) -> None:
        """Write a session down, and show how it went."""
        rewards = self.recipe.config.reward_settings()
        score = score_trajectory(trajectory, rewards)
        record = trajectory_record(trajectory, score, step=0, mode="play", row=session.number, copy=0)
        self.folder.add(session, record)
        self.sessions.append(session)
        self._is_under_way = False
        self.books.count([trajectory])
        if self.contender is not None and self.contender.choice.kind == CHECKPOINT:
            numbers = [played.number for played in self.sessions]
            tokens = TokenLog(self.folder.path / TOKENS_FILE, pool.codec, numbers, pool.limits.max_completion_tokens)
            tokens.offer(trajectory, row=session.number, copy=0, mode="play")
        show_outcome(self.terminal, trajectory, score, rewards, is_agent=self.contender is None)

    def _goes_on(self) -> bool:
        """Whether the person wants another session."""
        self.terminal.write("\nEnter begins the next session, Ctrl-D leaves> ")
        try:
            asyncio.run(self.terminal.read_line())
        except EOFError:
            self.terminal.write("\n")
            return False
        return True

    def _told(self) -> str:
        """What is kept, where the person has left."""
        lost = "The session that was under way has no end and is not kept. " if self._is_under_way else ""
        return f"{lost}{self._kept()}."

    def _kept(self) -> str:
        number = len(self.folder.records)
        return f"{number or 'No'} finished session{'' if number == 1 else 's'} in {self.folder.path}"

    def _say_goodbye(self) -> None:
        path = self.folder.path
        for cost in cost_so_far(self.books):
            self.terminal.say(f"\nThe models of all sessions took {cost}.")
        self.terminal.say(f"\n{self._kept()}. What now:")
        self.terminal.say(f"ppp evaluate --results {path}\nppp report {path} --output report.html", indent=2)


def list_tasks(recipe: Recipe) -> int:
    """Write the tasks to standard output; returns the exit status."""
    try:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        sys.stdout.write(listing(load_held_out_rows(recipe)))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`ppp play --as user|agent ...`. Returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # nobody at a game can act on it
    try:
        settings = parse_arguments(sys.argv[1:] if argv is None else argv)
        if settings.lists:
            return list_tasks(settings.recipe)
        Game(settings).play()
    except RecipeError as error:
        sys.stderr.write(f"{PROG}: {error}\n")
        return 2
    except (RunStoppedError, InfrastructureError) as error:
        sys.stderr.write(f"\n{PROG}: {error}\n")
        return 1
    except KeyboardInterrupt as error:
        sys.stderr.write(f"\n{PROG}: {str(error) or 'Interrupted.'}\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
