"""Slurm's states and reasons, in words and as what they mean for a night. Pure; called by `jobs.slurm`.

The names are those of squeue(1) and sacct(1), "Job State Codes" and "Job Reason Codes".
"""

from __future__ import annotations

from jobs.night_folder import Cause

RUNNING = frozenset(
    {"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED"}
)

_CAUSES: dict[str, Cause] = {
    "COMPLETED": "done",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
    "TIMEOUT": "time limit",
    "DEADLINE": "time limit",
    "NODE_FAIL": "node",
    "BOOT_FAIL": "node",
    "PREEMPTED": "preempted",
    "OUT_OF_MEMORY": "memory",
}

_ENDS: dict[Cause, str] = {
    "failed": "Slurm says that the job failed",
    "cancelled": "the job was cancelled",
    "time limit": "the job reached its time limit",
    "node": "a node of the job failed",
    "preempted": "the job was preempted by another",
    "memory": "the job ran out of memory",
    "gone": "Slurm has no trace of the job any more, and it left no result",
}

_IN_LINE = ("Dependency", "JobArrayTaskLimit")
_REASONS = {
    "None": "Slurm has not looked at it yet",
    "Resources": "waits for nodes to become free",
    "Priority": "other jobs come first",
    "Dependency": "waits for other jobs of this night (jobs_at_once)",
    "BeginTime": "its time to begin has not come",
    "JobArrayTaskLimit": "waits for other jobs of this night (jobs_at_once)",
    "Reservation": "waits for its reservation",
    "Licenses": "waits for a licence",
    "JobHeldUser": "is held by its user: scontrol release",
    "JobHeldAdmin": "is held by an administrator",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition takes no jobs to run now",
    "PartitionConfig": "asks for what its partition does not have",
    "PartitionNodeLimit": "asks for more nodes than its partition allows",
    "PartitionTimeLimit": "asks for more time than its partition allows",
    "ReqNodeNotAvail": "nodes it could use are not available",
    "NodeDown": "a node it needs is down",
    "BadConstraints": "no node has what its constraint asks for",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its QOS is not valid",
    "QOSJobLimit": "its QOS has reached its number of jobs",
    "Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs_in_higher_priority_partitions": (
        "nodes it could use are down, drained or reserved"
    ),
    "SchedDefer": "Slurm looks at it at its next turn",
    "Cleaning": "what it left behind is being cleaned up",
}
_LAUNCH_FAILED = "launch failed"


def cause_of(state: str) -> Cause | None:
    """What an ended state means; None for one that is no end. state: as squeue or sacct has it."""
    return _CAUSES.get(state.split(" ", 1)[0].rstrip("+"))


def end_in_words(cause: Cause, state: str, exit_code: str, nodes: str) -> str:
    """How a job ended, for people. exit_code: sacct's `code:signal`, "" unknown."""
    words = _ENDS.get(cause, "")
    if cause == "cancelled" and (by := state.partition(" by ")[2]):
        words += f" by {_user(by)}"
    if cause == "failed" and exit_code not in ("", "0:0"):
        code, _, number = exit_code.partition(":")
        words += f" by signal {number}" if number not in ("", "0") else f" with exit code {code}"
    if cause in ("node", "memory") and nodes:
        words += f" ({nodes})"
    return words


def reason_in_words(reason: str) -> str:
    """Why a job waits, for people; Slurm's own word stands behind."""
    short = reason.strip("()")
    known = _REASONS.get(short.replace(" ", "_")) or _REASONS.get(short.partition(",")[0].partition(":")[0])
    if known is None:
        for start, words in (("QOS", "its QOS has reached a limit"), ("Assoc", "its account has reached a limit")):
            if short.startswith(start):
                known = words
    return f"{known} ({short})" if known and short != "None" else known or short


def in_line(reason: str) -> bool:
    """Whether the job waits for others of its night."""
    return reason.strip("()") in _IN_LINE


def could_not_be_launched(reason: str) -> bool:
    """Whether Slurm tried to start the job, failed, and now holds it: it will not start by itself again."""
    return _LAUNCH_FAILED in reason.replace("_", " ").lower()


def _user(uid: str) -> str:
    """A user's name by the number that sacct gives, the number where it has none here."""
    import pwd

    try:
        return f"{pwd.getpwuid(int(uid)).pw_name} (uid {uid})"
    except (KeyError, ValueError):
        return f"uid {uid}"
