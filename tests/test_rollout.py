"""The pool with real components: scripted policy, scripted user, a codec, and a small environment made of its task."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from jsonschema import Draft202012Validator

from ppp.codec import Codec
from ppp.engines.base import Engine, Generation, GenerationRequest
from ppp.engines.scripted import ScriptedEngine
from ppp.environments import ENVIRONMENTS, environment_class
from ppp.environments.base import Environment
from ppp.preferences import PREFERENCES
from ppp.prompts import load_prompt
from ppp.rollout import ASK_USER, FINISH, Limits, RolloutJob, RolloutPool, build_messages, noise_key
from ppp.types import (
    Answer,
    Effort,
    InfrastructureError,
    Observation,
    RecipeError,
    RunStoppedError,
    Source,
    StopReason,
    Task,
    ToolCall,
    ToolSpec,
    Trajectory,
    Turn,
)
from ppp.users import USERS, user_class
from ppp.users.base import User, UserService
from ppp.users.crowd import Crowd

Step = tuple[str, dict[str, Any]] | str  # a call, or plain text

LOOK = ToolSpec(
    name="look",
    description="Look at something.",
    parameters={
        "type": "object",
        "properties": {"path": {"type": "string"}, "how": {"type": "string"}},
        "required": ["path"],
        "additionalProperties": False,
    },
)


async def hang() -> Any:
    await asyncio.Event().wait()


class Shelf(Environment):
    """Shows what it is asked for. `payload["fault"]` names the method that misbehaves and how."""

    tools = (LOOK,)
    system_prompt = "town_system.txt"
    log: ClassVar[Counter[str]] = Counter()
    calls: ClassVar[list[ToolCall]] = []
    num_open = 0
    max_open = 0
    loops: ClassVar[set[int]] = set()
    threads: ClassVar[set[str]] = set()
    events: ClassVar[dict[str, asyncio.Event]] = {}

    @classmethod
    def reset(cls) -> None:
        cls.log, cls.calls, cls.num_open, cls.max_open = Counter(), [], 0, 0
        cls.loops, cls.threads, cls.events = set(), set(), {}

    async def misbehave(self, method: str) -> None:
        where, _, how = str(self.task.payload.get("fault", "")).partition(":")
        if where != method:
            return
        if how == "hang":
            await hang()
        faults: dict[str, BaseException] = {
            "outage": InfrastructureError("container lost"),
            "bug": KeyError("no such key"),
            "own_timeout": TimeoutError("socket"),
            "recipe": RecipeError("image: 'x' does not exist"),
            "end": RunStoppedError("the budget is used up"),
            "interrupt": KeyboardInterrupt(),
        }
        if how == "signal":
            signal.raise_signal(signal.SIGINT)
            await hang()
        raise faults[how]

    async def setup(self) -> None:
        Shelf.log["setup"] += 1
        Shelf.num_open += 1
        Shelf.max_open = max(Shelf.max_open, Shelf.num_open)
        Shelf.loops.add(id(asyncio.get_running_loop()))
        await self.misbehave("setup")

    async def close(self) -> None:
        Shelf.log["close"] += 1
        Shelf.num_open -= 1
        await self.misbehave("close")

    async def step(self, call: ToolCall) -> Observation:
        Shelf.calls.append(call)
        await self.misbehave("step")
        how, path = call.arguments.get("how"), call.arguments["path"]
        if how == "thread":
            Shelf.threads.add(await asyncio.to_thread(lambda: threading.current_thread().name))
        elif how == "wait":
            await Shelf.events.setdefault(path, asyncio.Event()).wait()
        elif how == "set":
            Shelf.events.setdefault(path, asyncio.Event()).set()
        elif how == "yield":
            for _ in range(int(path)):
                await asyncio.sleep(0)
        elif how == "error":
            return Observation("no such file", is_error=True)
        return Observation(f"contents of {path}")

    async def score(self, answer: str | None) -> float:
        await self.misbehave("score")
        if self.task.payload.get("fault") == "range":
            return 1.5
        return float(answer == self.task.payload.get("gold", "right"))


class Person(User):
    """Says yes to everything at low effort."""

    seen: ClassVar[list[int]] = []

    async def answer(self, question: str, turns: Sequence[Turn]) -> Answer:
        Person.seen.append(len(turns))
        match str(self.task.payload.get("fault", "")):
            case "answer:hang":
                await hang()
            case "answer:outage":
                raise InfrastructureError("endpoint down", kind="connection")
            case "answer:end":
                raise RunStoppedError("the budget is used up")
        return Answer(f"yes: {question}", Effort.LOW, True)


class Script:
    """The policy written in the task's payload."""

    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall | None]:
        steps: Sequence[Step] = task.payload["script"]
        step = steps[min(len(turns), len(steps) - 1)]
        return (step, None) if isinstance(step, str) else ("", ToolCall(*step))


