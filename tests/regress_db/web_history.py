"""A small history that the tests of the web page's server ask: few nights, one of everything, names that are markup."""

from datetime import timedelta

import msgspec
from nights_of_records import planned_runs, run_night
from synthetic_records import CASE, START, environment, failed_record, ok_record

from harness import record as records
from regress_db.baselines import set_baseline
from regress_db.ingest import collect
from regress_db.nights import close_night, open_night
from regress_db.verdicts import Rules, judge_night

EVIL = "<script>alert('x')<script>"
ODD_CASE = msgspec.structs.replace(CASE, backend=EVIL)
FP8 = msgspec.structs.replace(CASE, dtype="fp8")
PLATFORM = "local/Some CPU 3000/x8/shared-memory"
ODD_NIGHT = f'5 / {EVIL}?#&="'


def fill(history, spool):
    """Four nights: `n1` is the baseline, combine is slower from `n3` on, dispatch again well in `n4`, where one run
    failed and one is missing; then one night with odd names.
    """
    cases = (CASE, FP8)
    for day, name in enumerate(("n1", "n2", "n3", "n4")):
        planned = [run for case in cases for run in planned_runs(name, case, 3)]
        bad = {3: "failed", 4: "missing"} if name == "n4" else None
        slower = {"combine_us": 300.0} if day >= 2 else {}
        env = environment(commit=f"{day}" * 40, torch="2.13.0" if day < 2 else "2.14.0")
        run_night(
            history,
            spool,
            name,
            planned,
            bad=bad,
            started=START + timedelta(days=day),
            env=env,
            dispatch_us=150.0 if name == "n3" else 100.0,
            **slower,
        )
        if name == "n1":
            set_baseline(history, "main", night="n1", who="ada", why="first clean night")
        judge_night(history, name, baseline="main", rules=Rules(floor=0.1))
    return history


def add_odd_night(history, spool):
    """A night whose id, plan, hosts, environment and messages are markup; so is the case that failed in it."""
    started = START + timedelta(days=4)
    good, bad = planned_runs(ODD_NIGHT, CASE, 1)[0], planned_runs(ODD_NIGHT, ODD_CASE, 1)[0]
    open_night(history, ODD_NIGHT, EVIL, started, [good, bad])
    shared = {"night": ODD_NIGHT, "hostname": EVIL, "env": environment(torch=EVIL)}
    failed = failed_record("failed", EVIL, EVIL, case=ODD_CASE, run_id=bad.run_id, started=started, **shared)
    later = started + timedelta(minutes=1)
    ok = ok_record(case=CASE, run_id=good.run_id, started=later, **shared)
    for record in (failed, ok):
        records.write(msgspec.structs.replace(record, notes=[EVIL]), spool)
    assert len(collect(history, spool).accepted) == 2
    close_night(history, ODD_NIGHT)
    judge_night(history, ODD_NIGHT, baseline=None)
