"""Whole nights of made-up records: opened, measured but for what is to go wrong, collected, closed."""

import zlib
from datetime import timedelta

from synthetic_records import CASE, START, failed_record, ok_record

from harness import record as records
from harness.record import PlannedRun, new_run_id
from regress_db.ingest import collect
from regress_db.nights import close_night, open_night


def planned_runs(night, case=CASE, repeats=5):
    return [PlannedRun(run_id=new_run_id(), case=case, night=night, repeat=repeat) for repeat in range(repeats)]


def run_night(history, spool, name, planned=None, *, bad=None, started=START, purpose=None, **fields):
    """Open a night, measure its planned runs (all but those that `bad` says), collect, close.

    purpose: of a run, by its repeat. fields: of the records, such as combine_us.
    """
    planned = planned_runs(name) if planned is None else planned
    kinds = purpose or {}
    open_night(history, name, "nightly", started, planned, lambda run: kinds.get(run.repeat, "planned"))
    for index, one in enumerate(planned):
        outcome = (bad or {}).get(index, "ok")
        shared = {
            "case": one.case,
            "run_id": one.run_id,
            "night": name,
            "repeat": one.repeat,
            "started": started + timedelta(minutes=index),
            "seed": zlib.crc32(f"{name} {index}".encode()),
        }
        if outcome == "ok":
            records.write(ok_record(**shared, **fields), spool)
        elif outcome != "missing":
            records.write(failed_record(outcome, f"it {outcome}", **shared), spool)
    collect(history, spool)
    close_night(history, name)
    return planned
