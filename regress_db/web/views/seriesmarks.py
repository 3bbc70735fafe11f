"""What stands beside the points of a series: the baseline's band, change points, changes of the environment.

Called by `serieslines`. Next to read: `regress_db.changes`, which finds the change points.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select

from regress_db import lookup
from regress_db.changes import ChangeLine, changes
from regress_db.environments import Difference, differences
from regress_db.errors import NotFoundError
from regress_db.filters import Filter
from regress_db.history import History
from regress_db.schema import BASELINE_RUNS, BASELINES, NIGHTS, NODES, RUN_RANKS
from regress_db.selection import Selection
from regress_db.web.views.nightruns import environment_contents
from regress_db.web.views.series import Band, Change, Mark, Points
from regress_db.web.views.shared import SeriesName, facts
from regress_db.wording import interval, percent

_CODE = "code"
_SHOWN_FACTS = 3


class PointRun(NamedTuple):
    """One run of a series, as its query has it. number: of its row. night: its name, None for none."""

    number: int
    run_id: str
    started_at: datetime
    night_id: int | None
    night: str | None
    environment: int
    commit: str
    digest: str


class Said(NamedTuple):
    """What was said of a series on one night, as far as the plot shows it."""

    night_id: int
    verdict: str
    effect: float | None
    baseline_first: str | None
    baseline_last: str | None
    floor: float
    noise_floor: float | None


def band_of(
    connection: Connection, runs: Sequence[PointRun], said: Mapping[int, Said], values: Mapping[int, float]
) -> Band | None:
    """The baseline that the newest judged night of the series was judged against, in the metric's values."""
    newest = next((run for run in reversed(runs) if run.night_id in said), None)
    if newest is None:
        return None
    judged = said[newest.night_id or 0]
    places = {run.run_id: place for place, run in enumerate(runs)}
    first, last = places.get(judged.baseline_first or ""), places.get(judged.baseline_last or "")
    if first is None or last is None:
        return None
    night = connection.execute(
        select(NIGHTS.c.against, NIGHTS.c.baseline_id, BASELINES.c.set_by)
        .outerjoin(BASELINES, BASELINES.c.id == NIGHTS.c.baseline_id)
        .where(NIGHTS.c.id == judged.night_id)
    ).one()
    within = [run for run in runs[first : last + 1] if run.night_id != judged.night_id]
    words = "its own past"
    if night.baseline_id is not None:
        of_baseline = select(BASELINE_RUNS.c.run).where(BASELINE_RUNS.c.baseline_id == night.baseline_id)
        members = set(connection.execute(of_baseline).scalars())
        within = [run for run in within if run.number in members]
        words = f"baseline {night.against}, set by {night.set_by}"
    held = [values[run.number] for run in within if run.number in values]
    if not held or night.against is None:
        return None
    middle, floor = statistics.median(held), max(judged.floor, judged.noise_floor or 0.0)
    return Band(
        value=middle,
        low=middle / (1 + floor),
        high=middle * (1 + floor),
        from_at=within[0].started_at.timestamp(),
        to_at=within[-1].started_at.timestamp(),
        runs=len(held),
        words=f"{words}, {len(held)} runs",
    )


def changes_of(history: History, name: SeriesName) -> list[ChangeLine]:
    """The change points of the series' run value, oldest first."""
    chosen = Selection(filters=(Filter("case", "=", (name.case,)), Filter("platform", "=", (name.platform,))))
    try:
        found = changes(history, chosen, phase=name.phase, kinds=("step", "drift", "transient"))
    except NotFoundError:
        return []
    return [one for one in reversed(found) if (one.case, one.platform) == (name.case, name.platform)]


