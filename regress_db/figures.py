"""The report's figures as inline SVG: no script, no library, colours from the page's style sheet (so dark mode and
print follow), a tooltip on every mark. Pure; every text that comes from outside is escaped. Called by the template of
`regress_db.report`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from markupsafe import Markup, escape

from regress_db.nightview import NightPoint, RunPoint, SeriesView
from regress_db.wording import latency, percent, size

_BAR_WIDTH, _BAR_HEIGHT = 140, 22
_WIDTH, _LEFT, _RIGHT = 520, 78, 14
_DOTS_HEIGHT = 118
_PAST_HEIGHT = 176


def change_bar(low: float | None, effect: float | None, high: float | None, floor: float, reach: float) -> Markup:
    """A relative change with its interval on a scale that all rows share.

    The band is plus and minus the floor. reach: the largest change the scale shows; beyond it an arrow head says so.
    """
    if low is None or effect is None or high is None:
        return Markup("")
    top = math.log1p(reach)

    def x(change: float) -> float:
        share = math.log1p(change) / top
        return _BAR_WIDTH / 2 * (1 + min(1.0, max(-1.0, share)))

    middle = _BAR_HEIGHT / 2
    band, start, end = x(floor) - x(-floor / (1 + floor)), x(low), x(high)
    parts = [
        f'<rect class="band" x="{x(-floor / (1 + floor)):.1f}" y="2" width="{band:.1f}" height="{_BAR_HEIGHT - 4}"/>',
        f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="1" y2="{_BAR_HEIGHT - 1}"/>',
        f'<line class="whisker" x1="{start:.1f}" x2="{end:.1f}" y1="{middle}" y2="{middle}"/>',
    ]
    if high > reach:
        parts.append(f'<path class="arrow" d="M{_BAR_WIDTH - 6},{middle - 4} l6,4 l-6,4z"/>')
    if math.log1p(low) < -top:
        parts.append(f'<path class="arrow" d="M6,{middle - 4} l-6,4 l6,4z"/>')
    parts.append(f'<circle class="mark" cx="{x(effect):.1f}" cy="{middle}" r="3.6"/>')
    words = f"{percent(effect)}, interval {percent(low)} to {percent(high)}; band: the floor, {size(floor)}"
    return _svg(_BAR_WIDTH, _BAR_HEIGHT, "bar", words, parts)


def run_dots(view: SeriesView) -> Markup:
    """Every run's value, this night's above the baseline's, on one axis; a tick is the median, the band the floor."""
    rows: list[tuple[str, str, Sequence[RunPoint]]] = [("this night", "new", view.new), ("baseline", "base", view.base)]
    rows = [row for row in rows if row[2]]
    if not rows:
        return Markup("")
    values = [point.value_us for _, _, points in rows for point in points]
    centre = statistics.median(point.value_us for point in rows[-1][2])
    floor = view.verdict.floor if view.base else 0.0
    edges = [centre / (1 + floor), centre * (1 + floor)] if view.base else []
    low, high = _widened(min([*values, *edges]), max([*values, *edges]))

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    bottom = _DOTS_HEIGHT - 28
    parts = []
    if edges:
        parts.append(
            f'<rect class="band" x="{x(edges[0]):.1f}" y="6" width="{x(edges[1]) - x(edges[0]):.1f}" '
            f'height="{bottom - 6}"/>'
        )
    for tick in _ticks(low, high, 5):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="6" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 13}" text-anchor="middle">{tick:g}</text>')
    parts.append(
        f'<text class="tick" x="{_WIDTH - _RIGHT}" y="{_DOTS_HEIGHT - 2}" text-anchor="end">run value, µs</text>'
    )
    for index, (label, kind, points) in enumerate(rows):
        y = 6 + (index + 0.5) * (bottom - 6) / len(rows)
        parts.append(f'<text class="label" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        median = statistics.median(point.value_us for point in points)
        parts.append(
            f'<line class="median {kind}" x1="{x(median):.1f}" x2="{x(median):.1f}" '
            f'y1="{y - 15:.1f}" y2="{y + 15:.1f}"/>'
        )
        for place, point in enumerate(points):
            # A fixed stagger keeps equal values apart without hiding how many there are.
            shift = ((place * 7) % 5 - 2) * 3.2
            words = escape(f"{latency(point.value_us)}, run {point.run_id[:12]} on {point.hosts}")
            parts.append(
                f'<circle class="dot {kind}" cx="{x(point.value_us):.1f}" cy="{y + shift:.1f}" r="4">'
                f"<title>{words}</title></circle>"
            )
    return _svg(_WIDTH, _DOTS_HEIGHT, "dots", "Run values of this night and of the baseline", parts)


def past_nights(view: SeriesView) -> Markup:
    """The series night by night: the median of each night's runs, their range, the baseline's median and the floor."""
    if len(view.past) < 2:
        return Markup("")
    base = statistics.median(point.value_us for point in view.base) if view.base else None
    edges = [] if base is None else [base / (1 + view.verdict.floor), base * (1 + view.verdict.floor)]
    values = [value for point in view.past for value in point.values_us]
    low, high = _widened(min([*values, *edges]), max([*values, *edges]))
    bottom = _PAST_HEIGHT - 24
    step = (_WIDTH - _LEFT - _RIGHT) / len(view.past)

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - 8)

    def x(index: int) -> float:
        return _LEFT + (index + 0.5) * step

    parts = []
    if base is not None:
        parts.append(
            f'<rect class="band" x="{_LEFT}" y="{y(edges[1]):.1f}" width="{_WIDTH - _LEFT - _RIGHT}" '
            f'height="{y(edges[0]) - y(edges[1]):.1f}"/>'
        )
    for tick in _ticks(low, high, 4):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g} µs</text>')
    if base is not None:
        parts.append(
            f'<line class="reference" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(base):.1f}" y2="{y(base):.1f}"/>'
        )
    medians = [statistics.median(point.values_us) for point in view.past]
    ranges = "".join(
        f"M{x(index):.1f},{y(min(point.values_us)):.1f}V{y(max(point.values_us)):.1f}"
        for index, point in enumerate(view.past)
    )
    parts.append(f'<path class="range" d="{ranges}"/>')
    line = " ".join(f"{x(index):.1f},{y(value):.1f}" for index, value in enumerate(medians))
    parts.append(f'<polyline class="path" points="{line}"/>')
    for index, (point, value) in enumerate(zip(view.past, medians, strict=True)):
        kind = "new" if index == len(medians) - 1 else "old"
        parts.append(
            f'<circle class="dot {kind}" cx="{x(index):.1f}" cy="{y(value):.1f}" r="{4 if kind == "new" else 2.8}">'
            f"<title>{escape(_night_words(point, value))}</title></circle>"
        )
    one_day = view.past[0].started_at.date() == view.past[-1].started_at.date()
    form = "%Y-%m-%d %H:%M" if one_day else "%Y-%m-%d"
    for index, anchor in ((0, "start"), (len(view.past) - 1, "end")):
        edge = _LEFT if anchor == "start" else _WIDTH - _RIGHT
        day = view.past[index].started_at.strftime(form)
        parts.append(f'<text class="tick" x="{edge}" y="{_PAST_HEIGHT - 6}" text-anchor="{anchor}">{day}</text>')
    return _svg(_WIDTH, _PAST_HEIGHT, "past", f"The last {len(view.past)} nights of this series", parts)


def _night_words(point: NightPoint, median: float) -> str:
    return (
        f"{point.night}, {point.started_at:%Y-%m-%d %H:%M} UTC: median {latency(median)}, "
        f"{latency(min(point.values_us))} to {latency(max(point.values_us))}, {len(point.values_us)} runs"
    )


def _svg(width: float, height: float, kind: str, words: str, parts: Sequence[str]) -> Markup:
    """The drawing; `parts` must be escaped already."""
    return Markup(
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(words)}"><title>{escape(words)}</title>{"".join(parts)}</svg>'
    )


def _widened(low: float, high: float) -> tuple[float, float]:
    """A little air on both sides; never nothing."""
    air = (high - low) * 0.06 or abs(high) * 0.02 or 1.0
    return low - air, high + air


def _ticks(low: float, high: float, count: int) -> list[float]:
    """At most `count` + 1 round numbers between low and high."""
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step)
    return [round(index * step, 10) for index in range(first, math.floor(high / step) + 1)]
