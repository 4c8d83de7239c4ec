"""What the checks of one recipe share: the recipe, a copy of it that is safe to try out, and what earlier checks made.

The copy (`trial_recipe`) plays two sessions and takes one step in a temporary folder; it asks nobody who must not be
asked, writes no cache, reports nowhere and resumes nothing. What is done with it is in `probe.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ppp.build import build_codec, build_tokenizer
from ppp.codec import Codec
from ppp.recipe import Recipe, build
from ppp.train import load_sessions
from ppp.users import user_class
from ppp.users.crowd import as_mapping

if TYPE_CHECKING:
    from ppp.doctor.probe import Probe
    from ppp.memory.plan import MemoryPlan

NUM_TRAJECTORIES = 2

# What one step of two trajectories has otherwise than the run; sizes of the model and of a trajectory stay.
TRIAL: Mapping[str, Any] = {
    "max_steps": 1,
    "num_generations": NUM_TRAJECTORIES,
    "generation_batch_size": None,
    "steps_per_generation": None,
    "num_iterations": 1,
    "max_resamples": 0,
    "mask_truncated_completions": False,  # a model that never ends would leave nothing to learn from
    "eval_strategy": "no",
    "eval_tasks": {},
    "logging_strategy": "steps",
    "logging_steps": 1,
    "log_trajectories_every": 0,
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "report_to": "none",
    "push_to_hub": False,
    "resume_from_checkpoint": None,
    "disable_tqdm": True,
}


@dataclass
class Patient:
    """One recipe and one machine.

    Attributes:
        recipe: as `ppp train` would read it; None where only the machine is looked at.
        folder: temporary; everything that is written goes here.
        probe: what was seen of one step; None before it was taken.
        plan: of the memory; None where it could not be made.
    """

    recipe: Recipe | None
    folder: Path
    probe: Probe | None = field(default=None, init=False)
    plan: MemoryPlan | None = field(default=None, init=False)

    @property
    def told(self) -> Recipe:
        """The recipe, for checks that are left out without one."""
        assert self.recipe is not None
        return self.recipe

    @cached_property
    def trial(self) -> Recipe:
        return trial_recipe(self.told, self.folder)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Raises `RecipeError` where it cannot be had."""
        return build_tokenizer(self.told)

    @cached_property
    def codec(self) -> Codec:
        """Raises `RecipeError` where it cannot be had."""
        return build_codec(self.told, self.tokenizer)

    @cached_property
    def sessions(self) -> Dataset:
        """The training sessions; raises `RecipeError` for rows and prompts that cannot be used."""
        return load_sessions(self.told, self.codec, "train_tasks", self.told.config.preferences)


def trial_recipe(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe for one step of two trajectories that leaves nothing outside of `folder`."""
    values = {**recipe.values, **TRIAL, "output_dir": str(folder)}
    # Micro-batches are at most as large as the run's, so that what fits there fits here.
    rows = min(recipe.args.per_device_train_batch_size, NUM_TRAJECTORIES)
    values["per_device_train_batch_size"] = rows
    values["gradient_accumulation_steps"] = NUM_TRAJECTORIES // rows
    values["user"] = stand_in(recipe.config.user)
    values["eval_user"] = {}
    return build(values)


def stand_in(choice: Mapping[str, Any] | str) -> dict[str, Any]:
    """Who answers in place of the recipe's users: they themselves, unless it is a person or a recording."""
    options = as_mapping("user", choice)
    if user_class(options["kind"]).takes_time or options.get("cache") == "replay":
        return {"kind": "scripted"}
    return {**options, "cache": "off"} if options.get("cache") == "write" else options
