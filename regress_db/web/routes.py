"""Which pages there are: one table for the server's routes and for their documentation.

Each page asks one view of the history and is HTML, `.json` and `.csv`. Used by `regress_db.web.app` and
`regress_db.web.openapi`. Next to read: `regress_db.web.views`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select

from harness.case import PHASES
from regress_db import sides as named
from regress_db.history import History
from regress_db.metrics import RUN_VALUE_METRIC
from regress_db.nightverdict import WORST_FIRST
from regress_db.queries import DEFAULT_METRIC
from regress_db.schema import RUNS
from regress_db.selection import Selection
from regress_db.web.links import series_of
from regress_db.web.questions import Parameter, Question, QuestionError
from regress_db.web.views import night, nights, nodes, runfacts, serieslines, sides, triage
from regress_db.web.views.nodes import NodesView
from regress_db.web.views.run import RunView
from regress_db.web.views.series import SeriesView
from regress_db.web.views.shared import Answer, SeriesName


@dataclass(slots=True)
class Site:
    """What the server shows, and what it may do. token: without one nothing can be written.

    Nodes take seconds on a long history: their view is kept until there is another run.
    """

    history: History
    token: str | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _nodes: dict[tuple[int | None, str, tuple[str, ...]], NodesView] = field(default_factory=dict)

    def nodes(self, cluster: str, texts: tuple[str, ...]) -> NodesView:
        """The nodes, as of the newest run."""
        with self.history.read() as connection:
            newest = connection.execute(select(func.max(RUNS.c.id))).scalar()
        key = (newest, cluster, texts)
        with self._lock:
            if key not in self._nodes:
                chosen = Selection.of(*texts)
                self._nodes = {key: nodes.gather(self.history, chosen, cluster=cluster or None)}
            return self._nodes[key]


@dataclass(frozen=True, slots=True)
class Page:
    """One page. path: as OpenAPI writes it, without what says the format. ask: what is shown. title: of the page."""

    path: str
    summary: str
    answer: type[Answer]
    ask: Callable[[Site, Question], Answer]
    title: Callable[[Any], str]
    parameters: tuple[Parameter, ...] = ()


_NEWS = ("new", "recovered", "first")
_CASE = Parameter(
    "case",
    "A pattern on the case's key or a filter on a field of the series (`ranks>=16`), as `epwatch trend` takes them.",
    repeated=True,
)
_PHASE = Parameter("phase", "Only this phase.", values=PHASES)
_OF_NIGHT = (
    _CASE,
    Parameter("verdict", "Only series with this verdict.", values=WORST_FIRST, repeated=True),
    Parameter("phase", "Only this phase.", values=PHASES, repeated=True),
    Parameter("news", "Only series that are bad anew, recovered, or judged for the first time.", "text", _NEWS, True),
)


def _night(site: Site, asked: Question) -> Answer:
    chosen = night.Chosen(
        cases=asked.texts("case"),
        verdicts=[one for one in WORST_FIRST if one in asked.texts("verdict")],
        phases=[one for one in PHASES if one in asked.texts("phase")],
        news=[one for one in night.NEWS if one in asked.texts("news")],
    )
    return night.gather(site.history, asked.text("night", "latest"), chosen)


def _nights(site: Site, asked: Question) -> Answer:
    return nights.gather(site.history, asked.number("limit", nights.DEFAULT_LIMIT), now=datetime.now(UTC))


def _series(site: Site, asked: Question) -> Answer:
    names = [_named(text) for text in asked.texts("s")]
    cases = asked.texts("case")
    platform, phase = asked.text("platform"), asked.text("phase")
    if platform:
        cases = [*cases, f"platform={platform}"]
    return serieslines.gather(
        site.history,
        serieslines.Asked(
            names=tuple(names),
            cases=tuple(cases),
            phase=next((one for one in PHASES if one == phase), None),
            metric=asked.text("metric", DEFAULT_METRIC),
            by=next((one for one in serieslines.BY if one == asked.text("by")), "run"),
            since=asked.moment("since"),
            until=asked.moment("until"),
            log=asked.flag("log"),
        ),
    )


def _named(text: str) -> SeriesName:
    found = series_of(text)
    if found is None:
        raise QuestionError(f"{text[:80]!r} names no series: write case|phase|platform")
    return found


def _run(site: Site, asked: Question) -> Answer:
    return runfacts.gather(site.history, asked.text("run_id"))


def _compare(site: Site, asked: Question) -> Answer:
    return sides.compare(
        site.history,
        asked.text("a"),
        asked.text("b"),
        selection=Selection.of(*asked.texts("case")),
        metric=asked.text("metric", RUN_VALUE_METRIC),
        phase=next((one for one in PHASES if one == asked.text("phase")), None),
    )


def _backends(site: Site, asked: Question) -> Answer:
    return sides.backends(site.history, asked.text("case"))


def _nodes(site: Site, asked: Question) -> Answer:
    return site.nodes(asked.text("cluster"), tuple(asked.texts("case")))


def _triage(site: Site, asked: Question) -> Answer:
    return triage.gather(site.history, may_write=site.token is not None)


def _series_title(view: SeriesView) -> str:
    return f"{view.words} of {len(view.asked)} series" if view.asked else "Series through time"


def _run_title(view: RunView) -> str:
    return f"run {view.run_id[:12]} of {view.case}"


_SIDE = f"One side: a run, night, commit or baseline, as `epwatch compare` names it ({', '.join(named.KINDS)})."

PAGES: tuple[Page, ...] = (
    Page(
        "/nights/{night}",
        "A night: series by verdict, worst first, what did not run and why.",
        night.NightView,
        _night,
        lambda view: f"{view.night}: {view.headline}",
        (Parameter("night", "The night's id, or `latest` for the newest judged one.", where="path"), *_OF_NIGHT),
    ),
    Page(
        "/nights",
        "Nights, newest first, with those that did not happen.",
        nights.NightsView,
        _nights,
        lambda view: "Nights",
        (Parameter("limit", "How many.", "number", most=nights.MOST),),
    ),
    Page(
        "/series",
        "Series through time, overlaid, with baseline, change points, verdicts, notes and changes of the environment.",
        SeriesView,
        _series,
        _series_title,
        (
            Parameter("s", "A series, as `case|phase|platform`.", repeated=True),
            _CASE,
            Parameter("platform", "With `case`: only this platform; `*` is any text."),
            _PHASE,
            Parameter("metric", "What to draw: a metric, or `ranks`, or `percentiles`."),
            Parameter("since", "Only from then on: `2026-11-22`, `2026-11-22T02:00`, `7d`, `36h`.", "moment"),
            Parameter("until", "Only before then.", "moment"),
            Parameter("by", "What a point is.", values=serieslines.BY),
            Parameter("log", "Whether the axis is logarithmic.", "flag"),
        ),
    ),
    Page(
        "/runs/{run_id}",
        "A run: its numbers, samples, place, environment, and what differs from its baseline.",
        RunView,
        _run,
        _run_title,
        (Parameter("run_id", "The head of its id, or `latest`.", where="path"),),
    ),
    Page(
        "/compare",
        "Two sides: two runs value by value, or nights, commits or baselines series by series.",
        sides.CompareView,
        _compare,
        lambda view: "Side by side",
        (
            Parameter("a", _SIDE),
            Parameter("b", _SIDE),
            _CASE,
            _PHASE,
            Parameter("metric", "What to compare; two runs: everything."),
        ),
    ),
    Page(
        "/backends",
        "A case on every backend and dtype that measured it.",
        sides.BackendsView,
        _backends,
        lambda view: "Backends side by side",
        (Parameter("case", "The case's whole key."),),
    ),
    Page(
        "/nodes",
        "Nodes by how slow they make their runs.",
        NodesView,
        _nodes,
        lambda view: "Nodes",
        (Parameter("cluster", "Only this cluster's."), _CASE),
    ),
    Page(
        "/triage",
        "Regressions that are open, acknowledged, expected or fixed; decisions; notes.",
        triage.TriageView,
        _triage,
        lambda view: "Triage",
    ),
)

HOME = PAGES[0]
"""What `/` shows, of the night `latest`."""
