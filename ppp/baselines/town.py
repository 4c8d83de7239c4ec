"""Rule-made agents of the town: the three policies to compare with, and the mediocre demonstrator of the warm start.

They see what a policy sees: the issue, the observations, and (demonstrator only) the stated preference. None reads the
payload. Each is a `Policy`: `act(task, turns) -> (text, call)`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ppp.baselines.town_phrases import CARELESS, IRRELEVANT, SOLUTION, SUBJECTS, form_for, render_plan, render_question
from ppp.environments.town import DETAILS, MODULES, OBJECTS, OPERATIONS, file_path
from ppp.types import Task, ToolCall, Turn

VALUES = {"module": MODULES, "operation": OPERATIONS, "object": OBJECTS}
ENTRY = re.compile(r"(\w+) (f\d+)")


def known_details(task: Task, turns: Sequence[Turn]) -> dict[str, str]:
    """The details stated by the issue or by the user so far."""
    texts = [task.prompt, *(turn.answer.text for turn in turns if turn.answer is not None)]
    words = [word for text in texts for word in re.findall(r"\w+", text)]
    return {detail: word for word in words for detail, values in VALUES.items() if word in values}


def opened_files(turns: Sequence[Turn]) -> dict[str, list[tuple[str, str]]]:
    """Path -> (object, function name) pairs, of every file that was opened with success."""
    return {
        str(turn.call.arguments["path"]): ENTRY.findall(turn.observation or "")
        for turn in turns
        if turn.call is not None and turn.call.name == "open_file" and not turn.is_error
    }


def open_call(path: str) -> ToolCall:
    return ToolCall("open_file", {"path": path})


def ask_call(query: str) -> ToolCall:
    return ToolCall("ask_user", {"query": query})


def finish(entry: tuple[str, str]) -> tuple[str, ToolCall]:
    """Say which object is meant, then answer with its function."""
    obj, name = entry
    return f"The {obj}", ToolCall("finish", {"answer": name})


def rng_of(task: Task, salt: str) -> random.Random:
    return random.Random(f"{salt}|{task.task_id}|{task.preference}|{task.prompt}")


class TownAgent:
    """Reads the right file and answers from its listing; `asks` says whether it asks for everything first."""

    asks = False

    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall]:
        rng = rng_of(task, type(self).__name__)
        if self.asks and not turns:
            return "", ask_call(render_question("plain", DETAILS, rng))
        known = known_details(task, turns)
        files = opened_files(turns)
        path = file_path(*(known.get(detail) or rng.choice(VALUES[detail]) for detail in ("module", "operation")))
        if path not in files:
            return "", open_call(path)
        entries = [entry for entry in files[path] if entry[0] == known.get("object")]
        return finish(rng.choice(entries or files[path]))


class AlwaysAsk(TownAgent):
    """Asks every user for all three details before it starts, whatever the issue says."""

    asks = True


class NeverAsk(TownAgent):
    """Never asks; guesses what the issue leaves out."""


class PlausibleName(TownAgent):
    """Asks, and then composes a likely function name instead of reading the listing."""

    asks = True

    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall]:
        if not turns:
            return super().act(task, turns)
        known = known_details(task, turns)
        obj = known.get("object", "data")
        return finish((obj, f"{known.get('operation', 'handle')}_{obj}"))


@dataclass(frozen=True, slots=True)
class DemonstrationPlan:
    """What one demonstration is going to do, drawn before it starts."""

    heed: bool  # puts its questions the way the user likes
    num_questions: int
    first: bool  # asks before it opens a file
    together: bool  # asks for several details in one question


class Demonstrator:
    """Competent with tools, careless with people: asks at random, often for nothing useful, mostly in a random form.

    Args:
        ask_probability: share of sessions with a question, vague or not.
        heed_probability: share of sessions that go by the user's preference.
    """

    def __init__(self, seed: int = 0, ask_probability: float = 0.5, heed_probability: float = 0.35) -> None:
        self.seed = seed
        self.ask_probability = ask_probability
        self.heed_probability = heed_probability

    def plan(self, task: Task) -> DemonstrationPlan:
        rng = rng_of(task, f"plan-{self.seed}")
        heed = rng.random() < self.heed_probability
        asks = rng.random() < self.ask_probability
        number = rng.choices((1, 2, 3), (0.55, 0.3, 0.15))[0] if asks else 0
        first, together = rng.random() < 0.5, rng.random() < 0.3
        if heed:
            match task.preference:
                case "no_ask":
                    number = 0
                case "answer_more":
                    number = 3
                case "only_begin":
                    number, first = min(number, 1), True
                case "ask_many":
                    number, together = min(number, 1), True
                case "one_question":
                    together = False
                case "first_try":
                    first = False
        return DemonstrationPlan(heed, number, first, together)

    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall]:
        plan = self.plan(task)
        rng = rng_of(task, f"turn-{self.seed}-{len(turns)}")
        known = known_details(task, turns)
        missing = [detail for detail in DETAILS if detail not in known]
        text = "" if turns else render_plan(task.preference, plan.heed, missing)
        asked = sum(turn.answer is not None for turn in turns)
        files = opened_files(turns)
        if asked < plan.num_questions and (plan.first or files):
            return text, self._ask(task, missing, plan, rng)
        path = file_path(*(known.get(detail) or rng.choice(VALUES[detail]) for detail in ("module", "operation")))
        if not files or ("module" in known and "operation" in known and path not in files):
            return text, open_call(path)
        opened = files[path] if path in files else list(files.values())[-1]
        entries = [entry for entry in opened if entry[0] == known.get("object")]
        return finish(rng.choice(entries or opened))

    def _ask(self, task: Task, missing: Sequence[str], plan: DemonstrationPlan, rng: random.Random) -> ToolCall:
        luck = rng.random()
        if luck < 0.6 and missing:
            subjects = [rng.choice(missing)]
        elif luck < 0.68:
            subjects = [rng.choice(DETAILS)]
        elif luck < 0.88:
            subjects = [rng.choice(IRRELEVANT)]
        else:
            subjects = [SOLUTION]
        if plan.together and subjects[0] in DETAILS:
            subjects = sorted(rng.sample(DETAILS, rng.choice((2, 3))), key=SUBJECTS.index)
        form = (form_for(task.preference) if plan.heed else None) or rng.choice(CARELESS)
        return ask_call(render_question(form, subjects, rng))
