"""`python tests/asking_train.py ...` is `ppp train ...` with the toy environment and a policy made of rules that asks.

Only the engine is replaced: what is trained is the recipe's model. `ASKING_RANK` lets one process alone ask.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
import toy

import ppp.train
from ppp.codec import Codec
from ppp.engines.scripted import ScriptedEngine
from ppp.recipe import Recipe
from ppp.types import Task, ToolCall, Turn

QUESTIONS = ("Which module?", "Which file of it?")


class AskTwice:
    """Asks both questions, unless it is not its turn, and finishes."""

    def __init__(self) -> None:
        self.questions = QUESTIONS if os.environ.get("ASKING_RANK") in (None, os.environ.get("RANK")) else ()

    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall | None]:
        if len(turns) < len(self.questions):
            return "Asking.", ToolCall("ask_user", {"query": self.questions[len(turns)]})
        return "Done.", ToolCall("finish", {"answer": "f1"})


def scripted_engine(recipe: Recipe, codec: Codec, model_provider: Any) -> ScriptedEngine:
    """Takes the place of `build_engine`."""
    return ScriptedEngine(codec, AskTwice())


if __name__ == "__main__":
    torch.set_num_threads(1)
    toy.register()
    ppp.train.build_engine = scripted_engine
    sys.exit(ppp.train.main())
