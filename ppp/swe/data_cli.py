"""`ppp data COMMAND ...`: tasks of software issues, out of published data sets or out of a repository's history."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

# name -> (module with a `main(argv) -> exit status`, what it does)
COMMANDS: dict[str, tuple[str, str]] = {
    "swe": ("ppp.swe.swe_cli", "issues of SWE-Gym, SWE-bench or a file -> labelled train and test tasks"),
    "mine": ("ppp.swe.mine_cli", "the history of a local git repository -> labelled train and test tasks"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the rest of the command line to a subcommand; returns its exit status."""
    listing = "\n".join(f"  {name:<10} {purpose}" for name, (_, purpose) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="ppp data",
        description="Make training and test tasks of software issues.",
        epilog=f"commands:\n{listing}\n\nppp data COMMAND --help lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    given = list(sys.argv[1:] if argv is None else argv)
    # Only what stands before the command is ours: `ppp data swe --help` is the help of `swe`.
    known = parser.parse_args(given[:1] or ["--help"])
    status: int = import_module(COMMANDS[known.command][0]).main(given[1:])
    return status


if __name__ == "__main__":
    sys.exit(main())
