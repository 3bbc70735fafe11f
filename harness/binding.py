"""Which cores a rank may run on: each local rank its own share, so that ranks do not meet on one core by chance.

Left to itself a scheduler now and then leaves two ranks on one core beside an idle one for a whole run, and the run's
value then tells of that and not of the code. Ranks that mpirun or srun started are bound, or not, by those: their own
options say how. `share` is pure. Torch-free; called by `harness.worker` before any thread is started.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from harness.environment import cores_given
from harness.errors import WorldError

VARIABLE = "EPWATCH_BIND"
"""`cores` (default): each rank of the local launcher is bound to its share of the cores. `none`: to nothing."""

_CHOICES = ("cores", "none")


def share(cores: Sequence[int], local_rank: int, local_size: int) -> list[int]:
    """The cores of one of `local_size` ranks: equal shares of neighbours, all of them where ranks outnumber cores."""
    each = len(cores) // local_size
    ordered = sorted(cores)
    return ordered[local_rank * each : (local_rank + 1) * each] if each else ordered


def bind(local_rank: int, local_size: int, environ: Mapping[str, str]) -> None:
    """Bind this process to its share, unless EPWATCH_BIND says `none`. Raises `WorldError` for another value."""
    choice = environ.get(VARIABLE, _CHOICES[0])
    if choice not in _CHOICES:
        raise WorldError(f"{VARIABLE}={choice!r} is unknown: set it to cores or none, or leave it out")
    if choice == "cores":
        os.sched_setaffinity(0, share(cores_given(), local_rank, local_size))
