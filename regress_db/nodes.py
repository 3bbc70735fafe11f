"""Which nodes make their runs slow: `node_effects` for whoever asks, `slow_nodes` for a plan that leaves them out.

Read-only. Called by the command line, by plans and, for the nights before the one that is judged, by
`regress_db.verdicts`. Next to read: `regress_db.method.nodes` (how it is told), `docs/nodes.md` (what it cannot tell).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, cast

from sqlalchemy import ColumnElement, Connection, exists, func, select

from regress_db import lookup
from regress_db.errors import FilterError, NotFoundError
from regress_db.history import History
from regress_db.metrics import RUN_VALUE_METRIC
from regress_db.schema import CASES, METRICS, NIGHTS, NODES, PLATFORMS, RUN_RANKS, RUN_VALUES, RUNS
from regress_db.selection import EVERYTHING, Selection

if TYPE_CHECKING:
    from regress_db.method.nodehistory import KnownNode
    from regress_db.method.nodes import NodeContrast
    from regress_db.method.nodes_design import NodeRuns

NodeVerdict = Literal["slow", "fast", "usual", "cannot tell"]

DEFAULT_LEVEL = 0.01
"""The chance that any node of a cluster is called slow or fast where none is."""

SINCE_NIGHTS = 30
"""How many of the cluster's nights are looked at, unless a time is asked for."""

USUAL_WITHIN = 0.1
"""A node is usual where its interval excludes a difference of this size; where it does not, that is not known."""

_WORST_FIRST: tuple[NodeVerdict, ...] = ("slow", "usual", "cannot tell", "fast")


@dataclass(frozen=True, slots=True)
class NodeEffect:
    """What a node does to its runs, against the other nodes of its cluster. Effects are relative: 0.1 is 10 % slower.

    low, high: 95 % interval; p_value: of no difference, adjusted for the cluster's nodes; all four None where it was
    never compared with another. runs, nights, series: what that rests on. last_seen: start of its last run. since: the
    night in which it became what it is, "" where it was so all the time or that cannot be told. alike: nodes that had
    their runs together with it, of which none can be told apart.
    """

    hostname: str
    cluster: str
    effect: float | None
    low: float | None
    high: float | None
    p_value: float | None
    runs: int
    nights: int
    series: int
    last_seen: datetime
    since: str
    verdict: NodeVerdict
    alike: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Observed:
    """The runs of one cluster as the method takes them. nights: their names, by number; numbers: of the runs' rows."""

    runs: NodeRuns
    nights: tuple[str, ...]
    numbers: tuple[int, ...]


def node_effects(
    history: History,
    selection: Selection = EVERYTHING,
    *,
    since_nights: int = SINCE_NIGHTS,
    cluster: str | None = None,
    level: float = DEFAULT_LEVEL,
) -> list[NodeEffect]:
    """Every node that ran something, the slowest first.

    since_nights: the newest nights of each cluster, before `selection.until`; where the selection says since when, or
    which night, that counts. cluster: only this one's. level: see `DEFAULT_LEVEL`. Raises `FilterError` for numbers out
    of range, `NotFoundError` for a cluster that the history does not know.
    """
    from regress_db.method.nodes import node_contrasts

    if not 0 < level < 1:
        raise FilterError(f"a level of {level} is no probability: give one between 0 and 1")
    if since_nights < 1:
        raise FilterError(f"the newest {since_nights} nights are none: give at least 1")
    effects: list[NodeEffect] = []
    with history.read() as connection:
        for name, platforms in _clusters(connection, cluster).items():
            window = selection
            if selection.since is None and selection.night is None:
                nights = newest_nights(connection, platforms, since_nights, selection.until)
                first = min((started_at for _, started_at in nights), default=None)
                window = dataclasses.replace(selection, since=first)
            observed = observe(connection, platforms, window.conditions(connection))
            if observed is None:
                continue
            seen = _last_seen(connection, observed)
            for contrast in node_contrasts(observed.runs, level):
                effects += _effects(contrast, name, observed, seen, level)
    return sorted(effects, key=_slowest_first)


