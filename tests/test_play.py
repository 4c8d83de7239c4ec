"""`ppp play`: a person takes part at a terminal, and what is kept is an evaluation like all others."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest
import wcwidth
from chat_server import ChatServer

from ppp import evaluate, play, report
from ppp.build import build_codec, build_tokenizer
from ppp.codec import Codec
from ppp.demonstrations import read_trajectories
from ppp.environments.town import town_task_rows
from ppp.evaluation.records import base_task, read_records
from ppp.playroom.choosing import Wish, choose
from ppp.playroom.outcome import reward_sum, show_outcome
from ppp.playroom.settings import parse_arguments
from ppp.playroom.watching import call_text, shortened
from ppp.recipe import read_recipe
from ppp.rewards import RewardSettings, score_trajectory
from ppp.token_log import TOKENS_FILE
from ppp.types import Answer, Effort, StopReason, Task, ToolCall, Trajectory, Turn
from ppp.users.terminal import Terminal
from ppp.warmstart_config import WarmstartConfig

ROWS = list(town_task_rows("test", 400))
TASK = ROWS[0]
MODULE, OPERATION, OBJECT = (TASK["payload"]["details"][name] for name in ("module", "operation", "object"))
GOLD = TASK["payload"]["gold"][0]
ONE_TASK = ("--task", TASK["task_id"])


class Screen:
    """The standard streams of this process as a terminal: everything is typed in advance, and what is shown is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def play(self, *argv: str, lines: Sequence[str] = ()) -> tuple[int, str]:
        """The exit status of `ppp play`, and the screen."""
        keys, slave = pty.openpty()
        shown = io.BytesIO()

        def watch() -> None:
            try:
                while data := os.read(keys, 65536):
                    shown.write(data)
            except OSError:  # the other end is closed
                pass

        watcher = threading.Thread(target=watch)
        watcher.start()
        with os.fdopen(slave, "r") as reader, os.fdopen(os.dup(slave), "w") as writer:
            self.monkeypatch.setattr(sys, "stdin", reader)
            self.monkeypatch.setattr(sys, "stderr", writer)
            os.write(keys, "".join(f"{line}\n" for line in lines).encode())
            status = play.main(argv)
            self.monkeypatch.undo()
        watcher.join()
        os.close(keys)
        return status, shown.getvalue().decode().replace("\r\n", "\n")


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    return Screen(monkeypatch)


def records_of(folder: Path) -> list[dict[str, Any]]:
    """All sessions, every one of them whole."""
    found = read_records(folder / "results.jsonl")
    assert not found.damaged
    return found.records


def manifest_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "evaluation.json").read_text(encoding="utf-8")))


# --- at a real terminal, in a process of its own ---------------------------------------------------------------------


@contextmanager
def spawned(*argv: str, columns: int = 80) -> Iterator[pexpect.spawn]:
    child = pexpect.spawn(
        sys.executable,
        ["-m", "ppp.cli", "play", *argv],
        dimensions=(50, columns),
        encoding="utf-8",
        timeout=60,
        env={**os.environ, "TERM": "xterm", "PYTHONUNBUFFERED": "1"},
    )
    child.logfile_read = io.StringIO()
    try:
        yield child
    finally:
        child.close(force=True)


def say(child: pexpect.spawn, prompt: str, line: str) -> None:
    child.expect_exact(prompt)
    child.sendline(line)


