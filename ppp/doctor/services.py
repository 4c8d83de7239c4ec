"""Checks of what a session needs beside the model: users behind endpoints, servers that generate, environments."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from ppp.build import check_crowds, check_engine
from ppp.doctor.patient import Patient, stand_in
from ppp.doctor.results import Result, failed, ok, warning
from ppp.doctor.text import one_line
from ppp.environments import environment_class
from ppp.environments.sandbox import SANDBOXES, check_sandbox
from ppp.types import InfrastructureError, RecipeError, RunStoppedError, Task
from ppp.users.crowd import Crowd


def check_endpoints(patient: Patient) -> Result:
    """One real request to each model that plays users, and what the engine asks its servers before a run."""
    problems: list[str] = []
    found: list[str] = []
    for check in (_check_users, _check_engine):
        text, is_wrong = check(patient)
        (problems if is_wrong else found).append(text)
    if problems:
        remedy = "start the server that is named, or correct the recipe's user or engine_options"
        return failed("; ".join(problems + found), remedy)
    return ok("; ".join(found))


def _check_users(patient: Patient) -> tuple[str, bool]:
    """(what was found, whether it is wrong)"""
    config = patient.told.config
    if not config.interaction:
        return "users: none (interaction: false)", False
    crowds = config.build_crowds()
    asked = crowds.different if config.eval_tasks else [crowds.train]
    safe = [Crowd(stand_in({"kind": crowd.kind, **crowd.options}), crowd.field) for crowd in asked]
    started = time.perf_counter()
    try:
        check_crowds(safe)
    except (RecipeError, RunStoppedError) as error:
        return one_line(str(error), 500), True
    seconds = time.perf_counter() - started
    words = []
    for crowd, stand in zip(asked, safe, strict=True):
        kind = f"{crowd.field}: {crowd.kind}"
        if crowd.kind != stand.kind:
            words.append(f"{kind} (not asked: a person, or a recording)")
        elif stand.service is None:
            words.append(f"{kind} (needs no endpoint)")
        else:
            words.append(f"{kind} answers ({seconds:.1f} s)")
    return "; ".join(words), False


def _check_engine(patient: Patient) -> tuple[str, bool]:
    """(what was found, whether it is wrong)"""
    recipe = patient.told
    try:
        codec = patient.codec
    except RecipeError:
        return f"engine: {recipe.config.engine} (not asked, as there is no tokenizer)", False
    try:
        check_engine(recipe, codec, is_training=True)
    except (RecipeError, InfrastructureError) as error:
        return one_line(str(error), 500), True
    return f"engine: {recipe.config.engine} is ready", False


def check_environments(patient: Patient) -> Result:
    """Each environment of the recipe is opened, scored and closed once; without a recipe, which sandboxes there are."""
    if patient.recipe is None:
        return _check_sandboxes()
    recipe = patient.recipe
    try:
        tasks = [Task.from_json(text) for text in patient.sessions["task"]]
    except RecipeError as error:
        remedy = "see the checks of data and tokenizer first"
        return warning(f"not opened, as there are no tasks: {one_line(str(error))}", remedy)
    limits = recipe.config.build_limits(recipe.args.max_completion_length or 1)
    problems, found, seconds = [], [], {}
    for name in recipe.config.environments:
        task = next(task for task in tasks if task.environment == name)
        started = time.perf_counter()
        try:
            work = _open_once(task, recipe.config.environment_options.get(name, {}))
            score = asyncio.run(asyncio.wait_for(work, limits.setup_timeout_s + limits.score_timeout_s))
        except (RecipeError, InfrastructureError, OSError, TimeoutError) as error:
            problems.append(f"{name}: {type(error).__name__}: {one_line(str(error), 500)}")
            continue
        seconds[name] = time.perf_counter() - started
        found.append(f"{name}: opened and scored without an answer ({score:g}) in {seconds[name]:.2f} s")
        if not 0.0 <= score <= 1.0:
            problems.append(f"{name}: the score {score!r} is outside [0, 1]")
    if problems:
        remedy = "mend what the environment needs (a sandbox, repositories, disk), see environment_options"
        return failed("; ".join(problems), remedy, {"seconds": seconds})
    return ok("; ".join(found), {"seconds": seconds})


async def _open_once(task: Task, options: Mapping[str, Any]) -> float:
    environment = environment_class(task.environment, options)
    async with environment(task, options) as opened:
        return await opened.score(None)


def _check_sandboxes() -> Result:
    missing, there = {}, []
    for kind in SANDBOXES:
        try:
            check_sandbox(kind)
            there.append(kind)
        except RecipeError as error:
            missing[kind] = one_line(str(error), 500)
    if not there:
        words = "; ".join(f"{kind}: {text}" for kind, text in missing.items())
        remedy = "nothing, unless you train func_loc with a shell"
        return warning(f"no sandbox can be had here ({words})", remedy, {"missing": missing})
    text = f"sandboxes that work here: {', '.join(there)}"
    return ok(f"{text}; not: {', '.join(missing)}" if missing else text, {"missing": missing})
