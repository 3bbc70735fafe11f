"""Trends in groups, two sets of runs side by side, frames and Parquet for notebooks, and SQL of one's own."""

import io
import statistics
import subprocess
import sys
from datetime import timedelta

import msgspec
import pandas
import polars
import pytest
from synthetic_records import CASE, START, environment, failed_record, ok_record

import regress_db
from harness import record as records
from harness.case import Case
from harness.record import Node
from regress_db.aggregation import AGGREGATES, BY, trend_by
from regress_db.baselines import set_baseline
from regress_db.errors import FilterError, MissingLibraryError, NotFoundError
from regress_db.frames import Answer
from regress_db.ingest import collect
from regress_db.nights import open_night
from regress_db.queries import trend
from regress_db.selection import Selection
from regress_db.sides import compare_sides, side
from regress_db.verdicts import judge_night

HT = Case(backend="torch", mode="ht", ranks=4, tokens=64, hidden=512, topk=2, experts=8, combine="local_reduce")
OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def fortnight(history, spool):
    """Fourteen nights of three runs of one case and one of another; the code changes after a week and gets 10 % slower.

    Two runs belong to no night; the last run of the second case failed.
    """
    made = []
    for day in range(14):
        slower = 1.1 if day >= 7 else 1.0
        for repeat in range(3):
            made.append(
                ok_record(
                    started=START + timedelta(days=day, minutes=repeat),
                    night=f"night-{day:02}",
                    repeat=repeat,
                    seed=10 * day + repeat,
                    dispatch_us=(100 + repeat) * slower,
                    env=environment(NEW if day >= 7 else OLD),
                    hostname=f"gpu{repeat}",
                )
            )
        made.append(
            (failed_record if day == 13 else ok_record)(
                case=HT,
                started=START + timedelta(days=day, minutes=9),
                night=f"night-{day:02}",
                seed=500 + day,
                env=environment(NEW if day >= 7 else OLD),
            )
        )
    for number in range(2):
        made.append(ok_record(started=START + timedelta(days=20, minutes=number), seed=900 + number))
    for record in made:
        records.write(record, spool)
    assert len(collect(history, spool).accepted) == len(made)
    return history


def test_by_night_the_median_is_of_that_nights_runs(fortnight):
    groups = trend_by(fortnight, "night", Selection.of("mode=ll"), phase="dispatch")
    points = trend(fortnight, Selection.of("mode=ll"), phase="dispatch")
    assert [group.group for group in groups] == [*(f"night-{day:02}" for day in range(14)), ""]
    for group in groups:
        members = [point.value for point in points if point.night == group.group]
        assert (group.runs, group.value) == (len(members), statistics.median(members))
    assert groups[0].started_at == START


@pytest.mark.parametrize(
    ("aggregate", "of"), [("min", min), ("max", max), ("mean", statistics.fmean), ("median", statistics.median)]
)
def test_each_aggregate_is_what_its_name_says(fortnight, aggregate, of):
    (group,) = trend_by(
        fortnight, "commit", Selection.of("mode=ll", f"commit={NEW}"), phase="combine", aggregate=aggregate
    )
    values = [point.value for point in trend(fortnight, Selection.of("mode=ll", at=NEW[:7]), phase="combine")]
    assert group.value == pytest.approx(of(values))
    assert (group.group, group.runs) == (NEW, len(values))


def test_a_count_counts_runs(fortnight):
    groups = trend_by(fortnight, "commit", phase="dispatch", aggregate="count")
    assert [(group.case, group.group, group.value) for group in groups] == [
        (CASE.key, OLD, 23.0),
        (CASE.key, NEW, 21.0),
        (HT.key, OLD, 7.0),
        (HT.key, NEW, 6.0),
    ]


def test_weeks_are_iso_weeks(fortnight):
    weeks = trend_by(fortnight, "week", Selection.of("mode=ll"), phase="dispatch", aggregate="count")
    # 1 October 2026 is a Thursday.
    assert [(week.group, week.value) for week in weeks] == [
        ("2026-W40", 12.0),
        ("2026-W41", 21.0),
        ("2026-W42", 9.0),
        ("2026-W43", 2.0),
    ]


