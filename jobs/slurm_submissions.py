"""Submissions of a night on disk, and sbatch itself: what submitit is given, and what it leaves.

A submission is a folder of the night's, `submissions/<n>/`, written down before sbatch is called. Called by
`jobs.slurm`.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from jobs import private_files
from jobs.cluster import SubmitError
from jobs.exclusive import make_folder
from jobs.night_folder import SUBMISSIONS, Attempt, NightFolder
from jobs.plan_clusters import ClusterSection
from jobs.slurm_submit import interpreter, submitters_environment

if TYPE_CHECKING:
    import submitit

NEVER_TOLD = "could not find submitted jobs in path"
"""What submitit says in a job whose submitter died before it could hand over what is to be done."""

_SUBMISSION_FILE = "submission.json"
_SUBMITIT = "submitit"
_PASSING = re.compile(
    r"unable to contact slurm controller|socket timed out|connection (?:refused|reset)|temporarily unable|"
    r"try again|communications? (?:connection )?(?:failure|error|timed out)|zero bytes were transmitted",
    re.IGNORECASE,
)
_TOO_MANY = re.compile(r"submit limit|MaxSubmit|Invalid job array specification", re.IGNORECASE)
_NOT_CONFIGURED = re.compile(r"fetch_config|establish_config_source|resolve_ctls", re.IGNORECASE)


class TooManyJobs(SubmitError):
    """The site allows fewer jobs, or shorter arrays, than this; it may be tried again with fewer, or later."""


class Submission(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one call of sbatch is about. name: of the job, unique. attempts: their folders below the night's, in order
    of the array's index.
    """

    name: str
    cluster: str
    at: str
    attempts: list[str]


def new_submission(night: NightFolder, cluster: str, at: str, attempts: Sequence[Attempt]) -> Submission:
    """Write down what is to be submitted, in a folder of its own."""
    folder = night.folder / SUBMISSIONS
    number = 1 + max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)
    new = folder / str(number)
    make_folder(new / _SUBMITIT)
    name = f"epwatch-{night.name}-{number}"
    submission = Submission(name=name, cluster=cluster, at=at, attempts=paths(night, attempts))
    private_files.save(submission, new / _SUBMISSION_FILE)
    return submission


def submissions(night: NightFolder) -> list[Submission]:
    """Every submission of the night, oldest first."""
    folders = sorted((night.folder / SUBMISSIONS).iterdir(), key=lambda folder: (len(folder.name), folder.name))
    found = (private_files.load(folder / _SUBMISSION_FILE, Submission) for folder in folders)
    return [one for one in found if one is not None]


def paths(night: NightFolder, attempts: Sequence[Attempt]) -> list[str]:
    """The attempts' folders below the night's."""
    return [str(attempt.folder.relative_to(night.folder)) for attempt in attempts]


def sbatch(
    night: NightFolder,
    submission: Submission,
    section: ClusterSection,
    asked: dict[str, Any],
    attempts: Sequence[Attempt],
) -> Sequence[submitit.Job[None]]:
    """Submit the attempts as one array. asked: submitit's parameters. Raises `SubmitError` in Slurm's words."""
    import submitit

    from jobs.rank_task import run_task

    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise SubmitError(f"there is no {program} here: run epwatch where Slurm's commands are")
    try:
        executor = submitit.SlurmExecutor(_folder(night.folder, submission.name), python=interpreter(section))
        executor.update_parameters(**asked)
        # submitit prints what sbatch says before it raises it.
        with submitters_environment(section), contextlib.redirect_stderr(io.StringIO()):
            return executor.map_array(
                run_task, [str(attempt.folder) for attempt in attempts], [section.launcher] * len(attempts)
            )
    except (submitit.core.utils.FailedSubmissionError, submitit.core.utils.FailedJobError) as error:
        raise refusal(str(error)) from None
    except (OSError, RuntimeError) as error:
        raise SubmitError(f"the job cannot be submitted to cluster {section.name}: {error}") from None


def refusal(said: str) -> SubmitError:
    """What follows from what sbatch said."""
    words = _words_of(said)
    if _NOT_CONFIGURED.search(said):
        return SubmitError(
            f"no Slurm is configured here: set SLURM_CONF, or start one with `epwatch slurm up` ({words})"
        )
    if _TOO_MANY.search(words):
        return TooManyJobs(f"Slurm takes no more jobs: {words}", passing=True)
    return SubmitError(f"Slurm refuses the job: {words}", passing=_PASSING.search(words) is not None)


def hand_over(
    night: NightFolder, submission: Submission, attempt: Attempt, job: str, section: ClusterSection, limit_min: int
) -> None:
    """Tell a job what it is to do, where submitit died before it could: it waits a minute for that.

    job: its id. limit_min: its time limit.
    """
    from submitit.core.utils import DelayedSubmission, JobPaths

    from jobs.rank_task import run_task

    target = JobPaths(_folder(night.folder, submission.name), job_id=job).submitted_pickle
    if not target.exists():
        told = DelayedSubmission(run_task, str(attempt.folder), section.launcher)
        told.set_timeout(limit_min, 0)
        partial = target.with_suffix(".partial")
        told.dump(partial)
        partial.replace(target)


def log_of(attempt: Attempt) -> Path | None:
    """What the job's own processes, not the ranks, wrote to stderr; None where it has never begun to write."""
    submitted = attempt.submitted
    if submitted is None or not submitted.scheduler_id:
        return None
    folder = _folder(attempt.folder.parent.parent, submitted.name)
    path = folder / f"{submitted.scheduler_id}_0_log.err"
    return path if path.exists() else None


def log_tail(attempt: Attempt, most_lines: int = 40) -> str:
    """Its end: srun says there who died."""
    path = log_of(attempt)
    try:
        return "" if path is None else "\n".join(path.read_text(errors="replace").splitlines()[-most_lines:])
    except OSError:
        return ""


def _folder(night: Path, name: str) -> Path:
    """Where submitit keeps what it needs for the submission so named."""
    return night / SUBMISSIONS / name.rpartition("-")[2] / _SUBMITIT


def _words_of(said: str) -> str:
    """sbatch's own words, in one line: the errors it gave, without its name."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and "retrying in" not in line]
    errors = [line.partition("error: ")[2] for line in lines if line.startswith("sbatch: error: ")]
    return "; ".join(errors or lines[-1:]) or "without a word"
