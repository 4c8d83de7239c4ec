"""The one place where the doctor catches whatever is raised: a check that breaks must not keep the others from running.

What raises is not ours: drivers, kernels, a model's code, a tokenizer. What is expected is caught where it belongs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)


def attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What `work` returns, or what it raised; interruptions pass."""
    try:
        return work(), None
    except Exception as error:
        logger.debug("a check raised", exc_info=True)
        return None, error
