"""Side by side: two runs value by value, or two nights, commits or baselines series by series.

Called by `epwatch compare` and `History.compare`. A change here is that of two values or medians, without an interval:
a verdict takes `regress_db.verdicts`.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Connection, select

from harness.case import PHASES, Phase
from regress_db import lookup
from regress_db.details import RunDetail, load_detail
from regress_db.environments import Difference, differences
from regress_db.errors import NotFoundError
from regress_db.history import History
from regress_db.metrics import RUN_VALUE_METRIC
from regress_db.queries import metric_numbers
from regress_db.schema import BASELINE_RUNS, BASELINES, CASES, ENVIRONMENTS, NIGHTS, PLATFORMS, RUN_VALUES, RUNS
from regress_db.selection import EVERYTHING, Selection

Kind = Literal["run", "night", "commit", "baseline"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_NAMED = re.compile(rf"({'|'.join(KINDS)}):(.*)", re.DOTALL)
_HASH = re.compile(r"[0-9a-zA-Z]+")
_CANDIDATES = 10


@dataclass(frozen=True, slots=True)
class Side:
    """A set of runs by name. name: a whole run id or commit, a night's id, a baseline's name. number: of its row."""

    kind: Kind
    name: str
    number: int | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class ComparedValue:
    """One metric of two runs. change: (second - first) / first, None where it has none."""

    phase: Phase
    metric: str
    first: float | None
    second: float | None
    change: float | None


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Two runs side by side: values, and where case, platform, hosts and environment differ."""

    first: RunDetail
    second: RunDetail
    values: tuple[ComparedValue, ...]
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class ComparedSeries:
    """One series of both sides: medians over runs, how many runs, (second - first) / first; None for what is not."""

    case: str
    platform: str
    phase: Phase
    metric: str
    first: float | None
    second: float | None
    first_runs: int
    second_runs: int
    change: float | None


@dataclass(frozen=True, slots=True)
class SetComparison:
    """Two sides, series by series, the largest increase first; series that only one side has come last."""

    first: Side
    second: Side
    series: tuple[ComparedSeries, ...]


def side(history: History, name: str) -> Side:
    """What a person names: a run or a commit by the head of its hash, a night, a live baseline, `latest` (the run).

    `run:`, `night:`, `commit:` or `baseline:` before it says which; `night:latest` is the newest night. Raises
    `NotFoundError` for none, or for several, naming them.
    """
    with history.read() as connection:
        if named := _NAMED.fullmatch(name):
            kinds, name = tuple(kind for kind in KINDS if kind == named[1]), named[2]
        else:
            kinds = ("run",) if name == lookup.LATEST else KINDS
        found = [one for kind in kinds for one in _candidates(connection, kind, name)]
    if not found:
        raise NotFoundError(
            f"{name!r} is no {' and no '.join(kinds)} of the history; `epwatch runs`, `epwatch nights` and "
            "`epwatch baseline list` list them"
        )
    if len(found) > 1:
        names = ", ".join(f"{one.kind}:{one.name}" for one in found[:_CANDIDATES])
        raise NotFoundError(f"{name!r} may be {names}{', and more' * (len(found) > _CANDIDATES)}: say which")
    return found[0]


def compare_runs(history: History, first: str, second: str) -> RunComparison:
    """Two runs side by side; each is named as in `details.show`."""
    with history.read() as connection:
        one, other = (load_detail(connection, lookup.run(connection, run)[0]) for run in (first, second))
    values = [
        ComparedValue(phase, metric, before, after, relative_change(before, after))
        for phase, metric, before, after in _paired(one, other)
    ]
    return RunComparison(one, other, tuple(values), tuple(differences(_facts(one), _facts(other))))


def compare_sides(
    history: History,
    first: Side,
    second: Side,
    selection: Selection = EVERYTHING,
    *,
    metric: str = RUN_VALUE_METRIC,
    phase: Phase | None = None,
) -> SetComparison:
    """Medians over the chosen runs of each side. Raises `NotFoundError` for a metric the history does not have."""
    with history.read() as connection:
        metrics = metric_numbers(connection, metric, phase)
        of_first, of_second = (_values(connection, one, selection, metrics) for one in (first, second))
        keys = [*of_first, *(key for key in of_second if key not in of_first)]
        cases, platforms = (
            {row.id: row.key for row in connection.execute(select(table.c.id, table.c.key))}
            for table in (CASES, PLATFORMS)
        )
    series = []
    for key in keys:
        case, platform, number = key
        medians = [statistics.median(values[key]) if key in values else None for values in (of_first, of_second)]
        series.append(
            ComparedSeries(
                case=cases[case],
                platform=platforms[platform],
                phase=metrics[number],
                metric=metric,
                first=medians[0],
                second=medians[1],
                first_runs=len(of_first.get(key, ())),
                second_runs=len(of_second.get(key, ())),
                change=relative_change(*medians),
            )
        )
    return SetComparison(first, second, tuple(sorted(series, key=_largest_first)))