def test_a_run_on_two_nodes_counts_at_each(fortnight, spool):
    nodes = [Node(hostname="left", ranks=[0]), Node(hostname="right", ranks=[1])]
    records.write(
        msgspec.structs.replace(ok_record(started=START + timedelta(days=30)), nodes=nodes, placement=[]), spool
    )
    collect(fortnight, spool)
    groups = trend_by(fortnight, "node", Selection.of("mode=ll"), phase="dispatch", aggregate="count")
    assert {group.group: group.value for group in groups} == {
        **{f"gpu{number}": 14.0 for number in range(3)},
        "node-1": 2.0,
        "left": 1.0,
        "right": 1.0,
    }


def test_a_limit_keeps_the_newest_groups_of_each_series(fortnight):
    groups = trend_by(fortnight, "night", Selection.of("night!=", limit=2), phase="dispatch")
    assert [(group.case, group.group) for group in groups] == [
        (CASE.key, "night-12"),
        (CASE.key, "night-13"),
        (HT.key, "night-11"),
        (HT.key, "night-12"),
    ]


def test_every_way_to_group_answers_an_empty_history_with_nothing(history):
    for by in BY:
        for aggregate in AGGREGATES:
            assert trend_by(history, by, aggregate=aggregate) == []


def test_no_such_way_to_group_is_a_sentence(history):
    with pytest.raises(FilterError, match="a trend is by night, week"):
        trend_by(history, "month")
    with pytest.raises(FilterError, match="as median, min"):
        trend_by(history, "night", aggregate="p99")


def test_two_nights_side_by_side_the_slowest_first(fortnight):
    found = compare_sides(fortnight, side(fortnight, "night-06"), side(fortnight, "night-07"))
    assert (str(found.first), str(found.second)) == ("night night-06", "night night-07")
    first = found.series[0]
    assert (first.case, first.phase, first.first_runs, first.second_runs) == (CASE.key, "dispatch", 3, 3)
    assert first.change == pytest.approx(0.1, abs=0.02)
    assert [one.change for one in found.series] == sorted((one.change for one in found.series), reverse=True)
    assert len(found.series) == 4


def test_what_only_one_side_has_comes_last_without_a_change(fortnight):
    found = compare_sides(fortnight, side(fortnight, "night-12"), side(fortnight, "night-13"), phase="dispatch")
    assert [(one.case, one.first_runs, one.second_runs, one.change is None) for one in found.series] == [
        (CASE.key, 3, 3, False),
        (HT.key, 1, 0, True),
    ]


def test_commits_and_baselines_can_be_compared_and_filtered(fortnight):
    set_baseline(fortnight, "main", who="me", why="the first week", night="night-03")
    for first in ("main", "baseline:main", "night:night-03"):
        found = compare_sides(fortnight, side(fortnight, first), side(fortnight, "commit:bbb"), Selection.of("mode=ll"))
        assert {one.case for one in found.series} == {CASE.key}
        assert (found.series[0].first_runs, found.series[0].second_runs) == (3, 21)
    none = compare_sides(fortnight, side(fortnight, "main"), side(fortnight, "main"), Selection.of("mode=none"))
    assert none.series == ()


def test_latest_is_the_newest_run_or_night_that_a_plan_opened(fortnight):
    assert side(fortnight, "latest").kind == "run"
    for day in (3, 11, 7):
        open_night(fortnight, f"night-{day:02}", "plan", START + timedelta(days=day), [])
    assert side(fortnight, "night:latest").name == "night-11"
    assert [line.night for line in fortnight.nights(4)][:3] == ["night-11", "night-07", "night-03"]


@pytest.mark.parametrize("name", ["nothing", "", "night:gone", "run:night-03", "baseline:night-03", "commit:%", "'--"])
def test_a_side_that_is_not_there_is_a_sentence(fortnight, name):
    with pytest.raises(NotFoundError, match="`epwatch runs`"):
        side(fortnight, name)


