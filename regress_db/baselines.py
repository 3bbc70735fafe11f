"""Baselines: named sets of runs against which others are judged. Set and retired with a reason, never edited.

Called by the command line and by `jobs`; next to read: `regress_db.verdicts`, which uses them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Connection, func, insert, select, update

from regress_db import lookup
from regress_db.errors import BaselineError
from regress_db.history import History
from regress_db.schema import BASELINE_RUNS, BASELINES, CASES, PLATFORMS, RUNS
from regress_db.wording import AUTO

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True, slots=True)
class BaselineSeries:
    """What a baseline holds of one case on one platform: the ids of its runs, oldest first."""

    case: str
    platform: str
    run_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Baseline:
    """A baseline, as it stands. Times are UTC; `retired_*` are None while it lives."""

    name: str
    set_by: str
    set_at: datetime
    reason: str
    retired_by: str | None
    retired_at: datetime | None
    retired_reason: str | None
    series: tuple[BaselineSeries, ...]

    @property
    def runs(self) -> int:
        """How many runs it holds."""
        return sum(len(series.run_ids) for series in self.series)


def set_baseline(
    history: History,
    name: str,
    *,
    who: str,
    why: str,
    night: str | None = None,
    runs: Sequence[str] | None = None,
    latest: int | None = None,
    replace: bool = False,
    when: datetime | None = None,
) -> Baseline:
    """Set a baseline from a night's ok runs, from run ids (or heads of ids), or from each series' latest ok runs.

    Exactly one of `night`, `runs` and `latest` is given. replace: retire a live one of that name first, for the same
    reason. Raises `BaselineError` for a name in use, a run that is not ok, no runs at all, or no who or why.
    """
    _say_who_and_why(who, why)
    if not _NAME.fullmatch(name):
        raise BaselineError(f"{name!r} is not a name for a baseline: use letters, digits and _ . + -")
    if name == AUTO:
        raise BaselineError(f"{AUTO!r} stands for each series' own past: call the baseline otherwise")
    if sum(choice is not None for choice in (night, runs, latest)) != 1:
        raise BaselineError("say which runs make the baseline: those of a night, a list of runs, or the latest N")
    moment = when or datetime.now(UTC)
    with history.write() as connection:
        chosen = _choose(connection, night, runs, latest)
        live = connection.execute(
            select(BASELINES.c.id).where(BASELINES.c.name == name, BASELINES.c.retired_at.is_(None))
        ).scalar()
        if live is not None:
            if not replace:
                raise BaselineError(f"there is a baseline {name!r} already: retire it first, or replace it")
            _retire(connection, live, who, f"replaced: {why}", moment)
        number = connection.execute(
            insert(BASELINES).returning(BASELINES.c.id),
            {"name": name, "set_by": who, "set_at": moment, "reason": why},
        ).scalar_one()
        connection.execute(insert(BASELINE_RUNS), [{"baseline_id": number, "run": run} for run in chosen])
        return load_baselines(connection, BASELINES.c.id == number)[0]


def retire_baseline(history: History, name: str, *, who: str, why: str, when: datetime | None = None) -> None:
    """Retire the live baseline `name`; it stays in the history. Raises `NotFoundError` where there is none."""
    _say_who_and_why(who, why)
    with history.write() as connection:
        number = lookup.live_baseline(connection, name).id
        _retire(connection, number, who, why, when or datetime.now(UTC))


def list_baselines(history: History, *, retired: bool = False) -> list[Baseline]:
    """The live baselines by name; with `retired`, the others too, newest first within a name."""
    with history.read() as connection:
        return load_baselines(connection, None if retired else BASELINES.c.retired_at.is_(None))


def show_baseline(history: History, name: str) -> Baseline:
    """The live baseline `name`. Raises `NotFoundError` where there is none."""
    with history.read() as connection:
        return load_baselines(connection, BASELINES.c.id == lookup.live_baseline(connection, name).id)[0]


def _say_who_and_why(who: str, why: str) -> None:
    if not who.strip() or not why.strip():
        raise BaselineError("say who sets or retires the baseline, and why")


def _retire(connection: Connection, number: int, who: str, why: str, moment: datetime) -> None:
    connection.execute(
        update(BASELINES).where(BASELINES.c.id == number).values(retired_by=who, retired_at=moment, retired_reason=why)
    )


def _choose(connection: Connection, night: str | None, runs: Sequence[str] | None, latest: int | None) -> list[int]:
    """Row numbers of the runs that are to be the baseline."""
    if runs is not None:
        chosen = sorted({lookup.run(connection, prefix)[0] for prefix in runs})
        for piece in lookup.chunks(chosen):
            for row in connection.execute(
                select(RUNS.c.run_id, RUNS.c.outcome).where(RUNS.c.id.in_(piece), RUNS.c.outcome != "ok")
            ):
                raise BaselineError(f"run {row.run_id} is {row.outcome}: only runs that are ok can be a baseline")
        if not chosen:
            raise BaselineError("a baseline needs at least one run")
        return chosen
    if latest is not None:
        if latest < 1:
            raise BaselineError(f"a baseline of the latest {latest} runs is empty: say at least 1")
        age = func.row_number().over(
            partition_by=(RUNS.c.case_id, RUNS.c.platform_id), order_by=(RUNS.c.started_at.desc(), RUNS.c.id.desc())
        )
        aged = select(RUNS.c.id, age.label("age")).where(RUNS.c.outcome == "ok").subquery()
        wanted = select(aged.c.id).where(aged.c.age <= latest)
        none = "the history has no run that is ok"
    else:
        of_night = lookup.night(connection, night or "")
        wanted = select(RUNS.c.id).where(RUNS.c.night_id == of_night.id, RUNS.c.outcome == "ok")
        none = f"night {of_night.name} has no run that is ok"
    chosen = list(connection.execute(wanted).scalars())
    if not chosen:
        raise BaselineError(f"{none}: there is nothing to make a baseline of")
    return chosen


def load_baselines(connection: Connection, which: ColumnElement[bool] | None) -> list[Baseline]:
    """The baselines for which `which` holds, by name; within a name the newest first."""
    wanted = select(*BASELINES.c).order_by(BASELINES.c.name, BASELINES.c.id.desc())
    rows = connection.execute(wanted if which is None else wanted.where(which)).all()
    members: dict[int, dict[tuple[str, str], list[str]]] = {row.id: defaultdict(list) for row in rows}
    runs = (
        select(BASELINE_RUNS.c.baseline_id, CASES.c.key, PLATFORMS.c.key.label("platform"), RUNS.c.run_id)
        .join(RUNS, RUNS.c.id == BASELINE_RUNS.c.run)
        .join(CASES, CASES.c.id == RUNS.c.case_id)
        .join(PLATFORMS, PLATFORMS.c.id == RUNS.c.platform_id)
        .order_by(CASES.c.key, PLATFORMS.c.key, RUNS.c.started_at, RUNS.c.id)
    )
    for piece in lookup.chunks(members):
        for run in connection.execute(runs.where(BASELINE_RUNS.c.baseline_id.in_(piece))):
            members[run.baseline_id][run.key, run.platform].append(run.run_id)
    return [
        Baseline(
            name=row.name,
            set_by=row.set_by,
            set_at=row.set_at,
            reason=row.reason,
            retired_by=row.retired_by,
            retired_at=row.retired_at,
            retired_reason=row.retired_reason,
            series=tuple(
                BaselineSeries(case, platform, tuple(ids)) for (case, platform), ids in members[row.id].items()
            ),
        )
        for row in rows
    ]
