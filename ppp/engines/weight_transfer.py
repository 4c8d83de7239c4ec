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
READY_KEY = "ppp_ready"
"""How often a worker was ready to receive: a broadcast waits for all of them, for one to nobody cannot be ended."""
_TIMEOUT = timedelta(seconds=600)


def register() -> None:
    """Add "gloo" to what `--weight-transfer-config` knows."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    try:
        WeightTransferEngineFactory.register_engine("gloo", "ppp.engines.gloo_receiver", "GlooReceiver")
    except ValueError:
        return  # vLLM may load its plugins twice in a process


class GlooWorker:
    """A worker of a server, in a group with the trainer and the other workers; blocks until all of them are there.

    Args:
        rank: of this worker; the trainer is 0.

    Raises:
        RuntimeError: there is no trainer.
    """

    def __init__(self, address: str, port: int, rank: int, world_size: int) -> None:
        self._store = TCPStore(address, port, world_size, is_master=False, timeout=_TIMEOUT, wait_for_workers=False)
        self._group: Any = ProcessGroupGloo(PrefixStore(STORE_PREFIX, self._store), rank, world_size, _TIMEOUT)

    def receive(
        self, names: Sequence[str], dtype_names: Sequence[str], shapes: Sequence[Sequence[int]]
    ) -> list[tuple[str, Tensor]]:
        """Wait for the broadcast in which these tensors come, one behind the other, and take it apart.

        Raises:
            RuntimeError: the trainer is gone.
        """
        dtypes = [getattr(torch, name) for name in dtype_names]
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)]
        # A tensor of its own for each call: vLLM keeps parts of it until a layer is complete.
        packed = torch.empty(sum(sizes), dtype=torch.uint8)
        self._store.add(READY_KEY, 1)
        self._group.broadcast([packed], from_trainer()).wait()
        parts = zip(names, shapes, dtypes, packed.split(sizes), strict=True)
        return [(name, part.view(dtype).view(tuple(shape))) for name, shape, dtype, part in parts]


def from_trainer() -> BroadcastOptions:
    options = BroadcastOptions()
    options.rootRank = options.rootTensor = 0
    return options
