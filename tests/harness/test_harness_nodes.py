"""Ranks of one machine that act as several nodes: measured as such, and recorded."""

from small_jobs import EP_CORE_LL, TORCH_LL, but, records, spec_of

from harness.launch import run_job


def test_cases_over_two_nodes_are_measured_on_one_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("EP_RANKS_PER_NODE", "1")
    far = but(EP_CORE_LL, nodes=2)
    cases = [
        far,
        but(far, dtype="fp8", hidden=256),
        but(far, combine="local_reduce"),
        but(far, mode="ht", combine="local_reduce"),
    ]
    spec = spec_of(tmp_path, [*cases, but(TORCH_LL, nodes=2)])
    run_job(spec)
    made = records(spec)
    assert [(one.outcome, one.failure) for one in made] == [("ok", None)] * len(made)
    assert {len(one.phases) for one in made} == {2}
    for one in made[:-1]:
        assert all(phase.traffic.wire_bytes_per_rank for phase in one.phases)
    assert made[0].environment.variables["EP_RANKS_PER_NODE"] == "1"


def test_a_case_for_one_node_is_not_measured_on_two(tmp_path, monkeypatch):
    monkeypatch.setenv("EP_RANKS_PER_NODE", "1")
    spec = spec_of(tmp_path, [EP_CORE_LL])
    run_job(spec)
    (one,) = records(spec)
    assert one.outcome == "failed"
    assert "the case wants 2 ranks on 1 nodes, the world has 2 on 2" in one.failure.message


def test_an_override_that_is_no_number_fails_every_run_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("EP_RANKS_PER_NODE", "some")
    spec = spec_of(tmp_path, [EP_CORE_LL])
    run_job(spec)
    (one,) = records(spec)
    assert one.outcome == "failed"
    assert "EP_RANKS_PER_NODE: wanted a number of ranks above 0, got 'some'" in one.failure.message
