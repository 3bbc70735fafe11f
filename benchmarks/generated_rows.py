"""The rows of a generated history, table by table, night by night; `generated_history.py` says what is in them.

Everything is made in columns of numbers and handed over as tuples, so that the database is what takes the time.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.case import PHASES, Case
from regress_db import samples
from regress_db.metrics import BANDWIDTH_METRIC, RUN_VALUE_METRIC, SCALARS

PLATFORM = "generated/Some GPU 3000 x8/nvlink"
START = datetime(2023, 1, 1, 2, 0, tzinfo=UTC)
NODES = 8
ITERATIONS = 20
NEWEST_NIGHTS = 3
FEW_METRICS = ("latency_us", RUN_VALUE_METRIC, BANDWIDTH_METRIC)
ALL_METRICS = (*SCALARS, BANDWIDTH_METRIC, "aggregate_gbs", "wire_bytes", "bytes.recv", "gbs.recv")
_FAILING = 0.002
_BYTES = 1e6
_FLOOR = 0.05
_BASELINE_NIGHTS = 10

Rows = tuple[str, tuple[str, ...], Iterable[tuple[Any, ...]]]
"""A table, the names of its columns, its rows."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a history is. series: two for each case; small, lively: as the module says."""

    series: int
    nights: int
    small: bool = False
    lively: bool = False
    seed: int = 1

    @property
    def name(self) -> str:
        """These settings as a folder's name."""
        flags = "-small" * self.small + "-lively" * self.lively
        return f"{self.series}x{self.nights}{flags}-seed{self.seed}"

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
                tokens=16 + (number // 8 if self.lively else number),
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
        """Rows of `run_values`, where no run fails."""
        return self.nights * self.series * len(self.metrics)

    @property
    def newest(self) -> range:
        """The nights that have samples whatever the size, and verdicts that `judge_night` gave."""
        return range(max(0, self.nights - NEWEST_NIGHTS) if self.lively else self.nights, self.nights)

    @property
    def noise(self) -> NDArray[np.float64]:
        """Of a run of each case, relative to its level."""
        return np.where(self.lively & (np.arange(len(self.cases)) % 5 == 3), 0.03, 0.01)


def run_id(number: int) -> str:
    """The id of the run with this row number: 32 hexadecimal digits that look like chance."""
    return sha256(str(number).encode()).hexdigest()[:32]


def name_of_night(night: int) -> str:
    """As a plan names its nights."""
    return f"{START + timedelta(days=night):%Y%m%dT%H%M%SZ}-{night:06x}"


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S.%f}"


def shared_rows(shape: Shape) -> Iterator[Rows]:
    """What all nights share: cases, nodes, metrics, environments, the nights themselves."""
    fields = Case.__struct_fields__
    yield (
        "cases",
        ("id", "key", *fields),
        ((number, case.key, *(getattr(case, name) for name in fields)) for number, case in enumerate(shape.cases, 1)),
    )
    yield (
        "platforms",
        ("id", "key", "device_model", "devices_per_node", "interconnect", "cluster"),
        [(1, PLATFORM, "Some GPU 3000", 8, "nvlink", "generated")],
    )
    yield "nodes", ("id", "hostname"), ((number, f"gpu{number:02}") for number in range(1, NODES + 1))
    names = itertools.product(PHASES, shape.metrics)
    yield "metrics", ("id", "phase", "name"), ((number, *name) for number, name in enumerate(names, 1))
    yield (
        "environments",
        ("id", "digest", "commit", "content"),
        (
            (night + 1, sha256(content.encode()).hexdigest(), json.loads(content)["code"]["commit"], content)
            for night in range(shape.nights)
            for content in [_environment(night)]
        ),
    )
    yield (
        "nights",
        ("id", "name", "plan", "started_at", "finished_at", "judged_at", "judge", "against", "level", "remarks"),
        (
            (night + 1, name_of_night(night), "generated", _text(start), _text(end), *judged)
            for night in range(shape.nights)
            for start in [START + timedelta(days=night)]
            for end in [start + timedelta(hours=3)]
            for judged in [(_text(end), "generated", "auto", 0.001, "[]") if shape.lively else (None,) * 5]
        ),
    )


def _environment(night: int) -> str:
    """Another commit each night, another driver each 90 nights."""
    content = {
        "code": {"commit": sha256(f"commit {night}".encode()).hexdigest()[:40], "dirty": "false"},
        "versions": {"torch": "2.13.0", "driver": f"580.{night // 90}"},
        "variables": {},
        "topology": {"numa_nodes": "2"},
    }
    return json.dumps(content)


