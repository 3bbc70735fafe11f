"""What a job on this machine leaves behind: an envelope that says how it ended, and of which attempt it was."""

import pytest

from harness import job, record
from harness.case import Case
from harness.job import JobSpec
from harness.record import PlannedRun, new_run_id
from jobs import work
from jobs.envelope import read_envelope
from jobs.night_folder import SPEC_FILE


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "attempt-3"
    folder.mkdir(mode=0o700)
    return folder


def left_by(folder, **changes):
    work.measure(str(folder), str(folder.parent / "measuring.lock"), **changes)
    return read_envelope(folder / work.ENVELOPE_FILE)


def test_the_envelope_says_which_attempt_it_was_of(folder):
    impossible = Case(backend="torch", mode="ll", ranks=65, tokens=16, hidden=256, topk=2, experts=65)
    run = PlannedRun(run_id=new_run_id(), case=impossible)
    spec = JobSpec(runs=[run], spool=str(folder.parent / "spool"), log_folder=str(folder / "logs"), attempt=3)
    job.save(spec, folder / SPEC_FILE)
    envelope = left_by(folder)
    assert (envelope.outcome, envelope.attempt) == ("done", 3)
    assert record.read(record.recorded(folder.parent / "spool", run.run_id)).attempt == 3


def test_the_envelope_of_a_job_that_failed_says_so_too(folder):
    job.save(JobSpec(runs=[], spool="", log_folder="", attempt=2), folder / SPEC_FILE)
    envelope = left_by(folder)
    assert (envelope.outcome, envelope.kind, envelope.attempt) == ("error", "JobError", 2)


def test_a_job_that_was_told_nothing_leaves_an_envelope_without_an_attempt(folder):
    envelope = left_by(folder)
    assert (envelope.outcome, envelope.kind, envelope.attempt) == ("error", "FileNotFoundError", 0)


@pytest.mark.parametrize("visible", ["3,1", None])
def test_a_job_sees_the_gpus_that_its_user_set_apart(folder, monkeypatch, visible):
    impossible = Case(backend="torch", mode="ll", ranks=65, tokens=16, hidden=256, topk=2, experts=65, device="cuda")
    run = PlannedRun(run_id=new_run_id(), case=impossible)
    job.save(JobSpec(runs=[run], spool=str(folder / "spool"), log_folder=str(folder / "logs")), folder / SPEC_FILE)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert left_by(folder, variables={"CUDA_VISIBLE_DEVICES": visible}).outcome == "done"
    found = record.read(record.recorded(folder / "spool", run.run_id))
    assert found.environment.variables.get("CUDA_VISIBLE_DEVICES") == visible
