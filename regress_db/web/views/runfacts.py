"""Fills `run`: a run's detail and samples, beside the baseline that its night was judged against."""

from __future__ import annotations

import shlex
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, or_, select

from harness.case import PHASES
from regress_db import definitions, lookup, samples
from regress_db.details import PhaseDetail, RunDetail, load_detail
from regress_db.environments import differences, flatten
from regress_db.history import History
from regress_db.schema import BASELINE_RUNS, METRICS, NIGHTS, RUN_VALUES, RUNS, SAMPLES, VERDICTS
from regress_db.sides import relative_change
from regress_db.web.views.nightruns import environment_contents
from regress_db.web.views.people import notes_of
from regress_db.web.views.run import Check, Failure, Number, RankPlace, RunPhase, RunView
from regress_db.web.views.shared import facts, parts_of
from regress_db.wording import SIGNS

_OK_SIGN = "✓"
_MOST_BASELINE_RUNS = 200
"""The newest so many of a baseline: medians over more say no more."""


def gather(history: History, run: str) -> RunView:
    """The run whose id starts so, or the `latest`. Raises `NotFoundError` for none, or for several, naming them."""
    with history.read() as connection:
        number, _ = lookup.run(connection, run)
        detail = load_detail(connection, number)
        packed = connection.execute(select(SAMPLES.c.phase, SAMPLES.c.packed).where(SAMPLES.c.run == number)).all()
        of_series = connection.execute(
            select(RUNS.c.case_id, RUNS.c.platform_id, RUNS.c.night_id, RUNS.c.started_at).where(RUNS.c.id == number)
        ).one()
        judged = _judged(connection, of_series.night_id, of_series.case_id, of_series.platform_id)
        base = _Baseline.of(connection, of_series.night_id, of_series.case_id, of_series.platform_id, judged)
        neighbours = [
            connection.execute(
                select(RUNS.c.run_id)
                .where(
                    RUNS.c.case_id == of_series.case_id,
                    RUNS.c.platform_id == of_series.platform_id,
                    RUNS.c.started_at > of_series.started_at if later else RUNS.c.started_at < of_series.started_at,
                )
                .order_by(RUNS.c.started_at.asc() if later else RUNS.c.started_at.desc(), RUNS.c.id)
                .limit(1)
            ).scalar()
            for later in (False, True)
        ]
    samples_us = {phase: samples.unpack(blob) for phase, blob in packed}
    return RunView(
        run_id=detail.run_id,
        case=detail.case,
        parts=parts_of(detail.case),
        platform=detail.platform,
        night=detail.night,
        repeat=detail.repeat,
        started_at=detail.started_at,
        ended_at=detail.ended_at,
        outcome=detail.outcome,
        sign=SIGNS.get(detail.outcome, _OK_SIGN),
        warmup=detail.warmup,
        iters=detail.iters,
        launcher=detail.launcher or "",
        attempt=detail.attempt,
        scheduler_job=detail.scheduler_job or "",
        failure=_failure(detail),
        checks=[Check(when=one.when, passed=one.passed, rows=one.rows, detail=one.detail) for one in detail.checks],
        hosts=sorted(detail.ranks_on),
        ranks=[
            RankPlace(rank=one.rank, host=one.node, cpus=one.cpus or "", numa=one.numa or "") for one in detail.ranks
        ],
        conditions=dict(detail.conditions),
        run_notes=list(detail.notes),
        notes=notes_of(history, run=detail.run_id),
        environment_digest=detail.environment_digest,
        environment=flatten(detail.environment),
        compared_with=base.newest,
        baseline_words=base.words,
        differences=facts(differences(base.environment, detail.environment)) if base.newest else [],
        phases=[
            _phase(one, samples_us.get(one.phase, []), base, judged.get(one.phase))
            for one in sorted(detail.phases, key=lambda one: PHASES.index(one.phase))
        ],
        command=f"epwatch run {shlex.quote(detail.case)} --iters {detail.iters} --warmup {detail.warmup}",
        previous=neighbours[0] or "",
        next=neighbours[1] or "",
    )


@dataclass(frozen=True, slots=True)
class _Judged:
    """What was said of the run's series on its night, and against what."""

    verdict: str
    sentence: str
    first: str | None
    last: str | None
    against: str | None
    baseline_id: int | None


