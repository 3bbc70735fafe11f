"""The plan: what its matrix gives, and how it refuses what makes no sense."""

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.case import ROUTINGS, Case
from jobs.busy import busy_share
from jobs.packing import new_night_id, pack, plan_runs
from jobs.plan import PlanError, load, parse, plan_of_cases
from jobs.plan_matrix import Exclude, Matrix, combinations, excludes
from jobs.toml_lines import line_of

GOOD = """\
[plan]
name = "p"

[cluster]
kind = "local"

[measure]
repeats = 3

[[cases]]
backend = "ep_core"
mode = ["ll", "ht"]
ranks = [2, 4]
tokens = 16
hidden = 256
topk = 2
experts = 8
dtype = ["bf16", "fp8"]
exclude = [{ mode = "ht", dtype = "fp8" }]

[[cases]]
backend = "torch"
mode = "ll"
ranks = 2
tokens = 16
hidden = 256
topk = 2
experts = 8
floor = 0.5
"""


def refused(source: str) -> str:
    with pytest.raises(PlanError) as raised:
        parse(source, "night.toml")
    sentence = str(raised.value)
    assert "night.toml" in sentence
    assert "\n" not in sentence.split("not valid TOML")[0]
    return sentence


def with_line(old: str, new: str) -> tuple[str, int]:
    """GOOD with one line replaced, and that line's number."""
    lines = GOOD.splitlines()
    index = lines.index(old)
    lines[index] = new
    return "\n".join(lines), index + 1


def test_a_matrix_is_every_combination_less_the_excluded():
    plan = parse(GOOD, "night.toml")
    keys = [planned.case.key for planned in plan.cases]
    assert len(keys) == 7
    assert not [key for key in keys if "/ht/" in key and "/fp8/" in key]
    assert plan.floors[keys[-1]] == 0.5
    assert plan.floors[keys[0]] == plan.verdict.floor


def test_combine_follows_the_mode_where_it_is_left_out():
    plan = parse(GOOD, "night.toml")
    assert {(p.case.mode, p.case.combine) for p in plan.cases} == {("ll", "exact"), ("ht", "local_reduce")}


