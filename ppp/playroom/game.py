"""Sessions of a person at a terminal: played in the pool, kept like those of an evaluation, and shown at the end.

What is asked for stands in `settings.py`. An unfinished session is not kept: it has neither a score nor an end.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from ppp.agents.build import message_pool
from ppp.agents.person import PersonAgent
from ppp.build import check_crowds
from ppp.checks import refuse
from ppp.environments import environment_class
from ppp.evaluation.agents import CHECKPOINT, Contender, without_token_limits
from ppp.evaluation.folder import RESULTS_FILE, EvaluationFolder, read_manifest
from ppp.evaluation.plan import Session, load_held_out_rows
from ppp.evaluation.records import base_task, read_records
from ppp.evaluation.run import cost_so_far, finish, make_manifest, open_books
from ppp.playroom.choosing import check_wish, choose, sessions_of
from ppp.playroom.outcome import show_outcome
from ppp.playroom.settings import PlaySettings
from ppp.playroom.watching import WatchedEngine
from ppp.preferences import PREFERENCES
from ppp.rewards import score_trajectory
from ppp.rollout import RolloutJob, RolloutPool
from ppp.run_log import trajectory_record
from ppp.token_log import TOKENS_FILE, TokenLog
from ppp.types import RunStoppedError, Trajectory
from ppp.users.crowd import Crowd
from ppp.users.human import HumanService, show_report
from ppp.users.terminal import Terminal, one_line

PERSON = {"kind": "person", "name": "person"}
MODE = "play"  # of their records
# What a person has to be told of environments whose agents are told nothing, because they learn it.
HINTS = {
    "town": "Find the function to edit, and finish with its name, such as f7. Files are named module/operation.py."
}


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
        results = folder / RESULTS_FILE
        if read_manifest(folder) is None or not results.is_file():
            return []
        return sessions_of([record for record in read_records(results).records if record["mode"] == MODE])

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
            self.terminal.say("One moment ...", "dim")  # an environment may have to be set up first
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
        record = trajectory_record(trajectory, score, step=0, mode=MODE, row=session.number, copy=0)
        self.folder.add(session, record)
        self.sessions.append(session)
        self._is_under_way = False
        self.books.count([trajectory])
        if self.contender is not None and self.contender.choice.kind == CHECKPOINT:
            numbers = [played.number for played in self.sessions]
            tokens = TokenLog(self.folder.path / TOKENS_FILE, pool.codec, numbers, pool.limits.max_completion_tokens)
            tokens.offer(trajectory, row=session.number, copy=0, mode=MODE)
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
