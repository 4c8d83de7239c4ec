"""`ppp vaguenize IN.jsonl OUT.jsonl --model NAME [--base_url URL]`: a vague form for every precise text of a file.

Rows are task rows (`precise_prompt`), issues (`problem_statement`) or search questions (`question`); each comes out
with all its fields, a vague text, and what was done under `vaguenizer`. A run that ended early goes on where it
stopped; the rows of a finished one are in the order of the input.
How a text is rewritten is in `rewriting.py`, what is kept when in `rows.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from ppp.chat.cache import CACHE_MODES, ChatCache
from ppp.chat.gateway import ChatEndpoint, ChatGateway
from ppp.chat.ledger import ChatLedger
from ppp.extensions import import_extensions
from ppp.types import InfrastructureError, RecipeError, RunStoppedError
from ppp.vaguenizer.checks import LEVELS, nothing_to_remove
from ppp.vaguenizer.report import build_report, count_status, write_report
from ppp.vaguenizer.rewriting import Vaguenizer
from ppp.vaguenizer.rows import VagueFile, VagueRow, failures_path, read_rows, read_titles

logger = logging.getLogger(__name__)

TEXT_FIELDS = ("model", "base_url", "api_key_env")  # of an endpoint; the other fields are JSON values
JUDGE_FIELDS = (*TEXT_FIELDS, "extra_body", "input_price", "cached_input_price", "output_price")
OF_ADDRESS = ("base_url", "api_key_env")  # what a judge takes over from the model that writes, unless told otherwise
OF_MODEL = ("extra_body", "input_price", "cached_input_price", "output_price")
INTERRUPTED = 130


@dataclass
class Progress:
    """How far a start got: rows that no model could be asked about, and why it ended early, if it did."""

    unreached: dict[str, str] = field(default_factory=dict)
    stopped: str = ""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; those of an endpoint are the fields of `ChatEndpoint`."""
    parser = argparse.ArgumentParser(
        prog="ppp vaguenize",
        description="Rewrite precise prompts, issues or search questions into vague ones, and check every result. "
        "Exit status: 0 all done, 1 some rows failed or are open, 2 a mistake in the call.",
        allow_abbrev=False,
    )
    parser.add_argument("input", type=Path, metavar="IN", help="JSONL of task rows, issues or search questions")
    parser.add_argument("output", type=Path, metavar="OUT", help="JSONL; a file of an earlier start is gone on with")
    parser.add_argument("--level", default="vague", help=f"{', '.join(LEVELS)}; default: vague")
    parser.add_argument(
        "--max_attempts", type=int, default=3, help="texts written for a row before it counts as failed"
    )
    parser.add_argument(
        "--imports", nargs="+", default=[], metavar="MODULE", help="modules with environments of your own"
    )
    parser.add_argument("--corpus", type=Path, help="JSONL with docid and title, for questions with evidence_docids")
    parser.add_argument("--report", type=Path, help="file for a report of what was removed: .md or .json")
    parser.add_argument("--overwrite", action="store_true", help="begin anew where OUT exists")
    parser.add_argument("--retry_failed", action="store_true", help="try the failed rows of an earlier start again")
    parser.add_argument("--keep_failed", action="store_true", help="have failed rows in OUT too, without a vague text")
    parser.add_argument("--max_cost", type=float, help="USD for this start; needs prices")
    parser.add_argument("--max_calls", type=int, help="requests of this start")
    parser.add_argument("--cache", default="off", help=f"{', '.join(CACHE_MODES)}; default: off")
    parser.add_argument("--cache_path", type=Path, help="file of the cache")
    for entry in fields(ChatEndpoint):
        required = entry.name == "model"
        parser.add_argument(f"--{entry.name}", required=required, metavar="VALUE", help=entry.metadata["help"])
    for name in JUDGE_FIELDS:
        parser.add_argument(f"--judge_{name}", metavar="VALUE", help=f"{name} of the judge")
    return parser.parse_args(argv)


