"""A persistent cache of chat answers: exact request -> answer, in one SQLite file, so that a run can be repeated.

It knows neither endpoints nor keys: a request is a JSON object without address and credentials, and an answer is text
and its token counts. Several threads and processes may share a file on a local disk (WAL does not work over NFS).
`gateway.py` is the only user.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ppp.types import InfrastructureError, RecipeError, RunStoppedError

CACHE_MODES = ("off", "read", "write", "replay")
CacheMode = Literal["off", "read", "write", "replay"]
APPLICATION_ID = 0x50505043  # "PPPC": tells our files from other SQLite files
VERSION = 1
BUSY_TIMEOUT_S = 30.0
# A row holds an answer, or, with `failure`, why there was none and in `finish_reason` of what kind it was.
CREATE = """CREATE TABLE answers (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, text TEXT, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, finish_reason TEXT, failure TEXT
) WITHOUT ROWID"""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is kept of an answer."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None


@dataclass(slots=True)
class _Flight:
    """A request under way, and how many wait for its answer."""

    task: asyncio.Task[Recorded]
    loop: asyncio.AbstractEventLoop
    num_waiting: int = 0


def request_key(request: Mapping[str, Any]) -> str:
    """Hash of a request; the order of its fields does not matter."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class ChatCache:
    """Answers by request.

    Args:
        path: the file; made if it is missing and `mode` is "write".
        mode: off: as if there were none. read: use what is there, keep nothing. write: use and keep. replay: use what
            is there and never ask.

    Raises:
        RecipeError: the file is missing, is no cache, or was written by another version.
    """

    def __init__(self, path: str | Path | None, mode: CacheMode = "write") -> None:
        if mode not in CACHE_MODES:
            raise RecipeError(f"cache: {mode!r} is not allowed; one of {', '.join(CACHE_MODES)}")
        if mode != "off" and not path:
            raise RecipeError(f"cache_path: {path!r} is not allowed; cache {mode} needs a file")
        self.path, self.mode = Path(path or ""), mode
        self._flights: dict[str, _Flight] = {}
        self._read_lock, self._write_lock = threading.Lock(), threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        if mode == "write":
            self._writer = self._open_writer()
        if mode != "off":
            self._reader = self._open_reader()

    @property
    def replays(self) -> bool:
        return self.mode == "replay"

    async def answer(self, request: Mapping[str, Any], ask: Callable[[], Awaitable[Recorded]]) -> tuple[Recorded, bool]:
        """The recorded answer and True, or what `ask` brings and False; identical requests are asked once.

        Raises:
            RunStoppedError: replay, and there is no recorded answer; or the file cannot be written.
            InfrastructureError: replay of a call that had failed; or whatever `ask` raises.
        """
        if self.mode == "off":
            return await ask(), False
        key = request_key(request)
        found = self._find(key)
        if found is not None:
            return found, True
        if self.mode == "replay":
            raise RunStoppedError(
                f"The cache {self.path} holds no answer to a request to {request.get('model')!r}, and replay never "
                "asks: the run differs from the recorded one."
            )
        loop = asyncio.get_running_loop()
        flight = self._flights.get(key)
        shared = flight is not None and flight.loop is loop
        if flight is None or not shared:
            flight = _Flight(loop.create_task(self._ask(key, request, ask)), loop)
            self._flights[key] = flight
        flight.num_waiting += 1
        try:
            # Whoever gives up waiting must not take the answer from the others.
            return await asyncio.shield(flight.task), shared
        finally:
            flight.num_waiting -= 1
            if flight.num_waiting == 0:
                flight.task.cancel()
                if self._flights.get(key) is flight:
                    del self._flights[key]

    async def _ask(self, key: str, request: Mapping[str, Any], ask: Callable[[], Awaitable[Recorded]]) -> Recorded:
        """Ask, and keep the answer; of two processes that ask at once the first one's answer counts for both."""
        try:
            answer = await ask()
        except InfrastructureError as error:
            if self.mode == "write":
                await asyncio.to_thread(self._store, key, str(request.get("model")), error)
            raise
        if self.mode != "write":
            return answer
        await asyncio.to_thread(self._store, key, str(request.get("model")), answer)
        return self._find(key) or answer

    def remember(self, fact: Mapping[str, Any]) -> None:
        """Keep something that was learnt of an endpoint and shapes later requests."""
        if self.mode == "write":
            self._store(request_key(fact), "", Recorded("", 0, 0, None))

    def knows(self, fact: Mapping[str, Any]) -> bool:
        """Whether `remember` was called with it, here or in the run that wrote the file."""
        return self.mode != "off" and self._find(request_key(fact)) is not None

    def close(self) -> None:
        for connection in (self._reader, self._writer):
            if connection is not None:
                connection.close()
        self._reader = self._writer = None

    def _find(self, key: str) -> Recorded | None:
        with self._read_lock:
            if self._reader is None:
                self._reader = self._open_reader()
            row = self._reader.execute(
                "SELECT text, prompt_tokens, completion_tokens, finish_reason, failure FROM answers WHERE key = ?",
                (key,),
            ).fetchone()
        if row is None:
            return None
        if row[4] is not None:
            if self.mode == "replay":
                raise InfrastructureError(row[4], kind=row[3])
            return None  # ask again: an outage is no answer
        return Recorded(*row[:4])

    def _store(self, key: str, model: str, outcome: Recorded | InfrastructureError) -> None:
        """Keep an answer unless there is one, or a failure unless there is anything."""
        failure = None
        if isinstance(outcome, InfrastructureError):
            failure, outcome = str(outcome), Recorded("", 0, 0, outcome.kind)
        row = (
            key,
            model,
            outcome.text,
            outcome.prompt_tokens,
            outcome.completion_tokens,
            outcome.finish_reason,
            failure,
        )
        on_conflict = (
            "DO NOTHING"
            if failure is not None
            else """DO UPDATE SET text = excluded.text, prompt_tokens = excluded.prompt_tokens, failure = NULL,
                completion_tokens = excluded.completion_tokens, finish_reason = excluded.finish_reason
                WHERE failure IS NOT NULL"""
        )
        try:
            with self._write_lock:
                if self._writer is None:
                    self._writer = self._open_writer()
                with self._writer:
                    self._writer.execute(
                        f"INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) {on_conflict}", row
                    )
        except sqlite3.Error as error:
            raise RunStoppedError(f"The cache {self.path} cannot be written: {error}.") from error

    def _open_writer(self) -> sqlite3.Connection:
        """Open for writing, and make the file if it is missing; several processes may do so at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                (num_tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
                if num_tables == 0:
                    connection.execute(CREATE)
                    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version = {VERSION}")
            self._check_version(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.Error as error:
            raise RecipeError(f"cache_path: {str(self.path)!r} cannot be used as a cache: {error}") from error
        return connection

    def _open_reader(self) -> sqlite3.Connection:
        if not self.path.is_file():
            raise RecipeError(f"cache_path: {str(self.path)!r} does not exist; cache {self.mode} needs a recorded one")
        for how in ("mode=ro", "immutable=1"):  # the second for a folder that cannot be written
            try:
                uri = f"{self.path.resolve().as_uri()}?{how}"
                connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
                self._check_version(connection)
                return connection
            except sqlite3.OperationalError as error:
                problem: sqlite3.Error = error
            except sqlite3.DatabaseError as error:
                problem = error
                break
        raise RecipeError(f"cache_path: {str(self.path)!r} cannot be used as a cache: {problem}") from problem

    def _check_version(self, connection: sqlite3.Connection) -> None:
        """Raise `RecipeError` unless the file is a cache of this version."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            connection.close()
            raise RecipeError(f"cache_path: {str(self.path)!r} is a database, but no cache of chat answers")
        if version != VERSION:
            connection.close()
            raise RecipeError(
                f"cache_path: {str(self.path)!r} has version {version}; allowed: {VERSION}, or a path that does not "
                "exist"
            )