def slow_nodes(history: History, cluster: str, floor: float) -> list[NodeEffect]:
    """The nodes of the cluster that are slower than the others, significantly and by `floor` at least; slowest first.

    floor: relative (0.05: five per cent). Of nodes that cannot be told apart, all are there. On a cluster that the
    history does not have yet none is known to be slow.
    """
    try:
        found = node_effects(history, cluster=cluster)
    except NotFoundError:
        return []
    return [one for one in found if one.verdict == "slow" and one.effect is not None and one.effect >= floor]


def newest_nights(
    connection: Connection, platforms: Sequence[int], count: int, before: datetime | None
) -> list[tuple[int, datetime]]:
    """Row number and start of the newest nights with a run on these platforms, that started before then."""
    ran = exists().where(RUNS.c.night_id == NIGHTS.c.id, RUNS.c.platform_id.in_(platforms))
    wanted = select(NIGHTS.c.id, NIGHTS.c.started_at).where(NIGHTS.c.started_at.is_not(None), ran)
    if before is not None:
        wanted = wanted.where(NIGHTS.c.started_at < before)
    rows = connection.execute(wanted.order_by(NIGHTS.c.started_at.desc(), NIGHTS.c.id.desc()).limit(count))
    return [(row.id, row.started_at) for row in rows]


def known_before(connection: Connection, cluster: str, before: datetime) -> dict[str, KnownNode]:
    """By host, the nodes of the cluster that differed from the others in its newest nights that started before then.

    Only what is significant at `DEFAULT_LEVEL`. Runs of no night do not count: nobody knows their conditions.
    """
    from regress_db.method.nodehistory import KnownNode
    from regress_db.method.nodes import node_contrasts

    platforms = _clusters(connection, cluster)[cluster]
    nights = [number for number, _ in newest_nights(connection, platforms, SINCE_NIGHTS, before)]
    observed = observe(connection, platforms, [RUNS.c.night_id.in_(nights)])
    if observed is None or len(observed.runs.hosts) < 2:
        return {}
    found: dict[str, KnownNode] = {}
    for one in node_contrasts(observed.runs, DEFAULT_LEVEL):
        if verdict_of(one, DEFAULT_LEVEL) not in ("slow", "fast"):
            continue
        if one.effect is not None and one.low is not None and one.high is not None:
            known = KnownNode(one.names, one.effect, one.low, one.high, one.runs, one.nights, one.units)
            found |= dict.fromkeys(one.names, known)
    return found


def _clusters(connection: Connection, wanted: str | None) -> dict[str, list[int]]:
    """Row numbers of the platforms of each cluster."""
    found: dict[str, list[int]] = defaultdict(list)
    for row in connection.execute(select(PLATFORMS.c.id, PLATFORMS.c.cluster).order_by(PLATFORMS.c.cluster)):
        found[row.cluster].append(row.id)
    if wanted is None:
        return found
    if wanted not in found:
        known = f"it has {', '.join(found)}" if found else "it has none yet"
        raise NotFoundError(f"the history has no cluster {wanted!r}; {known}")
    return {wanted: found[wanted]}


