"""A process that owns a private Slurm and waits to be killed. Run by tests; argument: whether it has accounting."""

import json
import sys
import time

from jobs.private_slurm import PrivateSlurm, SlurmSettings

if __name__ == "__main__":
    settings = SlurmSettings(nodes=2, cpus=2, memory_mb=4000, gpus=0, accounting=sys.argv[1] == "accounting")
    with PrivateSlurm(settings) as slurm:
        status = slurm.status()
        print(json.dumps({"folder": status.folder, "guard": status.guard_pid, "supervisor": status.supervisor_pid}))
        sys.stdout.flush()
        time.sleep(600)
