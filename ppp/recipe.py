"""From a YAML file and a command line to the two dataclasses of `config.py`; nothing is half-read.

`--config FILE` gives values, any `--option value` overrides one, and `--limits.max_turns 4` then one entry of a
mapping. Fields and their checks are in `config.py`; this file knows none of them by name, except those it reads itself.
"""

from __future__ import annotations

import os
import re
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from transformers import HfArgumentParser

from ppp.checks import refuse, refuse_unknown
from ppp.config import PPPConfig
from ppp.recipe_config import RecipeConfig
from ppp.recipe_types import check_type, describe_type, members, takes_mapping
from ppp.types import RecipeError
from ppp.warmstart_config import WarmstartConfig

# What a text stands for where a mapping could stand: field -> its entry; of all others it is the path.
SHORT_FORMS = {"user": "kind", "eval_user": "kind", "judge_model": "model"}
# How argparse quotes a value that it cannot read.
_UNREADABLE = re.compile(r"invalid [^:]*: '(.*?)'|Truthy value expected: got (\S+)|('.*') is not a mapping", re.S)


@dataclass(frozen=True)
class Recipe:
    """A recipe that passed every check which needs no model: ours, TRL's, and the values that made them."""

    config: RecipeConfig
    args: PPPConfig
    values: dict[str, Any]

    def to_yaml(self) -> str:
        """The resolved recipe; reading it again gives the same run. What is secret is left out."""
        return yaml.safe_dump(self.shown(), allow_unicode=True)

    def shown(self) -> dict[str, Any]:
        """All values, by name, without what is secret."""
        return {key: self.values[key] for key in sorted(self.values) if key != "hub_token"}


class RecipeParser(HfArgumentParser):
    """HfArgumentParser whose complaints are RecipeErrors and which reads mappings from the command line as YAML."""

    def __init__(self, prog: str | None = None) -> None:
        super().__init__(
            (RecipeConfig, PPPConfig),
            prog=prog,
            usage="%(prog)s --config FILE [--option value ...] [--mapping.entry value ...]",
            description="Options override the recipe. The first ones are those of PPP, up to --log_trajectories_every; "
            "the others are those of GRPOConfig (TRL), some with the defaults of the paper.",
            allow_abbrev=False,
        )
        self.add_argument(
            "--config", metavar="FILE", help="the recipe: a YAML file, or the name of one that ships with ppp"
        )
        mappings = {name: hint for name, hint in field_types().items() if takes_mapping(hint)}
        for action in self._actions:
            if action.dest in mappings:
                action.type = read_value if str in members(mappings[action.dest]) else read_mapping
            elif action.dest == "report_to":
                action.nargs = "+"
            elif action.dest == "reward_clip":
                action.type = lambda text: None if text.lower() in ("none", "null") else float(text)

    def error(self, message: str) -> NoReturn:
        found = re.match(r"argument (?:--)?(\w+)[^:]*: (.*)", message, re.S)
        if found is None:
            raise RecipeError(message)
        name, problem = found.groups()
        value = _UNREADABLE.match(problem)
        if value is None or name not in field_types():
            raise RecipeError(f"{name}: {problem}")
        given = next(group for group in value.groups() if group is not None)
        raise refuse(name, given.strip("'"), f"expected {describe_type(field_types()[name])}")


def field_types() -> dict[str, Any]:
    """Name of each field that a recipe may set -> its type."""
    return {
        field.name: hints[field.name]
        for cls in (RecipeConfig, PPPConfig)
        for hints in [get_type_hints(cls)]
        for field in fields(cls)
        if field.init
    }


def read_recipe(argv: Sequence[str], prog: str | None = None) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: one sentence that names the field, its value and what is allowed.
    """
    parser = RecipeParser(prog)
    rest, entries = split_entry_overrides(argv)
    path = config_path(rest)
    known = field_types()
    given: dict[str, Any] = {} if path is None else read_yaml(path)
    for key in given:
        if key not in known:
            raise refuse_unknown("recipe key", key, known)
    for key, entry, _ in entries:
        if not takes_mapping(known.get(key)):
            raise refuse_unknown("option", f"--{key}.{entry}", [f"--{name}" for name in known])
    defaults = {key: parser.get_default(key) for key in known}
    parser.set_defaults(**given)
    namespace, unknown = parser.parse_known_args(rest)
    for text in unknown:
        if not text.startswith("--"):
            raise refuse("option", text, "every option has the form --name value")
        raise refuse_unknown("option", text.partition("=")[0], [f"--{name}" for name in known])
    values = {key: value for key, value in vars(namespace).items() if key in known}
    if values["reward_clip"] == [None]:
        values["reward_clip"] = None
    for key, entry, value in entries:  # last, so that `--user llm --user.model x` means both
        merge_entry(values, key, entry.split("."), value)
    for key, value in sorted(values.items()):
        if type(value) is not type(defaults[key]) or value != defaults[key]:  # some defaults of GRPOConfig do not fit
            values[key] = check_type(key, value, known[key])
    return build(values)


def build(values: dict[str, Any]) -> Recipe:
    """Fill the dataclasses; whatever their own checks or GRPOConfig's raise becomes a RecipeError."""
    own = {field.name for field in fields(RecipeConfig)}
    config = RecipeConfig(**{key: value for key, value in values.items() if key in own})
    hints = get_type_hints(WarmstartConfig)
    config.warmstart = {
        name: check_type(f"warmstart.{name}", value, hints[name]) if name in hints else value
        for name, value in config.warmstart.items()
    }
    WarmstartConfig.of(config)
    try:
        args = PPPConfig(**{key: value for key, value in values.items() if key not in own})
    except RecipeError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"recipe: {' '.join(str(error).split())}") from error
    config.build_limits(args.max_completion_length or 1)
    check_together(config, args)
    return Recipe(config, args, values)