def with_levels(found: Sequence[ChangeLine], points: Points) -> list[Change]:
    """Change points with the medians of the points between them."""
    edges = [float("-inf"), *(one.at.timestamp() for one in found), float("inf")]
    levels = [
        _median([value for at, value in zip(points.at, points.value, strict=True) if start <= at < end])
        for start, end in itertools.pairwise(edges)
    ]
    return [_change(one, levels[place], levels[place + 1]) for place, one in enumerate(found)]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _change(one: ChangeLine, before: float | None, after: float | None) -> Change:
    return Change(
        step=one.kind,
        at=one.at.timestamp(),
        earliest_at=one.earliest.timestamp(),
        latest_at=one.latest.timestamp(),
        before=before,
        after=after,
        effect=one.effect,
        low=one.low,
        high=one.high,
        p_value=one.p_value,
        cause=one.cause,
        run_before=one.run_before,
        run_after=one.run_after,
        commit_before=one.commit_before,
        commit_after=one.commit_after,
        differences=facts(one.differences),
        sentence=_sentence(one),
    )


def _sentence(one: ChangeLine) -> str:
    night = f", night {one.night}" if one.night else ""
    moved = "higher" if one.effect > 0 else "lower"
    blamed = "nothing that is recorded" if one.cause == "unknown" else f"the {one.cause}"
    return (
        f"{one.kind.capitalize()} on {one.at:%Y-%m-%d %H:%M} UTC{night}: the run value is {percent(one.effect)} "
        f"({interval(one.low, one.high)}) {moved} after it, p = {one.p_value:.1g}; what differs: {blamed}."
    )


def marks_of(connection: Connection, runs: Sequence[PointRun], line: int) -> list[Mark]:
    """Where another environment began, its code apart, or a machine came in on which the series had not run before."""
    turns = [(before, after) for before, after in itertools.pairwise(runs) if before.environment != after.environment]
    contents = environment_contents(connection, {run.environment for pair in turns for run in pair})
    hosts = _new_hosts(connection, runs)
    changed = {
        after.number: _but_code(contents[before.environment], contents[after.environment]) for before, after in turns
    }
    marks = []
    for run in runs:
        found = [*changed.get(run.number, ()), *hosts.get(run.number, ())]
        if found:
            marks.append(
                Mark(
                    at=run.started_at.timestamp(), line=line, run_id=run.run_id, facts=facts(found), words=_words(found)
                )
            )
    return marks


def _but_code(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """Where two environments differ; equal sections are not looked into."""
    sections = [name for name in {**before, **after} if name != _CODE and before.get(name) != after.get(name)]
    return (
        differences(*({name: side[name] for name in sections if name in side} for side in (before, after)))
        if sections
        else []
    )


def _new_hosts(connection: Connection, runs: Sequence[PointRun]) -> dict[int, list[Difference]]:
    """By run, the machines that it was the first of the series to run on; none for the first run."""
    numbers = {run.number for run in runs}
    spans: dict[int, tuple[int, int]] = {}
    for piece in lookup.chunks(sorted(numbers)):
        rows = connection.execute(
            select(RUN_RANKS.c.run, func.min(RUN_RANKS.c.node_id), func.max(RUN_RANKS.c.node_id))
            .where(RUN_RANKS.c.run.in_(piece))
            .group_by(RUN_RANKS.c.run)
        )
        spans |= {run: (first, last) for run, first, last in rows}
    seen: set[int] = set()
    fresh: dict[int, set[int]] = {}
    for run in runs:
        here = set(spans.get(run.number, ()))
        if seen and here - seen:
            fresh[run.number] = here - seen
        seen |= here
    wanted = {node for nodes in fresh.values() for node in nodes}
    names = {
        row.id: row.hostname
        for row in connection.execute(select(NODES.c.id, NODES.c.hostname).where(NODES.c.id.in_(wanted)))
    }
    return {
        number: [Difference("hosts", None, ", ".join(sorted(names[node] for node in nodes)))]
        for number, nodes in fresh.items()
    }


def _words(found: Sequence[Difference]) -> str:
    told = [
        f"first run on {one.second}"
        if one.name == "hosts"
        else f"{one.name}: {one.first or 'absent'} to {one.second or 'absent'}"
        for one in found[:_SHOWN_FACTS]
    ]
    more = len(found) - _SHOWN_FACTS
    return "; ".join([*told, f"and {more} more"] if more > 0 else told)
