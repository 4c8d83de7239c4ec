"""The rows that a warm start learns from: played by a policy made of rules, or read from the files of earlier runs.

Loss is on the policy's own tokens. What is trained on them, and how, is in `warmstart.py`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ppp.baselines import build_policy
from ppp.build import build_pool
from ppp.checks import refuse
from ppp.codec import Codec
from ppp.data import expand, load_task_rows
from ppp.engines.scripted import ScriptedEngine
from ppp.environments import environment_class
from ppp.recipe import Recipe
from ppp.recipe_config import source_options
from ppp.rollout import RolloutJob, build_messages
from ppp.run_log import read_jsonl
from ppp.session import Toolbox
from ppp.types import RecipeError, StopReason, Task, ToolCall, Trajectory
from ppp.warmstart_config import WarmstartConfig

IGNORED = -100  # the label of tokens without loss
Row = dict[str, list[int]]  # {"input_ids": (T,), "labels": (T,)}


def encode_segments(tokenizer: PreTrainedTokenizerBase, segments: Sequence[tuple[str, bool]]) -> Row:
    """A row from pieces of text, of which some carry loss."""
    row: Row = {"input_ids": [], "labels": []}
    for text, has_loss in segments:
        ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        row["input_ids"] += ids
        row["labels"] += ids if has_loss else [IGNORED] * len(ids)
    return row


def encode_trajectory(trajectory: Trajectory) -> Row:
    """A row from a trajectory: loss on the policy's own tokens."""
    ids, mask = trajectory.completion_ids, trajectory.env_mask
    labels = [token if own else IGNORED for token, own in zip(ids, mask, strict=True)]
    return {"input_ids": [*trajectory.prompt_ids, *ids], "labels": [IGNORED] * len(trajectory.prompt_ids) + labels}


def encode_record(record: dict[str, Any], recipe: Recipe, codec: Codec) -> Row:
    """A row from a line of `trajectories.jsonl` or `results.jsonl`, written anew in the dialect of `codec`."""
    config = recipe.config
    environment = environment_class(record["environment"], config.environment_options.get(record["environment"]))
    task = Task(record["task_id"], record["environment"], record["prompt"], record["prompt"], record["preference"], {})
    messages = build_messages(task, environment, config.preference_visibility, config.interaction)
    prompt_ids = codec.prompt_ids(messages, Toolbox.of(environment, config.interaction).specs)
    row: Row = {"input_ids": list(prompt_ids), "labels": [IGNORED] * len(prompt_ids)}
    for turn in record["turns"]:
        name = turn["call"]["name"] if "call" in turn else "tool"
        call = ToolCall(name, json.loads(turn["call"]["arguments"])) if "call" in turn else None
        own = codec.render_turn(turn["text"], call)
        row["input_ids"] += own
        row["labels"] += own
        if turn["observation"] is not None:
            suffix = codec.suffix_ids(turn["observation"], closed=True, name=name)
            row["input_ids"] += suffix
            row["labels"] += [IGNORED] * len(suffix)
    return row


def read_trajectories(recipe: Recipe, settings: WarmstartConfig, codec: Codec) -> list[Row]:
    """Rows from the files of earlier runs: sessions that ended well, with a reward of at least `min_reward`.

    Raises:
        RecipeError: a file that is missing or cannot be read, or no session that passes.
    """
    rows = []
    for name in settings.trajectories:
        try:
            records = read_jsonl(Path(name))
        except (OSError, json.JSONDecodeError) as error:
            raise refuse("warmstart.trajectories", name, f"a JSONL file of a run ({error})") from error
        for number, record in enumerate(records, start=1):
            if record.get("stop_reason") != StopReason.FINISHED or any(turn["is_error"] for turn in record["turns"]):
                continue
            scores = record.get("score") or record.get("scores")
            if not isinstance(scores, dict):
                raise RecipeError(
                    f"{name}, line {number}: there is no score; name a trajectories.jsonl or results.jsonl"
                )
            reward = scores["reward"] if "reward" in scores else scores["productivity"]
            if reward >= settings.min_reward:
                rows.append(encode_record(record, recipe, codec))
    if not rows:
        raise RecipeError(f"warmstart.trajectories: no session with a reward of at least {settings.min_reward:g}")
    return rows


def play_demonstrations(recipe: Recipe, settings: WarmstartConfig, codec: Codec) -> list[Row]:
    """Rows from sessions that a policy made of rules plays on training tasks, with users of `settings.preferences`.

    Raises:
        RecipeError: the policy does not know one of the recipe's environments.
    """
    config, seed = recipe.config, recipe.args.seed
    rng = random.Random(f"demonstrations-{seed}")
    tasks = [
        task
        for name in config.environments
        for row in load_task_rows("train_tasks", name, source_options("train_tasks", config.train_tasks, name))
        for task in expand([row], settings.preferences, seed, settings.num_precise_per_task)
    ]
    drawn = rng.sample(tasks, min(settings.num_demonstrations, len(tasks)))
    policy = build_policy(settings.demonstrator, list(config.environments), config.environment_options)
    pool = build_pool(recipe, codec, ScriptedEngine(codec, policy))
    try:
        jobs = [RolloutJob(task, row=number, copy=0) for number, task in enumerate(drawn)]
        trajectories = pool.run(jobs, step=0, progress="demonstrations")
    finally:
        pool.close()
    return [encode_trajectory(trajectory) for trajectory in trajectories if not trajectory.failed]
