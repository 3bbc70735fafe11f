"""Export: every number with its key, in either form, in pieces, whole or not at all."""

import csv
from datetime import timedelta

import polars
import pytest
from nights_of_records import run_night
from synthetic_records import CASE, PLATFORM, START, ok_record

from harness import record as records
from regress_db import export as exporting
from regress_db.errors import FilterError, HistoryError, NotFoundError
from regress_db.export import COLUMNS, export
from regress_db.ingest import collect
from regress_db.queries import trend
from regress_db.selection import Selection


@pytest.fixture
def measured(history, spool):
    """Two nights of five runs, and a run of no night."""
    for day in range(2):
        run_night(history, spool, f"night{day}", started=START + timedelta(days=day))
    records.write(ok_record(started=START + timedelta(days=3), seed=99), spool)
    collect(history, spool)
    return history


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_written_is_what_the_trend_says(measured, tmp_path):
    file = tmp_path / "all.csv"
    done = export(measured, file)
    found = rows_of(file)
    assert (done.runs, done.values) == (11, len(found))
    assert list(found[0]) == list(COLUMNS)
    for metric in ("latency_us", "slowest_p50_us", "bandwidth_gbs"):
        told = {(one.run_id, one.phase): one.value for one in trend(measured, metric=metric)}
        assert {(r["run_id"], r["phase"]): float(r["value"]) for r in found if r["metric"] == metric} == told
    first, last = found[0], found[-1]
    assert (first["case"], first["ranks"], first["platform"]) == (CASE.key, "2", PLATFORM.key)
    assert (first["night"], first["plan"], first["started_at"]) == ("night0", "nightly", "2026-10-01T02:00:00.000Z")
    assert (last["night"], last["plan"]) == ("", "")


def test_either_form_holds_the_same(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_ROWS_AT_ONCE", 7)
    export(measured, tmp_path / "all.csv")
    export(measured, tmp_path / "all.parquet")
    frame = polars.read_parquet(tmp_path / "all.parquet")
    assert frame.columns == list(COLUMNS)
    assert frame.schema["started_at"] == polars.Datetime("us", "UTC")
    assert frame.schema["ranks"] == polars.Int64
    told = [(row["run_id"], row["phase"], row["metric"], float(row["value"])) for row in rows_of(tmp_path / "all.csv")]
    assert frame.select("run_id", "phase", "metric", "value").rows() == told
    assert sorted(file.name for file in tmp_path.glob("*all*")) == ["all.csv", "all.parquet"]


def test_only_what_was_chosen_is_written(measured, tmp_path):
    file = tmp_path / "some.csv"
    chosen = Selection.of("mode=ll", "night=night1")
    done = export(measured, file, chosen, metrics=["latency_us", "p99_us"], phase="combine")
    assert (done.runs, done.values) == (5, 10)
    assert {(row["night"], row["phase"], row["metric"]) for row in rows_of(file)} == {
        ("night1", "combine", "latency_us"),
        ("night1", "combine", "p99_us"),
    }
    assert export(measured, tmp_path / "phase.csv", chosen, phase="dispatch").runs == 5
    assert export(measured, tmp_path / "none.parquet", Selection.of("mode=ht")).values == 0
    assert polars.read_parquet(tmp_path / "none.parquet").columns == list(COLUMNS)


def test_what_cannot_be_written_is_refused_and_leaves_nothing(measured, tmp_path):
    (tmp_path / "there.csv").write_text("mine")
    for name, more, kind, says in [
        ("there.csv", {}, HistoryError, "is there already and stays as it is"),
        ("values.xlsx", {}, FilterError, r"is to end in .csv or .parquet"),
        ("values.csv", {"metrics": ["warmth"]}, NotFoundError, "no metric 'warmth'"),
    ]:
        with pytest.raises(kind, match=says):
            export(measured, tmp_path / name, **more)
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert [file.name for file in tmp_path.glob("*.csv")] == ["there.csv"]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_what_breaks_off_leaves_nothing(measured, tmp_path, monkeypatch, form):
    monkeypatch.setattr(exporting, "_ROWS_AT_ONCE", 7)
    pieces = exporting._pieces

    def breaking(*asked):
        for number, piece in enumerate(pieces(*asked)):
            if number == 3:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(exporting, "_pieces", breaking)
    target = tmp_path / "out" / f"values.{form}"
    target.parent.mkdir()
    with pytest.raises(KeyboardInterrupt):
        export(measured, target)
    assert list(target.parent.iterdir()) == []
