"""`epwatch serve` while a night is collected and judged: readers are never in its way, and see it once it is there."""

import json
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

import rich_history

from regress_db.history import History
from regress_db.verdicts import judge_night

READERS = 8
LATER_NIGHTS = (rich_history.LAST + 1, rich_history.LAST + 2)
SERIES = urlencode({"s": f"{rich_history.SLOWER.key}|combine|{rich_history.PLATFORM.key}"})
PAGES = ("/nights/latest", "/nights", f"/series?{SERIES}", "/nodes", "/triage", "/metrics", "/atom.xml")


def get(url):
    """Status and content of an answer, whatever the status."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def shown(server):
    """The newest judged night, the newest night, and how many points a series has, as the pages show them."""
    night, nights, series = (
        json.loads(get(f"{server.url}{page}")[1])
        for page in ("/nights/latest.json", "/nights.json", f"/series.json?{SERIES}")
    )
    return night["night"], nights["nights"][0]["night"], len(series["lines"][0]["points"]["at"])


def test_eight_readers_and_a_nightly_are_not_in_each_others_way(own_database, start_server, tmp_path):
    server = start_server(own_database)
    stop = threading.Event()
    answers = [[] for _ in range(READERS)]

    def read(place):
        turn = place
        while not stop.is_set():
            answers[place].append((PAGES[turn % len(PAGES)], *get(server.url + PAGES[turn % len(PAGES)])))
            turn += 1

    before = shown(server)
    readers = [threading.Thread(target=read, args=(place,)) for place in range(READERS)]
    for reader in readers:
        reader.start()
    try:
        spool = tmp_path / "spool"
        spool.mkdir()
        with History.open(own_database) as history:
            for night in LATER_NIGHTS:
                rich_history.measure_night(history, spool, night)
                judge_night(history, rich_history.name_of(night), baseline="auto")
                assert shown(server)[:2] == (rich_history.name_of(night),) * 2
    finally:
        stop.set()
        for reader in readers:
            reader.join()

    assert all(len(of_reader) > 1 for of_reader in answers)
    refused = [answer for of_reader in answers for answer in of_reader if answer[1] != 200]
    assert not refused
    after = shown(server)
    assert before[0] == before[1] == rich_history.NIGHTS[-1]
    assert after == (rich_history.name_of(LATER_NIGHTS[-1]),) * 2 + (
        before[2] + len(LATER_NIGHTS) * rich_history.REPEATS,
    )
    assert Path(server.log).read_text().count("Traceback") == 0
