"""Whether this machine has something else to do: said before measuring on it, since that is what numbers drift with.

Called by `epwatch run` and `epwatch nightly` on cluster `local`. Linux; silent where /proc/stat cannot be read.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

_LOOK_S = 0.3
_BUSY_SHARE = 0.2
_IDLE_FIELDS = slice(3, 5)


def warn_if_busy() -> None:
    """Look for a moment; say on stderr how busy the processors are when they are not nearly idle."""
    before = _ticks()
    time.sleep(_LOOK_S)
    share = busy_share(before, _ticks())
    if share > _BUSY_SHARE:
        print(
            f"epwatch: other work keeps {share:.0%} of this machine's {os.cpu_count()} CPUs busy: latencies will be "
            "higher and vary more, and a change of that work looks like a change of the code",
            file=sys.stderr,
        )


def busy_share(before: list[int], after: list[int]) -> float:
    """Share of processor time that was not idle between two lines of /proc/stat; 0 where they say nothing."""
    spent = [late - early for early, late in zip(before, after, strict=True)]
    return 1 - sum(spent[_IDLE_FIELDS]) / sum(spent) if sum(spent) > 0 else 0.0


def _ticks() -> list[int]:
    """Clock ticks of all processors together: user, nice, system, idle, iowait, irq, softirq, steal."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return [0] * 8
    return [int(field) for field in line.split()[1:9]]
