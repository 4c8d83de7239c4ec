"""What a recipe can say that GRPO does not know: tasks, environments, users, engine, rewards. With every check of it
that needs no file of tasks and no model.

GRPO's own arguments are in `config.py`, the warm start's in `warmstart_config.py`. The `help` of a field is its
documentation. How a YAML file and a command line become these objects is in `recipe.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from ppp.checks import check_at_least, option, refuse, refuse_unknown
from ppp.engines import ENGINES
from ppp.environments import ENVIRONMENTS, environment_class
from ppp.extensions import import_extensions
from ppp.preferences import PREFERENCES, SEEN, UNSEEN
from ppp.rewards import TERMS, RewardSettings
from ppp.session import Limits
from ppp.types import RecipeError
from ppp.users.crowd import Crowd, Crowds, as_mapping

COUNTS_FROM_ZERO = (
    "num_precise_per_task",
    "warn_without_signal_steps",
    "stop_without_signal_steps",
    "log_trajectories_every",
    "check_logprobs_every",
    "max_resamples",
)
MAX_RESAMPLES = 100
PREFERENCE_GROUPS: dict[str, Iterable[str]] = {"seen": SEEN, "unseen": UNSEEN, "all": PREFERENCES}


@dataclass
class RecipeConfig:
    """What PPP adds to GRPO: who is trained, on which tasks, with which users, scored how."""

    imports: list[str] = option(
        [],
        "Modules of your own, imported before anything is checked: they put entries into the tables of environments, "
        "users, preferences and reward terms. See recipes/adding.md.",
    )
    model_name_or_path: str | None = option(None, "The model to train: a local folder or a name on the Hub.")
    tiny_model: bool = option(
        False, "Train a byte-level model of two layers with random weights instead: needs no download, learns nothing."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "float32", "In what precision weights are loaded."
    )
    call_format: str | None = option(None, "How the model writes tool calls; default: found from its chat template.")
    chat_template: str | None = option(None, "A Jinja file that takes the place of the tokenizer's chat template.")
    use_peft: bool = option(False, "Train LoRA adapters instead of all weights.")
    lora_r: int = option(16, "Rank of the adapters.")
    lora_alpha: int = option(32, "Scale of the adapters.")
    lora_dropout: float = option(0.0, "Dropout of the adapters.")
    lora_target_modules: list[str] = option(["all-linear"], "Modules that get adapters.")
    merge_lora: bool = option(False, "Write the trained model with its adapters merged into the weights.")

    environments: dict[str, Any] = option({}, "Environment -> share of the training sessions, e.g. {town: 1}.")
    environment_options: dict[str, Any] = option({}, "Environment -> its options.")
    train_tasks: dict[str, Any] = option(
        {},
        "Environment -> where its tasks come from: a path (JSONL, parquet, Hub data set) or options of its generator.",
    )
    eval_tasks: dict[str, Any] = option({}, "The same for the evaluation every eval_steps.")
    preferences: list[str] = option(["seen"], "Users to train with: seen, unseen, all, or names.")
    eval_preferences: list[str] = option(["all"], "Users to evaluate with.")
    num_precise_per_task: int = option(1, "Precise sessions per task, beside one vague session per preference.")
    preference_visibility: Literal["stated", "hidden"] = option(
        "stated", "Whether the agent is told what its user likes."
    )
    interaction: bool = option(
        True, "false removes ask_user; of the reward productivity is then left, unless term_weights says otherwise."
    )

    user: dict[str, Any] | str = option(
        "scripted", "Who plays the users: a kind (a key of ppp.users.USERS), or {kind: ..., and its options}."
    )
    eval_user: dict[str, Any] | str = option(
        {}, "The same for the evaluation; a mapping without kind changes what it names in user."
    )
    engine: str = option("transformers", "What generates the rollouts: a key of ppp.engines.ENGINES.")
    engine_options: dict[str, Any] = option({}, "Options of the engine.")
    limits: dict[str, Any] = option({}, "Limits of a trajectory: turns, tokens, seconds.")
    max_concurrency: int = option(256, "Trajectories in flight per process.")
    max_workers: int = option(32, "Threads for blocking work of environments.")
    deterministic: bool = option(False, "Fix the order of admission, so that two runs agree bit for bit.")

    term_weights: dict[str, Any] = option({}, "Weights of productivity, proactivity, personalization; 0 drops a term.")
    effort_costs: Literal["paper", "released"] = option(
        "paper", "What effort costs: paper, or released (the graded costs of the authors' code)."
    )
    personalization_bonus: Literal["paper", "released"] = option(
        "paper", "When following a preference earns its bonus: paper, or released (on vague prompts, after a question)."
    )
    reward_clip: list[float] | None = option(
        [0.0, 1.0], "Bounds of the summed reward, or none; nothing is clipped with normalize_then_sum."
    )

    importance_sampling_correction: Literal["auto", "true", "false"] = option(
        "auto", "Correct for the engine's probabilities; auto: unless engine and trainer share weights and agree."
    )
    check_logprobs_every: int = option(
        50,
        "Compare log-probabilities of engine and trainer at the start and every so many steps; 0: at the start.",
    )
    max_logprob_difference: float = option(
        0.1, "Stop when they differ by more than this, on average over the policy's tokens."
    )
    max_resamples: int = option(
        0, "Dynamic sampling: replace groups of equal rewards by other sessions, at most so many times a step."
    )
    check_memory: bool = option(
        True, "Refuse a recipe whose model, at the longest trajectories that its limits allow, is far from fitting."
    )
    warmstart: dict[str, Any] = option({}, "Settings of ppp warmstart, see WarmstartConfig in ppp/warmstart_config.py.")
    max_failure_rate: float = option(
        0.2, "Stop when more than this share of a batch failed for infrastructure reasons."
    )
    warn_without_signal_steps: int = option(5, "Warn when so many steps in a row had nothing to learn from.")
    stop_without_signal_steps: int = option(50, "Stop then; 0: never.")
    log_trajectories_every: int = option(1, "Write the trajectories of every so many steps to disk; 0: never.")

    def __post_init__(self) -> None:
        import_extensions(self.imports)
        if self.tiny_model == (self.model_name_or_path is not None):
            raise refuse("model_name_or_path", self.model_name_or_path, "name a model, or set tiny_model, not both")
        for name in ("lora_r", "lora_alpha", "max_concurrency", "max_workers"):
            check_at_least(name, vars(self)[name], 1)
        for name in COUNTS_FROM_ZERO:
            check_at_least(name, vars(self)[name], 0)
        if not 0 <= self.lora_dropout < 1:
            raise refuse("lora_dropout", self.lora_dropout, "must be at least 0 and below 1")
        if not 0 < self.max_logprob_difference < math.inf:
            raise refuse("max_logprob_difference", self.max_logprob_difference, "must be a finite number above 0")
        if not 0 <= self.max_failure_rate <= 1:
            raise refuse("max_failure_rate", self.max_failure_rate, "must lie between 0 and 1")
        self.preferences = expand_preferences("preferences", self.preferences)
        self.eval_preferences = expand_preferences("eval_preferences", self.eval_preferences)
        self._check_environments()
        self.build_crowds()
        if self.engine not in ENGINES:
            raise refuse_unknown("engine", self.engine, ENGINES)
        if "max_completion_tokens" in self.limits:
            raise refuse(
                "limits.max_completion_tokens", self.limits["max_completion_tokens"], "set max_completion_length"
            )
        self._check_step_limits(self.build_limits(max_completion_length=1))
        self._check_learning()

    def _check_learning(self) -> None:
        """Check what would leave nothing to learn from, or stop the run behind the loading of the model."""
        weights = self.reward_settings().weights
        if all(weights.get(term, 1.0) == 0 for term in TERMS):
            raise refuse("term_weights", self.term_weights, "with no weight above 0 all rewards are equal")
        if self.max_resamples > MAX_RESAMPLES:
            raise refuse("max_resamples", self.max_resamples, f"must be at most {MAX_RESAMPLES}")
        if self.use_peft and "lm_head" in self.lora_target_modules:
            allowed = "lm_head cannot have an adapter, because the loss reads its weights directly"
            raise refuse("lora_target_modules", self.lora_target_modules, allowed)

    def _check_environments(self) -> None:
        if not self.environments:
            raise refuse("environments", self.environments, f"name at least one of {', '.join(sorted(ENVIRONMENTS))}")
        for name, weight in self.environments.items():
            if name not in ENVIRONMENTS:
                raise refuse_unknown("environments", name, ENVIRONMENTS)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
                raise refuse(f"environments.{name}", weight, "a share is a finite number above 0")
            options = self.environment_options.get(name, {})
            if not isinstance(options, dict):
                raise refuse(f"environment_options.{name}", options, "expected a mapping of options to values")
            environment_class(name).check_options(options)
            if name not in self.train_tasks:
                raise RecipeError(f"train_tasks: nothing says where the tasks of {name!r} come from")
        for field_name in ("environment_options", "train_tasks", "eval_tasks"):
            for name in vars(self)[field_name]:
                if name not in self.environments:
                    raise refuse_unknown(field_name, name, self.environments)

    def _check_step_limits(self, limits: Limits) -> None:
        for name in self.environments:
            options = self.environment_options.get(name, {})
            found = environment_class(name, options).step_limit(options)
            if found is not None and found[1] >= limits.tool_timeout_s:
                raise refuse(
                    f"environment_options.{name}.{found[0]}",
                    found[1],
                    f"must be below limits.tool_timeout_s ({limits.tool_timeout_s:g}), after which a call counts as a "
                    "failure of the infrastructure",
                )

    def build_crowds(self) -> Crowds:
        """The users of training and evaluation.

        Raises:
            RecipeError: an unknown kind, an unknown option, or a value that cannot be used.
        """
        own = as_mapping("user", self.user)
        if isinstance(self.eval_user, str) or "kind" in self.eval_user:
            evaluation = as_mapping("eval_user", self.eval_user)
        else:
            evaluation = {**own, **self.eval_user}
        crowd = Crowd(own)
        return Crowds(crowd, crowd if evaluation == own else Crowd(evaluation, "eval_user"))

    def reward_settings(self) -> RewardSettings:
        """The settings of `rewards.py`.

        Raises:
            RecipeError: a weight, a table of costs or a range that makes no sense.
        """
        if self.reward_clip is not None and len(self.reward_clip) != 2:
            raise refuse("reward_clip", self.reward_clip, "two numbers, low and high, or none")
        clip = None if self.reward_clip is None else (self.reward_clip[0], self.reward_clip[1])
        # Who cannot ask is neither proactive nor personal: answer_more would fine every session beyond the clip.
        silent = {} if self.interaction else {"proactivity": 0.0, "personalization": 0.0}
        return RewardSettings({**silent, **self.term_weights}, self.effort_costs, self.personalization_bonus, clip)

    def build_limits(self, max_completion_length: int) -> Limits:
        """The limits of a trajectory, its total being TRL's `max_completion_length`."""
        known = {limit.name for limit in fields(Limits)} - {"max_completion_tokens"}
        for name in self.limits:
            if name not in known:
                raise refuse_unknown("limits", name, known)
        try:
            return Limits(**self.limits, max_completion_tokens=max_completion_length)
        except RecipeError as error:
            raise RecipeError(f"limits.{error}") from error


def expand_preferences(name: str, value: str | Iterable[str]) -> list[str]:
    """Names and groups of preferences -> names, in the order of the table, each once."""
    wanted: set[str] = set()
    for entry in [value] if isinstance(value, str) else value:
        if entry in PREFERENCE_GROUPS:
            wanted.update(PREFERENCE_GROUPS[entry])
        elif entry in PREFERENCES:
            wanted.add(entry)
        else:
            raise refuse_unknown(name, entry, [*PREFERENCES, *PREFERENCE_GROUPS])
    if not wanted:
        raise refuse(name, value, "name at least one preference")
    return [preference for preference in PREFERENCES if preference in wanted]


def source_options(field_name: str, sources: Mapping[str, Any], environment: str) -> dict[str, Any]:
    """Where the tasks of an environment come from, as a mapping; a bare string is a path.

    Raises:
        RecipeError: neither a mapping nor a string.
    """
    source = sources.get(environment)
    if isinstance(source, str):
        return {"path": source}
    if isinstance(source, dict):
        return dict(source)
    raise refuse(f"{field_name}.{environment}", source, "a path, or a mapping with path or generator options")
