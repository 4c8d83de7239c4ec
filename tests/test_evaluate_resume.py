"""What is promised of an evaluation that ends before its time: the same command goes on, and nothing is lost, played
twice, or other than it would have been.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from agent_server import AgentServer

from ppp import evaluate as evaluation
from ppp.baselines import POLICIES
from ppp.baselines.town import AlwaysAsk
from ppp.environments.town import town_task_rows
from ppp.evaluation.folder import RESULTS_FILE, SUMMARY_FILE, EvaluationFolder
from ppp.evaluation.plan import Counts, plan_sessions
from ppp.types import InfrastructureError, RecipeError, Task, ToolCall, Turn

IN_FLIGHT = 64
PATIENCE_S = 120
RULES = ("--environment", "town", "--agent", "always_ask", "--sessions_per_preference", "1")  # 20 vague, 11 precise
NUM_SESSIONS = 31


def run(folder: Path, *options: str) -> int:
    return evaluation.main(["--output_dir", str(folder), *options])


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The sessions of a folder in the order of the plan, without what no two runs share."""
    lines = (folder / RESULTS_FILE).read_text(encoding="utf-8").splitlines()
    records = sorted(map(json.loads, lines), key=lambda record: record["row"])
    for record in records:
        del record["timings"]
    return records


def read_scores(folder: Path) -> dict[str, Any]:
    """The summary of a folder, without what depends on the clock and on how often somebody was asked."""
    summary: dict[str, Any] = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    return {name: value for name, value in summary.items() if name not in ("wall_s", "cost")}


def start(folder: Path, *options: str, is_deaf: bool = False) -> subprocess.Popen[str]:
    """`ppp evaluate` in a process of its own, on request one that ignores SIGINT, as scripts start it with &."""
    command = [sys.executable, "-m", "ppp.evaluate", "--output_dir", str(folder), *options]
    if is_deaf:
        command = ["sh", "-c", 'trap "" INT; exec "$@"', "deaf", *command]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline, "the evaluation does not get there"
        time.sleep(0.05)


def stop_in_the_middle(
    server: AgentServer, folder: Path, options: Sequence[str], how: signal.Signals, *, is_deaf: bool = False
) -> str:
    """Run an evaluation up to where the server pauses, and send it a signal with sessions in flight; what it says."""
    process = start(folder, *options, is_deaf=is_deaf)
    try:
        wait_until(lambda: not server.resume.is_set() and server.num_in_flight >= IN_FLIGHT, process)
        process.send_signal(how)
        said = process.communicate(timeout=PATIENCE_S)[1]
    finally:
        process.kill()
        server.pause_after = None
        server.resume.set()
    while server.num_in_flight:  # what it answers to those who are gone
        time.sleep(0.05)
    assert process.returncode == (-how if how is signal.SIGKILL else 130)
    return said


def endpoint(server: AgentServer, *options: str) -> list[str]:
    agent = ("--agent", "endpoint", "--agent.model", "m", "--agent.base_url", server.base_url)
    return [*agent, "--max_concurrency", str(IN_FLIGHT), *options]


def check_kill_and_resume(server: AgentServer, folder: Path, options: Sequence[str], num_sessions: int) -> None:
    """Kill an evaluation in the middle, go on with it, and compare it with one that nobody disturbed."""
    stop_in_the_middle(server, folder / "killed", options, signal.SIGKILL)
    lines = (folder / "killed" / RESULTS_FILE).read_text(encoding="utf-8").splitlines()
    finished = [json.loads(line)["row"] for line in lines]
    assert 0 < len(finished) <= num_sessions - IN_FLIGHT
    assert not (folder / "killed" / SUMMARY_FILE).exists()
    before = server.num_turns
    assert run(folder / "killed", *options) == 0
    turns_of_the_rest = server.num_turns - before
    resumed = read_records(folder / "killed")
    rows = [record["row"] for record in resumed]
    assert len(rows) == len(set(rows)) == num_sessions, "no session twice, none missing"
    assert server.max_in_flight >= IN_FLIGHT
    played_again = sum(len(record["turns"]) for record in resumed if record["row"] not in finished)
    assert turns_of_the_rest == played_again
    assert run(folder / "whole", *options) == 0
    assert resumed == read_records(folder / "whole")
    assert read_scores(folder / "killed") == read_scores(folder / "whole")


@pytest.fixture
def server() -> Iterator[AgentServer]:
    with AgentServer("town") as server:
        yield server


def test_a_killed_evaluation_of_an_endpoint_goes_on_and_ends_as_if_nothing_had_happened(
    server: AgentServer, tmp_path: Path
) -> None:
    server.pause_after = 200
    options = endpoint(server, "--environment", "town", "--sessions_per_preference", "6")
    check_kill_and_resume(server, tmp_path, options, num_sessions=20 * 6 + 11 * 6)
    again = server.num_requests
    assert run(tmp_path / "killed", *options) == 0
    assert server.num_requests == again, "a finished evaluation asks nobody"
    slow = [*options, "--max_concurrency", "3"]
    assert run(tmp_path / "slow", *slow) == 0
    assert read_records(tmp_path / "slow") == read_records(tmp_path / "whole"), "timing changes nothing"
    assert run(tmp_path / "other", *options, "--seed", "1") == 0
    assert read_records(tmp_path / "other") != read_records(tmp_path / "whole"), "the seed does"


