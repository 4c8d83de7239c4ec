"""From task rows to the data set that TRL samples from: loading, checking, the 12 vague + 1 precise expansion, mixing.

A task row is a mapping with the keys of `TASK_FIELDS`; a row of the data set is `{"prompt": messages, "task": JSON}`,
JSON because Arrow would merge the payloads of different environments into one schema. Where rows come from is the
recipe's matter (`train_tasks`); what a payload must hold is the environment's (`check_task`). How a Task is played:
`rollout.py`.
"""

from __future__ import annotations

import inspect
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetNotFoundError

from ppp.environments import environment_class
from ppp.preferences import SEEN
from ppp.types import PPPError, RecipeError, Task

TASK_FIELDS: dict[str, type] = {
    "task_id": str,
    "environment": str,
    "vague_prompt": str,  # or None: this task has no vague form
    "precise_prompt": str,
    "payload": dict,
}

# Environments that make or convert their own tasks: name -> function(**options) -> task rows.
GENERATORS = {
    "town": "ppp.environments.town:town_task_rows",
    "func_loc": "ppp.swe.rows:func_loc_task_rows",
}

TaskRow = Mapping[str, Any]
Messages = list[dict[str, Any]]


def load_task_rows(field: str, environment: str, options: Mapping[str, Any]) -> list[TaskRow]:
    """Load and check the task rows of one environment.

    Args:
        field: the recipe's field, for messages.
        options: `{"path": file or Hub data set, ["split": ...]}`, or the options of the environment's generator.

    Raises:
        RecipeError: unusable options, a missing file, a malformed row (with its line), no rows at all.
    """
    field = f"{field}.{environment}"
    rows = _checked(field, environment, _read(field, environment, options))
    if not rows:
        raise RecipeError(f"{field}: {dict(options)!r} holds no task; at least one is needed")
    return rows


def check_task_rows(field: str, environment: str, raws: Iterable[Any]) -> list[TaskRow]:
    """Check the task rows of one environment that a program has made itself.

    Raises:
        RecipeError: a malformed row (with its number, from 1), or no rows at all.
    """
    rows = _checked(field, environment, ((f"{field}, row {number}", raw) for number, raw in enumerate(raws, start=1)))
    if not rows:
        raise RecipeError(f"{field}: no task; at least one is needed")
    return rows


def _checked(field: str, environment: str, raws: Iterable[tuple[str, Any]]) -> list[TaskRow]:
    """The rows, each (where it stands, row), as they pass."""
    rows: list[TaskRow] = []
    seen: set[str] = set()
    for where, raw in raws:
        row = check_task_row(raw, environment, where)
        if row["task_id"] in seen:
            raise RecipeError(f"{where}: task_id {row['task_id']!r} occurs twice; it must be unique in {field}")
        seen.add(row["task_id"])
        rows.append(row)
    return rows


