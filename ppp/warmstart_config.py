"""What a recipe's `warmstart` mapping can say, checked without a model. What is done with it is in `warmstart.py`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ppp.checks import check_at_least, option, refuse, refuse_unknown
from ppp.recipe_config import RecipeConfig, expand_preferences

# For models that start from random weights: name -> where it is made.
TOKENIZERS = {"town": "ppp.baselines.town_tokenizer:town_tokenizer", "byte": "ppp.tiny_model:byte_tokenizer"}
EXERCISES = {"town": "ppp.baselines.town_practice:EXERCISES"}


@dataclass
class WarmstartConfig:
    """The recipe's `warmstart` mapping: what `ppp warmstart` does before RL. Source: the paper has none; see README."""

    base_model: str | None = option(None, "Model to begin with; none: random weights of the sizes below.")
    tokenizer: str = option("town", "Tokenizer for random weights.")
    hidden_size: int = option(64, "Width of the model with random weights.")
    num_layers: int = option(2, "Its layers.")
    num_heads: int = option(2, "Its attention heads.")
    demonstrator: str = option("demonstrator", "Policy made of rules that plays the demonstrations.")
    trajectories: list[str] = option([], "Files of earlier runs to learn from instead of demonstrations.")
    min_reward: float = option(0.5, "Reward from which a session of those files is learned from.")
    preferences: list[str] = option(["all"], "Users whom the demonstrations meet.")
    num_precise_per_task: int = option(5, "Precise sessions per task among the demonstrations.")
    num_demonstrations: int = option(8000, "Sessions to play.")
    num_steps: int = option(1000, "Steps on the demonstrations.")
    batch_size: int = option(32, "Rows per step.")
    learning_rate: float = option(3e-3, "Peak learning rate.")
    exercises: str = option("town", "Exercises that random weights do first.")
    exercise_accuracy: float = option(0.98, "When an exercise is right.")
    exercise_batch_size: int = option(64, "Rows per step of an exercise.")
    max_exercise_steps: int = option(400, "Steps for one exercise before starting again.")
    max_attempts: int = option(5, "Starts before giving up.")
    review_share: float = option(1.0, "Rows of the last exercise per demonstration, so that it is not unlearned.")

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "num_heads", "num_demonstrations", "num_steps", "batch_size"):
            check_at_least(f"warmstart.{name}", vars(self)[name], 1)
        for name in ("exercise_batch_size", "max_exercise_steps", "max_attempts"):
            check_at_least(f"warmstart.{name}", vars(self)[name], 1)
        if self.hidden_size % (2 * self.num_heads):
            raise refuse("warmstart.num_heads", self.num_heads, f"twice it must divide hidden_size {self.hidden_size}")
        for name, known in (("tokenizer", TOKENIZERS), ("exercises", EXERCISES)):
            if vars(self)[name] not in known:
                raise refuse_unknown(f"warmstart.{name}", vars(self)[name], known)
        self.preferences = expand_preferences("warmstart.preferences", self.preferences)

    @classmethod
    def of(cls, config: RecipeConfig) -> WarmstartConfig:
        """The recipe's warm start.

        Raises:
            RecipeError: an unknown key, or a value that is not allowed.
        """
        known = {setting.name for setting in fields(cls)}
        for name in config.warmstart:
            if name not in known:
                raise refuse_unknown("warmstart", name, known)
        return cls(**config.warmstart)
