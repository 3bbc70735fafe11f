"""What takes the time: the host's clock on real calls, and the pure parts of the protocols that a GPU runs."""

import gc
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.backends.base import kernels_of
from harness.backends.ep_core import EpCoreBackend
from harness.backends.torch_a2a import TorchBackend
from harness.graphs import first_cause, pair_figures
from harness.kernels import call_times, kernel_name
from harness.protocols import PROTOCOLS
from harness.timers import CudaClock, HostClock, clock_for


def test_operations_take_turns_after_one_alignment_and_without_garbage_collection():
    called, collecting = [], []

    def operation(name):
        def call():
            called.append(name)
            collecting.append(gc.isenabled())

        return call

    samples = HostClock().time([operation("a"), operation("b")], 3, lambda: called.append("align"))
    assert called == ["align", *"ababab"]
    assert not any(collecting)
    assert gc.isenabled()
    assert [len(one) for one in samples] == [3, 3]


def test_a_call_s_time_is_its_own_in_microseconds():
    slow, quick = HostClock().time([lambda: time.sleep(0.02), lambda: None], 2, lambda: None)
    assert min(slow) >= 20000
    assert min(quick) >= 0


def test_garbage_is_collected_again_after_a_failure():
    with pytest.raises(RuntimeError, match="no slot"):
        HostClock().time([lambda: (_ for _ in ()).throw(RuntimeError("no slot"))], 1, lambda: None)
    assert gc.isenabled()


def test_each_device_has_its_clock_and_its_protocols():
    assert isinstance(clock_for("cpu"), HostClock)
    assert isinstance(clock_for("cuda"), CudaClock)
    assert list(PROTOCOLS["cpu"]) == ["phased", "paired"]
    assert list(PROTOCOLS["cuda"]) == ["phased", "paired", "graph", "kernel"]


@pytest.mark.parametrize(
    ("demangled", "name"),
    [
        ("ep_ll_dispatch", "ep_ll_dispatch"),
        ("void ep_core::ep_ll_dispatch<7168, true>(ep_core::Params)", "ep_ll_dispatch"),
        ("void ep_core::(anonymous namespace)::ep_ht_combine<__nv_bfloat16>(int, void*)", "ep_ht_combine"),
        ("void (anonymous namespace)::ep_ht_notify<4>(Args)", "ep_ht_notify"),
        ("ep_core::ep_ht_layout(long const*, int)", "ep_ht_layout"),
        ("Memcpy DtoD (Device -> Device)", "DtoD"),
        ("", ""),
    ],
)
def test_a_kernel_is_known_by_its_name_alone(demangled, name):
    assert kernel_name(demangled) == name


WORDS = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)


@given(WORDS, st.lists(WORDS), st.lists(WORDS), st.booleans())
def test_template_arguments_namespaces_and_parameters_are_cut_off(name, namespaces, arguments, void):
    template = f"<{', '.join(arguments)}>" if arguments else ""
    full = "::".join([*namespaces, name]) + template + "(int, std::vector<char>)"
    assert kernel_name(f"void {full}" if void else full) == name


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=3, max_size=3), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_the_time_of_a_call_is_what_its_kernels_cover(calls, random):
    spans, covered = [], []
    for number, kernels in enumerate(calls):
        own = [(100 * number + start, 100 * number + start + length) for start, length in kernels]
        covered.append(len({tick for start, end in own for tick in range(start, end)}))
        spans += own
    random.shuffle(spans)
    assert call_times(spans, len(calls)) == covered


@pytest.mark.parametrize("count", [0, 3, 5])
def test_kernels_that_calls_cannot_have_alike_are_refused(count):
    with pytest.raises(ValueError, match=f"{count} kernels in 4 calls"):
        call_times([(at, at + 1.0) for at in range(count)], 4)


def test_a_backend_need_not_name_its_kernels():
    assert kernels_of(TorchBackend(), "dispatch") == ()
    assert "ep_ll_dispatch" in kernels_of(EpCoreBackend(), "dispatch")
    assert not set(kernels_of(EpCoreBackend(), "dispatch")) & set(kernels_of(EpCoreBackend(), "combine"))


def test_what_broke_a_capture_is_what_was_raised_first():
    end_of_capture = RuntimeError("capture was invalidated")
    end_of_capture.__context__ = ValueError("handle: wanted one\nand more")
    assert first_cause(end_of_capture) == "handle: wanted one"
    assert first_cause(KeyError()) == "KeyError"


def test_a_pair_s_figures_are_those_of_a_phase():
    found = pair_figures([[99, 10, 20, 30], [99, 12, 22, 26]])
    assert found == {"pair_latency_us": pytest.approx(20.0), "pair_slowest_p50_us": 22.0}