def _read(field: str, environment: str, options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (where it stands, raw row) from a generator, a file or the Hub."""
    if environment in GENERATORS:
        module, _, name = GENERATORS[environment].partition(":")
        generate: Callable[..., Iterator[TaskRow]] = vars(import_module(module))[name]
        known = inspect.signature(generate).parameters
        if "path" not in options or "path" in known:
            try:
                inspect.signature(generate).bind(**options)
            except TypeError as error:
                allowed = ", ".join(known)
                raise RecipeError(f"{field}: {dict(options)!r} does not fit ({error}); allowed: {allowed}") from error
            try:
                for number, row in enumerate(generate(**options), start=1):
                    yield f"{field}, task {number}", row
            except RecipeError as error:
                # About an option of the recipe, or about a row, in which case it names the place itself.
                prefix = f"{field}." if str(error).partition(":")[0] in known else ""
                raise RecipeError(f"{prefix}{error}") from error
            return
    unknown = sorted(set(options) - {"path", "split"})
    if unknown or not isinstance(options.get("path"), str):
        wrong = f" ({', '.join(unknown)})" if unknown else ""
        raise RecipeError(f"{field}: {dict(options)!r} does not fit{wrong}; allowed: path (a string) and split")
    path = Path(options["path"])
    if path.suffix in (".jsonl", ".json", ".parquet") or path.exists():
        yield from _read_file(field, path)
    else:
        yield from _read_hub(field, options["path"], str(options.get("split", "train")))


def _read_file(field: str, path: Path) -> Iterator[tuple[str, Any]]:
    if not path.is_file():
        raise RecipeError(f"{field}: the file {str(path)!r} does not exist; name a JSONL or parquet file of task rows")
    if path.suffix == ".parquet":
        try:
            rows = Dataset.from_parquet(str(path), keep_in_memory=True)
        except (OSError, ValueError) as error:
            raise RecipeError(f"{field}: {str(path)!r} is not a parquet file ({error})") from error
        for number, row in enumerate(rows, start=1):
            yield f"{path}, row {number}", _decode_payload(row, f"{path}, row {number}")
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield f"{path}, line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise RecipeError(f"{path}, line {number}: not a JSON object ({error.msg})") from error
            except UnicodeDecodeError as error:
                raise RecipeError(f"{path}, line {number}: not UTF-8 ({error.reason})") from error


def _read_hub(field: str, name: str, split: str) -> Iterator[tuple[str, Any]]:
    try:
        dataset = load_dataset(name, split=split)
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError, ValueError) as error:
        raise RecipeError(f"{field}: {name!r} (split {split!r}) is neither a file nor a data set: {error}") from error
    for number, row in enumerate(dataset, start=1):
        yield f"{name}/{split}, row {number}", _decode_payload(row, f"{name}/{split}, row {number}")


def _decode_payload(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """In parquet a payload may stand as JSON text, so that payloads of different shape fit into one column."""
    payload = row.get("payload")
    try:
        return {**row, "payload": json.loads(payload)} if isinstance(payload, str) else dict(row)
    except json.JSONDecodeError as error:
        raise RecipeError(f"{where}: payload is not JSON ({error.msg})") from error


def check_task_row(raw: Any, environment: str, where: str) -> TaskRow:
    """Return `raw` if it is a task row of `environment` whose payload the environment accepts.

    Raises:
        RecipeError: naming the place, the field, its value and what is expected.
    """
    if not isinstance(raw, Mapping):
        raise RecipeError(f"{where}: {str(raw)[:80]!r} is not an object with the fields {', '.join(TASK_FIELDS)}")
    row = {"environment": environment, **raw}
    for field, kind in TASK_FIELDS.items():
        if field not in row:
            raise RecipeError(f"{where}: the field {field!r} is missing; a task has {', '.join(TASK_FIELDS)}")
        if field == "vague_prompt" and row[field] is None:
            continue
        if not isinstance(row[field], kind) or not row[field]:
            raise RecipeError(f"{where}: {field} is {str(row[field])[:80]!r}; expected a non-empty {kind.__name__}")
    if row["environment"] != environment:
        raise RecipeError(f"{where}: environment is {row['environment']!r}; expected {environment!r}")
    try:
        environment_class(environment).check_task(_precise(row, "no_preference"))
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error
    return row


def _precise(row: TaskRow, preference: str, copy: str = "precise") -> Task:
    return Task(
        task_id=f"{row['task_id']}/{copy}",
        environment=row["environment"],
        prompt=row["precise_prompt"],
        precise_prompt=row["precise_prompt"],
        preference=preference,
        payload=row["payload"],
    )


def expand(task_rows: Sequence[TaskRow], preferences: Sequence[str], seed: int, num_precise: int = 1) -> list[Task]:
    """Make each task into one vague session per preference and `num_precise` precise ones. Source: PPP section 4.

    Users of precise sessions are drawn per task from the seen preferences in `preferences`, except answer_more, which
    would punish rightly staying silent; the paper does not say how.

    Raises:
        RecipeError: more precise sessions than users to draw from.
    """
    drawn_from = [name for name in preferences if name in SEEN and name != "answer_more"]
    drawn_from = drawn_from or [name for name in preferences if name != "answer_more"]
    if num_precise > len(drawn_from):
        raise RecipeError(
            f"num_precise_per_task: {num_precise!r} is not allowed; at most {len(drawn_from)} with these preferences"
        )
    tasks: list[Task] = []
    for row in task_rows:
        for preference in preferences if row["vague_prompt"] is not None else ():
            tasks.append(
                Task(
                    task_id=f"{row['task_id']}/{preference}",
                    environment=row["environment"],
                    prompt=row["vague_prompt"],
                    precise_prompt=row["precise_prompt"],
                    preference=preference,
                    payload=row["payload"],
                )
            )
        rng = random.Random(f"precise-{seed}-{row['task_id']}")
        for preference in rng.sample(drawn_from, num_precise):
            tasks.append(_precise(row, preference, f"precise/{preference}"))
    return tasks


def mix(tasks: Mapping[str, Sequence[Task]], shares: Mapping[str, float], seed: int) -> list[Task]:
    """Interleave the sessions of several environments so that any stretch of the list has the given shares.

    Every session occurs; those of an environment with too few come again. The order depends on `seed` alone. TRL's
    sampler shuffles the list again unless `shuffle_dataset` is false: then a batch has the shares on average only.
    """
    total = sum(shares.values())
    length = max(math.ceil(len(tasks[name]) * total / shares[name]) for name in tasks)
    pools = {name: _cycle(list(tasks[name]), random.Random(f"mix-{seed}-{name}")) for name in tasks}
    taken = dict.fromkeys(tasks, 0)
    mixed: list[Task] = []
    for position in range(1, length + 1):
        # The environment that lags furthest behind its share is next; ties go to the first name.
        name = max(sorted(taken), key=lambda name: position * shares[name] / total - taken[name])
        taken[name] += 1
        mixed.append(next(pools[name]))
    return mixed


def _cycle(tasks: list[Task], rng: random.Random) -> Iterator[Task]:
    """Yield the tasks in a random order, again and again in new ones."""
    while True:
        rng.shuffle(tasks)
        yield from tasks


def to_dataset(
    tasks: Sequence[Task], render: Callable[[Task], Messages], count_tokens: Callable[[Task], int], max_tokens: int
) -> Dataset:
    """The data set for TRL: one row per session.

    Args:
        render: the messages of a task's prompt.
        count_tokens: the length of the rendered prompt in tokens.

    Raises:
        RecipeError: a prompt longer than `max_tokens`, by row.
    """
    counted: dict[tuple[str, str], int] = {}
    rows = []
    for number, task in enumerate(tasks, start=1):
        # Prompts of one task differ by a line of preference; a session that comes again is not counted again.
        key = (task.environment, task.task_id)
        if key not in counted:
            counted[key] = count_tokens(task)
        if counted[key] > max_tokens:
            raise RecipeError(
                f"task {task.task_id!r} (session {number}): the prompt has {counted[key]} tokens; "
                f"at most {max_tokens} fit (limits.max_prompt_tokens)"
            )
        rows.append({"prompt": render(task), "task": task.to_json()})
    if not rows:
        raise PPPError("a data set without sessions")  # expand() of at least one row never gives this
    return Dataset.from_list(rows)
