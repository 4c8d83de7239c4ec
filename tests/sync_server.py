"""A server that takes weights as vLLM does: the same routes over real HTTP, and a real worker at the end of a gloo
group, which keeps the weights instead of computing with them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ppp.engines.weight_transfer import GlooWorker

Route = Callable[[dict[str, Any]], dict[str, Any]]


class SyncServer:
    """Runs while it is entered.

    Attributes:
        weights: name -> tensor, as of the last finished update.
        version: of these weights.
        adapters: name -> the tensors that were in the folder when it was loaded.
        calls: the routes that were posted to, in order.
        fail_on: a route that answers 500.
    """

    def __init__(self, *, backend: str | None = "gloo", max_lora_rank: int | None = 16, dev: bool = True) -> None:
        self.backend, self.max_lora_rank, self.dev = backend, max_lora_rank, dev
        self.runtime_lora = True
        self.weights: dict[str, Tensor] = {}
        self.version = "default"
        self.adapters: dict[str, dict[str, Tensor]] = {}
        self.calls: list[str] = []
        self.fail_on: str | None = None
        self.num_busy_resets = 0
        self._incoming: dict[str, Tensor] | None = None
        self._worker: GlooWorker | None = None
        self._routes: dict[str, Route] = {
            "/init_weight_transfer_engine": self._init,
            "/start_weight_update": self._start,
            "/update_weights": self._update,
            "/finish_weight_update": self._finish,
            "/reset_prefix_cache": self._reset,
            "/v1/load_lora_adapter": self._load,
            "/v1/unload_lora_adapter": self._unload,
        }

    def __enter__(self) -> SyncServer:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = server.page(self.path.partition("?")[0])
                self._answer(404 if page is None else 200, page or {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(*server.post(self.path, body))

            def _answer(self, status: int, content: dict[str, Any]) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def page(self, path: str) -> dict[str, Any] | None:
        model = {"id": "base", "root": "some/model", "parent": None, "max_model_len": 512}
        if path == "/v1/models":
            loaded = [{"id": name, "root": "", "parent": "base"} for name in self.adapters]
            return {"data": [model, *loaded]}
        if path == "/get_world_size" and self.dev:
            return {"world_size": 1}
        if path == "/server_info" and self.dev:
            config = {
                "instance_id": "1",
                "model_config": {"dtype": "torch.float32", "logprobs_mode": "processed_logprobs"},
                "lora_config": None if self.max_lora_rank is None else {"max_lora_rank": self.max_lora_rank},
                "weight_transfer_config": None if self.backend is None else {"backend": self.backend},
            }
            env = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": self.runtime_lora}
            return {"vllm_config": config, "vllm_env": env}
        return None

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.calls.append(path)
        if path == self.fail_on:
            return 500, {"error": "the server is out of order"}
        try:
            return 200, self._routes[path](body)
        except (RuntimeError, KeyError) as error:
            return 500, {"error": repr(error)}

    def _init(self, body: dict[str, Any]) -> dict[str, Any]:
        info = body["init_info"]
        self._worker = GlooWorker(info["master_address"], info["master_port"], info["rank_offset"], info["world_size"])
        return {}

    def _start(self, body: dict[str, Any]) -> dict[str, Any]:
        if self._incoming is not None:
            raise RuntimeError("an update is already active")
        self._incoming = {}
        return {}

    def _update(self, body: dict[str, Any]) -> dict[str, Any]:
        if self._incoming is None or self._worker is None:
            raise RuntimeError("no update is active")
        self._incoming |= dict(self._worker.receive(**body["update_info"]))
        return {}

    def _finish(self, body: dict[str, Any]) -> dict[str, Any]:
        if self._incoming is None:
            raise RuntimeError("no update is active")
        self.weights, self._incoming = self._incoming, None
        self.version = body.get("weight_version", self.version)
        return {}

    def _reset(self, body: dict[str, Any]) -> dict[str, Any]:
        self.num_busy_resets -= 1
        return {"success": self.num_busy_resets < 0}

    def _load(self, body: dict[str, Any]) -> dict[str, Any]:
        folder = Path(body["lora_path"])
        assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
        self.adapters[body["lora_name"]] = load_file(folder / "adapter_model.safetensors")
        return {}

    def _unload(self, body: dict[str, Any]) -> dict[str, Any]:
        del self.adapters[body["lora_name"]]
        return {}