def test_a_name_of_several_things_is_refused_until_it_says_which(history, spool):
    one = ok_record(run_id="abc" + "0" * 29, env=environment("abc" + "1" * 37), night="abc")
    records.write(one, spool)
    collect(history, spool)
    with pytest.raises(NotFoundError, match=r"run:abc0+, night:abc, commit:abc1+: say which"):
        side(history, "abc")
    assert [side(history, f"{kind}:abc").kind for kind in ("run", "night", "commit")] == ["run", "night", "commit"]


def test_a_notebook_gets_rows_and_frames(fortnight):
    answer = fortnight.trend("mode=ll", phase="dispatch", limit=3)
    assert len(answer) == 3
    assert answer[0].night == "night-13"
    assert [point.value for point in answer] == answer.column("value")
    of_polars, of_pandas = answer.to_polars(), answer.to_pandas()
    assert of_polars.columns == list(of_pandas.columns) == list(answer.columns)
    assert of_polars["value"].to_list() == of_pandas["value"].to_list() == answer.column("value")
    assert of_polars.schema["started_at"] == polars.Datetime("us", "UTC")
    assert of_polars["started_at"].to_list() == [point.started_at for point in answer]
    assert str(of_pandas["started_at"].dt.tz) == "UTC"
    with pytest.raises(KeyError):
        answer.column("colour")


def test_frames_of_nothing_have_the_columns_and_types_of_something(fortnight):
    questions = [
        lambda *texts: fortnight.trend(*texts),
        lambda *texts: fortnight.trend(*texts, by="node"),
        lambda *texts: fortnight.runs(*texts),
        lambda *texts: fortnight.compare("night-06", "night-07", *texts),
    ]
    for ask in questions:
        some, none = ask("mode=ll"), ask("mode=none")
        assert len(some) > 0
        assert len(none) == 0
        assert polars.concat([some.to_polars(), none.to_polars()]).height == len(some)
        assert list(none.to_pandas().columns) == list(some.to_pandas().columns)
        assert pandas.concat([some.to_pandas(), none.to_pandas()]).shape == some.to_pandas().shape


def test_every_question_becomes_both_frames(fortnight):
    newest = fortnight.runs(limit=1)[0].run_id
    for answer in (
        fortnight.runs(),
        fortnight.nights(),
        fortnight.compare("latest", newest),
        fortnight.samples(newest),
        fortnight.sql("SELECT id, outcome FROM runs WHERE outcome = 'failed'"),
    ):
        assert answer.to_polars().height == len(answer.to_pandas()) == len(answer) > 0
        assert list(answer.to_pandas().columns) == list(answer.columns)
        assert "rows of" in repr(answer)


def test_changes_of_a_history_are_rows_and_frames_too(fortnight):
    answer = fortnight.changes("mode=ll", phase="dispatch", kinds=("step",))
    assert [(one.commit_before, one.commit_after) for one in answer if one.kind == "step"][:1] in ([], [(OLD, NEW)])
    assert answer.to_polars().height == len(answer.to_pandas()) == len(answer)
    none = fortnight.changes("mode=none")
    assert none.to_polars().columns == list(answer.columns)
    assert none.to_polars().schema["commits"] == polars.List(polars.String)


def test_verdicts_of_a_night_are_rows_and_frames_too(fortnight):
    set_baseline(fortnight, "main", who="me", why="the first week", night="night-03")
    judge_night(fortnight, "night-08", baseline="main")
    answer = fortnight.verdicts("night-08")
    assert {one.case for one in answer} == {CASE.key, HT.key}
    assert answer.to_polars().height == len(answer.to_pandas()) == len(answer) == 4
    with pytest.raises(NotFoundError, match="has not been judged"):
        fortnight.verdicts("night-09")


def test_hosts_stay_lists_and_missing_numbers_missing(fortnight):
    frame = fortnight.runs("outcome=failed").to_polars()
    assert frame["hosts"].to_list() == [["node-1"]]
    assert frame["dispatch_us"].to_list() == [None]
    assert frame.schema["dispatch_us"] == polars.Float64


def test_samples_say_which_are_counted(fortnight):
    answer = fortnight.samples("latest")
    assert len(answer) == 2 * 2 * 12
    assert [one.iteration for one in answer if not one.counted] == [0] * 4
    assert {(one.phase, one.rank) for one in answer} == {(p, r) for p in ("dispatch", "combine") for r in (0, 1)}


