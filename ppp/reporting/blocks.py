"""Sessions as the page holds them: compressed blocks of text, and a small index of columns for the filters.

A block is about a megabyte of sessions, so that looking at one inflates little, and so that a search goes through them
one after another. Text is kept apart from structure: a search then neither finds names of fields nor parses JSON. What
reads this in the browser is `assets/data.js`; what it stands in is written by `page.py`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppp.preferences import PREFERENCES
from ppp.reporting.content import Session

BLOCK_CHARS = 1_000_000
SESSION_MARK, TEXT_MARK = "\x1e", "\x1f"  # between sessions of a block, and between the texts of a session
MARKS_SHOWN = str.maketrans({SESSION_MARK: "\u241e", TEXT_MARK: "\u241f"})  # such characters in a text become pictures
MAX_LABEL_CHARS = 120
MAX_EXCERPT_CHARS = 160

# Words of ours rather than of a model or a person: they stay in the structure, where no search looks.
LABEL_KEYS = frozenset(
    (
        "mode",
        "environment",
        "preference",
        "stop_reason",
        "error_kind",
        "session_effort",
        "effort",
        "decided_by",
        "slice",
    )
)


def outcome(record: Mapping[str, Any]) -> str:
    """How a session ended, in a word."""
    session = record.get("session")
    if not session:
        return "failed"
    solved = session["productivity"]
    return "solved" if solved >= 1 else "partly" if solved > 0 else "wrong"


def asking(record: Mapping[str, Any]) -> str:
    session = record.get("session")
    return "unknown" if not session else "asked" if session["num_questions"] else "silent"


def effort(record: Mapping[str, Any]) -> str:
    session = record.get("session")
    return str(session["session_effort"]) if session else "unknown"


def following(record: Mapping[str, Any]) -> str:
    session = record.get("session")
    return "unknown" if not session else "followed" if session["follows_preference"] else "broken"


# What sessions are filtered by: key in the address -> (label, order of the values known beforehand, value of a record).
FACETS: dict[str, tuple[str, Sequence[str], Callable[[Mapping[str, Any]], str]]] = {
    "environment": ("Environment", (), lambda record: str(record["environment"])),
    "preference": ("Preference", tuple(PREFERENCES), lambda record: str(record["preference"])),
    "prompt": ("Prompt", ("vague", "precise"), lambda record: "precise" if record["is_precise"] else "vague"),
    "outcome": ("Outcome", ("solved", "partly", "wrong", "failed"), outcome),
    "asking": ("Asking", ("asked", "silent", "unknown"), asking),
    "effort": ("User effort", ("low", "medium", "high", "unknown"), effort),
    "following": ("Preference was", ("followed", "broken", "unknown"), following),
    "mode": ("Mode", ("train", "eval"), lambda record: str(record.get("mode", "eval"))),
}


@dataclass
class Column:
    """One value of a few per session: the values, and for each session which of them."""

    values: list[str]
    codes: list[int]

    @classmethod
    def of(cls, values: Iterable[str], known: Sequence[str] = ()) -> Column:
        """Values in the order known beforehand, then in that of their first session; unused ones are left out."""
        texts = [value[:MAX_LABEL_CHARS] for value in values]
        found = dict.fromkeys(texts)
        ordered = [value for value in known if value in found]
        ordered += [value for value in found if value not in known]
        code = {value: number for number, value in enumerate(ordered)}
        return cls(ordered, [code[text] for text in texts])


def session_key(session: Session) -> str:
    """What a link to a session calls it: the same one in every report over the same run."""
    record = session.record
    parts = [session.run, *(record.get(name) for name in ("mode", "step", "row", "copy", "task_id"))]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=5).hexdigest()


def session_keys(sessions: Sequence[Session]) -> list[str]:
    """The keys of all sessions; of two that share one, the later has a number added."""
    seen: dict[str, int] = {}
    keys = []
    for key in map(session_key, sessions):
        seen[key] = seen.get(key, 0) + 1
        keys.append(key if seen[key] == 1 else f"{key}.{seen[key]}")
    return keys


def number(value: Any, digits: int = 4) -> float | int | None:
    """A finite number for JSON, shortened; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else round(value, digits)


