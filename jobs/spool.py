"""The spool, as those see it who measure: which runs have a record there, and bringing what is there home.

Called by `jobs.nightly`, `jobs.aftermath` and `epwatch run`; torch-free. Next to read: `regress_db.ingest`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.record import PlannedRun, recorded

if TYPE_CHECKING:
    from regress_db.history import History


def find_records(runs: Iterable[PlannedRun], spool: Path) -> dict[str, Path]:
    """Run id to its record's file, for the runs that have one: in the spool, or where ingestion has moved it."""
    where = ((run.run_id, recorded(spool, run.run_id)) for run in runs)
    return {run_id: path for run_id, path in where if path is not None}


def bring_home(history: History, spool: Path) -> None:
    """Ingest what lies in the spool; whatever had to go to quarantine is told on stderr."""
    from regress_db.ingest import collect

    for file, reason in collect(history, spool).quarantined:
        print(f"epwatch: {file.name} went to {file.parent / 'quarantine'}: {reason}", file=sys.stderr)
