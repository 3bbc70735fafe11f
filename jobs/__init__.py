"""jobs: where it runs. The plan, its jobs, their collection, the gate, and the command line that composes all rooms.

Importing the package imports nothing heavy. Start reading at `jobs.plan`, then `jobs.packing`, then `jobs.nightly`;
the command line is `jobs.cli`, the pytest plugin `jobs.gate`. `jobs.private_slurm` is a real Slurm in a folder,
for tests and for who has no other.
"""
