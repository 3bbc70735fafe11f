"""`epwatch calibrate` as a user runs it: on a history of a few nights made of random numbers."""

import csv
import io
import json
import math
import random
from datetime import UTC, datetime, timedelta

import pytest
from epwatch_command import epwatch, sentence
from sqlalchemy import insert

from harness.case import PHASES, Case
from jobs.judging import rules_of
from jobs.plan import parse
from regress_db.history import History
from regress_db.method.comparing import METHOD
from regress_db.schema import (
    CALIBRATIONS,
    CASES,
    ENVIRONMENTS,
    METRICS,
    NIGHTS,
    NODES,
    PLATFORMS,
    RUN_RANKS,
    RUN_VALUES,
    RUNS,
)

PLAN = """
[plan]
name = "nightly"
history = "history.db"
[cluster]
kind = "local"
[verdict]
floor = 0.2
false_alarms_a_month = 0.5
[[cases]]
backend = "ep_core"
mode = "ll"
ranks = 2
tokens = 32
hidden = 256
topk = 4
experts = 8
"""


def make_history(folder, nights, plans=("nightly",)):
    case = Case(backend="ep_core", mode="ll", ranks=2, tokens=32, hidden=256, topk=4, experts=8)
    chance = random.Random(1)
    start = datetime(2026, 10, 1, 2, tzinfo=UTC)
    with History.open(folder / "history.db") as history, history.write() as connection:
        fields = {name: getattr(case, name) for name in Case.__struct_fields__}
        connection.execute(insert(CASES), {"id": 1, "key": case.key, **fields})
        platform = {"device_model": "cpu", "devices_per_node": 8, "interconnect": "shared-memory", "cluster": "local"}
        connection.execute(insert(PLATFORMS), {"id": 1, "key": "cpu/8/shared-memory/local", **platform})
        connection.execute(insert(ENVIRONMENTS), {"id": 1, "digest": "e", "commit": "a" * 40, "content": {}})
        connection.execute(insert(NODES), {"id": 1, "hostname": "node-1"})
        for number, phase in enumerate(PHASES, start=1):
            connection.execute(insert(METRICS), {"id": number, "phase": phase, "name": "slowest_p50_us"})
        for night in range(nights):
            when = start + timedelta(days=night)
            number = night + 1
            plan = plans[night % len(plans)]
            connection.execute(insert(NIGHTS), {"id": number, "name": f"n{night}", "plan": plan, "started_at": when})
            shared = {"platform_id": 1, "environment_id": 1, "repeat": 0, "warmup": 1, "iters": 2, "digest": "d"}
            connection.execute(
                insert(RUNS),
                {
                    "id": number,
                    "run_id": f"{number:032x}",
                    "case_id": 1,
                    "night_id": number,
                    "started_at": when,
                    "ended_at": when,
                    "outcome": "ok",
                    "conditions": {},
                    "notes": [],
                    **shared,
                },
            )
            connection.execute(insert(RUN_RANKS), {"run": number, "rank": 0, "node_id": 1})
            for metric in (1, 2):
                value = 100 * math.exp(0.02 * chance.gauss(0, 1))
                connection.execute(insert(RUN_VALUES), {"run": number, "metric": metric, "value": value})


def test_calibrating_a_plans_file_says_what_was_found_and_records_it(tmp_path):
    make_history(tmp_path, 20)
    (tmp_path / "plan.toml").write_text(PLAN)
    done = epwatch("calibrate", "plan.toml", "--seed", "3", "--shuffles", "40", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "20 nights of plan nightly, 2 series, shuffled 40 times (seed 3): level 0.0167" in done.stdout
    assert "Recorded: nights of plan nightly are judged at 0.0167 from now on." in done.stdout


def test_the_only_plan_of_a_history_need_not_be_named_and_json_says_it_all(tmp_path):
    make_history(tmp_path, 12)
    done = epwatch("calibrate", "--json", "--shuffles", "30", "--budget", "0.01", "--db", "history.db", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["plan"], found["level"], found["budget"], found["shuffles"]) == ("nightly", 0.01, 0.01, 30)
    assert [one["phase"] for one in found["series"]] == ["combine", "dispatch"]
    assert isinstance(found["seed"], int)


def test_csv_has_a_line_for_each_series(tmp_path):
    make_history(tmp_path, 12)
    done = epwatch("calibrate", "nightly", "--csv", "--shuffles", "30", "--db", "history.db", cwd=tmp_path)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["nights"] for row in rows] == ["12", "12"]
    assert {row["shuffles"] for row in rows} == {"30"}


def test_a_short_history_is_told_so_and_that_is_no_failure(tmp_path):
    make_history(tmp_path, 5)
    done = epwatch("calibrate", "--db", "history.db", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "too few to calibrate on" in done.stdout
    assert "Recorded" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["calibrate", "--db", "history.db"], "say which plan of the history history.db is to be calibrated"),
        (["calibrate", "hourly", "--db", "history.db"], "the history has no night of plan 'hourly'"),
        (["calibrate", "weekly", "--db", "none.db"], "there is no history at none.db"),
        (["calibrate", "none.toml", "--db", "history.db"], "cannot read the plan none.toml"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_one_sentence(tmp_path, arguments, said):
    make_history(tmp_path, 4, plans=("nightly", "weekly"))
    assert said in sentence(epwatch(*arguments, cwd=tmp_path))


@pytest.mark.parametrize(("recorded", "level"), [(None, 0.5 / 30), (0.03, 0.5 / 30), (0.005, 0.005)])
def test_a_recorded_level_judges_nights_only_where_it_is_stricter_than_the_plan(tmp_path, recorded, level):
    plan = parse(PLAN, "plan.toml")
    with History.open(tmp_path / "history.db") as history:
        if recorded is not None:
            with history.write() as connection:
                connection.execute(
                    insert(CALIBRATIONS),
                    {
                        "made_at": datetime(2026, 10, 1, tzinfo=UTC),
                        "made_by": "ada",
                        "plan": "nightly",
                        "judge": METHOD,
                        "series": 2,
                        "runs": 20,
                        "shuffles": 200,
                        "alarms": 1,
                        "budget": 0.05,
                        "level": recorded,
                        "details": {},
                    },
                )
        assert rules_of(history, plan).level == pytest.approx(level)
