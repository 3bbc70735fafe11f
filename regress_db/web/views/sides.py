"""View 4: two runs, nights, commits or baselines side by side; and backends side by side on one case."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from harness.case import Phase
from regress_db.web.views.shared import Answer, Fact

SideKind = Literal["run", "night", "commit", "baseline"]


class SideName(msgspec.Struct, frozen=True, kw_only=True):
    """One side. name: a whole run id or commit, a night's id, a baseline's name; asked: as it was asked for."""

    side: SideKind
    name: str
    asked: str


class ComparedNumber(msgspec.Struct, frozen=True, kw_only=True):
    """One number of both sides. change: (second - first) / first, None where it has none.

    case, platform: "" where both sides are one run. first_runs, second_runs: how many runs the medians are of.
    """

    case: str
    platform: str
    parts: dict[str, str]
    phase: Phase
    metric: str
    words: str
    unit: str
    first: float | None
    second: float | None
    first_runs: int
    second_runs: int
    change: float | None


class CompareView(Answer, frozen=True, kw_only=True, tag="compare"):
    """Two sides. first, second: None while nothing was asked for. numbers: of two runs all their metrics; else the
    metric's medians, series by series, the largest increase first. differences: of two runs: case, platform, hosts and
    environment. common: the fields of the key that all rows share. nights: the newest, to choose from.
    """

    first: SideName | None
    second: SideName | None
    metric: str
    common: dict[str, str]
    numbers: list[ComparedNumber]
    differences: list[Fact]
    nights: list[str]


class BackendNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """One phase of one case and platform: medians over the runs of its newest night (or of its newest day).

    latency_us: averaged over ranks; run_value_us: what verdicts compare; bandwidth_gbs: headline, per rank. change: of
    latency_us, relative to that of the case asked for, on the same platform; None where that has none.
    """

    case: str
    platform: str
    backend: str
    dtype: str
    phase: Phase
    latency_us: float | None
    latency_min_us: float | None
    latency_max_us: float | None
    run_value_us: float | None
    bandwidth_gbs: float | None
    aggregate_gbs: float | None
    change: float | None
    runs: int
    night: str
    started_at: datetime
    run_id: str


class BackendsView(Answer, frozen=True, kw_only=True, tag="backends"):
    """The case asked for ("" while none was) and those that differ from it in backend and dtype alone.

    parts: the fields of its key. numbers: platform by platform, dispatch before combine, the case asked for first, then
    the fastest. choices: cases that have another to stand beside.
    """

    case: str
    parts: dict[str, str]
    numbers: list[BackendNumbers]
    choices: list[str]