def endpoints(options: argparse.Namespace) -> tuple[ChatEndpoint, ChatEndpoint]:
    """The model that writes and the judge, which is the same one unless options say otherwise.

    Raises:
        RecipeError: a value that an endpoint cannot have.
    """
    given = vars(options)
    own = {entry.name: given[entry.name] for entry in fields(ChatEndpoint) if given[entry.name] is not None}
    judge = {name: given[f"judge_{name}"] for name in JUDGE_FIELDS if given[f"judge_{name}"] is not None}
    elsewhere = "base_url" in judge
    inherited = dict(own)
    # A key goes to no other host, and prices belong to a model.
    for name in (*(OF_ADDRESS if elsewhere else ()), *(OF_MODEL if elsewhere or "model" in judge else ())):
        inherited.pop(name, None)
    writer = ChatEndpoint.from_options(_values(own), "vaguenize")
    return writer, ChatEndpoint.from_options(_values({**inherited, **judge}), "judge")


def _values(texts: Mapping[str, str]) -> dict[str, Any]:
    """Options as values; what is no JSON stays a text, which the endpoint's checks refuse where they must."""
    values: dict[str, Any] = dict(texts)
    for name, text in texts.items():
        if name not in TEXT_FIELDS:
            with suppress(json.JSONDecodeError):
                values[name] = json.loads(text)
    return values


def check_paths(options: argparse.Namespace) -> None:
    """Raise `RecipeError` for files that cannot be written, or that would be written over."""
    taken = {"IN": options.input, "the list of failures": failures_path(options.output)}
    for name, path in (("OUT", options.output), ("report", options.report), ("cache_path", options.cache_path)):
        if path is None:
            continue
        if path.is_dir() or not path.parent.is_dir():
            raise RecipeError(f"{name}: {str(path)!r} is not allowed; expected a file in a folder that exists")
        for other, theirs in taken.items():
            if path.resolve() == theirs.resolve():
                raise RecipeError(f"{name}: {str(path)!r} is {other} as well; name another file")
        taken[name] = path


async def vaguenize_rows(
    vaguenizer: Vaguenizer, file: VagueFile, rows: Sequence[VagueRow], num_at_once: int, progress: Progress
) -> None:
    """Work on `rows`, a bounded number at a time, and keep each result as it comes.

    A row that no model can be asked about stays open; when the run has to stop, the rows under way do too.
    """
    waiting = iter(rows)
    done = len(file.rows) - len(file.open_rows)
    with tqdm(total=len(file.rows), initial=done, desc="vaguenize", unit="row", disable=None) as bar:

        async def work() -> None:
            for row in waiting:
                try:
                    file.append(row, await vaguenizer.vaguenize(row.original))
                except InfrastructureError as error:
                    progress.unreached[row.name] = str(error)
                    logger.warning("%s stays open: %s", row.name, error)
                except RunStoppedError as error:
                    progress.stopped = progress.stopped or str(error)
                if progress.stopped:
                    return
                bar.update()

        async with asyncio.TaskGroup() as group:
            for _ in range(min(num_at_once, len(rows))):
                group.create_task(work())


async def start(vaguenizer: Vaguenizer, file: VagueFile, progress: Progress) -> None:
    """Check the endpoints with one request each, then work on the open rows; SIGTERM ends it like Ctrl-C.

    Raises:
        RecipeError: an endpoint cannot be used.
    """
    task = asyncio.current_task()
    if task is not None and threading.current_thread() is threading.main_thread():
        with suppress(NotImplementedError):  # not on Windows
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    gateways = list(dict.fromkeys((vaguenizer.writer, vaguenizer.judge)))
    rows = file.open_rows
    try:
        if any(nothing_to_remove(row.original) is None for row in rows):
            for gateway in gateways:
                await gateway.check()
        await vaguenize_rows(vaguenizer, file, rows, vaguenizer.writer.endpoint.max_concurrency, progress)
    finally:
        for gateway in gateways:
            await gateway.close()


