"""One module a group of commands; `jobs.cli` loads each only when it is called for."""
