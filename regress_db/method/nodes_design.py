"""Runs of a cluster's nodes as arrays, and one node's runs against the others', with an error that clusters know of.

Pure, numpy. Called by `regress_db.method.nodes`, whose module text has the claim; next to read is that.

A run's value is a level of its series, something that its night gave it, what its place did to it, and noise. `Design`
takes levels and nights out of any column by weighted least squares (the theorem of Frisch & Waugh 1933 and Lovell
1963: what is left of a place's indicator gives the same estimate as the whole regression does). `Design.contrast`
gives the estimate and its error by clusters: each cluster's score, divided by one less its share of the information
(the jackknife over clusters; Bell & McCaffrey 2002, MacKinnon, Nielsen & Webb 2023), and as many degrees of freedom as
clusters take part, less one (Carter, Schnepel & Steigerwald 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

Array = NDArray[np.floating[Any]]
Ints = NDArray[np.intp]
Mask = NDArray[np.bool_]

_CLIP = 4.0
_MAD_TO_SD = 1.4826
_POLISHES = 3
_LEAST_TO_CENTRE = 3
"""Runs on the same machines; fewer say too little of these to centre them before clipping."""
_LEAST_OF_USUAL = 0.5
"""No unit is believed to be more exact than this part of what is usual: its spread is of few runs, and may be luck."""
_LEAST_SD = 0.001
_RIDGE = 1e-10
_NOTHING = 1e-6
"""Information on a place, as a part of its runs, that rounding leaves where there is none."""


@dataclass(frozen=True, slots=True)
class NodeRuns:
    """Runs of one cluster. A unit is the series that share their runs (both phases of a case), as their mean.

    values [runs]: mean log of the run's values over its unit's series. unit, night, allocation, where [runs]: numbers
    from 0; nights in the order of time; an allocation is of one night; where: which of `machines`. stratum [units]:
    units that a commit would move alike share one. series [units]: how many series a unit is of. machines: the hosts of
    each kind of run.
    """

    values: Array
    unit: Ints
    night: Ints
    allocation: Ints
    where: Ints
    stratum: Ints
    series: Ints
    machines: tuple[tuple[str, ...], ...]

    def holds(self, host: str) -> Mask:
        """The runs that this host took part in, bool [runs]."""
        return np.array([host in hosts for hosts in self.machines], dtype=np.bool_)[self.where]

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host, in the order of their names."""
        return tuple(sorted({host for hosts in self.machines for host in hosts}))


@dataclass(frozen=True, slots=True)
class Contrast:
    """How far some runs lie from the others. effect, error: log scale; df: degrees of freedom of the error.

    by_night [nights]: the same of each night alone, NaN where it says nothing.
    """

    effect: float
    error: float
    df: float
    by_night: Array


def numbered(*columns: Ints) -> Ints:
    """A number from 0 for each combination of the columns' numbers that there is."""
    combined = columns[0].astype(np.int64)
    for column in columns[1:]:
        combined = combined * (int(column.max(initial=0)) + 1) + column
    return np.unique(combined, return_inverse=True)[1].astype(np.intp)


