"""View 3: one run: every number with its definition, its samples by rank and iteration, where it ran, what differs from
its baseline, how to repeat it. The structs; next to read: `runfacts`, which fills them.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from harness.case import Phase
from regress_db.web.views.shared import Answer, Fact, NoteLine


class Number(msgspec.Struct, frozen=True, kw_only=True):
    """One number of a phase. unit: "" for a ratio. baseline: the median of the baseline's runs, None where there is
    none; change: relative to it.
    """

    name: str
    words: str
    definition: str
    unit: str
    value: float
    baseline: float | None
    change: float | None


class RunPhase(msgspec.Struct, frozen=True, kw_only=True):
    """One phase. samples_us: [ranks][iterations], in order of time; the first leading_dropped iterations are left out
    of the statistics. rank_p50_us: each rank's median. headline: the byte count that bandwidth is of. verdict,
    sentence: what was said of the series on the run's night, "" where it was not judged.
    """

    phase: Phase
    headline: str
    iterations: int
    leading_dropped: int
    slowest_rank: int
    numbers: list[Number]
    rank_p50_us: list[float]
    samples_us: list[list[float]]
    verdict: str
    sign: str
    sentence: str


class RankPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where one rank ran; cpus, numa: "" where not known."""

    rank: int
    host: str
    cpus: str
    numa: str


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why the run gave no number. rank: -1 for none in particular."""

    step: str
    failure: str
    message: str
    rank: int
    log_tail: str


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One pass of the oracle."""

    when: str
    passed: bool
    rows: int
    detail: str


class RunView(Answer, frozen=True, kw_only=True, tag="run"):
    """One run. night: "" for none. parts: the fields of its key. hosts: in order. ranks: where each ran.

    compared_with: the baseline's newest run, whose environment `differences` starts from, "" where there is none;
    baseline_words: which baseline that is. conditions: clocks, temperatures and the like, by name. run_notes: what the
    run said of itself; notes: what people noted of it. environment: flat. command: what repeats the run exactly.
    previous, next: run ids of the same case and platform before and after it, "" for none.
    """

    run_id: str
    case: str
    parts: dict[str, str]
    platform: str
    night: str
    repeat: int
    started_at: datetime
    ended_at: datetime
    outcome: str
    sign: str
    warmup: int
    iters: int
    launcher: str
    attempt: int | None
    scheduler_job: str
    failure: Failure | None
    checks: list[Check]
    hosts: list[str]
    ranks: list[RankPlace]
    conditions: dict[str, float]
    run_notes: list[str]
    notes: list[NoteLine]
    environment_digest: str
    environment: dict[str, str]
    compared_with: str
    baseline_words: str
    differences: list[Fact]
    phases: list[RunPhase]
    command: str
    previous: str
    next: str