def observe(
    connection: Connection, platforms: Sequence[int], conditions: Sequence[ColumnElement[bool]]
) -> Observed | None:
    """The ok runs on these platforms for which the conditions hold; None where there is none."""
    import numpy as np

    from regress_db.method.nodes_design import NodeRuns, numbered

    metrics = connection.execute(select(METRICS.c.id).where(METRICS.c.name == RUN_VALUE_METRIC)).scalars().all()
    chosen = [RUNS.c.outcome == "ok", RUNS.c.platform_id.in_(platforms), *conditions]
    rows: Any = connection.execute(
        select(
            RUNS.c.id,
            RUNS.c.case_id,
            RUNS.c.platform_id,
            func.coalesce(RUNS.c.night_id, 0),
            RUNS.c.repeat,
            RUN_VALUES.c.metric,
            RUN_VALUES.c.value,
        )
        .join(RUN_VALUES, RUN_VALUES.c.run == RUNS.c.id)
        .where(RUN_VALUES.c.metric.in_(metrics), RUN_VALUES.c.value > 0, *chosen)
    ).all()
    if not rows:
        return None
    number, case, platform, night, repeat, metric, value = (np.array(column) for column in zip(*rows, strict=True))
    names, place_of_night = _nights(connection, chosen)
    machines, machine_of = _machines(connection, chosen)
    runs, first, of_run = np.unique(number, return_index=True, return_inverse=True)
    known = np.array([machine_of.get(run, -1) for run in runs.tolist()], dtype=np.intp)
    phases = np.bincount(of_run, np.exp2(np.searchsorted(np.unique(metric), metric))).astype(np.intp)
    logs = np.bincount(of_run, np.log(value.astype(np.float64))) / np.bincount(of_run)
    kept = np.flatnonzero(known >= 0)
    if not len(kept):
        return None
    case, platform, night, repeat = (column[first][kept] for column in (case, platform, night, repeat))
    where = known[kept]
    when = np.array(
        [place_of_night[key] for key in zip(night.tolist(), _days(connection, chosen, runs[kept], night), strict=True)],
        dtype=np.intp,
    )
    unit = numbered(case, platform, phases[kept])
    firsts = np.unique(unit, return_index=True)[1]
    families = {
        row.id: (row.backend, row.mode, row.ranks)
        for row in connection.execute(select(CASES.c.id, CASES.c.backend, CASES.c.mode, CASES.c.ranks))
    }
    strata: dict[tuple[Any, ...], int] = {}
    stratum = [
        strata.setdefault((*families[one], on), len(strata))
        for one, on in zip(case[firsts].tolist(), platform[firsts].tolist(), strict=True)
    ]
    return Observed(
        NodeRuns(
            values=logs[kept],
            unit=unit,
            night=when,
            allocation=numbered(when, repeat, where),
            where=where,
            stratum=np.array(stratum, dtype=np.intp),
            series=np.array([int(one).bit_count() for one in phases[kept][firsts]], dtype=np.intp),
            machines=machines,
        ),
        tuple(names),
        tuple(runs[kept].tolist()),
    )


def _nights(
    connection: Connection, chosen: Sequence[ColumnElement[bool]]
) -> tuple[list[str], dict[tuple[int, str], int]]:
    """Names of the nights in the order of time, and the place of each: by row number; by day for runs of no night."""
    names = {row.id: row.name for row in connection.execute(select(NIGHTS.c.id, NIGHTS.c.name))}
    # An expression, so that SQLite finds the runs by their time and does not walk through every night there is.
    night = func.coalesce(RUNS.c.night_id, 0)
    starts = [
        (start, (number, ""), names[number])
        for number, start in connection.execute(
            select(night, func.min(RUNS.c.started_at)).where(*chosen).group_by(night)
        )
        if number
    ]
    alone = select(RUNS.c.started_at).where(RUNS.c.night_id.is_(None), *chosen).order_by(RUNS.c.started_at)
    for day, moments in itertools.groupby(connection.execute(alone).scalars(), key=lambda moment: moment.date()):
        starts.append((next(moments), (0, str(day)), str(day)))
    starts.sort()
    return [name for _, _, name in starts], {key: place for place, (_, key, _) in enumerate(starts)}


def _days(connection: Connection, chosen: Sequence[ColumnElement[bool]], runs: Any, night: Any) -> list[str]:
    """The day of each run of no night, "" for the others."""
    if night.all():
        return [""] * len(runs)
    alone = select(RUNS.c.id, RUNS.c.started_at).where(RUNS.c.night_id.is_(None), *chosen)
    days = {row.id: str(row.started_at.date()) for row in connection.execute(alone)}
    return [days.get(run, "") for run in runs.tolist()]


