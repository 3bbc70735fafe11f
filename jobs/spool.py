"""The spool, as those see it who measure: which runs have a record there, and bringing what is there home.

Called by `jobs.nightly` and `epwatch run`; torch-free. Next to read: `regress_db.ingest`.
"""

from __future__ import annotations

import contextlib
import os
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


def waiting_records(spool: Path) -> set[str]:
    """Ids of the runs whose records lie in the spool, not ingested yet: one look, however many there are."""
    with contextlib.suppress(OSError), os.scandir(spool) as entries:
        return {
            entry.name.removesuffix(".json")
            for entry in entries
            if entry.name.endswith(".json") and not entry.name.startswith(".")
        }
    return set()


def bring_home(history: History, spool: Path) -> set[str]:
    """Ingest what lies in the spool; ids of the runs it brought, that are now in the history.

    Whatever had to go to quarantine is told on stderr.
    """
    from regress_db.ingest import collect

    if not waiting_records(spool):
        return set()
    done = collect(history, spool)
    for file, reason in done.quarantined:
        print(f"epwatch: {file.name} went to {file.parent / 'quarantine'}: {reason}", file=sys.stderr)
    return {*done.accepted, *done.already}
