"""`ppp users check`: how far user models can be trusted, as tables on the screen and as JSON in a file.

Options and tables only: what is asked is in `asking.py`, what the numbers mean in `measures.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from ppp.agreement.asking import CheckPlan, check_users
from ppp.agreement.measures import LEVELS
from ppp.checks import check_at_least, refuse
from ppp.reporting.formats import markdown_table
from ppp.types import InfrastructureError, RecipeError, RunStoppedError

USAGE = "%(prog)s check [--config RECIPE] [--model MODEL] [--compare MODEL ...] [--attacks] [--user_option value ...]"
DESCRIPTION = (
    "Measure user models on labelled examples that ship with ppp: how often their verdicts on questions are right, "
    "where they say that an answer comes from, and how easily a question talks them into a verdict. Further options "
    "are those of the user llm (base_url, api_key_env, max_concurrency, max_cost, cache, ...) and go for every model; "
    "with --config they override the recipe's user."
)


def parse_arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Our own options, and those of the users by name.

    Raises:
        RecipeError: an option without a value, or a value that is not allowed.
    """
    parser = argparse.ArgumentParser(prog="ppp users", usage=USAGE, description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("action", choices=["check"], metavar="check", help="measure user models")
    parser.add_argument("--config", metavar="RECIPE", help="take the users of this recipe")
    parser.add_argument("--model", help="the user model, as its endpoint knows it")
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="MODEL", help="further models: names, or mappings as in a recipe"
    )
    parser.add_argument("--judge_model", help="a model that gives verdicts only: a name, or a mapping as in a recipe")
    parser.add_argument("--attacks", action="store_true", help="also report how many attacks turn a verdict")
    parser.add_argument("--max_examples", type=int, help="of each preference, effort level and kind of attack")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write all numbers and verdicts as JSON")
    own, rest = parser.parse_known_args(argv)
    if own.max_examples is not None:
        check_at_least("max_examples", own.max_examples, 1)
    options: dict[str, Any] = {}
    words = [word for text in rest for word in (text.split("=", 1) if text.startswith("--") else [text])]
    for flag, text in zip_longest(words[::2], words[1::2]):
        if not flag.startswith("--") or text is None:
            raise RecipeError(f"{flag}: not understood; options are written as --name value")
        options[flag.removeprefix("--").removeprefix("user.")] = read_value(flag.removeprefix("--"), text)
    if own.model is not None:
        options["model"] = own.model
    if own.judge_model is not None:
        options["judge_model"] = read_value("judge_model", own.judge_model)
    return own, options


def read_value(name: str, text: str) -> Any:
    """A value from the command line, written as in a recipe."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise refuse(name, text, "a value as in a recipe") from None


def recipe_options(config: str) -> dict[str, Any]:
    """The options of the user llm in a recipe.

    Raises:
        RecipeError: the recipe cannot be read, or its users are no language models.
    """
    from ppp.recipe import read_recipe  # imports TRL, which takes seconds

    crowd = read_recipe(["--config", config], prog="ppp users check").config.build_crowds().train
    if crowd.kind != "llm":
        raise refuse("user.kind", crowd.kind, "must be llm: ppp users check measures language models")
    return dict(crowd.options)


def all_models(options: Mapping[str, Any], compare: Sequence[str]) -> dict[str, Any]:
    """Options whose `user_models` are the models that they name and those to compare; what else they say goes for all.

    Raises:
        RecipeError: no model, or one that is neither a name nor a mapping.
    """
    shared = {name: value for name, value in options.items() if name not in ("model", "user_models")}
    # As in a recipe: a model of its own replaces those of the recipe.
    entries = [{"model": options["model"]}] if "model" in options else options.get("user_models") or []
    if not entries:
        raise RecipeError("model: missing; name the user model with --model, or a recipe that has one with --config")
    for text in compare:
        entry = read_value("compare", text)
        if not isinstance(entry, str | Mapping):
            raise refuse(
                "compare", text, "must be the name of a model, or a mapping such as '{model: ..., base_url: ...}'"
            )
        entries = [*entries, {"model": entry} if isinstance(entry, str) else entry]
    return {**shared, "user_models": entries}


def percent(share: Mapping[str, Any]) -> str:
    return "-" if share["value"] is None else f"{100 * share['value']:.1f}"


def interval(share: Mapping[str, Any]) -> str:
    return "-" if share["value"] is None else f"{100 * share['low']:.1f} to {100 * share['high']:.1f}"


def verdict_table(report: Mapping[str, Any]) -> str:
    """Agreement with the labels, in percent: of the rules, and of each rater's verdicts side by side."""
    summaries: Mapping[str, Any] = report["verdicts"]
    columns = ("right", "95 % interval", "yes to bad", "counts right")
    header = ["asked the way of", "questions", "rules right", *(f"{name}: {c}" for name in summaries for c in columns)]
    first = next(iter(summaries.values()))
    rows = []
    for part in ("preferences", "groups"):
        for group, shown in first[part].items():
            cells = [group, str(shown["num_questions"]), percent(shown["rules"])]
            for summary in summaries.values():
                row = summary[part][group]
                cells += [percent(row["model"]), interval(row["model"]), percent(row["yes_to_bad"])]
                cells += [percent(row["counts"])]
            rows.append(cells)
    return f"Verdicts on labelled questions, percent\n{markdown_table(header, rows)}"


