"""Which low-latency operations of a buffer are open: sent, and not received yet. Used by `ep_core.cuda`."""

from __future__ import annotations


class OpenOperations:
    """Which low-latency operations have been sent and not received: two at the most, as a region has two halves."""

    def __init__(self) -> None:
        self._number = 0
        self._open: set[int] = set()

    def check(self, name: str) -> None:
        """Raise `RuntimeError` when there may be no new operation, as the one before the last is still open."""
        if self._number - 1 in self._open:
            raise RuntimeError(
                f"{name}: the receive hook of the operation before the last has not been called; at most two "
                "operations can be open"
            )

    def begin(self, received: bool) -> int:
        """The number of a new operation; it is open unless it was received at once."""
        self._number += 1
        if not received:
            self._open.add(self._number)
        return self._number

    def receive(self, name: str, number: int) -> None:
        """The hook of an operation is called. Raises `RuntimeError` when it was before."""
        if number not in self._open:
            raise RuntimeError(f"{name}: this receive hook was already called")
        self._open.remove(number)