def run(options: argparse.Namespace) -> int:
    """The command after its options were read; returns the exit status.

    Raises:
        RecipeError: the operator's mistake, before anything is asked.
    """
    import_extensions(options.imports)
    writer, judge = endpoints(options)
    check_paths(options)
    ledger = ChatLedger(options.max_cost, options.max_calls)
    cache = ChatCache(options.cache_path, options.cache)
    own = ChatGateway(writer, cache=cache, ledger=ledger)
    other = own if judge == writer else ChatGateway(judge, cache=cache, ledger=ledger)
    vaguenizer = Vaguenizer(own, other, options.level, options.max_attempts)
    rows = read_rows(options.input, read_titles(options.corpus) if options.corpus else None)
    with _locked(options.output):
        if options.overwrite:
            options.output.unlink(missing_ok=True)
            failures_path(options.output).unlink(missing_ok=True)
        settings = {"level": options.level, "model": writer.model, "judge_model": judge.model}
        file = VagueFile(options.output, rows, settings)
        if options.retry_failed:
            file.forget_failures()
        progress = Progress()
        interrupted = False
        try:
            asyncio.run(start(vaguenizer, file, progress))
        except (KeyboardInterrupt, asyncio.CancelledError):
            interrupted = True
        finally:
            cache.close()
            if file.kept or file.failed:
                file.finish(options.keep_failed)
        if options.report:
            write_report(options.report, build_report(file, progress.unreached, ledger.summary()))
    return _conclude(file, progress, ledger, interrupted)


class _locked:
    """Keep a second run from writing the same file."""

    def __init__(self, output: Path) -> None:
        self._lock = FileLock(output.with_name(output.name + ".lock"))
        self._output = output

    def __enter__(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise RecipeError(f"OUT: {str(self._output)!r} is being written by another run") from error

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # Windows keeps a file that is open; elsewhere whoever waits for it notices
            Path(self._lock.lock_file).unlink()
        self._lock.release()


def _conclude(file: VagueFile, progress: Progress, ledger: ChatLedger, interrupted: bool) -> int:
    """Say how it went; returns the exit status."""
    counts = count_status([*file.kept.values(), *file.failed.values()])
    num_open = len(file.open_rows)
    sys.stdout.write(
        f"{len(file.rows)} rows: {counts['done']} made vague, {counts['nothing_to_remove']} with nothing to remove, "
        f"{counts['failed']} failed every attempt, {num_open} open\n{ledger.table()}\n"
    )
    for message in _complaints(file, progress, counts["failed"], num_open, interrupted):
        sys.stderr.write(f"ppp vaguenize: {message}\n")
    if interrupted:
        return INTERRUPTED
    return 1 if counts["failed"] or num_open else 0


def _complaints(
    file: VagueFile, progress: Progress, num_failed: int, num_open: int, interrupted: bool
) -> Iterator[str]:
    if progress.stopped:
        yield progress.stopped
    if progress.unreached:
        name, error = next(iter(progress.unreached.items()))
        yield f"{len(progress.unreached)} rows got no usable answer, the first of them {name}: {error}"
    if num_failed:
        yield f"{num_failed} rows failed every attempt; they are in {file.failures} with the reasons"
    if num_open:
        why = "interrupted; " if interrupted else ""
        yield f"{why}{num_open} rows are open; the same command goes on with them"


def main(argv: Sequence[str] | None = None) -> int:
    """`ppp vaguenize IN OUT --model NAME [--level LEVEL] ...`. Returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for name in ("httpx", "httpx2"):  # a line per request
        logging.getLogger(name).setLevel(logging.WARNING)
    options = parse_arguments(argv)
    try:
        return run(options)
    except RecipeError as error:
        sys.stderr.write(f"ppp vaguenize: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
