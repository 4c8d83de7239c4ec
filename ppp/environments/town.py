"""The town: a synthetic domain that needs no download, small enough for a policy of a hundred thousand parameters.

A town is a code base with a file for every (module, operation). A file holds four functions, each working on one
object, under a name that says nothing (`f12`): the function to edit can only be read off the listing, never composed.
An issue names module, operation and object; its vague form keeps some of them to itself, one to three. Nothing in here
knows how questions are phrased: see `users/scripted.py` for the people of the town and `baselines/town.py` for its
rule-made agents.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator

from ppp.environments.base import Environment, set_f1
from ppp.types import Observation, RecipeError, Source, Task, ToolCall, ToolSpec

MODULES = ("parser", "cache", "router", "session", "scheduler", "logger", "config", "upload", "export", "auth")
OPERATIONS = ("loading", "saving", "deleting", "merging", "checking", "sorting")
OBJECTS = ("header", "index", "token", "table", "record", "image", "report", "key", "queue", "page")
SYMPTOMS = ("fails", "is broken", "gives an error")
DETAILS = ("module", "operation", "object")  # what a vague issue can leave out, in the order in which issues name them

NUM_FUNCTION_NAMES = 64  # f0 ... f63, unique within a file
FUNCTIONS_PER_FILE = 4
NUM_MISSING = (1, 1, 1, 2, 2, 3)  # how many details a vague issue leaves out; drawn uniformly from this tuple

LIST_FILES = ToolSpec(
    "list_files",
    "List the files of a module.",
    {"type": "object", "properties": {"module": {"type": "string"}}, "required": ["module"]},
)
OPEN_FILE = ToolSpec(
    "open_file",
    "Show the functions of a file, each with the object that it works on.",
    {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
)

# key of a payload -> what it holds, as a JSON schema
PAYLOAD: dict[str, dict[str, Any]] = {
    "town_seed": {"type": "string", "minLength": 1, "description": "a text that is not empty"},
    "details": {
        "type": "object",
        "properties": {
            "module": {"enum": list(MODULES)},
            "operation": {"enum": list(OPERATIONS)},
            "object": {"enum": list(OBJECTS)},
        },
        "required": list(DETAILS),
        "description": "a module, an operation and an object of the town",
    },
    "missing": {"type": "array", "items": {"enum": list(DETAILS)}, "description": f"a list of {', '.join(DETAILS)}"},
    "functions": {
        "type": "array",
        "items": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2},
        "minItems": 1,
        "description": "a list of [object, function name], not empty",
    },
    "gold": {
        "type": "array",
        "items": {"type": "string"},
        "minItems": 1,
        "description": "a list of function names, not empty",
    },
}


def file_path(module: str, operation: str) -> str:
    return f"{module}/{operation}.py"


def is_held_out(module: str, operation: str, obj: str) -> bool:
    """Whether this combination belongs to the test tasks: every fifth, spread evenly over the three details."""
    return (MODULES.index(module) * 7 + OPERATIONS.index(operation) * 3 + OBJECTS.index(obj)) % 5 == 0


def draw_functions(rng: random.Random, must_have: str | None = None) -> list[tuple[str, str]]:
    """Draw a file's (object, function name) pairs in the order of the listing, one of them for `must_have`."""
    objects = rng.sample(OBJECTS, FUNCTIONS_PER_FILE)
    if must_have is not None and must_have not in objects:
        objects[rng.randrange(FUNCTIONS_PER_FILE)] = must_have
    names = [f"f{number}" for number in rng.sample(range(NUM_FUNCTION_NAMES), FUNCTIONS_PER_FILE)]
    return list(zip(objects, names, strict=True))


def render_listing(functions: Sequence[tuple[str, str]]) -> str:
    return "Functions: " + "; ".join(f"{obj} {name}" for obj, name in functions)


def render_issue(module: str, operation: str, obj: str, symptom: str, missing: Sequence[str] = ()) -> str:
    """The issue's text; every detail in `missing` is replaced by words that say nothing."""
    where = "Somewhere" if "module" in missing else f"In {module}"
    what = "handling" if "operation" in missing else operation
    which = "data" if "object" in missing else obj
    return f"{where}, {what} the {which} {symptom}."


