"""What a vLLM server says of itself: model, limits, and which ways it has to take new weights.

Read before a model is loaded, so that a recipe and a server that do not fit are refused by name. How weights get there
is in `weight_sync.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from ppp.engines.base import ENGINE_KIND
from ppp.types import InfrastructureError

CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """One server. What only the development routes tell (`VLLM_SERVER_DEV_MODE=1`) is None where they are missing.

    Attributes:
        base_url: without a slash at the end, and without `/v1`.
        model_name: what requests name as "model"; the model that the server was started with, not an adapter.
        model_path: folder or name on the Hub from which the server loaded it.
        max_length: tokens of the longest sequence, prompt included.
        has_dev_routes: whether weights can be sent and the prefix cache can be reset.
        instance_id: another one after each start of the server.
        dtype: "float32", "bfloat16", "float16".
        logprobs_mode: "processed_logprobs" where log-probabilities are those of the distribution that is sampled from.
        world_size: number of its workers: tensor x pipeline x data parallel.
        transfer_backend: how it takes weights: "nccl", "gloo", ...; None if not at all.
        max_lora_rank: of the adapters that it takes; None if it takes none.
        takes_adapters_at_runtime: whether `/v1/load_lora_adapter` is there.
    """

    base_url: str
    model_name: str
    model_path: str
    max_length: int
    has_dev_routes: bool
    instance_id: str | None = None
    dtype: str | None = None
    logprobs_mode: str | None = None
    world_size: int | None = None
    transfer_backend: str | None = None
    max_lora_rank: int | None = None
    takes_adapters_at_runtime: bool = False


def read_server_info(base_url: str, timeout_s: float = 30.0, headers: Mapping[str, str] | None = None) -> ServerInfo:
    """Ask a server about itself.

    Args:
        headers: of every request, such as an API key's.

    Raises:
        InfrastructureError: it does not answer, or not as vLLM would.
    """
    base_url = base_url.rstrip("/")
    try:
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        with httpx.Client(base_url=base_url, timeout=timeout, headers=headers, trust_env=False) as client:
            models = _json(client.get("/v1/models"))
            # `system_env`, which comes along, takes a server seconds when it is asked for the first time.
            reply = client.get("/server_info", params={"config_format": "json"})
            has_dev_routes = reply.status_code == httpx.codes.OK
            world_size = _json(client.get("/get_world_size")) if has_dev_routes else {}
            return _parse(base_url, models, _json(reply) if has_dev_routes else None, world_size)
    except httpx.HTTPError as error:
        raise InfrastructureError(
            f"the server at {base_url} does not answer: {type(error).__name__} {error}", kind=ENGINE_KIND
        ) from error
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise InfrastructureError(
            f"the server at {base_url} does not answer as vLLM does: {error!r}", kind=ENGINE_KIND
        ) from error


def _json(reply: httpx.Response) -> dict[str, Any]:
    reply.raise_for_status()
    content = reply.json()
    if not isinstance(content, dict):
        raise TypeError(f"{reply.request.url.path} gave no JSON object")
    return content


def _parse(
    base_url: str, models: dict[str, Any], server: dict[str, Any] | None, world_size: dict[str, Any]
) -> ServerInfo:
    own = next(model for model in models["data"] if model.get("parent") is None)  # adapters have a parent
    if server is None:
        return ServerInfo(base_url, own["id"], own["root"], int(own["max_model_len"]), has_dev_routes=False)
    config = server["vllm_config"]
    lora, transfer = config["lora_config"], config["weight_transfer_config"]
    return ServerInfo(
        base_url,
        model_name=own["id"],
        model_path=own["root"],
        max_length=int(own["max_model_len"]),
        has_dev_routes=True,
        instance_id=str(config["instance_id"]),
        dtype=str(config["model_config"]["dtype"]).removeprefix("torch."),
        logprobs_mode=config["model_config"]["logprobs_mode"],
        world_size=int(world_size["world_size"]),
        transfer_backend=None if transfer is None else str(transfer["backend"]),
        max_lora_rank=None if lora is None else int(lora["max_lora_rank"]),
        takes_adapters_at_runtime=bool(server["vllm_env"].get("VLLM_ALLOW_RUNTIME_LORA_UPDATING")),
    )
