"""Notes: what a person wants to be read beside the numbers, of a moment, a night, a run or a series.

A note is never edited, only withdrawn; it stays in the history. Called by the command line and the web page; next to
read: `regress_db.triage`, for what is decided and not only said.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Table, and_, insert, or_, select, update

from harness.case import PHASES, Phase
from regress_db import lookup
from regress_db.errors import NotFoundError, TriageError
from regress_db.history import History
from regress_db.schema import CASES, NIGHTS, NOTES, PLATFORMS, RUNS

LONGEST_TEXT = 2000
"""In characters: a note is read beside a plot; what is longer is a document, and a note links to it."""


@dataclass(frozen=True, slots=True)
class Note:
    """One note. at: the moment it speaks of. case, platform, phase, night, run_id: what it is about, None: anything.

    written_at: when it was written; withdrawn_*: None while it stands.
    """

    number: int
    at: datetime
    who: str
    text: str
    case: str | None
    platform: str | None
    phase: Phase | None
    night: str | None
    run_id: str | None
    withdrawn_at: datetime | None
    written_at: datetime
    withdrawn_by: str | None
    withdrawn_reason: str | None


def add_note(
    history: History,
    text: str,
    *,
    who: str,
    at: datetime | None = None,
    case: str | None = None,
    platform: str | None = None,
    phase: Phase | None = None,
    night: str | None = None,
    run: str | None = None,
    when: datetime | None = None,
) -> Note:
    """Write a note; it stands from now on.

    at: aware; default the start of the run or night it is about, else the present. case, platform: whole keys. night:
    its id or `latest`; run: the head of its id or `latest`. A note on a run is one on its night, case and platform too.
    Raises `NotFoundError` for what the history does not have, `TriageError` for no text, too long a text, no name, and
    for a run that is not of the night, case or platform.
    """
    if not text.strip():
        raise TriageError("an empty note says nothing: write what is to be known")
    if len(text) > LONGEST_TEXT:
        raise TriageError(f"a note has at most {LONGEST_TEXT} characters, this one {len(text)}: link to the rest")
    if not who.strip():
        raise TriageError("say who writes the note")
    if phase is not None and phase not in PHASES:
        raise TriageError(f"{phase!r} is no phase: there are {' and '.join(PHASES)}")
    moment = when or datetime.now(UTC)
    with history.write() as connection:
        about: dict[str, Any] = {
            "case_id": _number(connection, CASES, "case", case),
            "platform_id": _number(connection, PLATFORMS, "platform", platform),
            "night_id": None,
            "run": None,
        }
        begun: datetime | None = None
        if night is not None:
            of_night = lookup.night(connection, night)
            about["night_id"], begun = of_night.id, of_night.started_at
        if run is not None:
            about["run"], run_id = lookup.run(connection, run)
            of_run = connection.execute(select(*RUNS.c).where(RUNS.c.id == about["run"])).one()
            for column in ("case_id", "platform_id", "night_id"):
                if about[column] not in (None, of_run._mapping[column]):
                    raise TriageError(f"run {run_id} is of another {column.removesuffix('_id')}: name the run alone")
                about[column] = of_run._mapping[column]
            begun = of_run.started_at
        number = connection.execute(
            insert(NOTES).returning(NOTES.c.id),
            {
                "at": at or begun or moment,
                "text": text.strip(),
                "written_by": who.strip(),
                "written_at": moment,
                "phase": phase,
                **about,
            },
        ).scalar_one()
        return _notes(connection, [NOTES.c.id == number])[0]


def withdraw_note(history: History, number: int, *, who: str, why: str, when: datetime | None = None) -> None:
    """Take a note back; it stays in the history. `NotFoundError` for one that is not there or was withdrawn."""
    if not who.strip() or not why.strip():
        raise TriageError("say who withdraws the note, and why")
    with history.write() as connection:
        done = connection.execute(
            update(NOTES)
            .where(NOTES.c.id == number, NOTES.c.withdrawn_at.is_(None))
            .values(withdrawn_by=who, withdrawn_at=when or datetime.now(UTC), withdrawn_reason=why)
        )
        if not done.rowcount:
            raise NotFoundError(f"no note {number} stands; `epwatch note --list` shows those that do")


def notes(
    history: History,
    *,
    case: str | None = None,
    platform: str | None = None,
    phase: Phase | None = None,
    night: str | None = None,
    run: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    withdrawn: bool = False,
) -> list[Note]:
    """The notes that stand, by the moment they speak of, newest first.

    case, platform, phase: of one series; what is said of every case, platform or phase belongs to it, too. night, run:
    the id of one, exactly; only what is said of it. since (inclusive), until (exclusive): aware. withdrawn: the others
    as well.
    """
    wanted: list[Any] = [] if withdrawn else [NOTES.c.withdrawn_at.is_(None)]
    for column, value in ((CASES.c.key, case), (PLATFORMS.c.key, platform), (NOTES.c.phase, phase)):
        if value is not None:
            wanted.append(or_(column.is_(None), column == value))
    for column, value in ((NIGHTS.c.name, night), (RUNS.c.run_id, run)):
        if value is not None:
            wanted.append(column == value)
    if since is not None:
        wanted.append(NOTES.c.at >= since)
    if until is not None:
        wanted.append(NOTES.c.at < until)
    with history.read() as connection:
        return _notes(connection, wanted)


def notes_of_nights(connection: Connection) -> dict[str, tuple[str, ...]]:
    """What stands of nights as a whole, oldest first, by the night's id."""
    found: dict[str, tuple[str, ...]] = {}
    for one in reversed(_notes(connection, [*_OF_A_NIGHT, NOTES.c.night_id.is_not(None)])):
        assert one.night is not None
        found[one.night] = (*found.get(one.night, ()), one.text)
    return found


