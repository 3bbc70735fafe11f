"""What is judged and what it is compared with: the runs of a night as series, each with what is known of its past.

Called by `regress_db.verdicts`, within its transaction. Next to read: `regress_db.automatic` (the past of a series
that no named baseline speaks for).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select

from harness.case import PHASES, Case, Phase
from regress_db.automatic import pasts
from regress_db.facts import CONFIRMATION, RunFacts, facts_of_runs
from regress_db.metrics import RUN_VALUE_METRIC
from regress_db.schema import BASELINE_RUNS

if TYPE_CHECKING:
    from regress_db.method.comparing import Runs


@dataclass(slots=True)
class Known:
    """What one series is compared with: the runs of its level, of earlier levels, and since when the level holds."""

    level: list[RunFacts] = field(default_factory=list)
    earlier: list[list[RunFacts]] = field(default_factory=list)
    since: str = ""


Pasts = Mapping[tuple[str, str, str], Known]
"""By case, platform and phase."""


def named_pasts(connection: Connection, base: Any, facts: Sequence[RunFacts]) -> Pasts:
    """The runs of a baseline, less those that are judged."""
    if base is None:
        return {}
    own = {one.number for one in facts}
    numbers = connection.execute(select(BASELINE_RUNS.c.run).where(BASELINE_RUNS.c.baseline_id == base.id)).scalars()
    known: dict[tuple[str, str, str], Known] = defaultdict(Known)
    for member in facts_of_runs(connection, sorted(number for number in numbers if number not in own)):
        for phase in PHASES:
            if (phase, RUN_VALUE_METRIC) in member.values:
                known[member.case, member.platform, phase].level.append(member)
    return known


def automatic_pasts(connection: Connection, night: Any, facts: Sequence[RunFacts]) -> Pasts:
    """Each series' own past."""
    found = pasts(connection, night, {(one.case, one.platform) for one in facts})
    numbers = {number for past in found.values() for runs in (past.level, *past.earlier) for number in runs}
    by_number = {one.number: one for one in facts_of_runs(connection, sorted(numbers), hosts_too=False)}
    return {
        key: Known(
            level=[by_number[number] for number in past.level],
            earlier=[[by_number[number] for number in runs] for runs in past.earlier],
            since=past.since,
        )
        for key, past in found.items()
    }


@dataclass(slots=True)
class Series:
    """One series on its way to a verdict."""

    case: str
    platform: str
    phase: Phase
    runs: list[RunFacts]
    known: Known
    floor: float

    @property
    def key(self) -> tuple[str, str, str]:
        """Case, platform, phase."""
        return self.case, self.platform, self.phase

    @property
    def backend(self) -> str:
        """The case's."""
        return Case.parse(self.case).backend

    @property
    def family(self) -> str:
        """What a commit would move alike, in words."""
        return f"{self.backend} {Case.parse(self.case).mode} {self.phase}"

    @property
    def new(self) -> list[RunFacts]:
        """The runs with a number."""
        return [run for run in self.runs if (self.phase, RUN_VALUE_METRIC) in run.values]

    def runs_to_come(self, confirmations: int) -> int:
        """How many more runs a candidate would still get."""
        return max(0, confirmations - sum(run.purpose == CONFIRMATION for run in self.new))

    def values(self, runs: Iterable[RunFacts]) -> list[float]:
        """The run values of these runs, in µs."""
        return [run.values[self.phase, RUN_VALUE_METRIC] for run in runs]

    def compared(self, runs: Sequence[RunFacts], removed: Sequence[float] | None = None) -> Runs:
        """These runs as the method takes them. removed: log change to take out of each run, None for nothing."""
        from regress_db.method.comparing import Runs

        values = self.values(runs)
        if removed is not None:
            values = [value * math.exp(-change) for value, change in zip(values, removed, strict=True)]
        return Runs(tuple(values), tuple(run.night for run in runs))


def groups(facts: Sequence[RunFacts]) -> dict[tuple[str, str], list[RunFacts]]:
    """Runs by case and platform.

    A run without a number counts against its platform's group; where that has no ok run (the record may have been
    written by whoever found the job dead), against every group of its case on that cluster; a missing run, of which
    nothing is known, against every group of its case.
    """
    groups: dict[tuple[str, str], list[RunFacts]] = {}
    for one in facts:
        if one.outcome == "ok":
            groups.setdefault((one.case, one.platform), []).append(one)
    clusters = {key: runs[0].cluster for key, runs in groups.items()}
    for one in facts:
        if one.outcome == "ok":
            continue
        home = (one.case, one.platform)
        homes = [home]
        if home not in clusters:
            alike = [key for key in clusters if key[0] == one.case and one.cluster in ("", clusters[key])]
            homes = alike or homes
        for key in homes:
            groups.setdefault(key, []).append(one)
    return groups
