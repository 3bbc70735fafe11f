"""What people said, as views show it: notes, and who acknowledged which regression."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from regress_db.history import History
from regress_db.web.views.shared import NoteLine


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


def acknowledged_words(by: str, why: str, until: datetime | None) -> str:
    """An acknowledgement in words."""
    ends = "" if until is None else f" until {until:%Y-%m-%d}"
    return f"acknowledged by {by}{ends}: {why}"
