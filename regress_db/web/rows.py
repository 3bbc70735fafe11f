"""Views as tables, for CSV: one row for each thing a view lists. Pure. Used by `regress_db.web.app`."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Any

import msgspec

from regress_db.web.views.night import NightView
from regress_db.web.views.nights import NightsView
from regress_db.web.views.nodes import NodesView
from regress_db.web.views.run import RunView
from regress_db.web.views.series import SeriesView
from regress_db.web.views.shared import Answer
from regress_db.web.views.sides import BackendsView, CompareView
from regress_db.web.views.triage import TriageView

_Row = dict[str, Any]


def as_csv(view: Answer) -> str:
    """CSV with a header line, empty where a view lists nothing; None is an empty field, a mapping is JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names: list[str] = []
    for row in _ROWS[type(view)](view):
        if not names:
            names = list(row)
            writer.writerow(names)
        writer.writerow([_plain(row[name]) for name in names])
    return text.getvalue()


def _plain(value: object) -> object:
    if isinstance(value, (list, tuple, Mapping)):
        return msgspec.json.encode(value).decode()
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    if isinstance(value, date):
        return value.isoformat()
    return "" if value is None else value


def _night(view: NightView) -> Iterator[_Row]:
    for row in view.rows:
        for cell in row.cells:
            yield {"night": view.night, "case": row.case, "platform": row.platform, **msgspec.structs.asdict(cell)}


def _nights(view: NightsView) -> Iterator[_Row]:
    yield from map(msgspec.structs.asdict, view.nights)


def _series(view: SeriesView) -> Iterator[_Row]:
    for line in view.lines:
        names = line.points.__struct_fields__
        for values in zip(*(getattr(line.points, name) for name in names), strict=True):
            point = dict(zip(names, values, strict=True))
            point["at"] = datetime.fromtimestamp(point["at"], UTC)
            yield {
                "case": line.case,
                "platform": line.platform,
                "phase": line.phase,
                "metric": line.metric,
                **point,
            }


def _run(view: RunView) -> Iterator[_Row]:
    for phase in view.phases:
        for one in phase.numbers:
            yield {"run_id": view.run_id, "phase": phase.phase, **msgspec.structs.asdict(one)}


def _compare(view: CompareView) -> Iterator[_Row]:
    for one in view.numbers:
        row = msgspec.structs.asdict(one)
        del row["parts"]
        yield row


def _backends(view: BackendsView) -> Iterator[_Row]:
    yield from map(msgspec.structs.asdict, view.numbers)


def _nodes(view: NodesView) -> Iterator[_Row]:
    yield from map(msgspec.structs.asdict, view.nodes)


def _triage(view: TriageView) -> Iterator[_Row]:
    for one in view.regressions:
        row = msgspec.structs.asdict(one)
        del row["parts"]
        yield row


_ROWS: Mapping[type[Answer], Callable[[Any], Iterator[_Row]]] = {
    NightView: _night,
    NightsView: _nights,
    SeriesView: _series,
    RunView: _run,
    CompareView: _compare,
    BackendsView: _backends,
    NodesView: _nodes,
    TriageView: _triage,
}
