"""pytest's door into the gate: `pytest --epwatch-gate` (see `jobs.gate`)."""

pytest_plugins = ["jobs.gate"]