def test_a_series_is_judged_against_its_own_past_unless_the_plan_names_something_else():
    assert parse(GOOD, "p").baseline_name == "auto"
    assert parse(GOOD + '[baseline]\npolicy = "first"\n', "p").baseline_name == "p"
    assert parse(GOOD + '[baseline]\npolicy = "none"\n', "p").baseline_name is None
    assert parse(GOOD + '[baseline]\npolicy = "named"\nname = "b"\n', "p").baseline_name == "b"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("repeats = 3", 'repeats = "three"', ["measure.repeats: is text, wanted a whole number"]),
        ("repeats = 3", "repeats = 0", ["measure.repeats", "at least 1"]),
        ("repeats = 3", "repeat = 3", ["measure.repeat", "no such field", "repeats"]),
        ("repeats = 3", "repeats = 1001", ["measure.repeats", "at most 1000"]),
        ("repeats = 3", "deadline_s = nan", ["measure.deadline_s"]),
        ("repeats = 3", "job_s = 601", ["measure.job_s: is 601", "measure.job_deadline_s (600 s)", "ended before"]),
        ("repeats = 3", "case_s = 601", ["measure.case_s: is 601", "measure.job_deadline_s (600 s)", "ended before"]),
        ('name = "p"', 'name = "_p"', ["plan.name", "starting with a letter or digit"]),
        (
            'dtype = ["bf16", "fp8"]',
            "routing = ['uniform', 'zipf']",
            ["cases[1].routing", "'zipf'", "uniform, balanced, skewed"],
        ),
        ("tokens = 16", 'tokens = [16, "x"]', ["cases[1].tokens[2]: is text, wanted a whole number"]),
        ("tokens = 16", 'tokens = "x"', ["cases[1].tokens: is text, wanted a whole number or a list of them"]),
        ('exclude = [{ mode = "ht", dtype = "fp8" }]', "exclude = [{ modes = 1 }]", ["cases[1].exclude[1].modes"]),
        ('exclude = [{ mode = "ht", dtype = "fp8" }]', 'exclude = "ht"', ["cases[1].exclude: is text, wanted a list"]),
        ("[cluster]", "[clusters]", ["clusters: there is no such field", "cluster, cases"]),
        ('kind = "local"', 'kind = "pbs"', ["cluster.kind: is 'pbs', wanted local or slurm"]),
        ('name = "p"', 'name = "a b"', ["plan.name", "a b"]),
        ("tokens = 16", "tokens = []", ["cases[1].tokens", "empty"]),
        ("tokens = 16", "tokens = [16, 16]", ["cases[1].tokens", "twice"]),
        ("topk = 2", "topk = 2.5", ["cases[1].topk"]),
        ('backend = "torch"', "backend = 3", ["cases[2].backend"]),
        ("floor = 0.5", "floor = -1.0", ["cases[2].floor"]),
        ("floor = 0.5", "flor = 0.5", ["cases[2].flor", "no such field"]),
        (
            'exclude = [{ mode = "ht", dtype = "fp8" }]',
            'exclude = [{ mode = "ht", dtype = "fp8", ranks = 8 }]',
            ["cases[1].exclude", "excludes nothing"],
        ),
        ('exclude = [{ mode = "ht", dtype = "fp8" }]', "exclude = [{}]", ["cases[1].exclude", "empty"]),
    ],
)
def test_a_mistake_is_named_with_its_line_and_field(old, new, words):
    source, line = with_line(old, new)
    sentence = refused(source)
    assert f"line {line}:" in sentence, sentence
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", ["plan night.toml: there is no [plan]"]),
        (
            'measure.repeats = "x"\n' + GOOD.replace("[measure]\nrepeats = 3\n", ""),
            ["line 1: measure.repeats: is text"],
        ),
        (
            GOOD.replace("tokens = 16", 'tokens = 16\nprotocol = "graph"'),
            ["cases[1]: gives ep_core/ll/cpu/", "cannot run: protocol 'graph' needs a GPU"],
        ),
        ("plan = 3", ["line 1: plan: is a whole number, wanted a table: write [plan]"]),
        (GOOD[: GOOD.index("[[cases]]")], ["night.toml: there is no [[cases]]"]),
        (GOOD[: GOOD.rindex("[[cases]]")].replace("[[cases]]", "[cases]"), ["line 10: cases", "write [[cases]]"]),
        (GOOD.replace("[measure]", "[[measure]]"), ["line 7: measure: is a list", "write [measure]"]),
        (GOOD + '"a\\nb" = 3\n', ["cases[2].a", "no such field"]),
        ("[plan\n", ["TOML", "line 1"]),
        (GOOD + "[verdicts]\n", ["verdicts", "no such field"]),
        (
            GOOD.replace('[cluster]\nkind = "local"\n', ""),
            ["night.toml: there is no [cluster]: a plan names where it runs"],
        ),
        (GOOD.replace("experts = 8", "experts = 6"), ["cases[1]", "6 experts cannot be divided among 4 ranks"]),
        (GOOD + GOOD[GOOD.rindex("[[cases]]") :], ["cases[3]", "cases[2] already has"]),
        (GOOD + '[baseline]\npolicy = "named"\n', ["baseline.policy", "name"]),
        (GOOD + '[baseline]\npolicy = "auto"\nname = "b"\n', ["baseline.name", "auto"]),
        (GOOD + "[verdict]\nconfirmations = 3\n", ["verdict.confirmations", "is 3", "0 to 2"]),
        (GOOD + "[verdict]\nfalse_alarms_a_month = 0.0\n", ["verdict.false_alarms_a_month", "is 0.0"]),
        (GOOD + '[baseline]\npolicy = "last"\n', ["baseline.policy", "last"]),
        (GOOD.replace('name = "p"', 'name = "p"\nreport = "{nights}.html"'), ["plan.report"]),
        (GOOD.replace("ranks = [2, 4]", "ranks = [2, 4]\nnodes = 2"), ["nodes", "one machine"]),
    ],
)
def test_what_makes_no_sense_is_refused(source, words):
    sentence = refused(source)
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize("words", ["{nights}", "{night.x}", "{night[a]}", "{night:>99999999999999}", "{", "{{night}}"])
@pytest.mark.parametrize(("table", "field"), [("plan", "report"), ("tell", "junit"), ("tell", "markdown")])
def test_nothing_but_the_night_and_the_plan_is_filled_in(table, field, words):
    source = f"[tell]\n{GOOD}".replace(f"[{table}]\n", f'[{table}]\n{field} = "a/{words}"\n')
    sentence = refused(source)
    assert f"{table}.{field}: may hold {{night}} and {{plan}}, and no other braces" in sentence
    parse(source.replace(f"a/{words}", "{night}/{plan}-{night}"), "night.toml")


