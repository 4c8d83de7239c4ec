"""`ppp doctor [RECIPE]`: everything that a run needs, looked at before it is started. The table of checks is here.

A value says where a check's function is, what must not have failed before it, and what it needs; functions are imported
when they are called. Adding one: a function `(Patient) -> Result` in a file of this folder and a line in the table.
`results.py` is what a check returns, `patient.py` what checks share, `examination.py` calls them, `command.py` prints.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table.

    Attributes:
        function: where to find it.
        after: checks without whose success this one cannot be done; it is skipped, and says so.
        needs_recipe: it is left out where there is none.
        loads_model: it is skipped by `--fast`.
    """

    function: str
    after: tuple[str, ...] = ()
    needs_recipe: bool = True
    loads_model: bool = False


CHECKS: dict[str, Check] = {
    "versions": Check("ppp.doctor.versions:check_versions", needs_recipe=False),
    "memory": Check("ppp.doctor.machine:check_memory", needs_recipe=False),
    "endpoints": Check("ppp.doctor.services:check_endpoints"),
    "data": Check("ppp.doctor.inputs:check_data"),
    "tokenizer": Check("ppp.doctor.inputs:check_tokenizer"),
    "environments": Check("ppp.doctor.services:check_environments", needs_recipe=False),
    "trajectories": Check(
        "ppp.doctor.training:check_trajectories",
        after=("memory", "endpoints", "data", "tokenizer", "environments"),
        loads_model=True,
    ),
    "backward": Check("ppp.doctor.training:check_backward", after=("trajectories",), loads_model=True),
    "logprobs": Check("ppp.doctor.training:check_logprobs", after=("trajectories",), loads_model=True),
    "mask": Check("ppp.doctor.training:check_mask", after=("trajectories",), loads_model=True),
    "disk": Check("ppp.doctor.machine:check_disk", needs_recipe=False),
}
"""In the order in which they are done: what is cheap and often wrong comes first, disk last, when sizes are known."""
