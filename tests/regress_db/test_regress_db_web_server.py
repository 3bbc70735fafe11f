"""The web page's server: every page as HTML, JSON and CSV, refusals in a sentence, safe headers, no write unasked."""

import csv
import io
import re
from html.parser import HTMLParser
from urllib.parse import quote
from xml.etree import ElementTree

import msgspec
import pytest
from starlette.testclient import TestClient
from synthetic_records import CASE
from web_history import FP8, ODD_CASE, ODD_NIGHT, PLATFORM, add_odd_night, fill

from harness.case import PHASES
from regress_db.history import History
from regress_db.web import openapi
from regress_db.web.app import create_app
from regress_db.web.assets import assets
from regress_db.web.routes import PAGES
from regress_db.web.security import HEADERS

COMBINE = f"{CASE.key}|combine|{PLATFORM}"
PATHS = {
    "/nights/{night}": f"/nights/{quote(ODD_NIGHT, safe='')}",
    "/nights": "/nights",
    "/series": f"/series?s={quote(COMBINE)}&s={quote(f'{FP8.key}|combine|{PLATFORM}')}&metric=ranks",
    "/runs/{run_id}": "/runs/latest",
    "/compare": "/compare?a=n1&b=n4",
    "/backends": f"/backends?case={CASE.key}",
    "/nodes": "/nodes",
    "/triage": "/triage",
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A history in a file, with odd names in its newest night."""
    folder = tmp_path_factory.mktemp("web")
    (folder / "spool").mkdir()
    with History.open(folder / "history.db") as history:
        fill(history, folder / "spool")
        add_odd_night(history, folder / "spool")
        yield history


@pytest.fixture(scope="module")
def client(filled):
    return TestClient(create_app(filled), base_url="http://127.0.0.1")


def as_form(path, form):
    page, _, query = path.partition("?")
    return f"{page}.{form}{'?' if query else ''}{query}"


class Elements(HTMLParser):
    """The elements of a page, and the attributes of each."""

    def __init__(self, source):
        super().__init__()
        self.found = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_each_page_is_html_json_and_csv(client, page):
    path = PATHS[page.path]
    html = client.get(path)
    assert (html.status_code, html.headers["content-type"]) == (200, "text/html; charset=utf-8"), html.text
    answer = client.get(as_form(path, "json"))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    view = msgspec.json.decode(answer.content, type=page.answer)
    assert msgspec.json.encode(view) == answer.content
    assert msgspec.json.decode(answer.content)["version"] == 1
    table = client.get(as_form(path, "csv"))
    assert (table.status_code, table.headers["content-type"]) == (200, "text/csv; charset=utf-8")
    lines = list(csv.reader(io.StringIO(table.text)))
    assert len({len(line) for line in lines}) <= 1
    assert len(lines) > 1 or page.path == "/triage"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_names_that_are_markup_stay_text(client, page):
    source = client.get(PATHS[page.path]).text
    assert "<script>" not in source
    elements = Elements(source).found
    assert all(
        "src" in attributes or attributes["type"] == "application/json"
        for tag, attributes in elements
        if tag == "script"
    )
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on") or name == "style"]


def test_an_odd_night_is_reached_by_its_links(client):
    names = [night["night"] for night in client.get("/nights.json").json()["nights"]]
    assert names == [ODD_NIGHT, "n4", "n3", "n2", "n1"]
    hrefs = [attributes.get("href", "") for _, attributes in Elements(client.get("/nights").text).found]
    address = f"nights/{quote(ODD_NIGHT, safe='')}"
    assert address in hrefs
    assert ODD_CASE.key in [row["case"] for row in client.get(f"/{address}.json").json()["rows"]]
    links = [attributes.get("href", "") for _, attributes in Elements(client.get(f"/{address}").text).found]
    assert any(link.startswith("../runs/") for link in links)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/nights/nowhere", 404, "the history has no night 'nowhere'"),
        ("/runs/zzz", 404, "no run has an id that starts with 'zzz'"),
        ("/series?s=nonsense", 400, "names no series: write case|phase|platform"),
        ("/series?s=a|combine|b", 404, "the history has no run of a on b"),
        ("/series?metric=weight", 404, "the history has no metric 'weight'"),
        ("/series?since=never", 400, "'never' is no time"),
        ("/series?by=moon", 400, "by is 'moon': there are run, night, commit"),
        ("/nights/n4?verdict=bad", 400, "verdict is 'bad'"),
        ("/nights/n4?case=color=red", 400, "there is no field 'color'"),
        ("/nights/n4?case=node=a", 400, "series cannot be chosen by node"),
        ("/nights?limit=0", 400, "limit is '0': give a number from 1"),
        ("/nights?limit=1&limit=2", 400, "limit is given 2 times: give it once"),
        ("/nights?color=red", 400, "there is no parameter 'color' here; there are: limit"),
        ("/compare?a=n1&b=gone", 404, "'gone' is no run and no night"),
        ("/backends?case=gone", 404, "the history has no run of a case 'gone'"),
        ("/nodes?cluster=gone", 404, "the history has no cluster 'gone'"),
        (f"/nights?limit={'9' * 3000}", 400, "limit is longer than"),
    ],
)
def test_what_is_not_there_or_not_understood_is_one_sentence(client, path, status, words):
    answer = client.get(as_form(path, "json"))
    assert (answer.status_code, answer.json()["kind"]) == (status, "error")
    assert words in answer.json()["sentence"]
    page = client.get(path)
    assert (page.status_code, page.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert "Traceback" not in page.text


def test_no_address_reaches_a_file(client):
    for name in ("../app.py", "..%2fapp.py", "%2e%2e/app.py", "/etc/passwd", "%2fetc%2fpasswd", "vendor/uPlot.min.css"):
        for path in (f"/static/{name}", f"/nights/{name}", f"/runs/{name}"):
            answer = client.get(path)
            assert answer.status_code == 404, path
            assert "import" not in answer.text
    for name, asset in assets().items():
        sent = client.get(f"/static/{name}")
        assert (sent.status_code, sent.content) == (200, asset.content)
        assert client.get(f"/static/{name}", headers={"If-None-Match": sent.headers["etag"]}).status_code == 304


@pytest.mark.parametrize("path", ["/", "/nights.json", "/nowhere", "/static/epwatch.css", "/healthz", "/triage.csv"])
def test_every_answer_has_the_strict_headers(client, path):
    headers = client.get(path).headers
    for name, value in HEADERS.items():
        assert headers[name] == value
    assert "unsafe" not in headers["content-security-policy"]
    assert "server" not in headers


def test_the_first_page_is_the_newest_judged_night_and_filters_are_in_the_address(client):
    home = client.get("/")
    assert home.status_code == 200
    assert Elements(home.text).found[-1][1]["src"].startswith("static/")
    night = client.get("/nights/n4.json").json()
    whole = sum(len(row["cells"]) for row in night["rows"])
    assert whole == 4
    assert night["counts"] == {"regressed": 1, "failed": 2, "unchanged": 1}
    cells = {(row["parts"]["dtype"], cell["phase"]): cell for row in night["rows"] for cell in row["cells"]}
    assert cells["bf16", "dispatch"]["news"] == "recovered"
    assert cells["fp8", "dispatch"]["verdict"] == "failed"
    assert night["compared_to"] == night["previous"] == "n3"
    chosen = client.get("/nights/n4.json?case=dtype%3Dbf16&phase=combine&verdict=regressed&verdict=").json()
    assert [cell["verdict"] for row in chosen["rows"] for cell in row["cells"]] == ["regressed"]
    assert (chosen["hidden"], chosen["counts"]) == (whole - 1, night["counts"])
    troubles = {one["outcome"]: one for one in night["troubles"]}
    assert troubles["failed"]["message"] == "it failed"
    assert set(troubles) == {"failed", "missing"}
    assert [fact["name"] for fact in night["changed"]] == ["code.commit", "versions.torch"]


def test_nothing_is_written_without_leave(client, filled):
    assert client.post("/triage", data={"s": COMBINE, "who": "eve", "why": "x", "token": "guess"}).status_code == 403
    for method in ("post", "put", "delete", "patch"):
        assert getattr(client, method)("/nights").status_code == 405
    guarded = TestClient(create_app(filled, token="a long and secret token"), base_url="http://127.0.0.1")
    form = {"s": COMBINE, "who": "eve", "why": "x"}
    assert guarded.post("/triage", data=form).status_code == 403
    assert guarded.post("/triage", data={**form, "token": "a long and secret toke"}).status_code == 403
    elsewhere = {"Origin": "http://evil.example", "Authorization": "Bearer a long and secret token"}
    assert guarded.post("/triage", data=form, headers=elsewhere).status_code == 403
    right = {"Origin": "http://127.0.0.1", "Authorization": "Bearer a long and secret token"}
    assert guarded.post("/triage", data={**form, "s": "nonsense"}, headers=right).status_code == 400
    assert guarded.post("/triage", data={**form, "until": "soon"}, headers=right).status_code == 400
    assert guarded.post("/triage", content=b"\xff=\xff", headers=right).status_code == 400
    assert guarded.post("/triage", content=b"x" * (2 << 20), headers=right).status_code == 413


def test_a_regression_is_acknowledged_with_the_token(history, spool):
    fill(history, spool)
    client = TestClient(create_app(history, token="a long and secret token"), base_url="http://127.0.0.1")
    before = client.get("/triage.json").json()
    assert before["may_write"]
    assert before["counts"]["open"] == 3
    (mine,) = (one for one in before["regressions"] if (one["case"], one["phase"]) == (CASE.key, "combine"))
    assert (mine["state"], mine["since"], mine["night"]) == ("open", "n3", "n4")
    form = {"s": COMBINE, "who": "ada", "why": "known <i>", "until": "2999-01-01", "token": "a long and secret token"}
    answer = client.post("/triage", data=form, headers={"Origin": "http://127.0.0.1"})
    assert (answer.status_code, answer.url.path) == (200, "/triage")
    assert "known &lt;i&gt;" in answer.text
    after = client.get("/triage.json").json()
    assert after["counts"]["acknowledged"] == 1
    (mine,) = (one for one in after["regressions"] if one["state"] == "acknowledged")
    assert (mine["by"], mine["why"], mine["until"]) == ("ada", "known <i>", "2999-01-01")
    cells = [cell for row in client.get("/nights/n4.json").json()["rows"] for cell in row["cells"]]
    (told,) = {cell["acknowledged"] for cell in cells} - {""}
    assert told == "acknowledged by ada until 2999-01-01: known <i>"
    assert client.post("/triage", data={**form, "until": "2000-01-01"}).status_code == 400


def test_it_answers_for_its_own_names_alone(filled):
    guarded = TestClient(create_app(filled, hosts=("localhost", "127.0.0.1", "::1")), base_url="http://127.0.0.1:8642")
    for host in ("localhost:8642", "127.0.0.1", "[::1]:8642"):
        assert guarded.get("/healthz", headers={"Host": host}).status_code == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "", "[", "localhost.evil.example:8642"):
        answer = guarded.get("/healthz", headers={"Host": host})
        assert (answer.status_code, "--allow-host" in answer.text) == (400, True), host


def test_the_feed_has_each_new_regression_once(client):
    feed = ElementTree.fromstring(client.get("/atom.xml").content)
    name = "{http://www.w3.org/2005/Atom}"
    titles = [entry.findtext(f"{name}title") for entry in feed.iter(f"{name}entry")]
    said = re.compile(r"(dispatch|combine) of (\S+) got slower by \d+(\.\d+)? % in night n3")
    told = {said.fullmatch(title).group(1, 2) for title in titles}
    assert told == {(phase, case.key) for phase in PHASES for case in (CASE, FP8)}
    assert len({entry.findtext(f"{name}id") for entry in feed.iter(f"{name}entry")}) == 4


def test_the_badge_and_the_metrics_tell_of_the_newest_night(client):
    ElementTree.fromstring(client.get("/badge.svg").content)
    assert "no valid result" in client.get("/badge.svg").text
    text = client.get("/metrics").text
    assert "epwatch_night_exit_code 3.0" in text
    assert 'epwatch_night_series{verdict="failed"} 2.0' in text
    assert text.count('epwatch_verdict{case="') == 4
    assert text.count('epwatch_latency_seconds{case="') == 2


def test_the_document_has_every_page_and_only_what_is_there(client):
    document = client.get("/openapi.json").json()
    assert document == msgspec.json.decode(msgspec.json.encode(openapi.document()))
    for page in PAGES:
        assert {page.path, f"{page.path}.json", f"{page.path}.csv"} <= set(document["paths"])


def test_a_history_without_a_night_says_so(tmp_path):
    with History.open(tmp_path / "history.db") as empty:
        client = TestClient(create_app(empty), base_url="http://127.0.0.1")
        assert client.get("/").status_code == 404
        assert "no night of this history has been judged yet" in client.get("/nights/latest.json").json()["sentence"]
        for path in (
            "/nights",
            "/series",
            "/compare",
            "/backends",
            "/nodes",
            "/triage",
            "/atom.xml",
            "/badge.svg",
            "/metrics",
        ):
            assert client.get(path).status_code == 200, path
