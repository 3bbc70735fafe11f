"""What the tests on GPUs share: worlds whose ranks take the GPUs in turn, and the reason where there is no GPU.

The functions on ranks and the oracle are those of tests/ep_core. Nothing here imports a room but `ep_core`, so the
tests run where only torch, numpy, pytest, pytest-timeout and hypothesis are installed:

    python -m pytest --confcutdir=tests/cuda -p no:cacheprovider -m gpu tests/cuda

With EP_CORE_GPU_REQUIRED set, a missing GPU is an error and not a skip.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "ep_core"))

from ep_world import RankWorld

from ep_core import cuda


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    why = cuda.obstacle() if here else ""
    if why and os.environ.get("EP_CORE_GPU_REQUIRED"):
        raise pytest.UsageError(f"EP_CORE_GPU_REQUIRED is set, and {why}")
    for item in here:
        item.add_marker(pytest.mark.gpu)
        if why:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def worlds() -> Iterator[Callable[[int], RankWorld]]:
    """Gives the world of n ranks, which lives as long as the session; a new one after a rank has failed."""
    made: dict[int, RankWorld] = {}

    def world_of(ranks: int) -> RankWorld:
        if ranks in made and made[ranks].broken:
            made.pop(ranks).close()
        if ranks not in made:
            made[ranks] = RankWorld(ranks, device="cuda", subgroups=None if ranks <= 4 else [])
        return made[ranks]

    yield world_of
    for world in made.values():
        world.close()


@pytest.fixture
def world(worlds: Callable[[int], RankWorld]) -> RankWorld:
    """Four ranks. Tests use the first 1, 2, 3 or all 4 of them."""
    return worlds(4)


@pytest.fixture
def eight(worlds: Callable[[int], RankWorld]) -> RankWorld:
    return worlds(8)
