#!/usr/bin/env bash
# Set up an environment if needed and run tests. Arguments go to pytest: scripts/test.sh -k town
#   scripts/test.sh          in .venv: lint, types, and all tests but those in tests/real_vllm
#   scripts/test.sh --vllm   in .venv-vllm: tests/real_vllm, against real vLLM on a CPU; half an hour on two cores
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The tests need no network; a library that tries to reach one should fail at once instead of waiting.
offline=(HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false VLLM_NO_USAGE_STATS=1)

if [[ ${1:-} == --vllm ]]; then
    shift
    scripts/setup.sh --vllm
    # What DeepSpeed compiles differs from .venv's, and would be compiled anew whenever the other one had been used.
    export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$PWD/.venv-vllm/torch_extensions}"
    exec env "${offline[@]}" .venv-vllm/bin/python -m pytest tests/real_vllm "$@"
fi

scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec env "${offline[@]}" .venv/bin/python -m pytest "$@"
