#!/usr/bin/env bash
# From a fresh clone to a trained agent and a report: set up .venv, then warm start, evaluate, train, evaluate again.
# Options: --seed N, --output-dir DIR (default runs/quickstart), --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
exec .venv/bin/python scripts/quickstart.py "$@"
