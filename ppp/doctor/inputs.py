"""Checks of what goes in: the rows of tasks with the lengths of their prompts, and the tokenizer."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ppp.chat_template import OBSERVED, PROBE
from ppp.codec import Codec
from ppp.data import load_task_rows
from ppp.doctor.patient import Patient
from ppp.doctor.results import Result, failed, ok, warning
from ppp.doctor.text import one_line
from ppp.environments import environment_class
from ppp.recipe import Recipe
from ppp.recipe_config import source_options
from ppp.session import Toolbox, build_messages
from ppp.train import check_steps, load_sessions
from ppp.types import RecipeError, Task, ToolCall, ToolSpec

NUM_MEASURED = 200  # sessions whose prompts are measured; that none is too long is checked for all
TIGHT = 0.9  # of a limit
WORD = "value"  # stands for any text in a call that is tried
MANY_TIMES = 50  # sessions of a run over those that there are


def check_data(patient: Patient) -> Result:
    """Rows parse, there are enough of them, and their prompts fit."""
    recipe = patient.told
    try:
        codec = patient.codec
    except RecipeError:
        return _rows_alone(recipe)
    problems, counts, lengths = [], {}, []
    for field, preferences in _sources(recipe):
        try:
            training = field == "train_tasks"
            sessions = patient.sessions if training else load_sessions(recipe, codec, field, preferences)
            if training:
                check_steps(recipe, len(sessions), bool(recipe.config.eval_tasks))
        except RecipeError as error:
            problems.append(one_line(str(error), 500))
            continue
        tasks = [Task.from_json(text) for text in sessions["task"]]
        counts[field] = {
            "tasks": len({(task.environment, task.precise_prompt) for task in tasks}),
            "sessions": len(tasks),
            "precise": sum(task.is_precise for task in tasks),
        }
        lengths += [len(prompt_ids(recipe, codec, task)) for task in tasks[:: max(1, len(tasks) // NUM_MEASURED)]]
    if problems:
        return failed("; ".join(problems), "mend the rows, or change what the recipe names", {"counts": counts})
    return _judge(recipe, counts, lengths)


def _sources(recipe: Recipe) -> Sequence[tuple[str, Sequence[str]]]:
    """Fields of the recipe that name tasks, each with the users who meet them."""
    config = recipe.config
    found: list[tuple[str, Sequence[str]]] = [("train_tasks", config.preferences)]
    return [*found, ("eval_tasks", config.eval_preferences)] if config.eval_tasks else found


def _rows_alone(recipe: Recipe) -> Result:
    """What can be said of the rows without a tokenizer."""
    problems, counts = [], {}
    for field, _ in _sources(recipe):
        sources = vars(recipe.config)[field]
        for name in sources:
            try:
                counts[f"{field}.{name}"] = len(load_task_rows(field, name, source_options(field, sources, name)))
            except RecipeError as error:
                problems.append(one_line(str(error), 500))
    if problems:
        return failed("; ".join(problems), "mend the rows, or change what the recipe names", {"counts": counts})
    found = ", ".join(f"{number} rows in {name}" for name, number in counts.items())
    text = f"{found}; without a tokenizer nothing is known of the length of prompts"
    return warning(text, "see the check of the tokenizer first", {"counts": counts})


def _judge(recipe: Recipe, counts: Mapping[str, Mapping[str, int]], lengths: Sequence[int]) -> Result:
    """What the numbers of sessions and the lengths of prompts, which are those of a sample, say."""
    args = recipe.args
    limit = recipe.config.build_limits(args.max_completion_length or 1).max_prompt_tokens
    found = "; ".join(
        f"{field}: {count['tasks']} tasks, {count['sessions']} sessions ({count['precise']} of them precise)"
        for field, count in counts.items()
    )
    median, longest = int(statistics.median(lengths)), max(lengths)
    text = f"{found}; prompts of {median} tokens (median) and up to {longest}, of {limit} allowed"
    details = {"counts": counts, "prompt_tokens": {"median": median, "max": longest, "limit": limit}}
    if longest > TIGHT * limit:
        return warning(text, "raise limits.max_prompt_tokens: it is nearly reached", details)
    taken = args.generation_batch_size // args.num_generations * max(args.max_steps, 0)
    times = taken / counts["train_tasks"]["sessions"]
    if times > MANY_TIMES:
        return warning(f"{text}; the run plays each session {times:.0f} times", "bring more tasks", details)
    return ok(text, details)


def prompt_ids(recipe: Recipe, codec: Codec, task: Task) -> list[int]:
    """The prompt of a session, as the pool renders it."""
    config = recipe.config
    environment = environment_class(task.environment, config.environment_options.get(task.environment))
    messages = build_messages(task, environment, config.preference_visibility, config.interaction)
    return codec.prompt_ids(messages, Toolbox.of(environment, config.interaction).specs)


def check_tokenizer(patient: Patient) -> Result:
    """Template, EOS and pad token; every tool's call is read as it was written, and observations stay plain text."""
    config = patient.told.config
    try:
        tokenizer, codec = patient.tokenizer, patient.codec
        tools: dict[str, ToolSpec] = {}
        for name in config.environments:
            specs = Toolbox.of(environment_class(name, config.environment_options.get(name)), config.interaction).specs
            codec.check_tools(codec.call_format, specs)
            tools |= {spec.name: spec for spec in specs}
    except RecipeError as error:
        return failed(one_line(str(error), 700), _remedy(str(error)))
    problems = [problem for spec in tools.values() for problem in _misread(codec, spec)]
    problems += _wrong_observation(codec)
    eos, pad = codec.decode([codec.eos_id]), codec.decode([codec.pad_id])
    details = {"num_tokens": len(tokenizer), "eos": eos, "pad": pad, "call_format": codec.call_format}
    text = (
        f"{len(tokenizer)} tokens, EOS {one_line(eos)}, pad {one_line(pad)}, calls in the format {codec.call_format}; "
        f"calls of {len(tools)} tools are read as they are written"
    )
    if problems:
        return failed("; ".join(problems), "name the right call_format, or bring a chat_template", details)
    if codec.pad_id == codec.eos_id:
        text += "; pad is EOS, and told from it by the mask"
    return ok(text, details)