def test_a_person_plays_the_agent_and_the_sessions_are_evaluated_shown_and_learned_from(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    with spawned("--as", "agent", *ONE_TASK, "--preference", "commas", "--output_dir", str(folder)) as child:
        say(child, "Your call> ", "opne_file")
        child.expect_exact("Did you mean open_file?")
        say(child, "Your call> ", "ask_user")
        say(child, "query> ", "Which module and which object is it?")
        child.expect_exact("The user answers:")
        say(child, "Your call> ", f"open_file {MODULE}/{OPERATION}.py")
        child.expect_exact("Functions: ")
        say(child, "Your call> ", "finish <<")
        say(child, "... ", GOLD)
        say(child, "... ", ">>")
        child.expect_exact("The session is over.")
        child.expect("productivity +1.00")
        child.expect("question 1 +low effort, put as this user likes it")
        child.expect("session effort +low")
        child.expect("1.00 productivity \\+ 0.05 proactivity \\+ 0.05 personalization")
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 0
    (record,) = records_of(folder)
    assert record["mode"] == "play" and record["slice"] == "vague_unseen"
    assert record["precise_prompt"] == TASK["precise_prompt"]
    assert [turn["call"]["name"] for turn in record["turns"]] == ["ask_user", "open_file", "finish"]
    manifest = manifest_of(folder)
    assert manifest["agent"] == {"kind": "person", "name": "person"} and manifest["user"] == {"kind": "scripted"}

    assert evaluate.main(["--results", str(folder), "--output_dir", str(tmp_path / "summary")]) == 0
    summary = json.loads((tmp_path / "summary" / "summary.json").read_text())
    assert summary["vague_unseen"]["productivity"] == summary["vague_unseen"]["personalization"] == 100.0
    assert json.loads((folder / "summary.json").read_text())["vague_unseen"] == summary["vague_unseen"]
    page = tmp_path / "page.html"
    assert report.main([str(folder), "--output", str(page)]) == 0 and page.stat().st_size > 10_000

    rows, codec = warm_start_rows(folder)
    (row,) = rows
    own = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label >= 0]
    assert "Which module and which object is it?" in codec.decode(own) and GOLD in codec.decode(own)
    assert "The user answers" not in codec.decode(row["input_ids"])


def warm_start_rows(folder: Path) -> tuple[list[dict[str, list[int]]], Codec]:
    """The rows that a warm start makes of the sessions in a folder."""
    recipe = read_recipe(
        [
            *("--tiny_model", "true", "--environments", "{town: 1}", "--train_tasks", "{town: {split: train, num: 8}}"),
            *("--warmstart.trajectories", f"[{folder / 'results.jsonl'}]", "--use_cpu", "true", "--bf16", "false"),
        ]
    )
    codec = build_codec(recipe, build_tokenizer(recipe))
    return read_trajectories(recipe, WarmstartConfig.of(recipe.config), codec), codec


