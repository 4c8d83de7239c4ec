"""The four-way ablation in the town: PPP, without each of its two terms, and productivity alone, from one warm start.

Takes the folder of a finished quickstart, trains the three other variants from its warm start, evaluates them on the
same sessions, and writes the quickstart's report anew, which then has all four in its tables and curves:
`.venv/bin/python scripts/ablation.py runs/quickstart`. About four minutes a variant on two cores. Source: PPP section
5, table 2 and figures 5 to 8.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from quickstart import CURVES, RECIPE, run

# folder -> weights that the recipe changes; PPP itself is the quickstart's own run
VARIANTS: dict[str, dict[str, float]] = {
    "without_r_proact": {"proactivity": 0},
    "without_r_pers": {"personalization": 0},
    "r_prod_alone": {"proactivity": 0, "personalization": 0},
}


def train_variant(base: Path, folder: Path, weights: dict[str, float], seed: int, extra: list[str]) -> None:
    """Train one variant from the quickstart's warm start and evaluate it, unless that was done before."""
    if (folder / "after" / "summary.json").is_file():
        return
    recipe = ["--config", RECIPE, "--seed", str(seed), *extra]
    options = [text for name, weight in weights.items() for text in (f"--term_weights.{name}", str(weight))]
    train = str(folder / "train")
    warm = ["--model_name_or_path", str(base / "warmstart")]
    run(["ppp", "train", *recipe, *CURVES, *options, *warm, "--output_dir", train])
    run(["ppp", "evaluate", *recipe, "--agent", train, "--output_dir", str(folder / "after")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("quickstart", type=Path, help="folder of a finished quickstart")
    parser.add_argument("--only", choices=list(VARIANTS), help="train this variant only")
    own, extra = parser.parse_known_args()
    base = own.quickstart.absolute()
    if not (base / "summary.json").is_file():
        parser.error(f"{own.quickstart}: no summary.json; name the folder of a finished quickstart")
    seed = json.loads((base / "summary.json").read_text(encoding="utf-8"))["seed"]
    for name, weights in VARIANTS.items():
        if own.only in (None, name):
            train_variant(base, base / "ablation" / name, weights, seed, extra)
    run(["ppp", "report", str(base), "--output", str(base / "report.html")])


if __name__ == "__main__":
    main()
