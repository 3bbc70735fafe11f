"""What is told of a night's runs: which gave no number and why, where they ran, in which environment.

Called by `night`; next to read: `regress_db.environments`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Text, cast, func, select

from regress_db import lookup
from regress_db.environments import Difference, differences, flatten
from regress_db.nightverdict import NO_NUMBER, Verdict
from regress_db.schema import (
    BASELINE_RUNS,
    CASES,
    ENVIRONMENTS,
    FAILURES,
    NODES,
    PLANNED,
    RUN_RANKS,
    RUNS,
    VERDICTS,
)
from regress_db.web.views.shared import Fact, facts
from regress_db.wording import SIGNS


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """One planned run that gave no number. All but the first four are empty for one that is missing."""

    run_id: str
    case: str
    outcome: Verdict
    sign: str
    hosts: list[str] = []
    step: str = ""
    failure: str = ""
    message: str = ""
    rank: int = -1
    log_tail: str = ""


@dataclass(frozen=True, slots=True)
class NightRuns:
    """The runs of a night; fields as in `NightView`."""

    ok_runs: int
    troubles: list[Trouble]
    hosts: list[str]
    environment: dict[str, str]
    others: int
    changed: list[Fact]
    within: list[Fact]
    notes: list[str]


def runs_of_night(connection: Connection, night: Row[Any]) -> NightRuns:
    """What there is to tell of the runs of the night that this is the row of."""
    of_night = RUNS.c.night_id == night.id
    outcomes: Counter[str] = Counter()
    environments: Counter[int] = Counter()
    for outcome, environment, count in connection.execute(
        select(RUNS.c.outcome, RUNS.c.environment_id, func.count())
        .where(of_night)
        .group_by(RUNS.c.outcome, RUNS.c.environment_id)
    ):
        outcomes[outcome] += count
        environments[environment] += count
    before = _baseline_environments(connection, night)
    usual = environments.most_common(1)[0][0] if environments else None
    usual_before = before.most_common(1)[0][0] if before else None
    contents = environment_contents(connection, [*environments, *([usual_before] if usual_before else [])])
    mine = contents[usual] if usual is not None else {}
    notes = connection.execute(select(cast(RUNS.c.notes, Text)).where(of_night).distinct()).scalars()
    return NightRuns(
        ok_runs=outcomes["ok"],
        troubles=_troubles(connection, night.id),
        hosts=_hosts(connection, of_night),
        environment=flatten(mine),
        others=sum(environments.values()) - (environments[usual] if usual is not None else 0),
        changed=facts(differences(contents[usual_before], mine)) if usual_before is not None and mine else [],
        within=facts(_within(mine, [contents[number] for number in environments if number != usual])),
        notes=sorted({note for text in notes for note in msgspec.json.decode(text, type=list[str])}),
    )


def environment_contents(connection: Connection, numbers: Collection[int]) -> dict[int, dict[str, Any]]:
    """The environments with these row numbers: in JSON of the record, decoded faster than the database's type does."""
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    found: dict[int, dict[str, Any]] = {}
    for piece in lookup.chunks(numbers):
        wanted = select(ENVIRONMENTS.c.id, cast(ENVIRONMENTS.c.content, Text)).where(ENVIRONMENTS.c.id.in_(piece))
        found |= {number: decode(text) for number, text in connection.execute(wanted)}
    return found


def _within(usual: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> list[Difference]:
    return list(dict.fromkeys(one for other in others for one in differences(usual, other)))


def _baseline_environments(connection: Connection, night: Row[Any]) -> Counter[int]:
    """How many runs of what the night was judged against had which environment: of a series' own past, the newest."""
    if night.baseline_id is not None:
        members = RUNS.c.id.in_(select(BASELINE_RUNS.c.run).where(BASELINE_RUNS.c.baseline_id == night.baseline_id))
    else:
        newest = select(VERDICTS.c.baseline_last).where(VERDICTS.c.night_id == night.id)
        members = RUNS.c.run_id.in_(newest.where(VERDICTS.c.baseline_last.is_not(None)).distinct())
    counted = select(RUNS.c.environment_id, func.count()).where(members).group_by(RUNS.c.environment_id)
    return Counter({row[0]: row[1] for row in connection.execute(counted)})


def _hosts(connection: Connection, which: ColumnElement[bool]) -> list[str]:
    ran = select(RUN_RANKS.c.node_id).join(RUNS, RUNS.c.id == RUN_RANKS.c.run).where(which)
    return sorted(connection.execute(select(NODES.c.hostname).where(NODES.c.id.in_(ran))).scalars())


def _troubles(connection: Connection, night: int) -> list[Trouble]:
    rows = connection.execute(
        select(RUNS.c.id, RUNS.c.run_id, CASES.c.key, RUNS.c.outcome, *FAILURES.c)
        .join(CASES, CASES.c.id == RUNS.c.case_id)
        .outerjoin(FAILURES, FAILURES.c.run == RUNS.c.id)
        .where(RUNS.c.night_id == night, RUNS.c.outcome.in_(NO_NUMBER))
    ).all()
    hosts = hosts_of_runs(connection, [row.id for row in rows])
    found = [
        Trouble(
            run_id=row.run_id,
            case=row.key,
            outcome=row.outcome,
            sign=SIGNS[row.outcome],
            hosts=hosts[row.id],
            step=row.step or "",
            failure=row.kind or "",
            message=row.message or "",
            rank=-1 if row.rank is None else row.rank,
            log_tail=row.log_tail or "",
        )
        for row in rows
    ]
    missing = connection.execute(
        select(PLANNED.c.run_id, CASES.c.key)
        .join(CASES, CASES.c.id == PLANNED.c.case_id)
        .outerjoin(RUNS, RUNS.c.run_id == PLANNED.c.run_id)
        .where(PLANNED.c.night_id == night, RUNS.c.id.is_(None))
    )
    found += [Trouble(run_id=row.run_id, case=row.key, outcome="missing", sign=SIGNS["missing"]) for row in missing]
    return sorted(found, key=lambda one: (NO_NUMBER.index(one.outcome), one.case, one.run_id))


def hosts_of_runs(connection: Connection, numbers: Collection[int]) -> dict[int, list[str]]:
    """The hosts of each run's ranks, by row number, in order."""
    found: dict[int, list[str]] = defaultdict(list)
    for piece in lookup.chunks(numbers):
        wanted = (
            select(RUN_RANKS.c.run, NODES.c.hostname)
            .join(NODES, NODES.c.id == RUN_RANKS.c.node_id)
            .where(RUN_RANKS.c.run.in_(piece))
            .distinct()
            .order_by(NODES.c.hostname)
        )
        for run, hostname in connection.execute(wanted):
            found[run].append(hostname)
    return found
