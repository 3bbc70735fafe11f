"""The rows that one record makes, table by table. Pure; used by `regress_db.ingest` and nobody else.

Rows that many runs share (case, platform, environment, night, node, metric) are known by the columns in `SHARED`; the
others refer to them by the numbers the database gave them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from sqlalchemy import Table

from harness.record import Record
from regress_db import samples
from regress_db.acceptance import parse_time
from regress_db.metrics import metrics_of
from regress_db.schema import (
    CASES,
    CHECKS,
    ENVIRONMENTS,
    FAILURES,
    METRICS,
    NIGHTS,
    NODES,
    PLATFORMS,
    RANK_VALUES,
    RUN_PHASES,
    RUN_RANKS,
    RUN_VALUES,
    SAMPLES,
)

SHARED: dict[Table, tuple[str, ...]] = {
    CASES: ("key",),
    PLATFORMS: ("key",),
    ENVIRONMENTS: ("digest",),
    NIGHTS: ("name",),
    NODES: ("hostname",),
    METRICS: ("phase", "name"),
}
"""Table to the columns that make a row of it unique."""

Row = dict[str, Any]
Numbers = Mapping[Table, Mapping[tuple[str, ...], int]]
"""Table, then the values of its unique columns, to the row's `id`."""


def fields(struct: msgspec.Struct) -> Row:
    """The struct's own fields, as they are."""
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def shared_rows(record: Record) -> Iterator[tuple[Table, Row]]:
    """The rows of the tables in `SHARED` that the record refers to, without their numbers."""
    yield CASES, {"key": record.case.key, **fields(record.case)}
    yield PLATFORMS, {"key": record.platform.key, **fields(record.platform)}
    environment = record.environment
    yield (
        ENVIRONMENTS,
        {
            "digest": environment.digest,
            "commit": environment.code.get("commit", ""),
            "content": msgspec.to_builtins(environment),
        },
    )
    if record.night:
        yield NIGHTS, {"name": record.night, "plan": ""}
    for node in record.nodes:
        yield NODES, {"hostname": node.hostname}
    for result in record.phases:
        for name in metrics_of(result):
            yield METRICS, {"phase": result.phase, "name": name}


def run_row(record: Record, digest: str, numbers: Numbers) -> Row:
    """The row of `runs`, without its number."""
    return {
        "run_id": record.run_id,
        "case_id": numbers[CASES][record.case.key,],
        "platform_id": numbers[PLATFORMS][record.platform.key,],
        "environment_id": numbers[ENVIRONMENTS][record.environment.digest,],
        "night_id": numbers[NIGHTS][record.night,] if record.night else None,
        "repeat": record.repeat,
        "started_at": parse_time(record.started_at),
        "ended_at": parse_time(record.ended_at),
        "outcome": record.outcome,
        "warmup": record.warmup,
        "iters": record.iters,
        "conditions": record.conditions,
        "notes": record.notes,
        "digest": digest,
        "launcher": record.launcher or None,
        "attempt": record.attempt if record.schema_version > 1 else None,
        "scheduler_job": record.scheduler_job or None,
    }


def hanging_rows(record: Record, run: int, numbers: Numbers) -> Iterator[tuple[Table, list[Row]]]:
    """Everything that hangs on the run with the number `run`."""
    if record.failure is not None:
        yield FAILURES, [{"run": run, **_storable(fields(record.failure))}]
    yield (
        CHECKS,
        [
            {"run": run, "position": position, "moment": check.when, "passed": check.passed}
            | _storable({"rows": check.rows, "detail": check.detail})
            for position, check in enumerate(record.checks)
        ],
    )
    of_nodes = numbers[NODES]
    placed = {one.rank: one for one in record.placement}
    yield (
        RUN_RANKS,
        [
            {"run": run, "rank": rank, "node_id": of_nodes[node.hostname,]}
            | {name: getattr(placed.get(rank), name, "") or None for name in ("cpus", "numa")}
            for node in record.nodes
            for rank in node.ranks
        ],
    )
    of_metrics = numbers.get(METRICS, {})
    for result in record.phases:
        phase = result.phase
        yield (
            RUN_PHASES,
            [
                {
                    "run": run,
                    "phase": phase,
                    "iterations": len(result.samples_us[0]),
                    "leading_dropped": result.leading_dropped,
                    "slowest_rank": result.stats.slowest_rank,
                    "headline": result.traffic.headline,
                }
            ],
        )
        yield (
            RUN_VALUES,
            [
                {"run": run, "metric": of_metrics[phase, name], "value": value}
                for name, value in metrics_of(result).items()
            ],
        )
        yield (
            RANK_VALUES,
            [
                {"run": run, "phase": phase, "rank": rank, "p50_us": value}
                for rank, value in enumerate(result.stats.rank_p50_us)
            ],
        )
        yield SAMPLES, [{"run": run, "phase": phase, "packed": samples.pack(result.samples_us)}]


def _storable(row: Row) -> Row:
    """Texts as every database takes them: PostgreSQL has no NUL in one, and the end of a log may hold any byte."""
    return {
        name: value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value
        for name, value in row.items()
    }
