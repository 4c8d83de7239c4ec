"""A model behind an endpoint as the agent, against a real server: native calls and text, and all that goes wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import town_player
from chat_server import ChatServer, Request, Said
from tenacity import wait_none
from town_player import OPEN, TASKS, breaches

from ppp.agents.build import build_message_pool
from ppp.agents.endpoint import OWN_OPTIONS, EndpointAgent
from ppp.chat import limits
from ppp.rollout import Limits, RolloutJob
from ppp.run_log import replayable, trajectory_record
from ppp.types import RecipeError, RunStoppedError, StopReason, Task, Trajectory


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BACKOFF", wait_none())
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(town_player.reply) as server:
        yield server


def agent_at(server: ChatServer, **options: Any) -> EndpointAgent:
    return EndpointAgent.from_options({"model": "m", "base_url": server.base_url, **options})


def checked(server: ChatServer, **options: Any) -> EndpointAgent:
    agent = agent_at(server, **options)
    asyncio.run(agent.check())
    server.requests.clear()
    return agent


def play(
    agent: EndpointAgent, tasks: Sequence[Task] = TASKS[:1], bounds: Limits | None = None, **options: Any
) -> list[Trajectory]:
    with closing(build_message_pool(agent, bounds, **options)) as pool:
        return pool.run([RolloutJob(task, row, 0) for row, task in enumerate(tasks)], step=0)


def records(trajectories: Sequence[Trajectory]) -> list[dict[str, Any]]:
    rows = enumerate(trajectories)
    return [replayable(trajectory_record(t, None, step=0, mode="eval", row=row, copy=0)) for row, t in rows]


# --- native calls and text -------------------------------------------------------------------------------------------


def test_native_calls_play_sessions_that_any_server_would_take(server: ChatServer) -> None:
    agent = checked(server)
    trajectories = play(agent, TASKS)
    assert agent.tool_calls == "native"
    assert [trajectory.productivity for trajectory in trajectories] == [1.0] * len(TASKS)
    assert trajectories[0].questions == [town_player.QUESTION]
    for request in server.requests:
        assert not list(breaches(request["messages"]))
        assert {tool["function"]["name"] for tool in request["tools"]} == {
            "list_files",
            "open_file",
            "ask_user",
            "finish",
        }
        assert request["max_tokens"] == Limits().max_tokens_per_turn
        assert 0 <= request["seed"] < 2**31 and request["parallel_tool_calls"] is False
    assert all(turn.num_tokens for trajectory in trajectories for turn in trajectory.turns)
    assert agent.ledger.summary()["calls"] == sum(len(trajectory.turns) for trajectory in trajectories)


@pytest.mark.parametrize(("tools", "why"), [("refuse", "refuses tools"), ("ignore", "without calling it")])
def test_an_endpoint_without_native_calls_falls_back_to_text_and_says_so(
    server: ChatServer, caplog: pytest.LogCaptureFixture, tools: str, why: str
) -> None:
    server.tools = tools
    agent = checked(server)
    assert agent.tool_calls == "text" and why in agent.problem
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert agent.name in said and why in said
    assert [trajectory.productivity for trajectory in play(agent, TASKS[:3])] == [1.0] * 3
    for request in server.requests:
        assert "tools" not in request and "parallel_tool_calls" not in request
        assert not list(breaches(request["messages"]))
        assert "<tool_call>" in request["messages"][0]["content"]
    with pytest.raises(RecipeError, match=f"^agent.tool_calls: 'native' is not allowed; .*{why}"):
        checked(server, tool_calls="native")


def test_text_asks_nobody_for_tools(server: ChatServer) -> None:
    agent = checked(server, tool_calls="text")
    assert server.num_requests == 1
    assert play(agent)[0].productivity == 1.0


def test_an_unchecked_agent_finds_out_in_its_first_turn_once(server: ChatServer) -> None:
    server.tools = "refuse"
    agent = agent_at(server)
    play(agent, TASKS)
    probes = [request for request in server.requests if "tools" in request]
    assert agent.tool_calls == "text" and len(probes) == 1


def test_a_server_that_knows_no_parallel_tool_calls_is_not_asked_for_them_again(server: ChatServer) -> None:
    server.unsupported = ["parallel_tool_calls"]
    agent = checked(server)
    assert agent.tool_calls == "native"
    assert play(agent)[0].productivity == 1.0
    assert not any("parallel_tool_calls" in request for request in server.requests)


def test_an_endpoint_that_cannot_be_used_is_named_before_anything_is_played(server: ChatServer) -> None:
    server.models = ["other"]
    with pytest.raises(RecipeError, match=f"^agent: m at {server.base_url} cannot be used: .* offers are other"):
        checked(server)


def test_an_endpoint_that_fails_while_it_is_asked_for_tools_is_not_taken_for_one_without(server: ChatServer) -> None:
    server.script = [None, "429", "429", "429", "429"]
    with pytest.raises(RecipeError, match="cannot be used with tools"):
        checked(server)


# --- what a turn may be ----------------------------------------------------------------------------------------------


def script_of(server: ChatServer, *turns: Said) -> None:
    """Let the server answer with these turns, the last one for ever."""
    left = list(turns)

    def reply(request: Request) -> Said:
        return left.pop(0) if len(left) > 1 else left[0]

    server.reply = reply


DONE = Said(town_player.message_of("finish", {"answer": "f0"}))
LIBERTIES = {
    "no ids": {"content": None, "tool_calls": [{"function": {"name": "finish", "arguments": '{"answer": "f0"}'}}]},
    "arguments as an object": {
        "tool_calls": [{"id": "", "function": {"name": "finish", "arguments": {"answer": "f0"}}}]
    },
    "no content": {"tool_calls": DONE["tool_calls"], "role": "assistant"},
    "empty content": {"content": "", "tool_calls": DONE["tool_calls"], "function_call": None},
}


@pytest.mark.parametrize("liberty", LIBERTIES)
@pytest.mark.parametrize("finish_reason", ["stop", "tool_calls"])
def test_servers_may_take_liberties(server: ChatServer, liberty: str, finish_reason: str) -> None:
    agent = checked(server)
    script_of(server, Said(OPEN), Said(LIBERTIES[liberty], finish_reason))
    (trajectory,) = play(agent)
    assert trajectory.final_answer == "f0" and len(trajectory.turns) == 2


def test_an_empty_answer_is_a_turn_without_a_call(server: ChatServer) -> None:
    agent = checked(server)
    script_of(server, Said({"role": "assistant", "content": None}), DONE)
    (trajectory,) = play(agent)
    assert [turn.is_error for turn in trajectory.turns] == [True, False]
    assert "No tool call" in str(trajectory.turns[0].observation) and len(server.requests) == 2


@pytest.mark.parametrize("cut", [DONE, town_player.message_of("finish", '{"answer": "f')])
def test_a_turn_that_was_cut_off_is_not_carried_out(
    server: ChatServer, cut: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    agent = checked(server)
    script_of(server, Said(cut, "length"), Said(cut, "length"), DONE)
    (trajectory,) = play(agent)
    assert [turn.truncated for turn in trajectory.turns] == [True, True, False]
    assert "cut off" in str(trajectory.turns[0].observation) and trajectory.stop_reason is StopReason.FINISHED
    assert "tool_calls" not in server.requests[1]["messages"][-2]
    assert caplog.text.count("agent.max_tokens") == 1


def test_an_answer_that_a_filter_held_back_leaves_the_session_out(server: ChatServer) -> None:
    agent = checked(server)
    script_of(server, Said(OPEN), Said({"role": "assistant", "content": "I"}, "content_filter"))
    (trajectory,) = play(agent)
    assert trajectory.failed and trajectory.error_kind == "content_filter" and len(server.requests) == 2


def test_a_model_that_declines_has_said_so(server: ChatServer) -> None:
    agent = checked(server)
    script_of(server, Said({"role": "assistant", "content": None, "refusal": "I can't."}), DONE)
    (trajectory,) = play(agent)
    assert trajectory.turns[0].message["content"] == "I can't." and not trajectory.failed


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_are_kept_and_not_sent_back(server: ChatServer, field: str) -> None:
    agent = checked(server)
    script_of(server, Said({**OPEN, field: "hidden thought"}), DONE)
    (trajectory,) = play(agent)
    assert trajectory.turns[0].message["reasoning_content"] == "hidden thought"
    assert "hidden thought" not in json.dumps(server.requests)


def test_what_stands_in_a_native_answer_is_never_a_call(server: ChatServer) -> None:
    agent = checked(server)
    spoken = '<tool_call>\n{"name": "finish", "arguments": {"answer": "f1"}}\n</tool_call>'
    script_of(server, Said({"role": "assistant", "content": spoken}), DONE)
    (trajectory,) = play(agent)
    assert trajectory.turns[0].call is None and trajectory.final_answer == "f0"


@pytest.mark.parametrize("body", [{"tool_calls": "x"}, {"tool_calls": [3]}, {"content": 5}])
def test_what_is_no_message_is_asked_for_again(server: ChatServer, body: dict[str, Any]) -> None:
    agent = checked(server)
    script_of(server, Said(body), DONE)
    (trajectory,) = play(agent)
    assert trajectory.stop_reason is StopReason.FINISHED and len(server.requests) == 2
    assert agent.ledger.summary()["failures"] == {"invalid body": 1}


# --- context ---------------------------------------------------------------------------------------------------------


def test_a_session_that_outgrows_the_context_is_scored_and_does_not_loop(server: ChatServer) -> None:
    agent = checked(server)
    script_of(server, Said(OPEN))
    server.context_length = 1400
    (trajectory,) = play(agent, bounds=Limits(max_turns=100, max_tokens_per_turn=100))
    assert trajectory.stop_reason is StopReason.MAX_TOKENS and trajectory.productivity == 0.0
    num_refused = len(server.requests) - len(trajectory.turns)
    assert 1 < len(trajectory.turns) < 50 and num_refused <= 4
    assert agent.ledger.summary()["failures"] == {"context length": num_refused}


def test_a_turn_gets_what_room_the_context_has(server: ChatServer) -> None:
    agent = checked(server)
    server.context_length = 1000
    (trajectory,) = play(agent, bounds=Limits(max_tokens_per_turn=1000))
    assert trajectory.productivity == 1.0


def test_a_context_that_is_too_short_for_the_prompt_is_told(
    server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    agent = checked(server)
    server.context_length = 20
    (trajectory,) = play(agent)
    assert trajectory.stop_reason is StopReason.PROMPT_TOO_LONG and not trajectory.failed
    assert "too short for the first turn" in caplog.text


def test_other_refusals_leave_the_session_out(server: ChatServer) -> None:
    agent = checked(server)
    server.script = [None, "400"]
    (trajectory,) = play(agent)
    assert trajectory.failed and trajectory.error_kind == "400"


# --- many sessions, outages, budgets, replays ------------------------------------------------------------------------


def test_64_sessions_are_in_flight(server: ChatServer) -> None:
    agent = checked(server)

    def release() -> None:
        while server.num_in_flight < 64:
            threading.Event().wait(0.01)
        server.resume.set()

    server.resume.clear()
    thread = threading.Thread(target=release, daemon=True)
    thread.start()
    trajectories = play(agent, [*TASKS] * 6, max_concurrency=64)
    thread.join()
    assert server.max_in_flight == 64
    assert [trajectory.productivity for trajectory in trajectories] == [1.0] * 72


def test_the_same_seed_gives_the_same_sessions(server: ChatServer) -> None:
    def drawn(request: Request) -> Said | str:
        if request["seed"] % 3 == 0 and len(request["messages"]) < 8:
            return Said({"role": "assistant", "content": f"Hm, {request['seed']}."})
        return town_player.reply(request)

    agent = checked(server)
    server.reply = drawn
    first, again, other = (records(play(agent, TASKS, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("tools", ["take", "refuse"])
def test_a_recorded_run_is_replayed_without_the_endpoint(server: ChatServer, tmp_path: Path, tools: str) -> None:
    server.tools = tools
    cache = {"cache": "write", "cache_path": str(tmp_path / "answers.sqlite")}
    recorded = records(play(checked(server, **cache), TASKS))
    server.down = True
    agent = agent_at(server, **{**cache, "cache": "replay"})
    asyncio.run(agent.check())
    assert records(play(agent, TASKS)) == recorded
    assert agent.ledger.summary()["requests"] == 0 and agent.ledger.summary()["cached_share"] == 1.0
    with pytest.raises(RunStoppedError, match="differs"):
        play(agent, TASKS, seed=1)


def test_a_session_that_ended_with_its_context_is_replayed(server: ChatServer, tmp_path: Path) -> None:
    cache = {"cache": "write", "cache_path": str(tmp_path / "answers.sqlite")}
    agent = checked(server, **cache)
    script_of(server, Said(OPEN))
    server.context_length = 1400
    bounds = Limits(max_turns=100, max_tokens_per_turn=100)
    recorded = records(play(agent, bounds=bounds))
    assert recorded[0]["stop_reason"] == "max_tokens"
    assert records(play(agent_at(server, **{**cache, "cache": "replay"}), bounds=bounds)) == recorded


def test_an_endpoint_that_stays_away_ends_the_run_and_what_was_finished_is_there(server: ChatServer) -> None:
    agent = checked(server, max_outage_s=0.3)
    finished: list[Trajectory] = []

    def ended(job: RolloutJob, trajectory: Trajectory) -> None:
        finished.append(trajectory)
        if len(finished) == 20:
            threading.Thread(target=lambda: setattr(server, "down", True)).start()

    jobs = [RolloutJob(task, row, 0) for row, task in enumerate([*TASKS] * 100)]
    with (
        closing(build_message_pool(agent)) as pool,
        pytest.raises(RunStoppedError, match="has answered nothing for"),
    ):
        pool.run(jobs, step=0, on_finish=ended)
    assert 20 <= len(finished) < 1200
    assert all(trajectory.productivity == 1.0 for trajectory in finished)


def test_an_endpoint_that_comes_back_costs_no_session(server: ChatServer) -> None:
    agent = checked(server)
    server.faults = {"500": 0.2, "429": 0.1, "cut": 0.1, "disconnect": 0.1}
    assert [trajectory.productivity for trajectory in play(agent, TASKS * 3)] == [1.0] * 36


def test_a_budget_ends_the_run(server: ChatServer) -> None:
    agent = checked(server, max_calls=12)
    with pytest.raises(RunStoppedError, match="max_calls 12"):
        play(agent, TASKS)
    assert len(server.requests) <= 12


# --- options ---------------------------------------------------------------------------------------------------------

WRONG: dict[str, dict[str, Any]] = {
    "agent.tool_calls": {"tool_calls": "always"},
    "agent.cache": {"cache": True},
    "agent.cache_path": {"cache": "write"},
    "agent.max_cost": {"max_cost": True},
    "agent.max_calls": {"max_calls": 0},
    "agent.model": {"model": ""},
    "agent.temperature": {"temperature": "hot"},
    "agent.max_cost.*input_price": {"max_cost": 3},
    "agent.tool_call: unknown.*tool_calls": {"tool_call": "text"},
    "agent.api_key: keys are read": {"api_key": "secret"},
}


@pytest.mark.parametrize("message", WRONG)
def test_options_that_cannot_be_used_are_named(message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{message}") as caught:
        EndpointAgent.from_options({"model": "m", **WRONG[message]})
    assert "secret" not in str(caught.value)


def test_every_option_of_its_own_is_tested() -> None:
    assert {f"agent.{name}" for name in OWN_OPTIONS} <= set(WRONG)


def test_defaults_leave_time_for_thoughts_and_can_be_changed() -> None:
    assert EndpointAgent.from_options({"model": "m"}).endpoint.timeout_s == 300
    assert EndpointAgent.from_options({"model": "m", "timeout_s": 5}).endpoint.timeout_s == 5


def test_tokens_of_a_turn_can_be_set_for_the_agent_alone(server: ChatServer) -> None:
    agent = checked(server, max_tokens=9000)
    play(agent)
    assert {request["max_tokens"] for request in server.requests} == {9000}
