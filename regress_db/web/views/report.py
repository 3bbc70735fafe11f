"""What a report embeds: a night, and the other views of what is worth a look on it."""

from __future__ import annotations

import msgspec

from harness.case import Phase
from regress_db.web.views.night import NightView
from regress_db.web.views.nodes import NodesView
from regress_db.web.views.run import RunView
from regress_db.web.views.series import SeriesView
from regress_db.web.views.shared import Answer
from regress_db.web.views.triage import TriageView


class MetricLine(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of a series on the night and in its baseline: medians over runs; change: relative, None without."""

    name: str
    words: str
    unit: str
    new: float | None
    base: float | None
    change: float | None


class ReportSeries(msgspec.Struct, frozen=True, kw_only=True):
    """One series: its past with this night last (None where it ran nowhere), its metrics on the night.

    folded: whether it opens on request only. headline: the byte count that its bandwidth is of. command: what measures
    it again.
    """

    case: str
    platform: str
    phase: Phase
    verdict: str
    sentence: str
    warnings: list[str]
    folded: bool
    past: SeriesView | None
    metrics: list[MetricLine]
    headline: str
    command: str


class Report(Answer, frozen=True, kw_only=True, tag="report"):
    """A report. series: worst first; left_out: how many series of the night have no place here, being the quietest.

    runs: the newest run of each series that is bad, and of what failed, at most a few. nodes: None where nothing of
    nodes can be told.
    """

    night: NightView
    series: list[ReportSeries]
    left_out: int
    runs: list[RunView]
    nodes: NodesView | None
    triage: TriageView