def medians(values: Array, group: Ints, count: int) -> Array:
    """Median of each group, float64 [count]; NaN for one without a value."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    order = np.argsort(group + (values - low) / (2 * (high - low) or 1.0))  # one key sorts faster than two
    sizes = np.bincount(group, minlength=count)
    first = np.cumsum(sizes) - sizes
    there = sizes > 0
    found = np.full(count, np.nan)
    lower, upper = (first + (sizes - 1) // 2)[there], (first + sizes // 2)[there]
    found[there] = (values[order[lower]] + values[order[upper]]) / 2
    return found


def mixed_nights(runs: NodeRuns) -> Mask:
    """The runs whose unit was on different machines that night, bool [runs]."""
    own = numbered(runs.unit, runs.night)
    kinds = np.unique(own.astype(np.int64) * len(runs.machines) + runs.where) // len(runs.machines)
    return (np.bincount(kinds) > 1)[own]


def compared_alone(runs: NodeRuns) -> Mask:
    """The units that are compared with themselves alone, bool [units]: in half of their runs and more, the same night
    had others of theirs on other machines.
    """
    units = len(runs.stratum)
    count = np.bincount(runs.unit, minlength=units)
    return 2 * np.bincount(runs.unit, mixed_nights(runs), units) >= np.maximum(count, 1)


def comparable_groups(runs: NodeRuns, alone: Mask) -> Ints:
    """Which runs are compared with each other, by number [runs]: those of one unit and night for units that are
    compared `alone`, else those of one stratum and night.
    """
    own = runs.unit + len(runs.stratum)
    return numbered(np.where(alone[runs.unit], own, runs.stratum[runs.unit]), runs.night)


def tamed(runs: NodeRuns, values: Array, level: Ints, group: Ints) -> tuple[Array, Array]:
    """These values [runs] with wild ones pulled in to four standard deviations, and each run's standard deviation.

    From the fit of levels, groups and machines by medians in turn (median polish: Tukey 1977), so that neither a spike
    nor a slow node is what a level is of.
    """
    rest = values.copy()
    machines = len(runs.machines)
    enough = np.bincount(runs.where, minlength=machines) >= _LEAST_TO_CENTRE
    for _ in range(_POLISHES):
        for of_run, kept in ((level, None), (group, None), (runs.where, enough)):
            centres = medians(rest, of_run, int(of_run.max(initial=-1)) + 1)
            rest = rest - (centres if kept is None else np.where(kept, centres, 0.0))[of_run]
    units = len(runs.stratum)
    moved = np.flatnonzero(np.abs(rest) > 1e-12)
    seen = _MAD_TO_SD * medians(np.abs(rest[moved]), runs.unit[moved], units)
    fitted = int(level.max(initial=-1)) + int(group.max(initial=-1)) + 2
    seen = np.nan_to_num(seen) * math.sqrt(len(rest) / max(len(rest) - fitted, len(rest) / 10))
    there = seen[seen > 0]
    usual = float(np.median(there)) if len(there) else 0.0
    sd = np.maximum(seen, max(_LEAST_OF_USUAL * usual, _LEAST_SD))[runs.unit]
    return values - rest + np.clip(rest, -_CLIP * sd, _CLIP * sd), sd


class Design:
    """What is taken out of values and of indicators alike: the levels, and the groups where there are any.

    weights, level [runs]; group [runs]: None where only levels are taken out.
    """

    def __init__(self, weights: Array, level: Ints, group: Ints | None) -> None:
        self.weights = weights
        self._level = level
        self._group = group
        self._of_level = np.bincount(level, weights)
        self._parameters = len(self._of_level)
        if group is None:
            return
        self._of_group = np.bincount(group, weights)
        self._parameters += len(self._of_group)
        shape = (len(self._of_group), len(self._of_level))
        together = sparse.csr_matrix((weights, (group, level)), shape=shape)
        rest = sparse.diags(self._of_level) - together.T @ sparse.diags(1 / self._of_group) @ together
        self._solve = splu((rest + sparse.diags(_RIDGE * self._of_level)).tocsc()).solve

    def left_of(self, column: Array) -> Array:
        """What levels and groups do not explain of it, float64 [runs]."""
        weighted = self.weights * column
        of_level = np.bincount(self._level, weighted, len(self._of_level))
        rest: Array
        if self._group is None:
            rest = column - (of_level / self._of_level)[self._level]
            return rest
        of_group = np.bincount(self._group, weighted, len(self._of_group)) / self._of_group
        explained = np.bincount(self._level, self.weights * of_group[self._group], len(self._of_level))
        levels = self._solve(of_level - explained)
        rest = column - levels[self._level]
        rest -= (np.bincount(self._group, self.weights * rest, len(self._of_group)) / self._of_group)[self._group]
        return rest

    def informs(self, left: Array, indicator: Mask) -> bool:
        """Whether what is `left` of an indicator can tell anything."""
        return float(self.weights @ (left * left)) > _NOTHING * float(self.weights[indicator].sum())

    def contrast(self, left: Array, values: Array, night: Ints, clusters: tuple[Ints, ...]) -> Contrast | None:
        """The effect of what `left` is left of on `values` (of which levels and groups were taken out as well).

        night [runs]: for `Contrast.by_night`. clusters: ways to part the runs into independent ones, of which the first
        that leaves enough of them is used. None where not even two take part.
        """
        weighted = self.weights * left
        information = weighted * left
        total = float(information.sum())
        effect = float(weighted @ values) / total
        rest = values - effect * left
        scores = weighted * rest
        freedom = max(len(values) - self._parameters - 1, 1)
        stated = math.sqrt(float(self.weights @ (rest * rest)) / freedom / total)
        for place, cluster in enumerate(clusters):
            shares = np.bincount(cluster, information) / total
            effective = 1 / float((shares**2).sum())
            # Exactly enough must not hang on the order in which shares are added.
            if effective < (_ENOUGH if place < len(clusters) - 1 else _LEAST) - _ROUNDING:
                continue
            seen = np.bincount(cluster, scores) / np.maximum(1 - shares, 1e-9)
            error = max(stated, float(np.sqrt((seen**2).sum())) / total, 1e-9)
            of_night = np.bincount(night, information)
            kept = of_night > _LEAST_OF_NIGHT * np.median(of_night[of_night > _NOTHING * total])
            by_night = np.full(len(of_night), np.nan)
            by_night[kept] = np.bincount(night, weighted * values)[kept] / of_night[kept]
            return Contrast(effect, error, effective - 1, by_night)
        return None


_ENOUGH = 4.0
"""So many nights that take part are clusters enough; with fewer, allocations are."""
_LEAST = 1.9
_ROUNDING = 1e-6
_LEAST_OF_NIGHT = 0.2
"""A night with less information than this part of the usual says nothing by itself."""
