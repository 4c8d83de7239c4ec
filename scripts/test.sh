#!/usr/bin/env bash
# Set up .venv if needed, then lint, check types and run the tests. Arguments go to pytest: scripts/test.sh -k town
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh

# The tests need no network; a library that tries to reach one should fail at once instead of waiting.
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest "$@"