def test_a_person_plays_the_user_without_hurry_and_leaves_by_an_interrupt(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    argv = ["--as", "user", "--agent", "always_ask", *ONE_TASK, "--preference", "capital", "--num_sessions", "2"]
    limits = ["--limits.trajectory_timeout_s", "0.5", "--limits.user_timeout_s", "0.1"]
    with spawned(*argv, *limits, "--output_dir", str(folder), columns=44) as child:
        child.expect_exact("Your report")
        child.expect_exact("You could find out (gold_functions)")
        child.expect_exact("capital letters")
        child.expect_exact("The agent, turn 1 of")
        child.expect_exact("The agent asks:")
        with pytest.raises(pexpect.TIMEOUT):
            child.expect_exact("over", timeout=1.5)  # longer than any deadline of the session
        child.sendline(f"The {MODULE}, {OPERATION} the {OBJECT}.")
        say(child, "> ", "l")
        child.expect_exact("calls:")
        child.expect(f'open_file\\(path="{MODULE}/{OPERATION}.py"\\)')
        child.expect_exact("gets back:")
        child.expect_exact("answers:")
        child.expect_exact(GOLD)
        child.expect_exact("The session is over.")
        child.expect("low effort, NOT put as you")
        child.expect("capital: broken")
        child.expect(r"0.50\s+personalization = 0.55")
        say(child, "Enter begins the next session, Ctrl-D leaves> ", "")
        child.expect_exact("Your answer> ")
        child.kill(signal.SIGINT)
        child.expect("The session that was under way has no end and is not kept. 1 finished session in")
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 130
        assert isinstance(child.logfile_read, io.StringIO)
        shown = child.logfile_read.getvalue().replace("\x1b[0m", "").split("\r\n")
    assert "\x1b[1m" in "".join(shown), "headings stand out"
    assert "".join(shown).count("gets back:") == 1, "what the person has just typed is not shown again"
    quoted = [line for line in shown if line.startswith("  | ")]
    assert quoted and all(wcwidth.width(line) <= 44 for line in quoted)
    (record,) = records_of(folder)
    assert record["turns"][0]["answer"] == {
        "text": f"The {MODULE}, {OPERATION} the {OBJECT}.",
        "effort": "low",
        "follows_preference": False,
        "decided_by": "rule",
    }
    assert record["score"]["personalization"] == -0.5 and not record["error"]
    assert manifest_of(folder)["user"] == {"kind": "human"}


# --- in this process -------------------------------------------------------------------------------------------------


def test_later_sessions_are_added_and_are_others(screen: Screen, tmp_path: Path) -> None:
    argv = ["--as", "agent", "--output_dir", str(tmp_path)]
    assert screen.play(*argv, "--num_sessions", "2", lines=["finish f1", "", "finish f1"])[0] == 0
    assert screen.play(*argv, "--preference", "capital", lines=["finish f1"])[0] == 0
    assert screen.play(*argv, "--prompt", "precise", "--seed", "7", lines=["finish f1"])[0] == 0
    records = records_of(tmp_path)
    assert len(records) == 4 == len({(base_task(record), record["row"]) for record in records})
    assert len({record["row"] for record in records}) == 4, "two sessions with one number would be one session"
    assert [record["slice"] for record in records[2:]] == ["vague_unseen", "precise"]
    assert records[2]["preference"] == "capital" and records[3]["precise_prompt"] is None
    status, shown = screen.play("--as", "user", "--agent", "never_ask", "--output_dir", str(tmp_path))
    assert status == 2 and "holds another evaluation, whose agent.kind is 'person' and not 'policy'" in shown


@pytest.mark.parametrize("where", ["at a question", "at a value", "between sessions"])
def test_a_person_who_leaves_keeps_what_is_finished(where: str, screen: Screen, tmp_path: Path) -> None:
    lines = {
        "at a question": ["finish f1", "", "\x04"],
        "at a value": ["finish f1", "", "finish", "\x04"],
        "between sessions": ["finish f1", "\x04"],
    }[where]
    status, shown = screen.play("--as", "agent", "--num_sessions", "3", "--output_dir", str(tmp_path), lines=lines)
    assert len(records_of(tmp_path)) == 1 and "1 finished session in" in shown
    assert status == (0 if where == "between sessions" else 1)
    assert ("no end and is not kept" in shown) == (where != "between sessions")


def test_a_person_who_leaves_at_once_keeps_nothing(screen: Screen, tmp_path: Path) -> None:
    status, shown = screen.play("--as", "user", "--agent", "always_ask", "--output_dir", str(tmp_path), lines=["\x04"])
    assert status == 1 and "No finished sessions in" in shown and not records_of(tmp_path)
    assert not (tmp_path / "summary.json").exists()


ESCAPES = "\x1b[2J\x1b]0;owned\x07\u202e\x9b31m"


def hostile(request: dict[str, Any]) -> str:
    """An agent that writes what could steer a terminal: beside its calls, in them, and in a tool's name."""
    turn = sum(message["role"] == "assistant" for message in request["messages"])
    spoof = f"{ESCAPES}\nYour answer> yes{' ' * 100}Your answer> yes"
    call = [
        {"name": "ask_user", "arguments": {"query": f"Which module?{spoof}"}},
        {"name": f"open_{ESCAPES}", "arguments": {"path": spoof}},
        {"name": "finish", "arguments": {"answer": f"f1{spoof}"}},
    ][turn]
    return f"<think>{spoof}</think>Hm.{spoof}\n<tool_call>{json.dumps(call)}</tool_call>"


def test_an_agent_behind_an_endpoint_cannot_steer_the_terminal(screen: Screen, tmp_path: Path) -> None:
    with ChatServer(hostile) as server:
        agent = f"{{kind: endpoint, model: m, base_url: '{server.base_url}', tool_calls: text}}"
        argv = ["--as", "user", "--agent", agent, *ONE_TASK, "--preference", "no_preference", "--user", "human"]
        status, shown = screen.play(*argv, "--output_dir", str(tmp_path), lines=["In the parser.", "l"])
    assert status == 0, shown
    plain = shown.replace("\x1b[0m", "")
    for style in ("1", "2", "31", "32", "33"):  # our own
        plain = plain.replace(f"\x1b[{style}m", "")
    assert not any((ord(letter) < 32 and letter != "\n") or 127 <= ord(letter) < 160 for letter in plain)
    assert "\u202e" not in plain
    assert [line for line in plain.split("\n") if wcwidth.width(line) > 80] == []
    assert [line for line in plain.split("\n") if line.startswith("Your answer> yes")] == []
    assert "thinks:" in plain and "is told of a mistake:" in plain
    (record,) = records_of(tmp_path)
    assert record["turns"][0]["answer"]["text"] == "In the parser."


def test_a_model_of_ours_plays_and_its_tokens_are_kept(screen: Screen, tmp_path: Path) -> None:
    argv = ["--as", "user", "--tiny_model", "true", "--limits.max_turns", "2", "--max_completion_length", "40"]
    argv += ["--limits.max_tokens_per_turn", "10", "--use_cpu", "true", "--bf16", "false"]
    status, shown = screen.play(*argv, *ONE_TASK, "--output_dir", str(tmp_path))
    assert status == 0 and "used up all" in shown, shown
    (record,) = records_of(tmp_path)
    (line,) = [json.loads(text) for text in (tmp_path / TOKENS_FILE).read_text().splitlines()]
    assert (line["mode"], line["row"]) == ("play", record["row"]) and len(line["pieces"]) == len(line["own"])


def test_a_user_played_by_a_model_and_what_it_cost(screen: Screen, tmp_path: Path) -> None:
    def reply(request: dict[str, Any]) -> str | dict[str, Any]:
        if "response_format" not in request:
            return "OK"
        return {"answer": f"It is {MODULE}.", "source": "task", "follows_preference": True}

    with ChatServer(reply) as server:
        user = f"{{kind: llm, model: m, base_url: '{server.base_url}', input_price: 1, output_price: 1}}"
        argv = ["--as", "agent", "--user", user, *ONE_TASK, "--preference", "joke", "--output_dir", str(tmp_path)]
        status, shown = screen.play(*argv, lines=["ask_user Which module?", f"finish {GOLD}"])
    assert status == 0, shown
    assert f"  | It is {MODULE}." in shown and "(decided by a judge)" in shown
    assert "The models of all sessions took 0.00" in shown
    assert manifest_of(tmp_path)["user"]["model"] == "m" and (tmp_path / "user_ledger.json").is_file()


def test_a_session_that_fails_counts_for_nothing_and_is_told(screen: Screen, tmp_path: Path) -> None:
    with ChatServer() as server:
        user = f"{{kind: llm, model: m, base_url: '{server.base_url}', max_retries: 0}}"
        server.script = [None, "wrong_schema", "wrong_schema", "wrong_schema", "wrong_schema", "wrong_schema"]
        argv = ["--as", "agent", "--user", user, *ONE_TASK, "--output_dir", str(tmp_path)]
        status, shown = screen.play(*argv, lines=["ask_user Which module?", "finish f1"])
    assert status == 0 and "counts for nothing" in shown, shown
    (record,) = records_of(tmp_path)
    assert record["session"] is None


def test_the_tasks_are_listed_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert play.main(["--list"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == [TASK["task_id"], *TASK["vague_prompt"].split()]
    assert len(shown) == len(ROWS) + 2 and "lang_multi" in shown[-1]


def test_without_a_terminal_nobody_plays(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for argv in (["--as", "agent"], ["--as", "user", "--agent", "always_ask"]):
        assert play.main([*argv, "--output_dir", str(tmp_path / "new")]) == 2
        told = capsys.readouterr().err
        assert told.startswith("ppp play: as: ") and "terminal" in told and len(told.splitlines()) == 1
    assert not (tmp_path / "new").exists()


REFUSED: dict[str, tuple[list[str], str]] = {
    "no role": ([], "as: missing"),
    "another role": (["--as", "judge"], "as: invalid choice: 'judge'"),
    "a role without a value": (["--as"], "as: expected one argument"),
    "an agent beside oneself": (["--as", "agent", "--agent", "always_ask"], "agent: 'always_ask' is not allowed; you"),
    "nobody as the agent": (["--as", "user"], "agent: missing"),
    "an unknown agent": (["--as", "user", "--agent", "nobody"], "agent: 'nobody' is unknown"),
    "another user": (["--as", "user", "--agent", "always_ask", "--user", "scripted"], "user.kind: 'scripted'"),
    "oneself as the user": (["--as", "agent", "--user", "human"], "user.kind: 'human'"),
    "no questions": (["--as", "user", "--agent", "always_ask", "--interaction", "false"], "interaction: False"),
    "an option of evaluate": (["--as", "agent", "--preferences", "all"], "preferences: no option of ppp play"),
    "another one": (["--as", "agent", "--baseline.model", "m"], "baseline: no option of ppp play"),
    "an unknown option": (["--as", "agent", "--agnt", "x"], "option: '--agnt' is unknown"),
    "no session": (["--as", "agent", "--num_sessions", "0"], "num_sessions: 0 is not allowed"),
    "half a session": (["--as", "agent", "--num_sessions", "half"], "num_sessions: invalid int value: 'half'"),
    "an unknown prompt": (["--as", "agent", "--prompt", "loud"], "prompt: invalid choice: 'loud'"),
    "an unknown environment": (["--as", "agent", "--environment", "moon"], "moon"),
    "a recipe that is not there": (["--as", "agent", "--config", "nowhere.yaml"], "config: 'nowhere.yaml'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_at_the_command_line_is_told_in_a_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, told = REFUSED[name]
    assert play.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("ppp play: ") and told in error and len(error.splitlines()) == 1


WISHES: dict[str, tuple[list[str], str]] = {
    "no such task": (["--task", "town-test-0-999"], "task: 'town-test-0-999' is unknown"),
    "no such preference": (["--preference", "capitol"], "did you mean 'capital'?"),
    "a user who would punish silence": (["--preference", "answer_more", "--prompt", "precise"], "'answer_more' is not"),
}


@pytest.mark.parametrize("name", WISHES)
def test_a_wish_that_cannot_be_granted_is_told(name: str, screen: Screen, tmp_path: Path) -> None:
    argv, told = WISHES[name]
    status, shown = screen.play("--as", "agent", *argv, "--output_dir", str(tmp_path / "new"))
    assert status == 2 and told in shown and not (tmp_path / "new").exists()


def test_the_folder_tells_who_plays_with_whom() -> None:
    folders = {
        parse_arguments(argv).output_dir
        for argv in (
            ["--as", "agent"],
            ["--as", "user", "--agent", "always_ask"],
            ["--as", "user", "--agent", "never_ask"],
            ["--as", "agent", "--user", "{kind: llm, model: m}"],
        )
    }
    names = ["agent-with-llm", "agent-with-scripted", "user-with-always_ask", "user-with-never_ask"]
    assert sorted(str(folder) for folder in folders) == [f"runs/play/town-{name}" for name in names]


def test_help_gives_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        play.main(["--help"])
    assert ended.value.code == 0 and "ppp play --as user --agent always_ask" in capsys.readouterr().out


# --- which session ---------------------------------------------------------------------------------------------------

PREFERENCES = ["capital", "no_ask", "answer_more"]


def test_a_draw_depends_on_the_seed_and_on_what_was_played() -> None:
    first = choose(Wish(), ROWS, PREFERENCES, [], 0)
    assert first == choose(Wish(), ROWS, PREFERENCES, [], 0) != choose(Wish(), ROWS, PREFERENCES, [], 1)
    played = [first]
    for _ in range(30):
        played.append(choose(Wish(), ROWS, PREFERENCES, played, 0))
    assert len({session.number for session in played}) == 31 and len({s.task.task_id for s in played}) > 20
    assert {session.task.preference for session in played} == set(PREFERENCES)


def test_a_wish_is_granted_and_a_task_without_a_vague_prompt_is_precise() -> None:
    for prompt, is_precise in (("vague", False), ("precise", True), (None, False)):
        session = choose(Wish(TASK["task_id"], "no_ask", prompt), ROWS, PREFERENCES, [], 0)
        assert base_task(vars_of(session.task)) == TASK["task_id"] and session.task.preference == "no_ask"
        assert session.task.is_precise == is_precise and (session.slice == "precise") == is_precise
    only_precise = [{**TASK, "vague_prompt": None}]
    sessions = [choose(Wish(), only_precise, PREFERENCES, [], seed) for seed in range(20)]
    assert {session.task.preference for session in sessions} == {"capital", "no_ask"}, "answer_more punishes silence"


def vars_of(task: Task) -> dict[str, Any]:
    return {"task_id": task.task_id, "preference": task.preference, "is_precise": task.is_precise}


# --- what is shown ---------------------------------------------------------------------------------------------------


def session(*answers: Answer, productivity: float = 1.0, preference: str = "capital") -> Trajectory:
    task = Task("t/capital", "town", TASK["vague_prompt"], TASK["precise_prompt"], preference, TASK["payload"])
    turns = [Turn([1], [0.0], {"content": ""}, question="Where?", answer=answer) for answer in answers]
    return Trajectory(task, [1], turns, StopReason.FINISHED, productivity, "f1")


def shown_outcome(trajectory: Trajectory, rewards: RewardSettings, *, is_agent: bool = False) -> str:
    screen = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with open(os.devnull) as nobody:
        show_outcome(Terminal(nobody, screen), trajectory, score_trajectory(trajectory, rewards), rewards,
                     is_agent=is_agent)  # fmt: skip
    screen.seek(0)
    return screen.read()


LOW, MEDIUM = Answer("In x.", Effort.LOW, True), Answer("No idea.", Effort.MEDIUM, False, "judge")
SUMS = {
    "as it is": (
        session(LOW),
        {},
        "1.00 productivity + 0.05 proactivity + 0.05 personalization = 1.10, limited to 1.00",
    ),
    "costs": (session(LOW, MEDIUM), {}, "1.00 productivity - 0.10 proactivity - 0.50 personalization = 0.40"),
    "weights": (
        session(LOW),
        {"weights": {"proactivity": 2, "personalization": 0}, "reward_clip": None},
        "1.00 productivity + 2 x 0.05 proactivity + 0 x 0.05 personalization = 1.10",
    ),
    "below nothing": (
        session(MEDIUM, productivity=0.0),
        {},
        "0.00 productivity - 0.10 proactivity - 0.50 personalization = -0.60, limited to 0.00",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SUMS)
def test_the_reward_is_a_sum_that_adds_up(name: str) -> None:
    trajectory, settings, expected = SUMS[name]
    rewards = RewardSettings(**settings)
    score = score_trajectory(trajectory, rewards)
    assert score is not None and reward_sum(score, rewards) == expected


def test_a_reward_may_begin_with_a_cost() -> None:
    assert reward_sum({"proactivity": -0.1, "reward": -0.1}, RewardSettings()) == "-0.10 proactivity = -0.10"


def test_the_outcome_tells_each_question_and_who_decided() -> None:
    shown = shown_outcome(session(LOW, MEDIUM), RewardSettings())
    assert "The agent gave an answer." in shown and "capital: broken" in shown
    assert "question 1      low effort, put as you like it (decided by a rule)" in shown
    assert "question 2      medium effort, NOT put as you like it (decided by a judge)" in shown
    assert "session effort  medium" in shown


def test_silence_is_told_for_what_it_is() -> None:
    shown = " ".join(shown_outcome(session(productivity=0.5), RewardSettings(), is_agent=True).split())
    assert "You gave an answer." in shown and "questions none were asked" in shown
    assert "session effort high (nothing was asked, and the answer is wrong)" in shown
    assert "capital: nothing was asked that could have followed it" in shown
    assert "no_ask: followed" in shown_outcome(session(preference="no_ask"), RewardSettings())


CALLS = {
    "short": (ToolCall("open_file", {"path": "a.py"}), 'open_file(path="a.py")'),
    "several": (ToolCall("view", {"path": "a", "range": [1, 2]}), 'view(path="a", range=[1, 2])'),
    "lines": (ToolCall("bash", {"command": "a\nb", "timeout": 3}), "bash\ncommand:\na\nb\ntimeout:\n3"),
    "the answer": (ToolCall("finish", {"answer": "f1\nf2"}), "f1\nf2"),
    "no answer": (ToolCall("finish", {"answr": "f1"}), 'finish(answr="f1")'),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_shown_as_people_write_it(name: str) -> None:
    call, expected = CALLS[name]
    assert call_text(call) == expected


def test_long_observations_are_shortened_and_say_by_how_much() -> None:
    assert shortened("a\nb\n") == "a\nb"
    assert shortened("\n".join("abcdefghij")) == "a\nb\nc\nd\ne\nf\ng\nh\n[2 more lines]"
    assert shortened("x" * 1000).endswith("x\n[400 more characters]")
