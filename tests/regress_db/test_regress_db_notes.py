"""Notes: written, found beside what they are about, withdrawn, and never edited."""

import threading
from datetime import timedelta

import pytest
from nights_of_records import run_night
from synthetic_records import CASE, PLATFORM, START

from regress_db.details import show
from regress_db.errors import NotFoundError, TriageError
from regress_db.history import History
from regress_db.notes import LONGEST_TEXT, add_note, notes, withdraw_note
from regress_db.queries import nights, runs
from regress_db.upkeep import copy
from regress_db.upkeep_verify import verify


@pytest.fixture
def measured(history, spool):
    """Two nights."""
    for day in range(2):
        run_night(history, spool, f"night{day}", started=START + timedelta(days=day))
    return history


def test_a_note_speaks_of_the_moment_of_what_it_is_about(measured):
    newest = runs(measured)[0]
    of_run = add_note(measured, " seen with nsys ", who="ada", run=newest.run_id[:10], phase="combine")
    assert (of_run.text, of_run.who, of_run.run_id, of_run.night) == ("seen with nsys", "ada", newest.run_id, "night1")
    assert (of_run.case, of_run.platform, of_run.phase) == (CASE.key, PLATFORM.key, "combine")
    assert of_run.at == newest.started_at
    of_night = add_note(measured, "driver 580", who="ada", night="night0")
    assert of_night.at == START
    later = add_note(measured, "power cut", who="bob", at=START + timedelta(hours=12))
    assert (later.at, later.case, later.night, later.run_id) == (START + timedelta(hours=12), None, None, None)
    now = add_note(measured, "new switch", who="bob", case=CASE.key)
    assert now.at == now.written_at
    assert [one.number for one in notes(measured)] == [now.number, of_run.number, later.number, of_night.number]


def test_notes_are_found_by_what_they_are_about(measured):
    everything = add_note(measured, "of everything", who="ada", at=START)
    of_case = add_note(measured, "of the case", who="ada", case=CASE.key, phase="combine", at=START)
    of_night = add_note(measured, "of the night", who="ada", night="latest")

    def found(**asked):
        return {one.text for one in notes(measured, **asked)}

    assert found(case=CASE.key) == {everything.text, of_case.text, of_night.text}
    assert found(case=CASE.key, phase="dispatch") == {everything.text, of_night.text}
    assert found(case="another") == {everything.text, of_night.text}
    assert found(night="night1") == {of_night.text}
    assert found(since=START + timedelta(hours=1)) == {of_night.text}
    assert found(until=START + timedelta(hours=1)) == {everything.text, of_case.text}


def test_a_run_shows_its_notes_and_its_night_s_and_a_night_its_own(measured):
    newest, *_ = runs(measured)
    add_note(measured, "of the night", who="ada", night="night1")
    add_note(measured, "of the run", who="ada", run=newest.run_id)
    add_note(measured, "of the other night", who="ada", night="night0")
    add_note(measured, "of the case that night", who="ada", night="night1", case=CASE.key)
    assert [one.text for one in show(measured, newest.run_id).said] == ["of the night", "of the run"]
    assert [(line.night, line.notes) for line in nights(measured)] == [
        ("night1", ("of the night",)),
        ("night0", ("of the other night",)),
    ]


def test_a_note_is_withdrawn_once_and_stays_on_record(measured):
    one = add_note(measured, "wrong", who="ada", night="night1")
    withdraw_note(measured, one.number, who="bob", why="another night")
    assert notes(measured) == []
    (kept,) = notes(measured, withdrawn=True)
    assert (kept.text, kept.withdrawn_by, kept.withdrawn_reason) == ("wrong", "bob", "another night")
    assert [line.notes for line in nights(measured)] == [(), ()]
    with pytest.raises(NotFoundError, match=f"no note {one.number} stands"):
        withdraw_note(measured, one.number, who="bob", why="again")
    with pytest.raises(TriageError, match="say who withdraws"):
        withdraw_note(measured, one.number, who="bob", why=" ")


def test_what_is_no_note_is_refused_and_nothing_is_written(measured):
    run_of_night0 = runs(measured)[-1].run_id
    for wrong, kind, says in [
        ({"text": " "}, TriageError, "an empty note"),
        ({"text": "x" * (LONGEST_TEXT + 1)}, TriageError, f"at most {LONGEST_TEXT} characters"),
        ({"who": ""}, TriageError, "say who"),
        ({"phase": "warp"}, TriageError, "'warp' is no phase"),
        ({"case": "no/such"}, NotFoundError, "no case 'no/such'"),
        ({"platform": "moon"}, NotFoundError, "no platform 'moon'"),
        ({"night": "never"}, NotFoundError, "no night 'never'"),
        ({"run": "ffff"}, NotFoundError, "no run has an id"),
        ({"run": run_of_night0, "night": "night1"}, TriageError, "is of another night"),
    ]:
        asked = {"text": "a note", "who": "ada"} | wrong
        with pytest.raises(kind, match=says):
            add_note(measured, asked.pop("text"), **asked)
    assert notes(measured, withdrawn=True) == []


def test_whatever_is_written_comes_back_as_it_was(measured):
    text = "<script>alert(1)</script> \x1b[31m µ 夜 'quoted'; DROP TABLE notes"
    assert add_note(measured, text, who="<b>", night="night1").text == text
    assert notes(measured)[0].who == "<b>"


def test_two_who_write_at_once_are_both_read(measured):
    where = measured.where if measured.path else measured._engine.url.render_as_string(hide_password=False)
    errors = []

    def write(who):
        try:
            with History.open(where) as own:
                for number in range(10):
                    add_note(own, f"{who} {number}", who=who)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(who,)) for who in ("ada", "bob")]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert errors == []
    assert {one.text for one in notes(measured)} == {f"{who} {n}" for who in ("ada", "bob") for n in range(10)}


def test_notes_are_copied_with_the_history(measured, tmp_path):
    add_note(measured, "of the run", who="ada", run="latest")
    copy(measured, str(tmp_path / "copy.db"))
    with History.open(tmp_path / "copy.db") as other:
        assert notes(other) == notes(measured)
        assert verify(other).faults == ()
