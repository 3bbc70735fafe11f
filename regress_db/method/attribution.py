"""What a night, a node or an allocation did to many series at once, found and taken out before a commit is blamed.

Pure. `regress_db.verdicts` calls `shared_shifts` with every series of a night, takes `removed_runs` out of the new
runs, compares, and gives what stayed changed to `findings.group`. Next to read: `regress_db.method.consensus` (how a
common shift is estimated), `regress_db.method.placement` (how a node is told from the others).

The rules, in the order of their weight:

- A slowdown by a commit is never explained away. Where the code under test changed, or its commit is not known, the
  night is judged by the controls alone (series that do not run that code), and no more is taken out of a series under
  test than those show and it shows itself.
- A node is judged against other nodes, within strata of series that a commit would slow alike: never against zero.
- Nothing is taken out that is not significant at `level`, shared by at least three quarters of the series, and seen in
  at least `LEAST_SERIES` of them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from regress_db.environments import Difference
from regress_db.method.consensus import Consensus, consensus
from regress_db.method.findings import (
    Cause,
    Changed,
    Finding,
    commits_words,
    environment_words,
    families,
    group,
    speed_words,
)
from regress_db.method.placement import Array, Place, Units, displaced, places_of, removed_of_runs

LEAST_SERIES = 4
"""Fewer independent series than this are no ground for saying that all of them moved."""

LEAST_SHARE = 0.75
"""At least this part of the series has to share a shift."""

DEFAULT_LEVEL = 0.001


@dataclass(frozen=True, slots=True)
class RunShift:
    """One new run of one series.

    change: log of the run's value, less the centre of its baseline. hosts: the machines it was on. allocation: the job.
    run: its id, "" unknown: series that share runs (two phases of one case) also share noise, and count as one.
    """

    change: float
    hosts: tuple[str, ...]
    allocation: str = ""
    run: str = ""


@dataclass(frozen=True, slots=True)
class SeriesShift:
    """A series of the night, with at least one new run.

    series: key of the caller's choice. under_test: it runs the code under test; False for a peer or control. label: its
    family in words, such as "ep_core ll combine". sd: standard deviation of one run on the log scale, pooled.
    slowest_hosts: for runs of several hosts, the host of the slowest rank in each; usual_slowest_hosts: the same of the
    baseline's runs. stratum: what a commit could slow without slowing the rest, such as the label with the number of
    ranks; "" stands for the label. baseline_runs: how many the centre is of.
    """

    series: Hashable
    under_test: bool
    label: str
    runs: tuple[RunShift, ...]
    sd: float
    slowest_hosts: tuple[str, ...] = ()
    usual_slowest_hosts: tuple[str, ...] = ()
    stratum: str = ""
    baseline_runs: int = 10


@dataclass(frozen=True, slots=True)
class Context:
    """What else is known of the night.

    commit_before, commit_after: of the code under test, "" where unknown (also for uncommitted changes); equal: the
    code did not change. environment_changes: the baseline's usual environment against the night's usual.
    """

    commit_before: str
    commit_after: str
    environment_changes: tuple[Difference, ...]
    cluster: str
    night: str

    @property
    def code_may_differ(self) -> bool:
        """Unless both commits are known and the same."""
        return not self.commit_after or self.commit_before != self.commit_after


@dataclass(frozen=True, slots=True)
class Shared:
    """What many series have in common tonight.

    removed: log change to take out of each series as a whole (0 where none); removed_runs: the same for each of its
    runs, which is better where the runs were on different nodes. findings: causes node, night and environment. notes:
    what a reader should know, such as what could not be told apart. witness: what the controls did, for `group`.
    """

    removed: Mapping[Hashable, float]
    findings: tuple[Finding, ...]
    removed_runs: Mapping[Hashable, tuple[float, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    witness: str = ""


def shared_shifts(
    series: Sequence[SeriesShift],
    context: Context,
    *,
    level: float = DEFAULT_LEVEL,
    least: float = 0.01,
    first_number: int = 1,
) -> Shared:
    """Estimate what nodes, allocations and the night did to all series alike.

    level: probability of taking anything out of a night on which nothing happened, shared equally by all that is looked
    at. least: relative change below which a shift is taken out but makes no finding. first_number: of the findings.
    Raises `ValueError` for a change or spread that is not a number, or a series without runs.
    """
    for one in series:
        _check(one)
    if not series:
        return Shared({}, ())
    units = Units.of(series, context.code_may_differ)
    places = places_of(series, units)
    each = level / (len(places) + 1)
    values = units.changes
    slow_places = displaced(units, places, values, each, LEAST_SERIES, LEAST_SHARE)
    night = _night(units, context, values - removed_of_runs(units, slow_places), each)
    if night.found:
        slow_places = displaced(units, places, values - night.of_runs(units), each, LEAST_SERIES, LEAST_SHARE)
        night = _night(units, context, values - removed_of_runs(units, slow_places), each)
    per_run = removed_of_runs(units, slow_places) + night.of_runs(units)
    removed_runs = units.by_series(per_run)
    told: list[Finding] = []
    for place, found in slow_places:
        if abs(math.expm1(found.centre)) >= least:
            told.append(_place_finding(series, place, found, first_number + len(told)))
    if night.found and abs(math.expm1(night.found.centre)) >= least:
        told.append(_night_finding(series, night, context, first_number + len(told)))
    notes = list(night.notes)
    if night.found and abs(math.expm1(night.found.centre)) < least:
        size = math.expm1(night.found.centre) * 100
        notes.append(f"the night as a whole is {size:+.2f} % from the baseline; that was taken out")
    return Shared(
        removed={one.series: float(np.mean(removed_runs[one.series])) for one in series},
        findings=tuple(told),
        removed_runs=removed_runs,
        notes=tuple(notes),
        witness=night.witness,
    )


def _check(one: SeriesShift) -> None:
    if not one.runs:
        raise ValueError(f"series {one.series!r} has no new run")
    if not all(math.isfinite(run.change) for run in one.runs):
        raise ValueError(f"series {one.series!r} has a run whose change is not a finite number")
    if not (math.isfinite(one.sd) and one.sd >= 0):
        raise ValueError(f"series {one.series!r} has a spread of {one.sd}, wanted a number of at least 0")


@dataclass(frozen=True, slots=True)
class _Night:
    """What the night did: to the controls (and, the code unchanged, to all), and to the series under test."""

    found: Consensus | None
    under_test: float
    controls: float
    all_alike: bool
    notes: tuple[str, ...] = ()
    witness: str = ""

    def of_runs(self, units: Units) -> Array:
        """Log change to take out of each run."""
        return np.where(units.under_test[units.unit], self.under_test, self.controls)


def _night(units: Units, context: Context, values: Array, level: float) -> _Night:
    centres, errors = units.centres(values)
    tested = units.under_test
    if not context.code_may_differ:
        found, note = _common(centres, errors, level)
        shift = found.centre if found else 0.0
        return _Night(found, shift, shift, True, notes=(note,) if note else ())
    of_controls = consensus(centres[~tested], errors[~tested]) if (~tested).any() else None
    of_tested = consensus(centres[tested], errors[tested]) if tested.any() else None
    witness = _witness(of_controls)
    found, note = _common(centres[~tested], errors[~tested], level)
    if found is None:
        blind = of_controls is None or of_controls.count < LEAST_SERIES
        moved = of_tested is not None and _is_common(of_tested, level)
        unclear = note
        if of_tested is not None and moved and blind:
            size = _signed(of_tested.centre)
            unclear = (
                f"the series under test moved together ({size}), and with {'no' if of_controls is None else 'too few'} "
                "series that do not run that code a slow night cannot be told from slow code: nothing was taken out"
            )
        return _Night(None, 0.0, 0.0, False, notes=(unclear,) if unclear else (), witness=witness)
    under_test = 0.0
    if of_tested is not None and of_tested.centre * found.centre > 0:
        under_test = math.copysign(min(abs(of_tested.centre), abs(found.centre)), found.centre)
    all_alike = abs(under_test) >= abs(found.centre) / 2
    return _Night(found, under_test, found.centre, all_alike, witness=witness)


def _common(values: Array, errors: Array, level: float) -> tuple[Consensus | None, str]:
    """The shift that these units share, None where there is none to speak of; and a note where it is not clear."""
    if len(values) < LEAST_SERIES:
        return None, ""
    found = consensus(values, errors)
    if found.p_value > level:
        return None, ""
    if not found.shared_by(LEAST_SHARE):
        part = f"about {found.share * 100:.0f} % of the series moved by {_signed(found.centre)} together"
        return None, f"{part}, too few to call it the night: nothing was taken out for it"
    return found, ""


def _is_common(found: Consensus, level: float) -> bool:
    return found.count >= LEAST_SERIES and found.p_value <= level and found.shared_by(LEAST_SHARE)


def _witness(of_controls: Consensus | None) -> str:
    if of_controls is None:
        return "nothing ran that does not depend on the code, so a slow night cannot be ruled out"
    low, high = of_controls.interval()
    count = of_controls.count
    who = "1 series that does" if count == 1 else f"{count} independent series that do"
    said = f"{who} not run it moved by"
    return f"{said} {_signed(of_controls.centre)} ({_signed(low)} to {_signed(high)})"


def _signed(change: float) -> str:
    return f"{math.expm1(change) * 100:+.1f} %"


def _place_finding(series: Sequence[SeriesShift], place: Place, found: Consensus, number: int) -> Finding:
    there = [one for one in series if any(place.holds(run.hosts, run.allocation) for run in one.runs)]
    low, high = found.interval()
    effect = math.expm1(found.centre)
    what = families([one.label for one in there])
    speed = speed_words(effect, math.expm1(low), math.expm1(high))
    slowest = _slowest_words(there, place)
    sentence = (
        f"{place.words} is {'slow' if effect > 0 else 'fast'}: the {len(there)} series with runs on it ({what}) are "
        f"{speed} there than elsewhere tonight{slowest}; that was taken out before judging them."
    )
    cause: Cause = "node" if place.is_host else "night"
    keys = tuple(one.series for one in there)
    return Finding(number, cause, place.subject, effect, math.expm1(low), math.expm1(high), keys, sentence)


def _slowest_words(there: Sequence[SeriesShift], place: Place) -> str:
    """Where the slowest rank was, for runs of several hosts; "" where that is not known."""
    known = [host for one in there for host in one.slowest_hosts]
    if not place.is_host or not known:
        return ""
    hits = sum(host in place.names for host in known)
    usual = [host for one in there for host in one.usual_slowest_hosts]
    before = f" (usually {sum(host in place.names for host in usual)} of {len(usual)})" if usual else ""
    return f", and it had the slowest rank in {hits} of {len(known)} runs{before}"


def _night_finding(series: Sequence[SeriesShift], night: _Night, context: Context, number: int) -> Finding:
    found = night.found
    assert found is not None
    told = [one for one in series if night.all_alike or not one.under_test]
    low, high = (math.expm1(end) for end in found.interval())
    effect = math.expm1(found.centre)
    speed = speed_words(effect, low, high)
    environment = environment_words(context.environment_changes)
    controls = sum(not one.under_test for one in told)
    cause: Cause
    if environment:
        cause, subject = "environment", environment
        because = f"{environment} changed"
        if context.code_may_differ:
            because += ", and what does not run the code under test moved as well"
    else:
        cause, subject = "night", f"{context.night} on {context.cluster}"
        because = "no change of the environment is known, so it is this night"
    if not context.code_may_differ:
        commits = f"the code did not change ({commits_words(context.commit_before, context.commit_after)}), "
        who = f"all {len(told)} series are"
    elif night.all_alike:
        commits = ""
        who = f"all {len(told)} series, {controls} of which do not run the code under test, are"
    else:
        commits = "the series under test did not move with them, "
        who = f"the {len(told)} series that do not run the code under test are"
    slowest = _suspect_words(told)
    sentence = f"On night {context.night} {who} {speed}: {commits}{because}{slowest}; it was taken out before judging."
    return Finding(number, cause, subject, effect, low, high, tuple(one.series for one in told), sentence)


def _suspect_words(series: Sequence[SeriesShift]) -> str:
    """The host that had the slowest rank of most runs, unless it usually has; "" where that is not known."""
    known = [host for one in series for host in one.slowest_hosts]
    if len(known) < LEAST_SERIES:
        return ""
    suspect = max(sorted(set(known)), key=known.count)
    share = known.count(suspect) / len(known)
    usual = [host for one in series for host in one.usual_slowest_hosts]
    if share < LEAST_SHARE or (usual and usual.count(suspect) / len(usual) > share / 2):
        return ""
    before = f", usually {usual.count(suspect)} of {len(usual)}" if usual else ""
    return f"; look at {suspect}, which had the slowest rank in {known.count(suspect)} of {len(known)} runs{before}"


__all__ = [
    "Cause",
    "Changed",
    "Context",
    "Finding",
    "RunShift",
    "SeriesShift",
    "Shared",
    "group",
    "shared_shifts",
]
