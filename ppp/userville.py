"""UserVille as an import: give it tasks and an agent, get the three scores.

    ville = UserVille("town", {"split": "test", "num": 30}, preferences="all")
    print(ville.evaluate(agent))  # agent(messages, tools) -> message

What `ppp evaluate` does from a recipe and a command line this does from Python values; both play through
`ppp/evaluation/run.py`, and what `Scores.save` writes is what `ppp report` reads. Nothing heavy is imported before the
first `UserVille` is made. Examples are in `recipes/library.md`; to take the turns yourself, see `agents/by_hand.py`.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppp.checks import refuse, refuse_unknown
from ppp.environments import environment_class
from ppp.environments.base import Environment
from ppp.extensions import add_class, add_entry
from ppp.rewards import METRIC_VERSION, RewardSettings
from ppp.scores import Scores
from ppp.session import VISIBILITIES, Limits, Visibility, require_count
from ppp.types import Preference, RecipeError, Task
from ppp.users.base import User
from ppp.users.crowd import Crowd

if TYPE_CHECKING:
    from ppp.agents.base import Agent
    from ppp.agents.by_hand import SessionByHand
    from ppp.agents.function import AgentFunction
    from ppp.data import TaskRow
    from ppp.evaluation.plan import Prompts
    from ppp.rollout import RolloutPool

    AnyAgent = AgentFunction | Agent | Mapping[str, Any] | str

Tasks = str | Path | Mapping[str, Any] | Iterable[Mapping[str, Any]]
Preferences = str | Preference | Iterable[str | Preference]


class UserVille:
    """Tasks of one environment, and the people who have them.

    Args:
        environment: a name (`town`, `func_loc`), or a subclass of `Environment`.
        tasks: task rows as dicts, a file of them (JSONL, parquet), or options of the environment's generator.
        user: who plays the users: a kind, `{"kind": ..., option: value}`, or a subclass of `User` in place of a kind.
        preferences: seen, unseen, all, a name, a `Preference` of your own, or several of these.
        prompts: what the agent gets: vague, precise, or both.
        sessions_per_preference: every preference has so many sessions, which go round the tasks; None: one with each
            task.
        environment_options: options of the environment.
        limits: of a session: `Limits`, or a mapping of its fields.
        interaction: False takes `ask_user` away.
        preference_visibility: "stated" tells the agent what its user likes, "hidden" does not.
        rewards: how sessions are scored; None stands for the paper's way.
        max_concurrency: sessions at the same time.
        seed: of whatever is drawn.

    Attributes:
        tasks: the sessions that are played, in order.
        crowd: the users; `crowd.invite(task, seed)` is one of them.

    Raises:
        RecipeError: an argument that cannot be used, by its name.
    """

    def __init__(
        self,
        environment: str | type[Environment],
        tasks: Tasks,
        *,
        user: str | type[User] | Mapping[str, Any] = "scripted",
        preferences: Preferences = "all",
        prompts: Prompts = "vague",
        sessions_per_preference: int | None = None,
        environment_options: Mapping[str, Any] | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
        interaction: bool = True,
        preference_visibility: Visibility = "stated",
        rewards: RewardSettings | None = None,
        max_concurrency: int = 64,
        seed: int = 0,
    ) -> None:
        from ppp.evaluation.plan import PROMPTS, Counts, plan_sessions  # takes seconds: torch and TRL

        self.environment = _environment_name(environment)
        self.environment_options = dict(environment_options or {})
        environment_class(self.environment).check_options(self.environment_options)
        if prompts not in PROMPTS:
            raise refuse_unknown("prompts", prompts, PROMPTS)
        if preference_visibility not in VISIBILITIES:
            raise refuse_unknown("preference_visibility", preference_visibility, VISIBILITIES)
        require_count("max_concurrency", max_concurrency)
        if sessions_per_preference is not None:
            require_count("sessions_per_preference", sessions_per_preference)
        self.crowd = Crowd(_user_choice(user))
        self.limits = _limits(limits)
        self.preferences = _preferences(preferences)
        self.prompts, self.interaction, self.preference_visibility = prompts, interaction, preference_visibility
        self.rewards, self.max_concurrency, self.seed = rewards or RewardSettings(), max_concurrency, seed
        self.rows, self._source = _rows(self.environment, tasks)
        counts = Counts(num_per_preference=sessions_per_preference or len(self.rows))
        self._sessions = plan_sessions(self.rows, self.preferences, counts, seed, prompts)
        self._num_by_hand = 0

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        return tuple(session.task for session in self._sessions)

    def evaluate(
        self,
        agent: AnyAgent,
        *,
        name: str | None = None,
        output_dir: str | Path | None = None,
        progress: bool = True,
        max_failure_rate: float = 0.2,
    ) -> Scores:
        """Play all sessions with one agent.

        Where an event loop runs already, as in a notebook, the sessions are played in a thread with a loop of its own,
        and this call blocks until they have ended; `evaluate_async` does not block.

        Args:
            agent: a function `(messages, tools) -> message`, sync or async; an `Agent`; an endpoint,
                `{"model": ..., "base_url": ...}`; or the name of a policy made of rules.
            name: for results; by default the agent's own.
            output_dir: where the sessions go as they end; the same evaluation with the same folder goes on after a
                stop. None: a temporary folder.
            progress: whether to show a bar.
            max_failure_rate: more sessions that fail than this share end in an error.

        Raises:
            RecipeError: an agent that cannot be used, or a folder that holds something else.
            TooManyFailuresError: the sessions that failed are those of more than `max_failure_rate`.
            RunStoppedError: a budget is used up, or an endpoint stays away; what was played is kept.
        """
        arguments = (agent, name, output_dir, progress, max_failure_rate)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._evaluate(*arguments)
        stop = threading.Event()
        try:
            return _in_thread(lambda: self._evaluate(*arguments, stop=stop)).result()
        except KeyboardInterrupt:
            stop.set()
            raise

    async def evaluate_async(
        self,
        agent: AnyAgent,
        *,
        name: str | None = None,
        output_dir: str | Path | None = None,
        progress: bool = True,
        max_failure_rate: float = 0.2,
    ) -> Scores:
        """Like `evaluate`, for callers in an event loop: an async agent is awaited in this loop, where its clients
        belong; everything else happens in a thread."""
        stop, loop = threading.Event(), asyncio.get_running_loop()
        arguments = (agent, name, output_dir, progress, max_failure_rate)
        try:
            return await asyncio.wrap_future(_in_thread(lambda: self._evaluate(*arguments, stop=stop, loop=loop)))
        except asyncio.CancelledError:
            stop.set()
            raise

    def session(self, task: Task) -> SessionByHand:
        """One session whose turns you take yourself, for a rollout of your own: `async with ville.session(task)`.

        Args:
            task: one of `tasks`, or another one of this environment.
        """
        from ppp.agents.by_hand import SessionByHand

        self._num_by_hand += 1
        return SessionByHand(
            task,
            number=self._num_by_hand,
            limits=self.limits,
            crowd=self.crowd,
            rewards=self.rewards,
            environment_options={self.environment: self.environment_options},
            preference_visibility=self.preference_visibility,
            interaction=self.interaction,
            seed=self.seed,
        )

    async def close(self) -> None:
        """Close the connections of user models in this event loop; after sessions taken by hand, once."""
        await self.crowd.close()

    def _evaluate(
        self,
        agent: AnyAgent,
        name: str | None,
        output_dir: str | Path | None,
        progress: bool,
        max_failure_rate: float,
        *,
        stop: threading.Event | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> Scores:
        """Play in this thread, which has no running loop."""
        from ppp.agents.guest import Guest
        from ppp.build import check_crowds
        from ppp.evaluation.folder import RESULTS_FILE
        from ppp.evaluation.records import read_records
        from ppp.evaluation.run import check_failure_rate, evaluate_sessions

        if not 0 <= max_failure_rate <= 1:
            raise refuse("max_failure_rate", max_failure_rate, "must lie between 0 and 1")
        guest = Guest.of(agent, name, self.environment, self.environment_options, stop=stop, loop=loop)
        guest.check()
        check_crowds([self.crowd] if self.interaction else [])
        folder = Path(output_dir) if output_dir is not None else Path(tempfile.mkdtemp(prefix="userville-"))
        pool = guest.pool(self.limits, self._pool_arguments())
        with ExitStack() as stack:
            temporary = stack.enter_context(ExitStack())
            if output_dir is None:
                temporary.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.callback(pool.engine.close)
            stack.callback(pool.close)
            summary = evaluate_sessions(
                pool,
                self._sessions,
                folder,
                manifest=self._manifest(guest.description, pool),
                rewards=self.rewards,
                ledger=guest.ledger,
                label="evaluate" if progress else "",
            )
            records = read_records(folder / RESULTS_FILE).records
            check_failure_rate(records, max_failure_rate)
            scores = Scores(summary, records, folder)
            if output_dir is None:  # from now on it lives as long as the scores
                temporary.pop_all()
                weakref.finalize(scores, shutil.rmtree, folder, ignore_errors=True)
            return scores

    def _pool_arguments(self) -> dict[str, Any]:
        return {
            "crowd": self.crowd,
            "environment_options": {self.environment: self.environment_options},
            "max_concurrency": self.max_concurrency,
            "preference_visibility": self.preference_visibility,
            "interaction": self.interaction,
            "seed": self.seed,
        }

    def _manifest(self, agent: Mapping[str, Any], pool: RolloutPool) -> dict[str, Any]:
        """What `evaluation.json` says."""
        from ppp.evaluation.plan import describe_plan
        from ppp.evaluation.run import VERSION, describe_rewards

        return {
            "version": VERSION,
            "metric_version": METRIC_VERSION,
            "agent": dict(agent),
            "user": {"kind": self.crowd.kind, **self.crowd.options} if self.interaction else None,
            "environments": [self.environment],
            "environment_options": {self.environment: self.environment_options},
            "tasks": {self.environment: {"source": self._source, "num_tasks": len(self.rows)}},
            **describe_plan(self._sessions, self.preferences, self.prompts),
            "interaction": self.interaction,
            "preference_visibility": self.preference_visibility,
            "seed": self.seed,
            "limits": asdict(pool.limits),
            "rewards": describe_rewards(self.rewards),
        }


def _environment_name(environment: str | type[Environment]) -> str:
    if isinstance(environment, str):
        environment_class(environment)
        return environment
    if not isinstance(environment, type):
        raise refuse("environment", environment, "a name, or a subclass of Environment")
    return add_class("environment", "environment", environment)


def _user_choice(user: str | type[User] | Mapping[str, Any]) -> str | dict[str, Any]:
    """As a recipe says it, with a class in place under its name."""
    if isinstance(user, str):
        return user
    if isinstance(user, type):
        return add_class("user", "user", user)
    if not isinstance(user, Mapping):
        raise refuse("user", user, "a kind, a mapping with kind and options, or a subclass of User")
    kind = user.get("kind")
    return {**user, "kind": add_class("user.kind", "user", kind)} if isinstance(kind, type) else dict(user)


def _limits(limits: Limits | Mapping[str, Any] | None) -> Limits:
    if limits is None or isinstance(limits, Limits):
        return limits or Limits()
    known = [entry.name for entry in fields(Limits)]
    for name in limits:
        if name not in known:
            raise refuse_unknown("limits", name, known)
    try:
        return Limits(**limits)
    except RecipeError as error:
        raise RecipeError(f"limits.{error}") from error


def _preferences(preferences: Preferences) -> list[str]:
    """Names in the order of the table, with preferences of the caller's own in it."""
    from ppp.recipe_config import expand_preferences

    wanted = [preferences] if isinstance(preferences, str | Preference) else list(preferences)
    for entry in wanted:
        if isinstance(entry, Preference):
            add_entry("preferences", "preference", entry.name, entry)
    return expand_preferences("preferences", [e.name if isinstance(e, Preference) else e for e in wanted])


def _rows(environment: str, tasks: Tasks) -> tuple[list[TaskRow], Any]:
    """Checked task rows, and what a manifest says of where they come from."""
    from ppp.data import check_task_rows, load_task_rows

    if isinstance(tasks, str | Path | Mapping):
        options = {"path": str(tasks)} if isinstance(tasks, str | Path) else dict(tasks)
        return load_task_rows("tasks", environment, options), options
    rows = check_task_rows("tasks", environment, tasks)
    return rows, f"{len(rows)} rows"


def _in_thread(work: Callable[[], Scores]) -> Future[Scores]:
    """Run `work` in a thread that keeps no process from ending."""
    future: Future[Scores] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # the caller's thread raises it
            future.set_exception(error)

    threading.Thread(target=run, name="userville", daemon=True).start()
    return future
