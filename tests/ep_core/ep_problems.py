"""Any problem that dispatch and combine must solve, for property tests of both modes and both engines."""

from __future__ import annotations

from ep_oracle import Problem
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

# For tests on a GPU, whose time is short: the same few each time.
FEW = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def problems(
    draw: st.DrawFn,
    columns: st.SearchStrategy[int],
    most_tokens: int,
    most_topk: int,
    most_ranks: int = 4,
    least_ranks: int = 1,
) -> Problem:
    """columns: the hidden sizes to choose from."""
    ranks = draw(st.integers(least_ranks, most_ranks))
    max_tokens = draw(st.integers(1, most_tokens))
    return Problem(
        ranks=ranks,
        max_tokens=max_tokens,
        hidden=draw(columns),
        topk=draw(st.integers(1, most_topk)),
        experts=ranks * draw(st.integers(1, 5)),
        tokens=tuple(draw(st.lists(st.integers(0, max_tokens), min_size=ranks, max_size=ranks))),
        seed=draw(st.integers(0, 2**16)),
        masked=draw(st.sampled_from([0.0, 0.3, 0.9])),
        duplicates=draw(st.booleans()),
    )
