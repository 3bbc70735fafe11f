"""Nights beside each other: refused in one jobs folder; in two of them on one Slurm, even on one node, both complete.

They are submitted and left, looked at while they wait and run, and brought home by `epwatch collect`.
"""

import json
import subprocess
import sys

import pytest
from epwatch_command import clean_environment, sentence
from slurm_nights import Place, plan_text, wait_until

from jobs.meeting import Point
from jobs.private_files import load

pytestmark = pytest.mark.timeout(600)


def on_one_node(slurm, ranks=(1,), repeats=2):
    """A plan of two small jobs, one at a time, for a node that they share with others (and with more ranks another)."""
    shared = {"exclusive": False, "nodelist": [slurm.node_names[0]], "jobs_at_once": 1, "memory_gb": 1.0}
    case = {"backend": "torch", "ranks": list(ranks)}
    return plan_text(case, cluster=shared | {"tasks_per_node": 1}, measure={"repeats": repeats})


@pytest.fixture(scope="module")
def places(slurm, tmp_path_factory):
    """Two folders whose nights were submitted while their node was drained, and ran on it beside each other.

    `waited`, `ran`: what status said meanwhile; `collected`: what each collection said, the last one's being `ended`.
    """
    node = slurm.node_names[0]
    both = []
    slurm.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    try:
        for name, text in (("one", on_one_node(slurm)), ("other", on_one_node(slurm, ranks=(1, 2), repeats=1))):
            there = Place(tmp_path_factory.mktemp(name), slurm, text)
            there.submitted = there.epwatch("nightly", "plan.toml", "--no-wait")
            there.waited = there.json("nightly", "status", "plan.toml")
            there.ran, there.collected = {}, []
            both.append(there)
    finally:
        slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def all_run():
        for there in both:
            there.ran = there.ran or running(there.json("nightly", "status", "plan.toml"))
        return all(there.ran for there in both)

    wait_until(all_run, "a job of each night runs", poll_s=0.1)
    for there in both:
        wait_until(lambda there=there: over(there), "the night is over", poll_s=1.0)
    return both


def running(seen):
    """What status says, where a job runs."""
    return seen if "running" in {one["state"] for one in seen["jobs"]} else {}


def over(there):
    """Collect once; whether that was the end."""
    there.ended = there.epwatch("collect", "plan.toml")
    there.collected.append(there.ended)
    return "goes on:" not in there.ended.stdout


def test_it_says_how_to_go_on_and_leaves(places):
    for there in places:
        assert there.submitted.returncode == 0, there.submitted.stderr
        night = there.night().name
        assert there.submitted.stdout.startswith(f"night {night} is submitted: `epwatch nightly status plan.toml`")


def test_status_tells_why_jobs_wait(places):
    for there in places:
        assert (there.waited["state"], there.waited["done"], there.waited["total"]) == ("unfinished", 0, 2)
        assert {one["state"] for one in there.waited["jobs"]} == {"pending"}
        for one in there.waited["jobs"]:
            assert one["words"]
            assert one["hosts"] == []


def test_status_tells_where_they_run_and_that_the_others_wait_their_turn(places, slurm):
    for there in places:
        first, second = sorted(there.ran["jobs"], key=lambda one: one["state"], reverse=True)
        assert (first["state"], first["hosts"][:1]) == ("running", [slurm.node_names[0]])
        assert second["state"] == "pending"
        assert second["words"].startswith(("waits for other jobs of this night (jobs_at_once)", "Slurm has not looked"))


def test_collect_brings_the_night_home_and_judges_it(places):
    for there in places:
        assert {one.returncode for one in there.collected} == {0}
        assert "latency" in there.ended.stdout.splitlines()[0]
        assert f"night {there.night().name} of plan sl" in there.ended.stdout
        assert sorted(one.outcome for one in there.records()) == ["ok", "ok"]
        again = there.epwatch("collect", "plan.toml")
        assert again.returncode == 0
        assert "plan sl has no unfinished night" in again.stderr
        assert len(there.json("nights")) == 1


def test_jobs_of_both_ran_at_the_same_time_on_one_node_and_met_at_ports_of_their_own(places):
    spans = [spans_of(there) for there in places]
    assert any(one[0] < other[1] and other[0] < one[1] for one in spans[0] for other in spans[1])
    points = [load(path, Point) for there in places for path in there.night().folder.rglob("meeting.json")]
    assert len(points) == 4
    assert len({point.scheduler_id for point in points}) == 4


def spans_of(there):
    """When each job of the night began and ended, in seconds, by accounting."""
    lines = there.slurm.run("sacct", "-nPX", "--format=JobName,Start,End").splitlines()
    return sorted(tuple(line.split("|")[1:]) for line in lines if there.night().name in line)


def test_one_job_at_a_time_is_one_job_at_a_time_of_one_world_or_of_two(places):
    for there in places:
        first, second = spans_of(there)
        assert first[1] <= second[0]


def test_a_second_night_in_the_same_jobs_folder_is_refused(slurm, tmp_path):
    there = Place(tmp_path, slurm, on_one_node(slurm))
    slurm.run("scontrol", "update", f"NodeName={slurm.node_names[0]}", "State=DRAIN", "Reason=test")
    environment = clean_environment(**there.variables, EPWATCH_DB="history.db", EPWATCH_SPOOL="spool")
    command = [sys.executable, "-m", "jobs", "nightly", "plan.toml", "--watch"]
    said = tmp_path / "said.txt"
    try:
        with said.open("w") as log, subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=log) as night:
            try:
                wait_until(lambda: "pending" in said.read_text(), "the first night waits")
                for arguments in (
                    ("nightly", "plan.toml"),
                    ("nightly", "plan.toml", "--new"),
                    ("collect", "plan.toml"),
                ):
                    refused = sentence(there.epwatch(*arguments))
                    assert refused.startswith("epwatch: another night is running on the jobs folder")
                    assert refused.endswith("wait for its end, or name another folder as [plan] jobs")
                assert len(there.json("nights")) == 1
            finally:
                night.terminate()
        assert night.returncode == 143
        assert "go on in the queue: run the plan again to go on with it" in said.read_text()
        assert len(there.in_queue()) == 2
        assert there.epwatch("nightly", "cancel", "plan.toml").returncode == 0
        assert there.in_queue() == []
    finally:
        slurm.run("scontrol", "update", f"NodeName={slurm.node_names[0]}", "State=RESUME")
    assert json.loads(there.epwatch("nights", "--json").stdout)[0]["missing"] == 2
