"""The report of a night: one HTML file that opens with no network, no script in it, readable in the dark and on paper.

Called by the command line after a night; what it shows is gathered by `regress_db.nightview`, drawn by
`regress_db.figures`, and laid out by `templates/report.html.j2`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from datetime import UTC, datetime
from pathlib import Path

from regress_db import figures
from regress_db.errors import HistoryError
from regress_db.history import History
from regress_db.nightverdict import NO_NUMBER
from regress_db.nightview import NightView, gather
from regress_db.wording import SIGNS, interval, latency, percent, size

_FOLD_ABOVE = 8
_QUIET = frozenset({"unchanged", "insufficient", "improved"})
_LARGEST_REACH = 1.0


def write_report(history: History, night_id: str, path: Path, *, command: str | None = None) -> Path:
    """Write the night's report to `path`, whole or not at all, and return the path.

    command: the command line that repeats the night, as the caller knows it; without, the cases' own are shown.
    Raises `NotFoundError` for a night that is unknown or was not judged, `HistoryError` when `path` cannot be written.
    """
    page = render(gather(history, night_id), command=command)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise HistoryError(f"cannot write the report {path}: {error.strerror or error}") from error
    return path


def render(view: NightView, *, command: str | None = None) -> str:
    """The page. Everything from outside is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("regress_db"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "size": size, "latency": latency, "moment": _moment, "number": _number}
    environment.globals |= {
        "signs": SIGNS,
        "interval": interval,
        "change_bar": figures.change_bar,
        "run_dots": figures.run_dots,
        "past_nights": figures.past_nights,
        "past_nights_least": 2,
    }
    folded = len(view.cases) > _FOLD_ABOVE
    return environment.get_template("report.html.j2").render(
        view=view,
        verdict=view.verdict,
        tone=_tone(view),
        words=_words(view),
        reach=_reach(view),
        duration=_duration(view),
        made_at=datetime.now(UTC),
        command=command,
        open_cases={
            (case.case, case.platform)
            for case in view.cases
            if not folded or any(series.verdict.verdict not in _QUIET for series in case.series)
        },
        commands={case.case: f"epwatch run {shlex.quote(case.case)}" for case in view.cases},
    )


def _tone(view: NightView) -> str:
    """`bad`, `open` or `good`: the colour of the headline."""
    verdicts = {series.verdict for series in view.verdict.series}
    if view.verdict.exit_code():
        return "bad"
    return "open" if verdicts & {"inconclusive", "insufficient"} else "good"


def _words(view: NightView) -> str:
    """The night in one sentence, for someone who reads nothing else."""
    series = view.verdict.series
    slower = sum(one.verdict == "regressed" for one in series)
    silent = sum(one.verdict in NO_NUMBER for one in series)
    open_ones = sum(one.verdict in ("inconclusive", "insufficient") for one in series)
    if not series:
        return "Nothing was planned and nothing ran."
    said = [f"{slower} of {len(series)} series got slower"] if slower else []
    if silent:
        said.append(f"{silent} of {len(series)} series {'has' if silent == 1 else 'have'} no valid result")
    if not said:
        said.append("No series got slower")
        if open_ones:
            said.append(f"{open_ones} of {len(series)} could not be decided")
    return "; ".join(said) + "."


def _reach(view: NightView) -> float:
    """The largest change that the bars show."""
    sizes = [
        abs(size)
        for series in view.verdict.series
        for size in (series.low, series.high, series.floor * 1.5)
        if size is not None
    ]
    return min(max([*sizes, 0.05]), _LARGEST_REACH)


def _duration(view: NightView) -> str:
    if view.started_at is None or view.finished_at is None:
        return ""
    seconds = round((view.finished_at - view.started_at).total_seconds())
    if seconds < 0:
        return ""
    hours, minutes = divmod(seconds // 60, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds % 60:02} s" if minutes else f"{seconds} s"


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"


def _number(value: float | None) -> str:
    """Four significant digits, never in powers of ten for what a person reads."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
