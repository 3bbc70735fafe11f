"""Shuffling a plan's own history: what rate is found, what is taken apart first, and what is recorded."""

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, select

from harness.case import PHASES, Case
from regress_db.calibration import calibrate, level_for, plans
from regress_db.errors import NotFoundError
from regress_db.method.shuffles import (
    Alarms,
    Design,
    NightValues,
    Rate,
    Settled,
    level_within,
    night_share,
    replayed_alarms,
    shuffled_alarms,
)
from regress_db.schema import (
    CALIBRATIONS,
    CASES,
    ENVIRONMENTS,
    METRICS,
    NIGHTS,
    NODES,
    PLANNED,
    PLATFORMS,
    RUN_RANKS,
    RUN_VALUES,
    RUNS,
    TRIAGE,
)

START = datetime(2026, 1, 1, 2, 0, tzinfo=UTC)
PLATFORM = "Some CPU 3000/8/shared-memory/local"


def fill(history, *, cases=6, nights=30, runs=1, sd=0.02, plan="nightly", noise=None, seed=0, purpose=None):
    """Nights of `plan` straight into the tables; `noise(chance, night, case)` in units of `sd`."""
    chance = np.random.default_rng(seed)
    keys = [
        Case(backend="torch" if number % 5 == 0 else "ep_core", mode="ll", ranks=2, tokens=32 + number, hidden=256,
             topk=4, experts=8)
        for number in range(cases)
    ]  # fmt: skip
    rows = {table: [] for table in (RUNS, RUN_RANKS, RUN_VALUES, PLANNED)}
    for night in range(nights):
        for case in range(cases):
            for repeat in range(runs):
                number = len(rows[RUNS]) + 1
                when = START + timedelta(days=night, seconds=number % 3600)
                rows[RUNS].append(
                    {
                        "id": number,
                        "run_id": f"{number:032x}",
                        "case_id": case + 1,
                        "platform_id": 1,
                        "environment_id": 1,
                        "night_id": night + 1,
                        "repeat": repeat,
                        "started_at": when,
                        "ended_at": when,
                        "outcome": "ok",
                        "warmup": 1,
                        "iters": 2,
                        "conditions": {},
                        "notes": [],
                        "digest": "d",
                    }
                )
                rows[PLANNED].append(
                    {
                        "night_id": night + 1,
                        "run_id": f"{number:032x}",
                        "case_id": case + 1,
                        "repeat": repeat,
                        "purpose": purpose(repeat) if purpose else "planned",
                    }
                )
                rows[RUN_RANKS].append({"run": number, "rank": 0, "node_id": 1 + int(chance.integers(3))})
                for metric in (1, 2):
                    z = noise(chance, night, case) if noise else chance.normal()
                    value = 100.0 * math.exp(sd * z)
                    rows[RUN_VALUES].append({"run": number, "metric": metric, "value": value})
    with history.write() as connection:
        fields = Case.__struct_fields__
        connection.execute(
            insert(CASES),
            [
                {"id": number, "key": case.key, **{field: getattr(case, field) for field in fields}}
                for number, case in enumerate(keys, start=1)
            ],
        )
        platform = {"device_model": "cpu", "devices_per_node": 8, "interconnect": "shared-memory", "cluster": "local"}
        connection.execute(insert(PLATFORMS), [{"id": 1, "key": PLATFORM, **platform}])
        connection.execute(insert(ENVIRONMENTS), [{"id": 1, "digest": "e", "commit": "a" * 40, "content": {}}])
        connection.execute(insert(NODES), [{"id": number, "hostname": f"gpu{number}"} for number in (1, 2, 3)])
        connection.execute(
            insert(METRICS),
            [{"id": number, "phase": phase, "name": "slowest_p50_us"} for number, phase in enumerate(PHASES, start=1)],
        )
        connection.execute(
            insert(NIGHTS),
            [
                {"id": night + 1, "name": f"n{night}", "plan": plan, "started_at": START + timedelta(days=night)}
                for night in range(nights)
            ],
        )
        for table, of_table in rows.items():
            connection.execute(insert(table), of_table)
    return keys


def found(history, **options):
    return calibrate(history, "nightly", **{"who": "someone", "seed": 1, "shuffles": 40, "floor": 0.1, **options})


def recorded(history):
    with history.read() as connection:
        return connection.execute(select(*CALIBRATIONS.c).order_by(CALIBRATIONS.c.id)).all()


