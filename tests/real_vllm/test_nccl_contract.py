"""What can be known of NCCL without a GPU: the trainer's end and vLLM's own receiver speak the same language."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer import nccl_engine, packed_tensor
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferInitInfo, NCCLWeightTransferUpdateInfo

from ppp.engines.sync_full import describe, pack
from ppp.engines.transfer_groups import NcclGroup

WEIGHTS = [("a", torch.randn(3, 5)), ("b", torch.randn(7)), ("c.weight", torch.randn(2, 2, 2).transpose(0, 2))]


class _Stream:
    def synchronize(self) -> None:
        """Nothing is under way."""


class _Group:
    """Delivers what a trainer broadcast."""

    def __init__(self, sent: list[torch.Tensor]) -> None:
        self.sent = sent

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        assert src == 0
        tensor.copy_(self.sent.pop(0))


@pytest.fixture
def without_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_tensor, "_get_streams", lambda device, num: tuple(_Stream() for _ in range(num)))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())


def test_vllm_takes_a_request_apart_as_it_was_packed(without_streams: None) -> None:
    init = NCCLWeightTransferInitInfo(**NcclGroup.init_info("10.0.0.1", 29500, 3))
    update = NCCLWeightTransferUpdateInfo(**describe(WEIGHTS))
    shapes = zip(
        update.names, zip(update.shapes, map(torch.__dict__.get, update.dtype_names), strict=True), strict=True
    )
    found: dict[str, torch.Tensor] = {}
    group = _Group([pack(WEIGHTS, torch.device("cpu"))])
    packed_tensor.packed_nccl_broadcast_consumer(
        iterator=iter(shapes),  # as `receive_weights` of vLLM's engine calls it
        group=group,
        src=0,
        post_unpack_func=found.update,
        buffer_size_bytes=init.packed_buffer_size_bytes,
        num_buffers=init.packed_num_buffers,
        device="cpu",
    )
    assert init.packed and init.rank_offset == 1 and not group.sent, "one broadcast for each request"
    assert found.keys() == dict(WEIGHTS).keys()
    for name, tensor in WEIGHTS:
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize(
    ("function", "arguments", "options"),
    [
        (StatelessProcessGroup.create, ["host", 1], ["rank", "world_size", "store_timeout", "listen_socket"]),
        (PyNcclCommunicator.__init__, ["self", "group"], ["device"]),
        (PyNcclCommunicator.broadcast, ["self", "tensor"], ["src", "stream"]),
        (PyNcclCommunicator.destroy, ["self"], []),
    ],
)
def test_what_the_trainer_calls_is_there(function: Any, arguments: list[Any], options: list[str]) -> None:
    inspect.signature(function).bind(*arguments, **dict.fromkeys(options))


def test_vllms_engine_receives_packed() -> None:
    """The receiver is chosen by `packed` of the handshake, and called once for each request."""
    source = inspect.getsource(nccl_engine.NCCLWeightTransferEngine.receive_weights)
    assert "if self.packed" in source and "packed_nccl_broadcast_consumer(" in source
