"""Pushing to the Hub, against a local server that answers as the Hub does; the Hub itself cannot be asked by tests."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from ppp.config import PPPConfig
from ppp.hub import open_hub
from ppp.types import InfrastructureError, RecipeError


class StubHub(ThreadingHTTPServer):
    """Takes commits of small files; `refuse` is the status with which it refuses everything."""

    refuse: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: StubHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.refuse is not None:
            self.answer({"error": "no"}, self.server.refuse)
        elif self.path == "/api/repos/create":
            self.answer({"url": f"{self.server.url}/me/{json.loads(body)['name']}"})
        elif self.path.endswith("/preupload/main"):
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self.answer({"files": [{**file, "shouldIgnore": False, "oid": None} for file in files]})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.server.url}/me/run/commit/1"
            self.answer({"success": True, "commitUrl": url, "commitOid": "1", "hookOutput": ""})
        else:
            self.answer({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        self.answer({"id": "me/run", "sha": "0"}, self.server.refuse or 200)

    def answer(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    server = StubHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for name in (
        *("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors", "README.md", "recipe.yaml"),
        *("metrics.jsonl", "versions.json", "trajectories.jsonl", "user_ledger.json", "training_args.bin"),
        *("checkpoint-2/model.safetensors", "_saving-4/config.json", "wandb/config.json", "tiny_model/config.json"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}" if name != "README.md" else "---\ntags: [ppp]\n---\n# run\n")
    return folder


def settings(run: Path, **changes: Any) -> PPPConfig:
    return PPPConfig(output_dir=str(run), push_to_hub=True, use_cpu=True, **changes)


def test_model_card_and_metrics_are_sent_and_no_session_or_checkpoint(hub: StubHub, run: Path) -> None:
    args = settings(run, hub_token="hf_secret")
    found = open_hub(args)
    assert found is not None
    assert found.push(run).startswith(hub.url)
    assert set(hub.files) == {
        *("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors", "README.md"),
        *("recipe.yaml", "metrics.jsonl", "versions.json"),
    }
    assert hub.files["README.md"] == (run / "README.md").read_bytes()
    assert hub.tokens == {"Bearer hf_secret"}
    assert args.hub_token is None and not args.push_to_hub, "transformers would push, and pickle the token"


def test_without_push_to_hub_nobody_is_asked(hub: StubHub, run: Path) -> None:
    assert open_hub(PPPConfig(output_dir=str(run), use_cpu=True)) is None
    assert not hub.tokens


def test_a_hub_that_refuses_is_told_of_before_training_in_one_sentence(hub: StubHub, run: Path) -> None:
    hub.refuse = 401
    with pytest.raises(RecipeError, match=r"^push_to_hub: .*401.*HF_TOKEN[^\n]*$"):
        open_hub(settings(run, hub_token="hf_wrong"))


def test_without_a_network_it_is_the_same(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    with pytest.raises(RecipeError, match=r"^push_to_hub: [^\n]*$"):
        open_hub(settings(run))


def test_a_hub_that_fails_at_the_end_leaves_the_model_where_it_is(hub: StubHub, run: Path) -> None:
    found = open_hub(settings(run, hub_token="hf_x"))
    assert found is not None
    hub.refuse = 403
    before = sorted(run.rglob("*"))
    with pytest.raises(InfrastructureError, match=r"^the trained model stands in [^\n]*hf upload me/run[^\n]*$"):
        found.push(run)
    assert sorted(run.rglob("*")) == before


def test_pushing_checkpoints_is_refused(hub: StubHub, run: Path) -> None:
    with pytest.raises(RecipeError, match="hub_strategy: 'checkpoint'"):
        open_hub(settings(run, hub_token="hf_x", hub_strategy="checkpoint"))
