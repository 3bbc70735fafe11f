"""Environment overrides: another case, never a named one changed in silence."""

import pytest

from harness import overrides
from harness.case import Case
from harness.errors import CaseError
from harness.suites import SUITES, suite

LL = Case(backend="ep_core", mode="ll", ranks=4, tokens=64, hidden=1024, topk=4, experts=16)
HT = Case(backend="ep_core", mode="ht", ranks=4, tokens=64, hidden=1024, topk=4, experts=16, combine="local_reduce")


@pytest.mark.parametrize("case", [LL, HT])
def test_nothing_set_is_the_same_case(case):
    assert overrides.apply(case, {"HOME": "/root", "MSCCLPP_EP_BENCH_TOKENS": ""}) == case


def test_low_latency_sizes():
    environ = {
        "MSCCLPP_EP_LL_TOKENS": "32",
        "MSCCLPP_EP_LL_HIDDEN": " 2048 ",
        "MSCCLPP_EP_LL_TOPK": "2",
        "MSCCLPP_EP_LL_EXPERTS_PER_RANK": "8",
    }
    changed = overrides.apply(LL, environ)
    assert (changed.tokens, changed.hidden, changed.topk, changed.experts) == (32, 2048, 2, 32)
    assert changed.key != LL.key
    assert overrides.apply(HT, environ) == HT


def test_bench_sizes_reach_both_modes_and_the_low_latency_ones_win():
    environ = {"MSCCLPP_EP_BENCH_TOKENS": "256", "MSCCLPP_EP_BENCH_EXPERTS": "64", "MSCCLPP_EP_LL_TOKENS": "16"}
    assert (overrides.apply(HT, environ).tokens, overrides.apply(HT, environ).experts) == (256, 64)
    assert (overrides.apply(LL, environ).tokens, overrides.apply(LL, environ).experts) == (16, 64)


def test_the_switch_turns_bench_variables_off():
    environ = {"MSCCLPP_EP_BENCH": "0", "MSCCLPP_EP_BENCH_TOKENS": "256", "MSCCLPP_EP_BENCH_ITERS": "7"}
    assert overrides.apply(HT, environ) == HT
    assert overrides.iters(environ, 50) == 50
    assert overrides.iters(environ | {"MSCCLPP_EP_BENCH": "1"}, 50) == 7
    assert overrides.in_force(environ) == {}


def test_warmup_and_iterations():
    environ = {"MSCCLPP_EP_BENCH_WARMUP": "0", "MSCCLPP_EP_BENCH_ITERS": "20"}
    assert overrides.warmup(environ, 10) == 0
    assert overrides.iters(environ, 50) == 20
    assert (overrides.warmup({}, 10), overrides.iters({}, 50)) == (10, 50)
    assert overrides.in_force(environ) == environ


def test_experts_per_rank_may_make_a_case_that_cannot_run_and_validate_says_so():
    with pytest.raises(CaseError, match="topk is 4 but there are only 2 experts"):
        overrides.apply(Case.parse(LL.key.replace("r4", "r2")), {"MSCCLPP_EP_LL_EXPERTS_PER_RANK": "1"}).validate()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("MSCCLPP_EP_LL_TOKENS", "many", "MSCCLPP_EP_LL_TOKENS='many' is not an integer"),
        ("MSCCLPP_EP_LL_TOPK", "0", "MSCCLPP_EP_LL_TOPK is 0, wanted at least 1"),
        ("MSCCLPP_EP_BENCH", "yes", "MSCCLPP_EP_BENCH='yes' is neither 0 nor 1"),
        ("MSCCLPP_EP_BENCH_HIDDEN", "1e3", "MSCCLPP_EP_BENCH_HIDDEN='1e3' is not an integer"),
    ],
)
def test_bad_values_are_refused(variable, value, words):
    with pytest.raises(CaseError, match=words):
        overrides.apply(LL, {variable: value})


def test_one_iteration_would_leave_nothing():
    with pytest.raises(CaseError, match="MSCCLPP_EP_BENCH_ITERS is 1, wanted at least 2"):
        overrides.iters({"MSCCLPP_EP_BENCH_ITERS": "1"}, 50)


@pytest.mark.parametrize(("text", "value"), [("", 0.0), ("0", 0.0), ("300", 300.0), (" 2.5 ", 2.5)])
def test_injected_delay(text, value):
    assert overrides.injected_delay_us({"EPWATCH_INJECT_DELAY_US": text}) == value


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "soon", "1e9"])
def test_a_bad_injected_delay_is_refused(text):
    with pytest.raises(CaseError, match="EPWATCH_INJECT_DELAY_US"):
        overrides.injected_delay_us({"EPWATCH_INJECT_DELAY_US": text})


def test_every_case_of_every_suite_can_run_and_is_named_once():
    for name, cases in SUITES.items():
        assert suite(name) == cases
        assert len({case.key for case in cases}) == len(cases)
        for case in cases:
            case.validate()
    with pytest.raises(CaseError, match="suite 'gpu' is unknown; known are cpu-quick, canonical-ll, canonical-ht"):
        suite("gpu")
