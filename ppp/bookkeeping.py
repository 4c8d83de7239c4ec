"""What a run's users took and what failed in it: numbers per rollout, `user_ledger.json`, and a report at the end.

The ledgers themselves are kept by the users' services, see `chat/ledger.py`; here those of all processes are added up,
written to disk so that a resumed run goes on counting, and joined with the sessions that were left out. `phase.py` and
`evaluation/run.py` are who calls this; in an evaluation the agent may be a model with a ledger, too.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from ppp.chat.ledger import Account, ChatLedger
from ppp.checks import refuse
from ppp.types import DiskError, Trajectory
from ppp.users.crowd import Crowds

logger = logging.getLogger(__name__)

LEDGER_FILE = "user_ledger.json"
VERSION = 1
AGENT = "agent"  # stands where the users' have the field of the recipe

State = dict[str, dict[str, Any]]  # field of the recipe -> what its ledger counted, see ChatLedger.state


class Bookkeeper:
    """Adds up what the users of a run took and which sessions failed for what reason.

    Args:
        crowds: the users of the run.
        folder: where `user_ledger.json` goes; None keeps it from disk.
        rank: of this process; only 0 writes.
        num_processes: of the run.
        agent: what the agent's model takes; None where it is not asked over a network.
    """

    def __init__(
        self,
        crowds: Crowds,
        folder: Path | None = None,
        rank: int = 0,
        num_processes: int = 1,
        agent: ChatLedger | None = None,
    ) -> None:
        self.crowds, self.agent = crowds, agent
        self.path = None if folder is None else folder / LEDGER_FILE
        self.rank, self.num_processes = rank, num_processes
        self.num_sessions = 0
        self.left_out: Counter[str] = Counter()  # kind of failure -> sessions, of all processes
        self._states: list[State] = []  # of all processes, when they were last collected
        self._before = self._start = ChatLedger()

    @property
    def ledgers(self) -> list[ChatLedger]:
        """Of this process: those of the users and of the agent, where they are models."""
        return [ledger for _, ledger in self._ledgers()]

    def resume(self, field: str = "resume_from_checkpoint") -> None:
        """Go on counting where an earlier part of the run stopped; its processes are dealt out to those of this one.

        Args:
            field: by which the operator asked for it; for messages.

        Raises:
            RecipeError: the file is there and cannot be read.
        """
        if self.path is None or not self.path.is_file():
            return
        try:
            saved = json.loads(self.path.read_text(encoding="utf-8"))
            if saved["version"] != VERSION:
                raise ValueError(f"version {saved['version']}, not {VERSION}")
            ledgers = self._ledgers()
            for rank in range(self.num_processes):
                states = saved["processes"][rank :: self.num_processes]
                self._states.append({name: merged(states, name).state() for name, _ in ledgers})
            for name, ledger in ledgers:
                ledger.load_state(self._states[self.rank][name])
            self.left_out.update(saved["sessions"]["left_out"])
            self.num_sessions = saved["sessions"]["played"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise refuse(field, str(self.path), f"a ledger of this version ({error})") from error
        self._before = merged(self._states)

    def collect(self, goes_on: bool = False) -> dict[str, float]:
        """Add up the ledgers of all processes, which must call this together, and save them.

        Args:
            goes_on: what is returned counts from where the last time began.

        Returns:
            Metrics of what happened since the last time; empty where no model is asked.
        """
        self._states = gather_object([self._state()])
        if not goes_on:
            self._start = self._before
        self._before = merged(self._states)
        self.save()
        return difference(self._start, self._before) if self._ledgers() else {}

    def count(self, trajectories: Iterable[Trajectory]) -> None:
        """Count sessions of all processes, and those left out by the kind of their failure."""
        for trajectory in trajectories:
            self.num_sessions += 1
            if trajectory.failed:
                self.left_out[trajectory.error_kind or "unknown"] += 1
        self.save()

    def save(self) -> None:
        """Write what is known to `user_ledger.json`: of the other processes what was last collected.

        Raises:
            DiskError: it cannot be written.
        """
        if self.path is None or self.rank != 0 or not (self._ledgers() or self.left_out):
            return
        text = json.dumps({"version": VERSION, **self.summary(), "processes": self._states}, indent=1)
        beside = self.path.with_suffix(".tmp")
        try:
            beside.write_text(text + "\n", encoding="utf-8")
            os.replace(beside, self.path)
        except OSError as error:
            raise DiskError(f"{self.path} cannot be written ({error.strerror}); make room.") from error

    def summary(self) -> dict[str, Any]:
        """Ledgers, failures by kind and sessions, as JSON values."""
        self._refresh()
        ledgers = {name: merged(self._states, name).summary() for name, _ in self._ledgers()}
        return {
            **({AGENT: ledgers.pop(AGENT)} if AGENT in ledgers else {}),
            "users": ledgers,
            "failures": self.failures(),
            "sessions": {"played": self.num_sessions, "left_out": dict(self.left_out.most_common())},
        }

    def failures(self) -> dict[str, dict[str, int]]:
        """Kind -> failed requests to models, and sessions left out of their batch."""
        requests = failed_requests(merged(self._states))
        kinds = sorted({*requests, *self.left_out}, key=lambda kind: (-self.left_out[kind], -requests[kind], kind))
        return {kind: {"requests": requests[kind], "sessions": self.left_out[kind]} for kind in kinds}

    def report(self) -> str:
        """The ledgers and what happened, as text for a log; empty where there is nothing to tell."""
        self._refresh()
        parts = [f"{name}:\n{merged(self._states, name).table()}" for name, _ in self._ledgers()]
        failures = self.failures()
        if failures:
            width = max(len("what happened"), *(len(kind) for kind in failures))
            lines = [f"{'what happened':<{width}}  failed requests  sessions left out"]
            lines += [f"{kind:<{width}}  {n['requests']:>15,}  {n['sessions']:>17,}" for kind, n in failures.items()]
            total = f"{self.left_out.total():,} of {self.num_sessions:,} sessions were left out"
            parts.append("\n".join([*lines, total]))
        return "\n".join(parts)

    def tell(self) -> None:
        """Write and log everything for the last time; without the other processes, which may be gone."""
        self.save()
        text = self.report() if self.rank == 0 else ""
        if text:
            logger.info("%s", text)

    def _refresh(self) -> None:
        """Bring this process's share of what was collected up to date."""
        others = [state for rank, state in enumerate(self._states) if rank != self.rank]
        self._states = [*others[: self.rank], self._state(), *others[self.rank :]]

    def _ledgers(self) -> list[tuple[str, ChatLedger]]:
        found = [(crowd.field, crowd.service) for crowd in self.crowds.different]
        users = [(name, service.ledger) for name, service in found if service is not None and service.ledger]
        return [*users, *([(AGENT, self.agent)] if self.agent is not None else [])]

    def _state(self) -> State:
        return {name: ledger.state() for name, ledger in self._ledgers()}


