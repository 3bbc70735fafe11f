import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from ep_world import RankWorld


@pytest.fixture(scope="session")
def world() -> Iterator[RankWorld]:
    """Four ranks that live as long as the session. Tests use the first 1, 2, 3 or all 4 of them."""
    with RankWorld(4) as ranks:
        yield ranks
