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
from ppp.evaluation.run import evaluate
from ppp.evaluation.settings import PROG, EvaluationSettings, parse_arguments
from ppp.evaluation.summary import shown_summary, summarize_results
from ppp.types import InfrastructureError, RecipeError, RunStoppedError


def run(settings: EvaluationSettings) -> None:
    """Evaluate, and show what came of it."""
    summary = evaluate(settings)
    sys.stdout.write(f"\n{shown_summary(summary)}\n\n{settings.output_dir}\n")


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
