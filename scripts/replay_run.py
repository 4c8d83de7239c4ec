"""Record a training run of the town whose users are played by a model, and replay it with the model's server gone.

Takes the folder of a finished quickstart and trains from its warm start, twice: once with a local server that plays the
town's users over OpenAI's protocol (`tests/town_user_server.py`, a process of its own), every answer recorded, and once
without it, from the record alone. All trajectories and rewards have to agree:

    .venv/bin/python scripts/replay_run.py runs/quickstart

The last line is JSON. About eight minutes each on two cores; `--max_steps 5` is a quick look.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

from quickstart import RECIPE, ROOT, run

from ppp.run_log import TRAJECTORIES_FILE, replayable

SERVER = ROOT / "tests" / "town_user_server.py"


@contextmanager
def town_users() -> Iterator[str]:
    """The address of a server that plays the town's users while the body runs."""
    process = subprocess.Popen([sys.executable, str(SERVER)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def train(base: Path, folder: Path, base_url: str, cache: str, extra: Sequence[str]) -> float:
    """Train from the quickstart's warm start with users played by a model; returns the seconds."""
    user = ("--user.kind", "llm", "--user.model", "town", "--user.base_url", base_url)
    record = ("--user.cache", cache, "--user.cache_path", str(folder.parent / "users.sqlite"))
    model = ("--model_name_or_path", str(base / "warmstart"), "--output_dir", str(folder))
    options = ("--config", RECIPE, "--deterministic", "true", *user, *record, *model, *extra)
    return run(["ppp", "train", *options])


def compare(recorded: Path, replayed: Path) -> dict[str, Any]:
    """How many trajectories agree in every turn, verdict and number, and how many rewards do."""
    found = {"num_trajectories": 0, "num_equal_trajectories": 0, "num_equal_rewards": 0}
    found |= {"num_answers": 0, "num_failed": 0, "first_difference": None}
    with (recorded / TRAJECTORIES_FILE).open() as one, (replayed / TRAJECTORIES_FILE).open() as other:
        for lines in zip_longest(one, other, fillvalue="{}"):
            record, again = (replayable(json.loads(line)) for line in lines)
            found["num_trajectories"] += 1
            found["num_equal_rewards"] += record.get("score") == again.get("score")
            found["num_answers"] += sum("answer" in turn for turn in record.get("turns", ()))
            found["num_failed"] += record.get("stop_reason") == "error"
            if record == again:
                found["num_equal_trajectories"] += 1
            elif found["first_difference"] is None:
                found["first_difference"] = {name: record.get(name) for name in ("step", "row", "copy")}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("quickstart", type=Path, help="folder of a quickstart: its warm start is trained from")
    parser.add_argument("--output-dir", type=Path, help="new folder for both runs and the record; default: temporary")
    own, extra = parser.parse_known_args()
    base = own.quickstart.absolute()
    if not (base / "warmstart" / "config.json").is_file():
        parser.error(f"{own.quickstart}: no warmstart/config.json; name the folder of a quickstart")
    if own.output_dir is not None and own.output_dir.exists():
        parser.error(f"argument --output-dir: {str(own.output_dir)!r} exists; name a new folder")
    folder = own.output_dir or Path(tempfile.mkdtemp(prefix="replay-"))
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with town_users() as base_url:
        record_s = train(base, folder / "recorded", base_url, "write", extra)
    replay_s = train(base, folder / "replayed", base_url, "replay", extra)  # nobody is left at this address
    result = compare(folder / "recorded", folder / "replayed")
    users = json.loads((folder / "recorded" / "user_ledger.json").read_text())["users"]["user"]
    result |= {"num_calls": users["calls"], "num_requests": users["requests"]}
    result |= {"record_s": round(record_s, 1), "replay_s": round(replay_s, 1)}
    equal = result["num_equal_trajectories"] == result["num_equal_rewards"] == result["num_trajectories"]
    result["identical"] = bool(equal and result["num_answers"])
    sys.stdout.write(
        f"\n{result['num_equal_trajectories']:,} of {result['num_trajectories']:,} trajectories and "
        f"{result['num_equal_rewards']:,} rewards are the same, with {result['num_answers']:,} answers of users; "
        f"the server got {result['num_requests']:,} requests when recorded and none when replayed\n"
        f"{json.dumps(result)}\n"
    )
    sys.exit(not result["identical"])


if __name__ == "__main__":
    main()
