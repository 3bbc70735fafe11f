"""What stands beside the points of a series: the baseline's band, change points, changes of the environment.

Called by `serieslines`. Next to read: `regress_db.changes`, which finds the change points.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection, select

from harness.case import Phase
from regress_db.changes import ChangeLine, SeriesRun, changes_of_series
from regress_db.environments import Difference, differences
from regress_db.metrics import RUN_VALUE_METRIC
from regress_db.schema import BASELINE_RUNS, BASELINES, METRICS, NIGHTS, NODES, VERDICTS
from regress_db.web.views.asked import Pair
from regress_db.web.views.series import Band, Change, Mark, Points
from regress_db.web.views.shared import facts
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


def band_of(
    connection: Connection,
    pair: Pair,
    phase: Phase,
    runs: Sequence[PointRun],
    said: Mapping[int, Said],
    values: Mapping[int, float],
) -> Band | None:
    """The baseline that the newest judged night of the series was judged against, in the metric's values."""
    newest = next((run for run in reversed(runs) if run.night_id in said), None)
    if newest is None:
        return None
    judged = connection.execute(
        select(
            VERDICTS.c.night_id,
            VERDICTS.c.baseline_first,
            VERDICTS.c.baseline_last,
            VERDICTS.c.floor,
            VERDICTS.c.noise_floor,
        ).where(
            VERDICTS.c.night_id == newest.night_id,
            VERDICTS.c.case_id == pair.case_id,
            VERDICTS.c.platform_id == pair.platform_id,
            VERDICTS.c.phase == phase,
        )
    ).one()
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


def changes_of(
    connection: Connection,
    pair: Pair,
    phase: Phase,
    runs: Sequence[PointRun],
    run_values: Mapping[int, float],
    nodes: Mapping[int, Sequence[int]],
) -> list[ChangeLine]:
    """The change points of the series' run value, oldest first."""
    metric = connection.execute(
        select(METRICS.c.id).where(METRICS.c.phase == phase, METRICS.c.name == RUN_VALUE_METRIC)
    ).scalar_one_or_none()
    if metric is None:
        return []
    counted = (
        SeriesRun(run.number, run.started_at, run.night_id, run.environment, run_values[run.number])
        for run in runs
        if run_values.get(run.number, 0) > 0
    )
    machines = {run: (min(on), max(on)) for run, on in nodes.items()}
    return changes_of_series(connection, (pair.case_id, pair.platform_id, metric), phase, counted, machines)


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


def marks_of(
    connection: Connection,
    runs: Sequence[PointRun],
    contents: Mapping[int, str],
    nodes: Mapping[int, Sequence[int]],
    line: int,
) -> list[Mark]:
    """Where another environment began, its code apart, or a machine came in on which the series had not run before.

    contents: environments in JSON, by row number. nodes: row numbers of the machines of each run.
    """
    hosts = _new_hosts(connection, runs, nodes)
    sections = {number: _but_code(content) for number, content in contents.items()}
    marks = []
    for before, after in itertools.pairwise(runs):
        found = _differences(sections[before.environment], sections[after.environment])
        found += hosts.get(after.number, ())
        if found:
            marks.append(
                Mark(
                    at=after.started_at.timestamp(),
                    line=line,
                    run_id=after.run_id,
                    facts=facts(found),
                    words=_words(found),
                )
            )
    return marks


_sections = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
"""An environment's sections, each still in JSON: two that are alike need not be looked into."""


def _but_code(content: str) -> dict[str, msgspec.Raw]:
    found = _sections(content)
    found.pop(_CODE, None)
    return found


def _differences(before: Mapping[str, msgspec.Raw], after: Mapping[str, msgspec.Raw]) -> list[Difference]:
    """Where two environments differ; equal sections are not looked into."""
    if before == after:
        return []
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return differences(
        *({name: msgspec.json.decode(side[name]) for name in names if name in side} for side in (before, after))
    )


def _new_hosts(
    connection: Connection, runs: Sequence[PointRun], nodes: Mapping[int, Sequence[int]]
) -> dict[int, list[Difference]]:
    """By run, the machines that it was the first of the series to run on; none for the first run."""
    seen: set[int] = set()
    fresh: dict[int, set[int]] = {}
    for run in runs:
        here = set(nodes.get(run.number, ()))
        if seen and here - seen:
            fresh[run.number] = here - seen
        seen |= here
    wanted = {node for those in fresh.values() for node in those}
    names = {
        row.id: row.hostname
        for row in connection.execute(select(NODES.c.id, NODES.c.hostname).where(NODES.c.id.in_(wanted)))
    }
    return {
        number: [Difference("hosts", None, ", ".join(sorted(names[node] for node in those)))]
        for number, those in fresh.items()
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
