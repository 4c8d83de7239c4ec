#!/usr/bin/env bash
# Train the town with users played by a language model: make a warm start and a tiny user model unless they are there,
# serve the user model with `transformers serve`, train, stop the server. CPU; about ten minutes on two cores.
#   PORT=8000   of the server
# Arguments go to `ppp train`: scripts/town_llm_user.sh --max_steps 5 --output_dir runs/other
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
port=${PORT:-8000}
user_model=runs/town_user_model
warm_start=runs/town/warmstart
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

[[ -d $warm_start ]] || ppp warmstart --config recipes/town.yaml --output_dir "$warm_start"
[[ -d $user_model ]] || python scripts/town_user_model.py "$user_model"

if python -c "import socket, sys; sys.exit(socket.socket().connect_ex(('127.0.0.1', $port)))"; then
    echo "town_llm_user: port $port is taken; set PORT to another one" >&2
    exit 1
fi
mkdir -p runs
transformers serve "$user_model" --device cpu --host 127.0.0.1 --port "$port" >runs/town_user_server.log 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null || true' EXIT
until python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:$port/health')" 2>/dev/null; do
    kill -0 "$server" 2>/dev/null || { echo "town_llm_user: no server, see runs/town_user_server.log" >&2; exit 1; }
    sleep 1
done
ppp train --config recipes/town_llm_user.yaml --user.base_url "http://127.0.0.1:$port/v1" "$@"