@dataclass(frozen=True, slots=True)
class _Baseline:
    """What the run is compared with. newest: the id of its newest run, "" where there is none.

    medians: over its runs, by phase and metric. environment: of the newest run.
    """

    newest: str
    words: str
    medians: Mapping[tuple[str, str], float]
    environment: Mapping[str, object]

    @classmethod
    def of(
        cls, connection: Connection, night: int | None, case: int, platform: int, judged: Mapping[str, _Judged]
    ) -> _Baseline:
        """What the runs of this series on this night were compared with; none of them are in it."""
        said = next(iter(judged.values()), None)
        if said is None or said.against is None:
            return _NO_BASELINE
        members = select(RUNS.c.id, RUNS.c.run_id, RUNS.c.environment_id).where(
            RUNS.c.case_id == case,
            RUNS.c.platform_id == platform,
            RUNS.c.outcome == "ok",
            or_(RUNS.c.night_id.is_(None), RUNS.c.night_id != night),
        )
        words = f"baseline {said.against}"
        if said.baseline_id is not None:
            of_baseline = select(BASELINE_RUNS.c.run).where(BASELINE_RUNS.c.baseline_id == said.baseline_id)
            members = members.where(RUNS.c.id.in_(of_baseline))
        else:
            words = "the series' own past"
            ends = connection.execute(select(RUNS.c.started_at).where(RUNS.c.run_id.in_([said.first, said.last])))
            starts = sorted(ends.scalars())
            if not starts:
                return _NO_BASELINE
            members = members.where(RUNS.c.started_at.between(starts[0], starts[-1]))
        newest_first = members.order_by(RUNS.c.started_at.desc(), RUNS.c.id.desc()).limit(_MOST_BASELINE_RUNS)
        rows = connection.execute(newest_first).all()
        if not rows:
            return _NO_BASELINE
        values: dict[tuple[str, str], list[float]] = defaultdict(list)
        for phase, name, value in connection.execute(
            select(METRICS.c.phase, METRICS.c.name, RUN_VALUES.c.value)
            .join(METRICS, METRICS.c.id == RUN_VALUES.c.metric)
            .where(RUN_VALUES.c.run.in_([row.id for row in rows]))
        ):
            values[phase, name].append(value)
        environment = environment_contents(connection, [rows[0].environment_id])[rows[0].environment_id]
        medians = {key: statistics.median(held) for key, held in values.items()}
        return cls(rows[0].run_id, f"{words}, {len(rows)} runs", medians, environment)


_NO_BASELINE = _Baseline("", "", {}, {})


def _judged(connection: Connection, night: int | None, case: int, platform: int) -> dict[str, _Judged]:
    """By phase."""
    if night is None:
        return {}
    rows = connection.execute(
        select(
            VERDICTS.c.phase,
            VERDICTS.c.verdict,
            VERDICTS.c.sentence,
            VERDICTS.c.baseline_first,
            VERDICTS.c.baseline_last,
            NIGHTS.c.against,
            NIGHTS.c.baseline_id,
        )
        .join(NIGHTS, NIGHTS.c.id == VERDICTS.c.night_id)
        .where(VERDICTS.c.night_id == night, VERDICTS.c.case_id == case, VERDICTS.c.platform_id == platform)
    )
    return {phase: _Judged(*rest) for phase, *rest in rows}


def _failure(detail: RunDetail) -> Failure | None:
    found = detail.failure
    if found is None:
        return None
    return Failure(step=found.step, failure=found.kind, message=found.message, rank=found.rank, log_tail=found.log_tail)


def _phase(
    detail: PhaseDetail, samples_us: Sequence[Sequence[float]], base: _Baseline, judged: _Judged | None
) -> RunPhase:
    known = list(definitions.DEFINITIONS)
    names = sorted(detail.values, key=lambda name: (known.index(name) if name in known else len(known), name))
    return RunPhase(
        phase=detail.phase,
        headline=detail.headline,
        iterations=detail.iterations,
        leading_dropped=detail.leading_dropped,
        slowest_rank=detail.slowest_rank,
        numbers=[_number(name, detail.values[name], base.medians.get((detail.phase, name))) for name in names],
        rank_p50_us=list(detail.rank_p50_us),
        samples_us=[list(of_rank) for of_rank in samples_us],
        verdict=judged.verdict if judged else "",
        sign=SIGNS.get(judged.verdict, "") if judged else "",
        sentence=judged.sentence if judged else "",
    )


def _number(name: str, value: float, baseline: float | None) -> Number:
    meaning = definitions.of(name)
    return Number(
        name=name,
        words=meaning.words,
        definition=meaning.definition,
        unit=meaning.unit,
        value=value,
        baseline=baseline,
        change=relative_change(baseline, value),
    )
