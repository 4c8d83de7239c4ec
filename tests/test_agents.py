"""Agents that speak messages, in real sessions: a function as the agent, in the town."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest
import town_player
from town_player import OPEN, TASKS, breaches

from ppp.agents.base import Agent, AgentTurn, Messages
from ppp.agents.build import build_message_pool
from ppp.agents.engine import NO_NAME, SILENCE, turn_seed
from ppp.agents.function import AgentFunction, FunctionAgent
from ppp.agents.stand_in import BYTES_PER_TOKEN, StandInCodec
from ppp.agents.turns import UNREADABLE, as_text, native_turn, text_turn
from ppp.chat.messages import SaidTurn, WrittenCall, read_message
from ppp.data import expand
from ppp.engines.base import ContextFullError
from ppp.environments.town import town_task_rows
from ppp.rollout import Limits, RolloutJob, noise_key
from ppp.session import ASK_USER, FINISH
from ppp.types import (
    InfrastructureError,
    RecipeError,
    RunStoppedError,
    StopReason,
    Task,
    ToolCall,
    ToolSpec,
    Trajectory,
)

DONE = town_player.message_of("finish", {"answer": "f0"})


def play(
    agent: Agent, tasks: Sequence[Task] = TASKS[:1], limits: Limits | None = None, **options: Any
) -> list[Trajectory]:
    with closing(build_message_pool(agent, limits, **options)) as pool:
        return pool.run([RolloutJob(task, row, 0) for row, task in enumerate(tasks)], step=0)


class Script:
    """A function that returns its turns one after another, the last one for ever, and keeps what it was told."""

    def __init__(self, *turns: Any) -> None:
        self.turns = turns
        self.told: list[list[dict[str, Any]]] = []

    def __call__(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Any:
        self.told.append(messages)
        return self.turns[min(len(self.told), len(self.turns)) - 1]


# --- sessions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [town_player.play, town_player.play_in_text])
def test_a_function_plays_whole_sessions(function: AgentFunction) -> None:
    for trajectory in play(FunctionAgent(function), TASKS):
        assert (trajectory.stop_reason, trajectory.productivity) == (StopReason.FINISHED, 1.0)
        assert trajectory.questions == [town_player.QUESTION]
        assert not any(turn.is_error for turn in trajectory.turns)


def test_a_sync_function_leaves_the_event_loop_alone_and_an_async_one_runs_in_it() -> None:
    threads: dict[str, set[int]] = {"sync": set(), "async": set()}

    def sync(messages: Any, tools: Any) -> Any:
        threads["sync"].add(threading.get_ident())
        return town_player.play(messages, tools)

    async def in_loop(messages: Any, tools: Any) -> Any:
        threads["async"].add(threading.get_ident())
        await asyncio.sleep(0)
        return town_player.play(messages, tools)

    class Player:
        async def __call__(self, messages: Any, tools: Any) -> Any:
            return await in_loop(messages, tools)

    for function in (sync, in_loop, Player()):
        (trajectory,) = play(FunctionAgent(function))
        assert trajectory.productivity == 1.0
    assert threads["async"] == {threading.get_ident()}
    assert threading.get_ident() not in threads["sync"]


def test_sessions_wait_for_a_function_side_by_side() -> None:
    together = threading.Barrier(8, timeout=60)

    def function(messages: Any, tools: Any) -> Any:
        together.wait()
        return DONE

    assert all(trajectory.stop_reason is StopReason.FINISHED for trajectory in play(FunctionAgent(function), TASKS[:8]))


def test_what_a_function_changes_is_its_own() -> None:
    def function(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Any:
        answer = town_player.play(messages, tools)
        for message in messages:
            message["content"] = "overwritten"
        tools.clear()
        messages.clear()
        return answer

    assert [trajectory.productivity for trajectory in play(FunctionAgent(function), TASKS)] == [1.0] * len(TASKS)


def test_the_agent_reads_the_prompt_that_a_policy_is_trained_with() -> None:
    script = Script(DONE)
    task = expand([next(town_task_rows("test", 1))], ["concise_question"], 0, num_precise=0)[0]
    play(FunctionAgent(script), [task])
    play(FunctionAgent(script), [task], preference_visibility="hidden")
    system, user = script.told[0]
    assert user == {"role": "user", "content": task.prompt}
    assert "question" in system["content"] and script.told[1] == [user]


def test_a_conversation_only_grows() -> None:
    script = Script(OPEN, "I think.", OPEN, DONE)
    play(FunctionAgent(script))
    for earlier, later in zip(script.told, script.told[1:], strict=False):
        assert later[: len(earlier)] == earlier and len(later) > len(earlier)


# --- mistakes of the agent -------------------------------------------------------------------------------------------

CALL = OPEN["tool_calls"][0]
MISTAKES: dict[str, tuple[Any, str]] = {
    "nothing": ({"role": "assistant", "content": None}, "No tool call"),
    "text alone": ({"role": "assistant", "content": "I think."}, "No tool call"),
    "a call in the text of native turns": (
        {"role": "assistant", "content": town_player.play_in_text([{"role": "user", "content": ""}], [])},
        "No tool call",
    ),
    "several calls": ({**OPEN, "tool_calls": [CALL, CALL, CALL]}, "holds 3"),
    "several calls, one unreadable": (
        {**OPEN, "tool_calls": [CALL, {**CALL, "function": {"name": "x y", "arguments": "{"}}]},
        "holds 2",
    ),
    "half a call": (town_player.message_of("open_file", '{"path": "rou'), "not valid JSON"),
    "a list": (town_player.message_of("open_file", '["router"]'), "one JSON object"),
    "no JSON": (town_player.message_of("open_file", '{"path": NaN}'), "NaN"),
    "deep": (town_player.message_of("open_file", '{"path": ' + "[" * 100_000), "JSON"),
    "unknown tool": (town_player.message_of("rm -rf /", {}), "There is no tool 'rm -rf /'"),
    "no name": (town_player.message_of("", {}), "There is no tool ''"),
    "wrong arguments": (town_player.message_of("open_file", {"file": "x"}), "open_file"),
    "no arguments": (town_player.message_of("open_file", ""), "open_file"),
    "cut off": (AgentTurn("I thi", ToolCall("finish", {"answer": "f0"}), is_cut_off=True), "cut off"),
    "text without a call": ("I think.", "<tool_call>"),
    "text with two calls": (town_player.play_in_text([{"role": "user", "content": ""}], []) * 2, "holds 2"),
    "text with half a call": ('<tool_call>\n{"name": "open_file", ', "not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_the_agent_is_told_to_it_in_a_protocol_that_servers_take(mistake: str) -> None:
    turn, said = MISTAKES[mistake]
    script = Script(turn, turn, OPEN, DONE)
    (trajectory,) = play(FunctionAgent(script))
    assert trajectory.stop_reason is StopReason.FINISHED and trajectory.error is None
    for first in trajectory.turns[:2]:
        assert first.is_error and said in (first.observation or "")
    assert script.told[-1][-1]["content"].startswith("Functions: ")
    assert not list(breaches(script.told[-1]))
    assert said in script.told[1][-1]["content"]
    if isinstance(turn, str):
        assert script.told[1][-2] == {"role": "assistant", "content": turn.strip()}


def test_what_the_agent_wrote_stays_in_the_conversation() -> None:
    unreadable = town_player.message_of("rm -rf /", '{"path": "rou', content="Let me look.")
    script = Script(unreadable, {"role": "assistant", "content": ""}, DONE)
    play(FunctionAgent(script))
    wrote, _, silent = [message for message in script.told[-1][-4:]][:3]
    function = wrote["tool_calls"][0]["function"]
    assert wrote["content"] == "Let me look." and function["name"] == NO_NAME
    assert json.loads(function["arguments"]) == {UNREADABLE: '{"path": "rou'}
    assert silent == {"role": "assistant", "content": SILENCE}


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "tool_calls": [{"function": {"name": "finish", "arguments": {"answer": "f0"}}}]},
        {"tool_calls": [{"function": {"name": "finish", "arguments": '{"answer": "f0"}'}}], "content": []},
        {"content": [{"type": "text", "text": "a"}, {"type": "thinking"}, {"type": "text", "text": "b"}],
         "tool_calls": ({"id": None, "function": {"name": "finish", "arguments": '{"answer": "f0"}'}},)},
    ],
)  # fmt: skip
def test_liberties_that_servers_take_are_understood(message: dict[str, Any]) -> None:
    turn = native_turn(read_message(message))
    assert turn.call == ToolCall("finish", {"answer": "f0"})
    assert turn.text == ("ab" if message["content"] else "")


def test_text_that_has_no_encoding_is_replaced_before_it_is_written_anywhere() -> None:
    half = '{"query": "\\ud800?"}'
    turn = native_turn(read_message(town_player.message_of("ask_user", half, content="a\ud800")))
    (turn.text + json.dumps(dict(turn.call.arguments), ensure_ascii=False)).encode()  # type: ignore[union-attr]


def test_thoughts_are_kept_apart_and_hold_no_calls() -> None:
    call = town_player.play_in_text([{"role": "user", "content": ""}], [])
    thought = call.replace("ask_user", "finish")
    for text in (f"<think>{thought}</think>{call}", f"{thought}</think>{call}"):
        turn = text_turn(SaidTurn(text, reasoning="before"), [ASK_USER, FINISH])
        assert turn.call is not None and turn.call.name == "ask_user"
        assert turn.text == "Let me see." and turn.reasoning.startswith("before\nLet me see.")
    script = Script(AgentTurn("", ToolCall("open_file", {"path": "x"}), reasoning="secret"), DONE)
    (trajectory,) = play(FunctionAgent(script))
    assert trajectory.turns[0].message["reasoning_content"] == "secret"
    assert "secret" not in json.dumps(script.told)


def test_in_text_a_conversation_shows_tools_and_calls_and_nothing_of_the_protocol() -> None:
    script = Script(OPEN, {"role": "assistant", "content": "Hm."}, {**OPEN, "tool_calls": [CALL, CALL]}, DONE)
    play(FunctionAgent(script))
    for conversation in script.told:
        shown = as_text(conversation, [ASK_USER, FINISH])
        assert shown[0]["role"] == "system" and '"ask_user"' in shown[0]["content"]
        assert {message["role"] for message in shown} <= {"system", "user", "assistant"}
        assert all(set(message) == {"role", "content"} for message in shown)
    assert '"arguments": {"path": "router/saving.py"}' in as_text(script.told[1], [])[2]["content"]


# --- mistakes of others ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "returned", [None, 3, ToolCall("finish", {}), [], {}, {"text": "x"}, {"role": "user", "content": "x"},
                 {"content": 3}, {"content": "x", "tool_calls": "y"}, {"tool_calls": [{}]}, {"tool_calls": ["x"]}]
)  # fmt: skip
def test_a_function_that_returns_no_turn_ends_the_run_by_its_name(returned: Any) -> None:
    with pytest.raises(RecipeError, match="agent 'mine' returned"):
        play(FunctionAgent(lambda messages, tools: returned, name="mine"))


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(RecipeError, match="agent"):
        FunctionAgent("play")  # type: ignore[arg-type]


def test_an_exception_in_the_function_leaves_its_session_out() -> None:
    def function(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Any:
        if messages[-1]["content"] == TASKS[1].prompt:
            raise KeyError("lost")
        return town_player.play(messages, tools)

    first, failed, last = play(FunctionAgent(function), TASKS[:3])
    assert failed.failed and failed.error_kind == "KeyError" and "lost" in str(failed.error)
    assert first.productivity == last.productivity == 1.0


def test_a_function_can_end_the_run() -> None:
    def function(messages: Any, tools: Any) -> Any:
        raise RunStoppedError("that was it")

    with pytest.raises(RunStoppedError, match="that was it"):
        play(FunctionAgent(function))


# --- limits ----------------------------------------------------------------------------------------------------------


def test_four_bytes_of_text_count_as_a_token() -> None:
    codec = StandInCodec()
    for text in ("x" * 400, "é" * 200, "😀" * 100):
        assert len(codec.suffix_ids(text, closed=True, name="x")) == 400 // BYTES_PER_TOKEN
        assert len(codec.render_turn(text, None)) == 400 // BYTES_PER_TOKEN + 1
        assert codec.truncate(text, 100) == text
        assert len(codec.prompt_ids([{"role": "user", "content": text}])) == 100
        cut = codec.truncate(text, 60)
        assert len(cut.encode()) <= 240 and "[... 40 tokens cut here ...]" in cut
        assert cut[0] == cut[-1] == text[0]
        assert len(codec.truncate(text, 3).encode()) <= 12 and codec.truncate(text, 3) in text


def test_limits_of_a_recipe_hold() -> None:
    long = AgentTurn("x" * 4000, ToolCall("open_file", {"path": "router/saving.py"}), num_tokens=7)
    script = Script(long)
    (trajectory,) = play(FunctionAgent(script), limits=Limits(max_completion_tokens=2500, max_tokens_per_turn=1200))
    assert trajectory.stop_reason is StopReason.MAX_TOKENS and len(trajectory.turns) == 3
    assert [turn.num_tokens for turn in trajectory.turns] == [7, 7, 7]
    assert len(trajectory.completion_ids) <= 2500
    (trajectory,) = play(FunctionAgent(script), limits=Limits(max_observation_tokens=5))
    assert len(str(trajectory.turns[0].observation)) <= 20
    (trajectory,) = play(FunctionAgent(script), limits=Limits(max_prompt_tokens=5))
    assert trajectory.stop_reason is StopReason.PROMPT_TOO_LONG
    (trajectory,) = play(FunctionAgent(script), limits=Limits(max_turns=2, max_tokens_per_turn=1))
    assert trajectory.stop_reason is StopReason.MAX_TURNS, "what a turn took is told by who took it"


class Watched(Agent):
    """Opens a file each turn and keeps what it was given to do so."""

    name = "watched"

    def __init__(self, takes_time: bool = False, context: int = 1000) -> None:
        self.seeds: list[int] = []
        self.limits: list[int] = []
        self.takes_time = takes_time  # type: ignore[misc]
        self.context = context
        self.num_closed = 0

    async def act(self, messages: Messages, tools: Sequence[ToolSpec], *, max_tokens: int, seed: int) -> AgentTurn:
        self.seeds.append(seed)
        self.limits.append(max_tokens)
        if len(messages) > self.context:
            raise ContextFullError("too long")
        if self.takes_time:
            await asyncio.sleep(0.3)
        return AgentTurn("", ToolCall("open_file", {"path": "router/saving.py"}))

    async def close(self) -> None:
        self.num_closed += 1


def test_seeds_are_of_31_bits_and_depend_on_run_session_and_turn() -> None:
    def seeds(seed: int) -> list[int]:
        agent = Watched()
        play(agent, TASKS[:4], Limits(max_turns=3), seed=seed)
        assert agent.num_closed == 1 and agent.limits[0] == Limits().max_tokens_per_turn
        return sorted(agent.seeds)

    assert seeds(0) == seeds(0) and len({*seeds(0), *seeds(1)}) == 24
    assert sorted(turn_seed(noise_key(0, 0, row, 0), turn) for row in range(4) for turn in range(3)) == seeds(0)
    assert all(0 <= seed < 2**31 for seed in seeds(0)) and max(seeds(0)) > 2**29


def test_no_deadline_hurries_a_person() -> None:
    limits = Limits(max_turns=2, trajectory_timeout_s=0.2)
    (trajectory,) = play(Watched(takes_time=True), limits=limits)
    assert trajectory.stop_reason is StopReason.MAX_TURNS

    async def slow(messages: Any, tools: Any) -> Any:
        await asyncio.sleep(30)

    (trajectory,) = play(FunctionAgent(slow), limits=limits)
    assert trajectory.error_kind == "trajectory_timeout_s"


def test_a_session_that_outgrows_the_context_ends_and_is_scored() -> None:
    (trajectory,) = play(Watched(context=5), limits=Limits(max_turns=50))
    assert trajectory.stop_reason is StopReason.MAX_TOKENS and len(trajectory.turns) == 2
    assert trajectory.productivity == 0.0 and not trajectory.failed
    (trajectory,) = play(Watched(context=0))
    assert trajectory.stop_reason is StopReason.PROMPT_TOO_LONG and trajectory.productivity == 0.0


@pytest.mark.parametrize("error", [InfrastructureError("gone", kind="connection"), TimeoutError("late")])
def test_an_agent_that_cannot_be_reached_leaves_its_session_out(error: Exception) -> None:
    class Gone(Watched):
        async def act(self, *arguments: Any, **limits: Any) -> AgentTurn:
            raise error

    (trajectory,) = play(Gone())
    assert trajectory.failed and trajectory.productivity is None


def test_a_written_call_of_any_kind_survives_the_cache() -> None:
    said = SaidTurn("a\n", (WrittenCall("x", '{"a": '), WrittenCall("", "")), "é")
    assert SaidTurn.from_json(said.to_json()) == said
