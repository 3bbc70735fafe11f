"""Messages between two ranks through the process group's store, in order, each wait with one deadline.

For setting up, where a collective would not do: it cannot say which rank is missing. Called by
`ep_core.mscclpp_mapping`, and through it by MSCCL++'s bootstrap. Next to read: `ep_core.rendezvous`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch.distributed.distributed_c10d import Store

from ep_core.errors import EPTimeoutError

_POLL_S = 0.002
_MOST_POLL_S = 0.05


class Messages:
    """What `rank` of `ranks` sends to and receives from each other rank, under keys that start with `name`.

    Every wait ends `timeout_s` seconds after construction, with `EPTimeoutError` that names the ranks awaited.

    Attributes:
        awaited: the ranks awaited now, or whose message came last; none after a `meet`.
    """

    def __init__(self, store: Store, name: str, rank: int, ranks: int, timeout_s: float) -> None:
        self.awaited = [peer for peer in range(ranks) if peer != rank]
        self._peers = list(self.awaited)
        self._store = store
        self._name = name
        self._rank = rank
        self._started = time.monotonic()
        self._deadline = self._started + timeout_s
        self._given_up = threading.Event()
        self._sent: Counter[tuple[int, int]] = Counter()
        self._received: Counter[tuple[int, int]] = Counter()

    def send(self, message: bytes, peer: int, tag: int) -> None:
        """Leave `message` for `peer`; it gets those of one tag in this order."""
        with self._naming([peer]):
            self._store.set(self._key(self._sent, self._rank, peer, tag), message.hex())

    def receive(self, peer: int, tag: int) -> bytes:
        """The next message of `peer` with this tag."""
        key = self._key(self._received, peer, self._rank, tag)
        self._wait({peer: key})
        with self._naming([peer]):
            message = bytes.fromhex(self._store.get(key).decode())
            self._store.delete_key(key)
        return message

    def meet(self, step: str) -> None:
        """Wait until every rank has come to this step."""
        if self._peers:
            with self._naming(self._peers):
                self._store.set(f"{self._name}/{step}/{self._rank}", "here")
            self._wait({peer: f"{self._name}/{step}/{peer}" for peer in self._peers})
            self.awaited = []

    def give_up(self) -> None:
        """End every wait, of whatever thread, at once."""
        self._given_up.set()

    def late(self, why: str = "") -> EPTimeoutError:
        """The error for the ranks awaited now, or for all when it is none in particular."""
        missing = self.awaited or self._peers
        return EPTimeoutError("construction", self._rank, missing, time.monotonic() - self._started, why=why)

    def _key(self, count: Counter[tuple[int, int]], source: int, target: int, tag: int) -> str:
        peer = target if source == self._rank else source
        count[peer, tag] += 1
        return f"{self._name}/from {source} to {target}, {tag}/{count[peer, tag]}"

    def _wait(self, keys: Mapping[int, str]) -> None:
        """Poll until each peer's key is there."""
        pause = _POLL_S
        missing = list(keys)
        while True:
            with self._naming(missing):
                here = [peer for peer in missing if self._store.check([keys[peer]])]
            if len(here) == len(missing):
                return
            missing = self.awaited = [peer for peer in missing if peer not in here]
            if self._given_up.is_set() or time.monotonic() >= self._deadline:
                raise self.late()
            pause = _POLL_S if here else min(2 * pause, _MOST_POLL_S)
            self._given_up.wait(pause)

    @contextmanager
    def _naming(self, awaited: list[int]) -> Iterator[None]:
        """Let an error of the store name the ranks that it keeps this one from."""
        self.awaited = awaited
        try:
            yield
        except RuntimeError as error:
            raise self.late(f"the process group's store failed: {error}") from None
