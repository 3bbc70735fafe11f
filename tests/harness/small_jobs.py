"""What the tests of whole jobs share: small cases, and a job's specification made of them."""

from pathlib import Path

import msgspec

from harness import record
from harness.case import Case
from harness.job import JobSpec
from harness.record import PlannedRun, new_run_id

TORCH_LL = Case(backend="torch", mode="ll", ranks=2, tokens=16, hidden=256, topk=2, experts=4)
EP_CORE_LL = msgspec.structs.replace(TORCH_LL, backend="ep_core")


def but(case, **changes):
    return msgspec.structs.replace(case, **changes)


def spec_of(folder, cases, **changes):
    runs = [PlannedRun(run_id=new_run_id(), case=case, night="n1", repeat=at) for at, case in enumerate(cases)]
    fields = {"warmup": 2, "iters": 5, "deadline_s": 120.0, "op_deadline_s": 20.0, "cluster": "test"}
    return JobSpec(runs=runs, spool=str(folder / "spool"), log_folder=str(folder / "log"), **(fields | changes))


def records(spec):
    return [record.read(Path(spec.spool) / f"{run.run_id}.json") for run in spec.runs]


def shared_memory():
    return sorted(path.name for path in Path("/dev/shm").iterdir())
