"""Named sets of cases that come with epwatch. Pure and torch-free; `epwatch run --suite NAME` measures one.

Next to read: `harness.case`.
"""

from __future__ import annotations

from types import MappingProxyType

from harness.case import Case
from harness.errors import CaseError

_QUICK_LL = Case(backend="ep_core", mode="ll", ranks=2, tokens=64, hidden=2048, topk=4, experts=16)
_QUICK_HT = Case(
    backend="ep_core", mode="ht", ranks=2, tokens=256, hidden=2048, topk=4, experts=16, combine="local_reduce"
)
_CANONICAL_LL = Case(backend="ep_core", mode="ll", ranks=2, tokens=128, hidden=7168, topk=8, experts=256)
_CANONICAL_HT = Case(
    backend="ep_core", mode="ht", ranks=2, tokens=4096, hidden=7168, topk=8, experts=256, combine="local_reduce"
)


def _but(case: Case, **changes: object) -> Case:
    return Case.of({field: getattr(case, field) for field in case.__struct_fields__} | changes)


SUITES: MappingProxyType[str, list[Case]] = MappingProxyType(
    {
        "cpu-quick": [_QUICK_LL, _but(_QUICK_LL, dtype="fp8"), _QUICK_HT, _but(_QUICK_LL, backend="torch")],
        "canonical-ll": [_CANONICAL_LL, _but(_CANONICAL_LL, dtype="fp8"), _but(_CANONICAL_LL, backend="torch")],
        "canonical-ht": [_CANONICAL_HT, _but(_CANONICAL_HT, backend="torch")],
    }
)
"""Suite name to its cases, all on CPU with 2 ranks.

cpu-quick: small, a minute at most. canonical-ll: T=128, H=7168, K=8, E=256. canonical-ht: the same with T=4096.
"""


def suite(name: str) -> list[Case]:
    """The cases of a suite. Raises `CaseError` naming the suites there are."""
    if name not in SUITES:
        raise CaseError(f"suite {name!r} is unknown; known are {', '.join(SUITES)}")
    return SUITES[name]
