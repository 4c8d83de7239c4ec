"""The model card: README.md of a finished model, with the recipe and the three scores.

The text is in `cards/model_card.md.jinja`. Whatever stands in a recipe is quoted so that it stays text. Who writes it
where is in `export.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined, Template

from ppp.checkpoints import step_of
from ppp.run_log import METRICS_FILE, read_jsonl

CARD_FILE = "README.md"
TERMS = ("productivity", "proactivity", "personalization")
VERSIONS = ("ppp", "trl", "transformers", "torch", "peft", "accelerate", "deepspeed", "vllm")
MEAN_OF_STEPS = 10
TAGS = ("ppp", "trl", "grpo", "agent")
_PASSWORD = re.compile(r"(://)[^/@\s]+@")
_SECRETS = ("hub_token",)


def model_card(run: Path, recipe: Mapping[str, Any], name: str, *, is_adapter: bool, checkpoint: Path | None) -> str:
    """The card of a model.

    Args:
        run: the run's folder, for its metrics and versions.
        recipe: the resolved values.
        name: of the model.
        is_adapter: it needs its base model.
        checkpoint: from which it was taken; None: from the end of the run.
    """
    metrics = read_jsonl(run / METRICS_FILE) if (run / METRICS_FILE).is_file() else []
    if checkpoint is not None:
        metrics = [line for line in metrics if line["step"] <= step_of(checkpoint)]
    versions_file = run / "versions.json"
    versions = json.loads(versions_file.read_text(encoding="utf-8")) if versions_file.is_file() else {}
    base = recipe.get("model_name_or_path")
    on_hub = (
        base if isinstance(base, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists() else None
    )
    front = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(TAGS),
        **({"base_model": on_hub} if on_hub else {}),
    }
    hardware = versions.get("hardware", {})
    shown = yaml.safe_dump({key: recipe[key] for key in sorted(recipe) if key not in _SECRETS}, allow_unicode=True)
    return _template().render(
        front_matter=f"---\n{yaml.safe_dump(front, allow_unicode=True)}---",
        name=name,
        base_model=on_hub,
        is_adapter=is_adapter,
        scores=scores(metrics),
        terms=TERMS,
        steps=max((line["step"] for line in metrics), default=0),
        processes=f"{hardware['num_processes']} x {hardware['device']}" if hardware else None,
        recipe=_PASSWORD.sub(r"\1", shown).strip(),
        versions="\n".join(f"{key} {versions[key]}" for key in VERSIONS if key in versions),
    )


def scores(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The three scores in columns: of the last steps, and of the last evaluation if there was one."""
    columns = []
    steps = [line for line in metrics if "loss" in line and TERMS[0] in line][-MEAN_OF_STEPS:]
    if steps:
        title = f"training, mean of steps {steps[0]['step']} to {steps[-1]['step']}"
        columns.append({"title": title, "values": {term: _mean(line.get(term) for line in steps) for term in TERMS}})
    evaluations = [line for line in metrics if f"eval_{TERMS[0]}" in line]
    if evaluations:
        last = evaluations[-1]
        title = f"evaluation after step {last['step']}"
        columns.append({"title": title, "values": {term: last.get(f"eval_{term}") for term in TERMS}})
    return columns


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


@cache
def _template() -> Template:
    # No HTML escaping: Markdown is the target, and every value goes through one of the two filters or is a number.
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"inline": inline, "fenced": fenced}
    source = (resources.files("ppp") / "cards" / "model_card.md.jinja").read_text(encoding="utf-8")
    return environment.from_string(source)


def inline(text: object) -> str:
    """A text as words of a Markdown paragraph, heading or table, with nothing in it that means anything there."""
    flat = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>#|~!])", r"\\\1", flat)


def fenced(text: str, language: str) -> str:
    """A text as a block of code, whose fence is longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
