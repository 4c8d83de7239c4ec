"""Reads back what an offline run of Weights & Biases would send."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2


def find_run(folder: Path) -> Path:
    """The one offline run below the folder that W&B was given, once its last record is written: W&B's own process does
    that, a moment after the run has ended."""
    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    for _ in range(600):
        if list(records(path, "exit")):
            return path
        time.sleep(0.05)
    raise AssertionError(f"{path} has no end")


def frames(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format, blocks of 32 KiB, behind a header of 7 bytes."""
    assert data[:4] == b":W&B"
    position, parts = 7, []
    while position + 7 <= len(data):
        room = -position % 32768 or 32768
        if room < 7:  # too little for another header
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)  # checksum, bytes, kind of part
        parts.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if len(parts[-1]) < length:  # still being written
            return
        if kind in (1, 4):  # the whole, or the last part
            yield b"".join(parts)
            parts = []


def records(path: Path, kind: str) -> Iterator[Any]:
    """The records of one kind: "run", "history", "summary", "artifact", ..."""
    for data in frames(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == kind:
            yield getattr(record, kind)


def history(path: Path) -> Iterator[dict[str, Any]]:
    """What was logged, one mapping for each time; media are mappings in it."""
    for record in records(path, "history"):
        line: dict[str, Any] = {}
        for item in record.item:
            *outer, last = item.nested_key or [item.key]
            place = line
            for key in outer:
                place = place.setdefault(key, {})
            place[last] = json.loads(item.value_json)
        yield line


def table(path: Path, entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a table that stands in the history as `entry`."""
    found = json.loads((path.parent / "files" / entry["path"]).read_text(encoding="utf-8"))
    return [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]
