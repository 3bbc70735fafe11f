"""Nights of thousands of runs are entered whole, and entering them again changes nothing."""

from datetime import UTC, datetime

import msgspec
from sqlalchemy import func, select
from synthetic_records import CASE

from harness.record import PlannedRun, new_run_id
from regress_db.nights import open_night
from regress_db.schema import CASES, PLANNED

BEGAN = datetime(2026, 11, 24, 2, tzinfo=UTC)


def planned(cases, repeats):
    made = [msgspec.structs.replace(CASE, seed=seed) for seed in range(cases)]
    return [
        PlannedRun(run_id=new_run_id(), case=case, night="n", repeat=repeat)
        for repeat in range(repeats)
        for case in made
    ]


def rows_of(history):
    with history.read() as connection:
        wanted = select(PLANNED.c.run_id, CASES.c.key).join(CASES, CASES.c.id == PLANNED.c.case_id)
        return dict(connection.execute(wanted).all()), connection.execute(select(func.count(CASES.c.id))).scalar_one()


def test_a_night_of_thousands_of_cases_and_repeats_is_entered_whole(history):
    runs = planned(2300, 2)
    open_night(history, "n", "p", BEGAN, runs)
    assert rows_of(history) == ({run.run_id: run.case.key for run in runs}, 2300)


def test_entering_a_night_again_adds_what_is_new_alone(history):
    runs = planned(3, 2)
    open_night(history, "n", "p", BEGAN, runs)
    more = planned(5, 1)
    open_night(history, "n", "p", BEGAN, [*runs, *more])
    assert rows_of(history) == ({run.run_id: run.case.key for run in [*runs, *more]}, 5)
