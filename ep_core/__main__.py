"""`python -m ep_core`: what was built, what can be used here, and why not the rest."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import torch

from ep_core import _host, cuda, mscclpp_mapping, peers, ports


def host_obstacle() -> str:
    """Why the host engine cannot be used here; empty when it can."""
    if sys.platform != "linux":
        return f"it needs Linux, this is {sys.platform}"
    try:
        fd = os.memfd_create("ep_core-probe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (AttributeError, OSError) as error:
        return f"the kernel gives no memfd: {error}"
    try:
        probe = os.open(f"/proc/{os.getpid()}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/proc/<pid>/fd cannot be opened, through which ranks find each other: {error}"
    else:
        os.close(probe)
    finally:
        os.close(fd)
    return ""


def transport() -> str:
    """What maps peers' memory for the CUDA engine, and why not MSCCL++ where it does not."""
    try:
        chosen = peers.transport()
    except ValueError as error:
        return f"nothing: {error}"
    if chosen == "mscclpp":
        return "MSCCL++ (EP_CORE_TRANSPORT=ipc chooses CUDA IPC)"
    obstacle = mscclpp_mapping.obstacle()
    return f"CUDA IPC (MSCCL++: {obstacle or 'usable, but EP_CORE_TRANSPORT says ipc'})"


def between_nodes() -> str:
    """How the CUDA engine would reach ranks of other nodes, and why not where it would not."""
    try:
        obstacle = peers.port_obstacle()
        if obstacle:
            return f"nothing: {obstacle}"
        offered = ports.offer(mscclpp_mapping.ib_devices())
    except ValueError as error:
        return f"nothing: {error}"
    asked = offered.removesuffix("!")
    if offered.endswith("!"):
        return f"port channels over {ports.WORDS[ports.agreed([offered], one_machine=True)]}, as {ports.TRANSPORT} says"
    found = "InfiniBand" if asked else "Ethernet (TCP); CUDA IPC where one machine acts as several nodes"
    return f"port channels over {found} ({ports.TRANSPORT} chooses another)"


def report() -> str:
    """The whole report, lines of `name: fact`."""
    obstacle = host_obstacle()
    cuda_missing, cuda_obstacle = cuda.not_built(), cuda.obstacle()
    pidfd = hasattr(os, "pidfd_open") and Path("/proc/self/fdinfo").exists()
    lines = [
        f"ep_core {metadata.version('epwatch')} on {platform.system()} {platform.release()} {platform.machine()}",
        f"python {platform.python_version()}, torch {torch.__version__}",
        "",
        "built",
        f"  host: {_host.COMPILER}; instruction sets {_host.ISAS_BUILT}; up to {_host.MAX_RANKS} ranks, "
        f"top-k up to {_host.MAX_TOPK}",
        f"  cuda: {cuda.built_for() if not cuda_missing else 'no: ' + cuda_missing}",
        "usable here",
        f"  host: {'no: ' + obstacle if obstacle else 'yes, on CPU tensors'}",
        f"    instruction set in use: {_host.ISA} (EP_CORE_ISA chooses a lesser one)",
        f"    cores for this process: {len(os.sched_getaffinity(0))}",
        f"    ended peers are noticed at once: {'yes' if pidfd else 'no, only at the deadline'}",
        f"  cuda: {'no: ' + cuda_obstacle if cuda_obstacle else 'yes, on CUDA tensors'}",
        *([] if cuda_obstacle else [f"    peers' memory is mapped by: {transport()}"]),
        *([] if cuda_missing else [f"    ranks of other nodes are reached by: {between_nodes()}"]),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
