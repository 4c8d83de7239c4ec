"""What a run's users took: added up over processes, kept on disk, told at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ppp.bookkeeping import LEDGER_FILE, Bookkeeper
from ppp.chat.ledger import ChatLedger, Prices, Usage
from ppp.types import RecipeError, RunStoppedError, StopReason, Task, Trajectory
from ppp.users import USERS
from ppp.users.base import UserService
from ppp.users.crowd import Crowd, Crowds
from ppp.users.scripted import ScriptedUser

TASK = Task("t", "town", "p", "q", "no_ask", {})


class Service(UserService):
    def __init__(self, max_calls: int | None) -> None:
        self.ledger = ChatLedger(max_calls=max_calls)
        self.ledger.open_account("m", Prices(1.0, 2.0))

    async def check(self) -> None: ...

    async def close(self) -> None: ...

    def summary(self) -> dict[str, Any]:
        return {}


class Counted(ScriptedUser):
    """A user whose service keeps a ledger."""

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None: ...

    @classmethod
    def open_service(cls, options: Mapping[str, Any]) -> UserService:
        return Service(options.get("max_calls"))


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(USERS, "counted", Counted)


def open_books(folder: Path | None, rank: int = 0, num: int = 1, **options: Any) -> Bookkeeper:
    crowd = Crowd({"kind": "counted", **options})
    return Bookkeeper(Crowds(crowd, crowd), folder, rank, num)


def ledger_of(books: Bookkeeper) -> ChatLedger:
    service = books.crowds.train.service
    assert service is not None and service.ledger is not None
    return service.ledger


def call(books: Bookkeeper, num: int = 1, failure: str | None = None, latency_s: float = 0.5) -> None:
    for _ in range(num):
        ledger = ledger_of(books)
        ledger.begin_request("m")
        if failure is None:
            ledger.end_request("m", usage=Usage(1000, 500), latency_s=latency_s)
            ledger.record("m")
        else:
            ledger.end_request("m", failure=failure)


def failed(kind: str) -> Trajectory:
    return Trajectory(TASK, stop_reason=StopReason.ERROR, error=f"m: {kind}", error_kind=kind)


def test_metrics_are_those_of_the_last_rollout_and_the_cost_is_that_of_the_run(tmp_path: Path) -> None:
    books = open_books(tmp_path)
    call(books, 3)
    call(books, 2, "timeout")
    assert books.collect() == pytest.approx(
        {"users/calls": 3, "users/requests": 5, "users/failures": 2, "users/cost": 0.006, "users/latency_p50": 0.5},
        rel=0.03,
    )
    call(books, 1, latency_s=2.0)
    assert books.collect() == pytest.approx(
        {"users/calls": 1, "users/requests": 1, "users/failures": 0, "users/cost": 0.008, "users/latency_p50": 2.0},
        rel=0.03,
    )
    assert "users/latency_p50" not in books.collect()


def test_users_without_a_model_cost_nothing_and_leave_no_file(tmp_path: Path) -> None:
    books = Bookkeeper(Crowds(Crowd(), Crowd()), tmp_path)
    assert books.collect() == {}
    books.count([Trajectory(TASK, stop_reason=StopReason.FINISHED)])
    books.tell()
    assert not list(tmp_path.iterdir()) and books.report() == ""


def test_the_table_says_what_happened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    books = open_books(tmp_path)
    call(books, 4)
    call(books, 7, "500")
    call(books, 2, "timeout")
    books.count([failed("500"), failed("KeyError"), failed("500"), Trajectory(TASK, stop_reason=StopReason.FINISHED)])
    assert books.failures() == {
        "500": {"requests": 7, "sessions": 2},
        "KeyError": {"requests": 0, "sessions": 1},
        "timeout": {"requests": 2, "sessions": 0},
    }
    with caplog.at_level("INFO"):
        books.tell()
    told = caplog.text
    assert "500                          7                  2" in told and "3 of 4 sessions were left out" in told
    assert "13" in told.split("p50 s")[1], "the requests of the model"
    saved = json.loads((tmp_path / LEDGER_FILE).read_text())
    assert saved["failures"] == books.failures() and saved["users"]["user"]["requests"] == 13
    assert saved["sessions"] == {"played": 4, "left_out": {"500": 2, "KeyError": 1}}


def test_a_resumed_run_goes_on_counting_and_keeps_its_budget(tmp_path: Path) -> None:
    first = open_books(tmp_path, max_calls=6)
    call(first, 4)
    first.count([failed("500")])
    first.collect()
    again = open_books(tmp_path, max_calls=6)
    again.resume()
    assert again.collect()["users/calls"] == 0, "what was counted before is no part of this step"
    call(again, 2)
    assert again.summary()["users"]["user"]["calls"] == 6
    assert again.collect()["users/calls"] == 2
    with pytest.raises(RunStoppedError, match="max_calls 6"):
        call(again)
    again.tell()
    saved = json.loads((tmp_path / LEDGER_FILE).read_text())
    assert saved["users"]["user"]["calls"] == 6 and saved["sessions"]["left_out"] == {"500": 1}


def test_the_counts_of_several_processes_are_dealt_out_and_none_is_lost(tmp_path: Path) -> None:
    """A run of three processes goes on with two: nobody may spend anything twice."""
    states = []
    for number in (1, 2, 4):
        books = open_books(None)
        call(books, number)
        states.append({"user": ledger_of(books).state()})
    sessions = {"played": 9, "left_out": {}}
    (tmp_path / LEDGER_FILE).write_text(json.dumps({"version": 1, "sessions": sessions, "processes": states}))
    pair = [open_books(tmp_path, rank, 2) for rank in (0, 1)]
    for books in pair:
        books.resume()
    assert [ledger_of(books).summary()["calls"] for books in pair] == [5, 2]
    pair[1].tell()  # writes nothing: only the first process does
    pair[0].tell()
    saved = json.loads((tmp_path / LEDGER_FILE).read_text())
    assert saved["users"]["user"]["calls"] == 7 and len(saved["processes"]) == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 99}', '{"version": 1}', '{"version": 1, "processes": 3}'])
def test_a_count_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / LEDGER_FILE).write_text(text)
    with pytest.raises(RecipeError, match=r"resume_from_checkpoint: .*user_ledger\.json"):
        open_books(tmp_path).resume()


def test_without_a_count_a_resumed_run_starts_at_nothing(tmp_path: Path) -> None:
    books = open_books(tmp_path)
    books.resume()
    assert books.collect()["users/calls"] == 0


def test_users_of_the_evaluation_have_an_account_of_their_own(tmp_path: Path) -> None:
    train, evaluation = Crowd({"kind": "counted", "a": 1}), Crowd({"kind": "counted", "a": 2}, "eval_user")
    books = Bookkeeper(Crowds(train, evaluation), tmp_path)
    call(books, 2)
    books.collect()
    assert {name: users["calls"] for name, users in books.summary()["users"].items()} == {"user": 2, "eval_user": 0}
    assert books.report().count("calls") == 2
