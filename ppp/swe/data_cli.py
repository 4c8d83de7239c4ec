"""`ppp data COMMAND ...`: tasks of software issues, out of published data sets or out of a repository's history."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ppp.commands import hand_over

# name -> (module with a `main(argv) -> exit status`, what it does)
COMMANDS: dict[str, tuple[str, str]] = {
    "swe": ("ppp.swe.swe_cli", "issues of SWE-Gym, SWE-bench or a file -> labelled train and test tasks"),
    "mine": ("ppp.swe.mine_cli", "the history of a local git repository -> labelled train and test tasks"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the rest of the command line to a command; returns its exit status."""
    return hand_over("ppp data", "Make training and test tasks of software issues.", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
