"""The ranks' GPUs: which one a rank takes, who shares one, and what their drivers say of them, told of all together.

`take` and `obstacle` are the door into `torch.cuda`; the rest is pure. GPUs are told apart by UUID, which no record
keeps: in a record they are gpu0, gpu1 and so on, in order of the first rank that has each. Called by `harness.world`
as the ranks join, and by `harness.measure`. Next to read: `harness.nvml`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Gpu:
    """A rank's GPU. index: torch's, in this process. name: the model, as the driver says. uuid: "GPU-..." and so on."""

    index: int
    name: str
    uuid: str


@dataclass(frozen=True)
class Look:
    """What the driver says of one GPU at one moment.

    facts: what stays as it is from run to run, by name. conditions: what does not. held_down: in words, by what its
    clocks are held below what they could be.
    """

    facts: dict[str, str] = field(default_factory=dict)
    conditions: dict[str, float] = field(default_factory=dict)
    held_down: tuple[str, ...] = ()


def obstacle() -> str | None:
    """Why this process cannot use a GPU, else None."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no GPU (no driver, or CUDA_VISIBLE_DEVICES names none)"
    return None


def take(local_rank: int) -> Gpu | None:
    """Make a GPU the current device of this process: the one of its local rank, in turn where there are fewer.

    None where there is none; `obstacle` says why.
    """
    if obstacle() is not None:
        return None
    import torch

    index = local_rank % torch.cuda.device_count()
    torch.cuda.set_device(index)
    properties = torch.cuda.get_device_properties(index)
    return Gpu(index=index, name=model(properties.name), uuid=f"GPU-{properties.uuid}")


def model(name: str) -> str:
    """A GPU's model as its driver names it, without "/" (a platform's key is divided by it)."""
    return " ".join(name.replace("/", "-").split())


def distinct(gpu_of_rank: Sequence[Gpu | None]) -> list[Gpu]:
    """Each GPU once, in order of the first rank that has it."""
    found: dict[str, Gpu] = {}
    for gpu in gpu_of_rank:
        if gpu is not None:
            found.setdefault(gpu.uuid, gpu)
    return list(found.values())


def ranks_of(gpu_of_rank: Sequence[Gpu | None]) -> list[list[int]]:
    """The ranks on each of the `distinct` GPUs."""
    held: dict[str, list[int]] = {}
    for rank, gpu in enumerate(gpu_of_rank):
        if gpu is not None:
            held.setdefault(gpu.uuid, []).append(rank)
    return list(held.values())


def sharing_notes(gpu_of_rank: Sequence[Gpu | None]) -> list[str]:
    """Which GPUs several ranks share: their kernels take turns or, under MPS, each have a part of it."""
    return [
        f"gpu{number} is shared by ranks {', '.join(map(str, ranks))}: their kernels do not run as they would alone"
        for number, ranks in enumerate(ranks_of(gpu_of_rank))
        if len(ranks) > 1
    ]


def one_each(gpu_of_rank: Sequence[Gpu | None], looks: Sequence[Look]) -> list[Look]:
    """What the first rank on each of the `distinct` GPUs saw. looks: of each rank."""
    return [looks[ranks[0]] for ranks in ranks_of(gpu_of_rank)]


def facts(looks: Sequence[Look]) -> dict[str, str]:
    """Facts of all GPUs, `gpu_<name>`: what they have in common once, else each GPU's own, in order."""
    names = dict.fromkeys(name for look in looks for name in look.facts)
    values = {name: [look.facts.get(name, "unknown") for look in looks] for name in names}
    return {f"gpu_{name}": ", ".join(each if len(set(each)) > 1 else each[:1]) for name, each in values.items()}


def conditions(looks: Sequence[Look], when: str) -> dict[str, float]:
    """Conditions of all GPUs, `gpu<number>_<name>_<when>`."""
    return {
        f"gpu{number}_{name}_{when}": value
        for number, look in enumerate(looks)
        for name, value in look.conditions.items()
    }


def held_down_notes(looks: Sequence[Look], when: str) -> list[str]:
    """Which GPUs' clocks were held down, and by what."""
    return [
        f"gpu{number}, {when}: clocks held down by {', '.join(look.held_down)}"
        for number, look in enumerate(looks)
        if look.held_down
    ]
