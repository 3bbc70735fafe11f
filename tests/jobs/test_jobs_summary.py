"""A night in words: Markdown, plain text and JUnit, true to the verdicts and safe whatever a record says."""

import re
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import junitparser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_verdicts import KEY, PLATFORM, finding, night, series
from markdown_it import MarkdownIt

from jobs.junit import junit
from jobs.summary import ROWS_SHOWN, NightSummary, changed, escaped, markdown, recovered, text, title
from regress_db.schedules import AbsentNight

EVIL = "<script>alert(1)</script> | a | `b` *c* _d_ ~~e~~ [f](g) ![h](i) # \n\n## j\n| k | l |\\| &lt; $m$ <!-- n"


class Cells(HTMLParser):
    """The texts of a page's cells and headings, and every tag on it."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.rows, self.texts = [], [], []
        self.in_cell = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.in_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data):
        self.texts.append(data)
        if self.in_cell:
            self.rows[-1][-1] += data


def page(source):
    return Cells(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(source))


def one_line(words):
    return re.sub(r"\s+", " ", "".join(char if char.isprintable() else " " for char in words)).strip()


@given(st.text(max_size=80) | st.text("<>&|`*_[]()~#$!\\ \n-+=.1:/@", max_size=40))
def test_escaped_text_reads_as_it_was_and_is_no_markup(words):
    cells = page(f"| a | b |\n| --- | --- |\n| x{escaped(words)}x | y |\n")
    assert cells.rows == [["a", "b"], [f"x{one_line(words)}x".replace("\u2028", " "), "y"]]
    assert set(cells.tags) <= {"table", "thead", "tbody", "tr", "th", "td"}


def test_the_summary_shows_what_needs_a_look_worst_first():
    judged = night(
        series(),
        series("regressed", case=KEY.replace("ep_core", "slow"), finding=1, cause="node"),
        series("hung", case=KEY.replace("t64", "t65"), effect=None, latency_us=None, sentence="it hung: rank 1."),
        series("improved", effect=-0.2, phase="combine"),
        findings=(finding(),),
        remarks=("it was a full moon",),
    )
    summary = NightSummary(
        "nightly", judged, hosts=("node-1", "node-2"), report=Path("a_b/r.html"), logs=Path(".epwatch/jobs/x")
    )
    shown = page(markdown(summary))
    verdicts = [row[0] for row in shown.rows]
    assert verdicts == ["verdict", "▲ regressed", "✗ hung", "▼ improved"]
    assert shown.rows[1][1:] == [
        KEY.replace("ep_core", "slow"),
        "dispatch",
        PLATFORM,
        "+25.0 %",
        "125 µs",
        "100 µs",
        "1",
    ]
    said = "".join(shown.texts)
    for words in (
        "finding 1",
        "it hung: rank 1.",
        "it was a full moon.",
        "node-1, node-2",
        "a_b/r.html",
        "4 series: 1",
    ):
        assert words in said, words
    assert "rank 1" in text(summary)
    assert title(summary) == "epwatch: nightly: 4 series: 1 regressed, 1 hung, 1 improved, 1 unchanged."


def test_a_long_list_says_how_much_is_left_out():
    many = [series("regressed", case=KEY.replace("t64", f"t{number}")) for number in range(ROWS_SHOWN + 7)]
    shown = page(markdown(NightSummary("nightly", night(*many), hosts=tuple(f"node-{n}" for n in range(50)))))
    assert len(shown.rows) == ROWS_SHOWN + 1
    assert "".join(shown.texts).count("and 7 more") == 2
    assert "and 18 more" in "".join(shown.texts)


def test_nothing_from_outside_breaks_the_summary():
    judged = night(
        series("failed", case=EVIL, platform_key=EVIL, sentence=EVIL, effect=None),
        series("regressed", case=EVIL, platform_key=EVIL, sentence=EVIL),
        findings=(finding(subject=EVIL),),
        remarks=(EVIL,),
        name=EVIL,
    )
    shown = page(markdown(NightSummary(EVIL, judged, hosts=(EVIL,), report=Path(EVIL.replace("/", "")))))
    assert all(len(row) == 8 for row in shown.rows)
    assert len(shown.rows) == 3
    assert set(shown.tags).isdisjoint({"script", "img", "a", "em", "strong", "s", "code"})
    assert shown.tags.count("table") == 1
    assert shown.rows[1][1] == one_line(EVIL)


def test_plain_text_calls_nobody():
    said = text(NightSummary("nightly", night(series("failed", sentence="@everyone <!channel> <@U1> uniform@0 a@b"))))
    assert "@everyone" not in said
    assert "<!channel>" not in said
    assert "<@U1>" not in said
    assert "uniform@0 a@b" in said


def test_a_text_without_end_is_cut():
    said = text(NightSummary("nightly", night(series("failed", sentence="x" * 10_000))))
    assert len(said) < 1000


@pytest.mark.parametrize(
    ("of_series", "before", "is_change"),
    [
        ([series()], None, False),
        ([series("regressed")], None, True),
        ([series("regressed", waiver="waived")], None, False),
        ([series("improved")], None, True),
        ([series("missing")], None, True),
        ([series("inconclusive")], None, False),
        ([series("insufficient")], [series("regressed")], False),
        ([series()], [series("regressed")], True),
        ([series()], [series("regressed", waiver="waived")], False),
        ([series()], [series("hung")], True),
        ([series()], [series("missing", platform_key="")], True),
        ([series()], [series("regressed", phase="combine")], False),
        ([series("regressed")], [series("regressed")], True),
        ([], None, True),
    ],
)
def test_what_counts_as_a_change(of_series, before, is_change):
    earlier = None if before is None else night(*before, name="earlier").verdict
    assert changed(NightSummary("nightly", night(*of_series), earlier)) is is_change


def test_nights_that_did_not_happen_are_a_change_and_are_named():
    moment = datetime(2026, 11, 23, 2, tzinfo=UTC)
    absent = (AbsentNight("nightly", moment, "2026-11-23 02:00 UTC"),)
    summary = NightSummary("nightly", night(series()), absent=absent)
    assert changed(summary)
    assert "The night of 2026-11-23 02:00 UTC did not happen." in text(summary)
    shown = "".join(page(markdown(summary)).texts)
    assert "Nights that did not happen" in shown
    assert "The night of 2026-11-23 02:00 UTC did not happen." in shown


def test_what_recovered_is_said():
    summary = NightSummary("nightly", night(series()), night(series("hung"), name="earlier").verdict)
    assert [one.case for one in recovered(summary)] == [KEY]
    words = f"dispatch of {KEY} recovered: it was hung in night earlier."
    assert words in text(summary)
    assert words in "".join(page(markdown(summary)).texts)
    assert page(markdown(summary)).rows[1][0] == "= unchanged, recovered"


def test_junit_is_read_back_as_it_was_meant():
    judged = night(
        series("regressed", sentence="slower <b> & \x1b[31m\x00"),
        series("regressed", phase="combine", waiver="waived until then"),
        series("wrong", case="wrong/case"),
        series("missing", case="missing/case", platform_key=""),
        series("inconclusive", case="open/case", warnings=("few runs", "noisy")),
        series("improved", case="fast/case"),
        series(case="same/case"),
        series(case="same/case", platform_key="other"),
        name="night <1>",
    )
    document = junitparser.JUnitXml.fromstring(junit("nightly", judged).encode())
    (suite,) = document
    assert {one.name: one.value for one in suite.properties()} == {
        "night": "night <1>",
        "plan": "nightly",
        "baseline": "auto",
    }
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (8, 1, 2, 0)
    assert (document.tests, document.failures, document.errors) == (8, 1, 2)
    cases = {(case.classname, case.name): case for case in suite}
    (failure,) = cases[KEY, "dispatch"].result
    assert isinstance(failure, junitparser.Failure)
    assert (failure.type, failure.message) == ("regressed", "slower <b> & �[31m�")
    for classname, kind in (("wrong/case", "wrong"), ("missing/case", "missing")):
        (error,) = cases[classname, "dispatch"].result
        assert isinstance(error, junitparser.Error)
        assert error.type == kind
    for key in ((KEY, "combine"), ("open/case", "dispatch"), ("fast/case", "dispatch")):
        assert cases[key].is_passed
        assert cases[key].system_out == f"dispatch of {KEY} is {cases[key].system_out.split()[-1]}"
    assert cases["open/case", "dispatch"].system_err == "few runs\nnoisy"
    assert {key[1] for key in cases if key[0] == "same/case"} == {f"dispatch [{PLATFORM}]", "dispatch [other]"}


def test_junit_has_the_shape_that_ci_systems_expect():
    root = ElementTree.fromstring(junit("nightly", night(series("regressed"), series("inconclusive", case="x"))))
    assert root.tag == "testsuites"
    (suite,) = root
    assert suite.tag == "testsuite"
    assert {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"} <= set(suite.attrib)
    assert [child.tag for child in suite] == ["properties", "testcase", "testcase"]
    for case in suite.iter("testcase"):
        assert {"name", "classname", "time"} <= set(case.attrib)
        assert {child.tag for child in case} <= {"failure", "error", "system-out", "system-err"}


def test_a_night_without_results_is_no_pass():
    (suite,) = junitparser.JUnitXml.fromstring(junit("nightly", night()).encode())
    assert (suite.tests, suite.errors) == (1, 1)
    assert "Nothing was planned" in markdown(NightSummary("nightly", night()))


@given(st.text(max_size=60))
def test_any_text_makes_a_document_that_can_be_read(words):
    judged = night(series("failed", case=words, platform_key=words, sentence=words, warnings=(words,)), name=words)
    (suite,) = junitparser.JUnitXml.fromstring(junit(words or "x", judged).encode())
    assert suite.errors == 1
