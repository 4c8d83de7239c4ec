"""A scripted model for the vaguenizer: it shortens texts for real, and makes the mistakes that are dialled.

A server in a process of its own: `python -m tests.vague_model --latency-s 0.2` prints its base_url.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from tests.chat_server import ChatServer

Request = dict[str, Any]

# What a mistake makes of a precise text and of the right answer to it.
MISTAKES: Mapping[str, Callable[[str, str], str]] = {
    "not_empty": lambda precise, right: " ",
    "no_leak": lambda precise, right: f"Here is the vague version: {right}",
    "shorter": lambda precise, right: " ".join((right + " " + " ".join(["It is really quite bad."] * 2000)).split()),
    "same_language": lambda precise, right: (
        "Quando uso questo programma qualcosa non funziona come dovrebbe e non capisco il motivo di questo."
    ),
    "fewer_specifics": lambda precise, right: right + " " + " ".join(re.findall(r"\S*[\w)]+[._(]\w\S*", precise)[:12]),
    "nothing_added": lambda precise, right: f"{right} It began with 77.88.99 of it.",
    "same_intent": lambda precise, right: "Please paint the kitchen walls in some friendly colour before the summer.",
}


def rewrite(precise: str) -> str:
    """The first line that is prose, without names and whatever looks like code, in at most fourteen words."""
    for line in precise.splitlines():
        first, *others = line.split() or [""]
        words = [first] if re.fullmatch(r"[A-Za-z][a-z]*[,:]?", first) else []
        words += [word for word in others if re.fullmatch(r"\(?[a-z]+(?:['’-][a-z]+)?\)?[.,:;?!]*", word)]
        if len(words) >= 4:
            text = " ".join(words[:14]).strip("'(),:;. ")
            return text if text.endswith(("?", "!")) else f"{text}."
    return "Something does not work as it should."


def judge(precise: str, vague: str) -> dict[str, Any]:
    """The intent is the same if most words of the vague text are in the precise one."""
    words = re.findall(r"[a-z]{4,}", vague.casefold())
    shared = [word for word in words if word in precise.casefold()]
    same = len(shared) >= 0.5 * len(words)
    return {"reason": f"{len(shared)} of {len(words)} words are shared.", "same_intent": same}


class VagueModel:
    """The `reply` of a `ChatServer`.

    Args:
        mistakes: part of a precise text -> mistakes, made one per attempt, in order; after them it is right.
            A mistake that is not in `MISTAKES` is the text of the answer itself.
    """

    def __init__(self, mistakes: Mapping[str, list[str]] | None = None) -> None:
        self.mistakes = dict(mistakes or {})
        self.num_written: dict[str, int] = {}

    def __call__(self, request: Request) -> str | dict[str, Any]:
        opening = next(message["content"] for message in request["messages"] if message["role"] == "user")
        if not opening.startswith("{"):
            return "OK"  # the check at the start
        data = json.loads(opening)
        if "vague" in data:
            return judge(data["precise"], data["vague"])
        (precise,) = data.values()
        self.num_written[precise] = self.num_written.get(precise, 0) + 1
        feedback = re.findall(r"attempt (\d+) of", request["messages"][-1]["content"])
        attempt = int(feedback[0]) if feedback else 0
        right = rewrite(precise)
        for part, mistakes in self.mistakes.items():
            if part in precise and attempt < len(mistakes):
                mistake = mistakes[attempt]
                text = MISTAKES[mistake](precise, right) if mistake in MISTAKES else mistake
                return {"text": text}
        return {"text": right}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency-s", type=float, default=0.0)
    arguments = parser.parse_args()
    with ChatServer(VagueModel(), latency_s=arguments.latency_s) as server:
        sys.stdout.write(server.base_url + "\n")
        sys.stdout.flush()
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
