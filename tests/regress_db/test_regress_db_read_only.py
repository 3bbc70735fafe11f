"""A history that is opened for reading alone, as a server does."""

import pytest
from sqlalchemy import insert, text
from synthetic_records import ok_record

from harness import record as records
from regress_db.errors import HistoryError, NotFoundError
from regress_db.history import History
from regress_db.ingest import collect
from regress_db.schema import NODES


@pytest.fixture
def filled(new_place, spool):
    """Where a history with one run is."""
    with History.open(new_place) as history:
        records.write(ok_record(), spool)
        collect(history, spool)
    return new_place


def test_it_answers_and_sees_what_others_write_meanwhile(filled, spool):
    with History.open(filled, read_only=True) as reading:
        assert len(reading.trend()) == 2
        with History.open(filled) as writing:
            records.write(ok_record(), spool)
            collect(writing, spool)
        assert len(reading.trend()) == 4


def test_it_refuses_to_write_in_one_sentence(filled, spool):
    records.write(ok_record(), spool)
    with History.open(filled, read_only=True) as reading:
        with pytest.raises(HistoryError, match="is open for reading alone; nothing was changed"):
            collect(reading, spool)
        assert len(reading.trend()) == 2


def test_the_database_refuses_what_goes_past_that(filled):
    with (
        History.open(filled, read_only=True) as reading,
        pytest.raises(HistoryError, match="cannot be written"),
        reading.read() as connection,
    ):
        connection.execute(insert(NODES).values(hostname="intruder"))


def test_where_none_is_nothing_is_made(new_place):
    with pytest.raises(NotFoundError):
        History.open(new_place, read_only=True)
    with pytest.raises(NotFoundError):
        History.open(new_place, create=False)


def test_an_older_one_is_refused_and_left_as_it_is(filled):
    with History.open(filled) as history, history.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    for _ in range(2):
        with pytest.raises(HistoryError, match=r"has schema 0001.*nothing was changed: `epwatch nights` migrates it"):
            History.open(filled, read_only=True)