def test_a_quiet_history_keeps_the_budget_and_the_level_is_recorded(history):
    fill(history)
    assert level_for(history, "nightly") is None
    made = found(history, budget=0.02)
    assert made.level == 0.02
    assert made.alarms == 0
    assert made.low == 0 < made.high < 0.1
    assert len(made.series) == 12
    assert level_for(history, "nightly") == made.level
    (row,) = recorded(history)
    assert (row.made_by, row.plan, row.series, row.runs, row.shuffles) == ("someone", "nightly", 12, 360, 40)
    assert row.details["seed"] == 1
    assert "within the budget of 0.0200" in made.sentence


def test_the_newest_calibration_of_the_plan_is_the_one_that_counts(history):
    fill(history)
    found(history, budget=0.02, when=START + timedelta(days=1))
    found(history, budget=0.01, when=START + timedelta(days=2))
    assert level_for(history, "nightly") == 0.01
    assert level_for(history, "another") is None
    assert len(recorded(history)) == 2


def test_the_same_seed_gives_the_same_answer_and_another_may_not(history):
    fill(history, noise=lambda chance, night, case: chance.standard_t(2) * 2, cases=10)
    one, again, other = (found(history, seed=seed, floor=0.001, budget=0.5) for seed in (7, 7, 8))
    assert (one.alarms, one.improvements, one.series) == (again.alarms, again.improvements, again.series)
    assert other.seed == 8


def test_too_few_nights_are_said_and_nothing_is_recorded(history):
    fill(history, nights=7)
    made = found(history)
    assert made.level is None
    assert made.recorded_at is None
    assert made.left_out == 12
    assert "too few to calibrate on" in made.sentence
    assert recorded(history) == []


def test_a_plan_without_nights_is_refused_and_those_with_are_named(history):
    fill(history, nights=2)
    assert plans(history) == ["nightly"]
    with pytest.raises(NotFoundError, match="no night of plan 'hourly'; it has nights of nightly"):
        calibrate(history, "hourly", who="x", seed=1)


@pytest.mark.parametrize("wrong", [{"budget": 0.0}, {"budget": math.inf}, {"shuffles": 0}, {"newest": 0}])
def test_numbers_that_are_none_are_refused(history, wrong):
    with pytest.raises(ValueError, match="wanted numbers above 0"):
        found(history, **wrong)


def test_a_step_is_no_noise(history):
    """Half way all gets 40 % slower: shuffled as one it would be bimodal; parted, each half is quiet."""
    fill(history, nights=40, noise=lambda chance, night, case: chance.normal() + (night >= 20) * 17)
    made = found(history)
    assert made.alarms == 0
    assert all(one.nights == 40 for one in made.series)


def test_an_accepted_change_parts_the_history_where_the_person_says(history):
    keys = fill(history, cases=2, nights=14)
    with history.write() as connection:
        mark = {
            "case_id": 1,
            "decision": "accepted",
            "from_time": START + timedelta(days=7),
            "decided_by": "someone",
            "decided_at": START,
            "reason": "a new compiler",
        }
        connection.execute(insert(TRIAGE), [{**mark, "phase": "combine"}])
    made = found(history)
    assert made.left_out == 1
    assert (keys[0].key, "combine") not in {(one.case, one.phase) for one in made.series}


def test_a_night_that_slowed_everything_is_taken_out_before_shuffling(history):
    shifts = np.random.default_rng(4).normal(size=30) * 4
    fill(history, cases=40, noise=lambda chance, night, case: chance.normal() + shifts[night], sd=0.015)
    made = found(history, floor=0.04)
    assert made.nights_with == 0


def test_re_runs_and_the_other_half_of_an_a_a_check_are_no_part_of_it(history):
    fill(history, runs=3, purpose=lambda repeat: ("planned", "confirmation", "aa")[repeat])
    made = found(history)
    assert made.runs == 12 * 30
    assert made.night_share_known
    assert made.night_share < 0.2


def test_without_two_runs_in_a_night_its_share_is_assumed_and_that_is_said(history):
    fill(history)
    made = found(history)
    assert (made.night_share, made.night_share_known) == (0.25, False)
    assert "is taken to be a night's" in made.sentence


def test_nights_of_several_runs_stay_together(history):
    fill(history, runs=3, nights=12)
    made = found(history)
    assert made.runs == 12 * 12 * 3
    assert all(one.nights == 12 for one in made.series)


def test_only_the_newest_nights_are_looked_at(history):
    fill(history, nights=30)
    made = found(history, newest=10)
    assert made.nights == 10


def loud(count, nights=30, seed=0):
    """Series whose slow mode no test can know of: most runs alike, one in five far slower."""
    chance = np.random.default_rng(seed)
    return [
        Settled(
            (f"case {number}", "p", "combine"),
            "p",
            0.02,
            (
                tuple(
                    NightValues(night, (100 * math.exp(0.002 * chance.normal() + 0.4 * (chance.random() < 0.2)),))
                    for night in range(nights)
                ),
            ),
        )
        for number in range(count)
    ]