class RecordingEngine(ScriptedEngine):
    """The scripted engine, remembering what it was asked; `fault` makes it misbehave."""

    def __init__(self, codec: Codec, fault: str = "") -> None:
        super().__init__(codec, Script())
        self.fault = fault
        self.requests: list[tuple[str, int, int, list[int]]] = []
        self.live: list[int] = []

    def set_live(self, num_live: int) -> None:
        self.live.append(num_live)

    async def generate(self, request: GenerationRequest) -> Generation:
        key = (request.request_id, request.noise_key, request.position, list(request.prompt_ids))
        self.requests.append(key)
        if request.task.payload.get("fault") == "generate:outage":
            raise InfrastructureError("out of memory")
        if request.task.payload.get("fault") == "generate:empty":
            return Generation([], [], "stop")
        if request.task.payload.get("fault") == "generate:logprobs":
            return Generation([1, 2], [0.0], "stop")
        return await super().generate(request)


GOOD: list[Step] = [("look", {"path": "a"}), ("ask_user", {"query": "which?"}), ("finish", {"answer": "right"})]
LIMITS = Limits(max_turns=6, max_tokens_per_turn=400, max_completion_tokens=4000, max_prompt_tokens=4000)


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    Shelf.reset()
    Person.seen = []
    monkeypatch.setitem(ENVIRONMENTS, "shelf", Shelf)
    monkeypatch.setitem(USERS, "person", Person)
    yield