def effort_tables(report: Mapping[str, Any]) -> list[str]:
    """One table per user model: the confusion of effort levels, as claimed and as graded after the evidence."""
    header = ["right effort", *(f"claimed {level}" for level in LEVELS), *(f"graded {level}" for level in LEVELS)]
    tables = []
    for name, summary in report["efforts"].items():
        claimed, graded = summary["claimed"], summary["graded"]
        rows = [
            [truth, *(str(part["confusion"][truth][level]) for part in (claimed, graded) for level in LEVELS)]
            for truth in LEVELS
        ]
        lines = [
            f"{title}: {percent(part['agreement'])} % right ({interval(part['agreement'])}), "
            f"{percent(part['too_cheap'])} % of the dear ones too cheap"
            for title, part in (("claimed", claimed), ("after evidence", graded))
        ]
        tables.append("\n".join([f"Effort of labelled answers, {name}", markdown_table(header, rows), *lines]))
    return tables


def pair_table(report: Mapping[str, Any]) -> list[str]:
    """How far models agree with each other; nothing for a single one."""
    rows = []
    for pair in report["pairs"]:
        cells = []
        for part in ("verdicts", "efforts"):
            found = pair.get(part)
            kappa = None if found is None else found["kappa"]
            cells += ["-" if found is None else percent(found["same"]), "-" if kappa is None else f"{kappa:.2f}"]
        rows.append([" and ".join(pair["models"]), *cells])
    header = ["models", "same verdict", "kappa", "same effort claimed", "kappa"]
    return [f"Agreement with each other, percent and Cohen's kappa\n{markdown_table(header, rows)}"] if rows else []


def attack_table(report: Mapping[str, Any]) -> list[str]:
    """The share of attacks that turned a verdict, by kind, of each user model alone and with the judge."""
    columns = {f"{name}, {way}": summary for name, ways in report["attacks"].items() for way, summary in ways.items()}
    if not columns:
        return []
    kinds = next(iter(columns.values()))["kinds"]
    rows = [[kind, *(turned(summary["kinds"][kind]) for summary in columns.values())] for kind in kinds]
    for group in ("only a judge can tell", "rules decide"):
        rows.append([f"all where {group}", *(turned(summary[group]) for summary in columns.values())])
    return [f"Verdicts turned by attacks, percent\n{markdown_table(['attack', *columns], rows)}"]


def turned(share: Mapping[str, Any]) -> str:
    return f"{percent(share)} ({share['hits']} of {share['n']})"


def render(report: Mapping[str, Any]) -> str:
    """The report as text for a terminal."""
    parts = [verdict_table(report), *effort_tables(report), *pair_table(report), *attack_table(report)]
    if report["num_unanswered"]:
        parts.append(f"{report['num_unanswered']} cases got no answer and are left out.")
    return "\n\n".join([*parts, report["ledger_table"]]) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """`ppp users check`: measure user models. Returns the exit status: 0 for a finished report, whatever it says."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        own, options = parse_arguments(argv)
        if own.config is not None:
            options = {**recipe_options(own.config), **options}
        check_output(own.output)
        plan = CheckPlan(all_models(options, own.compare), own.attacks, own.max_examples)
        report = asyncio.run(check_users(plan))
    except RecipeError as error:
        sys.stderr.write(f"ppp users check: {error}\n")
        return 2
    except (RunStoppedError, InfrastructureError) as error:
        sys.stderr.write(f"ppp users check: {error}\n")
        return 1
    text = render(report)
    sys.stdout.write(text)
    if own.output is not None:
        values = {key: value for key, value in report.items() if key != "ledger_table"}
        own.output.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        sys.stdout.write(f"\nwritten: {own.output}\n")
    return 0


def check_output(output: Path | None) -> None:
    """Find out before anything is asked whether the report can be written.

    Raises:
        RecipeError: its folder does not exist, or it is a folder itself.
    """
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise refuse("output", str(output), "must be a file in a folder that exists")


if __name__ == "__main__":
    sys.exit(main())
