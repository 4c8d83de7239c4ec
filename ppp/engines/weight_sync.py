"""The ways to bring the trainer's weights to inference servers, by the name that a recipe gives them.

`sync_base.py` says what one has to offer, `server_info.py` what a server says of itself.
"""

from __future__ import annotations

from ppp.engines.server_info import ServerInfo, read_server_info
from ppp.engines.sync_adapter import AdapterSync
from ppp.engines.sync_base import NoSync, WeightSync
from ppp.engines.sync_full import FullSync

__all__ = ["SYNCS", "AdapterSync", "FullSync", "NoSync", "ServerInfo", "WeightSync", "read_server_info"]

SYNCS: dict[str, type[WeightSync]] = {
    "full": FullSync,  # every weight, over NCCL or gloo
    "adapter": AdapterSync,  # LoRA's weights only, through a folder that the servers can read
    "none": NoSync,
}
"""Name -> class."""