def test_a_night_has_a_bounded_number_of_runs():
    source = GOOD.replace("hidden = 256", f"hidden = {[256 * n for n in range(1, 90)]}")
    source = source.replace("tokens = 16", f"tokens = {list(range(1, 90))}")
    sentence = refused(source)
    assert "cases[1]: brings the runs of a night to 190,104" in sentence
    assert "wanted at most 100,000" in sentence


def test_what_a_job_is_taken_to_need_follows_what_it_may_take():
    assert parse(GOOD, "p").measure.job_s == 300.0
    short = parse(GOOD.replace("repeats = 3", "job_deadline_s = 8.0"), "p").measure
    assert (short.job_s, short.case_s) == (8.0, 8.0)


def test_the_routings_of_plans_are_those_there_are():
    from harness.routing import GENERATORS

    assert tuple(GENERATORS) == ROUTINGS


def test_a_plan_that_is_not_there_is_a_sentence(tmp_path: Path):
    with pytest.raises(PlanError, match=re.escape(str(tmp_path / "no.toml"))):
        load(tmp_path / "no.toml")
    with pytest.raises(PlanError, match="cannot read"):
        load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(PlanError, match="UTF-8"):
        load(tmp_path / "latin.toml")


def test_the_example_makes_sense():
    plan = load(Path(__file__).parents[2] / "examples" / "nightly-cpu.toml")
    assert {planned.case.backend for planned in plan.cases} == {"ep_core", "torch"}
    assert all(planned.case.device == "cpu" for planned in plan.cases)


def test_the_example_for_gpus_makes_sense():
    plan = load(Path(__file__).parents[2] / "examples" / "nightly-gpu.toml")
    assert all(planned.case.device == "cuda" for planned in plan.cases)
    assert {planned.case.protocol for planned in plan.cases} == {"phased", "graph", "kernel"}


def test_a_line_is_found_in_the_right_table():
    text = "[a]\nx = 1\n[[cases]]\nx = 2\n[[cases]]\n  'x' = 3\n"
    assert [line_of(text, field) for field in ("a.x", "cases[0].x", "cases[1].x")] == [2, 4, 6]
    assert line_of(text, "cases[1].y") == 5
    assert line_of(text, "cases[1]") == 5
    assert line_of(text, "cases[7].y") == 3
    assert line_of(text, "") is None
    text = "[a.b]\n'x.y' = 1\n[[cases]]\nexclude = [\n  { m = 1 },\n]\n[[cases.sub]]\nz.w = 1\n[[cases]]\n[cases.in]\n"
    fields = ("a.b.x.y", "a.b.q", "cases[0].exclude[1].m", "cases[0].sub[0].z.w", "cases[1].in.m", "cases[1].m")
    assert [line_of(text, field) for field in fields] == [2, 1, 4, 8, 10, 9]


axis = st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=3, unique=True)


@settings(max_examples=60, deadline=None)
@given(ranks=axis, tokens=axis, topk=axis, modes=st.sampled_from([["ll"], ["ht"], ["ll", "ht"]]))
def test_every_combination_comes_once(ranks, tokens, topk, modes):
    matrix = Matrix(backend="ep_core", mode=modes, ranks=ranks, tokens=tokens, topk=topk, hidden=256, experts=8)
    cases = list(combinations(matrix))
    assert len(cases) == len(set(cases)) == len(ranks) * len(tokens) * len(topk) * len(modes)
    wanted = set(itertools.product(modes, ranks, tokens, topk))
    assert {(c.mode, c.ranks, c.tokens, c.topk) for c in cases} == wanted
    assert cases == list(combinations(matrix))


