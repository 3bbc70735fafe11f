"""What is asked of a history's series: which there are, by name, by pattern, and beside one another.

Used by `serieslines` and `sides`; the filters are those of `regress_db.filters`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, exists, select, true

from harness.case import PHASES, Phase
from regress_db.errors import FilterError
from regress_db.filters import CASE_FIELDS, Filter, is_pattern, parse_filter
from regress_db.schema import CASES, PLATFORMS, RUNS
from regress_db.web.views.shared import SeriesName, parts_of

OF_SERIES = frozenset({*CASE_FIELDS, "case", "platform"})
"""The fields by which series, rather than runs, can be chosen."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A case on a platform that has a run: row numbers and keys."""

    case_id: int
    platform_id: int
    case: str
    platform: str


def filters_of(texts: Sequence[str]) -> list[Filter]:
    """Patterns (alternatives) and filters (all must hold) on fields of a series. Raises `FilterError`."""
    filters = [parse_filter(text) for text in texts if not is_pattern(text)]
    patterns = [parse_filter(text) for text in texts if is_pattern(text)]
    if patterns:
        filters.append(Filter("case", "~", tuple(value for one in patterns for value in one.values)))
    for one in filters:
        if one.field not in OF_SERIES:
            raise FilterError(f"series cannot be chosen by {one.field}: use a field of the case, or platform")
    return filters


def accepted(filters: Sequence[Filter], case: str, platform: str) -> bool:
    """Whether all filters accept a case on a platform."""
    if not filters:
        return True
    fields = {**parts_of(case), "case": case, "platform": platform}
    return all(one.field in fields and one.accepts(_typed(one, fields[one.field])) for one in filters)


def _typed(one: Filter, value: str) -> str | int:
    return int(value) if one.kind == "number" else value


def pairs(connection: Connection) -> list[Pair]:
    """Every case and platform with a run, by key: one probe of an index for each pair, whatever the history's size."""
    return [Pair(*row) for row in connection.execute(_existing())]


def named_pair(connection: Connection, case: str, platform: str) -> Pair | None:
    """The pair with these keys."""
    row = connection.execute(_existing().where(CASES.c.key == case, PLATFORMS.c.key == platform)).first()
    return None if row is None else Pair(*row)


def beside(connection: Connection, case: str, free: Collection[str]) -> list[Pair]:
    """The pairs whose case differs from this one in the free fields alone, itself among them."""
    mine = connection.execute(select(*CASES.c).where(CASES.c.key == case)).first()
    if mine is None:
        return []
    same = [CASES.c[name] == getattr(mine, name) for name in CASE_FIELDS if name not in free]
    return [Pair(*row) for row in connection.execute(_existing().where(*same))]


def names_of(found: Sequence[Pair], phases: Sequence[Phase] = PHASES) -> list[SeriesName]:
    """The series of these pairs."""
    return [SeriesName(case=one.case, phase=phase, platform=one.platform) for one in found for phase in phases]


def _existing() -> Select[Any]:
    ran = exists().where(RUNS.c.case_id == CASES.c.id, RUNS.c.platform_id == PLATFORMS.c.id)
    return (
        select(CASES.c.id, PLATFORMS.c.id, CASES.c.key, PLATFORMS.c.key.label("platform"))
        .select_from(CASES.join(PLATFORMS, true()))
        .where(ran)
        .order_by(CASES.c.key, PLATFORMS.c.key)
    )
