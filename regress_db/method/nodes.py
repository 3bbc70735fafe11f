"""How much slower each node makes its runs than the others do, with intervals: a slow node is seen as a slow node.

Pure, numpy. `node_contrasts` is called by `regress_db.nodes` with the runs of one cluster. Next to read:
`regress_db.method.nodes_design` (the arithmetic), `docs/statistics.md` (the claim and what was measured).

- A run is compared with runs of the same series on the same night where those were on other machines, else with runs of
  series that a commit would move alike, each against its own level: so neither a night nor a commit is taken for a
  node. A level lasts from one change point of its series to the next.
- Where a node never ran beside another one, its nights are compared with other nights at the same levels, and the unit
  is the spell of nights with or without it: one spell says nothing, since a commit may have come and gone with it.
- A run on several nodes waits for the slowest. Nodes that are slow are found one after the other and taken out
  (backfitting: Friedman & Stuetzle 1981); a run with a slower node on it says nothing of the others there. Nodes that
  cannot be told apart, since they were always compared together, are named together.
- Where a node changed for good, only what came after counts for it.
- p-values are Holm's (1979), over the nodes of the cluster that can be told: the chance that any of them is called slow
  or fast where none is, is at most the level. Each interval covers by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from regress_db.method.changepoints import segments
from regress_db.method.distributions import t_quantile, t_upper, u_cdf
from regress_db.method.nodes_design import (
    Array,
    Contrast,
    Design,
    Ints,
    Mask,
    NodeRuns,
    comparable_groups,
    compared_alone,
    medians,
    mixed_nights,
    numbered,
    tamed,
)

CONFIDENCE = 0.95
"""Of each interval by itself."""

DEFAULT_LEVEL = 0.01

_CYCLES = 3
_TAMINGS = 2
_LEAST_NIGHTS_OF_STRETCH = 3
_LEAST_STEP = 0.01
"""The smallest relative change by which a node is another one than it was."""


@dataclass(frozen=True, slots=True)
class NodeContrast:
    """What is known of nodes that cannot be told apart: mostly one.

    names: their hosts. effect, low, high: log change of their runs against the others', None where nothing can be told;
    p_value: two-sided, of no difference, adjusted for the nodes. runs, nights, units, series: what it rests on.
    since: the night (its number) on which they changed for good, None where they did not.
    """

    names: tuple[str, ...]
    effect: float | None
    low: float | None
    high: float | None
    p_value: float | None
    runs: int
    nights: int
    units: int
    series: int
    since: int | None


@dataclass(frozen=True, slots=True)
class _Place:
    """Some runs on nodes that are alike.

    clusters: as `Design.contrast` takes them. since: the night of its change; past: these runs are those before it.
    """

    names: tuple[str, ...]
    runs: Mask
    design: Design
    clusters: tuple[Ints, ...]
    since: int | None = None
    past: bool = False


def node_contrasts(runs: NodeRuns, level: float = DEFAULT_LEVEL) -> list[NodeContrast]:
    """Each node of the cluster, in the order of names. level: chance of calling any node slow or fast where none is.

    `ValueError` for a level that is no probability, or values that are not finite.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, wanted a probability between 0 and 1")
    if not np.isfinite(runs.values).all():
        raise ValueError("a run's value is not a finite number")
    if not len(runs.values):
        return []
    alone = compared_alone(runs)
    group = comparable_groups(runs, alone)
    of_level = _levels(runs, ~alone)
    _, sd = tamed(runs, runs.values, of_level, group)
    weights = 1 / sd**2
    places, unknown = _places(runs, Design(weights, of_level, group))
    if unknown:
        more, unknown = _places_across(runs, Design(weights, _levels(runs, np.ones_like(alone)), None), unknown)
        places += more
    search, slow = _settled(runs, places, level, of_level, group)
    for _ in range(len(places)):
        parted = search.parted(places, slow)
        if parted is None:
            break
        places = parted
        search, slow = _settled(runs, places, level, of_level, group)
    now = [place for place in places if not place.past]
    contrasts = [search.against(place, slow) for place in now]
    adjusted = _holm([None if one is None else _p_value(one) for one in contrasts])
    told = [
        _told(runs, place.names, place.runs, place.since, found, p_value)
        for place, found, p_value in zip(now, contrasts, adjusted, strict=True)
    ]
    told += [_told(runs, (host,), runs.holds(host), None, None, None) for host in unknown]
    return sorted(told, key=lambda one: one.names)


def _settled(
    runs: NodeRuns, places: Sequence[_Place], level: float, of_level: Ints, group: Ints
) -> tuple[_Search, Displaced]:
    """The displaced places, with wild values pulled in: but not what a displaced place did, which would be halved."""
    search = _Search(runs, runs.values, level)
    slow = search.displaced(places)
    for _ in range(_TAMINGS):
        waited = search.waited(slow)
        search = _Search(runs, tamed(runs, runs.values - waited, of_level, group)[0] + waited, level)
        slow = search.displaced(places)
    return search, slow


