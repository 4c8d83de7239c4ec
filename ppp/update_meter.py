"""How far one update moves what is trained: the norm of the change and the share of weights that changed.

Without a second copy of the model: a fixed random sample of this process's own elements is remembered from one step to
the next. A model with few elements is measured whole and exactly; otherwise the norm is an estimate, unbiased in its
square and, with 65,536 elements of an update by Adam, within about one percent. Under ZeRO the fp32 partitions are
read, not the rounded weights, under FSDP2 the local shards; nothing is gathered. Adapters are what is trained where
there are any. `learning_signal.py` comes next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from torch.nn import Module, Parameter

NUM_EXACT = 1 << 20  # elements of a process up to which all of them are remembered
NUM_SAMPLED = 1 << 16


@dataclass(frozen=True)
class _Place:
    """Where elements of one parameter are read.

    Attributes:
        read: this process's elements, flat.
        index: which of them are remembered, None for all.
        share: how many elements of the whole model each of them stands for; a process that holds what others hold as
            well counts for its part.
    """

    read: Callable[[], torch.Tensor]
    index: torch.Tensor | None
    share: float


class UpdateMeter:
    """Measures updates of the trainable parameters of a model that has been prepared for training.

    Args:
        accelerator: tells how parameters are distributed; all processes measure together.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._places: list[_Place] = []
        self._before: torch.Tensor | None = None
        self._shares: torch.Tensor | None = None

    def start(self, model: Module) -> None:
        """Remember the weights before the first update; later calls do nothing."""
        if self._before is not None:
            return
        reads = [self._reader(parameter) for parameter in model.parameters() if parameter.requires_grad]
        sizes = [read().numel() for read, _ in reads]
        total = sum(sizes)
        generator = torch.Generator().manual_seed(0)
        for (read, copies), size in zip(reads, sizes, strict=True):
            if total <= NUM_EXACT:
                self._places.append(_Place(read, None, 1 / copies))
            elif size:
                num = max(1, round(NUM_SAMPLED * size / total))
                index = torch.randint(size, (num,), generator=generator).to(self.accelerator.device)
                self._places.append(_Place(read, index, size / num / copies))
        self._before, self._shares = self._sample(), self._all_shares()

    def measure(self) -> dict[str, float]:
        """`update/norm` and `update/changed` (a share) of what happened since the last call; an infinite norm stands
        for weights that are no numbers."""
        assert self._before is not None and self._shares is not None, "start comes first"
        now = self._sample()
        change = now - self._before
        self._before = now
        local = torch.stack(
            [
                (self._shares * change.square()).sum(),
                (self._shares * (change != 0)).sum(),
                self._shares.sum(),
            ]
        )
        square, changed, total = self.accelerator.reduce(local, reduction="sum").tolist()
        norm = math.sqrt(square) if math.isfinite(square) else math.inf
        return {"update/norm": norm, "update/changed": changed / max(total, 1.0)}

    def _sample(self) -> torch.Tensor:
        """The remembered elements as they are now, in float32."""
        device = self.accelerator.device
        parts = [torch.zeros(0, device=device)]
        for place in self._places:
            values = place.read()
            part = values if place.index is None else values[place.index.to(values.device)]
            parts.append(part.to(device=device, dtype=torch.float32))
        return torch.cat(parts)

    def _all_shares(self) -> torch.Tensor:
        sizes = [place.read().numel() if place.index is None else len(place.index) for place in self._places]
        shares = torch.tensor([place.share for place in self._places], device=self.accelerator.device)
        return shares.repeat_interleave(torch.tensor(sizes, device=self.accelerator.device, dtype=torch.long))

    def _reader(self, parameter: Parameter) -> tuple[Callable[[], torch.Tensor], int]:
        """What reads this process's elements of a parameter, and how many processes hold the same ones."""
        if self.accelerator.distributed_type is DistributedType.DEEPSPEED:
            stage = self.accelerator.state.deepspeed_plugin.zero_stage
            if stage in ZERO_READERS:
                return lambda: ZERO_READERS[stage](parameter), 1
        if isinstance(parameter, DTensor):
            mesh = parameter.device_mesh
            copies = [mesh.size(dim) for dim, kind in enumerate(parameter.placements) if kind.is_replicate()]
            return lambda: parameter.to_local().detach().flatten(), math.prod(copies)
        if self.accelerator.distributed_type is DistributedType.FSDP:
            return lambda: parameter.detach().flatten(), 1
        return lambda: parameter.detach().flatten(), self.accelerator.num_processes


def _zero3(parameter: Parameter) -> torch.Tensor:
    """The fp32 partition of a parameter under ZeRO-3; with offload it is copied from the CPU, one at a time."""
    from deepspeed.utils import safe_get_local_fp32_param

    return safe_get_local_fp32_param(parameter).detach().flatten()


def _zero12(parameter: Parameter) -> torch.Tensor:
    """The part of a parameter's fp32 master weights that this process updates under ZeRO-1 and ZeRO-2."""
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:  # another process's
        return torch.zeros(0, device=parameter.device)
    return mapping.get_hp_fragment().detach().flatten()


# stage of ZeRO -> what reads this process's elements
ZERO_READERS: dict[int, Callable[[Parameter], torch.Tensor]] = {1: _zero12, 2: _zero12, 3: _zero3}
