"""The report's file in a real Chromium, from file:// and with no network: drawn, hovered, filtered, linked within."""

import pytest
import rich_history as rich
from axe_playwright_python.sync_playwright import Axe
from looking import Chart
from playwright.sync_api import expect

from regress_db.history import History
from regress_db.web.report import write_report


@pytest.fixture(scope="module")
def report(rich_database, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "night.html"
    return write_report(History.open(rich_database, migrate_older=False), rich.NIGHTS[-1], path)


@pytest.fixture
def opened(new_page, report):
    page = new_page(offline=True)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    yield page
    assert {one.split("?")[0].split("#")[0] for one in asked} == {report.as_uri()}


def test_its_charts_are_drawn_when_they_are_seen(opened):
    expect(opened.locator("canvas")).to_have_count(0)
    chart = Chart(opened.locator("figure.plot").first)
    assert chart.colours() > 20
    assert "▲ regressed" in " ".join(chart.press("End"))


def test_a_cell_tells_all_and_leads_to_its_series_in_the_file(opened):
    cell = opened.locator(".cell.is-improved")
    cell.hover()
    assert "got faster" in opened.get_by_role("tooltip").inner_text()
    folded = opened.locator("details.case[id]", has_text=f"dispatch {rich.FASTER.key}")
    assert folded.get_attribute("open") is None
    cell.click()
    assert folded.get_attribute("open") is not None
    folded.locator("summary").first.click()
    assert folded.get_attribute("open") is None


def test_filters_work_and_stand_in_the_address(opened):
    form = opened.locator("form.filters").first
    rows = opened.locator("table.grid tbody tr:visible")
    everything = rows.count()
    form.get_by_label("verdict").select_option("failed")
    expect(rows).to_have_count(1)
    assert "verdict=failed" in opened.url
    opened.reload()
    expect(rows).to_have_count(1)
    form.get_by_label("backend").select_option("backend=ep_core")
    expect(rows).to_have_count(0)
    expect(opened.locator("#nothing")).to_be_visible()
    form.get_by_role("button", name="Show all").click()
    expect(rows).to_have_count(everything)
    assert "?" not in opened.url


def test_a_point_leads_to_its_run_where_the_file_has_it(opened, report):
    chart = Chart(opened.locator("figure.plot").first)
    chart.press("End")
    opened.keyboard.press("Enter")
    assert opened.url.startswith(f"{report.as_uri()}#run-")
    assert opened.locator("section.view:target h1").inner_text().startswith("Run ")


def test_every_link_within_it_leads_somewhere(opened):
    dangling = opened.eval_on_selector_all(
        "a[href]",
        "links => links.map(link => link.getAttribute('href')).filter(to => !document.getElementById(to.slice(1)))",
    )
    assert not dangling


def test_it_can_be_read_by_all_and_never_scrolls_sideways(opened):
    # Colours are those of the server's pages, and looking at every text of so long a page takes long.
    found = Axe().run(opened, options={"rules": {"color-contrast": {"enabled": False}}}).response["violations"]
    assert not [one["id"] for one in found]
    opened.set_viewport_size({"width": 390, "height": 844})
    assert opened.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0


def test_it_is_whole_on_paper(opened):
    opened.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    expect(opened.locator("canvas")).to_have_count(opened.locator("figure.plot").count())
