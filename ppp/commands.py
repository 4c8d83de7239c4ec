"""Commands made of commands: `ppp COMMAND ...` and `ppp data COMMAND ...`. The table of `ppp` itself is in `cli.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

from ppp import __version__

Commands = Mapping[str, tuple[str, str]]
"""Name -> module with a `main(argv) -> exit status`, imported when it is called for, and what the command does."""


def hand_over(prog: str, description: str, commands: Commands, argv: Sequence[str] | None) -> int:
    """Hand the rest of the command line to the command that it begins with; returns the exit status."""
    listing = "\n".join(f"  {name:<10} {purpose}" for name, (_, purpose) in commands.items())
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=f"commands:\n{listing}\n\n{prog} COMMAND --help lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ppp {__version__}")
    parser.add_argument("command", choices=commands, metavar="COMMAND", help=", ".join(commands))
    given = list(sys.argv[1:] if argv is None else argv)
    # Only what stands before the command is ours: `ppp train --help` is the help of `train`.
    known = parser.parse_args(given[:1] or ["--help"])
    status: int = import_module(commands[known.command][0]).main(given[1:])
    return status
