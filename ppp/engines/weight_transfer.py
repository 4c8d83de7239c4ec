"""A server's end of a transfer of weights over gloo, which needs no GPU, and its entry among vLLM's ways to take
weights.

`register` is a plugin of vLLM (entry point group `vllm.general_plugins`): vLLM calls it when it starts, nothing else
does. What vLLM makes of the weights is in `gloo_receiver.py`, the trainer's end in `transfer_groups.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore

STORE_PREFIX = "ppp_weights"
_TIMEOUT = timedelta(seconds=600)


def register() -> None:
    """Add "gloo" to what `--weight-transfer-config` knows."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    try:
        WeightTransferEngineFactory.register_engine("gloo", "ppp.engines.gloo_receiver", "GlooReceiver")
    except ValueError:
        return  # vLLM may load its plugins twice in a process


def join(address: str, port: int, rank: int, world_size: int) -> ProcessGroupGloo:
    """Meet the trainer and the other workers; blocks until all are there.

    Args:
        rank: of this worker; the trainer is 0.

    Raises:
        RuntimeError: there is no trainer.
    """
    store = TCPStore(address, port, world_size, is_master=False, timeout=_TIMEOUT, wait_for_workers=False)
    return ProcessGroupGloo(PrefixStore(STORE_PREFIX, store), rank, world_size, _TIMEOUT)


def receive(
    group: Any, names: Sequence[str], dtype_names: Sequence[str], shapes: Sequence[Sequence[int]]
) -> list[tuple[str, Tensor]]:
    """Wait for the broadcast in which these tensors come, one behind the other, and take it apart.

    Raises:
        RuntimeError: the trainer is gone.
    """
    dtypes = [getattr(torch, name) for name in dtype_names]
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)]
    # A tensor of its own for each call: vLLM keeps parts of it until a layer is complete.
    packed = torch.empty(sum(sizes), dtype=torch.uint8)
    options = BroadcastOptions()
    options.rootRank = options.rootTensor = 0
    group.broadcast([packed], options).wait()
    parts = zip(names, shapes, dtypes, packed.split(sizes), strict=True)
    return [(name, part.view(dtype).view(tuple(shape))) for name, shape, dtype, part in parts]
