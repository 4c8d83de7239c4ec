"""`ppp play`: a person takes part in sessions at the terminal, as the user of an agent or as the agent of a user.

The sessions are those of an evaluation and are kept like one: results of a person can be summed up, compared, shown and
learned from like all others. The command line is read in `playroom/settings.py`, the sessions are played in
`playroom/game.py`; how an evaluation without people is played, in `evaluation/run.py`.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence

from ppp.evaluation.plan import load_held_out_rows
from ppp.playroom.choosing import listing
from ppp.playroom.game import Game
from ppp.playroom.settings import PROG, parse_arguments
from ppp.recipe import Recipe
from ppp.types import InfrastructureError, RecipeError, RunStoppedError


def list_tasks(recipe: Recipe) -> int:
    """Write the tasks to standard output; returns the exit status."""
    try:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        sys.stdout.write(listing(load_held_out_rows(recipe)))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`ppp play --as user|agent ...`. Returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # nobody at a game can act on it
    try:
        settings = parse_arguments(sys.argv[1:] if argv is None else argv)
        if settings.lists:
            return list_tasks(settings.recipe)
        Game(settings).play()
    except RecipeError as error:
        sys.stderr.write(f"{PROG}: {error}\n")
        return 2
    except (RunStoppedError, InfrastructureError) as error:
        sys.stderr.write(f"\n{PROG}: {error}\n")
        return 1
    except KeyboardInterrupt as error:
        sys.stderr.write(f"\n{PROG}: {str(error) or 'Interrupted.'}\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
