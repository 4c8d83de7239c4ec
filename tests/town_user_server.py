"""The people of the town, made of rules, behind OpenAI's protocol: a model server whose model is `users/scripted.py`.

    python tests/town_user_server.py --port 0

prints its base_url and serves until it is killed. It reads the prompt of `user: {kind: llm}` and answers like the
scripted user, as far as that prompt tells what it needs: which details the vague prompt holds, it cannot know.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

from chat_server import ChatServer, default_reply

from ppp.environments.town import MODULES, OBJECTS, OPERATIONS
from ppp.preferences import PREFERENCES
from ppp.users.scripted import ALREADY_SAID, CRITERIA, DONT_KNOW, NOUNS, SOLUTION, WORD

VALUES = {"module": MODULES, "operation": OPERATIONS, "object": OBJECTS}


def town_reply(request: Mapping[str, Any]) -> str | dict[str, Any]:
    """What a person of the town answers; the smallest object that fits where it is asked for something else."""
    messages = request["messages"]
    knows = user_message(messages)
    if knows is None:
        return default_reply(dict(request))
    question = knows["question"]
    system = messages[0]["content"]
    follows = all(
        CRITERIA[name](question, []) for name in CRITERIA if PREFERENCES[name].criterion and _holds(system, name)
    )
    if "report" not in knows:  # a judge's prompt
        return {"follows_preference": follows}
    return {**answer(knows, question), "follows_preference": follows}


def user_message(messages: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The object that the prompt is about, or None."""
    for message in messages[1:2]:
        with contextlib.suppress(ValueError):
            found = json.loads(message["content"])
            if isinstance(found, dict) and "question" in found:
                return found
    return None


def _holds(system: str, name: str) -> bool:
    return PREFERENCES[name].criterion in system or PREFERENCES[name].description in system


def answer(knows: Mapping[str, Any], question: str) -> dict[str, str]:
    """The details that were asked for; the file, looked up at high effort, where the solution was asked for."""
    details = details_of(knows["report"])
    for name, text in knows["sources"].items():
        if SOLUTION.search(question):
            return {"answer": f"It is {text}.", "source": name}
    words = {word.lower() for word in WORD.findall(question)}
    named = [detail for detail, nouns in NOUNS.items() if words.intersection(nouns) and detail in details]
    said = json.dumps(knows.get("conversation", ""))
    new = [detail for detail in named if f"the {detail} is {details[detail]}" not in said.lower()]
    if not new:
        return {"answer": ALREADY_SAID if named else DONT_KNOW, "source": "unknown"}
    return {"answer": state(details, new), "source": "task"}


def details_of(report: str) -> dict[str, str]:
    """The module, operation and object that a report names."""
    words = re.findall(r"\w+", report)
    found = {name: [word for word in words if word in values] for name, values in VALUES.items()}
    return {name: values[0] for name, values in found.items() if values}


def state(details: Mapping[str, str], names: list[str]) -> str:
    text = " and ".join(f"the {name} is {details[name]}" for name in names)
    return text[0].upper() + text[1:] + "."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    server = ChatServer(reply=town_reply, port=parser.parse_args().port, keeps=False)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(server.serve())


if __name__ == "__main__":
    main()
