"""The server's end of a transfer of weights over gloo: what vLLM's NCCL engine does, for workers without a GPU.

Imported by vLLM's workers only, after `weight_transfer.py` has named it to them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from ppp.engines.transfer_groups import STORE_PREFIX

_TIMEOUT = timedelta(seconds=600)


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """Where the trainer, number 0, is to be met. `rank_offset`: number of the server's first worker."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """What the next broadcast holds, in order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooReceiver(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Takes weights as one tensor of bytes per request and loads them as if they came from a checkpoint."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    _group: Any = None  # a ProcessGroupGloo; torch's stubs know little of it

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join the trainer's group; a group with a trainer of before is left."""
        config = self.parallel_config
        rank = init_info.rank_offset + config.data_parallel_index * config.world_size + config.rank
        store = TCPStore(
            init_info.master_address,
            init_info.master_port,
            init_info.world_size,
            is_master=False,
            timeout=_TIMEOUT,
            wait_for_workers=False,
        )
        self._group = ProcessGroupGloo(PrefixStore(STORE_PREFIX, store), rank, init_info.world_size, _TIMEOUT)

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Wait for the broadcast that the request announces, and load what is in it.

        Raises:
            RuntimeError: the trainer is gone.
        """
        if self._group is None:
            raise RuntimeError("init_weight_transfer_engine has to come first")
        dtypes = [getattr(torch, name) for name in update_info.dtype_names]
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in zip(update_info.shapes, dtypes, strict=True)]
        # A tensor of its own for each request: vLLM keeps parts of it until a layer is complete.
        packed = torch.empty(sum(sizes), dtype=torch.uint8)
        options = BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        self._group.broadcast([packed], options).wait()
        parts = zip(update_info.names, update_info.shapes, dtypes, packed.split(sizes), strict=True)
        self.model.load_weights([(name, part.view(dtype).view(shape)) for name, shape, dtype, part in parts])

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        self._group = None
