"""The `ppp` command: one line per subcommand, whose module is imported when it is called for."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ppp import __version__

# name -> (module with a `main(argv) -> exit status`, what it does)
COMMANDS: dict[str, tuple[str, str]] = {
    "warmstart": ("ppp.warmstart", "supervised warm start: teach a model to take part in sessions at all"),
    "train": ("ppp.train", "train from a recipe, in one process (several: accelerate launch -m ppp.train)"),
    "evaluate": (
        "ppp.evaluate",
        "play held-out sessions with a model or a rule-made agent and report the three scores",
    ),
    "vaguenize": ("ppp.vaguenizer.cli", "rewrite precise prompts, issues or search questions into vague ones, checked"),
    "data": ("ppp.swe.data_cli", "tasks of software issues: ppp data swe reads SWE-Gym, SWE-bench and their like"),
    "users": ("ppp.agreement.cli", "ppp users check: how far the verdicts and efforts of user models can be trusted"),
    "report": ("ppp.report", "plots and tables of a run"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the rest of the command line to a subcommand; returns its exit status."""
    listing = "\n".join(f"  {name:<10} {purpose}" for name, (_, purpose) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="ppp",
        description="Train and evaluate agents that are productive, proactive and personalized.",
        epilog=f"commands:\n{listing}\n\nppp COMMAND --help lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=True,
    )
    parser.add_argument("--version", action="version", version=f"ppp {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    given = list(sys.argv[1:] if argv is None else argv)
    # Only what stands before the command is ours: `ppp train --help` is the help of `train`.
    known = parser.parse_args(given[:1] or ["--help"])
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the pool's threads tokenize; forks would only warn
    status: int = import_module(COMMANDS[known.command][0]).main(given[1:])
    return status


if __name__ == "__main__":
    sys.exit(main())
