"""Which runs a question is about, as one value that the command line fills and SQL reads.

Used by `regress_db.queries`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement, Integer, String, cast, or_

from harness.case import Case
from regress_db.errors import HistoryError
from regress_db.schema import CASES, ENVIRONMENTS, NIGHTS, PLATFORMS, RUNS

FIELDS: tuple[str, ...] = Case.__struct_fields__
"""The names a `Selection.fields` may have."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Runs for which everything given holds.

    cases: patterns, any of which the case's key matches (`*` any text, `?` any character; one with neither matches
    every key that contains it). fields: case field to value or pattern (`{"mode": "ll", "dtype": "fp8*"}`).
    platform: pattern on the platform's key. night: a night's id. commit: its first digits. outcome: `ok`, `failed`,
    ... since (inclusive), until (exclusive): aware times of the run's start. limit: how many; each query says of what.
    """

    cases: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    platform: str | None = None
    night: str | None = None
    commit: str | None = None
    outcome: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    limit: int | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """For a select over runs joined with cases, platforms, environments and (outer) nights.

        Raises `HistoryError` for a field that cases do not have or a limit below 1.
        """
        if self.limit is not None and self.limit < 1:
            raise HistoryError(f"a limit of {self.limit} leaves nothing: give at least 1")
        found: list[ColumnElement[bool]] = []
        if self.cases:
            found.append(or_(*(_matches(CASES.c.key, _anywhere(pattern)) for pattern in self.cases)))
        for name, wanted in self.fields.items():
            if name not in FIELDS:
                raise HistoryError(f"a case has no field {name!r}; it has {', '.join(FIELDS)}")
            column = CASES.c[name]
            found.append(_matches(cast(column, String) if isinstance(column.type, Integer) else column, wanted))
        if self.platform is not None:
            found.append(_matches(PLATFORMS.c.key, _anywhere(self.platform)))
        if self.night is not None:
            found.append(NIGHTS.c.name == self.night)
        if self.commit is not None:
            found.append(ENVIRONMENTS.c.commit.startswith(self.commit, autoescape=True))
        if self.outcome is not None:
            found.append(RUNS.c.outcome == self.outcome)
        if self.since is not None:
            found.append(RUNS.c.started_at >= self.since)
        if self.until is not None:
            found.append(RUNS.c.started_at < self.until)
        return found


EVERYTHING = Selection()


def _anywhere(pattern: str) -> str:
    return pattern if "*" in pattern or "?" in pattern else f"*{pattern}*"


def _matches(column: ColumnElement[str], pattern: str) -> ColumnElement[bool]:
    """`column` fits the pattern, in which `*` is any text and `?` any character."""
    escaped = pattern.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_")
    return column.like(escaped.replace("*", "%").replace("?", "_"), escape="\\")