@pytest.mark.skipif(
    "PPP_TEST_DATA" not in os.environ or "PPP_TEST_MIRRORS" not in os.environ,
    reason="PPP_TEST_DATA (a folder with swe/funcloc_dev.jsonl) and PPP_TEST_MIRRORS (clones of pytest-dev/pytest and "
    "sphinx-doc/sphinx) are not both set",
)
def test_a_killed_evaluation_of_an_endpoint_on_real_issues_goes_on(tmp_path: Path) -> None:
    issues = Path(os.environ["PPP_TEST_DATA"]) / "swe" / "funcloc_dev.jsonl"
    tasks = {"path": str(issues), "repositories": os.environ["PPP_TEST_MIRRORS"], "skip_empty_gold": True}
    with AgentServer("func_loc", pause_after=1500) as server:
        options = endpoint(
            server,
            *("--environment", "func_loc", "--environment_options.func_loc.toolset", "read"),
            *("--tasks", json.dumps(tasks), "--sessions_per_preference", "5"),
        )
        check_kill_and_resume(server, tmp_path, options, num_sessions=20 * 5 + 11 * 5)
    records = read_records(tmp_path / "killed")
    assert {record["error"] for record in records} == {None}
    assert Counter(record["stop_reason"] for record in records)["finished"] > 100
    summary = read_scores(tmp_path / "killed")
    assert summary["vague"]["productivity"] > 0 and summary["precise"]["productivity"] > 0
    assert summary["vague"]["num_tasks"] > 50


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_says_how_far_it_is_and_how_to_go_on(how: signal.Signals, server: AgentServer, tmp_path: Path) -> None:
    server.pause_after = 150
    options = endpoint(server, "--environment", "town", "--sessions_per_preference", "4")
    said = stop_in_the_middle(server, tmp_path / "run", options, how)
    num_saved = len(read_records(tmp_path / "run"))
    assert num_saved > 0
    told = f"interrupted; {num_saved} of 124 sessions are saved in {tmp_path / 'run'}; the same command goes on"
    assert told in " ".join(said.split("\n")[-2:])
    spent = json.loads((tmp_path / "run" / "user_ledger.json").read_text())["agent"]["requests"]
    assert spent == server.num_requests
    assert run(tmp_path / "run", *options) == 0
    ledger = json.loads((tmp_path / "run" / "user_ledger.json").read_text())
    assert ledger["agent"]["requests"] == server.num_requests, "the account goes on"
    assert ledger["sessions"] == {"played": 124, "left_out": {}}


def test_a_background_job_that_ignores_ctrl_c_is_still_ended_by_sigterm(server: AgentServer, tmp_path: Path) -> None:
    server.pause_after = 150
    options = endpoint(server, "--environment", "town", "--sessions_per_preference", "4")
    said = stop_in_the_middle(server, tmp_path, options, signal.SIGTERM, is_deaf=True)
    num_saved = len(read_records(tmp_path))
    assert num_saved > 0 and f"interrupted; {num_saved} of 124 sessions are saved" in said
    assert "Traceback" not in said