TEN = Design(baseline_nights=10)
NONE = Alarms(0, {}, (), ())


def test_false_alarms_fall_with_the_level_and_the_level_found_keeps_the_budget():
    alarms = shuffled_alarms(loud(30), TEN, shuffles=60, seed=1)
    counts = [alarms.count(level) for level in (1e-1, 1e-2, 1e-3, 1e-4)]
    assert counts == sorted(counts, reverse=True)
    for budget in (0.2, 0.05):
        level = level_within(budget, alarms, NONE)
        assert level is None or (level <= budget and alarms.per_night(level)[0] <= budget)


def test_a_budget_that_nothing_keeps_gives_no_level():
    key = ("case", "p", "combine")
    always = tuple(((key, 1e-12),) for _ in range(20))
    alarms = Alarms(20, {key: 20}, always, ((),) * 20)
    quiet = Alarms(20, {key: 20}, ((),) * 20, ((),) * 20)
    assert level_within(0.03, alarms, NONE) is None
    assert level_within(0.03, quiet, NONE) == 0.03
    assert level_within(0.03, quiet, alarms) is None
    assert alarms.per_night(0.03)[0] == 1
    assert alarms.of_series(0.03)[key].hits == 20


def test_nights_in_their_own_order_see_what_shuffling_cannot():
    """Levels that wander: each night is like the one before it, and unlike those of a month ago."""
    chance = np.random.default_rng(2)
    walks = 0.01 * np.cumsum(chance.normal(size=(60, 20)), axis=0)
    series = [
        Settled(
            (f"case {number}", "p", "combine"),
            "p",
            0.02,
            (tuple(NightValues(night, (100 * math.exp(walks[night, number]),)) for night in range(60)),),
        )
        for number in range(20)
    ]
    design = Design(baseline_nights=10, night_share=0.9)
    shuffled = shuffled_alarms(series, design, shuffles=50, seed=1)
    replayed = replayed_alarms(series, design, newest=50, seed=1)
    assert replayed.judged == 50
    assert replayed.nights(0.03).value > 3 * shuffled.nights(0.03).value


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_the_nights_share_is_found_though_only_slow_first_runs_were_measured_again(share):
    chance = np.random.default_rng(5)
    night = math.sqrt(share) * chance.normal(size=8000)
    first = night + math.sqrt(1 - share) * chance.normal(size=8000)
    again = night + math.sqrt((1 - share) / 2) * chance.normal(size=8000)
    slow = first > 1.6
    found = night_share(list(zip(first[slow], again[slow], strict=True)))
    assert found == pytest.approx(share, abs=0.06)


def test_a_spike_is_no_night_and_few_pairs_say_nothing():
    spiked = [(30.0, 0.1), (25.0, -0.2), (28.0, 0.0)] * 10
    assert night_share(spiked) < 0.15
    assert night_share([(2.0, 2.0)] * 7) is None
    assert night_share([]) is None


def test_several_alarms_in_one_night_are_counted_each_and_the_night_once():
    key, other = ("a", "p", "combine"), ("b", "p", "combine")
    nights = (((key, 0.01), (other, 0.03)), (), (), ())
    alarms = Alarms(4, {key: 4, other: 4}, nights, ((),) * 4)
    assert alarms.count(0.05) == 2
    assert alarms.nights(0.05) == Rate(1, 4)
    assert alarms.per_night(0.05)[0] == 0.5
    assert alarms.count(0.02) == 1


def test_short_stretches_are_left_out_and_nothing_at_all_is_no_error():
    short = Settled(("a", "p", "combine"), "p", 0.05, (tuple(NightValues(n, (100.0,)) for n in range(7)),))
    alarms = shuffled_alarms([short], TEN, shuffles=5, seed=1)
    assert alarms.trials == {}
    assert alarms.count(0.1) == 0


def test_series_without_any_noise_raise_no_alarm():
    still = Settled(("a", "p", "combine"), "p", 0.01, (tuple(NightValues(n, (100.0,)) for n in range(12)),))
    alarms = shuffled_alarms([still] * 3, TEN, shuffles=20, seed=1)
    assert alarms.count(0.1) == 0


@given(st.integers(0, 50), st.integers(1, 500))
def test_an_interval_holds_its_estimate_and_stays_a_share(hits, more):
    rate = Rate(hits, hits + more)
    low, high = rate.interval
    assert 0 <= low <= rate.value <= high <= 1
    assert high - low < 1


def test_wilsons_interval_as_published():
    """Newcombe 1998, table I: 81 of 263."""
    low, high = Rate(81, 263).interval
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
