"""Records that a harness could have written, made of random numbers: consistent, so that the history accepts them."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from harness.case import PHASES, Case
from harness.record import (
    Check,
    Environment,
    Failure,
    Node,
    PhaseResult,
    Platform,
    RankPlacement,
    Record,
    Stats,
    Traffic,
    new_run_id,
)

CASE = Case(backend="ep_core", mode="ll", ranks=2, tokens=32, hidden=256, topk=4, experts=8)
PLATFORM = Platform(device_model="Some CPU 3000", devices_per_node=8, interconnect="shared-memory", cluster="local")
START = datetime(2026, 10, 1, 2, 0, tzinfo=UTC)


def environment(commit: str = "a" * 40, torch: str = "2.13.0") -> Environment:
    return Environment(
        code={"commit": commit, "branch": "main", "dirty": "false"},
        versions={"torch": torch, "python": "3.11.2"},
        variables={"OMP_NUM_THREADS": "1"},
        topology={"numa_nodes": "1"},
    )


def phase_result(phase: str, samples_us: list[list[float]], leading_dropped: int = 1) -> PhaseResult:
    """The result whose statistics are those of the samples, by the definitions of `harness.record.Stats`."""
    kept = [samples[leading_dropped:] for samples in samples_us]
    means = [statistics.fmean(samples) for samples in kept]
    flat = sorted(sample for samples in kept for sample in samples)
    slowest = sorted(max(of_iteration) for of_iteration in zip(*kept, strict=True))
    median = statistics.median(flat)

    def at(values: Sequence[float], share: float) -> float:
        return values[min(len(values) - 1, int(share * len(values)))]

    latency = statistics.fmean(means)
    name = "recv" if phase == "dispatch" else "send"
    bandwidth = 1e6 / latency / 1e3
    return PhaseResult(
        phase=phase,
        samples_us=samples_us,
        leading_dropped=leading_dropped,
        stats=Stats(
            latency_us=latency,
            latency_min_us=min(means),
            latency_max_us=max(means),
            p50_us=median,
            p95_us=at(flat, 0.95),
            p99_us=at(flat, 0.99),
            std_us=statistics.stdev(flat) if len(flat) > 1 else 0.0,
            mad_us=statistics.median(abs(sample - median) for sample in flat),
            skew=max(means) / min(means),
            slowest_rank=means.index(max(means)),
            slowest_p50_us=statistics.median(slowest),
            slowest_p95_us=at(slowest, 0.95),
            slowest_p99_us=at(slowest, 0.99),
            rank_p50_us=[statistics.median(samples) for samples in kept],
        ),
        traffic=Traffic(
            bytes_per_rank={name: 1e6},
            headline=name,
            per_rank_gbs={name: bandwidth},
            aggregate_gbs=bandwidth * len(samples_us),
            wire_bytes_per_rank=8e5,
        ),
    )


def ok_record(
    *,
    case: Case = CASE,
    run_id: str | None = None,
    night: str = "",
    repeat: int = 0,
    dispatch_us: float = 100.0,
    combine_us: float = 200.0,
    started: datetime = START,
    seed: int = 0,
    iters: int = 12,
    platform: Platform = PLATFORM,
    env: Environment | None = None,
    hostname: str = "node-1",
    hostnames: Sequence[str] = (),
) -> Record:
    """A run whose value (`slowest_p50_us`) is close to the given latency of each phase.

    hostnames: ranks stand on them in turn; without them all stand on hostname.
    """
    hosts = hostnames or [hostname]
    placement = [
        RankPlacement(rank=rank, hostname=hosts[rank % len(hosts)], cpus=str(rank), numa="0")
        for rank in range(case.ranks)
    ]
    chance = random.Random(seed)
    samples = {
        phase: [[around * chance.uniform(0.99, 1.01) for _ in range(iters)] for _ in range(case.ranks)]
        for phase, around in zip(PHASES, (dispatch_us, combine_us), strict=True)
    }
    return Record(
        run_id=run_id or new_run_id(),
        case=case,
        platform=platform,
        environment=env or environment(),
        nodes=[
            Node(hostname=host, ranks=[one.rank for one in placement if one.hostname == host])
            for host in dict.fromkeys(hosts)
        ],
        started_at=started.isoformat(),
        ended_at=(started + timedelta(seconds=3)).isoformat(),
        warmup=10,
        iters=iters,
        outcome="ok",
        checks=[Check(when="before", passed=True, rows=256), Check(when="after", passed=True, rows=256)],
        phases=[phase_result(phase, samples[phase]) for phase in PHASES],
        night=night,
        repeat=repeat,
        conditions={"load_1m_before": 0.5},
        notes=["a note"],
        placement=placement,
        launcher="torchrun",
    )


def failed_record(
    outcome: str = "failed", message: str = "rank 1 was killed by signal 9", log_tail: str = "", **changes: object
) -> Record:
    """A run that gave no number."""
    record = ok_record(**changes)
    return Record(
        **{name: getattr(record, name) for name in record.__struct_fields__}
        | {
            "outcome": outcome,
            "phases": [],
            "checks": [],
            "failure": Failure(step="time", kind="RuntimeError", message=message, rank=1, log_tail=log_tail),
        }
    )