def _level(shape: Shape, nights: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
    """What each case takes each night, in µs, before noise: float64 [nights, cases]."""
    case = np.arange(len(shape.cases))
    kind = case % 5
    when = nights[:, None] / shape.nights
    step = 1.08 if shape.lively else 1.04
    level = (100.0 + 3 * case) * np.where((kind == 0) & (when >= 0.5), step, 1.0)
    if shape.lively:
        level = level * np.where((kind == 1) & (when >= 0.75), 0.92, 1.0)
        level = level * np.where(kind == 2, 1 + 0.05 * np.clip(2 * when - 0.5, 0, 1), 1.0)
        level = level * np.where((_node(nights[:, None], case) == 3) & (when >= 0.9), 1.04, 1.0)
        level = level * np.where((case % 50 == 7) & (nights[:, None] == shape.nights - 1), 1.12, 1.0)
    return level


def _node(night: Any, case: Any) -> Any:
    """The row number of the node that a case ran on: another one each night."""
    return (night + case) % NODES + 1


def _fails(shape: Shape, nights: NDArray[np.int64], chance: np.random.Generator) -> NDArray[np.bool_]:
    """Which runs give no number: bool [nights, cases]."""
    cases = len(shape.cases)
    if not shape.lively:
        return np.zeros((len(nights), cases), dtype=np.bool_)
    last = (nights[:, None] == shape.nights - 1) & (np.arange(cases) % 100 == 42)
    return np.asarray(last | (chance.random((len(nights), cases)) < _FAILING))


def rows_of_nights(shape: Shape, nights: range, chance: np.random.Generator) -> Iterator[Rows]:
    """Everything of these nights."""
    cases, phases, metrics, ranks = len(shape.cases), len(PHASES), len(shape.metrics), shape.ranks
    night = np.arange(nights.start, nights.stop)
    shared = chance.normal(1, 0.005, (len(night), 1))
    each = 1 + chance.normal(0, 1, (len(night), cases, phases)) * shape.noise[:, None]
    latency_us = ((_level(shape, night) * shared)[:, :, None] * each).reshape(-1, phases)
    fails = _fails(shape, night, chance).ravel()
    numbers = np.arange(len(fails)) + nights.start * cases + 1
    yield from _run_rows(shape, numbers, fails)
    if shape.lively:
        yield _verdict_rows(shape, night, latency_us, fails)
    nodes = np.repeat(_node((numbers - 1) // cases, (numbers - 1) % cases), ranks)
    yield "run_ranks", ("run", "rank", "node_id"), _product(numbers, ranks, nodes)
    ok = ~fails
    numbers, latency_us = numbers[ok], latency_us[ok]
    of = numbers.tolist()
    yield (
        "checks",
        ("run", "position", "moment", "passed", "rows", "detail"),
        ((run, place, moment, 1, 4096, "") for run in of for place, moment in enumerate(("before", "after"))),
    )
    yield (
        "run_phases",
        ("run", "phase", "iterations", "leading_dropped", "slowest_rank", "headline"),
        ((run, phase, ITERATIONS, 1, 0, "recv") for run in of for phase in PHASES),
    )
    values = latency_us[:, :, None] * chance.normal(1, 0.001, (*latency_us.shape, metrics))
    values[:, :, shape.metrics.index(BANDWIDTH_METRIC)] = _BYTES / latency_us / 1e3
    yield "run_values", ("run", "metric", "value"), _product(numbers, phases * metrics, values, first=1)
    of_rank = latency_us[:, :, None] * chance.normal(1, 0.003, (*latency_us.shape, ranks))
    yield (
        "rank_values",
        ("run", "phase", "rank", "p50_us"),
        zip(
            np.repeat(numbers, phases * ranks).tolist(),
            itertools.cycle(np.repeat(PHASES, ranks).tolist()),
            itertools.cycle(range(ranks)),
            of_rank.ravel().tolist(),
            strict=False,
        ),
    )
    sampled = np.flatnonzero((numbers > shape.newest.start * cases) | (not shape.small))
    yield "samples", ("run", "phase", "packed"), _samples(numbers, of_rank, sampled, chance)


def _run_rows(shape: Shape, numbers: NDArray[np.int64], fails: NDArray[np.bool_]) -> Iterator[Rows]:
    """Runs, what was planned and what failed; a night's runs start 30 s after one another."""
    cases = len(shape.cases)
    places = [((number - 1) // cases, (number - 1) % cases, number) for number in numbers.tolist()]
    identities = [run_id(number) for _, _, number in places]
    starts = [START + timedelta(days=night, seconds=30 * case) for night, case, _ in places]
    shared = (ITERATIONS, '{"load_1m_before": 0.1}', "[]")
    yield (
        "runs",
        (
            *("id", "run_id", "case_id", "platform_id", "environment_id", "night_id", "repeat", "started_at"),
            *("ended_at", "outcome", "warmup", "iters", "conditions", "notes", "digest"),
        ),
        (
            (
                *(number, identity, case + 1, 1, night + 1, night + 1, 0, _text(start)),
                *(_text(start + timedelta(seconds=20)), "failed" if failed else "ok", 10, *shared, identity * 2),
            )
            for (night, case, number), identity, start, failed in zip(
                places, identities, starts, fails.tolist(), strict=True
            )
        ),
    )
    yield (
        "planned",
        ("night_id", "run_id", "case_id", "repeat"),
        ((night + 1, identity, case + 1, 0) for (night, case, _), identity in zip(places, identities, strict=True)),
    )
    yield (
        "failures",
        ("run", "step", "kind", "message", "rank", "log_tail"),
        (
            (number, "time", "EPTimeoutError", "combine: rank 1 waited 30 s for ranks 0", 1, "the log's last line\n")
            for number in numbers[fails].tolist()
        ),
    )


def _verdict_rows(
    shape: Shape, night: NDArray[np.int64], latency_us: NDArray[np.float64], fails: NDArray[np.bool_]
) -> Rows:
    """A verdict on every series of these nights."""
    cases, phases = len(shape.cases), len(PHASES)
    before_us = np.repeat(_level(shape, np.maximum(night - _BASELINE_NIGHTS, 0)).ravel(), phases)
    floor = np.tile(np.repeat(np.maximum(_FLOOR, 4 * shape.noise), phases), len(night))
    now_us = latency_us.ravel()
    effect = now_us / before_us - 1
    verdict = np.where(effect > floor, "regressed", np.where(effect < -floor, "improved", "unchanged"))
    rows = zip(
        np.repeat(night + 1, cases * phases).tolist(),
        itertools.cycle(np.repeat(np.arange(cases) + 1, phases).tolist()),
        itertools.cycle(PHASES),
        np.where(np.repeat(fails, phases), "failed", verdict).tolist(),
        effect.tolist(),
        floor.tolist(),
        now_us.tolist(),
        before_us.tolist(),
        strict=False,
    )
    numbers = ("effect", "low", "high", "detectable", "latency_us", "bandwidth_gbs", "baseline_latency_us")
    return (
        "verdicts",
        (
            *("night_id", "case_id", "platform_id", "phase", "verdict", "floor", *numbers, "new_runs"),
            *("baseline_runs", "sentence", "warnings", "confirmations"),
        ),
        (
            (
                *(of_night, case, 1, phase, said, least),
                *(
                    (None,) * len(numbers)
                    if said == "failed"
                    else (*(change, change - 0.02, change + 0.02, 0.04, now, _BYTES / now / 1e3, before),)
                ),
                *(said != "failed", _BASELINE_NIGHTS, _SENTENCE.format(said, 100 * change, before), "[]", 0),
            )
            for of_night, case, phase, said, change, least, now, before in rows
        ),
    )


_SENTENCE = "{}: {:+.1f} % against {:.1f} µs over ten nights, told by the generator, which knows the truth."


def _product(numbers: NDArray[np.int64], each: int, values: NDArray[Any], first: int = 0) -> Iterable[tuple[Any, ...]]:
    """(run, place, value) for `each` values of every run; places count from `first`."""
    places = itertools.cycle(range(first, first + each))
    return zip(np.repeat(numbers, each).tolist(), places, values.ravel().tolist(), strict=False)


def _samples(
    numbers: NDArray[np.int64], of_rank: NDArray[np.float64], which: NDArray[np.int64], chance: np.random.Generator
) -> Iterator[tuple[Any, ...]]:
    """The packed samples of these runs, around each rank's median."""
    for index in which.tolist():
        noisy = of_rank[index][:, :, None] * chance.normal(1, 0.02, (*of_rank.shape[1:], ITERATIONS))
        for phase, of_phase in zip(PHASES, noisy.tolist(), strict=True):
            yield int(numbers[index]), phase, samples.pack(of_phase)
