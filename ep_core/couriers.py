"""Couriers: threads that carry what a rank publishes to other nodes, over a gloo process group of the buffer's own.

One for each other node takes messages from the outbox and sends them to the rank that holds this rank's mirror there;
one for each mirror that this rank holds receives and delivers. They know nothing of operations: what a message means
stands in `ep_core/csrc/outbox.hpp`. Called by `ep_core.host`.

A sender says goodbye at the end and waits until that has arrived, so that nothing of what it sent before is lost with
its process. A connection that ends without one means that the rank is gone: its mirror then says so, and who waits for
it gives up at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from ep_core import _host, rendezvous
from ep_core.errors import EPTimeoutError
from ep_core.nodes import Nodes

_INLINE = 4096
"""Bytes of a message that travel with its length; the rest follows in one piece."""
_LENGTH = 8
_DATA, _ARRIVED = 0, 1
_TAKE_MS = 500
_GOODBYE_S = 3.0
_FOR_EVER = timedelta(days=3650)


class _Pairs(Protocol):
    """What a gloo group does between two ranks, which torch's stubs leave out."""

    def send(self, tensors: list[torch.Tensor], target: int, tag: int) -> dist.Work:
        """Start to send one tensor."""

    def recv(self, tensors: list[torch.Tensor], source: int, tag: int) -> dist.Work:
        """Start to receive into one tensor."""


def start(group: dist.ProcessGroup, name: str, host: _host.Host, nodes: Nodes, timeout_s: float) -> Couriers:
    """The couriers of a buffer of this `name`, at work. Collective over `group`.

    Raises `EPTimeoutError` when the other nodes cannot be reached within `timeout_s` seconds.
    """
    started = time.monotonic()
    made: list[Couriers] = []
    store = PrefixStore(name, rendezvous.store_of(group))
    try:
        rendezvous.within(started + timeout_s, lambda: made.append(Couriers(host, store, nodes)))
    except (TimeoutError, RuntimeError) as error:
        far = [rank for rank in range(len(nodes.node_of)) if not nodes.same(rank, nodes.rank)]
        told = str(error) or "no answer before the deadline"
        why = f"gloo cannot connect with other nodes: {told}; GLOO_SOCKET_IFNAME names the network to use"
        raise EPTimeoutError("construction", nodes.rank, far, time.monotonic() - started, why=why) from None
    return made[0]


class Couriers:
    """The couriers of one buffer on one rank. Constructing it is collective over the ranks.

    store: of the group, under a prefix of the buffer's own. Raises `RuntimeError` when ranks cannot be reached.
    """

    def __init__(self, host: _host.Host, store: Store, nodes: Nodes) -> None:
        rank = nodes.rank
        self._group = cast(_Pairs, dist.ProcessGroupGloo(store, rank, len(nodes.node_of), _FOR_EVER))
        self._outboxes = []
        self._senders = []
        self._receivers = []
        for node in range(nodes.count):
            if node != nodes.mine:
                outbox = host.outbox(node)
                self._outboxes.append(outbox)
                self._senders.append(self._thread(_send, outbox, nodes.holder(rank, node)))
        for source in nodes.held(rank):
            self._receivers.append(self._thread(_receive, host, source))
        for thread in (*self._senders, *self._receivers):
            thread.start()

    def _thread(self, work: Callable[..., None], *arguments: object) -> threading.Thread:
        name = f"ep_core{work.__name__}"
        return threading.Thread(target=work, args=(self._group, *arguments), name=name, daemon=True)

    def close(self) -> None:
        """Send what is left, for at most a few seconds, and end the senders. A receiver ends with who sends to it."""
        deadline = time.monotonic() + _GOODBYE_S
        for outbox in self._outboxes:
            outbox.close()
        for thread in self._senders:
            thread.join(max(deadline - time.monotonic(), 0))


def _send(group: _Pairs, outbox: _host.Outbox, target: int) -> None:
    """Send the messages of `outbox`, then goodbye: a message of no bytes."""
    try:
        while not outbox.closed:
            message = outbox.take(_TAKE_MS)
            if message is not None:
                _send_one(group, torch.from_numpy(message), target)
        _send_one(group, torch.empty(0, dtype=torch.uint8), target)
        group.recv([torch.empty(1, dtype=torch.uint8)], target, _ARRIVED).wait()
    except RuntimeError:
        # The rank there is gone; its own node, and whoever awaits it, will know.
        outbox.close()


def _send_one(group: _Pairs, message: torch.Tensor, target: int) -> None:
    head = torch.empty(_LENGTH + _INLINE, dtype=torch.uint8)
    head[:_LENGTH].view(torch.int64)[0] = len(message)
    first = message[:_INLINE]
    head[_LENGTH : _LENGTH + len(first)] = first
    group.send([head], target, _DATA).wait()
    if len(message) > _INLINE:
        group.send([message[_INLINE:]], target, _DATA).wait()


def _receive(group: _Pairs, host: _host.Host, source: int) -> None:
    """Deliver what `source` sends until it says goodbye or is gone."""
    head = torch.empty(_LENGTH + _INLINE, dtype=torch.uint8)
    try:
        while True:
            group.recv([head], source, _DATA).wait()
            length = int(head[:_LENGTH].view(torch.int64)[0])
            if length == 0:
                group.send([torch.zeros(1, dtype=torch.uint8)], source, _ARRIVED).wait()
                break
            message = torch.empty(length, dtype=torch.uint8)
            message[:_INLINE] = head[_LENGTH : _LENGTH + min(length, _INLINE)]
            if length > _INLINE:
                group.recv([message[_INLINE:]], source, _DATA).wait()
            host.deliver(source, message.data_ptr(), length)
    except RuntimeError:
        pass
    host.depart(source)
