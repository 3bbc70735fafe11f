"""What is asked of Slurm and how its answers are read, part by part; whole nights are in test_jobs_slurm_nights.py."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.case import Case
from jobs import private_files, slurm_queue
from jobs.cluster import SubmitError
from jobs.launchers import failures_said
from jobs.meeting import own_address, reserved_port
from jobs.night_folder import Attempt, Claim, Submitted
from jobs.packing import PackedJob
from jobs.plan_clusters import ClusterSection
from jobs.private_files import UntrustedFolder
from jobs.slurm import SlurmCluster
from jobs.slurm_queue import Entry, SlurmQueue, SlurmSilent
from jobs.slurm_submissions import TooManyJobs, refusal
from jobs.slurm_submit import Shape, jobs_environment, parameters, setup_lines, srun_arguments
from jobs.slurm_words import cause_of, could_not_be_launched, end_in_words, reason_in_words

CASE = Case(backend="torch", mode="ll", ranks=8, tokens=4, hidden=64, topk=2, experts=8)
PLAIN = ClusterSection(kind="slurm", name="big")


def section(**fields) -> ClusterSection:
    return msgspec.structs.replace(PLAIN, **fields)


def test_a_rank_is_a_task_and_a_dead_one_ends_the_job():
    spread = section(tasks_per_node=4, partition="gpu", memory_gb=1.5, exclude=["n9"])
    shape = Shape.of(spread, CASE, ["n2"])
    asked = parameters(spread, shape, "epwatch-n-1", 13)
    assert (asked["nodes"], asked["ntasks_per_node"], asked["time"]) == (2, 4, 13)
    assert (asked["partition"], asked["mem"], asked["exclude"]) == ("gpu", "1536M", "n2,n9")
    assert asked["exclusive"] is True
    assert asked["additional_parameters"] == {"no-requeue": True}
    assert asked["srun_args"] == ["--kill-on-bad-exit=1"]
    assert "qos" not in asked


def test_torchrun_is_one_task_a_host_with_the_cpus_of_its_ranks():
    spread = section(tasks_per_node=4, launcher="torchrun", cpus_per_task=3)
    asked = parameters(spread, Shape.of(spread, CASE, []), "n", 13)
    assert (asked["nodes"], asked["ntasks_per_node"], asked["cpus_per_task"]) == (2, 1, 12)


def test_only_setup_is_shell():
    nasty = section(
        modules=["cuda/13.0", "a; touch /tmp/x"], environment={"A": "$(touch /tmp/y)"}, setup=["ulimit -l unlimited"]
    )
    lines = setup_lines(nasty)
    assert lines[0] == "umask 077"
    assert "module load cuda/13.0 'a; touch /tmp/x' || exit 9" in lines
    assert "export A='$(touch /tmp/y)'" in lines
    assert lines[-1] == "ulimit -l unlimited"


def test_a_container_is_srun_s_business():
    boxed = section(container="img.sqsh", container_mounts=["/data:/data", "/x"], srun_args=["--cpu-bind=cores"])
    assert srun_arguments(boxed) == [
        "--kill-on-bad-exit=1",
        "--container-image=img.sqsh",
        "--container-mounts=/data:/data,/x",
        "--cpu-bind=cores",
    ]


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "PATH",
                "HOME",
                "HF_TOKEN",
                "PGPASSWORD",
                "SLURM_JOB_ID",
                "SLURM_CONF",
                "SBATCH_PARTITION",
                "RANK",
                "EPWATCH_DB",
                "http_proxy",
            ]
        ),
        st.sampled_from(
            ["plain", "postgresql://me:secret@host/db", "http://proxy:3128", "http://me:secret@proxy:3128"]
        ),
    )
)
def test_a_job_gets_no_secret_no_address_and_nothing_of_another_job(environ):
    kept = jobs_environment(environ, PLAIN)
    assert kept.items() <= environ.items()
    assert not kept.keys() & {"HF_TOKEN", "PGPASSWORD", "SLURM_JOB_ID", "SBATCH_PARTITION", "RANK"}
    assert all("://" not in value for name, value in kept.items() if name not in ("http_proxy", "SLURM_CONF"))
    assert kept.get("SLURM_CONF") == environ.get("SLURM_CONF")
    assert ("http_proxy" in kept) == ("http_proxy" in environ and "secret" not in environ["http_proxy"])
    let_through = jobs_environment(environ, section(pass_environment=["HF_TOKEN", "http_proxy"]))
    for name in ("HF_TOKEN", "http_proxy"):
        assert let_through.get(name) == environ.get(name)


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ("COMPLETED", "done"),
        ("CANCELLED by 0", "cancelled"),
        ("CANCELLED+", "cancelled"),
        ("NODE_FAIL", "node"),
        ("PREEMPTED", "preempted"),
        ("TIMEOUT", "time limit"),
        ("OUT_OF_MEMORY", "memory"),
        ("RUNNING", None),
        ("COMPLETING", None),
        ("REQUEUED", None),
        ("A STATE OF NEXT YEAR", None),
    ],
)
def test_only_an_end_is_an_end(state, cause):
    assert cause_of(state) == cause


def test_reasons_and_ends_are_words():
    assert reason_in_words("Resources") == "waits for nodes to become free (Resources)"
    assert reason_in_words("(ReqNodeNotAvail, UnavailableNodes:n1)").startswith("nodes it could use are not available")
    assert reason_in_words("QOSMaxNodePerUserLimit") == "its QOS has reached a limit (QOSMaxNodePerUserLimit)"
    assert reason_in_words("AssocGrpGRES").startswith("its account has reached a limit")
    assert reason_in_words("SomethingNew") == "SomethingNew"
    assert end_in_words("cancelled", "CANCELLED by 0", "0:0", "") == "the job was cancelled by root (uid 0)"
    assert end_in_words("failed", "FAILED", "7:0", "") == "Slurm says that the job failed with exit code 7"
    assert end_in_words("failed", "FAILED", "0:9", "") == "Slurm says that the job failed by signal 9"
    assert could_not_be_launched("launch_failed_requeued_held")
    assert not could_not_be_launched("Resources")


class Answers:
    """Stands where `subprocess.run` is, with Slurm's answers by command, and notes what was asked."""

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    def __call__(self, command, **_):
        self.asked.append(command)
        answer = self.answers[command[0]]
        code, out, err = answer if isinstance(answer, tuple) else (0, answer, "")
        return subprocess.CompletedProcess(command, code, out, err)


