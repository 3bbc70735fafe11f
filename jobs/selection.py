"""Which cases a command means: by key, by suite, or the default suite. Pure, torch-free.

Called by `epwatch run` and `epwatch cases`.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.case import Case
from harness.suites import SUITES, suite

DEFAULT_SUITE = "cpu-quick"


def suite_cases(names: Sequence[str]) -> list[tuple[str, Case]]:
    """(suite, case) of the named suites, of all where none is named. Raises `CaseError` for an unknown name."""
    return [(name, case) for name in names or SUITES for case in suite(name)]


def chosen_cases(keys: Sequence[str], suites: Sequence[str]) -> list[Case]:
    """The cases of the keys, then those of the suites, each once; the default suite where neither is given.

    Raises `CaseError` for a malformed key, a case that no run could have, or an unknown suite.
    """
    named = [Case.parse(key) for key in keys]
    if suites or not keys:
        named += [case for _, case in suite_cases(suites or [DEFAULT_SUITE])]
    for case in named:
        case.validate()
    return list(dict.fromkeys(named))
