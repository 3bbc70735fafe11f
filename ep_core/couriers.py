"""Couriers: threads that carry what a rank publishes to other nodes, over a gloo process group of the buffer's own.

For each other node one thread takes messages from the outbox and sends them to the rank that holds this rank's mirror
there, and one listens to what that rank answers; one for each mirror that this rank holds receives and delivers. They
know nothing of operations: what a message means stands in `ep_core/csrc/outbox.hpp`. Called by `ep_core.host`.

A sender says goodbye at the end and the answer is waited for, so that nothing of what it sent before is lost with its
process. A connection that ends without a goodbye means that the rank is gone: its mirror then says so, and who waits
for it gives up at once. A rank that leaves asks those who send to it for their goodbyes, so that all its threads end:
one that was still in gloo while the interpreter ends would take the process down with it.
"""

from __future__ import annotations

import contextlib
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
_DATA, _ANSWER = 0, 1
_ARRIVED, _LEAVING = 1, 2
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
        group = cast(_Pairs, dist.ProcessGroupGloo(store, rank, len(nodes.node_of), _FOR_EVER))
        self._outboxes: list[_host.Outbox] = []
        self._threads: list[threading.Thread] = []
        self._mirrors = [_Mirror(group, host, source) for source in nodes.held(rank)]
        for node in range(nodes.count):
            if node != nodes.mine:
                outbox, target = host.outbox(node), nodes.holder(rank, node)
                self._outboxes.append(outbox)
                self._start(_send, group, outbox, target)
                self._start(_listen, group, outbox, target)
        for mirror in self._mirrors:
            self._start(mirror.receive)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        name = f"ep_core-{work.__name__.strip('_')}"
        self._threads.append(threading.Thread(target=work, args=arguments, name=name, daemon=True))
        self._threads[-1].start()

    def close(self) -> None:
        """Send what is left and end all threads, within a few seconds: longer only one stays that a peer holds up."""
        deadline = time.monotonic() + _GOODBYE_S
        for outbox in self._outboxes:
            outbox.close()
        for mirror in self._mirrors:
            self._start(mirror.leave)
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))


class _Mirror:
    """The receiving end of one mirror that this rank holds: what `source` sends is delivered until it says goodbye."""

    def __init__(self, group: _Pairs, host: _host.Host, source: int) -> None:
        self._group, self._host, self._source = group, host, source
        self._answering = threading.Lock()
        self._ended = False

    def receive(self) -> None:
        """Deliver until the source says goodbye or is gone."""
        head = torch.empty(_LENGTH + _INLINE, dtype=torch.uint8)
        try:
            while True:
                self._group.recv([head], self._source, _DATA).wait()
                length = int(head[:_LENGTH].view(torch.int64)[0])
                if length == 0:
                    break
                message = torch.empty(length, dtype=torch.uint8)
                message[:_INLINE] = head[_LENGTH : _LENGTH + min(length, _INLINE)]
                if length > _INLINE:
                    self._group.recv([message[_INLINE:]], self._source, _DATA).wait()
                self._host.deliver(self._source, message.data_ptr(), length)
            self._answer(_ARRIVED)
        except RuntimeError:
            self._ended = True
        self._host.depart(self._source)

    def leave(self) -> None:
        """Ask the source for its goodbye, if it has not said it."""
        with contextlib.suppress(RuntimeError):
            self._answer(_LEAVING)

    def _answer(self, word: int) -> None:
        """Tell the source's listener, which is there until it is told that the goodbye arrived."""
        with self._answering:
            if not self._ended:
                self._ended = word == _ARRIVED
                self._group.send([torch.tensor([word], dtype=torch.uint8)], self._source, _ANSWER).wait()


def _listen(group: _Pairs, outbox: _host.Outbox, target: int) -> None:
    """Hear what `target` answers: that it leaves, so that nothing more is to be sent, or that the goodbye arrived."""
    word = torch.empty(1, dtype=torch.uint8)
    try:
        while True:
            group.recv([word], target, _ANSWER).wait()
            if int(word[0]) == _ARRIVED:
                return
            outbox.close()
    except RuntimeError:
        outbox.close()


def _send(group: _Pairs, outbox: _host.Outbox, target: int) -> None:
    """Send the messages of `outbox`, then goodbye: a message of no bytes."""
    try:
        while not outbox.closed:
            message = outbox.take(_TAKE_MS)
            if message is not None:
                _send_one(group, torch.from_numpy(message), target)
        _send_one(group, torch.empty(0, dtype=torch.uint8), target)
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
