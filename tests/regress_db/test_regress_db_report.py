"""The report of a night: whole in one file, true to the verdicts, and safe whatever hosts and cases are called."""

import base64
import hashlib
import json
import re
from datetime import timedelta
from html.parser import HTMLParser

import msgspec
import pytest
from synthetic_records import CASE, START, environment, failed_record, ok_record

from harness import record as records
from harness.case import Case
from harness.record import PlannedRun, new_run_id
from regress_db.baselines import retire_baseline, set_baseline
from regress_db.errors import HistoryError, NotFoundError
from regress_db.ingest import collect
from regress_db.nights import close_night, open_night
from regress_db.nightverdict import WORST_FIRST
from regress_db.schedules import set_schedule
from regress_db.verdicts import Rules, judge_night
from regress_db.web.assets import SCRIPTS
from regress_db.web.report import write_report
from regress_db.wording import SIGNS

EVIL = "<script>alert('x')</script>"
VOID = {"meta", "br", "link", "img", "hr", "input", "wbr"}


class Page(HTMLParser):
    """The page's tags, attributes and text; knows whether every element was closed."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.elements, self.inside = [], []
        self.feed(source)
        self.close()
        self.text = re.sub(r"\s+", " ", "".join(self.texts)).replace("\u200b", "")

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside.append((tag, dict(attrs).get("type", ""), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            tag, kind, text = self.inside.pop()
            self.inside.append((tag, kind, text + data))
        else:
            self.texts.append(data)


def measure(history, spool, name, day, make):
    """A night of five planned runs; `make(**fields)` gives each one's record, or None for a missing one."""
    started = START + timedelta(days=day)
    planned = [PlannedRun(run_id=new_run_id(), case=CASE, night=name, repeat=repeat) for repeat in range(5)]
    open_night(history, name, "nightly", started, planned)
    for one in planned:
        record = make(run_id=one.run_id, night=name, repeat=one.repeat, started=started, seed=one.repeat)
        if record is not None:
            records.write(record, spool)
    collect(history, spool)
    close_night(history, name, started + timedelta(minutes=2, seconds=5))


@pytest.fixture
def two_nights(history, spool):
    """Two clean nights, the first one the baseline."""
    for day, name in enumerate(("first", "second")):
        measure(history, spool, name, day, lambda **fields: ok_record(**fields))
    set_baseline(history, "main", night="first", who="ada", why="first clean night")
    return history


def page_of(history, night, tmp_path, **options):
    return Page(write_report(history, night, tmp_path / "out" / "report.html", **options).read_text())


def data_of(page):
    """What the page's scripts are given."""
    return [json.loads(text) for tag, kind, text in page.inside if tag == "script" and kind == "application/json"]


