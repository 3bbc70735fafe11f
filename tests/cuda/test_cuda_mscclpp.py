"""Peers' memory as MSCCL++ maps it: what one rank writes, the owner reads; who does not come is named."""

from __future__ import annotations

import pytest
import torch
from ep_world import Context, RankWorld

from ep_core import EPTimeoutError
from ep_core.mscclpp_mapping import map_peers, obstacle

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=f"MSCCL++: {obstacle()}")

PART = 4096
SIZE = 1 << 22


class Bytes:
    """`PART` bytes on a GPU, as torch takes them."""

    def __init__(self, address: int) -> None:
        self.__cuda_array_interface__ = {"shape": (PART,), "typestr": "|u1", "data": (address, False), "version": 2}


def map_all(context: Context, of: int, offset: int = 0) -> None:
    """Map `SIZE` bytes that begin `offset` bytes into an allocation."""
    memory = torch.zeros(SIZE + offset, dtype=torch.uint8, device=context.device)
    torch.cuda.synchronize()
    mapping = map_peers(context.group(of), memory.data_ptr() + offset, SIZE, context.device.index or 0, 60.0)
    assert len(mapping.addresses) == of
    assert mapping.addresses[context.rank] == memory.data_ptr() + offset
    context.state["memory"], context.state["mapping"] = memory[offset:], mapping


def pattern(source: int, target: int) -> torch.Tensor:
    return (torch.arange(PART) * (source + 3) + target).to(torch.uint8)


def write(context: Context) -> None:
    """Each rank has a place of its own in every rank's memory, the last of them at its end."""
    for target, address in enumerate(context.state["mapping"].addresses):
        place = torch.as_tensor(Bytes(address + SIZE - (context.rank + 1) * PART), device=context.device)
        place.copy_(pattern(context.rank, target))
    torch.cuda.synchronize()


def read(context: Context, of: int) -> None:
    memory = context.state["memory"].cpu()
    for source in range(of):
        end = SIZE - source * PART
        assert torch.equal(memory[end - PART : end], pattern(source, context.rank)), f"from rank {source}"
    assert not memory[: SIZE - of * PART].any()


def close(context: Context) -> None:
    mapping = context.state.pop("mapping")
    mapping.close()
    mapping.close()
    del context.state["memory"]
    torch.cuda.empty_cache()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("offset", [0, 512])
def test_every_rank_writes_into_every_rank(world: RankWorld, ranks: int, offset: int) -> None:
    world.run(map_all, ranks, of=ranks, offset=offset)
    world.run(write, ranks)
    world.run(read, ranks, of=ranks)
    world.run(close, ranks)


def hold(context: Context, times: int) -> list[int]:
    """Free memory after each of some mappings of 2 ranks, made and closed."""
    free = []
    for _ in range(times):
        map_all(context, of=2)
        close(context)
        free.append(torch.cuda.mem_get_info(context.device)[0])
    return free


def test_closed_mappings_leave_nothing(world: RankWorld) -> None:
    for free in world.run(hold, 2, times=4):
        assert free[-1] >= free[1] - (1 << 21), free


def come_late(context: Context, of: int) -> EPTimeoutError | None:
    memory = torch.zeros(SIZE, dtype=torch.uint8, device=context.device)
    try:
        map_peers(context.group(of), memory.data_ptr(), SIZE, context.device.index or 0, 2.0)
    except EPTimeoutError as error:
        return error
    return None


def test_a_rank_that_does_not_come_is_named() -> None:
    with RankWorld(3, device="cuda") as trio:
        for rank, error in zip([0, 2], trio.run(come_late, [0, 2], of=3), strict=True):
            assert isinstance(error, EPTimeoutError)
            assert (error.phase, error.rank, error.missing) == ("construction", rank, [1])


def differing(context: Context) -> None:
    size = SIZE - PART * context.rank
    memory = torch.zeros(SIZE, dtype=torch.uint8, device=context.device)
    with pytest.raises(ValueError, match=r"size: rank \d has a segment of \d+ bytes, this rank of \d+: give the same"):
        map_peers(context.group(2), memory.data_ptr(), size, context.device.index or 0, 30.0)


def test_sizes_must_agree_between_ranks(world: RankWorld) -> None:
    world.run(differing, 2)
