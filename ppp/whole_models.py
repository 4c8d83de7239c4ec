"""Models of transformers as they are, in a process in which DeepSpeed's ZeRO-3 would have them spread at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.integrations import deepspeed


@contextmanager
def whole_models() -> Iterator[None]:
    """Inside, a model is loaded or built as if there were no ZeRO-3: whole, in this process alone.

    transformers decides by a global of its own, which points to the recipe's arguments and has no public getter.
    """
    before = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = before
