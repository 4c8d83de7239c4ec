"""The four-way ablation in the town: PPP, without each of its two terms, and productivity alone, from one warm start.

Takes the folder of a finished quickstart, trains the three other variants from its warm start, evaluates them on the
same sessions, and prints one table: `.venv/bin/python scripts/ablation.py runs/quickstart`. About four minutes a
variant on two cores. Source: PPP section 5, table 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from quickstart import RECIPE, read_scores, run

# name -> weights that the recipe changes
VARIANTS: dict[str, dict[str, float]] = {
    "PPP": {},
    "without R_proact": {"proactivity": 0},
    "without R_pers": {"personalization": 0},
    "R_prod alone": {"proactivity": 0, "personalization": 0},
}
COLUMNS = ("productivity", "proactivity", "personalization", "ask_ratio_willing")


def folder_name(variant: str) -> str:
    return variant.lower().replace(" ", "_")


def train_variant(base: Path, folder: Path, weights: dict[str, float], seed: int, extra: list[str]) -> None:
    """Train one variant from the quickstart's warm start and evaluate it, unless that was done before."""
    if (folder / "after" / "summary.json").is_file():
        return
    recipe = ["--config", RECIPE, "--seed", str(seed), *extra]
    options = [text for name, weight in weights.items() for text in (f"--term_weights.{name}", str(weight))]
    train = str(folder / "train")
    run(["ppp", "train", *recipe, *options, "--model_name_or_path", str(base / "warmstart"), "--output_dir", train])
    run(["ppp", "evaluate", *recipe, "--agent", train, "--output_dir", str(folder / "after")])


def table(scores: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: a row per variant; vague prompts with seen preferences, and the ask ratio on precise prompts."""
    header = [*COLUMNS, "ask_ratio on precise", "medium questions", "personalization, unseen"]
    lines = ["| variant | " + " | ".join(header) + " |", "|---|" + "--:|" * len(header)]
    for name, found in scores.items():
        seen = found["vague_seen"]
        cells = [f"{seen[column]:.1f}" for column in COLUMNS]
        cells += [f"{found['precise']['ask_ratio']:.1f}", f"{seen['effort']['medium']:.2f}"]
        cells.append(f"{found['vague_unseen']['personalization']:.1f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("quickstart", type=Path, help="folder of a finished quickstart")
    parser.add_argument("--only", choices=[folder_name(name) for name in VARIANTS], help="train this variant only")
    own, extra = parser.parse_known_args()
    base = own.quickstart.absolute()
    if not (base / "summary.json").is_file():
        parser.error(f"{own.quickstart}: no summary.json; name the folder of a finished quickstart")
    seed = json.loads((base / "summary.json").read_text(encoding="utf-8"))["seed"]
    scores = {"PPP": read_scores(base / "after")}
    for name, weights in VARIANTS.items():
        folder = base / "ablation" / folder_name(name)
        if name == "PPP" or own.only not in (None, folder_name(name)):
            continue
        train_variant(base, folder, weights, seed, extra)
        scores[name] = read_scores(folder / "after")
    (base / "ablation").mkdir(exist_ok=True)
    text = table(scores)
    (base / "ablation" / "table.md").write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(f"\n{text}\n")


if __name__ == "__main__":
    main()
