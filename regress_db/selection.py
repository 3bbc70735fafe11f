"""Which runs a question is about, as one value that the command line and notebooks fill and SQL reads.

The shared tables (cases, platforms, environments, nights, nodes) are small, so what is wanted of them is found first;
the select over runs is then left with numbers that its indexes know. Used by `regress_db.queries` and its neighbours;
next to read: `regress_db.filters`, the language.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    String,
    and_,
    exists,
    literal,
    not_,
    or_,
    select,
    type_coerce,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from regress_db.errors import FilterError
from regress_db.filters import (
    CASE_FIELDS,
    MOST_ALTERNATIVES,
    ORDERS,
    Filter,
    has_wildcard,
    is_pattern,
    parse_filter,
    parse_moment,
)
from regress_db.schema import CASES, ENVIRONMENTS, NIGHTS, NODES, PLATFORMS, RUN_RANKS, RUNS

_COLUMNS: dict[str, ColumnElement[Any]] = {
    "case": CASES.c.key,
    **{name: CASES.c[name] for name in CASE_FIELDS},
    "platform": PLATFORMS.c.key,
    **{name: PLATFORMS.c[name] for name in ("device_model", "devices_per_node", "interconnect", "cluster")},
    "node": NODES.c.hostname,
    "night": NIGHTS.c.name,
    "plan": NIGHTS.c.plan,
    "commit": ENVIRONMENTS.c.commit,
    "environment": ENVIRONMENTS.c.digest,
    "run": RUNS.c.run_id,
    "repeat": RUNS.c.repeat,
    "outcome": RUNS.c.outcome,
}
_REFERENCES: dict[FromClause, ColumnElement[Any]] = {
    CASES: RUNS.c.case_id,
    PLATFORMS: RUNS.c.platform_id,
    ENVIRONMENTS: RUNS.c.environment_id,
    NIGHTS: RUNS.c.night_id,
}
_FEW = 500
"""Up to so many numbers are written into a select; more stay a select of their own."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Runs for which everything given holds. `Selection.of` makes one from texts.

    filters: all of them must hold; see `regress_db.filters`. night: the id of one night, exactly. since (inclusive),
    until (exclusive): aware times of the run's start. limit: how many, at least 1; each query says of what.
    """

    filters: tuple[Filter, ...] = ()
    night: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    limit: int | None = None

    @classmethod
    def of(
        cls,
        *texts: str,
        since: str | datetime | None = None,
        until: str | datetime | None = None,
        at: str | None = None,
        limit: int | None = None,
    ) -> Self:
        """The selection of filters and patterns as they are written on the command line.

        Patterns are alternatives, filters must all hold. since, until: times, or texts for `parse_moment`. at: the head
        of a commit. Raises `FilterError` for what cannot be understood, or can choose nothing (`since` after `until`, a
        limit below 1).
        """
        patterns = [parse_filter(text) for text in texts if is_pattern(text)]
        filters = [parse_filter(text) for text in texts if not is_pattern(text)]
        if max(len(patterns), len(filters)) > MOST_ALTERNATIVES:
            raise FilterError(
                f"{len(texts)} patterns and filters are too many: give at most {MOST_ALTERNATIVES} of each"
            )
        if patterns:
            filters.insert(0, Filter("case", "~", tuple(value for one in patterns for value in one.values)))
        if at is not None:
            if not at:
                raise FilterError("at which commit? Give the first digits of its hash")
            filters.append(Filter("commit", "=", (at,)))
        first, last = (parse_moment(time) if isinstance(time, str) else time for time in (since, until))
        if first is not None and last is not None and first >= last:
            raise FilterError(f"no run starts from {first:%Y-%m-%d %H:%M} on and before {last:%Y-%m-%d %H:%M}")
        if limit is not None and limit < 1:
            raise FilterError(f"a limit of {limit} leaves nothing: give at least 1")
        return cls(filters=tuple(filters), since=first, until=last, limit=limit)

    def conditions(self, connection: Connection) -> list[ColumnElement[bool]]:
        """What a select over runs alone must satisfy; `connection` finds the numbers of shared rows."""
        found: list[ColumnElement[bool]] = []
        shared: dict[FromClause, list[Filter]] = defaultdict(list)
        for one in self.filters:
            table = _COLUMNS[one.field].table
            if table is RUNS:
                found.append(_holds(one))
            elif table is NODES:
                found.append(_ran_on(connection, one))
            else:
                shared[table].append(one)
        for table, filters in shared.items():
            refers = _REFERENCES[table]
            among = refers.in_(_numbers(connection, select(table.c.id).where(*map(_holds, filters))))
            nowhere = table is NIGHTS and all(one.accepts("") for one in filters)
            found.append(or_(refers.is_(None), among) if nowhere else among)
        if self.night is not None:
            wanted = select(NIGHTS.c.id).where(NIGHTS.c.name == self.night)
            found.append(RUNS.c.night_id.in_(_numbers(connection, wanted)))
        if self.since is not None:
            found.append(RUNS.c.started_at >= self.since)
        if self.until is not None:
            found.append(RUNS.c.started_at < self.until)
        return found


EVERYTHING = Selection()


class _Small(FunctionElement[str]):
    """A text in small letters; those outside ASCII stay as they are, on either database."""

    type = String()
    inherit_cache = True


@compiles(_Small)
def _small(element: _Small, compiler: SQLCompiler, **options: Any) -> str:
    return f"lower({compiler.process(element.clauses, **options)})"


@compiles(_Small, "postgresql")
def _small_on_postgresql(element: _Small, compiler: SQLCompiler, **options: Any) -> str:
    return f'lower({compiler.process(element.clauses, **options)} COLLATE "C")'


def _numbers(connection: Connection, wanted: Any) -> Any:
    """What `wanted` selects: the numbers themselves where they are few, else the select."""
    few: Sequence[int] = connection.execute(wanted.limit(_FEW + 1)).scalars().all()
    return wanted if len(few) > _FEW else few


def _holds(one: Filter) -> ColumnElement[bool]:
    """The filter on its own column."""
    column = _COLUMNS[one.field]
    if one.kind == "number":
        number = type_coerce(column, BigInteger)
        if one.operator in ORDERS:
            return ORDERS[one.operator](number, literal(one.values[0], BigInteger))  # type: ignore[arg-type, return-value]
        return number.not_in(one.values) if one.operator == "!=" else number.in_(one.values)
    text = _Small(column)
    patterns = [one.pattern(str(value)) for value in one.values]
    whole = [pattern for pattern in patterns if not has_wildcard(pattern)]
    alternatives = [text.like(_as_like(pattern), escape="\\") for pattern in patterns if has_wildcard(pattern)]
    if whole:
        alternatives.append(text.in_(whole))
    found = or_(*alternatives)
    return not_(found) if one.operator == "!=" else found


def _ran_on(connection: Connection, one: Filter) -> ColumnElement[bool]:
    """Some rank of the run was on such a node; for `!=`, none was."""
    positive = Filter(one.field, "=", one.values) if one.operator == "!=" else one
    nodes = _numbers(connection, select(NODES.c.id).where(_holds(positive)))
    ran = exists().where(and_(RUN_RANKS.c.run == RUNS.c.id, RUN_RANKS.c.node_id.in_(nodes)))
    return ~ran if one.operator == "!=" else ran


def _as_like(pattern: str) -> str:
    escaped = pattern.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_")
    return escaped.replace("*", "%").replace("?", "_")
