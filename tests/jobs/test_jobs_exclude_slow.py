"""A plan that leaves out slow hosts: which they are comes from the history, and what Slurm is asked for says so."""

import random
import sys
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

sys.path.append(str(Path(__file__).parents[1] / "regress_db"))

from synthetic_records import CASE, PLATFORM, START, ok_record

from harness import record as records
from jobs.night_session import clusters_of
from jobs.plan import parse
from jobs.slurm_submit import Shape, parameters
from regress_db.history import History
from regress_db.ingest import collect
from regress_db.nights import open_night

PLAN = """\
[plan]
name = "p"
[cluster]
kind = "slurm"
name = "big"
exclude = ["n9"]
exclude_slow = {floor}
[[cases]]
backend = "torch"
mode = "ll"
ranks = 2
tokens = 4
hidden = 64
topk = 2
experts = 4
"""
NODES = [f"n{number}" for number in range(1, 7)]


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """Twelve nights of six cases, three runs each, on six nodes of cluster `big`; n5 is 12 % slow."""
    folder = tmp_path_factory.mktemp("slow")
    chance = random.Random(11)
    platform = msgspec.structs.replace(PLATFORM, cluster="big")
    cases = [msgspec.structs.replace(CASE, tokens=tokens) for tokens in range(8, 14)]
    with History.open(folder / "history.db") as history:
        for night in range(12):
            for at, case in enumerate(cases):
                for repeat in range(3):
                    host = chance.choice(NODES)
                    factor = (1.12 if host == "n5" else 1.0) * chance.gauss(1, 0.01)
                    made = ok_record(
                        case=case,
                        night=f"night{night:02}",
                        repeat=repeat,
                        dispatch_us=100 * factor,
                        combine_us=200 * factor,
                        started=START + timedelta(days=night, minutes=at * 5 + repeat),
                        platform=platform,
                        hostname=host,
                        seed=chance.randrange(2**31),
                    )
                    records.write(made, folder / "spool")
            open_night(history, f"night{night:02}", "p", START + timedelta(days=night), [])
        collect(history, folder / "spool")
        yield history


def excluded(floor, history) -> str:
    plan = parse(PLAN.format(floor=floor), "night.toml")
    cluster = clusters_of(plan, history)["big"]
    shape = Shape.of(plan.clusters[0], plan.cases[0].case, cluster.slow_hosts)
    return parameters(plan.clusters[0], shape, "n", 10)["exclude"]


def test_a_host_that_is_slow_by_more_than_the_plan_bears_gets_no_job(history, capsys):
    assert excluded(0.05, history) == "n5,n9"
    assert "left out as slow on cluster big: n5 (+" in capsys.readouterr().err


def test_a_host_that_is_less_slow_than_that_is_used(history, capsys):
    assert excluded(0.5, history) == "n9"
    assert capsys.readouterr().err == ""


def test_a_plan_that_leaves_out_slow_hosts_can_have_its_first_night(tmp_path, capsys):
    with History.open(tmp_path / "history.db") as empty:
        assert excluded(0.05, empty) == "n9"
    assert capsys.readouterr().err == ""
