"""`tokens.jsonl`: of some sessions of a run, the text of every token, whose it is, and how likely the policy found it.

One line per session, named like its line in `trajectories.jsonl` or `results.jsonl` by step, mode, row and copy. Which
sessions are sampled does not depend on the order in which they end. Agents that write no tokens of their own (an
endpoint, a function, a person, rules) have no such file. Conversations are `run_log.py`'s; the page that shows both is
in `reporting/`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ppp.codec import Codec
from ppp.rollout import RolloutJob
from ppp.run_log import append_lines, drop_lines_after, read_jsonl
from ppp.types import Trajectory

TOKENS_FILE = "tokens.jsonl"
MAX_SESSIONS = 200
MAX_TOKENS = 2_000_000  # of a file, about 40 MB: sessions that may become long are sampled more sparingly
EVALUATION_SHARE = 0.25  # of a training's sessions, those of its evaluations

_UNREADABLE = "\ufffd"  # what decoders write for a character of which bytes are missing
_MAX_OPEN = 16  # tokens; no character is that long, so what is still unreadable then will stay so
_MAX_CHARACTER = 4  # bytes, and so tokens, of one character


def token_pieces(decode: Callable[[Sequence[int]], str], token_ids: Sequence[int]) -> list[str]:
    """The text of each token; joined, they are exactly `decode(token_ids)`.

    A character that is spread over several tokens belongs to the last of them; the others get "".
    """
    pieces = [""] * len(token_ids)
    known = start = 0  # told are the tokens before `start`; those from `known` on are decoded along, for their spaces
    for end in range(1, len(token_ids) + 1):
        head, text = decode(token_ids[known:start]), decode(token_ids[known:end])
        if text.endswith(_UNREADABLE) and end < len(token_ids):
            if end - start < _MAX_OPEN:
                continue
            cut = _boundary(decode, token_ids[known:end]) + known
        else:
            cut = end
        pieces[cut - 1] += (text if cut == end else decode(token_ids[known:cut]))[len(head) :]
        known, start = start, cut
    text = decode(token_ids)
    return pieces if "".join(pieces) == text else [*[""] * (len(token_ids) - 1), text]


def _boundary(decode: Callable[[Sequence[int]], str], token_ids: Sequence[int]) -> int:
    """A place near the end of unreadable tokens where they can be cut without changing their text."""
    last = len(token_ids) - _MAX_CHARACTER + 1  # behind it a character may have begun that is still to be ended
    whole = decode(token_ids)
    for place in range(last, last - _MAX_CHARACTER, -1):
        if decode(token_ids[:place]) + decode(token_ids[place:]) == whole:
            return place
    return len(token_ids)


def token_record(
    trajectory: Trajectory, codec: Codec, *, step: int, mode: str, row: int, copy: int
) -> dict[str, Any] | None:
    """One line of `tokens.jsonl`: all tokens after the prompt. None where there is nothing that a policy wrote.

    Args:
        step, mode, row, copy: as in `trajectory_record`.
    """
    own = trajectory.env_mask
    if not any(own) or any(turn.num_tokens is not None for turn in trajectory.turns):
        return None
    return {
        "step": step,
        "mode": mode,
        "row": row,
        "copy": copy,
        "pieces": token_pieces(codec.decode, trajectory.completion_ids),
        "own": own,
        "logprobs": [
            round(value, 4) if is_own else None for value, is_own in zip(trajectory.logprobs, own, strict=True)
        ],
    }


def num_sampled(max_completion_tokens: int) -> int:
    """Sessions that a file holds at most, given the tokens that one of them may have."""
    return max(1, min(MAX_SESSIONS, MAX_TOKENS // max_completion_tokens))


class TokenLog:
    """The token log of an evaluation: a sample of its sessions, drawn before the first of them is played.

    Args:
        path: of the file; what an earlier part of the evaluation left there is kept.
        codec: whose tokens they are.
        rows: numbers of all sessions that are planned, those played before included.
        max_completion_tokens: of a session.
    """

    def __init__(self, path: Path, codec: Codec, rows: Iterable[int], max_completion_tokens: int) -> None:
        self.path, self.codec = path, codec
        numbers = sorted(set(rows))
        number = min(len(numbers), num_sampled(max_completion_tokens))
        self.sampled = frozenset(random.Random("tokens").sample(numbers, number))
        drop_torn_line(path)
        self._written = {(line["row"], line["copy"]) for line in read_lines(path)}

    def offer(self, trajectory: Trajectory, *, row: int, copy: int, step: int = 0, mode: str = "eval") -> None:
        """Write a session down if it was drawn and is not there yet; call it once the session's result is on disk.

        Raises:
            DiskError: the file could not be written.
        """
        if row not in self.sampled or (row, copy) in self._written:
            return
        record = token_record(trajectory, self.codec, step=step, mode=mode, row=row, copy=copy)
        if record is not None:
            append_lines(self.path, [record], "start the same command again")
            self._written.add((row, copy))


class TrainingTokens:
    """The token log of a training: sessions of the main process, spread evenly over the run.

    Args:
        path: of the file.
        codec: whose tokens they are.
        max_completion_tokens: of a session.
        step: the step from which the run goes on; lines of later ones are dropped.
    """

    def __init__(self, path: Path, codec: Codec, max_completion_tokens: int, step: int) -> None:
        self.path, self.codec = path, codec
        drop_lines_after(path, step)
        modes = [line["mode"] for line in read_lines(path)]
        self._num_written = {mode: modes.count(mode) for mode in ("train", "eval")}
        number = num_sampled(max_completion_tokens)
        num_eval = int(number * EVALUATION_SHARE)
        self._num_sampled = {"train": number - num_eval, "eval": num_eval}
        self.num_steps = 1  # of the whole run, once it is known

    def offer(self, jobs: Sequence[RolloutJob], trajectories: Sequence[Trajectory], step: int, mode: str) -> None:
        """Write down as many sessions of a batch as are due by now: in training others each time, in evaluations the
        same as far as possible.

        Raises:
            DiskError: the file could not be written.
        """
        due = self._due(step, mode) - self._num_written[mode]
        if due <= 0 or not jobs:
            return
        draw = random.Random("tokens" if mode == "eval" else f"tokens-{step}")
        records = []
        for index in draw.sample(range(len(jobs)), len(jobs)):
            job = jobs[index]
            record = token_record(trajectories[index], self.codec, step=step, mode=mode, row=job.row, copy=job.copy)
            if record is not None:
                records.append(record)
            if len(records) == due:
                break
        append_lines(self.path, records)
        self._num_written[mode] += len(records)

    def _due(self, step: int, mode: str) -> int:
        """Sessions that should be there after `step` of the run's steps; evaluations have some before the first."""
        number, share = self._num_sampled[mode], min(1.0, step / self.num_steps)
        start = number // 10 if mode == "eval" else 0
        return start + int((number - start) * share)


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that a killed run left unfinished."""
    if path.is_file():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)


def read_lines(path: Path) -> Sequence[dict[str, Any]]:
    return read_jsonl(path) if path.is_file() else []