def test_a_used_up_budget_can_be_raised(
    server: AgentServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = endpoint(server, "--environment", "town", "--sessions_per_preference", "1")
    assert run(tmp_path, *options, "--agent.max_calls", "60") == 1
    first = capsys.readouterr().err
    assert "The budget is used up: max_calls 60" in first and "the same command goes on" in first
    sent = server.num_requests
    assert run(tmp_path, *options, "--agent.max_calls", "60") == 1, "what was spent before counts"
    assert server.num_requests == sent
    assert run(tmp_path, *options, "--agent.max_calls", "600") == 0
    assert len(read_records(tmp_path)) == NUM_SESSIONS


def test_prices_give_the_cost_of_agent_and_users(
    server: AgentServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = ("--agent.input_price", "1", "--agent.output_price", "2")
    assert run(tmp_path, *endpoint(server, "--environment", "town", "--sessions_per_preference", "1"), *prices) == 0
    summary = json.loads((tmp_path / SUMMARY_FILE).read_text())
    account = json.loads((tmp_path / "user_ledger.json").read_text())["agent"]
    expected = (account["prompt_tokens"] + 2 * account["completion_tokens"]) / 1e6
    assert summary["cost"] == {"agent": pytest.approx(expected)}
    shown = capsys.readouterr()
    assert f"cost: agent {expected:.4f} USD" in shown.out
    assert f"0 failed, {expected:.4f} USD" in shown.err


# --- what may stand in the file that is gone on with ------------------------------------------------------------------


def test_torn_and_damaged_lines_are_told_and_their_sessions_played_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(tmp_path / "whole", *RULES) == run(tmp_path / "cut", *RULES) == 0
    results = tmp_path / "cut" / RESULTS_FILE
    lines = results.read_bytes().splitlines(keepends=True)
    damaged = [lines[0], lines[1][:50] + b"\n", *lines[2:9], lines[4], lines[9][:-20]]  # one twice, the last one torn
    results.write_bytes(b"".join(damaged))
    assert run(tmp_path / "cut", *RULES) == 0
    told = [record.getMessage() for record in caplog.records if "its session is played again" in record.getMessage()]
    assert [f"line {number}:" in text for number, text in zip((2, 11), told, strict=True)] == [True, True]
    assert read_records(tmp_path / "cut") == read_records(tmp_path / "whole")


def test_a_last_line_that_lacks_only_its_end_keeps_its_session(tmp_path: Path) -> None:
    assert run(tmp_path / "whole", *RULES) == run(tmp_path / "cut", *RULES) == 0
    results = tmp_path / "cut" / RESULTS_FILE
    results.write_bytes(b"".join(results.read_bytes().splitlines(keepends=True)[:9]).removesuffix(b"\n"))
    assert run(tmp_path / "cut", *RULES) == 0
    assert read_records(tmp_path / "cut") == read_records(tmp_path / "whole")


def test_a_full_disk_stops_an_evaluation_in_a_sentence_and_it_goes_on_when_there_is_room(tmp_path: Path) -> None:
    options = ("--environment", "town", "--agent", "always_ask", "--preferences", "no_preference")
    options += ("--sessions_per_preference", "20")
    command = [sys.executable, "-m", "ppp.evaluate", "--output_dir", str(tmp_path / "full"), *options]
    limited = ["bash", "-c", 'ulimit -f 30 && exec "$@"', "limited", *command]  # no file above 30 KiB
    stopped = subprocess.run(limited, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    last = stopped.stderr.splitlines()[-1]
    assert stopped.returncode == 1 and last.startswith("ppp evaluate: ") and "Traceback" not in stopped.stderr
    assert "cannot be written" in last and "of 40 sessions are saved" in last
    assert run(tmp_path / "full", *options) == run(tmp_path / "whole", *options) == 0
    assert read_records(tmp_path / "full") == read_records(tmp_path / "whole")


class OftenLost(AlwaysAsk):
    """Stands for an engine that is lost in the middle of some sessions."""

    is_down = True

    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall]:
        if self.is_down and turns and task.preference in ("joke", "commas"):
            raise InfrastructureError("the endpoint is gone", kind="connection")
        return super().act(task, turns)


def test_sessions_that_failed_are_played_again_and_count_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(POLICIES, "often_lost", ("town", f"{__name__}:OftenLost"))
    options = ("--environment", "town", "--agent", "often_lost", "--sessions_per_preference", "2")
    assert run(tmp_path, *options) == 0
    summary = read_scores(tmp_path)
    assert summary["num_failed"] == 4 and summary["vague"]["failures"] == {"connection": 4}
    assert "4 of 62 sessions failed and are left out" in caplog.text
    monkeypatch.setattr(OftenLost, "is_down", False)
    with caplog.at_level("INFO"):
        assert run(tmp_path, *options) == 0
    assert "4 sessions failed and are played again" in caplog.text
    records = read_records(tmp_path)
    assert len(records) == len({record["row"] for record in records}) == 62
    assert read_scores(tmp_path)["num_failed"] == 0


def test_a_session_of_another_evaluation_is_no_session_of_this_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, *RULES) == 0
    results = tmp_path / RESULTS_FILE
    results.write_text(results.read_text().replace('"task_id": "town-test', '"task_id": "elsewhere', 1))
    assert run(tmp_path, *RULES) == 2
    assert "elsewhere" in capsys.readouterr().err


def test_a_finished_evaluation_plays_nothing_and_keeps_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path, *RULES) == 0
    before = (tmp_path / RESULTS_FILE).read_bytes()
    seconds = json.loads((tmp_path / SUMMARY_FILE).read_text())["wall_s"]
    (tmp_path / RESULTS_FILE).chmod(0o444)
    monkeypatch.setattr(AlwaysAsk, "act", None)
    scores = read_scores(tmp_path)
    assert run(tmp_path, *RULES) == 0
    assert (tmp_path / RESULTS_FILE).read_bytes() == before
    assert read_scores(tmp_path) == scores
    assert json.loads((tmp_path / SUMMARY_FILE).read_text())["wall_s"] == seconds


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path) -> None:
    sessions = plan_sessions(list(town_task_rows("test", 3)), ["no_ask"], Counts(3, 0), seed=0)
    first, second = (EvaluationFolder(tmp_path, {"version": 1}, sessions) for _ in range(2))
    with first.opened(), pytest.raises(RecipeError, match="another process is writing"), second.opened():
        pass
    late = EvaluationFolder(tmp_path, {"version": 1}, sessions)
    (tmp_path / RESULTS_FILE).write_text("{}\n")
    with pytest.raises(RecipeError, match="another process has written"), late.opened():
        pass
