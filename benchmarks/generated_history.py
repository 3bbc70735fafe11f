"""A large history made of random numbers, to ask questions of: `benchmarks/history.py` does.

    python benchmarks/generated_history.py [--series 300] [--nights 1000] [--small] [PATH]

Each night runs each case once and each case has two series, one for a phase. The rows go straight into the schema's
tables in bulk, past `collect`, whose rate `benchmarks/history.py` measures apart. They are those that `collect` would
write: every metric of a record, each rank's median, checks, ranks, planned runs, samples (20 iterations x 8 ranks).
`--small` leaves out what no question needs: three metrics, two ranks and no samples.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from harness.case import PHASES, Case
from regress_db import samples
from regress_db.history import History
from regress_db.metrics import BANDWIDTH_METRIC, RUN_VALUE_METRIC, SCALARS

START = datetime(2023, 1, 1, 2, 0, tzinfo=UTC)
NODES = 8
ITERATIONS = 20
FEW_METRICS = ("latency_us", RUN_VALUE_METRIC, BANDWIDTH_METRIC)
ALL_METRICS = (*SCALARS, BANDWIDTH_METRIC, "aggregate_gbs", "wire_bytes", "bytes.recv", "gbs.recv")
_NIGHTS_AT_ONCE = 25


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a history is. series: two for each case."""

    series: int
    nights: int
    small: bool = False
    seed: int = 1

    @property
    def cases(self) -> list[Case]:
        """The cases, alike but for backend, mode, dtype and size."""
        return [
            Case(
                backend=("ep_core", "torch")[number % 2],
                mode=("ll", "ht")[number // 2 % 2],
                combine="local_reduce" if number // 2 % 2 else "exact",
                dtype=("bf16", "fp8")[number // 4 % 2],
                ranks=self.ranks,
                tokens=16 + number,
                hidden=7168,
                topk=8,
                experts=256,
            )
            for number in range(self.series // len(PHASES))
        ]

    @property
    def ranks(self) -> int:
        """In every case."""
        return 2 if self.small else 8

    @property
    def metrics(self) -> tuple[str, ...]:
        """Of each phase of each run."""
        return FEW_METRICS if self.small else ALL_METRICS

    @property
    def values(self) -> int:
        """Rows of `run_values`."""
        return self.nights * self.series * len(self.metrics)


def generate(where: str | Path, shape: Shape) -> float:
    """Make a history of that shape at a new place; returns how many seconds it took."""
    start = time.perf_counter()
    with History.open(where) as history:
        with history.write() as connection:
            for table, rows in _shared_rows(shape):
                _insert(connection, table, rows)
        chance = np.random.default_rng(shape.seed)
        for first in range(0, shape.nights, _NIGHTS_AT_ONCE):
            with history.write() as connection:
                for table, rows in _rows_of_nights(
                    shape, range(first, min(first + _NIGHTS_AT_ONCE, shape.nights)), chance
                ):
                    _insert(connection, table, rows)
    return time.perf_counter() - start


def run_id(number: int) -> str:
    """The id of the run with this row number: 32 hexadecimal digits that look like chance."""
    return sha256(str(number).encode()).hexdigest()[:32]


def _insert(connection: Any, table: str, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    names = list(rows[0])
    places = ", ".join("?" for _ in names)
    quoted = ", ".join(f'"{name}"' for name in names)
    connection.exec_driver_sql(
        f"INSERT INTO {table} ({quoted}) VALUES ({places})", [tuple(row.values()) for row in rows]
    )


def _shared_rows(shape: Shape) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    yield (
        "cases",
        [
            {"id": number, "key": case.key} | {name: getattr(case, name) for name in Case.__struct_fields__}
            for number, case in enumerate(shape.cases, 1)
        ],
    )
    yield (
        "platforms",
        [
            {
                "id": 1,
                "key": "generated/Some GPU 3000 x8/nvlink",
                "device_model": "Some GPU 3000",
                "devices_per_node": 8,
                "interconnect": "nvlink",
                "cluster": "generated",
            }
        ],
    )
    yield "nodes", [{"id": number, "hostname": f"gpu{number:02}"} for number in range(1, NODES + 1)]
    yield (
        "metrics",
        [
            {"id": number, "phase": phase, "name": name}
            for number, (phase, name) in enumerate(((p, n) for p in PHASES for n in shape.metrics), 1)
        ],
    )
    contents = [
        {
            "code": {"commit": sha256(f"commit {night}".encode()).hexdigest()[:40], "dirty": "false"},
            "versions": {"torch": "2.13.0", "driver": f"580.{night // 90}"},
            "variables": {},
            "topology": {"numa_nodes": "2"},
        }
        for night in range(shape.nights)
    ]
    yield (
        "environments",
        [
            {
                "id": night + 1,
                "digest": sha256(json.dumps(content).encode()).hexdigest(),
                "commit": content["code"]["commit"],
                "content": json.dumps(content),
            }
            for night, content in enumerate(contents)
        ],
    )
    yield (
        "nights",
        [
            {
                "id": night + 1,
                "name": name_of_night(night),
                "plan": "generated",
                "started_at": _text(START + timedelta(days=night)),
                "finished_at": _text(START + timedelta(days=night, hours=3)),
            }
            for night in range(shape.nights)
        ],
    )


def name_of_night(night: int) -> str:
    """As a plan names its nights."""
    return f"{START + timedelta(days=night):%Y%m%dT%H%M%SZ}-{night:06x}"


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S.%f}"


def _rows_of_nights(
    shape: Shape, nights: range, chance: np.random.Generator
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    cases = len(shape.cases)
    metrics = len(shape.metrics)
    tables: dict[str, list[dict[str, Any]]] = {
        name: []
        for name in ("runs", "planned", "checks", "run_ranks", "run_phases", "run_values", "rank_values", "samples")
    }
    # A fifth of the cases gets 4 % slower half way; every night has its own 0.5 %, every run 1 %.
    level = 100 + 3 * np.arange(cases)
    for night in nights:
        slower = np.where((np.arange(cases) % 5 == 0) & (night >= shape.nights // 2), 1.04, 1.0)
        shared = chance.normal(1, 0.005)
        values = (level * slower * shared)[:, None, None] * chance.normal(1, 0.01, (cases, len(PHASES), 1))
        values = values * chance.normal(1, 0.001, (cases, len(PHASES), metrics))
        ranks = values[:, :, :1] * chance.normal(1, 0.003, (cases, len(PHASES), shape.ranks))
        for case in range(cases):
            number = night * cases + case + 1
            started = START + timedelta(days=night, seconds=30 * case)
            identity = run_id(number)
            tables["runs"].append(
                {
                    "id": number,
                    "run_id": identity,
                    "case_id": case + 1,
                    "platform_id": 1,
                    "environment_id": night + 1,
                    "night_id": night + 1,
                    "repeat": 0,
                    "started_at": _text(started),
                    "ended_at": _text(started + timedelta(seconds=20)),
                    "outcome": "ok",
                    "warmup": 10,
                    "iters": ITERATIONS,
                    "conditions": '{"load_1m_before": 0.1}',
                    "notes": "[]",
                    "digest": sha256(identity.encode()).hexdigest(),
                }
            )
            tables["planned"].append({"night_id": night + 1, "run_id": identity, "case_id": case + 1, "repeat": 0})
            tables["checks"] += [
                {"run": number, "position": place, "moment": moment, "passed": 1, "rows": 4096, "detail": ""}
                for place, moment in enumerate(("before", "after"))
            ]
            node = (night + case) % NODES + 1
            tables["run_ranks"] += [{"run": number, "rank": rank, "node_id": node} for rank in range(shape.ranks)]
            for place, phase in enumerate(PHASES):
                tables["run_phases"].append(
                    {
                        "run": number,
                        "phase": phase,
                        "iterations": ITERATIONS,
                        "leading_dropped": 1,
                        "slowest_rank": 0,
                        "headline": "recv",
                    }
                )
                tables["run_values"] += [
                    {"run": number, "metric": place * metrics + one + 1, "value": value}
                    for one, value in enumerate(values[case, place].tolist())
                ]
                tables["rank_values"] += [
                    {"run": number, "phase": phase, "rank": rank, "p50_us": value}
                    for rank, value in enumerate(ranks[case, place].tolist())
                ]
                if not shape.small:
                    noisy = ranks[case, place][:, None] * chance.normal(1, 0.02, (shape.ranks, ITERATIONS))
                    tables["samples"].append({"run": number, "phase": phase, "packed": samples.pack(noisy.tolist())})
    yield from tables.items()


def main() -> None:
    """Make one and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, help="a new file; default: one that is thrown away")
    parser.add_argument("--series", type=int, default=300)
    parser.add_argument("--nights", type=int, default=100)
    parser.add_argument("--small", action="store_true", help="three metrics, two ranks, no samples")
    arguments = parser.parse_args()
    shape = Shape(arguments.series, arguments.nights, arguments.small)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.path or Path(folder) / "history.db"
        taken = generate(path, shape)
        print(
            f"{shape.series} series x {shape.nights} nights, {shape.values} values: {taken:.1f} s, {size(path)} bytes"
        )


def size(path: Path) -> int:
    """Bytes of the database and what lies beside it."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


if __name__ == "__main__":
    main()
