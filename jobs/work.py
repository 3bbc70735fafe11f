"""What a job on this machine does: measure its spec, and leave an envelope that says how it ended.

`measure` is the function that submitit pickles by name and calls in the job's process. Torch-free: the ranks that
`harness.launch` starts load it. Next to read: `harness.launch`; `jobs.rank_task` is the same for a cluster.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

from harness import job as jobspec
from harness.job import JobSpec
from jobs import private_files
from jobs.envelope import sealed
from jobs.exclusive import measuring
from jobs.night_folder import SPEC_FILE

ENVELOPE_FILE = "envelope.json"


def measure(folder: str, measuring_lock: str, variables: Mapping[str, str | None] | None = None) -> None:
    """Measure the spec in `folder`/job.json and write `folder`/envelope.json. Called in the job's own process.

    measuring_lock: file that is locked while this machine measures, so that two measurements never overlap; it
    outlives a submitter that was killed. variables: of the environment, in place of what the executor made of them;
    None for one that is not to be set.
    """
    for name, value in (variables or {}).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # A job may have been started from a shell's background, where Ctrl-C is ignored by inheritance.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    place = Path(folder)

    def run() -> None:
        from harness.launch import run_job

        private_files.require_trusted(place)
        spec = jobspec.load(place / SPEC_FILE)
        with measuring(Path(measuring_lock), wait_s=spec.deadline_s):
            run_job(spec)

    told = private_files.load(place / SPEC_FILE, JobSpec)
    sealed(run, place / ENVELOPE_FILE, attempt=0 if told is None else told.attempt)
