"""A node, or an allocation, that moved whatever ran on it: told from the others, never from zero alone.

Pure, numpy. `displaced` is called by `regress_db.method.attribution`, whose module text has the rules. Places are tried
one after the other: the one that stands out most is taken out, all found so far are estimated anew with the others
taken out (backfitting, Friedman & Stuetzle 1981), until none stands out.

A place is compared within strata: series that a commit would slow alike. Where a stratum ran on one place alone it says
nothing about that place, however slow it was.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc

from regress_db.method.consensus import Consensus, agreement, location

if TYPE_CHECKING:
    from regress_db.method.attribution import SeriesShift

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

_CENTRE_COST = math.pi / 2
"""The variance of a baseline's centre, in variances of one run over its number of runs: a median's (at most)."""
_LEAST_OF_USUAL = 0.5
"""No unit is believed to be more exact than this part of what is usual: its spread is of few runs, and may be luck."""

_CYCLES = 6


@dataclass(frozen=True, slots=True)
class Place:
    """A host or an allocation. names: the hosts that had exactly the same runs, of which none can be told apart."""

    is_host: bool
    names: tuple[str, ...]
    runs: Mask

    @property
    def subject(self) -> str:
        """What it is called."""
        return " or ".join(self.names) if self.is_host else f"allocation {self.names[0]}"

    @property
    def words(self) -> str:
        """The same, at the start of a sentence."""
        return self.subject if self.is_host else f"Allocation {self.names[0]}"

    def holds(self, hosts: Sequence[str], allocation: str) -> bool:
        """Whether a run on these hosts, in this allocation, was there."""
        return any(name in hosts for name in self.names) if self.is_host else allocation == self.names[0]


@dataclass(frozen=True, slots=True)
class Units:
    """The night's runs as arrays. A unit is one series, or several that share their runs and with them their noise.

    changes [runs]: mean log change over the unit's series. unit [runs]: which unit. sd, baseline_runs, under_test,
    stratum [units]. members: each unit's series as positions in the input, and keys by position. code_may_differ: the
    code under test may have changed tonight.
    """

    changes: Array
    unit: NDArray[np.intp]
    sd: Array
    baseline_runs: Array
    under_test: Mask
    stratum: NDArray[np.intp]
    members: tuple[tuple[int, ...], ...]
    keys: tuple[Hashable, ...]
    code_may_differ: bool

    @classmethod
    def of(cls, series: Sequence[SeriesShift], code_may_differ: bool) -> Self:
        """Units of these series. Where the code did not change, all are one stratum; else controls are one."""
        together: dict[Hashable, list[int]] = {}
        for position, one in enumerate(series):
            ids = tuple(run.run for run in one.runs)
            together.setdefault(ids if all(ids) else position, []).append(position)
        members = tuple(tuple(positions) for positions in together.values())
        changes: list[float] = []
        unit: list[int] = []
        sd: list[float] = []
        strata: dict[str, int] = {}
        stratum: list[int] = []
        for number, positions in enumerate(members):
            group = [series[position] for position in positions]
            weights = np.array([1 / max(one.sd, 1e-6) ** 2 for one in group])
            weights /= weights.sum()
            sd.append(float(weights @ np.array([one.sd for one in group])))
            values = weights @ np.array([[run.change for run in one.runs] for one in group])
            changes += values.tolist()
            unit += [number] * len(values)
            name = "" if not code_may_differ else " + ".join(sorted({one.stratum or one.label for one in group}))
            if code_may_differ and not group[0].under_test:
                name = "\0controls"
            stratum.append(strata.setdefault(name, len(strata)))
        first = [series[positions[0]] for positions in members]
        usual = float(np.median(sd))
        return cls(
            changes=np.array(changes),
            unit=np.array(unit, dtype=np.intp),
            sd=np.maximum(sd, _LEAST_OF_USUAL * usual),
            baseline_runs=np.array([max(one.baseline_runs, 1) for one in first], dtype=np.float64),
            under_test=np.array([one.under_test for one in first], dtype=np.bool_),
            stratum=np.array(stratum, dtype=np.intp),
            members=members,
            keys=tuple(one.series for one in series),
            code_may_differ=code_may_differ,
        )

    def centres(self, values: Array, which: Mask | None = None) -> tuple[Array, Array]:
        """Median over each unit's runs (only those in `which`), and its error; NaN for a unit without any.

        The median, as a baseline's centre is robust too: a mean would differ from it where noise has one long tail.
        """
        kept = np.arange(len(values)) if which is None else np.flatnonzero(which)
        kept = kept[np.lexsort((values[kept], self.unit[kept]))]
        counts = np.bincount(self.unit[kept], minlength=len(self.sd))
        first = np.cumsum(counts) - counts
        there = counts > 0
        centres = np.full(len(self.sd), np.nan)
        low, high = (first + (counts - 1) // 2)[there], (first + counts // 2)[there]
        centres[there] = (values[kept[low]] + values[kept[high]]) / 2
        with np.errstate(divide="ignore"):
            cost = np.where(counts < 3, 1.0, _CENTRE_COST) / counts
        return centres, self.sd * np.sqrt(cost + _CENTRE_COST / self.baseline_runs)

    def by_series(self, of_runs: Array) -> dict[Hashable, tuple[float, ...]]:
        """Numbers of runs as the series' keys have them, in the order of the series' runs."""
        found: dict[Hashable, tuple[float, ...]] = {}
        ends = np.cumsum(np.bincount(self.unit, minlength=len(self.members)))
        for positions, piece in zip(self.members, np.split(of_runs, ends[:-1]), strict=True):
            for position in positions:
                found[self.keys[position]] = tuple(map(float, piece))
        return found


def places_of(series: Sequence[SeriesShift], units: Units) -> list[Place]:
    """Every host and allocation that some of the runs were on and others were not."""
    where = [(frozenset(run.hosts), run.allocation) for positions in units.members for run in series[positions[0]].runs]
    by_runs: dict[bytes, Place] = {}
    for host in sorted({host for hosts, _ in where for host in hosts}):
        runs = np.array([host in hosts for hosts, _ in where])
        same = by_runs.get(runs.tobytes())
        names = (host,) if same is None else (*same.names, host)
        by_runs[runs.tobytes()] = Place(True, names, runs)
    for allocation in sorted({allocation for _, allocation in where if allocation}):
        runs = np.array([mine == allocation for _, mine in where])
        by_runs.setdefault(runs.tobytes(), Place(False, (allocation,), runs))
    return [place for place in by_runs.values() if not place.runs.all()]


Displaced = list[tuple[Place, Consensus]]


def displaced(
    units: Units, places: Sequence[Place], values: Array, level: float, least_units: int, least_share: float
) -> Displaced:
    """The places whose runs moved against those elsewhere, and by how much.

    values [runs]: log changes. level: of each place's test. A place needs `least_units` units on it in strata that also
    ran elsewhere, and `least_share` of them moved. Where the code may differ one stratum under test is not enough,
    unless most of it ran elsewhere too.
    """
    chosen: list[Place] = []
    amounts: dict[int, Consensus] = {}
    for _ in range(len(places)):
        residual = values - removed_of_runs(units, [(place, amounts[id(place)]) for place in chosen])
        candidates = [
            (abs(found.centre) / found.error, position, found)
            for position, place in enumerate(places)
            if id(place) not in amounts
            and (found := _against_elsewhere(units, place, residual, least_units)) is not None
            and max(found.p_value, found.chance) <= level
            and found.shared_by(least_share)
            and _outward(units, place, residual, found.centre)
        ]
        if not candidates:
            break
        _, position, found = max(candidates, key=lambda one: one[:2])
        chosen.append(places[position])
        amounts[id(places[position])] = found
        _backfit(units, chosen, amounts, values, least_units)
        for place in list(chosen):
            if max(amounts[id(place)].p_value, amounts[id(place)].chance) > level:
                chosen.remove(place)
    return [(place, amounts[id(place)]) for place in chosen]


def removed_of_runs(units: Units, found: Displaced) -> Array:
    """Log change to take out of each run: a run on several displaced places waits for the slowest."""
    slower = np.zeros(len(units.changes))
    faster = np.zeros(len(units.changes))
    for place, one in found:
        slower[place.runs] = np.maximum(slower[place.runs], one.centre)
        faster[place.runs] = np.minimum(faster[place.runs], one.centre)
    return slower + faster


def _backfit(
    units: Units, chosen: Sequence[Place], amounts: dict[int, Consensus], values: Array, least_units: int
) -> None:
    """Estimate each chosen place anew with the others taken out, in turn."""
    if len(chosen) < 2:
        return
    for _ in range(_CYCLES):
        for place in chosen:
            others = [(other, amounts[id(other)]) for other in chosen if other is not place]
            found = _against_elsewhere(units, place, values - removed_of_runs(units, others), least_units)
            if found is not None:
                amounts[id(place)] = found


def _against_elsewhere(units: Units, place: Place, values: Array, least_units: int) -> Consensus | None:
    """How far the place's runs are from those elsewhere; None where the night cannot tell."""
    here, here_errors = units.centres(values, place.runs)
    there, there_errors = units.centres(values, ~place.runs)
    on, off = np.isfinite(here), np.isfinite(there)
    apart: list[tuple[float, float]] = []
    deviations: list[Array] = []
    errors: list[Array] = []
    elsewhere: list[Array] = []
    for stratum in np.unique(units.stratum[on]):
        mine, others = on & (units.stratum == stratum), off & (units.stratum == stratum)
        if not others.any():
            continue
        centre, error = location(there[others], there_errors[others])
        of_mine, mine_error = location(here[mine], here_errors[mine])
        apart.append((of_mine - centre, math.hypot(error, mine_error)))
        deviations.append(here[mine] - centre)
        elsewhere.append(there[others] - centre)
        errors.append(np.hypot(here_errors[mine], error))
    if sum(map(len, deviations)) < least_units:
        return None
    if len(apart) == 1 and _may_be_code(units, on, off):
        return None
    centres = np.array(apart)
    found = agreement(*location(centres[:, 0], centres[:, 1]), np.concatenate(deviations), np.concatenate(errors))
    if units.code_may_differ:
        by_chance = _by_chance(np.concatenate(deviations), np.concatenate(elsewhere), found.centre)
        return replace(found, chance=by_chance)
    return found


def _by_chance(here: Array, elsewhere: Array, centre: float) -> float:
    """The probability that so many of the units here moved, were they as likely to as those elsewhere.

    A commit that slows a part of the series slows, by chance, most of those that ran on some place. Binomial, with the
    share elsewhere taken half a unit high.
    """
    sign = math.copysign(1, centre)
    moved_here, moved_elsewhere = (int((sign * part > abs(centre) / 2).sum()) for part in (here, elsewhere))
    share = (moved_elsewhere + 0.5) / (len(elsewhere) + 1)
    return float(bdtrc(moved_here - 1, len(here), share)) if moved_here else 1.0


def _may_be_code(units: Units, on: Mask, off: Mask) -> bool:
    """Whether what ran there may be what a commit slowed: only the code under test, and mostly nowhere else."""
    return bool(units.code_may_differ and units.under_test[on].all() and (on & off).sum() < on.sum() / 2)


def _outward(units: Units, place: Place, values: Array, centre: float) -> bool:
    """Whether it is the place that left its baseline, and not the others theirs."""
    here, errors = units.centres(values, place.runs)
    on = np.isfinite(here)
    return location(here[on], errors[on])[0] * math.copysign(1, centre) >= abs(centre) / 2
