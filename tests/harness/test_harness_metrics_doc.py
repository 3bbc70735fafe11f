"""The worked example in docs/metrics.md: every figure is recomputed from the block it stands under."""

import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from harness import routing, stats, traffic
from harness.case import Case

DOCUMENT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
EXAMPLE = DOCUMENT[DOCUMENT.index("## A worked example") : DOCUMENT.index("## What happens to a run")]
GIVEN = json.loads(re.search(r"```json\n(.*?)```", EXAMPLE, re.DOTALL)[1])
SHOWN = {name.strip(): float(value) for name, value in re.findall(r"^\| ([a-z].*?) \| ([\d.]+) \|$", EXAMPLE, re.M)}
LL = Case(backend="x", mode="ll", ranks=4, nodes=2, tokens=2, hidden=7168, topk=2, experts=8)


def recomputed():
    topk_idx = np.array(GIVEN["topk_idx"])
    found = {}
    for title, case in (
        ("ll bf16", LL),
        ("ll fp8", msgspec.structs.replace(LL, dtype="fp8")),
        ("ht", msgspec.structs.replace(LL, mode="ht", combine="local_reduce")),
    ):
        for phase, named in traffic.logical_bytes(case, topk_idx).items():
            found |= {f"{title} {phase} {name}": value for name, value in named.items()}
    summary = stats.summarise(GIVEN["samples_us"], 1)
    found |= {name: getattr(summary, name) for name in summary.__struct_fields__ if name != "rank_p50_us"}
    speed = traffic.traffic(LL, "dispatch", {"recv": found["ll bf16 dispatch recv"]}, summary.latency_us, None)
    return found | {"per rank": speed.per_rank_gbs["recv"], "aggregate": speed.aggregate_gbs}


@pytest.mark.parametrize("name", SHOWN)
def test_a_figure_of_the_worked_example(name):
    assert recomputed()[name] == pytest.approx(SHOWN[name], abs=6e-4)


def test_the_example_shows_what_it_says_it_shows():
    assert len(SHOWN) == 21
    valid = np.array(GIVEN["topk_idx"]) != routing.MASKED
    assert f"There are {valid.sum()} valid selections" in EXAMPLE


@pytest.mark.parametrize("name", routing.GENERATORS)
def test_every_routing_is_described(name):
    assert f"`{name}`" in DOCUMENT