def merged(states: Sequence[Mapping[str, Any]], field: str | None = None) -> ChatLedger:
    """One ledger from those of several processes, of one crowd or (None) of all."""
    total = ChatLedger()
    for state in states:
        for name, accounts in state.items():
            if field in (None, name):
                total.load_state(accounts)
    return total


def failed_requests(ledger: ChatLedger) -> Counter[str]:
    """Kind -> failed requests to all models."""
    return sum((account.failures for account in ledger.accounts.values()), Counter())


def difference(before: ChatLedger, after: ChatLedger) -> dict[str, float]:
    """Metrics of what was added between two ledgers; `users/cost` is the USD of the whole run so far."""
    old, new = before.summary(), after.summary()
    seconds = Account()
    for account in after.accounts.values():
        seconds.latencies.update(account.latencies)
    for account in before.accounts.values():
        seconds.latencies.subtract(account.latencies)
    median = seconds.quantile(0.5)
    metrics: dict[str, float] = {
        "users/calls": new["calls"] - old["calls"],
        "users/requests": new["requests"] - old["requests"],
        "users/failures": failed_requests(after).total() - failed_requests(before).total(),
    }
    if new["cost"] is not None:
        metrics["users/cost"] = new["cost"]
    if median is not None and seconds.latencies.total():
        metrics["users/latency_p50"] = median
    return metrics
