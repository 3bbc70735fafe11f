"""What only templates need: the hover box of a cell, columns that tell rows apart, bars of changes.

Pure. Its filters and functions are added to the templates' environment by `regress_db.web.pages`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from markupsafe import Markup, escape

from regress_db.queries import DEFAULT_METRIC
from regress_db.web.links import Links, series_text
from regress_db.web.views.night import Cell
from regress_db.web.views.nightruns import Trouble
from regress_db.web.views.series import Line, SeriesView
from regress_db.web.views.shared import SeriesName
from regress_db.web.views.sides import BackendNumbers
from regress_db.wording import interval, latency, percent, size

PARTS = (
    *("backend", "mode", "device", "ranks", "nodes", "tokens", "hidden", "topk", "experts"),
    *("dtype", "combine", "routing", "seed", "protocol"),
)
"""The fields of a case's key, in the key's order."""

_BAR_WIDTH, _BAR_HEIGHT = 140, 20


def columns(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """The fields that any of the rows has, in the key's order: the columns that tell the rows apart."""
    there = {name for row in rows for name in row}
    return [name for name in PARTS if name in there]


def tip(cell: Cell, case: str) -> str:
    """What the hover box of a cell says: all that is known of it, a line each. case: whose row it is in."""
    lines = [f"{cell.sign} {cell.verdict}", cell.sentence.replace(f" of {case}", "", 1)]
    if cell.bandwidth_gbs is not None:
        lines.append(f"bandwidth {cell.bandwidth_gbs:.4g} GB/s per rank")
    if cell.cause:
        lines.append(f"put down to: {cell.cause}{f' (finding {cell.finding})' if cell.finding else ''}")
    if cell.before is not None:
        lines.append(f"the night before: {cell.before}")
    if passing := cell.acknowledged or cell.waiver:
        lines.append(passing)
    lines += [f"note: {warning}" for warning in cell.warnings]
    return "\n".join(lines)


def grouped(troubles: Iterable[Trouble]) -> list[list[Trouble]]:
    """Troubles with one outcome and one message together, in the order of the first of each."""
    groups: dict[tuple[str, str], list[Trouble]] = {}
    for one in troubles:
        groups.setdefault((one.outcome, one.message), []).append(one)
    return list(groups.values())


def day(at: datetime | None) -> str:
    """The day of a moment, in UTC, as an input of a form takes it."""
    return "" if at is None else f"{at.astimezone(UTC):%Y-%m-%d}"


def series_name(case: str, phase: str, platform: str) -> str:
    """A series as the address has it."""
    return series_text(SeriesName(case=case, phase="dispatch" if phase == "dispatch" else "combine", platform=platform))


def with_series(links: Links, view: SeriesView, added: SeriesName) -> str:
    """Where the same lines are with one more laid over them."""
    options = {
        "metric": view.metric,
        "by": view.by,
        "since": day(view.since),
        "until": day(view.until),
        "log": "1" if view.log else "",
    }
    return links.series(*view.asked, added, **options)


def overlay(links: Links, lines: Iterable[BackendNumbers]) -> str:
    """Where these backends are overlaid through time."""
    return links.series(*(SeriesName(case=one.case, phase=one.phase, platform=one.platform) for one in lines))


def leading(lines: Iterable[Line]) -> list[Line]:
    """One line of each series: the others are more metrics of it, and its change points are the same."""
    found: dict[int, Line] = {}
    for line in lines:
        if line.asked not in found or line.metric == DEFAULT_METRIC:
            found[line.asked] = line
    return list(found.values())


def from_seconds(at: float) -> datetime:
    """A moment of a plot."""
    return datetime.fromtimestamp(at, UTC)


def reach(changes: Sequence[float | None]) -> float:
    """The largest change that bars show, so that one of a thousand per cent does not flatten all others."""
    return min(max([abs(one) for one in changes if one is not None] + [0.05]), 1.0)


def change_bar(low: float | None, effect: float | None, high: float | None, floor: float, reach: float) -> Markup:
    """A relative change with its interval, on a scale that all rows share.

    The band is plus and minus the floor. reach: the largest change the scale shows; beyond it an arrow head says so.
    """
    if low is None or effect is None or high is None:
        return Markup("")
    top = math.log1p(reach)

    def x(change: float) -> float:
        share = math.log1p(max(change, -0.999)) / top
        return _BAR_WIDTH / 2 * (1 + min(1.0, max(-1.0, share)))

    middle, start = _BAR_HEIGHT / 2, x(-floor / (1 + floor))
    parts = [
        f'<rect class="band" x="{start:.1f}" y="2" width="{x(floor) - start:.1f}" height="{_BAR_HEIGHT - 4}"/>',
        f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="1" y2="{_BAR_HEIGHT - 1}"/>',
        f'<line class="whisker" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{middle}" y2="{middle}"/>',
    ]
    if high > reach:
        parts.append(f'<path class="arrow" d="M{_BAR_WIDTH - 6},{middle - 4} l6,4 l-6,4z"/>')
    if math.log1p(max(low, -0.999)) < -top:
        parts.append(f'<path class="arrow" d="M6,{middle - 4} l-6,4 l6,4z"/>')
    parts.append(f'<circle class="mark" cx="{x(effect):.1f}" cy="{middle}" r="3.6"/>')
    words = f"{percent(effect)}, interval {interval(low, high)}" + (f"; band: {size(floor)}" if floor else "")
    return Markup(
        f'<svg class="bar" viewBox="0 0 {_BAR_WIDTH} {_BAR_HEIGHT}" width="{_BAR_WIDTH}" height="{_BAR_HEIGHT}" '
        f'role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'
    )


def shown_latency(value_us: float | None) -> str:
    """A latency with its unit, a dash for none."""
    return "–" if value_us is None else latency(value_us)


def shown_change(change: float | None) -> str:
    """A signed change, a dash for none."""
    return "–" if change is None else percent(change)


FILTERS = {"tip": tip, "day": day, "us": shown_latency, "from_seconds": from_seconds, "change": shown_change}

FUNCTIONS = {
    "columns": columns,
    "grouped": grouped,
    "series_name": series_name,
    "with_series": with_series,
    "overlay": overlay,
    "leading": leading,
    "reach": reach,
    "change_bar": change_bar,
}
