"""The file of waivers, as someone writes it, and as someone mistypes it."""

from datetime import date

import pytest

from harness.case import Case
from jobs.plan import PlanError, parse, plan_of_cases
from jobs.waivers import WaiverError, load, of_plan
from regress_db.waivers import Waiver

GOOD = """\
[[waiver]]
case = "ep_core/ll/*"
phase = "combine"
up_to = 0.15
until = 2026-12-31
who = "ada"
why = "driver 580.2 is slower; 580.3 is announced"

[[waiver]]
case = "torch/*"
platform = "local/*"
up_to = 0.5
until = 2027-01-31
who = "bob"
why = "gloo on two cores"
"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / "waivers.toml"


def test_what_is_written_is_what_holds(file):
    file.write_text(GOOD)
    first, second = load(file)
    assert first == Waiver(
        "ep_core/ll/*", "combine", "*", 0.15, date(2026, 12, 31), "ada", "driver 580.2 is slower; 580.3 is announced"
    )
    assert (second.phase, second.platform) == (None, "local/*")


def test_an_empty_file_waives_nothing(file):
    file.write_text("# nothing is waived\n")
    assert load(file) == ()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("up_to = 0.15\n", "", "line 1: waiver[1].up_to: is missing"),
        ("until = 2026-12-31\n", "", "waiver[1].until: is missing"),
        ("until = 2026-12-31", "until = 'next year'", "line 5"),
        ("up_to = 0.15", "up_to = 15", "line 4: waiver[1].up_to: is 15.0, wanted a slowing above 0 and at most 10"),
        ('who = "bob"', 'who = " "', "line 14: waiver[2].who: is empty"),
        ('phase = "combine"', 'phase = "both"', "is 'both', wanted dispatch or combine"),
        ('[[waiver]]\ncase = "torch/*"', '[[waver]]\ncase = "torch/*"', "waver"),
        ("[[waiver]]", "[[waiver]", "not valid TOML"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_file_and_the_field(file, old, new, says):
    assert old in GOOD
    file.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(WaiverError) as raised:
        load(file)
    assert str(file) in str(raised.value)
    assert says in str(raised.value)
    assert raised.value.exit_code == 2


def test_a_file_that_is_not_there_is_named(file):
    with pytest.raises(WaiverError, match=r"cannot read the waivers .*No such file"):
        load(file)


def test_the_plan_that_names_them_is_named_too(tmp_path):
    (tmp_path / "waivers.toml").write_text(GOOD.replace("0.15", '"much"'))
    plan = plan_of_cases("p", [Case.parse("torch/ll/cpu/r2n1/t1/h8/k1/e2/bf16/exact/uniform@0/phased")], 0.1)
    own = parse(plan.replace("[verdict]", '[verdict]\nwaivers = "waivers.toml"'), str(tmp_path / "plan.toml"))
    with pytest.raises(PlanError) as raised:
        of_plan(own)
    assert str(raised.value) == (
        f"plan {tmp_path / 'plan.toml'}, line 6: verdict.waivers: waivers {tmp_path / 'waivers.toml'}, line 4: "
        "waiver[1].up_to: is text, wanted a number"
    )
