"""Peers' GPU memory within reach by MSCCL++, where ep_core was built with it. The Python half of `ep_core._mscclpp`.

MSCCL++'s communicator, registered memory, connections, semaphores and channels stand in one place, `Transport`; its
messages travel through the process group's store, since its own bootstrap has waits without a deadline. Called by
`ep_core.peers`. Next to read: `ep_core.messages`, then `ep_core/csrc/mscclpp/transport.hpp`.
"""

from __future__ import annotations

import importlib
import math
import time
import weakref
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from ep_core.errors import EPTimeoutError
from ep_core.messages import Messages
from ep_core.ports import PortPlan
from ep_core.rendezvous import next_name, store_of, within

if TYPE_CHECKING:
    from ep_core._mscclpp import Transport

# For a wait that ended at the deadline to say so, before what does not end is left behind.
_GRACE_S = 0.5


def obstacle() -> str:
    """Why MSCCL++ cannot map peers here; empty when it can, given a GPU."""
    try:
        importlib.import_module("ep_core._mscclpp")
    except ModuleNotFoundError:
        return "ep_core was built without it; install mscclpp, or name its folder in EP_CORE_MSCCLPP, and build again"
    except ImportError as error:
        return f"it was there when ep_core was built, but cannot be loaded now: {error}"
    return ""


def version() -> str:
    """The version of the MSCCL++ that is loaded; only where there is no `obstacle`."""
    from ep_core import _mscclpp

    return _mscclpp.VERSION


def ib_devices() -> int:
    """InfiniBand devices that MSCCL++ finds here; only where there is no `obstacle`."""
    from ep_core import _mscclpp

    return _mscclpp.ib_devices()


class PeerMapping:
    """The memory of all ranks, mapped here until `close`.

    Attributes:
        addresses: where each rank's segment is, in rank order; this rank's is its own base, 0 for others'.
        port_handles: what kernels are given of the channels, in rank order; all empty where there is one node.
    """

    def __init__(self, transport: Transport) -> None:
        # Also when the process exits, which would crash with memory still mapped.
        self._close = weakref.finalize(self, transport.close)
        self.addresses = transport.addresses()
        self.port_handles = transport.port_handles()
        self._transport = transport

    def failure(self) -> str:
        """What ended a proxy; empty while all is well."""
        return self._transport.failure()

    def close(self) -> None:
        """Stop the proxies and unmap the peers' memory, without waiting for them; no kernel may use either any more.

        May be called twice.
        """
        self._close()


def map_peers(
    group: dist.ProcessGroup, base: int, size: int, device: int, timeout_s: float, plan: PortPlan | None = None
) -> PeerMapping:
    """Give every rank of `group` this rank's `size` bytes of GPU memory at `base` on `device`, and map theirs.

    With a `plan`, ranks of other nodes get at it through channels instead.

    Collective, but through the store alone. When it returns, every rank has mapped every other. Raises `EPTimeoutError`
    naming the ranks that do not come within `timeout_s` seconds, `ValueError` when sizes differ, `RuntimeError` for
    what MSCCL++ or the driver refuses.
    """
    from ep_core import _mscclpp

    rank, ranks = group.rank(), group.size()
    messages = Messages(store_of(group), f"{next_name(group)}/mscclpp", rank, ranks, timeout_s)
    deadline = time.monotonic() + timeout_s + _GRACE_S
    server = _mscclpp.DescriptorServer(max(1, math.ceil(timeout_s)))
    mapped: list[Transport] = []

    def talk() -> None:
        # MSCCL++ calls the driver, which wants the device's context bound to this very thread.
        torch.cuda.synchronize(device)
        messages.meet("here")
        try:
            transport = _mscclpp.Transport(
                rank,
                ranks,
                base,
                size,
                device,
                server,
                messages.send,
                messages.receive,
                [] if plan is None else list(plan.nodes.node_of),
                "" if plan is None else plan.transport,
                0 if plan is None else plan.proxies,
                timeout_s,
            )
        except RuntimeError as error:
            where = f" of rank {messages.awaited[0]}" if messages.awaited else ""
            raise RuntimeError(f"MSCCL++ could not share the memory{where}: {error}") from None
        messages.meet("mapped")
        mapped.append(transport)

    try:
        within(deadline, talk)
    except EPTimeoutError:
        raise
    except TimeoutError:
        _mscclpp.abandon()
        raise messages.late() from None
    finally:
        messages.give_up()
        server.stop()
    return PeerMapping(mapped[0])