def test_times_may_be_moments_or_texts(fortnight):
    since = START + timedelta(days=13)
    assert list(fortnight.runs(since=since)) == list(fortnight.runs(since="2026-10-14T02:00"))
    assert len(fortnight.runs(since=since, until="2026-10-15")) == 4
    assert {line.commit for line in fortnight.runs(at="aaaa", until=since)} == {OLD}


def test_sql_of_ones_own_reads_one_state_and_nothing_else(fortnight):
    answer = fortnight.sql("SELECT outcome, count(*) AS n FROM runs GROUP BY outcome ORDER BY outcome")
    assert (answer.columns, list(answer)) == (("outcome", "n"), [("failed", 1), ("ok", 57)])
    assert fortnight.sql("SELECT 1 AS one WHERE 1 = 0").to_polars().columns == ["one"]
    assert list(fortnight.sql("SELECT '100%' AS share, '%s' AS place")) == [("100%", "%s")]
    before = list(fortnight.sql("SELECT count(*) FROM runs"))
    for query in (
        "DELETE FROM runs",
        "UPDATE runs SET outcome = 'ok'",
        "SELECT 1; DELETE FROM runs",
        "CREATE TABLE mine (x INTEGER)",
        "DROP TABLE samples",
        "INSERT INTO nodes (hostname) VALUES ('mine')",
    ):
        with pytest.raises(FilterError, match="only one SELECT"):
            fortnight.sql(query)
    assert list(fortnight.sql("SELECT count(*) FROM runs")) == before
    for query in ("SELECT colour FROM runs", "SELEC", "", "-- nothing"):
        with pytest.raises(FilterError) as error:
            fortnight.sql(query)
        assert "\n" not in str(error.value)
    with pytest.raises(FilterError, match="several columns called a"):
        fortnight.sql("SELECT 1 AS a, 2 AS a")


def test_a_history_can_still_be_written_after_sql(history, spool):
    history.sql("SELECT 1 AS one")
    records.write(ok_record(), spool)
    assert len(collect(history, spool).accepted) == 1


def test_a_missing_library_is_a_sentence(monkeypatch, history):
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingLibraryError, match=r"epwatch\[frames\]"):
        history.runs().to_polars()


def test_an_answer_is_a_sequence():
    answer = Answer([(1, "a"), (2, "b")], columns=("number", "letter"))
    assert (answer[1], answer[:1], len(answer), (2, "b") in answer) == ((2, "b"), [(1, "a")], 2, True)
    assert answer.column("letter") == ["a", "b"]


def test_the_package_gives_the_history_without_loading_it_first():
    assert regress_db.History.__name__ == "History"
    with pytest.raises(AttributeError, match="no attribute 'Histories'"):
        regress_db.Histories  # noqa: B018
    code = (
        "import sys, regress_db; before = {'sqlalchemy', 'polars', 'numpy'} & set(sys.modules); "
        "regress_db.History; print(before, {'polars', 'pandas', 'numpy', 'scipy', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set() set()\n"


def test_rows_of_a_command_become_a_parquet_file_of_their_types():
    from jobs.tables import Column, as_parquet, to_the_second

    rows = [(1, None, "a", START, ("x", "y"), {"k": 1}), (2, 2.5, "b", START + timedelta(microseconds=9), (), {})]
    names = ("number", "value", "text", "at", "hosts", "facts")
    columns = [
        Column(name, (lambda row: to_the_second(row[3])) if place == 3 else (lambda row, place=place: row[place]))
        for place, name in enumerate(names)
    ]
    frame = polars.read_parquet(io.BytesIO(as_parquet(rows, columns)))
    assert frame.columns == list(names)
    assert frame["number"].to_list() == [1, 2]
    assert frame["value"].to_list() == [None, 2.5]
    assert frame["at"].to_list() == [START, START]
    assert frame["hosts"].to_list() == [["x", "y"], []]
    assert frame["facts"].to_list() == ['{"k":1}', "{}"]
