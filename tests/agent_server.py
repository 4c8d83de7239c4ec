"""Rule-made agents behind OpenAI's protocol, with native tool calls: what they do follows from messages and seed alone.

    python tests/agent_server.py --environment town --port 0

prints its base_url and serves until it is killed. Now and then, as the seed has it, the model says something without
making a call, so that another seed gives other sessions.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from chat_server import ChatServer, Request, Said, default_reply

from ppp.baselines.func_loc_read import ReadAgent
from ppp.baselines.town import Demonstrator
from ppp.engines.scripted import Policy
from ppp.preferences import PREFERENCES
from ppp.session import FINISH
from ppp.types import Answer, Effort, Task, ToolCall, Turn

SLIPS = 0.1  # share of turns without a call

# environment -> who plays it; both see what a policy sees
AGENTS: dict[str, Callable[[], Policy]] = {
    "town": Demonstrator,
    "func_loc": lambda: ReadAgent(ask=True, max_listings=8, max_searches=3, max_files=1, max_pages=3),
}


class AgentServer(ChatServer):
    """A server whose model plays sessions of one environment.

    Args:
        environment: a key of `AGENTS`.
        pause_after: turns after which requests arrive but are not answered until `resume` is set; None never pauses.
        options: of the server.
    """

    def __init__(self, environment: str, pause_after: int | None = None, **options: Any) -> None:
        super().__init__(self._reply, keeps=False, **options)
        self.policy = AGENTS[environment]()
        self.pause_after, self.num_turns = pause_after, 0

    def _reply(self, request: Request) -> str | dict[str, Any] | Said:
        if "tools" not in request:
            return default_reply(request)
        messages = request["messages"]
        offered = [tool["function"]["name"] for tool in request["tools"]]
        if FINISH.name not in offered:  # somebody finds out whether it knows tools
            return said("", ToolCall(offered[0], {"state": "ready"}), len(messages))
        return said(*self._act(messages, request.get("seed")), len(messages))

    def _act(self, messages: Sequence[dict[str, Any]], seed: int | None) -> tuple[str, ToolCall | None]:
        self.num_turns += 1
        if self.num_turns == self.pause_after:
            self.resume.clear()
        if random.Random(f"slip-{seed}").random() < SLIPS:
            return "I wonder.", None
        return self.policy.act(*read_session(messages))


def said(text: str, call: ToolCall | None, number: int) -> Said:
    """A turn as the protocol has it."""
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    if call is not None:
        function = {"name": call.name, "arguments": json.dumps(dict(call.arguments))}
        message["tool_calls"] = [{"id": f"call{number}", "type": "function", "function": function}]
    return Said(message)


def read_session(messages: Sequence[dict[str, Any]]) -> tuple[Task, list[Turn]]:
    """The task and the turns so far, as far as a conversation tells them; turns without a call are passed over."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    told = (name for name, preference in PREFERENCES.items() if preference.description in system)
    prompt = next(message["content"] for message in messages if message["role"] == "user")
    task = Task("", "", prompt, prompt, next(told, "no_preference"), {})
    observations = {m["tool_call_id"]: m["content"] for m in messages if m["role"] == "tool"}
    turns = []
    for message in messages:
        for made in message.get("tool_calls") or ():
            call = ToolCall(made["function"]["name"], json.loads(made["function"]["arguments"]))
            turn = Turn([], [], message, call, observations[made["id"]])
            if call.name == "ask_user":
                turn.question = call.arguments["query"]
                turn.answer = Answer(observations[made["id"]], Effort.LOW, True)
            turns.append(turn)
    return task, turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", choices=list(AGENTS), default="town")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(AgentServer(arguments.environment, port=arguments.port).serve())


if __name__ == "__main__":
    main()