@pytest.fixture
def answers(monkeypatch):
    def use(**given):
        told = Answers(**given)
        monkeypatch.setattr(slurm_queue.subprocess, "run", told)
        return told

    return use


DISABLED = (1, "", "Slurm accounting storage is disabled")
NO_JOB = (1, "", "slurm_load_jobs error: Invalid job id specified")
NO_CONTROLLER = (1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")


def test_one_command_asks_for_all_that_wait_and_run(answers):
    told = answers(squeue="1_0|RUNNING|None|n[1-2]\n1_1|PENDING|Resources|\n")
    found = SlurmQueue().look(["1_0", "1_1"])
    assert found == {"1_0": Entry("RUNNING", "None", "n[1-2]"), "1_1": Entry("PENDING", "Resources", "")}
    assert len(told.asked) == 1


def test_accounting_says_how_what_has_ended_ended_and_is_not_asked_again_of_it(answers):
    told = answers(squeue="1|FAILED|NonZeroExitCode|n1\n2|RUNNING|None|n2\n", sacct="1|CANCELLED by 0|0:0|n1\n")
    queue = SlurmQueue()
    assert queue.look(["1", "2"])["1"].state == "CANCELLED by 0"
    queue.look(["1", "2"])
    assert [command[0] for command in told.asked] == ["squeue", "sacct", "squeue"]
    assert told.asked[-1][-2] == "--jobs=2"


def test_without_accounting_the_queue_s_last_word_stands_and_sacct_is_asked_once(answers):
    told = answers(squeue="1|NODE_FAIL|NodeDown|n1\n", sacct=DISABLED)
    queue = SlurmQueue()
    assert queue.look(["1"])["1"].state == "NODE_FAIL"
    told.answers["squeue"] = "2|FAILED|NonZeroExitCode|n1\n"
    assert queue.look(["2"])["2"].state == "FAILED"
    assert not queue.accounting
    assert [command[0] for command in told.asked].count("sacct") == 1


def test_a_job_nobody_knows_is_gone_but_not_at_once(answers, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(slurm_queue.time, "monotonic", lambda: clock[0])
    answers(squeue=NO_JOB, sacct=DISABLED)
    queue = SlurmQueue()
    assert queue.look(["1"]) == {}
    clock[0] += 60
    assert queue.look(["1"]) == {"1": Entry("GONE")}


def test_a_controller_that_is_down_ends_no_job(answers, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(slurm_queue.time, "monotonic", lambda: clock[0])
    told = answers(squeue=NO_CONTROLLER, sacct=DISABLED)
    queue = SlurmQueue()
    for _ in range(3):
        with pytest.raises(SlurmSilent, match="Unable to contact"):
            queue.look(["1"])
        clock[0] += 3600
    told.answers["squeue"] = "1|RUNNING|None|n1\n"
    assert queue.look(["1"])["1"].state == "RUNNING"


def test_of_many_who_claim_at_once_one_has_it(tmp_path):
    target = tmp_path / "claim.json"
    claims = [Claim(by="job", at="t", host=str(number)) for number in range(32)]
    with ThreadPoolExecutor(16) as pool:
        first = list(pool.map(lambda claim: private_files.save_once(claim, target), claims))
    won = [claim for claim, mine in zip(claims, first, strict=True) if mine]
    assert [private_files.load(target, Claim)] == won
    assert [path.name for path in tmp_path.iterdir()] == ["claim.json"]


def test_a_link_whose_answer_got_lost_is_a_claim_all_the_same(tmp_path, monkeypatch):
    """As on NFS, where the second sending of the same call finds the first one's work."""
    link, target = os.link, tmp_path / "claim.json"

    def sent_again(source, place):
        link(source, place)
        link(source, place)

    monkeypatch.setattr(private_files.os, "link", sent_again)
    first, second = (Claim(by="job", at="t", host=host) for host in ("n1", "n2"))
    assert private_files.save_once(first, target)
    assert not private_files.save_once(second, target)
    assert private_files.load(target, Claim) == first
    assert [path.name for path in tmp_path.iterdir()] == ["claim.json"]


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_folder_that_others_can_write_is_not_trusted(tmp_path, mode):
    private_files.require_trusted(tmp_path)
    tmp_path.chmod(mode)
    with pytest.raises(UntrustedFolder, match="chmod go-w"):
        private_files.require_trusted(tmp_path)
    tmp_path.chmod(0o700)


def test_a_half_written_file_is_as_good_as_none(tmp_path):
    (tmp_path / "claim.json").write_text('{"by": "jo')
    assert private_files.load(tmp_path / "claim.json", Claim) is None


def test_jobs_on_one_host_meet_at_ports_of_their_own():
    with reserved_port("7_1") as first, reserved_port("7_1") as second, reserved_port("8") as third:
        assert len({first, second, third}) == 3
    with reserved_port("7_1") as again:
        assert again == first


def test_ranks_of_one_host_meet_on_its_loopback_and_of_one_machine_too():
    assert own_address(["n1"], {"SLURMD_NODENAME": "n1"}) == "127.0.0.1"
    assert own_address(["127.0.1.1", "127.0.1.2"], {"SLURMD_NODENAME": "127.0.1.1"}).startswith("127.")


def test_mpirun_says_which_rank_a_signal_ended(tmp_path):
    log = tmp_path / "log"
    log.write_text("mpirun noticed that process rank 3 with PID 0 on node n1 exited on signal 9 (Killed).\n")
    (failure,) = failures_said("mpirun", log)
    assert (failure.rank, failure.exit_code) == (3, -9)


def test_a_job_that_slurmd_cannot_launch_goes_elsewhere(answers, tmp_path):
    """Newer daemons cancel what they may not requeue; before the job's own log there is nothing of it."""
    answers(squeue="7|CANCELLED|None|n[1-2]\n", sacct=DISABLED, scontrol="n1\nn2\n", sinfo="n2\n")
    (attempt,) = submitted_attempts(tmp_path, ["7"])
    (state,) = SlurmCluster(PLAIN, 60.0).look([attempt]).values()
    assert (state.cause, state.hosts, state.bad_hosts) == ("node", ("n1", "n2"), ("n2",))
    logs = attempt.folder.parents[1] / "submissions" / "1" / "submitit"
    logs.mkdir(parents=True)
    (logs / "7_0_log.err").write_text("slurmstepd: error: *** JOB 7 CANCELLED ***")
    (state,) = SlurmCluster(PLAIN, 60.0).look([attempt]).values()
    assert (state.cause, state.bad_hosts) == ("cancelled", ())


def test_thousands_of_elements_are_asked_for_by_their_arrays(answers):
    ids = [f"{array}_{index}" for array in (100, 200) for index in range(5000)]
    told = answers(squeue="".join(f"{job}|RUNNING|None|n1\n" for job in [*ids, "100_9999"]))
    assert list(SlurmQueue().look(ids)) == ids
    assert "--jobs=100,200" in told.asked[0]


@pytest.mark.parametrize(
    ("said", "kind", "passing", "words"),
    [
        ("sbatch: error: invalid partition specified: x", SubmitError, False, "Slurm refuses the job: invalid"),
        ("sbatch: error: Unable to contact slurm controller (connect failure)", SubmitError, True, "Unable to contact"),
        (
            "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates "
            "accounting/QOS policy (job submit limit, user's size and/or time limits)",
            TooManyJobs,
            True,
            "Slurm takes no more jobs: AssocMaxSubmitJobLimit",
        ),
        (
            "sbatch: error: Batch job submission failed: Invalid job array specification",
            TooManyJobs,
            True,
            "Slurm takes no more jobs",
        ),
        ("sbatch: error: fetch_config: DNS SRV lookup failed", SubmitError, False, "no Slurm is configured here: set"),
    ],
)
def test_what_a_refusal_means(said, kind, passing, words):
    error = refusal(said)
    assert (type(error), error.passing) == (kind, passing)
    assert words in str(error)


def submitted_attempts(folder, ids):
    """Attempts at a job each, submitted as number 1 of a night, which have not begun."""
    made = []
    for job in ids:
        place = folder / "night" / f"job{job}" / "attempt-1"
        place.mkdir(parents=True)
        private_files.save(Submitted(scheduler_id=job, name="epwatch-night-1", at=""), place / "submitted.json")
        packed = PackedJob(name=f"job{job}", cluster="big", repeat=0, runs=())
        made.append(Attempt(packed, 1, place))
    return made