def _machines(
    connection: Connection, chosen: Sequence[ColumnElement[bool]]
) -> tuple[tuple[tuple[str, ...], ...], dict[int, int]]:
    """The sets of hosts that runs were on, and which of them each run was on, by row number."""
    names = {row.id: row.hostname for row in connection.execute(select(NODES.c.id, NODES.c.hostname))}
    first, last = func.min(RUN_RANKS.c.node_id), func.max(RUN_RANKS.c.node_id)
    of_runs = (
        select(RUN_RANKS.c.run, first, last)
        .where(RUN_RANKS.c.run.in_(select(RUNS.c.id).where(*chosen)))
        .group_by(RUN_RANKS.c.run)
    )
    kinds: dict[tuple[int, ...], int] = {}
    found: dict[int, int] = {}
    several = []
    for run, low, high in connection.execute(of_runs):
        if low == high:
            found[run] = kinds.setdefault((low,), len(kinds))
        else:
            several.append(run)
    for piece in lookup.chunks(several):
        nodes: dict[int, set[int]] = defaultdict(set)
        wanted = select(RUN_RANKS.c.run, RUN_RANKS.c.node_id).where(RUN_RANKS.c.run.in_(piece)).distinct()
        for run, node in connection.execute(wanted):
            nodes[run].add(node)
        for run, held in nodes.items():
            found[run] = kinds.setdefault(tuple(sorted(held)), len(kinds))
    return tuple(tuple(names[node] for node in kind) for kind in kinds), found


def _last_seen(connection: Connection, observed: Observed) -> dict[str, datetime]:
    """When each host's last run started: among those of its last night."""
    runs = observed.runs
    candidates: dict[str, list[int]] = {}
    for host in runs.hosts:
        there = runs.holds(host)
        last = there & (runs.night == runs.night[there].max())
        candidates[host] = [observed.numbers[place] for place in last.nonzero()[0]]
    starts: dict[int, datetime] = {}
    for piece in lookup.chunks(sorted({number for numbers in candidates.values() for number in numbers})):
        wanted = select(RUNS.c.id, RUNS.c.started_at).where(RUNS.c.id.in_(piece))
        starts |= {row.id: row.started_at for row in connection.execute(wanted)}
    return {host: max(starts[number] for number in numbers) for host, numbers in candidates.items()}


def _effects(
    contrast: NodeContrast, cluster: str, observed: Observed, seen: dict[str, datetime], level: float
) -> list[NodeEffect]:
    """One for each host of those that cannot be told apart."""

    def relative(change: float | None) -> float | None:
        return None if change is None else math.expm1(change)

    return [
        NodeEffect(
            hostname=host,
            cluster=cluster,
            effect=relative(contrast.effect),
            low=relative(contrast.low),
            high=relative(contrast.high),
            p_value=contrast.p_value,
            runs=contrast.runs,
            nights=contrast.nights,
            series=contrast.series,
            last_seen=seen[host],
            since="" if contrast.since is None else observed.nights[contrast.since],
            verdict=verdict_of(contrast, level),
            alike=tuple(other for other in contrast.names if other != host),
        )
        for host in contrast.names
    ]


def verdict_of(contrast: NodeContrast, level: float) -> NodeVerdict:
    """What the numbers say in a word."""
    if contrast.effect is None or contrast.p_value is None:
        return "cannot tell"
    if contrast.p_value <= level:
        return "slow" if contrast.effect > 0 else "fast"
    low, high = cast(float, contrast.low), cast(float, contrast.high)
    most = math.log1p(USUAL_WITHIN)
    return "usual" if -most < low and high < most else "cannot tell"


def _slowest_first(one: NodeEffect) -> tuple[int, float, str, str]:
    return _WORST_FIRST.index(one.verdict), -(one.effect or 0.0), one.cluster, one.hostname
