"""Which of some runs have a record in the spool. Called by `jobs.nightly`, `jobs.aftermath` and `epwatch run`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness.record import PlannedRun

_INGESTED = "ingested"


def find_records(runs: Iterable[PlannedRun], spool: Path) -> dict[str, Path]:
    """Run id to its record's file, for the runs that have one: in the spool, or where ingestion has moved it."""
    found = {}
    for run in runs:
        for path in (spool / f"{run.run_id}.json", spool / _INGESTED / f"{run.run_id}.json"):
            if path.exists():
                found[run.run_id] = path
                break
    return found
