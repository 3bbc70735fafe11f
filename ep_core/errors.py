"""The error that is the host engine's own. Everything else is `ValueError`, `TypeError`, `RuntimeError` or `OSError`.

Raised by the extension (`ep_core._host`) and by `ep_core.rendezvous`. Next to read: `ep_core.buffer`.
"""

from __future__ import annotations

from collections.abc import Sequence


class EPTimeoutError(TimeoutError):
    """A peer did not arrive before the deadline, or its process has ended and so it never will.

    Attributes:
        phase: `dispatch`, `combine` or `construction`.
        rank: the rank that waited.
        missing: the ranks it waited for, ascending.
        exited: those of `missing` whose process has ended, or on another node whose buffer is gone.
        waited_s: how long it waited, seconds.

    The buffer that raised it cannot be used any more: ranks no longer agree on what was done.
    """

    def __init__(
        self, phase: str, rank: int, missing: Sequence[int], waited_s: float, exited: Sequence[int] = (), why: str = ""
    ) -> None:
        self.phase = phase
        self.rank = rank
        self.missing = list(missing)
        self.exited = list(exited)
        self.waited_s = waited_s
        self._why = why
        awaited = ", ".join(map(str, self.missing))
        if not why:
            gone = f"rank {', '.join(map(str, self.exited))} has exited" if self.exited else ""
            slow = [peer for peer in self.missing if peer not in self.exited]
            late = "no sign of life before the deadline (timeout_s, EP_TIMEOUT_S)" if slow else ""
            why = "; ".join(part for part in (gone, late) if part)
        super().__init__(f"{phase} on rank {rank} waited {waited_s:.1f} s for rank {awaited}: {why}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.phase, self.rank, self.missing, self.waited_s, self.exited, self._why)