def _levels(runs: NodeRuns, wanted: Mask) -> Ints:
    """Which level each run is of; of units that are not `wanted` [units], one.

    A level ends where the unit's nights changed theirs (a difference that goes with machines that take turns is no
    change). So does it where the unit went to machines, or came from machines, that it was never on before or after: a
    commit may have come at the same time.
    """
    night_of_unit = numbered(runs.unit, runs.night)
    count = int(night_of_unit.max()) + 1
    centres = medians(runs.values, night_of_unit, count)
    first = np.unique(night_of_unit, return_index=True)[1]
    unit, where = runs.unit[first], np.where(mixed_nights(runs)[first], -1, runs.where[first])
    stretch = np.zeros(count, dtype=np.intp)
    starts = np.flatnonzero(np.diff(unit, prepend=-1))
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        if not wanted[unit[start]]:
            continue
        labels = where[start:end].tolist()
        groups = labels if len(set(labels)) > 1 else None
        for low, high in segments(np.exp(centres[start:end] - centres[start]), groups=groups):
            stretch[start + low] += 1
            for cut in _one_way(labels[low:high]):
                stretch[start + low + cut] += 1
        stretch[start:end] = np.cumsum(stretch[start:end])
    return numbered(runs.unit, stretch[night_of_unit])


def _one_way(labels: Sequence[int]) -> list[int]:
    """Where a first or last spell of a label ends or begins that is this label's only one."""
    changes = [place for place in range(1, len(labels)) if labels[place] != labels[place - 1]]
    if not changes:
        return []
    first, last = changes[0], changes[-1]
    cuts = set()
    if labels[0] not in labels[first:]:
        cuts.add(first)
    if labels[-1] not in labels[:last]:
        cuts.add(last)
    return sorted(cuts)


def _places(runs: NodeRuns, beside: Design) -> tuple[list[_Place], list[str]]:
    """The nodes that were compared within nights, those alike together; and the others."""
    return _alike(runs, beside, runs.hosts, lambda _: (runs.night, runs.allocation))


def _places_across(runs: NodeRuns, across: Design, hosts: Sequence[str]) -> tuple[list[_Place], list[str]]:
    """Of these nodes, those whose nights can be compared with others, those alike together; and the rest."""
    return _alike(runs, across, hosts, lambda there: (_spells(runs, there),))


def _alike(
    runs: NodeRuns, design: Design, hosts: Sequence[str], clusters: Callable[[Mask], tuple[Ints, ...]]
) -> tuple[list[_Place], list[str]]:
    found: dict[bytes, _Place] = {}
    unknown: list[str] = []
    for host in hosts:
        there = runs.holds(host)
        left = design.left_of(there.astype(np.float64))
        if not design.informs(left, there):
            unknown.append(host)
            continue
        same = found.get(key := np.round(left, 4).tobytes())
        if same is None:
            found[key] = _Place((host,), there, design, clusters(there))
        else:
            found[key] = replace(same, names=(*same.names, host), runs=same.runs | there)
    return list(found.values()), unknown


def _spells(runs: NodeRuns, there: Mask) -> Ints:
    """Nights in a row with the place, or without it, as one number [runs]."""
    with_it = np.bincount(runs.night, there) > 0
    changes = np.flatnonzero(np.diff(with_it.astype(np.intp), prepend=int(with_it[0])))
    return np.searchsorted(changes, runs.night, side="right").astype(np.intp)


Displaced = Sequence[tuple[_Place, float]]
"""Places that differ from the others, and by how much (log scale)."""


