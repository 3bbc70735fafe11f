"""What people said, as views show it: notes, and who acknowledged which regression."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from regress_db.acknowledged import ACKNOWLEDGED
from regress_db.history import History
from regress_db.notes import notes
from regress_db.triage import Decision, acknowledge_series, decisions
from regress_db.web.views.shared import NoteLine, SeriesName


def notes_of(history: History, **asked: Any) -> list[NoteLine]:
    """The notes that stand, oldest first; `asked` as for `regress_db.notes.notes`."""
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
        for one in notes(history, **asked)
    ]
    return sorted(lines, key=lambda line: (line.at, line.number))


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The acknowledgements that hold on a day, by case."""

    of_case: Mapping[str, Sequence[Decision]]

    def words(self, case: str, platform: str, phase: str) -> str:
        """Who acknowledged a regression of this series, until when and why; "" where nobody did."""
        for one in self.of_case.get(case, ()):
            if one.platform in (None, platform) and one.phase in (None, phase):
                return f"acknowledged by {one.decided_by}{f' until {one.until}' if one.until else ''}: {one.reason}"
        return ""


def acknowledged_on(history: History, when: datetime) -> Acknowledged:
    """The acknowledgements that stand and that hold on the day (UTC) of `when`."""
    found: dict[str, list[Decision]] = defaultdict(list)
    for one in decisions(history, kind=ACKNOWLEDGED):
        if one.until is None or one.until >= when.date():
            found[one.case].append(one)
    return Acknowledged(found)


def acknowledge(history: History, names: Sequence[SeriesName], *, who: str, why: str, until: date | None) -> None:
    """Let the open regressions of these series pass until then, as `epwatch ack` does."""
    for phase in sorted({name.phase for name in names}):
        series = {(name.case, name.platform) for name in names if name.phase == phase}
        acknowledge_series(history, series, who=who, why=why, until=until, phase=phase)
