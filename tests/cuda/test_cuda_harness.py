"""Whole jobs on a GPU, by every protocol, and the parts of them that only a GPU can run."""

from pathlib import Path

import msgspec
import pytest
import torch

from harness import gpus, libraries, nvml, record, timers
from harness.backends.base import kernels_of
from harness.backends.ep_core import EpCoreBackend
from harness.case import Case
from harness.errors import BackendError
from harness.graphs import TURNS, captured
from harness.job import JobSpec
from harness.kernels import kernel_name
from harness.launch import run_job
from harness.record import PlannedRun, new_run_id

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(gpus.obstacle() is not None, reason=f"no GPU: {gpus.obstacle()}"),
    pytest.mark.timeout(300),
]

LL = Case(backend="ep_core", mode="ll", device="cuda", ranks=2, tokens=32, hidden=1024, topk=4, experts=16)
HT = msgspec.structs.replace(LL, mode="ht", combine="local_reduce")
TORCH = msgspec.structs.replace(LL, backend="torch")
PROTOCOLS = ("phased", "paired", "graph", "kernel")


def but(case, **changes):
    return msgspec.structs.replace(case, **changes)


EP_CORE = {
    **{f"ll {protocol}": but(LL, protocol=protocol, routing="masked") for protocol in PROTOCOLS},
    "ll fp8 graph": but(LL, protocol="graph", dtype="fp8", routing="skewed"),
    "ll fp8 kernel": but(LL, protocol="kernel", dtype="fp8"),
    **{
        f"ll local_reduce {one}": but(LL, protocol=one, combine="local_reduce") for one in ("phased", "graph", "kernel")
    },
    "ll duplicates": but(LL, routing="duplicates"),
    "ll without tokens": but(LL, tokens=0),
    **{f"ht {protocol}": but(HT, protocol=protocol, routing="masked") for protocol in PROTOCOLS},
    "ht without tokens": but(HT, tokens=0, protocol="graph"),
    "cpu in the same job": but(LL, device="cpu"),
}


def spec_of(folder, cases, **changes):
    runs = [PlannedRun(run_id=new_run_id(), case=case) for case in cases]
    fields = {"warmup": 3, "iters": 8, "deadline_s": 240.0, "op_deadline_s": 20.0, "cluster": "test"}
    return JobSpec(runs=runs, spool=str(folder / "spool"), log_folder=str(folder / "log"), **(fields | changes))