def _misread(codec: Codec, spec: ToolSpec) -> Iterator[str]:
    """What is wrong with a turn that calls this tool, written and read again, and with the same turn cut off."""
    properties = spec.parameters.get("properties", {})
    needed = spec.parameters.get("required", list(properties))
    call = ToolCall(spec.name, {name: _example(properties.get(name, {}), WORD) for name in needed})
    # A tokenizer of few words cannot write all others; what it makes of one must come back.
    tokenizer = codec.tokenizer
    word = tokenizer.decode(tokenizer.encode(WORD, add_special_tokens=False))
    expected = {name: word if value == WORD else value for name, value in call.arguments.items()}
    turn = codec.render_turn("", call)
    read = codec.parse(turn, (spec,))
    if read.call is None or (read.call.name, dict(read.call.arguments)) != (call.name, expected):
        what = read.error if read.call is None else f"{read.call.name} {dict(read.call.arguments)}"
        yield f"a call of {spec.name} {expected} is read as: {one_line(str(what))}"
    if not read.closed or codec.parse(turn[:-1], (spec,)).closed:
        yield f"a turn that calls {spec.name} is not known by its EOS token to be closed"


def _example(schema: Mapping[str, Any], word: str) -> Any:
    """A value of a JSON schema; `word` where it may be any text."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "string")
    kind = kind[0] if isinstance(kind, list) else kind
    return {"integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}, "null": None}.get(kind, word)


def _wrong_observation(codec: Codec) -> Sequence[str]:
    """Markup within an observation must not end a turn: it would open the conversation to whoever wrote it."""
    markup = {
        number: token.content
        for number, token in codec.tokenizer.added_tokens_decoder.items()
        if (token.special or token.content[:1] in ("<", "[")) and number != codec.tokenizer.unk_token_id
    }
    plain = codec.suffix_ids(OBSERVED, closed=True, name=PROBE.name)
    hostile = codec.suffix_ids(f"{OBSERVED}{''.join(markup.values())}", closed=True, name=PROBE.name)
    before, after = (sum(token in markup for token in ids) for ids in (plain, hostile))
    return [] if before == after else [f"special tokens that an observation spells take effect: {after - before}"]


def _remedy(message: str) -> str:
    """What to do about a tokenizer that cannot be used, by what its error names."""
    field = message.partition(":")[0]
    if field == "call_format" or "format" in message:
        return "set call_format to the dialect that the model was trained with, or bring a chat_template"
    if field == "model_name_or_path" and "EOS" not in message:
        return "name a folder or a model that is there and whole, or let it be downloaded (HF_HUB_OFFLINE=0)"
    if field == "chat_template":
        return "mend the template, or leave chat_template out"
    return "set what is missing in the model's tokenizer_config.json, or bring a chat_template"
