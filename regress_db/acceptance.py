"""Whether a record may enter the history: a record that contradicts itself goes to quarantine, with the reason.

Pure. Called by `regress_db.ingest`, in part by `regress_db.upkeep_verify`; next to read: `harness.record`, whose
promises are checked here.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from harness.case import Case
from harness.errors import CaseError
from harness.record import PhaseResult, Record
from regress_db.metrics import SCALARS

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_LARGEST = 2**63 - 1
_TOLERANCE = 1e-3
"""Relative: statistics and samples may be rounded apart, never tell different stories."""


def parse_time(text: str) -> datetime:
    """The UTC time of an RFC 3339 string. `ValueError` for anything else, or for a time without a zone."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"time {text!r} has no zone")
    return moment.astimezone(UTC)


def told_by_samples(samples_us: Sequence[Sequence[float]], leading_dropped: int) -> dict[str, float]:
    """The statistics that are checked against [ranks][iterations] samples, by the names they have in `Stats`."""
    kept = [samples[leading_dropped:] for samples in samples_us]
    return {
        "latency_us": statistics.fmean(statistics.fmean(samples) for samples in kept),
        "slowest_p50_us": statistics.median(max(of_iteration) for of_iteration in zip(*kept, strict=True)),
    }


def fits(value: float, told: float) -> bool:
    """Whether a statistic and what the samples tell are the same number, roundings aside."""
    return math.isclose(value, told, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def reason_to_refuse(record: Record) -> str | None:
    """The first thing that is wrong with the record, in words; None when all is well.

    A clock that went backwards during the run is no reason: the order of nights does not hang on it.
    """
    return next(_faults(record), None)


def _faults(record: Record) -> Iterator[str]:
    if not _RUN_ID.fullmatch(record.run_id):
        yield f"run id {record.run_id!r} is not 32 hex digits"
    for name in ("started_at", "ended_at"):
        try:
            parse_time(getattr(record, name))
        except (ValueError, OverflowError):
            yield f"{name} {getattr(record, name)!r} is not an RFC 3339 time with a zone"
    case = record.case
    for name in ("ranks", "nodes", "tokens", "hidden", "topk", "experts", "seed"):
        if abs(getattr(case, name)) > _LARGEST:
            yield f"the case's {name} does not fit 64 bits"
    try:
        readable = Case.parse(case.key) == case
    except CaseError:
        readable = False
    if not readable:
        yield f"the case's key {case.key!r} cannot be read back"
    on_nodes = [rank for node in record.nodes for rank in node.ranks]
    if len(set(on_nodes)) != len(on_nodes):
        yield "a rank stands on two nodes"
    if record.outcome == "ok":
        yield from _faults_of_ok(record, on_nodes)
    else:
        if record.failure is None and record.outcome != "wrong":
            yield f"the outcome is {record.outcome} but no failure says why"
        if record.phases:
            yield f"the outcome is {record.outcome} but there are timings"
    host_of = {rank: node.hostname for node in record.nodes for rank in node.ranks}
    if record.placement and {one.rank: one.hostname for one in record.placement} != host_of:
        yield "the placement has other ranks, or has them on other nodes, than the nodes say"


def _faults_of_ok(record: Record, on_nodes: list[int]) -> Iterator[str]:
    try:
        record.case.validate()
    except CaseError as error:
        yield f"the outcome is ok but the case cannot be: {error}"
    if record.failure is not None:
        yield "the outcome is ok but there is a failure"
    if not all(check.passed for check in record.checks):
        yield "the outcome is ok but a check did not pass"
    if sorted(on_nodes) != list(range(record.case.ranks)):
        yield f"the nodes hold ranks {sorted(on_nodes)}, the case has {record.case.ranks} ranks"
    phases = [result.phase for result in record.phases]
    if not phases:
        yield "the outcome is ok but there are no timings"
    if len(set(phases)) != len(phases):
        yield "a phase is there twice"
    for result in record.phases:
        for fault in _faults_of_phase(result, record.case.ranks):
            yield f"{result.phase}: {fault}"


def _faults_of_phase(result: PhaseResult, ranks: int) -> Iterator[str]:
    stats, traffic = result.stats, result.traffic
    if len(result.samples_us) != ranks:
        yield f"there are samples of {len(result.samples_us)} ranks, the case has {ranks}"
        return
    iterations = len(result.samples_us[0])
    if any(len(samples) != iterations for samples in result.samples_us):
        yield "ranks have different numbers of samples"
        return
    if not 0 <= result.leading_dropped < iterations:
        yield f"{result.leading_dropped} of {iterations} samples are dropped: none is left"
        return
    if not all(math.isfinite(sample) and sample > 0 for samples in result.samples_us for sample in samples):
        yield "a sample is not a positive number"
        return
    for name in SCALARS:
        value = getattr(stats, name)
        if not math.isfinite(value) or value < 0 or (value == 0 and name not in {"std_us", "mad_us"}):
            yield f"{name} is {value}"
            return
    if len(stats.rank_p50_us) != ranks or not all(math.isfinite(value) and value > 0 for value in stats.rank_p50_us):
        yield f"rank_p50_us does not hold {ranks} positive numbers"
    if not 0 <= stats.slowest_rank < ranks:
        yield f"slowest_rank is {stats.slowest_rank}, the case has {ranks} ranks"
    for name, told in told_by_samples(result.samples_us, result.leading_dropped).items():
        if not fits(getattr(stats, name), told):
            yield f"{name} is {getattr(stats, name):g} but the samples say {told:g}"
    numbers = [
        *traffic.bytes_per_rank.values(),
        *traffic.per_rank_gbs.values(),
        traffic.aggregate_gbs,
        traffic.wire_bytes_per_rank or 0.0,
    ]
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        yield "a byte count or bandwidth is not a number from zero up"
    if traffic.headline not in traffic.bytes_per_rank or traffic.headline not in traffic.per_rank_gbs:
        yield f"the headline {traffic.headline!r} has no bytes or no bandwidth"