def records(spec):
    return [record.read(Path(spec.spool) / f"{run.run_id}.json") for run in spec.runs]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One job of two ranks with every case of the extension, in turn; its records by name."""
    spec = spec_of(tmp_path_factory.mktemp("measured"), EP_CORE.values())
    run_job(spec)
    return dict(zip(EP_CORE, records(spec), strict=True))


@pytest.mark.parametrize("name", EP_CORE)
def test_a_case_is_checked_before_and_after_and_timed(measured, name):
    made = measured[name]
    assert made.failure is None, made.failure
    assert made.outcome == "ok"
    assert [(check.when, check.passed) for check in made.checks] == [("before", True), ("after", True)]
    for phase in made.phases:
        assert [len(rank) for rank in phase.samples_us] == [8, 8]
        assert all(sample > 0 for rank in phase.samples_us for sample in rank)
    pairs = {"pair_latency_us", "pair_slowest_p50_us"} & made.conditions.keys()
    assert len(pairs) == (2 if made.case.protocol == "graph" else 0)


def test_bytes_on_the_wire_are_told(measured):
    for name, made in measured.items():
        on_gpu = made.case.device == "cuda"
        assert all((phase.traffic.wire_bytes_per_rank is not None) == on_gpu for phase in made.phases), name
    exact, reduced = (measured[name].phases[1].traffic.wire_bytes_per_rank for name in ("ll kernel", "ht kernel"))
    assert exact > reduced > 0


def test_the_record_names_gpus_and_what_is_loaded(measured):
    made = measured["ll phased"]
    used = min(torch.cuda.device_count(), 2)
    assert made.platform.device_model == gpus.model(torch.cuda.get_device_name(0))
    assert made.platform.devices_per_node == used
    assert (made.platform.interconnect == "one-gpu") == (used == 1)
    assert any("gpu0 is shared by ranks 0, 1" in note for note in made.notes) == (used == 1)
    assert made.environment.versions["cuda"].startswith(torch.version.cuda)
    assert "libcuda" in made.environment.topology["gpu_libraries"]
    assert measured["cpu in the same job"].platform.device_model != made.platform.device_model
    if nvml.installed():
        assert made.environment.versions["driver"]
        assert made.environment.topology["gpu_model"]
        assert {f"gpu{at}_{name}_after" for at in range(used) for name in ("power_w", "sm_clock_mhz")} <= {
            *made.conditions
        }


def test_four_ranks_on_the_gpus_there_are(tmp_path):
    spec = spec_of(tmp_path, [but(LL, ranks=4, protocol="graph"), but(HT, ranks=4)])
    run_job(spec)
    assert [(made.outcome, made.failure) for made in records(spec)] == [("ok", None)] * 2


def test_the_injected_delay_is_in_the_stream(tmp_path, monkeypatch):
    monkeypatch.setenv("EPWATCH_INJECT_DELAY_US", "20000")
    spec = spec_of(tmp_path, [LL, but(LL, protocol="graph")])
    run_job(spec)
    for made in records(spec):
        assert made.failure is None, made.failure
        dispatch, combine = (phase.stats.p50_us for phase in made.phases)
        assert combine > max(dispatch, 10000)


def test_torch_needs_a_gpu_for_each_rank(tmp_path):
    protocols = ("phased", "paired", "graph", "kernel")
    spec = spec_of(
        tmp_path, [*(but(TORCH, protocol=one) for one in protocols), but(TORCH, mode="ht", combine="local_reduce")]
    )
    run_job(spec)
    phased, paired, graph, kernel, ht = records(spec)
    if torch.cuda.device_count() < 2:
        assert {made.outcome for made in (phased, paired, graph, kernel, ht)} == {"failed"}
        assert "NCCL wants a GPU for each rank, and ranks 0 and 1 share one" in phased.failure.message
        return
    for made in (phased, paired, ht):
        assert (made.outcome, made.failure) == ("ok", None)
    assert "cannot be captured into a CUDA graph" in graph.failure.message
    assert "does not say which kernels are its dispatch" in kernel.failure.message


def test_events_time_every_call_in_turn():
    called, x = [], torch.zeros(1 << 20, device="cuda")

    def add():
        called.append("add")
        x.add_(1)

    samples = timers.CudaClock().time([add, add], 3, lambda: called.append("align"))
    assert called == ["align", *["add"] * 6]
    assert [len(one) for one in samples] == [3, 3]
    assert all(sample > 0 for one in samples for sample in one)
    assert x[0].item() == 6


def test_a_graph_holds_all_turns_and_a_capture_that_breaks_leaves_the_stream_as_it_was():
    x = torch.zeros(4, device="cuda")
    graph = captured("adding", [lambda: x.add_(1)])
    assert x[0].item() == 0
    graph.replay()
    assert x[0].item() == TURNS
    stream = torch.cuda.current_stream()
    with pytest.raises(BackendError, match="waiting cannot be captured into a CUDA graph: "):
        captured("waiting", [lambda: x.sum().item()])
    assert torch.cuda.current_stream() == stream
    x.add_(1)
    assert x[0].item() == TURNS + 1


def test_the_profiler_s_kernels_have_the_names_that_are_looked_for():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        torch.zeros(1 << 20, device="cuda").add_(1)
        torch.cuda.synchronize()
    names = {kernel_name(event.name) for event in seen.events() if event.device_type.name == "CUDA"}
    assert "vectorized_elementwise_kernel" in names
    assert not any(name.startswith(kernels_of(EpCoreBackend(), "dispatch")) for name in names)


def test_the_driver_and_the_libraries_of_this_process():
    torch.zeros(1, device="cuda")
    gpu = gpus.take(0)
    assert gpus.take(torch.cuda.device_count()) == gpu
    found = libraries.versions(libraries.loaded())
    assert {"cuda", "cuda_driver"} <= found.keys()
    if nvml.installed():
        assert gpu.uuid in {one.uuid for one in nvml.installed()}
        look = nvml.look(gpu)
        assert look.facts["model"] == gpu.name
        assert look.conditions["sm_clock_mhz"] > 0
        assert nvml.versions()["cuda_driver"] == found["cuda_driver"]
