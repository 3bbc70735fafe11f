"""What people said, as views show it: notes, and who acknowledged which regression."""

from __future__ import annotations

import importlib
import importlib.util
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from regress_db.errors import NotFoundError
from regress_db.history import History
from regress_db.triage import Decision, decisions
from regress_db.web.views.shared import NoteLine, SeriesName

_ACKNOWLEDGED = "acknowledged"


def notes_of(history: History, **asked: Any) -> list[NoteLine]:
    """The notes that stand, oldest first; `asked` as for `regress_db.notes.notes`."""
    if importlib.util.find_spec("regress_db.notes") is None:
        return []
    found: Iterable[Any] = importlib.import_module("regress_db.notes").notes(history, **asked)
    lines = [
        NoteLine(
            number=one.number,
            at=one.at,
            who=one.who,
            text=one.text,
            case=one.case or "",
            platform=one.platform or "",
            phase=one.phase or "",
            night=one.night or "",
            run_id=one.run_id or "",
        )
        for one in found
        if one.withdrawn_at is None
    ]
    return sorted(lines, key=lambda line: (line.at, line.number))


def regressions_of(history: History, limit: int | None = None) -> list[Any]:
    """The regressions, as `regress_db.triage.regressions` has them."""
    triage = importlib.import_module("regress_db.triage")
    if not hasattr(triage, "regressions"):
        return []
    found: list[Any] = triage.regressions(history, limit=limit)
    return found


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The acknowledgements that hold on a day, by case."""

    of_case: Mapping[str, Sequence[Decision]]

    def words(self, case: str, platform: str, phase: str) -> str:
        """Who acknowledged a regression of this series, until when and why; "" where nobody did."""
        for one in self.of_case.get(case, ()):
            if one.platform in (None, platform) and one.phase in (None, phase):
                until = getattr(one, "until", None)
                return f"acknowledged by {one.decided_by}{f' until {until}' if until else ''}: {one.reason}"
        return ""


def acknowledged_on(history: History, when: datetime) -> Acknowledged:
    """The acknowledgements that stand and that hold on the day (UTC) of `when`."""
    found: dict[str, list[Decision]] = defaultdict(list)
    for one in decisions(history):
        until = getattr(one, "until", None)
        if one.decision == _ACKNOWLEDGED and (until is None or until >= when.date()):
            found[one.case].append(one)
    return Acknowledged(found)


def acknowledge(history: History, names: Sequence[SeriesName], *, who: str, why: str, until: date | None) -> None:
    """Let the open regressions of these series pass until then, as `epwatch ack` does."""
    triage = importlib.import_module("regress_db.triage")
    if not hasattr(triage, "acknowledge_series"):
        raise NotFoundError("this epwatch cannot acknowledge regressions")
    for phase in sorted({name.phase for name in names}):
        series = {(name.case, name.platform) for name in names if name.phase == phase}
        triage.acknowledge_series(history, series, who=who, why=why, until=until, phase=phase)
