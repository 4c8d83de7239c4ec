"""`ppp evaluate`: the three scores of any agent on held-out sessions; resumed by the same command, compared with a
baseline, or computed again from what was played before.

The command line is read in `evaluation/settings.py`, the sessions are played in `evaluation/run.py`. Tables of several
evaluations, plots and the page: `ppp report`.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence

from ppp.batch import TooManyFailuresError
from ppp.evaluation.folder import RESULTS_FILE
from ppp.evaluation.records import read_records
from ppp.evaluation.run import evaluate
from ppp.evaluation.settings import PROG, EvaluationSettings, parse_arguments
from ppp.evaluation.summary import shown_summary, summarize_results
from ppp.tracking import check_wandb, log_evaluation, wants_wandb
from ppp.types import InfrastructureError, RecipeError, RunStoppedError

logger = logging.getLogger(__name__)

PAGE_FILE = "report.html"  # what ppp report may have left in the folder; goes to W&B with the scores


def run(settings: EvaluationSettings) -> None:
    """Evaluate, and show what came of it, on W&B too if the recipe reports there."""
    args, folder = settings.recipe.args, settings.output_dir
    check_wandb(args)
    summary = evaluate(settings)
    sys.stdout.write(f"\n{shown_summary(summary)}\n\n{folder}\n")
    if wants_wandb(args):
        page = folder / PAGE_FILE
        records = read_records(folder / RESULTS_FILE).records
        log_evaluation(summary, records, folder, name=args.run_name, page=page if page.is_file() else None)


def main(argv: Sequence[str] | None = None) -> int:
    """`ppp evaluate --agent AGENT --output_dir DIR ...`. Returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # TRL still reads attributes that transformers renames.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        settings = parse_arguments(sys.argv[1:] if argv is None else argv)
        if isinstance(settings, EvaluationSettings):
            run(settings)
        else:
            summary, folder = summarize_results(settings.path, settings.output_dir)
            sys.stdout.write(f"{shown_summary(summary)}\n\n{folder}\n")
    except RecipeError as error:
        sys.stderr.write(f"{PROG}: {error}\n")
        return 2
    except (TooManyFailuresError, RunStoppedError, InfrastructureError) as error:
        sys.stderr.write(f"{PROG}: {error}\n")
        return 1
    except KeyboardInterrupt as error:
        sys.stderr.write(f"{PROG}: {error or 'interrupted; the same command goes on'}\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