@pytest.fixture
def make_pool(codec: Codec) -> Iterator[Callable[..., RolloutPool]]:
    pools: list[RolloutPool] = []

    def make(limits: Limits = LIMITS, engine: Engine | None = None, **options: Any) -> RolloutPool:
        options = {"crowd": Crowd("person"), **options}
        pools.append(RolloutPool(engine or RecordingEngine(codec), codec, limits, **options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def make_task(script: Sequence[Step] = GOOD, prompt: str = "vague", **payload: Any) -> Task:
    return Task("t", "shelf", prompt, "precise", "concise_question", {"script": list(script), **payload})


def jobs_of(*tasks: Task) -> list[RolloutJob]:
    return [RolloutJob(task, row, 0) for row, task in enumerate(tasks)]


def play(pool: RolloutPool, *tasks: Task) -> list[Trajectory]:
    return pool.run(jobs_of(*tasks), step=0)


def limits(**changes: Any) -> Limits:
    return Limits(**{**{name: getattr(LIMITS, name) for name in Limits.__slots__}, **changes})


# --- a session -------------------------------------------------------------------------------------------------------


def test_session_plays_tools_user_and_finish(make_pool: Callable[..., RolloutPool]) -> None:
    (trajectory,) = play(make_pool(), make_task())
    assert trajectory.stop_reason is StopReason.FINISHED
    assert trajectory.productivity == 1.0 and trajectory.final_answer == "right"
    assert [turn.observation for turn in trajectory.turns] == ["contents of a", "yes: which?", None]
    assert trajectory.questions == ["which?"] and trajectory.answers[0].effort is Effort.LOW
    assert Person.seen == [1]
    assert Shelf.log == {"setup": 1, "close": 1}
    assert trajectory.timings.keys() == {"setup", "generate", "tool", "user", "score", "total"}


def test_tokens_are_append_only_and_masked(make_pool: Callable[..., RolloutPool], codec: Codec) -> None:
    engine = RecordingEngine(codec)
    (trajectory,) = play(make_pool(engine=engine), make_task())
    whole = trajectory.prompt_ids + trajectory.completion_ids
    assert len(trajectory.env_mask) == len(trajectory.logprobs) == len(trajectory.completion_ids)
    for turn, (_, _, position, prompt_ids) in zip(trajectory.turns, engine.requests, strict=True):
        assert prompt_ids == whole[: len(prompt_ids)]
        assert position == len(prompt_ids) - len(trajectory.prompt_ids)
        assert trajectory.completion_ids[position : position + len(turn.completion_ids)] == turn.completion_ids
        assert set(trajectory.env_mask[position : position + len(turn.completion_ids)]) == {1}
    assert sum(trajectory.env_mask) == sum(len(turn.completion_ids) for turn in trajectory.turns)
    text = codec.decode(whole)
    assert text.index("vague") < text.index("contents of a") < text.index("yes: which?") < text.index("right")


MISTAKES: dict[str, tuple[Step, str]] = {
    "no call": ("I think.", ""),
    "malformed call": ('<tool_call>\n{"name": "look", "arguments": {"path": \n</tool_call>', ""),
    "unknown tool": (("drop", {"path": "a"}), "look, ask_user, finish"),
    "missing argument": (("look", {}), "'path'"),
    "wrong type": (("look", {"path": 3}), "path"),
    "extra argument": (("look", {"path": "a", "line": 1}), "'line'"),
    "no question": (("ask_user", {}), "'query'"),
    "no answer": (("finish", {"answer": ["a"]}), "answer"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_of_the_policy_becomes_an_observation(make_pool: Callable[..., RolloutPool], mistake: str) -> None:
    step, named = MISTAKES[mistake]
    (trajectory,) = play(make_pool(), make_task([step, ("finish", {"answer": "right"})]))
    first = trajectory.turns[0]
    assert first.is_error and first.observation is not None and named in first.observation
    assert not Shelf.calls and not trajectory.answers
    assert trajectory.stop_reason is StopReason.FINISHED and trajectory.productivity == 1.0


def test_error_of_a_tool_is_marked(make_pool: Callable[..., RolloutPool]) -> None:
    (trajectory,) = play(make_pool(), make_task([("look", {"path": "a", "how": "error"}), GOOD[-1]]))
    assert trajectory.turns[0].is_error and trajectory.turns[0].observation == "no such file"
    assert trajectory.stop_reason is StopReason.FINISHED


def test_truncated_turn_never_executes_its_call(make_pool: Callable[..., RolloutPool], codec: Codec) -> None:
    call: Step = ("look", {"path": "a"})
    num_tokens = len(codec.render_turn("", ToolCall(*call)))
    for cut in (num_tokens - 1, num_tokens // 2):
        Shelf.calls.clear()
        (trajectory,) = play(make_pool(limits(max_tokens_per_turn=cut, max_turns=2)), make_task([call]))
        first = trajectory.turns[0]
        assert first.truncated and first.is_error and first.call is None and first.observation
        assert not Shelf.calls
        assert first.observation_ids[0] == codec.eos_id  # the turn is closed by a token that carries no loss
    (trajectory,) = play(make_pool(limits(max_tokens_per_turn=num_tokens, max_turns=2)), make_task([call]))
    assert len(Shelf.calls) == 2 and not trajectory.turns[0].truncated


def test_completion_budget_is_kept_and_ends_on_own_tokens(make_pool: Callable[..., RolloutPool]) -> None:
    (whole,) = play(make_pool(), make_task())
    reasons = Counter()
    for budget in range(1, len(whole.completion_ids) + 2):
        (trajectory,) = play(make_pool(limits(max_completion_tokens=budget)), make_task())
        assert 1 <= len(trajectory.completion_ids) <= budget
        assert trajectory.env_mask[-1] == 1 and trajectory.turns[-1].observation is None
        assert trajectory.completion_ids == whole.completion_ids[: len(trajectory.completion_ids)]
        assert trajectory.productivity == float(trajectory.stop_reason is StopReason.FINISHED)
        reasons[trajectory.stop_reason] += 1
    assert reasons == {StopReason.FINISHED: 2, StopReason.MAX_TOKENS: len(whole.completion_ids) - 1}


def test_spent_budget_is_told_from_the_last_turn(make_pool: Callable[..., RolloutPool]) -> None:
    (trajectory,) = play(make_pool(limits(max_completion_tokens=5, max_turns=1)), make_task())
    assert trajectory.stop_reason is StopReason.MAX_TOKENS and trajectory.turns[0].truncated
    (trajectory,) = play(make_pool(limits(max_tokens_per_turn=5, max_turns=1)), make_task())
    assert trajectory.stop_reason is StopReason.MAX_TURNS and trajectory.turns[0].truncated


def test_last_turn_takes_effect_and_its_observation_is_dropped(make_pool: Callable[..., RolloutPool]) -> None:
    (trajectory,) = play(make_pool(limits(max_turns=2)), make_task([GOOD[0], GOOD[1], GOOD[1]]))
    assert trajectory.stop_reason is StopReason.MAX_TURNS and trajectory.productivity == 0.0
    assert len(trajectory.answers) == 1  # the user was asked
    assert trajectory.env_mask[-1] == 1 and not trajectory.turns[-1].observation_ids


def test_long_observation_is_cut(make_pool: Callable[..., RolloutPool], codec: Codec) -> None:
    task = make_task([("look", {"path": "x" * 200}), GOOD[-1]])
    (trajectory,) = play(make_pool(limits(max_observation_tokens=60)), task)
    text = trajectory.turns[0].observation
    assert text is not None and len(text) <= 60 and "cut" in text


def test_prompt_that_is_too_long_is_refused(make_pool: Callable[..., RolloutPool], codec: Codec) -> None:
    engine = RecordingEngine(codec)
    pool = make_pool(limits(max_prompt_tokens=1500), engine)
    trajectory, other = play(pool, make_task(prompt="x" * 1500), make_task())
    assert trajectory.stop_reason is StopReason.PROMPT_TOO_LONG and not trajectory.failed
    assert trajectory.completion_ids == [codec.eos_id] and trajectory.env_mask == [0]
    assert trajectory.productivity == 0.0
    assert other.stop_reason is StopReason.FINISHED and len(engine.requests) == 3 and Shelf.log["setup"] == 1


def test_without_interaction_there_is_no_one_to_ask(make_pool: Callable[..., RolloutPool], codec: Codec) -> None:
    (trajectory,) = play(make_pool(interaction=False), make_task())
    assert trajectory.turns[1].is_error and "ask_user" in (trajectory.turns[1].observation or "")
    assert not trajectory.answers and not Person.seen
    assert "ask_user" not in codec.decode(trajectory.prompt_ids)


# --- failures of ours ------------------------------------------------------------------------------------------------

FAULTS = {
    "setup:outage": "InfrastructureError: container lost",
    "setup:hang": "setup: no result within",
    "step:outage": "InfrastructureError: container lost",
    "step:bug": "KeyError: 'no such key'",
    "step:own_timeout": "TimeoutError: socket",
    "step:hang": "tool: no result within",
    "answer:hang": "user: no result within",
    "answer:outage": "InfrastructureError: endpoint down",
    "score:bug": "KeyError: 'no such key'",
    "score:hang": "score: no result within",
    "range": "outside [0, 1]",
    "generate:outage": "InfrastructureError: out of memory",
    "generate:empty": "engine: 0 tokens",
    "generate:logprobs": "engine: 2 tokens with 1",
}
DEADLINES = {"setup_timeout_s": 0.05, "tool_timeout_s": 0.05, "user_timeout_s": 0.05, "score_timeout_s": 0.05}


@pytest.mark.parametrize("fault", FAULTS)
def test_failure_of_ours_leaves_the_batch(make_pool: Callable[..., RolloutPool], fault: str) -> None:
    bad, good = play(make_pool(limits(**DEADLINES)), make_task(fault=fault), make_task())
    assert bad.stop_reason is StopReason.ERROR and bad.failed
    assert bad.productivity is None
    assert bad.error is not None and FAULTS[fault] in bad.error
    assert bad.completion_ids and not any(bad.env_mask)
    assert all(FAULTS[fault] not in (turn.observation or "") for turn in bad.turns)
    assert good.stop_reason is StopReason.FINISHED
    assert Shelf.log["setup"] == Shelf.log["close"] == 2


def test_trajectory_has_a_deadline(make_pool: Callable[..., RolloutPool]) -> None:
    bad, good = play(make_pool(limits(trajectory_timeout_s=0.2)), make_task(fault="step:hang"), make_task())
    assert bad.failed and "trajectory_timeout_s" in (bad.error or "")
    assert good.stop_reason is StopReason.FINISHED
    assert Shelf.log["close"] == 2


@pytest.mark.parametrize("how", ["outage", "hang"])
def test_failure_to_close_keeps_a_scored_trajectory(make_pool: Callable[..., RolloutPool], how: str) -> None:
    (trajectory,) = play(make_pool(limits(**DEADLINES)), make_task(fault=f"close:{how}"))
    assert trajectory.stop_reason is StopReason.FINISHED and trajectory.productivity == 1.0


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("step:recipe", RecipeError),
        ("step:interrupt", KeyboardInterrupt),
        ("step:signal", KeyboardInterrupt),
        ("step:end", RunStoppedError),
        ("answer:end", RunStoppedError),
    ],
)
def test_what_ends_the_run_ends_it_at_once_and_everything_is_closed(
    make_pool: Callable[..., RolloutPool], fault: str, expected: type[BaseException]
) -> None:
    waiting = make_task([("look", {"path": "never", "how": "wait"})])
    pool = make_pool(max_concurrency=3)
    with pytest.raises(expected):
        play(pool, waiting, waiting, make_task(fault=fault), make_task())
    assert Shelf.log == {"setup": 3, "close": 3}
    (trajectory,) = play(pool, make_task())  # the pool can be used again
    assert trajectory.stop_reason is StopReason.FINISHED


def test_an_end_of_the_run_is_not_lost_when_closing_fails(make_pool: Callable[..., RolloutPool]) -> None:
    class Broken(Shelf):
        async def close(self) -> None:
            await super().close()
            raise InfrastructureError("the container is gone, too")

    ENVIRONMENTS["shelf"] = Broken
    with pytest.raises(RunStoppedError, match="budget"):
        play(make_pool(), make_task(fault="answer:end"), make_task())
    assert Shelf.num_open == 0


def test_a_failure_has_a_kind_for_the_table(make_pool: Callable[..., RolloutPool]) -> None:
    faults = ("answer:outage", "answer:hang", "step:bug", "step:outage")
    failed = play(make_pool(limits(**DEADLINES)), *(make_task(fault=fault) for fault in faults))
    assert [t.error_kind for t in failed] == ["connection", "user_timeout_s", "KeyError", "infrastructure"]


def test_cancelled_session_that_fails_to_close_takes_no_further_job(make_pool: Callable[..., RolloutPool]) -> None:
    waiting = make_task([("look", {"path": "never", "how": "wait"})], fault="close:bug")
    with pytest.raises(RecipeError):
        play(make_pool(max_concurrency=2), waiting, make_task(fault="step:recipe"), make_task(), make_task())
    assert Shelf.log["setup"] == 2


# --- users -----------------------------------------------------------------------------------------------------------


class Switchboard(UserService):
    """Remembers in which event loops it was closed, and that its users were closed before it."""

    opened = 0

    def __init__(self) -> None:
        type(self).opened += 1
        self.closed: list[int] = []

    async def check(self) -> None: ...

    async def close(self) -> None:
        assert Shelf.num_open == 0
        self.closed.append(id(asyncio.get_running_loop()))

    def summary(self) -> dict[str, Any]:
        return {}


class Guest(Person):
    """Shows what it was given."""

    given: ClassVar[list[tuple[int, UserService | None, tuple[Source, ...]]]] = []

    @classmethod
    def open_service(cls, options: Mapping[str, Any]) -> UserService:
        return Switchboard()

    async def answer(self, question: str, turns: Sequence[Turn]) -> Answer:
        Guest.given.append((self.seed, self.service, self.sources))
        return await super().answer(question, turns)


def test_users_share_a_service_know_their_sources_and_draw_from_run_and_task(
    make_pool: Callable[..., RolloutPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    gold = Source("gold", "f1", ("f1",), 5)
    monkeypatch.setitem(USERS, "guest", Guest)
    monkeypatch.setattr(Shelf, "sources", classmethod(lambda cls, task: (gold,) if "gold" in task.payload else ()))
    Switchboard.opened, Guest.given = 0, []
    pool = make_pool(crowd=Crowd("guest"), seed=3)
    other = replace(make_task(gold="x"), task_id="u")
    pool.run([RolloutJob(make_task(), 0, 0), RolloutJob(make_task(), 0, 1), RolloutJob(other, 1, 0)], step=0)
    pool.run([RolloutJob(make_task(), 5, 0)], step=1)
    seeds, services, sources = zip(*Guest.given, strict=True)
    assert seeds[0] == seeds[1] == seeds[3] != seeds[2], "copies meet the same person, in every step"
    assert [bool(found) for found in sources] == [False, False, True, False]
    assert len(set(map(id, services))) == 1 == Switchboard.opened
    make_pool(crowd=Crowd("guest"), seed=4).run(jobs_of(make_task()), step=0)
    assert Guest.given[-1][0] != seeds[0]


def test_closing_the_pool_closes_the_service_in_its_own_loop(
    make_pool: Callable[..., RolloutPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(USERS, "guest", Guest)
    crowd, other = Crowd("guest"), Crowd("guest")
    pool = make_pool(crowd=crowd)
    play(pool, make_task())
    pool.run(jobs_of(make_task()), step=0, crowd=other)
    assert Guest.given[-1][1] is other.service is not crowd.service
    pool.close()
    loops = {*Shelf.loops}
    assert [set(c.service.closed) for c in (crowd, other) if isinstance(c.service, Switchboard)] == [loops, loops]
    play(pool, make_task())
    pool.close()
    pool.close()
    assert isinstance(crowd.service, Switchboard) and len(crowd.service.closed) == 2 and Switchboard.opened


# --- the pool --------------------------------------------------------------------------------------------------------


def test_results_keep_the_order_of_jobs_whatever_ends_first(make_pool: Callable[..., RolloutPool]) -> None:
    tasks = [make_task([("look", {"path": str(9 - n), "how": "yield"}), GOOD[-1]], gold=str(n)) for n in range(10)]
    finished: list[int] = []
    trajectories = make_pool().run(jobs_of(*tasks), 0, on_finish=lambda job, trajectory: finished.append(job.row))
    assert [trajectory.task.payload["gold"] for trajectory in trajectories] == [str(n) for n in range(10)]
    assert finished == list(reversed(range(10)))


def test_no_barrier_between_sessions(make_pool: Callable[..., RolloutPool]) -> None:
    """The first waits in its first turn for what the second does in its fourth: a barrier would never end."""
    waits = make_task([("look", {"path": "x", "how": "wait"}), GOOD[-1]])
    acts = make_task([GOOD[0], GOOD[0], GOOD[0], ("look", {"path": "x", "how": "set"}), GOOD[-1]])
    trajectories = play(make_pool(max_concurrency=2), waits, acts)
    assert [trajectory.stop_reason for trajectory in trajectories] == [StopReason.FINISHED] * 2


@pytest.mark.parametrize("max_concurrency", [1, 3, 50])
def test_concurrency_is_bounded_and_used(make_pool: Callable[..., RolloutPool], max_concurrency: int) -> None:
    tasks = [make_task([("look", {"path": str(1 + n % 4), "how": "yield"}), GOOD[-1]]) for n in range(12)]
    play(make_pool(max_concurrency=max_concurrency), *tasks)
    assert Shelf.max_open == min(max_concurrency, 12)


def test_engine_is_told_how_many_sessions_may_ask(make_pool: Callable[..., RolloutPool], codec: Codec) -> None:
    engine = RecordingEngine(codec)
    play(make_pool(engine=engine, max_concurrency=3), *[make_task() for _ in range(5)])
    assert engine.live[:4] == [3, 2, 1, 0] and not any(engine.live[4:])


def test_noise_depends_on_seed_step_row_and_copy_alone(make_pool: Callable[..., RolloutPool], codec: Codec) -> None:
    jobs = [RolloutJob(make_task(prompt=f"p{row}"), row, copy) for row in range(4) for copy in range(2)]
    seen = []
    for max_concurrency, order in ((1, jobs), (8, jobs), (3, jobs[::-1])):
        engine = RecordingEngine(codec)
        make_pool(engine=engine, max_concurrency=max_concurrency, seed=7).run(order, step=3)
        seen.append(sorted(engine.requests))
    assert seen[0] == seen[1] == seen[2]
    assert len({key for _, key, _, _ in seen[0]}) == len(jobs)
    assert len({request_id for request_id, *_ in seen[0]}) == len(seen[0])


def test_noise_key_is_the_same_on_every_machine() -> None:
    assert noise_key(0, 1, 2, 3) == 0xE991C7C40E87D3C2
    keys = {noise_key(*numbers) for numbers in itertools.product(range(12), repeat=4)}
    assert len(keys) == 12**4 and all(0 <= key < 2**64 for key in keys)


def test_prompt_is_encoded_once_for_all_copies(make_pool: Callable[..., RolloutPool]) -> None:
    jobs = [RolloutJob(make_task(prompt=f"p{row}"), row, copy) for row in range(2) for copy in range(4)]
    trajectories = make_pool().run(jobs, step=0)
    assert len({id(trajectory.prompt_ids) for trajectory in trajectories}) == 2


def test_one_event_loop_serves_all_phases(make_pool: Callable[..., RolloutPool]) -> None:
    pool = make_pool()
    for step in range(3):
        pool.run(jobs_of(make_task()), step)
    assert len(Shelf.loops) == 1


def test_blocking_work_runs_on_the_threads_of_the_pool(make_pool: Callable[..., RolloutPool]) -> None:
    tasks = [make_task([("look", {"path": "a", "how": "thread"}), GOOD[-1]]) for _ in range(8)]
    play(make_pool(max_workers=2), *tasks)
    assert 1 <= len(Shelf.threads) <= 2 and all(name.startswith("ppp-rollout") for name in Shelf.threads)


def test_pool_without_jobs_returns_nothing(make_pool: Callable[..., RolloutPool]) -> None:
    assert make_pool().run([], step=0) == []


# --- what the agent is told ------------------------------------------------------------------------------------------


class Told(Shelf):
    """Its system prompt has words around the preference."""

    system_prompt = "told.txt"


def test_preference_is_stated_or_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppp.session.load_prompt", {"told.txt": "Be brief. $preference Cost: $5."}.__getitem__)
    task = make_task(prompt="fix $preference and ${preference}")
    stated, user = build_messages(task, Told)
    assert stated["content"] == f"Be brief. {PREFERENCES['concise_question'].description} Cost: $5."
    assert user == {"role": "user", "content": "fix $preference and ${preference}"}
    for hidden in (build_messages(task, Told, "hidden"), build_messages(task, Told, interaction=False)):
        assert hidden[0]["content"] == "Be brief.  Cost: $5." and hidden[1] == user


def test_empty_system_prompt_is_left_out() -> None:
    assert [message["role"] for message in build_messages(make_task(), Shelf, "hidden")] == ["user"]


# --- bad input and tables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", Limits.__slots__)
@pytest.mark.parametrize("value", [0, -1, True, "3", None, float("nan"), float("inf")])
def test_limit_that_makes_no_sense_is_refused(name: str, value: object) -> None:
    with pytest.raises(RecipeError, match=name):
        limits(**{name: value})


BAD_OPTIONS: list[Mapping[str, Any]] = [
    {"preference_visibility": "shouted"},
    {"max_concurrency": 0},
    {"max_workers": 1.5},
    {"environment_options": {"moon": {}}},
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=lambda options: next(iter(options)))
def test_bad_option_is_refused_with_its_name(make_pool: Callable[..., RolloutPool], options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(options)).removesuffix("_options")):
        make_pool(**options)


def test_unknown_names_list_the_allowed_ones() -> None:
    with pytest.raises(RecipeError, match=r"'moon'.*town"):
        environment_class("moon")
    with pytest.raises(RecipeError, match=r"'moon'.*scripted"):
        user_class("moon")


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_every_environment_can_open_a_session(name: str, codec: Codec) -> None:
    found = environment_class(name)
    assert issubclass(found, Environment) and Path(found.system_prompt).name == found.system_prompt
    assert "$preference" in load_prompt(found.system_prompt)
    for spec in (*found.tools, ASK_USER, FINISH):
        Draft202012Validator.check_schema(spec.parameters)
    names = [spec.name for spec in (*found.tools, ASK_USER, FINISH)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", sorted(USERS))
def test_every_user_can_be_found(name: str) -> None:
    assert issubclass(user_class(name), User)
