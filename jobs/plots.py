"""Series drawn on the terminal, with the marks that the web page has: points and their verdicts, the baseline's band,
change points, notes, changes of the environment.

What is drawn is gathered by `regress_db.web.views.serieslines`, as for the page. Called by `epwatch trend`, which shows
the table instead where there is no terminal. plotille is loaded only when something is drawn.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jobs.tables import figure, has_colours, visible
from regress_db.wording import SIGNS, latency

if TYPE_CHECKING:
    from regress_db.web.views.series import Line, SeriesView

_HEIGHT = 14
"""Lines of a plot: two phases of a case fit a usual terminal."""

_NARROWEST = 30
_AXIS = 14
_ROOM = 0.04
"""Left free around the points, as a share of their range."""

_INTERVALS_UNTIL = 0.5
"""Intervals are drawn where there are at most so many points for each column."""

_COLOURS = {"regressed": "bright_red", "improved": "bright_green", "inconclusive": "bright_yellow"}
_MARKED = ("regressed", "improved", "inconclusive")
_BAND, _CHANGE, _NOTE, _TURN = "cyan", "bright_magenta", "bright_yellow", "bright_blue"


@dataclass(frozen=True, slots=True)
class _Mark:
    """Something at a moment. sign: short, in the plot; row: on which of its lines, from the foot."""

    at: float
    sign: str
    words: str
    colour: str
    row: int


def can_draw() -> bool:
    """Whether what stdout is written in has the signs."""
    try:
        "⠿▲".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def drawn(view: SeriesView) -> str:
    """Every line of the view as a plot of its own, each with what its marks mean below it."""
    width = max(shutil.get_terminal_size().columns - _AXIS, _NARROWEST)
    return "\n\n".join("\n".join(_plot(view, place, line, width)) for place, line in enumerate(view.lines))


def _plot(view: SeriesView, place: int, line: Line, width: int) -> Iterator[str]:
    yield f"{line.phase} of {visible(line.case)}"
    yield f"on {visible(line.platform)}: {view.words}"
    if not line.points.at:
        yield "no run in this time has a value"
        return
    marks = _marks(view, place, line)
    yield _canvas(view, line, marks, width)
    if line.band is not None:
        yield f"band  {_value(view, line.band.low)} to {_value(view, line.band.high)}: {visible(line.band.words)}"
    there = [verdict for verdict in _MARKED if verdict in line.points.verdict]
    if there:
        yield "      ".join(f"{SIGNS[verdict]} {verdict}" for verdict in there)
    for mark in marks:
        yield f"{mark.sign:<4}  {_day(mark.at)}  {visible(mark.words)}"


def _marks(view: SeriesView, place: int, line: Line) -> list[_Mark]:
    """All of the line's marks, each kind numbered through time."""
    first, last = line.points.at[0], line.points.at[-1]
    changes = [_Mark(one.at, f"c{i}", one.sentence, _CHANGE, _HEIGHT - 1) for i, one in enumerate(line.changes, 1)]
    noted = [
        one
        for one in view.notes
        if one.case in ("", line.case) and one.platform in ("", line.platform) and one.phase in ("", line.phase)
    ]
    notes = [_Mark(one.at.timestamp(), f"n{i}", f"{one.text} ({one.who})", _NOTE, 1) for i, one in enumerate(noted, 1)]
    turned = [one for one in view.marks if view.lines[one.line].asked == line.asked]
    turns = [_Mark(one.at, f"e{i}", one.words, _TURN, 0) for i, one in enumerate(turned, 1)]
    chosen = [mark for mark in (*changes, *turns) if first <= mark.at <= last]
    upto = view.until.timestamp() if view.until else math.inf
    return chosen + [mark for mark in notes if first <= mark.at < upto]


def _canvas(view: SeriesView, line: Line, marks: Sequence[_Mark], width: int) -> str:
    import plotille  # type: ignore[import-untyped]

    points, band = line.points, line.band
    held = [*points.low, *points.high, *([band.low, band.high] if band else [])]
    bottom, top = _around(min(held), max(held))
    left, right = _around(points.at[0], points.at[-1], least=3600.0)
    plot: Any = plotille.Figure()
    plot.width, plot.height = width, _HEIGHT
    plot.color_mode, plot.with_colors, plot.origin = "names", has_colours(), False
    plot.set_x_limits(left, right)
    plot.set_y_limits(bottom, top)
    plot.x_label, plot.y_label = view.by, view.unit
    plot.register_label_formatter(float, lambda value, chars, delta, left: _label(value, chars, delta, left))
    if band is not None:
        for edge in (band.low, band.high):
            plot.plot([left, right], [edge, edge], lc=_BAND)
    for mark in marks:
        if mark.colour == _CHANGE:
            plot.axvline((mark.at - left) / (right - left), lc=mark.colour)
    if len(points.at) <= width * _INTERVALS_UNTIL:
        for at, low, high in zip(points.at, points.low, points.high, strict=True):
            if low < high:
                plot.plot([at, at], [low, high])
    for verdict in ("", *_MARKED):
        chosen = [
            place
            for place, said in enumerate(points.verdict)
            if said == verdict or (not verdict and said not in _MARKED)
        ]
        plot.scatter(
            [points.at[place] for place in chosen],
            [points.value[place] for place in chosen],
            lc=_COLOURS.get(verdict),
            marker=SIGNS[verdict] if verdict else "•",
        )
    row, column = (top - bottom) / _HEIGHT, (right - left) / width
    for mark in marks:
        at = min(mark.at, right - (len(mark.sign) + 1) * column)
        plot.text([at], [bottom + (mark.row + 0.5) * row], [mark.sign], lc=mark.colour)
    return str(plot.show())


def _around(low: float, high: float, least: float = 0.0) -> tuple[float, float]:
    """The range with some room at its ends; of one value, around it."""
    room = max((high - low) * _ROOM, least) or abs(high) * _ROOM or 1.0
    return low - room, high + room


def _label(value: float, chars: int, delta: Any, left: bool) -> str:
    """A tick: days along the foot, figures up the side."""
    if left:
        return f"{datetime.fromtimestamp(value, UTC):%y-%m-%d}".ljust(chars)
    return f"{value:,.4g}".rjust(chars)


def _value(view: SeriesView, value: float) -> str:
    return latency(value) if view.unit == "µs" else f"{figure(value)} {view.unit}".rstrip()


def _day(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"