def notes_of_run(connection: Connection, run: int, night: int | None) -> tuple[Note, ...]:
    """What stands of a run, by row number, and of its night as a whole, oldest first."""
    of_night = and_(*_OF_A_NIGHT, NOTES.c.night_id == night)
    stands = NOTES.c.withdrawn_at.is_(None)
    return tuple(reversed(_notes(connection, [stands, or_(NOTES.c.run == run, of_night)])))


_OF_A_NIGHT = (NOTES.c.withdrawn_at.is_(None), NOTES.c.run.is_(None), NOTES.c.case_id.is_(None))


def _notes(connection: Connection, wanted: list[Any]) -> list[Note]:
    rows = connection.execute(
        select(
            *NOTES.c,
            CASES.c.key,
            PLATFORMS.c.key.label("platform"),
            NIGHTS.c.name.label("night"),
            RUNS.c.run_id,
        )
        .outerjoin(CASES, CASES.c.id == NOTES.c.case_id)
        .outerjoin(PLATFORMS, PLATFORMS.c.id == NOTES.c.platform_id)
        .outerjoin(NIGHTS, NIGHTS.c.id == NOTES.c.night_id)
        .outerjoin(RUNS, RUNS.c.id == NOTES.c.run)
        .where(*wanted)
        .order_by(NOTES.c.at.desc(), NOTES.c.id.desc())
    )
    return [
        Note(
            number=row.id,
            at=row.at,
            who=row.written_by,
            text=row.text,
            case=row.key,
            platform=row.platform,
            phase=row.phase,
            night=row.night,
            run_id=row.run_id,
            withdrawn_at=row.withdrawn_at,
            written_at=row.written_at,
            withdrawn_by=row.withdrawn_by,
            withdrawn_reason=row.withdrawn_reason,
        )
        for row in rows
    ]


def _number(connection: Connection, table: Table, kind: str, key: str | None) -> int | None:
    """Row number of what has this key. Raises `NotFoundError`."""
    if key is None:
        return None
    number: int | None = connection.execute(select(table.c.id).where(table.c.key == key)).scalar()
    if number is None:
        raise NotFoundError(f"the history has no {kind} {key!r}")
    return number