def town_task_rows(split: str, num: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield `num` task rows of the train or the test split; row i of (split, seed) is always the same town.

    A row has the keys task_id, environment, vague_prompt, precise_prompt and payload, as every source of tasks does.

    Raises:
        RecipeError: an unknown split, no number of tasks, or a seed below 0.
    """
    if split not in ("train", "test"):
        raise RecipeError(f"split: unknown value {split!r}; allowed: 'train', 'test'")
    for name, value, least in (("num", num, 1), ("seed", seed, 0)):
        if type(value) is not int or value < least:  # a bool is an int to isinstance
            raise RecipeError(f"{name}: {value!r} is not allowed; allowed: an integer of at least {least}")
    for index in range(num):
        rng = random.Random(f"town-{split}-{seed}-{index}")
        while True:
            module, operation, obj = rng.choice(MODULES), rng.choice(OPERATIONS), rng.choice(OBJECTS)
            if is_held_out(module, operation, obj) == (split == "test"):
                break
        symptom = rng.choice(SYMPTOMS)
        missing = sorted(rng.sample(DETAILS, rng.choice(NUM_MISSING)), key=DETAILS.index)
        functions = draw_functions(rng, must_have=obj)
        yield {
            "task_id": f"town-{split}-{seed}-{index}",
            "environment": "town",
            "vague_prompt": render_issue(module, operation, obj, symptom, missing),
            "precise_prompt": render_issue(module, operation, obj, symptom),
            "payload": {
                "town_seed": f"{split}-{seed}-{index}",
                "details": {"module": module, "operation": operation, "object": obj},
                "missing": missing,
                "functions": [list(pair) for pair in functions],
                "gold": [dict(functions)[obj]],
            },
        }


class TownEnvironment(Environment):
    """One town: two read-only tools over files that are generated when they are looked at."""

    tools = (LIST_FILES, OPEN_FILE)
    system_prompt = "town_system.txt"

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        if options:
            raise RecipeError(f"environment_options.town: unknown option {next(iter(options))!r}; town has none")

    @classmethod
    def check_task(cls, task: Task) -> None:
        for key, schema in PAYLOAD.items():
            value = task.payload.get(key)
            if not Draft202012Validator(schema).is_valid(value):
                where = f"payload.{key}: {value!r} is not allowed in task {task.task_id!r}"
                raise RecipeError(f"{where}; allowed: {schema['description']}")

    @classmethod
    def sources(cls, task: Task) -> tuple[Source, ...]:
        """File and function of the right answer: what an issue of the town never says."""
        details, gold = task.payload["details"], tuple(task.payload["gold"])
        path = file_path(details["module"], details["operation"])
        return (
            Source("gold_files", path, (path,), level=4),
            Source("gold_functions", "\n".join(gold), gold, level=5),
        )

    async def step(self, call: ToolCall) -> Observation:
        if call.name == "list_files":
            module = call.arguments["module"]
            if module not in MODULES:
                return Observation("No such module", is_error=True)
            return Observation("Files: " + "; ".join(file_path(module, operation) for operation in OPERATIONS))
        functions = self._functions(call.arguments["path"])
        if functions is None:
            return Observation("No such file", is_error=True)
        return Observation(render_listing(functions))

    def _functions(self, path: str) -> list[tuple[str, str]] | None:
        """The listing of one file: the one with the answer comes with the task, the others are drawn from its seed."""
        details = self.task.payload["details"]
        if path == file_path(details["module"], details["operation"]):
            return [(obj, name) for obj, name in self.task.payload["functions"]]
        module, _, rest = path.partition("/")
        if module not in MODULES or rest.removesuffix(".py") not in OPERATIONS or not rest.endswith(".py"):
            return None
        return draw_functions(random.Random(f"{self.task.payload['town_seed']}-{path}"))

    async def score(self, answer: str | None) -> float:
        """Set F1 of the function names in `answer`, one a line. Source: PPP section 4.1 (func-loc metric)."""
        if answer is None:
            return 0.0
        predicted = {line.strip() for line in answer.splitlines() if line.strip()}
        return set_f1(predicted, set(self.task.payload["gold"]))