def test_nothing_runs_but_the_scripts_that_the_policy_names(two_nights, tmp_path):
    judge_night(two_nights, "second", baseline="main")
    page = page_of(two_nights, "second", tmp_path)
    (policy,) = (value for name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    for _, _, text in [one for one in page.inside if one[1] != "application/json"]:
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert {one["kind"] for one in data_of(page)} >= {"series"}


def test_a_clean_night_says_so_and_the_file_needs_nothing_else(two_nights, tmp_path):
    judge_night(two_nights, "second", baseline="main", rules=Rules(floor=0.1))
    page = page_of(two_nights, "second", tmp_path, command="epwatch nightly plan.toml")
    assert page.open == []
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert not [value for name, value in page.attributes if name == "src" or name.startswith("on")]
    assert all(value.startswith("#") for name, value in page.attributes if name in ("href", "action"))
    for words in (
        "No series got slower.",
        "2 series: 2 unchanged.",
        "baseline main, 5 runs, set by ada",
        "took 2 min 05 s",
        "epwatch nightly plan.toml",
        f"epwatch run {CASE.key}",
        "5 runs with a result, 0 without",
    ):
        assert words in page.text, words
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["report.html"]


def test_a_regression_and_what_changed_with_it_are_on_the_page(two_nights, spool, tmp_path):
    changed = environment(torch="2.14.0")
    measure(two_nights, spool, "third", 2, lambda **fields: ok_record(combine_us=300.0, env=changed, **fields))
    verdict = judge_night(two_nights, "third", baseline="main", rules=Rules(floor=0.1))
    page = page_of(two_nights, "third", tmp_path)
    assert "1 of 2 series got slower." in page.text
    (finding,) = verdict.findings
    assert f"#1 {finding.sentence}" in page.text
    assert "torch 2.13.0 to 2.14.0" in finding.sentence
    assert "▲regressed" in page.text
    assert re.search(r"versions\.torch\s*2\.13\.0\s*2\.14\.0", page.text)
    combine, dispatch = (one for one in data_of(page) if one.get("kind") == "series")
    assert len(dispatch["lines"][0]["points"]["at"]) == len(combine["lines"][0]["points"]["at"]) == 15
    assert set(combine["lines"][0]["points"]["verdict"]) == {"", "regressed"}


def test_nights_that_did_not_happen_before_this_one_are_told(two_nights, spool, tmp_path):
    set_schedule(two_nights, "nightly", "02:00", "UTC", "ada", when=START - timedelta(days=1))
    measure(two_nights, spool, "third", 4, lambda **fields: ok_record(**fields))
    measure(two_nights, spool, "fourth", 5, lambda **fields: ok_record(**fields))
    for night in ("third", "fourth"):
        judge_night(two_nights, night, baseline="main", rules=Rules(floor=0.1))
    told = page_of(two_nights, "third", tmp_path).text
    first, second = (f"The night of 2026-10-0{day} 02:00 UTC did not happen." for day in (3, 4))
    assert 0 < told.index(first) < told.index(second)
    assert "did not happen" not in page_of(two_nights, "fourth", tmp_path).text


def test_what_did_not_run_is_there_with_its_log(two_nights, spool, tmp_path):
    def make(**fields):
        if fields["repeat"] == 1:
            return failed_record("hung", "rank 1 never arrived", "last words\nof the log", **fields)
        return None if fields["repeat"] == 2 else ok_record(**fields)

    measure(two_nights, spool, "third", 2, make)
    judge_night(two_nights, "third", baseline="main")
    page = page_of(two_nights, "third", tmp_path)
    for words in (
        "2 of 2 series have no valid result.",
        "rank 1 never arrived",
        "last words of the log",
        "no record of it came back",
        "3 runs with a result, 2 without",
    ):
        assert words in page.text, words


def test_nothing_from_outside_becomes_markup(two_nights, spool, tmp_path):
    case = Case(
        backend=EVIL.replace("/", ""),
        mode="ll",
        ranks=2,
        tokens=32,
        hidden=256,
        topk=4,
        experts=8,
        routing=EVIL.replace("/", ""),
    )
    env = environment(torch=EVIL)

    def make(**fields):
        shared = {**fields, "hostname": EVIL, "env": env}
        if fields["repeat"] == 0:
            return failed_record("failed", EVIL, EVIL, **{**shared, "case": case})
        return msgspec.structs.replace(ok_record(**shared), notes=[EVIL])

    measure(two_nights, spool, f"third {EVIL}", 2, make)
    judge_night(two_nights, f"third {EVIL}", baseline="main")
    page = page_of(two_nights, f"third {EVIL}", tmp_path, command=f"epwatch {EVIL}")
    kinds = [kind for tag, kind, _ in page.inside if tag == "script"]
    assert len(kinds) - kinds.count("application/json") == len(SCRIPTS)
    assert page.open == []
    assert page.text.count(EVIL) >= 8


def test_nights_of_which_little_is_known_still_have_a_report(history, spool, tmp_path):
    open_night(history, "empty", "nightly", START, [])
    judge_night(history, "empty", baseline=None)
    assert "Nothing was planned" in page_of(history, "empty", tmp_path).text
    measure(history, spool, "lost", 1, lambda **_: None)
    judge_night(history, "lost", baseline=None)
    assert "It ran nowhere." in page_of(history, "lost", tmp_path).text
    records.write(ok_record(night="stray"), spool)
    collect(history, spool)
    judge_night(history, "stray", baseline=None)
    assert "could not be decided" in page_of(history, "stray", tmp_path).text


def test_a_baseline_that_was_retired_since_is_still_named(two_nights, tmp_path):
    judge_night(two_nights, "second", baseline="main")
    retire_baseline(two_nights, "main", who="eve", why="old")
    assert "(retired since)" in page_of(two_nights, "second", tmp_path).text


def test_many_cases_are_folded_but_what_is_bad_stays_open(history, spool, tmp_path):
    for day, name in enumerate(("first", "second")):
        for tokens in range(1, 13):
            case = msgspec.structs.replace(CASE, tokens=tokens)
            for repeat in range(3):
                slower = 2.0 if name == "second" and tokens == 7 else 1.0
                record = ok_record(
                    case=case,
                    night=name,
                    repeat=repeat,
                    seed=repeat,
                    combine_us=200.0 * slower,
                    started=START + timedelta(days=day),
                )
                records.write(record, spool)
        collect(history, spool)
        open_night(history, name, "nightly", START + timedelta(days=day), [])
    set_baseline(history, "main", night="first", who="ada", why="first")
    judge_night(history, "second", baseline="main", rules=Rules(floor=0.1))
    page = page_of(history, "second", tmp_path)
    series = [one for tag, one in page.elements if tag == "details" and one.get("id", "").startswith("series-")]
    assert len(series) == 24
    assert [one["id"] for one in series if "open" in one] == [series[0]["id"]]


def test_a_night_that_was_not_judged_has_no_report(two_nights, tmp_path):
    with pytest.raises(NotFoundError, match="has not been judged"):
        write_report(two_nights, "second", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_place_that_cannot_be_written_is_a_sentence(two_nights, tmp_path):
    judge_night(two_nights, "second", baseline="main")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HistoryError, match="cannot write the report"):
        write_report(two_nights, "second", tmp_path / "file" / "report.html")


def test_every_verdict_has_a_sign():
    assert set(SIGNS) == set(WORST_FIRST)
