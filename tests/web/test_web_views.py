"""Every view in a real Chromium: it opens without a complaint, can be read by axe, in the dark and on a phone, and
never scrolls sideways. The guard of `new_page` fails a test for any error on the console and any request elsewhere.
"""

import json
from urllib.parse import urlencode

import pytest
import rich_history as rich
from axe_playwright_python.sync_playwright import Axe
from looking import series
from playwright.sync_api import expect

PHONE = {"width": 390, "height": 844}

VIEWS = {
    "last night": "/",
    "filtered": "/nights/latest?verdict=regressed&case=mode%3Dll",
    "an earlier night": f"/nights/{rich.NIGHTS[-3]}",
    "nights": "/nights",
    "choice of series": "/series",
    "series": series(rich.SLOWER.key),
    "odd series": series(rich.ODD_KEY),
    "overlay": series(rich.SLOWER.key, rich.STEADY.key, by="commit", log="1"),
    "ranks": series(rich.SLOWER.key, metric="ranks", by="night"),
    "run": "/runs/latest",
    "nothing to compare": "/compare",
    "two nights": f"/compare?a=night:{rich.NIGHTS[-2]}&b=night:{rich.NIGHTS[-1]}",
    "two runs": None,
    "failed run": None,
    "choice of backends": "/backends",
    "backends": f"/backends?{urlencode({'case': rich.SLOWER.key})}",
    "nodes": "/nodes",
    "triage": "/triage",
}


IN_THE_DARK = ("last night", "overlay", "run", "two nights", "nodes", "triage")
"""Views that have between them every colour of text."""


def address_of(name, page, server):
    """The address of a view; of two runs and of a failed one it is found as a reader finds it, through links."""
    if VIEWS[name] is not None:
        return server.url + VIEWS[name]
    if name == "two runs":
        page.goto(server.url + "/runs/latest")
        return page.get_by_role("link", name="side by side with the run before").evaluate("link => link.href")
    page.goto(server.url)
    return page.locator(".card").filter(has_text="failed").locator("a.key").first.evaluate("link => link.href")


def complaints_of_axe(page, only=None):
    found = Axe().run(page, options={"runOnly": only} if only else None).response["violations"]
    return [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_opens_and_can_be_read_by_all(name, page, server):
    answer = page.goto(address_of(name, page, server))
    assert answer.ok
    expect(page.locator("h1")).to_have_count(1)
    assert not complaints_of_axe(page)
    if name in IN_THE_DARK:
        page.emulate_media(color_scheme="dark")
        assert not complaints_of_axe(page, only=["color-contrast"])
    page.set_viewport_size(PHONE)
    sideways = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert sideways == 0


@pytest.mark.parametrize("address", ["/runs/0000nosuch", "/series?metric=nosuch", "/nothing/here", "/nights?limit=x"])
def test_what_is_not_there_is_told_in_a_sentence(address, browser, server):
    page = browser.new_page()  # not guarded: the console tells the answer's status
    try:
        assert page.goto(server.url + address).status in (400, 404)
        assert page.locator("h1 + .headline").inner_text()
        assert not complaints_of_axe(page)
    finally:
        page.close()


@pytest.mark.slow
def test_every_link_of_every_view_leads_somewhere(page, server):
    seen = set()
    for name in VIEWS:
        page.goto(address_of(name, page, server))
        seen |= set(page.eval_on_selector_all("a[href]", "links => links.map(link => link.href.split('#')[0])"))
    assert len(seen) > 40
    for address in sorted(seen):
        assert address.startswith(server.url)
        answer = page.request.get(address)
        assert answer.ok, f"{address}: {answer.status}"


def test_names_from_records_are_text_and_never_markup(page, server):
    page.goto(server.url)
    expect(page.locator("table.grid tr", has_text=rich.ODD)).to_have_count(1)
    page.goto(server.url + series(rich.ODD_KEY))
    assert rich.ODD in page.locator("h1").inner_text().replace("\u200b", "")
    assert json.loads(page.locator("script.data").text_content())["asked"][0]["case"] == rich.ODD_KEY