@settings(max_examples=60, deadline=None)
@given(ranks=axis, tokens=axis, gone_ranks=axis, gone_tokens=st.none() | axis)
def test_an_exclusion_takes_what_it_names_and_nothing_else(ranks, tokens, gone_ranks, gone_tokens):
    matrix = Matrix(backend="ep_core", mode="ll", ranks=ranks, tokens=tokens, topk=1, hidden=256, experts=8)
    entry = Exclude(ranks=gone_ranks, tokens=gone_tokens)
    for case in combinations(matrix):
        named = case.ranks in gone_ranks and (gone_tokens is None or case.tokens in gone_tokens)
        assert excludes(entry, case) == named


cases = st.builds(
    Case,
    backend=st.sampled_from(["ep_core", "torch"]),
    mode=st.just("ll"),
    ranks=st.sampled_from([1, 2, 4]),
    tokens=st.integers(1, 5),
    hidden=st.just(256),
    topk=st.just(1),
    experts=st.just(8),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(cases, min_size=1, max_size=8, unique=True), st.integers(1, 4), st.integers(0, 99))
def test_every_run_is_in_one_job_and_a_job_has_one_world_and_one_repeat(cases, repeats, seed):
    runs = plan_runs(cases, repeats, "n")
    jobs = pack(runs, seed)
    assert sorted(run.run_id for job in jobs for run in job.runs) == sorted(run.run_id for run in runs)
    assert len({run.run_id for run in runs}) == len(cases) * repeats
    assert len({job.name for job in jobs}) == len(jobs) == repeats * len({case.ranks for case in cases})
    for job in jobs:
        assert len({(run.case.ranks, run.case.nodes, run.repeat) for run in job.runs}) == 1
    again = pack(plan_runs(cases, repeats, "n"), seed)
    assert [[run.case for run in job.runs] for job in jobs] == [[run.case for run in job.runs] for job in again]


def test_another_seed_gives_another_order():
    many = [Case(backend="b", mode="ll", ranks=2, tokens=t, hidden=8, topk=1, experts=2) for t in range(20)]
    orders = {tuple(run.case.tokens for run in pack(plan_runs(many, 1, ""), seed)[0].runs) for seed in range(5)}
    assert len(orders) == 5
    repeats = pack(plan_runs(many, 2, ""), 0)
    assert [r.case for r in repeats[0].runs] != [r.case for r in repeats[1].runs]


def test_night_ids_sort_by_time_in_any_zone():
    import datetime

    zone = datetime.timezone(datetime.timedelta(hours=9))
    early = datetime.datetime(2026, 11, 22, 23, 0, 0, tzinfo=datetime.UTC)
    late = datetime.datetime(2026, 11, 23, 8, 0, 1, tzinfo=zone)
    assert new_night_id(early) < new_night_id(late)
    assert new_night_id(early) != new_night_id(early)
    assert re.fullmatch(r"20261122T230000Z-[0-9a-f]{6}", new_night_id(early))


@settings(max_examples=30, deadline=None)
@given(st.lists(cases, min_size=1, max_size=5, unique=True))
def test_a_plan_made_of_cases_gives_these_cases_back(cases):
    plan = parse(plan_of_cases("made", cases, 0.3), "made.toml")
    assert [planned.case for planned in plan.cases] == cases
    assert set(plan.floors.values()) == {0.3}


@given(st.lists(st.integers(0, 1000), min_size=8, max_size=8), st.lists(st.integers(0, 1000), min_size=8, max_size=8))
def test_the_busy_share_is_a_share(before, spent):
    share = busy_share(before, [early + ticks for early, ticks in zip(before, spent, strict=True)])
    assert 0.0 <= share <= 1.0
    assert busy_share(before, before) == 0.0
