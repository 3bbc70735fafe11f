"""Finding what a person names: a run by the head of its id, a night by name, a baseline among the live ones.

Used by `regress_db.baselines`, `regress_db.verdicts` and `regress_db.queries`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, select

from regress_db.errors import NotFoundError
from regress_db.schema import BASELINES, CASES, NIGHTS, NODES, RUN_RANKS, RUNS

LATEST = "latest"
NEWEST_NIGHT_FIRST = (NIGHTS.c.started_at.desc().nulls_last(), NIGHTS.c.id.desc())
"""An order of nights. Those that no plan opened here have no start and come last, on either database."""

AFTER_HEX = "g"
"""Sorts after every hexadecimal digit in whatever language a database sorts: ids that start with x are before xg."""

_CANDIDATES = 10
_CHUNK = 500


def plain(connection: Connection, statement: Select[Any]) -> list[tuple[Any, ...]]:
    """Rows as the driver has them, in half the time: for thousands of rows of numbers and texts.

    A time is what `as_utc` takes.
    """
    with connection.execute(statement) as result:
        cursor = result.cursor
        assert cursor is not None
        return list(cursor.fetchall())


def as_utc(stored: str | datetime) -> datetime:
    """A time as a driver has it (`schema.UtcDateTime` stores it without a zone), aware."""
    return (datetime.fromisoformat(stored) if isinstance(stored, str) else stored).replace(tzinfo=UTC)


def run(connection: Connection, prefix: str) -> tuple[int, str]:
    """Row number and run id of the one run whose id starts with `prefix`, or of the newest for `latest`.

    Raises `NotFoundError` for none, or for several, naming them.
    """
    columns = select(RUNS.c.id, RUNS.c.run_id, CASES.c.key).join(CASES, CASES.c.id == RUNS.c.case_id)
    newest = columns.order_by(RUNS.c.started_at.desc(), RUNS.c.id.desc())
    if prefix == LATEST:
        found = connection.execute(newest.limit(1)).all()
    else:
        wanted = prefix.lower()
        found = connection.execute(
            newest.where(RUNS.c.run_id >= wanted, RUNS.c.run_id < wanted + AFTER_HEX).limit(_CANDIDATES + 1)
        ).all()
    if not found or not prefix:
        raise NotFoundError(f"no run has an id that starts with {prefix!r}; `epwatch runs` lists them")
    if len(found) > 1:
        names = ", ".join(f"{row.run_id} ({row.key})" for row in found[:_CANDIDATES])
        more = ", and more" if len(found) > _CANDIDATES else ""
        raise NotFoundError(f"several runs have ids that start with {prefix!r}: {names}{more}")
    return found[0].id, found[0].run_id


def night(connection: Connection, name: str) -> Row[*tuple[Any, ...]]:
    """The row of the night `name`, or of the newest for `latest`. Raises `NotFoundError` naming the newest ones."""
    newest = select(*NIGHTS.c).order_by(*NEWEST_NIGHT_FIRST)
    found = connection.execute(newest if name == LATEST else newest.where(NIGHTS.c.name == name)).first()
    if found is None:
        names = [row.name for row in connection.execute(newest.limit(_CANDIDATES))]
        known = f"the newest are {', '.join(names)}" if names else "there is none yet"
        raise NotFoundError(f"the history has no night {name!r}; {known}")
    return found


def live_baseline(connection: Connection, name: str) -> Row[*tuple[Any, ...]]:
    """The row of the baseline `name` that is not retired. Raises `NotFoundError` naming those there are."""
    live = select(*BASELINES.c).where(BASELINES.c.retired_at.is_(None))
    found = connection.execute(live.where(BASELINES.c.name == name)).first()
    if found is None:
        names = [row.name for row in connection.execute(live.order_by(BASELINES.c.name))]
        known = f"there are {', '.join(names)}" if names else "none has been set (`epwatch baseline set`)"
        raise NotFoundError(f"there is no baseline {name!r}; {known}")
    return found


def chunks(values: Iterable[int]) -> Iterator[Sequence[int]]:
    """`values` in pieces that fit an SQL `IN`."""
    whole = list(values)
    for start in range(0, len(whole), _CHUNK):
        yield whole[start : start + _CHUNK]


def hosts_of(connection: Connection, numbers: Sequence[int]) -> dict[int, dict[str, list[int]]]:
    """Host name to ranks, by run."""
    found: dict[int, dict[str, list[int]]] = {number: defaultdict(list) for number in numbers}
    for piece in chunks(numbers):
        for run, hostname, rank in connection.execute(
            select(RUN_RANKS.c.run, NODES.c.hostname, RUN_RANKS.c.rank)
            .join(NODES, NODES.c.id == RUN_RANKS.c.node_id)
            .where(RUN_RANKS.c.run.in_(piece))
            .order_by(RUN_RANKS.c.rank)
        ):
            found[run][hostname].append(rank)
    return found
