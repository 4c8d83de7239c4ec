"""A person as the user, at a real (pseudo) terminal."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer
from desk import Desk

from ppp.chat.gateway import ChatEndpoint
from ppp.codec import Codec
from ppp.engines.scripted import ScriptedEngine
from ppp.environments.town import TownEnvironment, town_task_rows
from ppp.rollout import Limits, RolloutJob, RolloutPool
from ppp.types import Answer, Effort, RecipeError, RunStoppedError, Source, Task, ToolCall, Turn
from ppp.users.crowd import Crowd
from ppp.users.human import HumanService, HumanUser
from ppp.users.terminal import MAX_SHOWN_CHARS, Terminal, printable, quoted


def make_task(preference: str = "no_preference", name: str = "t") -> Task:
    row = next(town_task_rows("train", 1))
    return Task(name, "town", row["vague_prompt"], row["precise_prompt"], preference, row["payload"])


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def ask(desk: Desk, question: str, preference: str = "no_preference", **shared: Any) -> Answer:
    user = HumanUser(make_task(preference), {}, service=desk.service, **shared)
    return asyncio.run(user.answer(question, []))


@pytest.mark.parametrize(("key", "effort"), [("l", Effort.LOW), ("Medium", Effort.MEDIUM), ("h", Effort.HIGH)])
def test_a_person_answers_and_says_what_it_cost(desk: Desk, key: str, effort: Effort) -> None:
    desk.type("In the parser.", key)
    assert ask(desk, "Where?") == Answer("In the parser.", effort, True, "rule")
    task = make_task()
    assert task.precise_prompt in desk.screen and task.prompt in desk.screen and "  | Where?" in desk.screen


def test_what_cannot_be_an_answer_is_asked_again(desk: Desk) -> None:
    desk.type("", "  ", "In the parser.", "x", "", "l")
    assert ask(desk, "Where?") == Answer("In the parser.", Effort.LOW, True, "rule")


@pytest.mark.parametrize(("question", "follows"), [("WHERE?", True), ("Where?", False)])
def test_what_a_rule_decides_is_not_asked(desk: Desk, question: str, follows: bool) -> None:
    desk.type("Here.", "l", "n")
    answer = ask(desk, question, "capital")
    assert (answer.follows_preference, answer.decided_by) == (follows, "rule")


@pytest.mark.parametrize(("key", "follows"), [("y", True), ("n", False)])
def test_what_no_rule_decides_the_person_says(desk: Desk, key: str, follows: bool) -> None:
    desk.type("Here.", "l", key)
    answer = ask(desk, "Where?", "joke")
    assert (answer.follows_preference, answer.decided_by) == (follows, "person")


def test_a_layperson_is_not_shown_the_solution(desk: Desk) -> None:
    sources = (Source("gold", "the function f7", ("f7",), 5), Source("hints", "a hint", (), 2, is_gold=False))
    desk.type("Here.", "l", "y", "Here.", "l")
    ask(desk, "Where?", "amateur", sources=sources)
    assert "a hint" in desk.screen and "f7" not in desk.screen
    ask(desk, "Where?", sources=sources)
    assert "f7" in desk.screen


def test_a_person_who_leaves_ends_the_run(desk: Desk) -> None:
    desk.type("Here.\n\x04")
    with pytest.raises(RunStoppedError, match="has left"):
        ask(desk, "Where?")


class AskOnce:
    """Asks one question and finishes."""

    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall | None]:
        if not turns:
            return "", ToolCall("ask_user", {"query": f"Where is {task.task_id}?"})
        return "", ToolCall("finish", {"answer": "f1"})


def test_sessions_take_turns_and_no_deadline_hurries_a_person(desk: Desk, codec: Codec, monkeypatch: Any) -> None:
    monkeypatch.setattr(HumanUser, "open_service", classmethod(lambda cls, options: desk.service))
    limits = Limits(max_completion_tokens=4000, user_timeout_s=0.05, trajectory_timeout_s=0.3)
    pool = RolloutPool(ScriptedEngine(codec, AskOnce()), codec, limits, crowd=Crowd("human"))
    jobs = [RolloutJob(make_task(name=name), row, 0) for row, name in enumerate("abc")]
    shown: list[str] = []
    read_line = desk.terminal.read_line

    async def slowly() -> str:
        text = desk.screen.rpartition("The agent asks:")[2]
        shown.append(text.partition("?")[0])
        await asyncio.sleep(0.15)
        desk.type(f"At{shown[-1].rpartition(' ')[2]}" if len(shown) % 2 else "l")
        return await read_line()

    monkeypatch.setattr(desk.terminal, "read_line", slowly)
    try:
        trajectories = pool.run(jobs, step=0)
    finally:
        pool.close()
    assert [t.error for t in trajectories] == [None] * 3
    assert [t.answers[0].text for t in trajectories] == ["Ata", "Atb", "Atc"]
    assert shown[0::2] == shown[1::2], "answer and effort are asked for one question before the next one is shown"


HOSTILE = {
    "colours": ("\x1b[31mred\x1b[0m", "red"),
    "clearing the screen": ("\x1b[2J\x1b[Hhello", "hello"),
    "a title": ("\x1b]0;owned\x07hello", "hello"),
    "the clipboard": ("\x1b]52;c;ZXZpbA==\x1b\\hello", "hello"),
    "an unfinished sequence": ("\x1b]0;hello", "0;hello"),
    "eight-bit sequences": ("\x9b31mred\x9d0;owned\x9c", "red"),
    "going back over the line": ("bad\rgood\b\b\b\b", "bad\ngood"),
    "a bell and a null": ("a\x07b\x00c", "abc"),
    "other directions": ("abc\u202edef\u2066", "abcdef"),
    "invisible letters": ("a\u200bb\ufeffc", "abc"),
    "line separators": ("a\u2028b", "ab"),
    "a reset": ("\x1bchello", "hello"),
    "plain text": ("Wo ist é 日本 \t🙂?\nHere.", "Wo ist é 日本     🙂?\nHere."),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_an_agent_writes_cannot_steer_the_terminal(desk: Desk, name: str) -> None:
    text, expected = HOSTILE[name]
    assert printable(text) == expected
    desk.type("Here.", "l")
    ask(desk, text)
    assert not any((ord(letter) < 32 and letter != "\n") or 127 <= ord(letter) < 160 for letter in desk.screen)


def test_every_line_of_an_agent_is_marked_and_long_texts_are_cut() -> None:
    assert quoted("a\nYour answer> yes") == "  | a\n  | Your answer> yes"
    assert quoted("x" * 100_000).count("x") == MAX_SHOWN_CHARS


def test_without_a_terminal_there_is_nobody(tmp_path: Path) -> None:
    with (tmp_path / "in").open("w+") as file, pytest.raises(RecipeError, match="terminal"):
        asyncio.run(HumanService(Terminal(file, file)).check())


def test_several_processes_cannot_share_a_terminal(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="one process"):
        asyncio.run(desk.service.check())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mood": 1}, r"^eval_user\.mood: unknown"),
        ({"judge_model": 3}, r"^eval_user\.judge_model: 3 is not allowed"),
        ({"judge_model": {"modle": "x"}}, r"^eval_user\.judge_model\.modle"),
    ],
)
def test_a_person_has_no_option_but_a_judge(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Crowd({"kind": "human", **options}, "eval_user")


def judging(request: dict[str, Any]) -> dict[str, Any] | str:
    """Says of every answer that it comes from the report, and of every question that it is a joke."""
    if "response_format" not in request:
        return "OK"
    names = request["response_format"]["json_schema"]["schema"]["properties"]
    return {name: {"source": "task", "follows_preference": True}[name] for name in names}


JUDGED = {
    "what the report says": ("In the {module}.", "joke", Effort.LOW, True, "judge"),
    "what it does not say, whatever the judge says": ("It is {gold}.", "joke", Effort.HIGH, True, "judge"),
    "nothing": ("I don't know.", "joke", Effort.MEDIUM, True, "judge"),
    "with a rule for the question": ("In the {module}.", "capital", Effort.LOW, False, "evidence"),
}


@pytest.mark.parametrize("name", JUDGED)
def test_a_judge_takes_the_verdicts_off_the_person(desk: Desk, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Terminal, "has_person", True)  # the screen is a file here
    answer, preference, effort, follows, decided_by = JUDGED[name]
    payload = make_task().payload
    sources = TownEnvironment.sources(make_task())
    with ChatServer(judging) as server:
        service = HumanService(desk.terminal, ChatEndpoint("m", base_url=server.base_url))
        asyncio.run(service.check())
        desk.type(answer.format(module=payload["details"]["module"], gold=payload["gold"][0]))
        user = HumanUser(make_task(preference), {}, service=service, sources=sources)

        async def session() -> Answer:
            try:
                return await user.answer("Where is it?", [])
            finally:
                await service.close()

        found = asyncio.run(session())
    assert (found.effort, found.follows_preference, found.decided_by) == (effort, follows, decided_by)
    assert service.summary()["calls"] == (1 if preference == "capital" else 2)


def test_a_judge_that_cannot_be_reached_is_found_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Terminal, "has_person", True)
    service = HumanService(desk.terminal, ChatEndpoint("m", base_url="http://127.0.0.1:9/v1"))
    with pytest.raises(RecipeError, match=r"^user\.judge_model: m at "):
        asyncio.run(service.check())


def test_an_interrupt_at_a_question_ends_the_run_at_once(tmp_path: Path) -> None:
    """A real evaluation at a real terminal, in a process of its own."""
    keys, slave = pty.openpty()
    options = ["--tiny_model", "true", "--environments", "{town: 1}", "--train_tasks", "{town: {split: train, num: 8}}"]
    options += ["--eval_tasks", "{town: {split: test, num: 8}}", "--eval_preferences", "no_preference"]
    options += ["--agent", "always_ask", "--num_sessions", "4", "--output_dir", str(tmp_path / "run")]
    command = [sys.executable, "-m", "ppp.cli", "evaluate", *options, "--user", "human"]
    process = subprocess.Popen(command, stdin=slave, stdout=subprocess.DEVNULL, stderr=slave, start_new_session=True)
    os.close(slave)
    screen = b""
    deadline = time.monotonic() + 120
    while b"Your answer>" not in screen and time.monotonic() < deadline:
        screen += os.read(keys, 65536)
    process.send_signal(signal.SIGINT)
    try:
        while data := os.read(keys, 65536):
            screen += data
    except OSError:  # the terminal's other end is closed
        pass
    assert process.wait(timeout=60) == 130, screen.decode()
    assert "ppp evaluate: interrupted; 0 of 8 sessions" in screen.decode(), screen.decode()
    os.close(keys)
