"""`accelerate launch ... tests/zero3_train.py ...` is `ppp train ...` with DeepSpeed that compiles nothing."""

from __future__ import annotations

import sys


def over_gloo() -> None:
    """Have DeepSpeed's processes on a CPU talk over gloo alone.

    Otherwise it first compiles a faster way through shared memory, for a minute or more; and a process that is killed
    meanwhile leaves a lock behind, for which all later ones wait without end.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


if __name__ == "__main__":
    over_gloo()
    from ppp.train import main

    sys.exit(main())
