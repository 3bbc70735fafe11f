"""A night on two nodes of a real Slurm, as its user finds it the next morning: records, files, queue; and no secret."""

import random
import re
import stat
from pathlib import Path

import pytest
from slurm_backends import install
from slurm_nights import Place, plan_text, quoted, settled, toml

from harness.environment import hostname
from jobs.envelope import read_envelope

pytestmark = pytest.mark.timeout(600)

SECRETS = {
    "REGISTRY_TOKEN": "s3cret-by-name",
    "RESULTS_URL": "postgresql://epwatch:s3cret-in-address@db/history",
    "HUB_TOKEN": "s3cret-that-goes-along",
}
SHELL = "$(touch pwned) `touch pwned`; touch 'pwned' \"\\"
JOBS = "jo bs; $(touch pwned) 'x'"
SEED = 7


def text(folder: Path) -> str:
    """Two worlds, two repeats, jobs that ask for GPUs and are told what could be mistaken for shell."""
    environment = {"ENVIRONMENTS": str(folder / "environments"), "EPWATCH_ODD": SHELL, "GLOO_PLAIN": "plain"}
    return plan_text(
        {"backend": ["ep_core", "torch", "tells-its-environment"], "ranks": 2},
        {"backend": "ep_core", "ranks": 4},
        plan={"jobs": JOBS},
        cluster={
            "gpus_per_node": 2,
            "cpus_per_task": 1,
            "environment": environment,
            "pass_environment": ["HUB_TOKEN"],
            "setup": [f"env > {quoted(folder / 'environments')}/batch-of-$SLURM_JOB_ID"],
            "srun_args": [f"--comment={SHELL}"],
        },
        measure={"repeats": 2, "seed": SEED},
    )


@pytest.fixture(scope="module")
def place(slurm, tmp_path_factory):
    """A folder in which a night of four jobs has been: `said.txt` is its table, `code` its exit code."""
    folder = tmp_path_factory.mktemp("night")
    (folder / "environments").mkdir()
    plugins = install(tmp_path_factory.mktemp("plugins"))
    there = Place(folder, slurm, text(folder), PYTHONPATH=str(plugins), **SECRETS)
    there.checked = there.json("plan", "check", "plan.toml")
    there.ended = there.epwatch("nightly", "plan.toml", "--watch")
    return there


@pytest.fixture(scope="module")
def records(place):
    found = place.records()
    assert found, place.ended.stderr
    return found


def test_it_ends_well_and_shows_a_table(place):
    assert place.ended.returncode == 0, place.ended.stderr
    lines = place.ended.stdout.splitlines()
    assert lines[0].split()[:2] == ["case", "phase"]
    assert sum("ep_core/ll/cpu/r4n1/" in line for line in lines) == 2
    assert "Traceback" not in place.ended.stderr


def test_every_planned_run_has_exactly_one_outcome(place, records):
    planned = [run.run_id for run in place.night(JOBS).required_manifest.runs]
    assert len(planned) == 8
    assert sorted(one.run_id for one in records) == sorted(planned)
    assert {one.outcome for one in records} == {"ok"}
    assert {path.name for path in (place.folder / "spool").iterdir() if path.is_file()} == set()
    assert list((place.folder / "spool" / "quarantine").glob("*")) == []
    (night,) = place.json("nights")
    assert (night["planned"], night["ok"], night["missing"]) == (8, 8, 0)


def test_every_record_says_where_each_rank_ran(place, records):
    nodes = list(place.slurm.node_names)
    for one in records:
        hosts = [rank.hostname for rank in one.placement]
        assert [rank.rank for rank in one.placement] == list(range(one.case.ranks))
        assert hosts == [host for node in one.nodes for host in [node.hostname] * len(node.ranks)]
        assert len(set(hosts)) == one.case.ranks // 2
        assert set(hosts) <= set(nodes)
        for host in set(hosts):
            there = [rank for rank in one.placement if rank.hostname == host]
            cpus = [rank.cpus for rank in there]
            assert len(set(cpus)) == 2, "cpus_per_task = 1: each rank is bound to a CPU of its own"
            assert all(cpu.isdigit() for cpu in cpus)
        assert {rank.numa for rank in one.placement} <= {"0", "1", "0-1", ""}
        assert (one.launcher, one.attempt) == ("srun", 1)
        assert re.fullmatch(r"Slurm job \d+_[01]", one.scheduler_job)
    assert {rank.hostname for one in records if one.case.ranks == 4 for rank in one.placement} == set(nodes)
    assert hostname() not in nodes


def test_a_world_has_one_process_group_for_all_its_cases(records):
    by_job = {}
    for one in records:
        by_job.setdefault(one.scheduler_job, []).append(one)
    assert sorted((len(runs), runs[0].case.ranks) for runs in by_job.values()) == [(1, 4), (1, 4), (3, 2), (3, 2)]
    for runs in by_job.values():
        assert len({one.repeat for one in runs}) == 1
    jobs_of_a_case = {}
    for one in records:
        jobs_of_a_case.setdefault(one.case.key, set()).add(one.scheduler_job)
    assert {len(jobs) for jobs in jobs_of_a_case.values()} == {2}


