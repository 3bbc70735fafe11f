"""What the views gather, the same from SQLite and PostgreSQL; and the pure parts: links, questions, words."""

import json
import urllib.parse
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_records import CASE, START
from web_history import FP8, PLATFORM, fill

from harness.case import PHASES
from harness.record import Stats
from regress_db import definitions
from regress_db.errors import FilterError
from regress_db.history import History
from regress_db.metrics import SCALARS
from regress_db.web.links import Links, ReportLinks, series_of, series_text
from regress_db.web.pages import breakable, data, duration, figure
from regress_db.web.questions import Parameter, QuestionError, read
from regress_db.web.rows import as_csv
from regress_db.web.views import night, nights, nodes, runfacts, serieslines, sides, triage
from regress_db.web.views.error import ErrorView
from regress_db.web.views.serieslines import Asked
from regress_db.web.views.shared import SeriesName, apart, in_common, parts_of

COMBINE = SeriesName(case=CASE.key, phase="combine", platform=PLATFORM)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Four nights in a file."""
    folder = tmp_path_factory.mktemp("views")
    (folder / "spool").mkdir()
    with History.open(folder / "history.db") as history:
        yield fill(history, folder / "spool")


def test_every_view_is_gathered_from_either_database(history, spool):
    filled = fill(history, spool)
    last = night.gather(filled, "latest")
    assert (last.night, last.previous, last.next, last.exit_code) == ("n4", "n3", "", 1)
    assert last.counts == {"regressed": 1, "failed": 2, "unchanged": 1}
    assert (last.ok_runs, len(last.troubles), last.hosts) == (4, 2, ["node-1"])
    assert last.environment["versions.torch"] == "2.14.0"
    assert last.common["hidden"] == "256"
    assert "dtype" not in last.common
    assert [row.worst for row in last.rows] == ["regressed", "failed"]
    assert (last.new, last.recovered) == (0, 1)

    listed = nights.gather(filled)
    assert [one.night for one in listed.nights] == ["n4", "n3", "n2", "n1"]
    assert listed.nights[0].counts == last.counts
    assert list(listed.nights[0].counts) == ["regressed", "failed", "unchanged"]

    points = serieslines.gather(filled, Asked(names=(COMBINE,))).lines[0].points
    assert len(points.at) == 12
    assert points.at == sorted(points.at)
    assert points.night == ["n1"] * 3 + ["n2"] * 3 + ["n3"] * 3 + ["n4"] * 3
    assert points.verdict[-1] == points.verdict[6] == "regressed"
    assert all(low <= value <= high for low, value, high in zip(points.low, points.value, points.high, strict=True))

    run = runfacts.gather(filled, points.run_id[-1])
    assert [phase.phase for phase in run.phases] == list(PHASES)
    assert run.command == f"epwatch run {CASE.key} --iters 12 --warmup 10"
    assert {fact.name for fact in run.differences} == {"code.commit", "versions.torch"}
    by_name = {one.name: one for one in run.phases[1].numbers}
    assert by_name["latency_us"].change == pytest.approx(0.5, abs=0.05)
    assert len(run.phases[0].samples_us) == 2
    assert (run.previous, run.next) == (points.run_id[-2], "")

    compared = sides.compare(filled, "n1", "n4")
    assert compared.numbers[0].change == pytest.approx(0.5, abs=0.05)
    assert (compared.first.side, compared.first.name) == ("night", "n1")
    both = sides.compare(filled, points.run_id[0], points.run_id[-1])
    assert {one.name for one in both.differences} == {"code.commit", "versions.torch"}

    beside = sides.backends(filled, CASE.key)
    assert [one.dtype for one in beside.numbers] == ["bf16", "fp8"] * 2
    assert beside.numbers[0].change == 0
    assert beside.choices == sorted([CASE.key, FP8.key])

    assert [one.host for one in nodes.gather(filled).nodes] == ["node-1"]
    assert triage.gather(filled).may_write is False


def test_points_are_runs_nights_or_commits_within_the_time_asked_for(filled):
    at = {by: serieslines.gather(filled, Asked(names=(COMBINE,), by=by)).lines[0].points for by in serieslines.BY}
    assert [len(points.at) for points in at.values()] == [12, 4, 4]
    assert at["night"].runs == [3, 3, 3, 3]
    assert at["night"].value[0] == sorted(at["run"].value[:3])[1]
    assert (at["night"].low[0], at["night"].high[0]) == (min(at["run"].value[:3]), max(at["run"].value[:3]))
    since, until = START + timedelta(days=1), START + timedelta(days=3)
    cut = serieslines.gather(filled, Asked(names=(COMBINE,), by="night", since=since, until=until))
    assert cut.lines[0].points.night == ["n2", "n3"]
    assert cut.lines[0].band.runs == 3
    assert cut.lines[0].band.low < cut.lines[0].points.value[0] < cut.lines[0].band.high


def test_a_change_of_library_is_a_mark_and_a_new_commit_is_none(filled):
    view = serieslines.gather(filled, Asked(names=(COMBINE,)))
    assert [mark.words for mark in view.marks] == ["versions.torch: 2.13.0 to 2.14.0"]
    assert view.marks[0].at == view.lines[0].points.at[6]


def test_series_are_overlaid_by_name_or_by_pattern(filled):
    view = serieslines.gather(filled, Asked(cases=("dtype=*",), phase="combine"))
    assert [line.label for line in view.lines] == ["bf16", "fp8"]
    ranks = serieslines.gather(filled, Asked(names=(COMBINE,), metric="ranks")).lines
    fastest, average, slowest = (line.points.value for line in ranks)
    assert all(low <= middle <= high for low, middle, high in zip(fastest, average, slowest, strict=True))
    choices = serieslines.gather(filled, Asked(names=(COMBINE,))).choices
    assert {parts_of(one.case)["dtype"] for one in choices} == {"bf16", "fp8"}
    with pytest.raises(FilterError, match="cannot be chosen by node"):
        serieslines.gather(filled, Asked(cases=("node=a",)))


def test_the_table_of_a_night_has_a_line_for_each_series(filled):
    lines = as_csv(night.gather(filled, "n4")).splitlines()
    assert len(lines) == 1 + 4
    assert lines[0].startswith("night,case,platform,phase,verdict,sign,effect")


keys = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60)
names = st.builds(SeriesName, case=keys, phase=st.sampled_from(PHASES), platform=st.text(max_size=40))


@given(names)
def test_a_series_in_an_address_is_found_again(name):
    if "|dispatch|" not in name.platform and "|combine|" not in name.platform:
        assert series_of(series_text(name)) == name
        (value,) = urllib.parse.parse_qs(urllib.parse.urlsplit(Links().series(name)).query)["s"]
        assert series_of(value) == name


@given(st.text(max_size=40))
def test_only_a_series_is_read_as_one(text):
    found = series_of(text)
    assert found is None or series_text(found) == text


@given(keys)
def test_an_id_in_a_link_is_one_level_and_found_again(key):
    for link, folder in ((Links("../").night(key), "../nights/"), (Links("../").run(key), "../runs/")):
        assert link.startswith(folder)
        rest = link.removeprefix(folder)
        assert not set(rest) & set("/?#<>\"' ")
        assert urllib.parse.unquote(rest) == key


def test_links_of_a_report_lead_to_what_is_in_it_alone():
    links = ReportLinks([("night", "n1"), ("series", series_text(COMBINE)), ("run", "abc")])
    assert links.series(COMBINE) == f"#{links.anchor('series', series_text(COMBINE))}" != "#"
    assert links.run("abc") == "#run-2"
    assert not any((links.run("x"), links.compare("a", "b"), links.nights(), links.nodes(), links.as_format("json")))


def test_a_report_has_every_link_that_a_page_has():
    own = {name for name in vars(Links) if not name.startswith("_")}
    assert own - {"one_series"} <= set(vars(ReportLinks)) | {"root"}


@given(st.text())
def test_data_for_a_script_cannot_end_it(text):
    found = data(ErrorView(status=1, sentence=text))
    assert not set(found) & set("<>&\u2028\u2029")
    assert json.loads(found)["sentence"] == text


def test_every_number_of_a_record_has_a_definition():
    assert set(SCALARS) <= set(definitions.DEFINITIONS)
    assert {name for name in Stats.__struct_fields__ if name.endswith("_us")} - {"rank_p50_us"} <= set(
        definitions.DEFINITIONS
    )
    assert definitions.of("bytes.nvl_send").unit == "B"
    assert not definitions.of("gbs.total_recv").lower_is_better
    assert definitions.of("something_us").unit == "µs"


def test_numbers_are_told_in_units_that_suit_them():
    assert [figure(value, "µs") for value in (12.345678, 123456.0, 2e6, None)] == ["12.35 µs", "123.5 ms", "2 s", "–"]
    assert figure(1234567.0, "B") == "1\u202f234\u202f567 B"
    assert figure(1.2345678, "") == "1.235"
    assert [duration(seconds) for seconds in (None, -1, 5, 125, 3725)] == ["", "", "5 s", "2 min 05 s", "1 h 02 min"]
    assert breakable("a/<b>") == "a/<wbr>&lt;b&gt;"


@given(st.lists(st.sampled_from([CASE.key, FP8.key, "not a key"]), min_size=1))
def test_a_key_is_what_is_common_and_what_tells_it_apart(found):
    common = in_common(found)
    for key in found:
        assert apart(key, common) == {name: one for name, one in parts_of(key).items() if name not in common}
        assert not parts_of(key) or common | apart(key, common) == parts_of(key)


PARAMETERS = (
    Parameter("one", "", values=("a", "b")),
    Parameter("many", "", repeated=True),
    Parameter("count", "", "number", least=2, most=30),
    Parameter("set", "", "flag"),
)


@given(st.lists(st.tuples(st.sampled_from(["one", "many", "count", "set", "other"]), st.text(max_size=8))))
def test_a_question_is_read_or_refused_in_a_sentence(given_pairs):
    try:
        question = read(PARAMETERS, given_pairs)
    except QuestionError:
        return
    assert question.text("one") in ("", "a", "b")
    assert question.number("count", 7) in range(2, 31)
    assert question.texts("many") == [value for name, value in given_pairs if name == "many" and value]
