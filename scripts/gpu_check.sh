#!/usr/bin/env bash
# Run what needs a GPU and continuous integration cannot: vLLM in the trainer's process and on a server (two GPUs), sleep
# and waking, bfloat16, flash attention, a step of 32k tokens. Writes runs/gpu_check/gpu_check.json; see --help.
#   PPP_PYTHON=/path/to/python   use this interpreter; it needs ppp with the extra vllm
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PPP_PYTHON:-}
for candidate in .venv-vllm/bin/python .venv/bin/python python3; do
    [[ -n $python ]] && break
    command -v "$candidate" >/dev/null && python=$candidate
done
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" scripts/gpu_check.py "$@"
