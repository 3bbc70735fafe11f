"""A job here and now: start the ranks on this machine, keep the deadline, and account for every planned run.

Torch-free: the ranks are processes of their own, under torch's elastic launch (`harness.agent`). `run_job` returns when
all of them are gone, and by then every planned run has a record in the spool: the one its ranks wrote, or a `failed`
or `hung` one with the failing rank's words and the tail of its log. Called by `jobs`. Next to read: `harness.worker`.

In the job's log folder: job.json (what the ranks were told), launch.log, progress-rank<r>.jsonl, end-rank<r>.json (how
each rank ended, in its own words), failures.json, and the ranks' own output under ranks/.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from harness import job, progress, rank_end, record
from harness.agent import RankFailure
from harness.errors import CaseError, JobError
from harness.job import JobSpec
from harness.processes import MARK, kill_marked, marked, send
from harness.progress import RECORDED, Progress
from harness.record import Failure, Outcome, PlannedRun
from harness.unmeasured import write_unmeasured

POLL_S = 0.1
TERMINATE_GRACE_S = 2.0
STACK_DUMP_S = 0.5
LOG_TAIL_LINES = 40
HUNG_TAILS = 4
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class JobEvent:
    """Something to show while a job runs. `step`: rank 0 begins a step of a run; `record`: the run has its record."""

    kind: Literal["step", "record"]
    run_id: str
    step: str = ""
    outcome: str = ""


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended. Every planned run is in exactly one of recorded and filled_in.

    exit_code: of the ranks together, 0 when all ended well. timed_out: the deadline passed and they were killed.
    recorded: run ids whose records the ranks wrote. filled_in: run ids whose failed or hung records were written here.
    error: why the ranks did not end well, in one sentence, else "".
    """

    exit_code: int
    timed_out: bool
    recorded: list[str]
    filled_in: list[str]
    elapsed_s: float
    log_folder: str
    error: str = ""


def run_job(spec: JobSpec, *, on_event: Callable[[JobEvent], None] | None = None) -> JobOutcome:
    """Measure the runs of `spec` on local ranks and wait for them; see the module.

    Raises `JobError` for a job that cannot be started as described, `RecordError` when the spool refuses records. On
    KeyboardInterrupt, or whatever else comes in between, the ranks are killed and the exception goes on; runs without a
    record then stay without one.
    """
    started = time.monotonic()
    _validate(spec)
    log_folder = Path(spec.log_folder)
    try:
        log_folder.mkdir(parents=True, exist_ok=True)
        job.save(spec, log_folder / "job.json")
    except OSError as error:
        raise JobError(f"cannot use the log folder {log_folder}: {error.strerror or error}") from error
    tell = on_event or (lambda event: None)
    refused = {run.run_id: reason for run in spec.runs if (reason := _refusal(run)) is not None}
    runnable = [run for run in spec.runs if run.run_id not in refused]
    for run in spec.runs:
        if run.run_id in refused:
            failure = Failure(step="validate", kind=CaseError.__name__, message=refused[run.run_id])
            write_unmeasured(spec, run, "failed", failure, elapsed_s=time.monotonic() - started)
            tell(JobEvent("record", run.run_id, outcome="failed"))
    if not runnable:
        return JobOutcome(0, False, [], list(refused), time.monotonic() - started, spec.log_folder)
    part = msgspec.structs.replace(spec, runs=runnable)
    job.save(part, log_folder / "job.json")
    exit_code, timed_out, recorded = _run_ranks(part, started, tell)
    verdict = _explain(part, exit_code, timed_out)
    # Rank 0 may have been killed between writing a record and saying so.
    recorded |= {run.run_id for run in runnable if record.recorded(Path(spec.spool), run.run_id) is not None}
    missing = [run for run in runnable if run.run_id not in recorded]
    for run in missing:
        outcome, failure = _account(part, run, verdict)
        write_unmeasured(spec, run, outcome, failure, elapsed_s=time.monotonic() - started)
        tell(JobEvent("record", run.run_id, outcome=outcome))
    return JobOutcome(
        exit_code=exit_code,
        timed_out=timed_out,
        recorded=[run.run_id for run in runnable if run.run_id in recorded],
        filled_in=[*refused, *(run.run_id for run in missing)],
        elapsed_s=time.monotonic() - started,
        log_folder=spec.log_folder,
        error=verdict.message if verdict else "",
    )


