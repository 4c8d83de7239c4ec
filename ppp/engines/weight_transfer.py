"""A plugin for vLLM: servers take weights over gloo, which needs no GPU. vLLM calls `register` when it starts.

Runs in the server's processes, not in ours, and only where vLLM is installed. The other end is in `transfer_groups.py`.
"""

from __future__ import annotations


def register() -> None:
    """Add "gloo" to what `--weight-transfer-config` knows; the entry point of group `vllm.general_plugins`."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    try:
        WeightTransferEngineFactory.register_engine("gloo", "ppp.engines.gloo_receiver", "GlooReceiver")
    except ValueError:
        return  # vLLM may load its plugins twice in a process