def check_together(config: RecipeConfig, args: PPPConfig) -> None:
    """Check what GRPO's part and ours say about the same thing.

    Raises:
        RecipeError: one of the two would be ignored without a word, or end the run.
    """
    if args.multi_objective_aggregation == "normalize_then_sum" and config.reward_clip not in (None, [0.0, 1.0]):
        allowed = "multi_objective_aggregation normalize_then_sum has no sum that could be clipped; set it to null"
        raise refuse("reward_clip", config.reward_clip, allowed)
    if args.sync_ref_model and config.use_peft:
        raise refuse("sync_ref_model", True, "with use_peft the reference is the model without its adapters")
    longest = config.build_limits(args.max_completion_length or 1).trajectory_timeout_s
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and args.ddp_timeout <= longest:
        allowed = f"processes wait for each other's sessions: more than limits.trajectory_timeout_s ({longest:g})"
        raise refuse("ddp_timeout", args.ddp_timeout, allowed)


def config_path(argv: Sequence[str]) -> Path | None:
    """The recipe file named in `argv`, looked for on disk and then among the recipes of the package.

    Raises:
        RecipeError: there is no such file.
    """
    name = None
    for position, text in enumerate(argv):
        if text == "--config" and position + 1 < len(argv):
            name = argv[position + 1]
        elif text.startswith("--config="):
            name = text.partition("=")[2]
    if name is None:
        return None
    # In a checkout the recipes stand beside the package, in a wheel inside it.
    shipped = Path(str(resources.files("ppp"))) / "recipes"
    candidates = [Path(name)]
    if Path(name).parent in (Path("."), Path("recipes")):  # another folder's file of that name is not ours
        candidates.append(shipped / Path(name).name)
    found = [path for path in candidates if path.is_file()]
    if not found:
        names = sorted(path.name for path in shipped.glob("*.yaml"))
        known = f"or one of {', '.join(names)}" if names else "such as recipes/town.yaml"
        raise refuse("config", name, f"name an existing YAML file, {known}")
    return found[0]


class RecipeLoader(yaml.SafeLoader):
    """YAML without keys that are given twice in a mapping, of which YAML would silently take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in lines:
                raise yaml.YAMLError(f"{key.value!r} is given twice, in line {lines[key.value]} and in line {line}")
            if isinstance(key, yaml.ScalarNode):
                lines[key.value] = line
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; its `env` section is put into the environment, as TRL does."""
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=RecipeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"config: {str(path)!r} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise RecipeError(f"config: {str(path)!r} must hold a mapping of options to values")
    variables = loaded.pop("env", None) or {}
    if not isinstance(variables, dict):
        raise refuse("env", variables, "expected a mapping of environment variables to values")
    os.environ.update({str(key): str(value) for key, value in variables.items()})
    return {str(key): value for key, value in loaded.items()}


def split_entry_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str, Any]]]:
    """Take `--mapping.entry value` and `--mapping.entry=value` out of `argv`: (the rest, [(mapping, entry, value)])."""
    rest: list[str] = []
    entries: list[tuple[str, str, Any]] = []
    texts = iter(argv)
    for text in texts:
        name, equals, value = text.partition("=")
        if not name.startswith("--") or "." not in name:
            rest.append(text)
            continue
        if not equals:
            following = next(texts, None)
            if following is None:
                raise RecipeError(f"{name}: a value is missing")
            value = following
        key, _, entry = name.removeprefix("--").partition(".")
        entries.append((key.replace("-", "_"), entry, read_value(value)))
    return rest, entries


def merge_entry(given: dict[str, Any], key: str, path: Sequence[str], value: Any) -> None:
    """Set `given[key][path...] = value`, making mappings on the way; for texts that stand for one see `SHORT_FORMS`.

    Raises:
        RecipeError: there is something on the way that is no mapping.
    """
    target = given
    for depth, name in enumerate((key, *path[:-1]), start=1):
        inner = target.get(name)
        if isinstance(inner, str):
            inner = {SHORT_FORMS.get(name, "path"): inner}
        elif inner is not None and not isinstance(inner, dict):
            raise refuse(".".join((key, *path)[:depth]), inner, "expected a mapping")
        inner = dict(inner or {})
        target[name] = inner
        target = inner
    target[path[-1]] = value


def read_value(text: str) -> Any:
    """A value on the command line, as YAML would read it."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def read_mapping(text: str) -> dict[str, Any]:
    """A mapping on the command line, as YAML or JSON."""
    value = read_value(text)
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"{text!r} is not a mapping such as '{{name: value}}'")
    return value
