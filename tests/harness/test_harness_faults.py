"""Jobs that go wrong: whatever happens to the ranks, every planned run is accounted for and nothing is left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small_jobs import EP_CORE_LL, TORCH_LL, but, records, shared_memory, spec_of

from harness import job, processes
from harness.launch import run_job


@pytest.mark.usefixtures("faulty")
def test_a_rank_killed_in_mid_phase_ends_the_job_and_the_rest_becomes_failed_records(tmp_path):
    spec = spec_of(tmp_path, [TORCH_LL, but(TORCH_LL, backend="killed-in-combine"), EP_CORE_LL], op_deadline_s=60.0)
    before = shared_memory()
    outcome = run_job(spec)
    done, killed, waiting = records(spec)
    assert done.outcome == "ok"
    assert outcome.recorded == [done.run_id]
    assert outcome.exit_code != 0
    assert killed.outcome == waiting.outcome == "failed"
    assert killed.failure.rank == 1
    assert killed.failure.message == "rank 1 was killed by signal 9 (SIGKILL), at 'check combine before'"
    assert waiting.failure.message.startswith("the job ended before this run began: rank 1 was killed by signal 9")
    assert (killed.night, killed.repeat, killed.platform.cluster) == ("n1", 1, "test")
    assert shared_memory() == before


@pytest.mark.usefixtures("faulty")
def test_at_the_deadline_everything_is_killed_and_the_record_says_where_it_hung(tmp_path):
    spec = spec_of(
        tmp_path, [but(TORCH_LL, backend="hangs-in-dispatch"), TORCH_LL], deadline_s=25.0, op_deadline_s=90.0
    )
    run_job(spec)
    hung, waiting = records(spec)
    assert (hung.outcome, waiting.outcome) == ("hung", "failed")
    assert hung.failure.step == "check dispatch before"
    assert "killed at its deadline of 25 s, rank 0, 1 at 'check dispatch before'" in hung.failure.message
    assert "plugin_backends.py" in hung.failure.log_tail
    logs = "".join(path.read_text() for path in (tmp_path / "log" / "ranks").rglob("stderr.log"))
    assert "plugin_backends.py" in logs
    assert "in dispatch" in logs
    assert marked_by(tmp_path) == []


@pytest.mark.long
def test_ranks_that_get_on_until_the_deadline_are_out_of_time_and_not_hung(tmp_path):
    spec = spec_of(tmp_path, [TORCH_LL] * 400, iters=1000, deadline_s=60.0)
    run_job(spec)
    first, *_, last = made = records(spec)
    assert (first.outcome, last.outcome) == ("ok", "failed")
    assert {one.outcome for one in made} == {"ok", "failed"}
    at = next(one for one in made if one.outcome != "ok")
    assert (at.failure.kind, at.failure.rank) == ("JobDeadline", -1)
    assert at.failure.message.startswith("out of time: the job was killed at its deadline of 60 s, rank 0, 1 at ")
    assert last.failure.message.startswith("the job ended before this run began: out of time")


def marked_by(folder):
    """Processes whose command line names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in words:
                found.append(int(entry.name))
    return found


@pytest.mark.usefixtures("faulty")
def test_when_the_launching_process_is_killed_its_ranks_go_too(tmp_path):
    spec = spec_of(tmp_path, [but(TORCH_LL, backend="hangs-in-dispatch")])
    job.save(spec, tmp_path / "spec.json")
    program = (
        "import sys, pathlib; from harness import job, launch\n"
        "launch.run_job(job.load(pathlib.Path(sys.argv[1])), on_event=lambda event: print(event.step, flush=True))\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "spec.json")], stdout=subprocess.PIPE, text=True
    )
    for line in parent.stdout:
        if "check dispatch before" in line:
            break
    assert len(marked_by(tmp_path)) >= 4
    parent.send_signal(signal.SIGKILL)
    parent.wait(30)
    parent.stdout.close()
    give_up = time.monotonic() + 30
    while marked_by(tmp_path) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert marked_by(tmp_path) == []


def test_an_interrupt_kills_the_ranks_and_goes_on(tmp_path):
    spec = spec_of(tmp_path, [TORCH_LL])

    def interrupt(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(spec, on_event=interrupt)
    assert marked_by(tmp_path) == []
    assert not (tmp_path / "spool").exists()


def test_killing_by_mark_takes_those_that_carry_it_and_no_others():
    def sleeper(mark):
        return subprocess.Popen(["sleep", "60"], env={"PATH": os.environ["PATH"], processes.MARK: mark})

    mine, other = sleeper("a-mark-of-this-test"), sleeper("another-mark-of-this-test")
    reaper = threading.Thread(target=mine.wait)
    reaper.start()
    try:
        assert processes.kill_marked("a-mark-of-this-test") == []
        reaper.join(10)
        assert mine.returncode == -signal.SIGKILL
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
