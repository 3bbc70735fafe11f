"""A night: what is planned together, so that what did not come back can be named.

Called by `jobs`, at the start and the end of a night; next to read: `regress_db.verdicts`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from sqlalchemy import select, update

from harness.record import PlannedRun
from regress_db import lookup
from regress_db.errors import HistoryError
from regress_db.facts import PLANNED_RUN
from regress_db.history import History
from regress_db.ingest import case_ids, insert_new, shared_id
from regress_db.schema import NIGHTS, NODES, PLANNED, RUN_RANKS, RUNS


def open_night(
    history: History,
    night_id: str,
    plan: str,
    started_at: datetime,
    planned: Sequence[PlannedRun],
    purpose: Callable[[PlannedRun], str] = lambda _: PLANNED_RUN,
) -> None:
    """Enter the night and its planned runs. Doing so again adds the runs that are new and changes nothing else.

    plan: the plan's name. started_at: aware. purpose: what each run is for (see `regress_db.facts`). Raises
    `HistoryError` when the night is there with another plan.
    """
    if not night_id:
        raise HistoryError("a night needs an id")
    with history.write() as connection:
        number = shared_id(connection, NIGHTS, {"name": night_id}, {"plan": plan, "started_at": started_at})
        row = connection.execute(select(NIGHTS.c.plan, NIGHTS.c.started_at).where(NIGHTS.c.id == number)).one()
        if row.started_at is None:
            connection.execute(update(NIGHTS).where(NIGHTS.c.id == number).values(plan=plan, started_at=started_at))
        elif row.plan != plan:
            raise HistoryError(f"night {night_id} is in the history with plan {row.plan!r}, not {plan!r}")
        numbers = case_ids(connection, (one.case for one in planned))
        insert_new(
            connection,
            PLANNED,
            [
                {
                    "night_id": number,
                    "run_id": one.run_id,
                    "case_id": numbers[one.case.key],
                    "repeat": one.repeat,
                    "purpose": purpose(one),
                }
                for one in planned
            ],
        )


def recorded_runs(history: History, night_id: str) -> set[str]:
    """Ids of the night's runs that the history has; none for a night it does not know."""
    with history.read() as connection:
        wanted = select(RUNS.c.run_id).join(NIGHTS, NIGHTS.c.id == RUNS.c.night_id).where(NIGHTS.c.name == night_id)
        return set(connection.execute(wanted).scalars())


def close_night(history: History, night_id: str, finished_at: datetime | None = None) -> None:
    """Note that the night is over (now, unless told). Raises `NotFoundError` for one that was never opened."""
    with history.write() as connection:
        number = lookup.night(connection, night_id).id
        moment = finished_at or datetime.now(UTC)
        connection.execute(update(NIGHTS).where(NIGHTS.c.id == number).values(finished_at=moment))


def judged_before(history: History, night_id: str) -> str | None:
    """The id of the newest judged night of the same plan that started before this one, None where there is none.

    Raises `NotFoundError` for an unknown night.
    """
    with history.read() as connection:
        night = lookup.night(connection, night_id)
        return connection.execute(
            select(NIGHTS.c.name)
            .where(NIGHTS.c.plan == night.plan, NIGHTS.c.judged_at.is_not(None), NIGHTS.c.id != night.id)
            .where(NIGHTS.c.started_at < night.started_at)
            .order_by(*lookup.NEWEST_NIGHT_FIRST)
            .limit(1)
        ).scalar_one_or_none()


def hosts_of_night(history: History, night_id: str) -> tuple[str, ...]:
    """The names of the hosts that the night's runs ran on, sorted. Raises `NotFoundError` for an unknown night."""
    with history.read() as connection:
        night = lookup.night(connection, night_id)
        found = connection.execute(
            select(NODES.c.hostname)
            .join(RUN_RANKS, RUN_RANKS.c.node_id == NODES.c.id)
            .join(RUNS, RUNS.c.id == RUN_RANKS.c.run)
            .where(RUNS.c.night_id == night.id)
            .distinct()
        )
        return tuple(sorted(found.scalars()))
