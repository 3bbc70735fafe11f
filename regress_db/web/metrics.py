"""The newest judged night for Prometheus: for those who alert elsewhere. Used by `regress_db.web.app`."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from regress_db.errors import NotFoundError
from regress_db.history import History
from regress_db.nightverdict import WORST_FIRST, NightVerdict, stored_verdict
from regress_db.web.views.night import newest_judged

CONTENT_TYPE = CONTENT_TYPE_LATEST


def exposition(history: History) -> bytes:
    """Every metric in Prometheus' text format; those of a night only where one was judged."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_OfNight(history))
    return generate_latest(registry)


class _OfNight(Collector):
    def __init__(self, history: History) -> None:
        self._history = history

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The metrics."""
        try:
            with self._history.read() as connection:
                name = newest_judged(connection)
        except NotFoundError:
            return
        verdict = stored_verdict(self._history, name)
        yield from _of_night(verdict)
        yield from _of_series(verdict)


def _of_night(verdict: NightVerdict) -> Iterator[GaugeMetricFamily]:
    judged = GaugeMetricFamily(
        "epwatch_night_judged_timestamp_seconds", "When the newest night was judged.", labels=["night", "plan"]
    )
    judged.add_metric([verdict.night, verdict.plan or ""], verdict.judged_at.timestamp())
    yield judged
    code = GaugeMetricFamily(
        "epwatch_night_exit_code", "Of the newest night: 0 passed, 1 regressed, 3 without a valid result."
    )
    code.add_metric([], verdict.exit_code())
    yield code
    counted = GaugeMetricFamily("epwatch_night_series", "Series of the newest night by verdict.", labels=["verdict"])
    for one in WORST_FIRST:
        counted.add_metric([one], sum(series.verdict == one for series in verdict.series))
    yield counted


_LABELS = ["case", "phase", "platform"]


def _of_series(verdict: NightVerdict) -> Iterator[GaugeMetricFamily]:
    latency = GaugeMetricFamily("epwatch_latency_seconds", "Latency, average over ranks.", labels=_LABELS)
    bandwidth = GaugeMetricFamily("epwatch_bandwidth_bytes_per_second", "Headline bandwidth per rank.", labels=_LABELS)
    change = GaugeMetricFamily(
        "epwatch_change_ratio", "Change of the run value against the baseline: 0.1 is 10 % slower.", labels=_LABELS
    )
    state = GaugeMetricFamily("epwatch_verdict", "1 for the verdict of a series.", labels=[*_LABELS, "verdict"])
    for one in verdict.series:
        labels = [one.case, one.phase, one.platform_key]
        if one.latency_us is not None:
            latency.add_metric(labels, one.latency_us / 1e6)
        if one.bandwidth_gbs is not None:
            bandwidth.add_metric(labels, one.bandwidth_gbs * 1e9)
        if one.effect is not None:
            change.add_metric(labels, one.effect)
        state.add_metric([*labels, one.verdict], 1)
    yield from (latency, bandwidth, change, state)