def _largest_first(one: ComparedSeries) -> tuple[bool, float, str, str, int]:
    return one.change is None, -(one.change or 0), one.case, one.platform, PHASES.index(one.phase)


def _candidates(connection: Connection, kind: Kind, name: str) -> Iterator[Side]:
    """What of this kind the name may be: all of them, or enough to see that they are too many."""
    if kind == "night":
        wanted = select(NIGHTS.c.id, NIGHTS.c.name).order_by(*lookup.NEWEST_NIGHT_FIRST)
        wanted = wanted.limit(1) if name == lookup.LATEST else wanted.where(NIGHTS.c.name == name)
        yield from (Side("night", row.name, row.id) for row in connection.execute(wanted))
    elif kind == "baseline":
        live = select(BASELINES.c.id).where(BASELINES.c.name == name, BASELINES.c.retired_at.is_(None))
        yield from (Side("baseline", name, number) for number in connection.execute(live).scalars())
    elif kind == "commit" and _HASH.fullmatch(name):
        commits = (
            select(ENVIRONMENTS.c.commit)
            .distinct()
            .where(ENVIRONMENTS.c.commit.startswith(name.lower()))
            .order_by(ENVIRONMENTS.c.commit)
            .limit(_CANDIDATES + 1)
        )
        yield from (Side("commit", commit) for commit in connection.execute(commits).scalars())
    elif kind == "run" and _HASH.fullmatch(name):
        found = select(RUNS.c.id, RUNS.c.run_id).limit(_CANDIDATES + 1)
        if name == lookup.LATEST:
            found = found.order_by(RUNS.c.started_at.desc(), RUNS.c.id.desc()).limit(1)
        else:
            found = found.where(RUNS.c.run_id >= name.lower(), RUNS.c.run_id < name.lower() + lookup.AFTER_HEX)
        yield from (Side("run", row.run_id, row.id) for row in connection.execute(found))


def _belongs_to(one: Side) -> ColumnElement[bool]:
    """What runs of this side have in common."""
    if one.kind == "night":
        return RUNS.c.night_id == one.number
    if one.kind == "run":
        return RUNS.c.id == one.number
    if one.kind == "baseline":
        return RUNS.c.id.in_(select(BASELINE_RUNS.c.run).where(BASELINE_RUNS.c.baseline_id == one.number))
    return RUNS.c.environment_id.in_(select(ENVIRONMENTS.c.id).where(ENVIRONMENTS.c.commit == one.name))


def _values(
    connection: Connection, one: Side, selection: Selection, metrics: dict[int, Phase]
) -> dict[tuple[int, int, int], list[float]]:
    """The values by series: case, platform and metric by their numbers."""
    found: dict[tuple[int, int, int], list[float]] = defaultdict(list)
    rows: Any = connection.execute(
        select(RUNS.c.case_id, RUNS.c.platform_id, RUN_VALUES.c.metric, RUN_VALUES.c.value)
        .join(RUN_VALUES, RUN_VALUES.c.run == RUNS.c.id)
        .where(_belongs_to(one), RUN_VALUES.c.metric.in_(metrics), *selection.conditions(connection))
    )
    for case, platform, metric, value in rows:
        found[case, platform, metric].append(value)
    return found


def _paired(one: RunDetail, other: RunDetail) -> list[tuple[Phase, str, float | None, float | None]]:
    """Every metric of either run, with its value in each."""
    of_one = {(detail.phase, name): value for detail in one.phases for name, value in detail.values.items()}
    of_other = {(detail.phase, name): value for detail in other.phases for name, value in detail.values.items()}
    keys = dict.fromkeys([*of_one, *of_other])
    return [(phase, name, of_one.get((phase, name)), of_other.get((phase, name))) for phase, name in keys]


def relative_change(before: float | None, after: float | None) -> float | None:
    """(after - before) / before, None where it has none."""
    return None if before is None or after is None or before == 0 else (after - before) / before


def _facts(run: RunDetail) -> Mapping[str, Any]:
    """What of a run may explain a difference in its values."""
    return {
        "case": run.case,
        "platform": run.platform,
        "hosts": ", ".join(run.ranks_on),
        "outcome": run.outcome,
        "iters": str(run.iters),
        "warmup": str(run.warmup),
        **run.environment,
    }