def test_the_order_within_a_job_is_that_of_the_recorded_seed(place, records):
    manifest = place.night(JOBS).required_manifest
    assert manifest.seed == SEED
    for job in manifest.jobs:
        measured = [one.run_id for one in records if one.run_id in {run.run_id for run in job.runs}]
        assert measured == [run.run_id for run in job.runs]
        if job.world.ranks == 2:
            order = ["ep_core", "torch", "tells-its-environment"]
            random.Random(f"{SEED}/{job.name}").shuffle(order)
            assert [run.case.backend for run in job.runs] == order


def test_what_was_submitted_is_what_plan_check_told(place):
    manifest = place.night(JOBS).required_manifest
    told = {one["job"]: one for one in place.checked["jobs"]}
    assert sorted(told) == sorted(job.name for job in manifest.jobs)
    listed = place.slurm.run("sacct", "-nPX", "--format=JobID,JobName,NNodes,ReqTRES,TimelimitRaw,State")
    mine = {
        job: rest for job, name, *rest in (line.split("|") for line in listed.splitlines()) if manifest.night in name
    }
    assert len(mine) == 4
    for job in manifest.jobs:
        (attempt,) = place.night(JOBS).attempts(job)
        nodes, asked, limit_min, state = mine[attempt.submitted.scheduler_id]
        cost = told[job.name]
        assert (int(nodes), float(limit_min), state) == (cost["hosts"], cost["limit_min"], "COMPLETED")
        assert cost["most_node_min"] == cost["hosts"] * cost["limit_min"]
        assert f"gres/gpu={2 * cost['hosts']}" in asked
        assert (cost["tasks_per_host"], cost["gpus_per_host"], cost["runs"]) == (2, 2, len(job.runs))


def test_a_case_that_was_measured_has_a_past_to_be_planned_by(place):
    before = {one["job"]: one["expected_min"] for one in place.checked["jobs"]}
    after = {one["job"]: one["expected_min"] for one in place.json("plan", "check", "plan.toml")["jobs"]}
    assert all(after[job] < before[job] for job in before), (before, after)


def test_nothing_is_left_in_the_queue_or_behind(place):
    place.slurm.wait_idle()
    assert place.slurm.run("squeue", "-h").strip() == ""
    ends = settled(place, JOBS)
    assert sorted(ends) == sorted((job, 1) for job in told_jobs(place))
    assert {one.cause for one in ends.values()} == {"done"}
    for job in place.night(JOBS).required_manifest.jobs:
        for task in range(job.world.ranks):
            envelope = read_envelope(place.night(JOBS).attempts(job)[0].folder / f"envelope-{task}.json")
            assert (envelope.outcome, envelope.task, envelope.attempt) == ("done", task, 1)


def told_jobs(place):
    return [one["job"] for one in place.checked["jobs"]]


def test_job_folders_are_for_this_user_alone(place):
    night = place.night(JOBS).folder
    folders = [night, *(path for path in night.rglob("*") if path.is_dir())]
    assert len(folders) > 10
    assert [path for path in folders if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)] == []
    assert list(night.rglob("*.pkl"))


def test_gpus_of_the_node_reach_the_ranks(place, records):
    assert {one.environment.variables["CUDA_VISIBLE_DEVICES"] for one in records} == {"0,1"}


def environments(place):
    found = {path.name: path.read_text() for path in (place.folder / "environments").iterdir()}
    assert sum(name.startswith("batch-of-") for name in found) == 4
    assert sum(name.startswith("rank1-of-") for name in found) == 2
    return found


def test_no_secret_goes_along_but_the_one_that_the_plan_names(place):
    for name, variables in environments(place).items():
        assert "s3cret-by-name" not in variables, name
        assert "s3cret-in-address" not in variables, name
        assert "HUB_TOKEN=s3cret-that-goes-along\n" in variables, name


def test_no_secret_is_in_any_file(place):
    below = [place.folder / JOBS, place.folder / "spool", place.folder / "history.db"]
    files = [path for one in below for path in (one.rglob("*") if one.is_dir() else [one]) if path.is_file()]
    assert len(files) > 50
    for path in files:
        assert b"s3cret" not in path.read_bytes(), path
    assert "s3cret" not in place.ended.stdout + place.ended.stderr


def test_text_of_the_plan_reaches_no_shell(place, records):
    for name, variables in environments(place).items():
        assert f"EPWATCH_ODD={SHELL}\n" in variables, name
    assert {one.environment.variables["EPWATCH_ODD"] for one in records} == {SHELL}
    assert {one.environment.variables["GLOO_PLAIN"] for one in records} == {"plain"}
    assert list(place.folder.rglob("pwned")) == []
    assert toml(SHELL) in (place.folder / "plan.toml").read_text()


def test_the_watch_told_every_job_from_waiting_to_done(place):
    said = place.ended.stderr
    for job in told_jobs(place):
        assert re.search(rf": {job} running on 127\.0\.1\.", said), said
        assert f": {job} done on 127.0.1." in said
    assert re.search(r"pending: waits for nodes to become free \(Resources\)", said)


def test_status_tells_it_long_after_also_without_a_slurm(place):
    seen = place.json("nightly", "status", "plan.toml")
    assert (seen["state"], seen["done"], seen["total"]) == ("finished", 8, 8)
    assert {one["state"] for one in seen["jobs"]} == {"done"}
    gone = place.epwatch("nightly", "status", "plan.toml", SLURM_CONF="/nonexistent", EPWATCH_SPOOL="elsewhere")
    assert gone.returncode == 0
    assert "is finished: 8 of 8 runs done" in gone.stdout
