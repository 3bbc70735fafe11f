"""Findings: series that moved together for one cause are one thing to look at, in one sentence, not forty alarms.

Pure. `group` is called by `regress_db.verdicts` with the series that stayed regressed or improved after
`regress_db.method.attribution` took out what a node or a night had in common; that module makes findings of its own.

Groups are found from the top down: one direction; one family (`label`); families whose changes agree within their
intervals become one finding (single linkage in the order of the changes).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from regress_db.environments import Difference
from regress_db.method.consensus import location

if TYPE_CHECKING:
    from regress_db.method.attribution import Context

Cause = Literal["code", "night", "node", "environment"]

_NAMED = 3
"""So many families or differences are named, the rest counted."""
_Z = 1.96
"""Half widths of intervals are taken for so many standard errors."""
_COMMIT_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Finding:
    """What moved together.

    subject: what the cause names: a host or an allocation, an environment's change, a night, a range of commits.
    effect, low, high: relative change (0.1: ten per cent slower) and its interval. series: keys of those it is about.
    """

    number: int
    cause: Cause
    subject: str
    effect: float
    low: float
    high: float
    series: tuple[Hashable, ...]
    sentence: str


@dataclass(frozen=True, slots=True)
class Changed:
    """A series that stayed regressed or improved. effect, low, high: relative, above -1.

    under_test: False for a peer or control, whose change the code under test cannot have caused.
    """

    series: Hashable
    label: str
    effect: float
    low: float
    high: float
    under_test: bool = True


def group(
    changed: Sequence[Changed], context: Context, first_number: int, witness: str = ""
) -> tuple[list[Finding], dict[Hashable, int]]:
    """The findings these series make, the largest first, numbered from `first_number`, and each series' number.

    witness: what the controls did meanwhile (`Shared.witness`), told with a finding about the code. The cause is
    `code` where the code under test changed or its commit is not known, else `environment` where that changed, else
    `night`.
    """
    kept: list[list[Changed]] = []
    for under_test in (True, False):
        for slower in (True, False):
            alike = [one for one in changed if one.under_test == under_test and (one.effect > 0) == slower]
            kept += _clusters(alike)
    kept.sort(key=lambda members: (-len(members), -abs(_pooled(members)[0])))
    findings = [_finding(members, context, number, witness) for number, members in enumerate(kept, start=first_number)]
    return findings, {key: finding.number for finding in findings for key in finding.series}


def environment_words(changes: Sequence[Difference]) -> str:
    """What changed in the environment, the code apart, in words: `driver 580.1 to 580.2`; "" for nothing."""
    told = [
        f"{one.name.rpartition('.')[2]} {one.first or 'absent'} to {one.second or 'absent'}"
        for one in environment_only(changes)
    ]
    return listed(told)


def environment_only(changes: Sequence[Difference]) -> list[Difference]:
    """The differences that are not of the code under test itself."""
    return [one for one in changes if not one.name.startswith("code.") and one.name != "versions.epwatch"]


def commits_words(before: str, after: str) -> str:
    """A range of commits as git takes it, or what is known of it."""
    if not after:
        return "commit unknown"
    return f"{before[:_COMMIT_SHOWN] or '?'}..{after[:_COMMIT_SHOWN]}"


def listed(names: Sequence[str]) -> str:
    """`a, b, c and 4 more`."""
    shown, more = names[:_NAMED], len(names) - _NAMED
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def families(labels: Sequence[str]) -> str:
    """Labels, the commonest first, with how many series each has where there are several."""
    counts = Counter(labels).most_common()
    if len(counts) == 1:
        return counts[0][0]
    return listed([f"{label} ({count})" for label, count in counts])


def speed_words(effect: float, low: float, high: float) -> str:
    """`9.8 % slower (9.1 % to 10.4 %)`, or `faster`; the interval is signed where it holds zero."""
    size = f"{abs(effect) * 100:.1f} % {'slower' if effect > 0 else 'faster'}"
    if low <= 0 <= high:
        return f"{size} ({low * 100:+.1f} % to {high * 100:+.1f} %)"
    ends = sorted((abs(low) * 100, abs(high) * 100))
    return f"{size} ({ends[0]:.1f} % to {ends[1]:.1f} %)"


def _clusters(alike: Sequence[Changed]) -> list[list[Changed]]:
    """Series of one direction, by family; families whose changes agree are one."""
    by_label: dict[str, list[Changed]] = {}
    for one in alike:
        by_label.setdefault(one.label, []).append(one)
    ordered = sorted(by_label.values(), key=lambda members: _pooled(members)[0])
    found: list[list[Changed]] = []
    for members in ordered:
        if found and _agree(found[-1], members):
            found[-1].extend(members)
        else:
            found.append(list(members))
    return found


def _pooled(members: Sequence[Changed]) -> tuple[float, float]:
    """Typical log change of a group and its standard error."""
    values = np.log1p([one.effect for one in members])
    halves = (np.log1p([one.high for one in members]) - np.log1p([one.low for one in members])) / 2
    return location(values, halves / _Z)


def _agree(first: Sequence[Changed], second: Sequence[Changed]) -> bool:
    """Whether two groups' changes could be one: they differ by less than twice the error, or by less than a fifth."""
    (one, one_error), (other, other_error) = _pooled(first), _pooled(second)
    apart = abs(one - other)
    return apart <= 2 * math.hypot(one_error, other_error) or apart <= 0.2 * max(abs(one), abs(other))


def _finding(members: Sequence[Changed], context: Context, number: int, witness: str) -> Finding:
    centre, error = _pooled(members)
    effect, low, high = (math.expm1(value) for value in (centre, centre - _Z * error, centre + _Z * error))
    environment = environment_words(context.environment_changes)
    what = families([one.label for one in members])
    subject_of = "1 series" if len(members) == 1 else f"{len(members)} series"
    said = f"{subject_of} of {what} {'is' if len(members) == 1 else 'are'} {speed_words(effect, low, high)}"
    cause, subject, because = _cause(members[0].under_test, context, environment, witness)
    series = tuple(one.series for one in members)
    return Finding(number, cause, subject, effect, low, high, series, f"{said}{because}.")


def _cause(under_test: bool, context: Context, environment: str, witness: str) -> tuple[Cause, str, str]:
    """Cause, subject, and the rest of the sentence."""
    if under_test and context.code_may_differ:
        commits = commits_words(context.commit_before, context.commit_after)
        known = f" with commits {commits}" if context.commit_after else ", and which commit ran is not known"
        meanwhile = f"; {witness}" if witness else ""
        if environment:
            return "code", commits, f"{known}: code or environment, {environment} changed too{meanwhile}"
        return "code", commits, f"{known}: the code{meanwhile}"
    why = "the code did not change" if under_test else "it does not run the code under test"
    if environment:
        return "environment", environment, f": {why}, but {environment} changed"
    return "night", context.night, f": {why} and no change of the environment is known, so it is this night"
