"""What is blamed on a night, a node or the environment, and above all what is not: a commit is never explained away."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regress_db.environments import Difference
from regress_db.method.attribution import Changed, Context, RunShift, SeriesShift, group, shared_shifts
from regress_db.method.consensus import consensus

A, B = "a" * 40, "b" * 40
DRIVER = Difference("versions.driver", "580.1", "580.2")
SAME_CODE = Context(A, A, (), "h100", "2026-11-22")
NEW_CODE = Context(A, B, (), "h100", "2026-11-22")
UNKNOWN_CODE = Context(A, "", (), "h100", "2026-11-22")
NOISE = {
    "normal": lambda chance: chance.normal(),
    "t3": lambda chance: chance.standard_t(3) / math.sqrt(3),
    "spikes": lambda chance: 0.7 * chance.normal() + (chance.random() < 0.03) * 8,
    "bimodal": lambda chance: (chance.random() < 0.4) * 2.0 - 0.8 + 0.4 * chance.normal(),
}


def a_night(
    seed,
    *,
    cases=150,
    controls=30,
    hosts=8,
    repeats=1,
    hosts_per_run=1,
    noise="normal",
    sd=0.015,
    shift=lambda case, under_test, hosts: 0.0,
    placed=None,
):
    """Two phases for each case, sharing their runs; `shift` is what is done to a run, as a log change."""
    chance = np.random.default_rng(seed)
    series = []
    for case in range(cases):
        under_test = case >= controls
        spread = sd * math.exp(0.4 * chance.normal())
        where = [
            placed(case, repeat)
            if placed
            else tuple(f"gpu{host}" for host in chance.choice(hosts, hosts_per_run, replace=False))
            for repeat in range(repeats)
        ]
        of_run = [NOISE[noise](chance) for _ in range(repeats)]
        for phase in ("dispatch", "combine"):
            centre = spread * chance.normal() * math.sqrt(0.12)
            runs = tuple(
                RunShift(
                    spread * (0.7 * of_run[repeat] + 0.7 * NOISE[noise](chance)) - centre + shift(case, under_test, on),
                    on,
                    f"job{case // 8}",
                    f"run{case}.{repeat}",
                )
                for repeat, on in enumerate(where)
            )
            label = f"{'ep_core' if under_test else 'torch'} {('ll', 'ht')[case % 2]} {phase}"
            series.append(SeriesShift((case, phase), under_test, label, runs, spread, stratum=f"{label} {case % 3}"))
    return series


def removed(series, shared, under_test):
    return [shared.removed[one.series] for one in series if one.under_test == under_test]


@pytest.mark.parametrize("context", [SAME_CODE, NEW_CODE])
def test_one_slow_node_among_300_series_is_named_and_taken_out(context):
    series = a_night(1, shift=lambda case, under_test, hosts: 0.1 if "gpu3" in hosts else 0.0)
    shared = shared_shifts(series, context)
    (finding,) = shared.findings
    assert (finding.cause, finding.subject) == ("node", "gpu3")
    assert finding.low < math.expm1(0.1) < finding.high
    assert "gpu3 is slow" in finding.sentence
    there = {one.series for one in series if any("gpu3" in run.hosts for run in one.runs)}
    assert set(finding.series) == there
    assert all((shared.removed[key] != 0) == (key in there) for key in shared.removed)


def test_runs_on_the_slow_node_alone_are_corrected():
    series = a_night(2, repeats=3, shift=lambda case, under_test, hosts: 0.1 if "gpu3" in hosts else 0.0)
    shared = shared_shifts(series, NEW_CODE)
    for one in series:
        for run, taken in zip(one.runs, shared.removed_runs[one.series], strict=True):
            assert (abs(taken - 0.1) < 0.02) if "gpu3" in run.hosts else taken == 0


def test_a_slow_node_inside_runs_of_two_nodes_is_found():
    series = a_night(3, hosts_per_run=2, shift=lambda case, under_test, hosts: 0.1 if "gpu5" in hosts else 0.0)
    assert [finding.subject for finding in shared_shifts(series, NEW_CODE).findings] == ["gpu5"]


@pytest.mark.parametrize("context", [SAME_CODE, NEW_CODE])
def test_half_of_the_nodes_slow_are_four_nodes_not_a_night(context):
    slow = {"gpu0", "gpu1", "gpu2", "gpu3"}
    series = a_night(4, shift=lambda case, under_test, hosts: 0.1 if slow & set(hosts) else 0.0)
    shared = shared_shifts(series, context)
    assert {finding.subject for finding in shared.findings} == slow
    assert all(abs(finding.effect - math.expm1(0.1)) < 0.02 for finding in shared.findings)


def test_a_fast_and_a_slow_node_at_once():
    effects = {"gpu1": 0.12, "gpu2": -0.06}
    series = a_night(5, shift=lambda case, under_test, hosts: effects.get(hosts[0], 0.0))
    found = {finding.subject: finding.effect for finding in shared_shifts(series, NEW_CODE).findings}
    assert found.keys() == effects.keys()
    assert found["gpu1"] > 0 > found["gpu2"]


@pytest.mark.parametrize("context", [SAME_CODE, NEW_CODE, UNKNOWN_CODE])
def test_a_night_slow_for_controls_and_code_alike_is_the_night(context):
    series = a_night(6, shift=lambda case, under_test, hosts: 0.06)
    shared = shared_shifts(series, context)
    (finding,) = shared.findings
    assert finding.cause == "night"
    assert len(finding.series) == len(series)
    assert all(abs(taken - 0.06) < 0.01 for taken in shared.removed.values())


@pytest.mark.parametrize("context", [NEW_CODE, UNKNOWN_CODE])
@pytest.mark.parametrize("controls", [0, 2, 30])
def test_a_commit_that_slows_everything_under_test_is_never_taken_out(context, controls):
    series = a_night(7, controls=controls, shift=lambda case, under_test, hosts: 0.08 * under_test)
    shared = shared_shifts(series, context)
    assert shared.findings == ()
    assert set(removed(series, shared, True)) == {0.0}
    if controls < 4:
        assert "cannot be told from slow code" in shared.notes[0]
    else:
        assert "that do not run it moved by" in shared.witness


def test_where_a_commit_and_the_night_are_both_slow_only_the_nights_part_is_taken_out():
    series = a_night(8, shift=lambda case, under_test, hosts: 0.05 + 0.05 * under_test)
    shared = shared_shifts(series, NEW_CODE)
    assert all(abs(taken - 0.05) < 0.01 for taken in removed(series, shared, True))


def test_what_slows_the_controls_alone_leaves_the_code_alone():
    series = a_night(9, shift=lambda case, under_test, hosts: 0.0 if under_test else 0.1)
    shared = shared_shifts(series, NEW_CODE)
    assert all(abs(taken) < 0.005 for taken in removed(series, shared, True))
    assert all(abs(taken - 0.1) < 0.01 for taken in removed(series, shared, False))
    assert len(shared.findings[0].series) == 60
    assert "did not move with them" in shared.findings[0].sentence


def test_a_commit_is_not_hidden_by_a_fast_night():
    series = a_night(10, shift=lambda case, under_test, hosts: -0.04 + 0.1 * under_test)
    shared = shared_shifts(series, NEW_CODE)
    assert set(removed(series, shared, True)) == {0.0}


def test_one_allocation_that_had_all_cases_of_a_world_is_not_taken_for_a_slow_node():
    """A commit slows 16 ranks; all cases of 16 ranks, and nothing else, ran on gpu7."""

    def placed(case, repeat):
        return ("gpu7",) if case % 3 == 0 else (f"gpu{case % 3}",)

    series = a_night(
        11, controls=0, placed=placed, shift=lambda case, under_test, hosts: 0.1 if "gpu7" in hosts else 0.0
    )
    shared = shared_shifts(series, NEW_CODE)
    assert set(shared.removed.values()) == {0.0}
    with_controls = a_night(
        11, controls=30, placed=placed, shift=lambda case, under_test, hosts: 0.1 * under_test * ("gpu7" in hosts)
    )
    assert set(shared_shifts(with_controls, NEW_CODE).removed.values()) == {0.0}


def test_controls_on_the_node_tell_it_from_the_code():
    def placed(case, repeat):
        return ("gpu7",) if case % 3 == 0 else (f"gpu{case % 3}",)

    series = a_night(12, placed=placed, shift=lambda case, under_test, hosts: 0.1 if "gpu7" in hosts else 0.0)
    assert [finding.subject for finding in shared_shifts(series, NEW_CODE).findings] == ["gpu7"]


def test_a_driver_change_is_blamed_by_name_when_the_code_is_the_same_or_controls_moved():
    slow = a_night(13, shift=lambda case, under_test, hosts: 0.06)
    for commits in ((A, A), (A, B)):
        context = Context(*commits, (DRIVER, Difference("code.commit", A, B)), "h100", "n")
        (finding,) = shared_shifts(slow, context).findings
        assert (finding.cause, finding.subject) == ("environment", "driver 580.1 to 580.2")
        assert "driver 580.1 to 580.2 changed" in finding.sentence


def test_a_driver_change_with_a_commit_and_still_controls_takes_nothing_out():
    series = a_night(14, shift=lambda case, under_test, hosts: 0.06 * under_test)
    shared = shared_shifts(series, Context(A, B, (DRIVER,), "h100", "n"))
    assert set(shared.removed.values()) == {0.0}


def test_half_of_the_series_moving_is_not_a_night():
    series = a_night(15, shift=lambda case, under_test, hosts: 0.08 * (case % 2))
    shared = shared_shifts(series, SAME_CODE)
    assert set(shared.removed.values()) == {0.0}
    assert "too few to call it the night" in shared.notes[0]


def test_outliers_do_not_make_a_night_nor_spoil_one():
    wild = a_night(16, shift=lambda case, under_test, hosts: 2.0 if case % 10 == 0 else 0.0)
    assert set(shared_shifts(wild, SAME_CODE).removed.values()) == {0.0}
    slow_and_wild = a_night(16, shift=lambda case, under_test, hosts: 2.0 if case % 10 == 0 else 0.05)
    taken = shared_shifts(slow_and_wild, SAME_CODE).removed.values()
    assert all(abs(value - 0.05) < 0.01 for value in taken)


def test_a_single_series_or_a_few_are_left_alone():
    for cases in (1, 2, 3):
        series = a_night(17, cases=cases, controls=0, shift=lambda case, under_test, hosts: 0.2)
        assert set(shared_shifts(series, SAME_CODE).removed.values()) == {0.0}
    assert shared_shifts([], SAME_CODE).findings == ()


def test_all_runs_on_one_node_are_the_night_and_the_slowest_ranks_host_is_told():
    series = [
        SeriesShift(
            one.series,
            one.under_test,
            one.label,
            one.runs,
            one.sd,
            slowest_hosts=("gpu1",),
            usual_slowest_hosts=("gpu0", "gpu1", "gpu0", "gpu0"),
        )
        for one in a_night(18, hosts=2, hosts_per_run=2, shift=lambda case, under_test, hosts: 0.06)
    ]
    (finding,) = shared_shifts(series, SAME_CODE).findings
    assert finding.cause == "night"
    assert "look at gpu1" in finding.sentence


def test_a_small_common_shift_is_taken_out_and_no_finding():
    series = a_night(19, shift=lambda case, under_test, hosts: 0.006)
    shared = shared_shifts(series, SAME_CODE)
    assert shared.findings == ()
    assert all(abs(taken - 0.006) < 0.004 for taken in shared.removed.values())
    assert "that was taken out" in shared.notes[0]


@pytest.mark.parametrize("noise", sorted(NOISE))
@pytest.mark.parametrize("context", [SAME_CODE, NEW_CODE])
def test_nothing_is_taken_out_of_nights_on_which_nothing_happened(noise, context):
    nights = (a_night(1000 + seed, cases=40, controls=10, hosts=4, noise=noise) for seed in range(60))
    assert sum(any(shared_shifts(series, context).removed.values()) for series in nights) <= 1


def test_taking_the_night_out_makes_fewer_series_look_slower():
    chance = np.random.default_rng(3)
    before = after = 0
    for seed in range(12):
        effect = float(abs(0.04 * chance.normal()))
        series = a_night(2000 + seed, shift=lambda case, under_test, hosts, effect=effect: effect)
        shared = shared_shifts(series, NEW_CODE)
        limits = [(one.runs[0].change, shared.removed[one.series], 3.5 * one.sd) for one in series]
        before += sum(change > limit for change, _, limit in limits)
        after += sum(change - taken > limit for change, taken, limit in limits)
    assert before > 200
    assert after < before / 20


@given(
    st.lists(st.floats(-0.3, 0.3), min_size=1, max_size=30),
    st.floats(-0.5, 0.5),
    st.floats(0.001, 0.1),
)
@settings(max_examples=80)
def test_a_consensus_moves_with_its_values_and_turns_with_their_sign(values, shift, error):
    errors = np.full(len(values), error)
    one = consensus(np.array(values), errors)
    moved = consensus(np.array(values) + shift, errors)
    turned = consensus(-np.array(values), errors)
    assert moved.centre == pytest.approx(one.centre + shift, abs=1e-6)
    assert turned.centre == pytest.approx(-one.centre, abs=1e-6)
    assert min(values) - 1e-9 <= one.centre <= max(values) + 1e-9
    assert one.error >= error / math.sqrt(len(values)) - 1e-12
    assert 0 <= one.p_value <= 1


@given(st.permutations(range(24)))
@settings(max_examples=20)
def test_the_order_of_the_series_does_not_matter(order):
    series = a_night(20, cases=12, controls=6, hosts=3, shift=lambda case, under_test, hosts: 0.05)
    expected = shared_shifts(series, NEW_CODE).removed
    assert shared_shifts([series[place] for place in order], NEW_CODE).removed == pytest.approx(expected, abs=1e-6)


def test_numbers_that_are_none_are_refused():
    for change, sd in ((math.nan, 0.01), (math.inf, 0.01), (0.1, math.nan), (0.1, -1.0)):
        with pytest.raises(ValueError, match="series 's'"):
            shared_shifts([SeriesShift("s", True, "x", (RunShift(change, ("a",)),), sd)], SAME_CODE)
    with pytest.raises(ValueError, match="no new run"):
        shared_shifts([SeriesShift("s", True, "x", (), 0.01)], SAME_CODE)


def test_series_without_any_noise_are_not_a_division_by_zero():
    series = [SeriesShift(number, True, "x", (RunShift(0.0, ("a",)),), 0.0) for number in range(10)]
    assert set(shared_shifts(series, SAME_CODE).removed.values()) == {0.0}


def forty_alarms(effect=0.1, labels=("ep_core ll combine", "ep_core ll dispatch", "ep_core ht combine")):
    return [
        Changed(number, labels[number % len(labels)], effect + 0.001 * (number % 5), effect - 0.03, effect + 0.03)
        for number in range(40)
    ]


def test_forty_series_that_move_together_are_one_finding():
    findings, numbers = group(forty_alarms(), NEW_CODE, 3, witness="30 series that do not run it moved by +0.1 %")
    (finding,) = findings
    assert (finding.number, finding.cause, finding.subject) == (3, "code", f"{A[:12]}..{B[:12]}")
    assert set(numbers.values()) == {3}
    assert len(numbers) == 40
    assert finding.low < 0.102 < finding.high
    assert "40 series" in finding.sentence
    assert "30 series that do not run it" in finding.sentence


def test_changes_of_other_sizes_and_directions_are_findings_of_their_own():
    changed = [
        *forty_alarms(0.1, ("ll combine", "ll dispatch")),
        *(Changed(100 + n, "ht combine", 0.5, 0.45, 0.55) for n in range(5)),
        *(Changed(200 + n, "ht dispatch", -0.1, -0.13, -0.07) for n in range(3)),
    ]
    findings, numbers = group(changed, NEW_CODE, 1)
    assert [(len(finding.series), finding.number) for finding in findings] == [(40, 1), (5, 2), (3, 3)]
    assert "faster" in findings[2].sentence
    assert numbers[102] == 2


def test_the_cause_in_words_when_code_and_environment_changed():
    (finding,), _ = group(forty_alarms(), Context(A, B, (DRIVER,), "h100", "n"), 1)
    assert finding.cause == "code"
    assert "code or environment, driver 580.1 to 580.2 changed too" in finding.sentence


@pytest.mark.parametrize(
    ("changes", "cause", "subject"), [((DRIVER,), "environment", "driver 580.1 to 580.2"), ((), "night", "n")]
)
def test_the_code_is_not_blamed_when_it_did_not_change(changes, cause, subject):
    (finding,), _ = group(forty_alarms(), Context(A, A, changes, "h100", "n"), 1)
    assert (finding.cause, finding.subject) == (cause, subject)
    assert "the code did not change" in finding.sentence


def test_a_control_that_changed_is_never_blamed_on_the_code():
    (finding,), _ = group([Changed("t", "torch ll combine", 0.3, 0.2, 0.4, under_test=False)], NEW_CODE, 1)
    assert finding.cause == "night"
    assert finding.sentence.startswith("1 series of torch ll combine is 30.0 % slower")


def test_nothing_changed_is_no_finding():
    assert group([], NEW_CODE, 1) == ([], {})
