"""What others embed or follow: an Atom feed of regressions, a badge of the last night. Used by `regress_db.web.app`."""

from __future__ import annotations

import uuid
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup
from sqlalchemy import Row, select

from regress_db import lookup
from regress_db.errors import NotFoundError
from regress_db.history import History
from regress_db.nightverdict import NightVerdict, stored_verdict
from regress_db.schema import CASES, NIGHTS, PLATFORMS, VERDICTS
from regress_db.web.links import Links
from regress_db.web.views.night import newest_judged, tone
from regress_db.wording import SIGNS, size

NIGHTS_TOLD = 60
"""The feed tells of regressions that are new in one of so many newest judged nights."""

_ATOM = "http://www.w3.org/2005/Atom"
_NAMESPACE = uuid.UUID("0d1c6a52-5f0e-4c0e-9d0a-6f8a3d1f7c55")
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


def atom(history: History, base: str) -> bytes:
    """The feed, newest first: an entry where a series regressed that had not the judged night before.

    base: the page's own address, with a slash at its end.
    """
    with history.read() as connection:
        nights = connection.execute(
            select(NIGHTS.c.id, NIGHTS.c.name, NIGHTS.c.plan, NIGHTS.c.judged_at)
            .where(NIGHTS.c.judged_at.is_not(None))
            .order_by(*lookup.NEWEST_NIGHT_FIRST)
            .limit(NIGHTS_TOLD + 1)
        ).all()
        regressed: dict[int, list[Row[*tuple[Any, ...]]]] = defaultdict(list)
        for piece in lookup.chunks([night.id for night in nights]):
            for row in connection.execute(
                select(
                    VERDICTS.c.night_id,
                    CASES.c.key,
                    VERDICTS.c.phase,
                    PLATFORMS.c.key.label("platform"),
                    VERDICTS.c.effect,
                    VERDICTS.c.sentence,
                )
                .join(CASES, CASES.c.id == VERDICTS.c.case_id)
                .outerjoin(PLATFORMS, PLATFORMS.c.id == VERDICTS.c.platform_id)
                .where(VERDICTS.c.night_id.in_(piece), VERDICTS.c.verdict == "regressed")
                .order_by(VERDICTS.c.id)
            ):
                regressed[row.night_id].append(row)
    feed = ElementTree.Element("feed", {"xmlns": _ATOM})
    _add(feed, "title", "epwatch: regressions")
    _add(feed, "id", f"urn:uuid:{uuid.uuid5(_NAMESPACE, base)}")
    _add(feed, "updated", _moment(nights[0].judged_at if nights else _NEVER))
    ElementTree.SubElement(feed, "link", {"rel": "self", "href": f"{base}atom.xml"})
    ElementTree.SubElement(feed, "link", {"href": base})
    author = ElementTree.SubElement(feed, "author")
    _add(author, "name", "epwatch")
    for place, night in enumerate(nights[:NIGHTS_TOLD]):
        earlier = next((one for one in nights[place + 1 :] if one.plan == night.plan), None)
        before = {_key(row) for row in regressed[earlier.id]} if earlier else set()
        for row in regressed[night.id]:
            if _key(row) not in before:
                _entry(feed, base, night, row)
    document: bytes = ElementTree.tostring(feed, encoding="utf-8", xml_declaration=True)
    return document


def _key(row: Row[*tuple[Any, ...]]) -> tuple[str, str, str]:
    return row.key, row.phase, row.platform or ""


def _entry(feed: ElementTree.Element, base: str, night: Row[*tuple[Any, ...]], row: Row[*tuple[Any, ...]]) -> None:
    entry = ElementTree.SubElement(feed, "entry")
    by = f" by {size(row.effect)}" if row.effect is not None else ""
    _add(entry, "title", f"{row.phase} of {row.key} got slower{by} in night {night.name}")
    _add(entry, "id", f"urn:uuid:{uuid.uuid5(_NAMESPACE, '|'.join([night.name, *_key(row)]))}")
    _add(entry, "updated", _moment(night.judged_at))
    address = Links().one_series(row.key, row.phase, row.platform or "")
    ElementTree.SubElement(entry, "link", {"href": f"{base}{address}"})
    _add(entry, "summary", row.sentence)


def _add(parent: ElementTree.Element, name: str, text: str) -> None:
    ElementTree.SubElement(parent, name).text = "".join(char if _is_xml(char) else "\ufffd" for char in text)


def _is_xml(char: str) -> bool:
    """Whether XML 1.0 can have it."""
    return char in "\t\n\r" or "\x20" <= char <= "\ud7ff" or "\ue000" <= char <= "\ufffd" or char >= "\U00010000"


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


_COLOURS: dict[str, str] = {"bad": "#a8320a", "open": "#8a5a00", "good": "#1b6e4a", "": "#5b6573"}
_CHARACTER_WIDTH = 7
_MARGIN = 12


def badge(history: History) -> str:
    """The last judged night as a small picture: what got slower or has no result, by colour and by sign."""
    try:
        with history.read() as connection:
            name = newest_judged(connection)
        verdict = stored_verdict(history, name)
        colour, told = _COLOURS[tone(verdict)], _told(verdict)
    except NotFoundError:
        colour, told = _COLOURS[""], "no night yet"
    left, right = (len(text) * _CHARACTER_WIDTH + _MARGIN for text in ("epwatch", told))
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="epwatch: {told}">'
        "<title>epwatch: {told}</title>"
        '<rect width="{left}" height="20" fill="#3c4450"/>'
        '<rect x="{left}" width="{right}" height="20" fill="{colour}"/>'
        '<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">'
        '<text x="{middle}" y="14">epwatch</text><text x="{other}" y="14">{told}</text></g></svg>\n'
    ).format(
        width=left + right,
        told=told,
        left=left,
        right=right,
        colour=colour,
        middle=left // 2,
        other=left + right // 2,
    )


def _told(verdict: NightVerdict) -> str:
    slower = sum(one.verdict == "regressed" and not one.waiver for one in verdict.series)
    if slower:
        return f"{SIGNS['regressed']} {slower} slower"
    if verdict.exit_code():
        return f"{SIGNS['failed']} no valid result"
    undecided = sum(one.verdict in ("inconclusive", "insufficient") for one in verdict.series)
    return f"{SIGNS['inconclusive']} {undecided} undecided" if undecided else "= nothing slower"
