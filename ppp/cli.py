"""The `ppp` command: one line per subcommand, whose module is imported when it is called for."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ppp.commands import hand_over

# name -> (module with a `main(argv) -> exit status`, what it does)
COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("ppp.doctor.command", "find out before a run what would keep it from working"),
    "warmstart": ("ppp.warmstart", "supervised warm start: teach a model to take part in sessions at all"),
    "train": ("ppp.train", "train from a recipe, in one process (several: accelerate launch -m ppp.train)"),
    "evaluate": (
        "ppp.evaluate",
        "the three scores of any agent on held-out sessions; a killed evaluation goes on",
    ),
    "vaguenize": ("ppp.vaguenizer.cli", "rewrite precise prompts, issues or search questions into vague ones, checked"),
    "data": ("ppp.swe.data_cli", "tasks of software issues: ppp data swe reads SWE-Gym, SWE-bench and their like"),
    "users": ("ppp.agreement.cli", "ppp users check: how far the verdicts and efforts of user models can be trusted"),
    "export": ("ppp.export", "the model of a run or a checkpoint as a plain folder, adapters merged on request"),
    "compare": (
        "ppp.evaluation.compare_cli",
        "how two evaluations of the same sessions differ, and which sessions changed most",
    ),
    "play": ("ppp.play", "take part yourself, as the user of an agent or as the agent of a user"),
    "report": ("ppp.report", "tables and figures of runs, and one HTML page with every conversation"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the rest of the command line to a command; returns its exit status."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the pool's threads tokenize; forks would only warn
    description = "Train and evaluate agents that are productive, proactive and personalized."
    return hand_over("ppp", description, COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
