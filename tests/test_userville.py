"""UserVille as an import: any agent, any tasks, the same sessions and scores as `ppp evaluate`; sessions by hand."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from agent_server import AgentServer

from ppp import extensions
from ppp.agents.base import Agent, AgentTurn, Messages
from ppp.agents.by_hand import SessionByHand
from ppp.baselines import build_policy
from ppp.batch import TooManyFailuresError
from ppp.environments.tools import ToolEnvironment, tool
from ppp.environments.town import TownEnvironment
from ppp.evaluate import main as ppp_evaluate
from ppp.preferences import PREFERENCES, SEEN
from ppp.run_log import replayable, trajectory_record
from ppp.types import (
    Answer,
    Effort,
    InfrastructureError,
    Observation,
    RecipeError,
    StopReason,
    Task,
    ToolCall,
    ToolSpec,
    Turn,
)
from ppp.users.base import User
from ppp.userville import UserVille

TOWN = {"split": "test", "num": 4}
TWO = ["no_preference", "capital"]


@pytest.fixture(autouse=True)
def restored_tables() -> Iterator[None]:
    """What a test adds to the tables goes with it."""
    before = {kind: dict(table) for kind, (table, _) in extensions.TABLES.items()}
    yield
    extensions._added.clear()
    for kind, (table, _) in extensions.TABLES.items():
        table.clear()
        table.update(before[kind])


def asks_once(messages: Any, tools: Any) -> str:
    if messages[-1]["role"] == "user":
        return '<tool_call>{"name": "ask_user", "arguments": {"query": "Which module is it?"}}</tool_call>'
    return '<tool_call>{"name": "finish", "arguments": {"answer": "f1"}}</tool_call>'


async def asks_once_async(messages: Any, tools: Any) -> str:
    await asyncio.sleep(0)
    return asks_once(messages, tools)


class AsksOnce(Agent):
    @property
    def name(self) -> str:
        return "one of my own"

    async def act(self, messages: Messages, tools: Sequence[ToolSpec], *, max_tokens: int, seed: int) -> AgentTurn:
        asked = messages[-1]["role"] == "tool"
        call = ToolCall("finish", {"answer": "f1"}) if asked else ToolCall("ask_user", {"query": "Which module is it?"})
        return AgentTurn("", call)


class Callable_:
    async def __call__(self, messages: Any, tools: Any) -> dict[str, Any]:
        asked = messages[-1]["role"] == "tool"
        name, arguments = ("finish", {"answer": "f1"}) if asked else ("ask_user", {"query": "Which module is it?"})
        function = {"name": name, "arguments": json.dumps(arguments)}
        return {"content": None, "tool_calls": [{"id": "x", "type": "function", "function": function}]}


def town(**arguments: Any) -> UserVille:
    return UserVille("town", **{"tasks": TOWN, "preferences": TWO, **arguments})


def test_importing_it_loads_no_model_library() -> None:
    program = (
        "import sys, ppp.userville\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'pandas', 'openai'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_task_meets_every_preference_once() -> None:
    ville = UserVille("town", TOWN)
    assert len(ville.tasks) == len({task.task_id for task in ville.tasks}) == 4 * 20
    assert not any(task.is_precise for task in ville.tasks)
    both = UserVille("town", TOWN, preferences="seen", prompts="both", sessions_per_preference=2)
    assert sum(task.is_precise for task in both.tasks) == 2 * 11
    assert len(both.tasks) == 2 * len(SEEN) + 2 * 11


def test_it_plays_what_the_command_plays(tmp_path: Path) -> None:
    options = ["--environment", "town", "--tasks", "{split: test, num: 4}", "--preferences", *TWO, "--prompts", "both"]
    command = ["--agent", "always_ask", *options, "--sessions_per_preference", "4", "--output_dir", str(tmp_path / "a")]
    assert ppp_evaluate(command) == 0
    ours = town(prompts="both").evaluate("always_ask", progress=False)
    theirs = [json.loads(line) for line in (tmp_path / "a" / "results.jsonl").read_text().splitlines()]
    by_row = {record["row"]: replayable(record) for record in theirs}
    assert {record["row"]: replayable(record) for record in ours.sessions} == by_row
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    for group in ("vague", "vague_seen", "vague_unseen", "precise"):
        assert ours.summary[group] == summary[group]


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        (asks_once, "asks_once"),
        (asks_once_async, "asks_once_async"),
        (AsksOnce(), "one of my own"),
        (Callable_(), "Callable_"),
        (lambda messages, tools: asks_once(messages, tools), "<lambda>"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_any_kind_of_agent_is_played_in_any_surroundings(agent: Any, name: str) -> None:
    ville = town()
    scores = ville.evaluate(agent, progress=False)
    assert scores.summary["evaluation"]["agent"] == {"kind": "function", "name": name}
    assert (scores.productivity, scores.proactivity, scores.personalization) == (0.0, 25.0, 50.0)

    async def inside() -> list[Any]:
        return [ville.evaluate(agent, progress=False), await ville.evaluate_async(agent, progress=False, name="mine")]

    blocking, awaited = asyncio.run(inside())
    assert blocking.summary["vague"] == awaited.summary["vague"] == scores.summary["vague"]
    assert awaited.summary["evaluation"]["agent"]["name"] == "mine"


def test_an_endpoint_is_an_agent() -> None:
    with AgentServer("town") as server:
        endpoint = {"model": "m", "base_url": server.base_url, "max_calls": 1000}
        ville = town(preferences=["no_preference"])
        scores = ville.evaluate(endpoint, progress=False)
        again = ville.evaluate(endpoint, progress=False)
        with pytest.raises(RecipeError, match=r"agent\.modle: unknown"):
            ville.evaluate({**endpoint, "modle": 1}, progress=False)
    assert scores.summary["vague"] == again.summary["vague"] and scores.summary["vague"]["ask_ratio"] > 0
    description = scores.summary["evaluation"]["agent"]
    assert (description["kind"], description["name"], description["calls"]) == ("endpoint", "m", "native")
    assert scores.summary["cost"].keys() == {"agent"}


def test_an_async_agent_lives_in_the_loop_of_its_caller() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def agent(messages: Any, tools: Any) -> str:
            assert asyncio.get_running_loop() is loop
            return asks_once(messages, tools)

        scores = await town().evaluate_async(agent, progress=False)
        assert scores.proactivity == 25.0

    asyncio.run(main())


def test_a_cancelled_evaluation_takes_no_further_turns() -> None:
    num_turns = 0

    async def main() -> None:
        began = asyncio.Event()

        async def agent(messages: Any, tools: Any) -> str:
            nonlocal num_turns
            num_turns += 1
            began.set()
            await asyncio.sleep(0.01)
            return '<tool_call>{"name": "list_files", "arguments": {"module": "parser"}}</tool_call>'

        evaluation = asyncio.create_task(town(max_concurrency=1).evaluate_async(agent, progress=False))
        await began.wait()
        evaluation.cancel()
        with pytest.raises(asyncio.CancelledError):
            await evaluation
        while any(thread.name == "userville" for thread in threading.enumerate()):
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert num_turns <= 2


def test_an_interrupted_cell_takes_no_further_turns() -> None:
    num_turns = 0

    def agent(messages: Any, tools: Any) -> str:
        nonlocal num_turns
        num_turns += 1
        if num_turns == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return '<tool_call>{"name": "list_files", "arguments": {"module": "parser"}}</tool_call>'

    async def cell() -> None:
        town(max_concurrency=1).evaluate(agent, progress=False)

    loop = asyncio.new_event_loop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(cell())
    loop.close()
    for thread in threading.enumerate():
        if thread.name == "userville":
            thread.join(timeout=30)
            assert not thread.is_alive()
    assert num_turns < len(town().tasks) * 16


def test_a_second_call_goes_on_with_its_folder(tmp_path: Path) -> None:
    calls = 0

    def agent(messages: Any, tools: Any) -> str:
        nonlocal calls
        calls += 1
        return asks_once(messages, tools)

    first = town().evaluate(agent, output_dir=tmp_path / "a", progress=False)
    num_calls = calls
    assert num_calls == 2 * len(first.sessions)
    lines = (tmp_path / "a" / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a" / "results.jsonl").write_text("".join(lines[:-1]))
    second = town().evaluate(agent, output_dir=tmp_path / "a", progress=False)
    assert calls == num_calls + 2
    assert second.summary["vague"] == first.summary["vague"]
    with pytest.raises(RecipeError, match="holds another evaluation, whose seed is 0 and not 1"):
        town(seed=1).evaluate(agent, output_dir=tmp_path / "a", progress=False)


def test_what_is_saved_is_what_commands_read(tmp_path: Path) -> None:
    scores = town().evaluate(asks_once, progress=False)
    folder = scores.save(tmp_path / "saved")
    assert {"evaluation.json", "results.jsonl", "summary.json"} <= {path.name for path in folder.iterdir()}
    assert ppp_evaluate(["--results", str(folder), "--output_dir", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert again["vague"] == scores.summary["vague"]
    with pytest.raises(RecipeError, match=r"folder: .* a new or empty folder"):
        scores.save(folder)


def test_a_temporary_folder_goes_with_its_scores() -> None:
    scores = town().evaluate(asks_once, progress=False)
    folder = scores.folder
    assert folder.is_dir()
    del scores
    gc.collect()
    assert not folder.exists()


def test_scores_tell_what_they_are_of() -> None:
    silent = town().evaluate("never_ask", progress=False)
    assert silent.personalization is None and silent.intervals["personalization"] is None
    precise = town(prompts="precise").evaluate("never_ask", progress=False)
    assert (precise.group, precise.productivity) == ("precise", 100.0)
    assert set(silent.preferences) == set(TWO)
    assert "vague, unseen" in str(silent)
    low, high = silent.intervals["productivity"] or (101.0, -1.0)
    assert 0 <= low <= (silent.productivity or 0.0) <= high <= 100


def test_without_interaction_there_is_nobody_to_ask() -> None:
    offered = []

    def agent(messages: Any, tools: Any) -> str:
        offered.append({entry["function"]["name"] for entry in tools})
        return asks_once(messages, tools)

    scores = town(interaction=False).evaluate(agent, progress=False)
    assert all("ask_user" not in names for names in offered)
    assert scores.summary["evaluation"]["user"] is None


def test_an_agent_that_raises_is_an_error_and_no_score() -> None:
    def agent(messages: Any, tools: Any) -> str:
        raise KeyError("choices")

    with pytest.raises(TooManyFailuresError, match=r"8 of 8 sessions failed .*KeyError: 'choices'"):
        town().evaluate(agent, progress=False)
    scores = town().evaluate(agent, progress=False, max_failure_rate=1.0)
    assert scores.summary["num_failed"] == 8 and scores.productivity is None


# --- what is the caller's own -----------------------------------------------------------------------------------------


class Shelf(ToolEnvironment):
    """One session fails to open, the others are solved by the right book."""

    closed: ClassVar[list[str]] = []

    async def setup(self) -> None:
        if self.task.payload["book"] == "broken":
            raise InfrastructureError("the shelf fell over", kind="shelf")

    async def close(self) -> None:
        type(self).closed.append(self.task.task_id)

    @tool
    def look(self) -> Observation:
        """Look at the shelf."""
        return Observation("Books.")

    async def score(self, answer: str | None) -> float:
        return float(answer == self.task.payload["book"])


def shelf_rows(*books: str) -> list[dict[str, Any]]:
    return [
        {"task_id": book, "vague_prompt": "Get it.", "precise_prompt": f"Get {book}.", "payload": {"book": book}}
        for book in books
    ]


def test_a_class_of_the_callers_is_an_environment_and_may_be_defined_again() -> None:
    def agent(messages: Any, tools: Any) -> AgentTurn:
        return AgentTurn("", ToolCall("finish", {"answer": "a"}))

    ville = UserVille(Shelf, shelf_rows("a", "b"), preferences="no_preference")
    assert (ville.environment, ville.evaluate(agent, progress=False).productivity) == ("shelf", 50.0)

    class Generous(Shelf):
        async def score(self, answer: str | None) -> float:
            return 1.0

    Generous.__name__ = "Shelf"
    again = UserVille(Generous, shelf_rows("a", "b"), preferences="no_preference")
    assert (again.environment, again.evaluate(agent, progress=False).productivity) == ("shelf", 100.0)


def test_ours_are_found_by_their_class() -> None:
    assert UserVille(TownEnvironment, TOWN).environment == "town"


class Parrot(User):
    async def answer(self, question: str, turns: Sequence[Turn]) -> Answer:
        return Answer(f"{question} {self.options.get('word', '')}".strip(), Effort.HIGH, True)


def test_users_and_preferences_of_the_callers() -> None:
    polite = replace(
        PREFERENCES["commas"],
        name="polite",
        description="Says please.",
        rule=lambda question: "please" in question,
    )
    told = []

    def agent(messages: Any, tools: Any) -> str:
        told.append(messages)
        return asks_once(messages, tools)

    ville = town(preferences=[polite, "no_preference"], user={"kind": Parrot, "word": "!"})
    assert {task.preference for task in ville.tasks} == {"no_preference", "polite"}
    scores = ville.evaluate(agent, progress=False)
    assert scores.proactivity == 0.0
    assert scores.sessions[0]["turns"][0]["answer"]["text"] == "Which module is it? !"
    assert any(messages[0]["content"] == "Says please." for messages in told)
    hidden = town(preferences=polite, preference_visibility="hidden")
    told.clear()
    assert hidden.evaluate(agent, progress=False).personalization == 0.0
    assert not any("Says please." in str(messages) for messages in told)


WRONG = {
    "environment": ({"environment": "twon"}, "environment: 'twon' is unknown"),
    "environment_class": ({"environment": dict}, "environment: the environment 'dict': it must be a subclass"),
    "tasks_file": ({"tasks": "missing.jsonl"}, "tasks.town: the file 'missing.jsonl' does not exist"),
    "tasks_options": ({"tasks": {"split": "dev", "num": 3}}, "tasks.town.split: unknown value 'dev'"),
    "tasks_row": ({"tasks": [{"task_id": "a"}]}, "tasks, row 1: the field 'vague_prompt' is missing"),
    "tasks_none": ({"tasks": []}, "tasks: no task"),
    "user": ({"user": "nobody"}, "user: 'nobody' is unknown"),
    "user_class": ({"user": dict}, "user: the user 'dict': it must be a subclass of User"),
    "user_option": ({"user": {"kind": "scripted", "age": 3}}, "user.age: unknown"),
    "preferences": ({"preferences": ["jsno"]}, "preferences: 'jsno' is unknown; .* did you mean 'json'?"),
    "own_preference": (
        {"preferences": replace(PREFERENCES["json"], split="unseen")},
        "preferences: the preference 'json': there is one of that name already",
    ),
    "prompts": ({"prompts": "vauge"}, "prompts: 'vauge' is unknown; .* did you mean 'vague'?"),
    "visibility": ({"preference_visibility": "shown"}, "preference_visibility: 'shown' is unknown"),
    "environment_options": ({"environment_options": {"size": 3}}, "environment_options.town: unknown option 'size'"),
    "limits": ({"limits": {"max_turn": 3}}, "limits: 'max_turn' is unknown; .* did you mean 'max_turns'?"),
    "limits_value": ({"limits": {"max_turns": 0}}, "limits.max_turns: 0 is not allowed"),
    "concurrency": ({"max_concurrency": 0}, "max_concurrency: 0 is not allowed"),
    "sessions": ({"sessions_per_preference": 0}, "sessions_per_preference: 0 is not allowed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named(case: str) -> None:
    arguments, message = WRONG[case]
    whole: dict[str, Any] = {"environment": "town", "tasks": TOWN, **arguments}
    with pytest.raises(RecipeError, match=f"^{message}"):
        UserVille(**whole)


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        ("gpt-5", "agent: 'gpt-5' is unknown; allowed: always_ask, .*; a checkpoint is evaluated by `ppp evaluate"),
        ("func_loc", "agent: 'func_loc' plays 'func_loc' only"),
        (3, "agent: 3 is not allowed; a function of messages and tools"),
        (lambda messages, tools: 3, "agent '<lambda>' returned int, which is not allowed"),
    ],
)
def test_a_wrong_agent_is_named(agent: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{message}"):
        town().evaluate(agent, progress=False)


# --- sessions by hand -------------------------------------------------------------------------------------------------


def test_a_session_by_hand_is_the_session_that_is_evaluated() -> None:
    ville, policy = town(), build_policy("always_ask", ["town"])
    records = {record["task_id"]: record for record in ville.evaluate("always_ask", progress=False).sessions}

    async def play(task: Task) -> tuple[SessionByHand, Task]:
        async with ville.session(task) as session:
            while not session.is_over:
                text, call = policy.act(task, session.turns)
                await session.send(AgentTurn(text, call))
            return session, task

    async def main() -> list[tuple[SessionByHand, Task]]:
        return await asyncio.gather(*map(play, ville.tasks))

    for session, task in asyncio.run(main()):
        assert session.trajectory is not None and session.score is not None
        ours = trajectory_record(session.trajectory, session.score, step=0, mode="eval", row=0, copy=0)
        for name in ("score", "session", "stop_reason", "final_answer", "prompt"):
            assert ours[name] == records[task.task_id][name]
        told, evaluated = (
            [{**turn, "text": ""} for turn in turns] for turns in (ours["turns"], records[task.task_id]["turns"])
        )
        assert told == evaluated


def open_session(ville: UserVille, number: int = 0) -> SessionByHand:
    return ville.session(ville.tasks[number])


def test_mistakes_come_back_and_the_last_turn_ends_the_session() -> None:
    ville = town(limits={"max_turns": 3})

    async def main() -> None:
        async with open_session(ville) as session:
            assert [message["role"] for message in session.messages][-1] == "user"
            turn = await session.call("lits_files")
            assert turn.is_error and "There is no tool 'lits_files'" in str(turn.observation)
            turn = await session.send("I think it is f1.")
            assert turn.is_error and session.score is None and not session.is_over
            assert session.messages[-1] == {"role": "user", "content": turn.observation}
            turn = await session.call("list_files", module="parser")
            assert turn.observation is None and session.is_over and session.trajectory is not None
            assert session.trajectory.stop_reason is StopReason.MAX_TURNS
            with pytest.raises(RuntimeError, match="the session has ended"):
                await session.call("finish", answer="f1")

    asyncio.run(main())


def test_a_session_that_is_left_early_is_closed_and_has_no_score() -> None:
    ville = UserVille(Shelf, shelf_rows("a"), preferences="no_preference")
    Shelf.closed.clear()

    async def main() -> SessionByHand:
        with pytest.raises(ZeroDivisionError):
            async with open_session(ville) as session:
                await session.call("look")
                raise ZeroDivisionError
        assert Shelf.closed == ["a/no_preference"]  # here, and not only when the loop ends
        return session

    session = asyncio.run(main())
    assert session.trajectory is None and session.score is None


def test_a_failure_of_ours_is_no_score() -> None:
    ville = UserVille(Shelf, shelf_rows("broken"), preferences="no_preference")

    async def main() -> None:
        with pytest.raises(InfrastructureError, match="the shelf fell over") as found:
            async with open_session(ville):
                pytest.fail("it was opened")
        assert found.value.kind == "shelf"

    asyncio.run(main())


def test_what_is_no_turn_is_refused() -> None:
    async def main() -> None:
        async with open_session(town()) as session:
            with pytest.raises(RecipeError, match="returned int"):
                await session.send(3)  # type: ignore[arg-type]

    asyncio.run(main())
