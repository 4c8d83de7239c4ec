"""Environments whose tools are Python functions: what agents are told of them, and how calls are carried out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import date
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from ppp.codec import Codec
from ppp.engines.scripted import ScriptedEngine
from ppp.environments import ENVIRONMENTS
from ppp.environments.tools import ToolEnvironment, tool, tool_spec
from ppp.rollout import Limits, RolloutJob, RolloutPool
from ppp.session import Toolbox
from ppp.types import InfrastructureError, Observation, RecipeError, StopReason, Task, ToolCall, Turn

TASK = Task("t/no_preference", "desk", "Do it.", "Do it, please.", "no_preference", {})


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Room(BaseModel):
    floor: int
    title: str = "office"


def book(day: date, colour: Colour, room: Room, seats: int = 2, *, json: list[str] | None = None) -> dict[str, Any]:
    """Book a room.

    For one day.

    Args:
        day: when,
            as year-month-day
        seats: how many

    Returns:
        what was booked
    """
    assert isinstance(day, date) and isinstance(colour, Colour) and isinstance(room, Room)
    return {"day": day, "colour": colour.value, "floor": room.floor, "seats": seats, "json": json}


async def ring(loudly: bool) -> None:
    """Ring the bell."""
    if loudly:
        raise TimeoutError("the bell is stuck")


class Desk(ToolEnvironment):
    functions = (book, ring)
    mistakes = (LookupError,)

    def __init__(self, task: Task, options: Any = None) -> None:
        super().__init__(task, options)
        self.opened: list[str] = []

    @tool
    def open_drawer(self, name: Annotated[Literal["top", "bottom"], Field(description="Which one.")]) -> Observation:
        """Open a drawer."""
        self.opened.append(name)
        self.thread = threading.current_thread()
        return Observation(f"Open: {self.drawers()}")

    @tool
    async def look(self, thing: str = "desk") -> str:
        """Look at a thing."""
        if thing not in ("desk", "lamp"):
            raise KeyError(thing)
        return f"A {thing}."

    def drawers(self) -> str:
        return ", ".join(self.opened)

    async def score(self, answer: str | None) -> float:
        return 1.0 if answer == "done" else 0.0


def step(environment: ToolEnvironment, name: str, /, **arguments: Any) -> Observation:
    return asyncio.run(environment.step(ToolCall(name, arguments)))


def test_methods_come_first_and_in_the_order_in_which_they_stand() -> None:
    assert [spec.name for spec in Desk.tools] == ["open_drawer", "look", "book", "ring"]
    assert Toolbox.of(Desk, True).names == "open_drawer, look, book, ring, ask_user, finish"


def test_hints_and_docstring_are_what_the_agent_is_told() -> None:
    spec = tool_spec(book)
    assert (spec.name, spec.description) == ("book", "Book a room. For one day.")
    Draft202012Validator.check_schema(dict(spec.parameters))
    properties = spec.parameters["properties"]
    assert properties["day"] == {"type": "string", "format": "date", "description": "when, as year-month-day"}
    assert properties["seats"] == {"type": "integer", "description": "how many", "default": 2}
    assert spec.parameters["required"] == ["day", "colour", "room"]
    assert spec.parameters["additionalProperties"] is False
    assert Desk.tools[0].parameters["properties"]["name"]["description"] == "Which one."
    assert spec.parameters["$defs"]["Room"]["properties"]["title"] == {"default": "office", "type": "string"}


def test_arguments_arrive_as_the_hints_want_them_and_results_leave_as_text() -> None:
    desk = Desk(TASK)
    room = {"floor": 3}
    booked = step(desk, "book", day="2026-05-04", colour="red", room=room, json=["è"])
    assert booked.text == '{"day": "2026-05-04", "colour": "red", "floor": 3, "seats": 2, "json": ["è"]}'
    assert step(desk, "open_drawer", name="top") == Observation("Open: top")
    assert step(desk, "look") == Observation("A desk.")
    assert step(desk, "ring", loudly=False) == Observation("Done.")
    assert desk.thread is not threading.main_thread()  # a tool that blocks holds up no other session


def test_arguments_that_no_schema_refuses_but_the_hint_does_come_back_to_the_agent() -> None:
    call = {"day": "2026-02-30", "colour": "red", "room": {"floor": 1}}
    assert Toolbox(Desk.tools).mistake(ToolCall("book", call)) is None
    answer = step(Desk(TASK), "book", **call)
    assert answer.is_error and answer.text.startswith("book: day: ")


def test_named_mistakes_come_back_and_other_exceptions_are_failures_of_ours() -> None:
    assert step(Desk(TASK), "look", thing="moon") == Observation("KeyError: 'moon'", is_error=True)
    with pytest.raises(TimeoutError):
        step(Desk(TASK), "ring", loudly=True)


class Clerk:
    def __init__(self, *calls: ToolCall) -> None:
        self.calls = calls

    def act(self, task: Task, turns: list[Turn]) -> tuple[str, ToolCall]:
        return "", self.calls[len(turns)]


@pytest.mark.parametrize(
    ("call", "reason", "score"),
    [
        (ToolCall("look", {"thing": "moon"}), StopReason.FINISHED, 1.0),
        (ToolCall("ring", {"loudly": True}), StopReason.ERROR, None),
    ],
)
def test_sessions_are_played(
    call: ToolCall, reason: StopReason, score: float | None, codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENTS, "desk", Desk)
    engine = ScriptedEngine(codec, Clerk(call, ToolCall("finish", {"answer": "done"})))
    pool = RolloutPool(engine, codec, Limits())
    (trajectory,) = pool.run([RolloutJob(TASK, 0, 0)], step=0)
    pool.close()
    assert (trajectory.stop_reason, trajectory.productivity) == (reason, score)


def no_docstring(thing: str) -> str:
    return thing


def no_hint(thing) -> str:  # type: ignore[no-untyped-def]
    """Do it."""
    return str(thing)


def any_number(*things: str) -> str:
    """Do it."""
    return ""


def unknown_hint(thing: Nowhere) -> str:  # type: ignore[name-defined]  # noqa: F821
    """Do it."""
    return ""


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (no_docstring, "'no_docstring': its docstring"),
        (no_hint, "'no_hint': the parameter 'thing' has no type hint"),
        (any_number, "'any_number': the parameter 'things' cannot"),
        (unknown_hint, "'unknown_hint': its type hints cannot be read"),
    ],
)
def test_a_function_of_which_an_agent_could_not_be_told_is_refused(function: Callable[..., Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        tool_spec(function)


def ask_user(query: str) -> str:
    """Ask."""
    return query


@pytest.mark.parametrize("functions", [(ask_user,), (ring, ring)])
def test_names_of_tools_are_unique(functions: tuple[Callable[..., Any], ...]) -> None:
    with pytest.raises(RecipeError, match=r"there is a tool '(ask_user|ring)' already"):
        type("Twice", (ToolEnvironment,), {"functions": functions})


def test_a_subclass_has_the_tools_of_its_base_and_may_replace_them() -> None:
    class Table(Desk):
        functions = ()

        @tool
        def look(self) -> str:
            """Look at the table."""
            return "A table."

    assert [spec.name for spec in Table.tools] == ["open_drawer", "look"]
    assert step(Table(TASK), "look") == Observation("A table.")
    assert step(Desk(TASK), "look") == Observation("A desk.")


def test_a_failure_can_be_named_as_one_of_the_infrastructure() -> None:
    class Broken(ToolEnvironment):
        mistakes = (Exception,)

        @tool
        def look(self) -> str:
            """Look."""
            raise InfrastructureError("the server is down")

        async def score(self, answer: str | None) -> float:
            return 0.0

    with pytest.raises(InfrastructureError):
        step(Broken(TASK), "look")
