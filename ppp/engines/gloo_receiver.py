"""Weights over gloo as vLLM takes them: what its NCCL engine does, for workers without a GPU.

Imported by vLLM's workers only, after `weight_transfer.py` has named it to them; the transfer itself is there too.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from ppp.engines.weight_transfer import GlooWorker


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
    """Loads what it gets as if it came from a checkpoint."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    _worker: GlooWorker | None = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join the trainer's group; a group with a trainer of before is left."""
        config = self.parallel_config
        rank = init_info.rank_offset + config.data_parallel_index * config.world_size + config.rank
        self._worker = GlooWorker(init_info.master_address, init_info.master_port, rank, init_info.world_size)

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Wait for the broadcast that the request announces, and load what is in it.

        Raises:
            RuntimeError: the trainer is gone.
        """
        if self._worker is None:
            raise RuntimeError("init_weight_transfer_engine has to come first")
        self.model.load_weights(self._worker.receive(update_info.names, update_info.dtype_names, update_info.shapes))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        for layer in self.model.modules():
            if isinstance(layer, ParallelLMHead):
                # On a CPU it computes with a copy, which does not follow embeddings that are its weights as well.
                layer.quant_method.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        self._worker = None