def build_index(sessions: Sequence[Session]) -> dict[str, Any]:
    """Everything that the list, its filters and its order need, column by column, without opening a block."""
    records = [session.record for session in sessions]
    runs = Column.of(session.run for session in sessions)
    facets = [{"key": "run", "label": "Run", "values": runs.values, "codes": runs.codes}]
    for key, (label, known, value) in FACETS.items():
        column = Column.of(map(value, records), known)
        facets.append({"key": key, "label": label, "values": column.values, "codes": column.codes})
    if any(session.tokens is not None for session in sessions):
        column = Column.of(("none" if session.tokens is None else "shown" for session in sessions), ("shown", "none"))
        facets.append({"key": "tokens", "label": "Token view", "values": column.values, "codes": column.codes})
    tasks = Column.of(str(record["task_id"]) for record in records)
    excerpts = Column.of(" ".join(str(record["prompt"])[:MAX_EXCERPT_CHARS].split()) for record in records)
    return {
        "size": len(sessions),
        "facets": facets,
        "preferences": {name: [p.description, p.split] for name, p in PREFERENCES.items()},
        "task": {"values": tasks.values, "codes": tasks.codes},
        "excerpt": {"values": excerpts.values, "codes": excerpts.codes},
        "key": session_keys(sessions),
        "step": [number(record.get("step")) for record in records],
        "reward": [number((record.get("score") or {}).get("reward")) for record in records],
        "questions": [number((record.get("session") or {}).get("num_questions")) for record in records],
        "turns": [len(record["turns"]) for record in records],
        "tokens": [number(record.get("num_policy_tokens")) for record in records],
        "weights": weights_by_run(sessions),
        "sampled": [place for place, session in enumerate(sessions) if session.tokens is not None],
    }


def weights_by_run(sessions: Sequence[Session]) -> dict[str, dict[str, float]]:
    return {session.run[:MAX_LABEL_CHARS]: dict(session.weights) for session in sessions}


def take_apart(value: Any, texts: dict[str, int], key: str = "") -> Any:
    """The structure of a JSON value with a number in quotes for each text, which goes into `texts`.

    Labels stay where they are, behind an "=". A number that JSON cannot hold becomes null.
    """
    if isinstance(value, str):
        return f"={value}" if key in LABEL_KEYS else str(texts.setdefault(value.translate(MARKS_SHOWN), len(texts)))
    if isinstance(value, Mapping):
        return {str(name): take_apart(part, texts, str(name)) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [take_apart(part, texts, key) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def session_text(record: Mapping[str, Any]) -> str:
    """One session in a block: its structure, then its texts, each once."""
    texts: dict[str, int] = {}
    structure = json.dumps(take_apart(record, texts), separators=(",", ":"))
    return TEXT_MARK.join([structure, *texts])


def blocks(sessions: Sequence[Session]) -> Iterator[tuple[int, int, str]]:
    """(number of sessions, characters, packed text) of block after block; a session is never split."""
    held: list[str] = []
    length = 0
    for session in sessions:
        text = session_text(session.record)
        if held and length + len(text) > BLOCK_CHARS:
            yield len(held), length, pack(SESSION_MARK.join(held))
            held, length = [], 0
        held.append(text)
        length += len(text)
    if held:
        yield len(held), length, pack(SESSION_MARK.join(held))


def token_block(tokens: Mapping[str, Any]) -> str:
    """The tokens of one session, packed: pieces, whose they are, and the log-probabilities of the policy's own."""
    kept = {
        "pieces": [str(piece) for piece in tokens["pieces"]],
        "own": [int(own) for own in tokens["own"]],
        "logprobs": [number(value) for value in tokens["logprobs"]],
    }
    return pack(json.dumps(kept, separators=(",", ":")))


def pack(text: str) -> str:
    """Deflated and in base64: no text of a model can end the element that it stands in.

    Half a surrogate pair, which JSON may hold and UTF-8 may not, becomes its escape.
    """
    return base64.b64encode(zlib.compress(text.encode("utf-8", "backslashreplace"), 6)).decode("ascii")


# Control, format and separating characters, halves of surrogate pairs, and others that show nothing.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    r"\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\uffff\ud800-\udfff\U000e0000-\U000e0fff]"
)


def visible(text: object) -> str:
    """A text with its control, bidirectional and zero-width characters written out, as `assets/text.js` does it."""
    return _UNSEEN.sub(lambda found: f"\u27e8U+{ord(found[0]):04X}\u27e9", str(text))