def _validate(spec: JobSpec) -> None:
    if not spec.runs:
        raise JobError("the job has no runs")
    worlds = sorted({(run.case.ranks, run.case.nodes) for run in spec.runs})
    if len(worlds) > 1:
        raise JobError(
            "the runs of a job share one world, these want "
            + ", ".join(f"{ranks} ranks on {nodes} nodes" for ranks, nodes in worlds)
        )
    if len({run.run_id for run in spec.runs}) != len(spec.runs):
        raise JobError("two runs of the job have the same run id")
    if spec.deadline_s <= 0 or spec.op_deadline_s <= 0:
        raise JobError(f"deadlines must be positive, got {spec.deadline_s} s and {spec.op_deadline_s} s")
    if (Path(spec.log_folder) / "job.json").exists():
        raise JobError(f"the log folder {spec.log_folder} already holds a job: give each job a folder of its own")


def _refusal(run: PlannedRun) -> str | None:
    """Why no ranks need be started for a run, else None."""
    try:
        run.case.validate()
    except CaseError as error:
        return str(error)
    return None if run.case.device in job.DEVICES else f"device {run.case.device!r} cannot be timed by this version"


def _run_ranks(spec: JobSpec, started: float, tell: Callable[[JobEvent], None]) -> tuple[int, bool, set[str]]:
    """Exit code of the ranks, whether the deadline passed, and the run ids that have a record."""
    log_folder = Path(spec.log_folder)
    mark = uuid.uuid4().hex
    watched = _Watch(log_folder, tell)
    with (log_folder / "launch.log").open("wb") as log:
        agent = subprocess.Popen(
            _command(spec),
            env=_environment(os.environ, mark),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    timed_out = False
    ended = os.pidfd_open(agent.pid)
    try:
        while agent.poll() is None:
            watched.look()
            if time.monotonic() - started > spec.deadline_s:
                timed_out = True
                _dump_stacks(spec, mark)
                _terminate(agent)
                break
            select.select([ended], [], [], POLL_S)
    finally:
        os.close(ended)
        _terminate(agent)
        left = kill_marked(mark)
    watched.look()
    if left:
        raise JobError(f"processes {', '.join(map(str, left))} of the job cannot be killed: look at this machine")
    return agent.returncode, timed_out, watched.recorded


def _command(spec: JobSpec) -> list[str]:
    log_folder = Path(spec.log_folder)
    return [
        *(sys.executable, "-m", "harness.agent", str(os.getpid()), str(log_folder / "failures.json")),
        *("--nnodes=1", f"--nproc-per-node={spec.ranks}", "--max-restarts=0", "--monitor-interval=0.1"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint={_LOOPBACK}:0", f"--local-addr={_LOOPBACK}"),
        *(f"--log-dir={log_folder / 'ranks'}", "--redirects=3"),
        *("-m", "harness.worker", str(log_folder / "job.json")),
    ]


def _environment(environ: Mapping[str, str], mark: str) -> dict[str, str]:
    """The ranks' environment. One thread each unless the user says otherwise: ranks share the cores."""
    return {"OMP_NUM_THREADS": "1", **environ, MARK: mark}


def _terminate(agent: subprocess.Popen[bytes]) -> None:
    """End the agent, which ends its ranks; what it leaves behind is killed by the job's mark."""
    if agent.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(agent.pid, signal.SIGTERM)
        try:
            agent.wait(TERMINATE_GRACE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(agent.pid, signal.SIGKILL)
            agent.wait()


def _dump_stacks(spec: JobSpec, mark: str) -> None:
    """Have each rank write its stacks into its log, so that the record can say where it hung."""
    ranks = {steps[-1].pid for steps in _steps(spec).values() if steps}
    send([pid for pid in marked(mark) if pid in ranks], signal.SIGUSR1)
    time.sleep(STACK_DUMP_S)


class _Watch:
    """Follows rank 0's progress and tells of what is new."""

    def __init__(self, log_folder: Path, tell: Callable[[JobEvent], None]) -> None:
        self.recorded: set[str] = set()
        self._log_folder, self._tell, self._read_bytes = log_folder, tell, 0

    def look(self) -> None:
        """Tell of every step since the last look."""
        new, self._read_bytes = progress.read_new(self._log_folder, 0, self._read_bytes)
        for entry in new:
            if entry.step == RECORDED:
                self.recorded.add(entry.run_id)
                self._tell(JobEvent("record", entry.run_id, outcome=entry.outcome))
            else:
                self._tell(JobEvent("step", entry.run_id, step=entry.step))


def _steps(spec: JobSpec) -> dict[int, list[Progress]]:
    return {rank: progress.read(Path(spec.log_folder), rank) for rank in range(spec.ranks)}


@dataclass(frozen=True)
class _Verdict:
    """Why the job ended before its runs were done: outcome for the run it was at, rank to blame, and words."""

    outcome: Outcome
    kind: str
    message: str
    rank: int
    log_tail: str


def _explain(spec: JobSpec, exit_code: int, timed_out: bool) -> _Verdict | None:
    """The one reason that the ranks did not end well; None when they did."""
    log_folder = Path(spec.log_folder)
    if timed_out:
        return _hung(spec)
    ends = rank_end.read_all(log_folder, spec.ranks)
    cause = rank_end.to_blame(ends)
    if exit_code == 0 and cause is None:
        return None
    # Ranks that lose a peer fail in the same instant: one that was killed is the cause, SIGTERM is the agent's own.
    told = {end.rank for end in ends}
    failures = [failure for failure in _failures(log_folder) if failure.exit_code != -signal.SIGTERM]
    silent = [failure for failure in failures if failure.rank not in told]
    killed = [failure for failure in silent if failure.exit_code < 0]
    if killed:
        message = f"rank {killed[0].rank} was killed by {_signal_name(-killed[0].exit_code)}"
        return _Verdict("failed", "RankKilled", message, killed[0].rank, _tail(log_folder, killed[0].rank))
    if cause is not None and not (cause.lost_a_peer and silent):
        words = cause.message.partition("\n")[0]
        return _Verdict("failed", cause.kind, f"rank {cause.rank} failed: {words}", cause.rank, cause.trace)
    if not silent:
        message = f"the ranks could not be started or watched (exit code {exit_code})"
        return _Verdict("failed", "LaunchFailed", message, -1, _tail(log_folder, -1))
    return _without_a_word(log_folder, silent[0])


def _without_a_word(log_folder: Path, failure: RankFailure) -> _Verdict:
    """Of a rank that died before it could say how: what the end of its log says."""
    tail = _tail(log_folder, failure.rank)
    found = re.findall(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Failed|Answer)\w*): (.*)$", tail, re.MULTILINE)
    kind, words = found[-1] if found else ("RankFailed", f"exit code {failure.exit_code}")
    return _Verdict("failed", kind, f"rank {failure.rank} failed: {words}", failure.rank, tail)


def _hung(spec: JobSpec) -> _Verdict:
    """What each rank was at when the deadline came. To blame is one of those furthest behind: the others may wait."""
    steps = {rank: entries for rank, entries in _steps(spec).items() if entries}
    where = "no rank had begun"
    behind: list[int] = []
    if steps:
        least = min(len(entries) for entries in steps.values())
        behind = [rank for rank, entries in steps.items() if len(entries) == least]
        at: dict[str, list[str]] = {}
        for rank, entries in steps.items():
            at.setdefault(entries[-1].step, []).append(str(rank))
        where = "; ".join(f"rank {', '.join(ranks)} at {step!r}" for step, ranks in at.items())
    tails = [f"rank {rank}:\n{_tail(Path(spec.log_folder), rank)}" for rank in behind[:HUNG_TAILS]]
    return _Verdict(
        outcome="hung",
        kind="DeadlineExceeded",
        message=f"the job was killed at its deadline of {spec.deadline_s:g} s, {where}",
        rank=behind[0] if len(behind) == 1 else -1,
        log_tail="\n".join(tails),
    )


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def _failures(log_folder: Path) -> list[RankFailure]:
    try:
        return msgspec.json.decode((log_folder / "failures.json").read_bytes(), type=list[RankFailure])
    except (OSError, msgspec.MsgspecError):
        return []


def _account(spec: JobSpec, run: PlannedRun, verdict: _Verdict | None) -> tuple[Outcome, Failure]:
    """Outcome and failure of a run that has no record."""
    if verdict is None:
        message = "the ranks ended well but wrote no record of this run"
        return "failed", Failure(step="record", kind="NoRecord", message=message)
    mine = {rank: [entry for entry in entries if entry.run_id == run.run_id] for rank, entries in _steps(spec).items()}
    begun = {rank: entries[-1].step for rank, entries in mine.items() if entries}
    if not begun:
        message = f"the job ended before this run began: {verdict.message}"
        return "failed", Failure(
            step="wait for a turn", kind=verdict.kind, message=message, rank=verdict.rank, log_tail=verdict.log_tail
        )
    step = begun.get(verdict.rank) or begun[min(begun)]
    message = verdict.message if verdict.outcome == "hung" else f"{verdict.message}, at {step!r}"
    return verdict.outcome, Failure(
        step=step, kind=verdict.kind, message=message, rank=verdict.rank, log_tail=verdict.log_tail
    )


def _logs(log_folder: Path, rank: int) -> Iterator[Path]:
    if rank >= 0:
        yield from sorted((log_folder / "ranks").glob(f"*/attempt_0/{rank}/std*.log"))
    yield log_folder / "launch.log"


def _tail(log_folder: Path, rank: int) -> str:
    """The last lines of the first log that has any: the rank's stderr, its stdout, the launcher's."""
    for path in _logs(log_folder, rank):
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            continue
        if lines:
            return "\n".join(lines[-LOG_TAIL_LINES:])
    return ""
