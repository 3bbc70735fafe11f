"""A private Slurm of two nodes on a machine that is said to have four GPUs. Run by a test, in a process of its own.

Argument: a folder for the Slurm. Prints what a task on each node and a batch script on the second see.
"""

import sys
from pathlib import Path

from jobs.private_slurm import SlurmSettings, machine, processes
from jobs.private_slurm.engine import Engine
from jobs.private_slurm.settings import Machine

SHOW = 'echo "$0 $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"'


def main(folder: Path) -> None:
    devices = [folder / f"nvidia{number}" for number in range(4)]
    for device in devices:
        device.symlink_to("/dev/null")
    machine.this_machine = lambda: Machine(cpus=2, memory_mb=4000, gpu_devices=tuple(map(str, devices)))
    processes.adopt_orphans()
    engine = Engine(folder, SlurmSettings(nodes=2, cpus=2))
    try:
        engine.boot()
        show = ("bash", "-c", SHOW)
        print(engine.ask("srun", "-N2", "--gres=gpu:2", *show, "two"))
        print(engine.ask("srun", "-N2", "-n4", "--ntasks-per-node=2", "--gpus-per-task=1", *show, "one"))
        print(engine.ask("srun", "-N2", *show, "none"))
        step = f"srun -n1 --gres=gpu:1 bash -c '{SHOW}' step"
        batch = f"bash -c '{SHOW}' batch; {step}; srun -n1 --gres=none bash -c '{SHOW}' none"
        out = folder / "batch.out"
        engine.ask("sbatch", "--wait", "-w127.0.1.2", "--gres=gpu:2", f"--output={out}", "--wrap", batch)
        print(out.read_text())
    finally:
        engine.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