class _Search:
    """Finds displaced places among some, and what each is against the others with those taken out."""

    def __init__(self, runs: NodeRuns, values: Array, level: float) -> None:
        self._night = runs.night
        self._values = values
        self._level = level
        self._left: dict[int, tuple[_Place, Array]] = {}

    def displaced(self, places: Sequence[_Place]) -> list[tuple[_Place, float]]:
        """The places that differ from the others at the level, over all of them, and by how much."""
        chosen: list[tuple[_Place, float]] = []
        for _ in range(len(places)):
            held = {id(place) for place, _ in chosen}
            tried = [
                (found, place)
                for place in places
                if id(place) not in held and (found := self.against(place, chosen)) is not None
            ]
            limit = self._level / max(len(tried), 1)
            beyond = [(found, place) for found, place in tried if _p_value(found) <= limit]
            if not beyond:
                break
            best = max((found for found, _ in beyond), key=_standing_out)
            alike = [(place, found.effect) for found, place in beyond if found.effect / best.effect >= 0.5]
            kept = self._backfitted([*chosen, *alike], len(tried) + len(chosen))
            if {id(place) for place, _ in kept} <= held:
                return kept
            chosen = kept
        return chosen

    def _backfitted(self, chosen: list[tuple[_Place, float]], family: int) -> list[tuple[_Place, float]]:
        """Each estimated anew with the others taken out, in turn; those that do not differ any more are dropped."""
        for _ in range(_CYCLES):
            for position, (place, _) in enumerate(chosen):
                found = self.against(place, chosen)
                chosen[position] = (place, found.effect if found is not None else 0.0)
        kept = []
        for place, effect in chosen:
            found = self.against(place, chosen)
            if found is not None and _p_value(found) <= self._level / max(family - len(chosen) + 1, 1):
                kept.append((place, effect))
        return kept

    def against(self, place: _Place, slow: Displaced) -> Contrast | None:
        """The place against the others, what `slow` places did taken out: the slowest of each run counts."""
        own = next((effect for one, effect in slow if one is place), None)
        waited, idle = self._slowest([one for one in slow if one[0] is not place])
        decides = place.runs & (idle | (waited < (own or 0.0)))
        left = self._left_of(place, decides)
        if not place.design.informs(left, decides):
            return None
        rest = place.design.left_of(self._values - np.where(decides, 0.0, waited))
        found = place.design.contrast(left, rest, self._night, place.clusters)
        if found is None:
            return None
        took_part = np.bincount(self._night, decides) > 0
        return replace(found, by_night=np.where(took_part, found.by_night, np.nan))

    def waited(self, slow: Displaced) -> Array:
        """What displaced places did to each run: on several of them, the slowest did."""
        return self._slowest(slow)[0]

    def parted(self, places: Sequence[_Place], slow: Displaced) -> list[_Place] | None:
        """These places with the one that changed most for good parted at its change; None where none did."""
        best: tuple[float, int, int] | None = None
        for position, place in enumerate(places):
            found = self.against(place, slow) if len(place.clusters) > 1 and not place.past else None
            if found is None:
                continue
            nights = np.flatnonzero(np.isfinite(found.by_night))
            step = _step(found.by_night[nights], self._level / len(places))
            if step is not None:
                size, index = step
                best = max(best or (0.0, 0, 0), (size, position, int(nights[index])))
        if best is None:
            return None
        _, position, since = best
        place, after = places[position], self._night >= since
        parts = [
            replace(place, runs=place.runs & after, since=since),
            replace(place, runs=place.runs & ~after, past=True),
        ]
        return [*places[:position], *parts, *places[position + 1 :]]

    def _slowest(self, slow: Displaced) -> tuple[Array, Mask]:
        """What displaced places did to each run, and which runs were on none of them."""
        waited = np.full(len(self._values), -np.inf)
        for place, effect in slow:
            waited[place.runs] = np.maximum(waited[place.runs], effect)
        idle = np.isinf(waited)
        return np.where(idle, 0.0, waited), idle

    def _left_of(self, place: _Place, decides: Mask) -> Array:
        """What the place's design leaves of an indicator; kept for that of all its runs."""
        if not np.array_equal(decides, place.runs):
            return place.design.left_of(decides.astype(np.float64))
        if id(place) not in self._left:
            self._left[id(place)] = place, place.design.left_of(decides.astype(np.float64))
        return self._left[id(place)][1]


def _step(values: Array, level: float) -> tuple[float, int] | None:
    """Size and place of the clearest step, for good, in values in the order of time; None where there is none.

    Mann and Whitney's exact test at every split with three values on both sides, Bonferroni over the splits.
    """
    count = len(values)
    ranks = np.argsort(np.argsort(values)) + 1
    below = np.cumsum(ranks)
    splits = range(_LEAST_NIGHTS_OF_STRETCH, count - _LEAST_NIGHTS_OF_STRETCH + 1)
    best: tuple[float, int] | None = None
    for split in splits:
        u = int(below[split - 1]) - split * (split + 1) // 2
        p_value = 2 * u_cdf(min(u, split * (count - split) - u), split, count - split)
        best = min(best or (1.0, 0), (p_value, split))
    if best is None or best[0] * len(splits) > level:
        return None
    size = abs(float(np.median(values[best[1] :]) - np.median(values[: best[1]])))
    return (size, best[1]) if size >= math.log1p(_LEAST_STEP) else None


def _standing_out(found: Contrast) -> tuple[float, float]:
    """How clearly it differs; of two that mirror each other, the slower one stands out."""
    return round(abs(found.effect) / found.error, 6), found.effect


def _p_value(found: Contrast) -> float:
    return min(1.0, 2 * t_upper(abs(found.effect) / found.error, found.df))


def _holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted for all that there are, in the order given (Holm 1979)."""
    order = sorted((one, place) for place, one in enumerate(p_values) if one is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p_value, place) in enumerate(order):
        largest = max(largest, min(1.0, p_value * (len(order) - rank)))
        adjusted[place] = largest
    return adjusted


def _told(
    runs: NodeRuns,
    names: tuple[str, ...],
    there: Mask,
    since: int | None,
    found: Contrast | None,
    p_value: float | None,
) -> NodeContrast:
    half = 0.0 if found is None else t_quantile((1 + CONFIDENCE) / 2, found.df) * found.error
    return NodeContrast(
        names=names,
        effect=None if found is None else found.effect,
        low=None if found is None else found.effect - half,
        high=None if found is None else found.effect + half,
        p_value=p_value,
        runs=int(there.sum()),
        nights=len(np.unique(runs.night[there])),
        units=len(units := np.unique(runs.unit[there])),
        series=int(runs.series[units].sum()),
        since=since,
    )
