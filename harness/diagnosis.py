"""Why a job's ranks did not end well, told from what they left in the job's log folder.

The ranks say what they do (`harness.progress`) and how they end (`harness.rank_end`); whoever started them says which
died without a word (failures*.json). From these one cause is named, the rank and the run it concerns, with the tail of
its log. Torch-free. Called by `harness.launch` for ranks of this machine, by `jobs` for those of a cluster.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from harness import progress, rank_end
from harness.case import PHASES
from harness.job import JobSpec
from harness.progress import RECORDED, WAITS, Progress
from harness.record import Failure, Outcome, PlannedRun

OUT_OF_TIME = "JobDeadline"
"""The kind of a failure of ranks that got on, but not by the job's deadline."""

LOG_TAIL_LINES = 40
HUNG_TAILS = 4
_FILE = "diagnosis.json"


class RankFailure(msgspec.Struct, frozen=True, kw_only=True):
    """One rank that ended badly. exit_code: as the system gives it, minus the signal's number where one ended it."""

    rank: int
    exit_code: int
    at_s: float


class Diagnosis(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Why the ranks ended before their runs were done: outcome for the run they were at, rank to blame (-1: none),
    exception type or its like, one sentence, tail of the log. run_id: the run they were at, "" for none.
    """

    outcome: Outcome
    kind: str
    message: str
    rank: int
    log_tail: str
    run_id: str = ""


def write_failures(log_folder: Path, name: str, failures: list[RankFailure]) -> None:
    """Say which ranks ended badly; `name` is of the process that saw it."""
    (log_folder / f"failures-{name}.json").write_bytes(msgspec.json.encode(failures))


def write(diagnosis: Diagnosis, log_folder: Path) -> None:
    """Leave the diagnosis in the log folder, for whoever settles the job."""
    partial = log_folder / f".{_FILE}.partial"
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(diagnosis), indent=1))
    partial.replace(log_folder / _FILE)


def read(log_folder: Path) -> Diagnosis | None:
    """The diagnosis that was left, None where there is none."""
    try:
        return msgspec.json.decode((log_folder / _FILE).read_bytes(), type=Diagnosis)
    except (OSError, msgspec.MsgspecError):
        return None


def halted(spec: JobSpec, why: str, *, alive: bool = False) -> Diagnosis:
    """What each rank was at when all were ended. To blame is one of those furthest behind: the others may wait.

    why: what passed, in words. alive: whether they got on until then, and so were too slow; else they hung.
    """
    steps = {rank: entries for rank, entries in _steps(spec).items() if entries}
    where, behind, phase = "no rank had begun", [], ""
    if steps:
        least = min(len(entries) for entries in steps.values())
        behind = [rank for rank, entries in steps.items() if len(entries) == least]
        at: dict[str, list[str]] = {}
        for rank, entries in steps.items():
            at.setdefault(entries[-1].step, []).append(str(rank))
        where = "; ".join(f"rank {', '.join(ranks)} at {step!r}" for step, ranks in at.items())
        phase = next((phase for phase in PHASES if phase in steps[behind[0]][-1].step), "")
    tails = [f"rank {rank}:\n{tail(Path(spec.log_folder), rank)}" for rank in behind[:HUNG_TAILS]]
    rank = behind[0] if len(behind) == 1 else -1
    if alive:
        outcome: Outcome = "failed"
        kind, rank, message = OUT_OF_TIME, -1, f"out of time: {why}, {where}"
    else:
        in_phase = f"hung in {phase}" if phase else "hung"
        on_rank = f" on rank {rank}" if rank >= 0 else ""
        outcome, kind, message = "hung", "DeadlineExceeded", f"{in_phase}{on_rank}: {why}, {where}"
    return Diagnosis(
        outcome=outcome,
        kind=kind,
        message=message,
        rank=rank,
        log_tail="\n".join(tails),
        run_id=run_in_progress(spec),
    )


def explain(spec: JobSpec, exit_code: int, told_of: Sequence[RankFailure] = ()) -> Diagnosis | None:
    """The one reason that the ranks did not end well; None when they did.

    exit_code: of what started them. told_of: ranks of which somebody else says that they ended badly.
    """
    log_folder = Path(spec.log_folder)
    ends = rank_end.read_all(log_folder, spec.ranks)
    cause = rank_end.to_blame(ends)
    if exit_code == 0 and cause is None:
        return None
    run_id = run_in_progress(spec)
    # Ranks that lose a peer fail in the same instant: one that was killed is the cause, SIGTERM is the launcher's own.
    told = {end.rank for end in ends}
    late = _behind(spec) - told if cause is not None and cause.timed_out else set()
    # Of a rank that is late because it hangs, what others say is only how it was ended.
    failures = [*_failures(log_folder), *(() if late else told_of)]
    failures = [failure for failure in failures if failure.exit_code != -signal.SIGTERM]
    silent = [failure for failure in failures if failure.rank not in told]
    killed = [failure for failure in silent if failure.exit_code < 0]
    if killed:
        rank = killed[0].rank
        message = f"rank {rank} was killed by {signal_name(-killed[0].exit_code)}"
        return Diagnosis(
            outcome="failed",
            kind="RankKilled",
            message=message,
            rank=rank,
            log_tail=tail(log_folder, rank),
            run_id=run_id,
        )
    if cause is not None and late:
        return halted(spec, f"rank {cause.rank} waited for it in vain")
    if cause is not None and not (cause.lost_a_peer and silent):
        message = f"rank {cause.rank} failed: {cause.message.partition(chr(10))[0]}"
        return Diagnosis(
            outcome="failed",
            kind=cause.kind,
            message=message,
            rank=cause.rank,
            log_tail=cause.trace,
            run_id=run_id,
        )
    if not silent:
        message = f"the ranks could not be started or watched (exit code {exit_code})"
        return Diagnosis(
            outcome="failed",
            kind="LaunchFailed",
            message=message,
            rank=-1,
            log_tail=tail(log_folder, -1),
            run_id=run_id,
        )
    return _without_a_word(log_folder, silent[0], run_id)


def _behind(spec: JobSpec) -> set[int]:
    """Of the ranks that had begun, those that got through the fewest steps, where not all are equal."""
    got = {rank: len(entries) for rank, entries in _steps(spec).items() if entries}
    least = min(got.values(), default=0)
    return {rank for rank, count in got.items() if count == least} if len(set(got.values())) > 1 else set()


def _without_a_word(log_folder: Path, failure: RankFailure, run_id: str) -> Diagnosis:
    """Of a rank that died before it could say how: what the end of its log says."""
    text = tail(log_folder, failure.rank)
    found = re.findall(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Failed|Answer)\w*): (.*)$", text, re.MULTILINE)
    kind, words = found[-1] if found else ("RankFailed", f"exit code {failure.exit_code}")
    return Diagnosis(
        outcome="failed",
        kind=kind,
        message=f"rank {failure.rank} failed: {words}",
        rank=failure.rank,
        log_tail=text,
        run_id=run_id,
    )


def with_host(found: Diagnosis, hosts: Sequence[str]) -> Diagnosis:
    """The same with the host of the rank to blame named. hosts: in order of rank."""
    if not 0 <= found.rank < len(hosts):
        return found
    named = f"rank {found.rank} ({hosts[found.rank]})"
    if named in found.message:
        return found
    message = re.sub(rf"\brank {found.rank}\b", lambda _: named, found.message, count=1)
    return msgspec.structs.replace(found, message=message)


def account(spec: JobSpec, run: PlannedRun, found: Diagnosis | None) -> tuple[Outcome, Failure]:
    """Outcome and failure of a run that has no record, by the diagnosis of the job that should have measured it."""
    if found is None:
        message = "the ranks ended well but wrote no record of this run"
        return "failed", Failure(step="record", kind="NoRecord", message=message)
    mine = {rank: [entry for entry in entries if entry.run_id == run.run_id] for rank, entries in _steps(spec).items()}
    begun = {rank: entries[-1].step for rank, entries in mine.items() if entries}
    if not begun:
        message = f"the job ended before this run began: {found.message}"
        return "failed", Failure(
            step="wait for a turn", kind=found.kind, message=message, rank=found.rank, log_tail=found.log_tail
        )
    step = begun.get(found.rank) or begun[min(begun)]
    message = found.message if found.outcome == "hung" else f"{found.message}, at {step!r}"
    return found.outcome, Failure(
        step=step.removesuffix(WAITS), kind=found.kind, message=message, rank=found.rank, log_tail=found.log_tail
    )


def run_in_progress(spec: JobSpec) -> str:
    """The run that some rank had begun and that was not recorded: the last one begun; "" for none."""
    last = ""
    order = [run.run_id for run in spec.runs]
    for entries in _steps(spec).values():
        of_runs = [entry for entry in entries if entry.run_id in order]
        if of_runs and (not last or order.index(of_runs[-1].run_id) >= order.index(last)):
            last = of_runs[-1].run_id
    recorded = any(entry.step == RECORDED and entry.run_id == last for entry in progress.read(Path(spec.log_folder), 0))
    return "" if recorded else last


def recorded_runs(spec: JobSpec) -> set[str]:
    """The runs whose records are in the spool, as rank 0 says."""
    return {entry.run_id for entry in progress.read(Path(spec.log_folder), 0) if entry.step == RECORDED}


def signal_name(number: int) -> str:
    """A signal in words: `signal 9 (SIGKILL)`."""
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def tail(log_folder: Path, rank: int) -> str:
    """The last lines of the first log that has any: the rank's stderr, its stdout, the launcher's (all of rank -1)."""
    for path in _logs(log_folder, rank):
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            continue
        if lines:
            return "\n".join(lines[-LOG_TAIL_LINES:])
    return ""


def rank_log(log_folder: Path, rank: int) -> Path:
    """Where a rank that is started alone writes its output."""
    return log_folder / "ranks" / f"rank{rank}.log"


def _logs(log_folder: Path, rank: int) -> Iterator[Path]:
    if rank >= 0:
        yield from sorted((log_folder / "ranks").glob(f"*/attempt_0/{rank}/std*.log"))
        yield rank_log(log_folder, rank)
    yield from sorted(log_folder.glob("launch*.log"))


def _steps(spec: JobSpec) -> dict[int, list[Progress]]:
    return {rank: progress.read(Path(spec.log_folder), rank) for rank in range(spec.ranks)}


def _failures(log_folder: Path) -> list[RankFailure]:
    found: list[RankFailure] = []
    for path in sorted(log_folder.glob("failures-*.json")):
        try:
            found += msgspec.json.decode(path.read_bytes(), type=list[RankFailure])
        except (OSError, msgspec.MsgspecError):
            continue
    return sorted(found, key=lambda failure: failure.at_s)
