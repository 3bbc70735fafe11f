"""Last night in a real Chromium: hovered, by keyboard too, filtered, the filters in the address, and what leads on."""

import rich_history as rich
from looking import Chart, series
from playwright.sync_api import expect

from regress_db.wording import SIGNS


def cell(page, verdict, place=0):
    return page.locator(f"table.grid .cell.is-{verdict}").nth(place)


def test_the_worst_is_first_and_every_verdict_has_its_sign(page, server):
    page.goto(server.url)
    expect(page.locator("table.grid tbody tr").first.locator(".is-regressed")).to_have_count(1)
    for one in page.locator("table.grid .cell .verdict").all():
        sign, word = one.inner_text()[0], one.inner_text()[1:].strip()
        assert sign == SIGNS[word]


def test_hovering_a_cell_tells_all_and_escape_takes_it_away(page, server):
    page.goto(server.url)
    cell(page, "regressed").hover()
    said = page.get_by_role("tooltip").inner_text()
    assert "got slower" in said
    assert "interval" in said
    assert "code" in said
    page.keyboard.press("Escape")
    expect(page.locator("#tip")).to_be_hidden()


def test_a_focused_cell_tells_the_same(page, server):
    page.goto(server.url)
    cell(page, "improved").focus()
    assert "got faster" in page.get_by_role("tooltip").inner_text()
    assert cell(page, "improved").get_attribute("aria-describedby") == "tip"


def test_a_cell_leads_to_its_series(page, server):
    page.goto(server.url)
    cell(page, "regressed").click()
    page.wait_for_url("**/series?s=**")
    assert page.locator("h1").inner_text().replace("\u200b", "") == f"combine of {rich.SLOWER.key}"


def test_filters_stand_in_the_address_and_come_from_it(page, server):
    page.goto(server.url)
    everything = page.locator("table.grid tbody tr").count()
    form = page.locator("form.filters")
    form.get_by_label("verdict").select_option("failed")
    page.wait_for_url("**verdict=failed**")
    assert "case=" not in page.url
    form.get_by_label("dtype").select_option("fp8")
    page.wait_for_url("**case=dtype%3Dfp8**")
    expect(page.locator("table.grid tbody tr")).to_have_count(1)
    assert "2 of 16 series shown" in form.inner_text()
    page.reload()
    assert form.get_by_label("verdict").input_value() == "failed"
    assert form.get_by_label("dtype").input_value() == "dtype=fp8"
    page.get_by_role("link", name="show all").click()
    page.wait_for_url("**/nights/*")
    expect(page.locator("table.grid tbody tr")).to_have_count(everything)


def test_what_is_new_and_what_recovered(page, server):
    page.goto(server.url + "/nights/latest?news=recovered")
    assert page.locator("table.grid .cell .tag").all_inner_texts() == ["recovered"] * 2
    page.goto(server.url + "/nights/latest?news=new")
    assert set(page.locator("table.grid .cell .tag").all_inner_texts()) == {"new"}


def test_nights_are_walked_through_and_compared(page, server):
    page.goto(server.url)
    page.get_by_role("link", name="the night before", exact=False).first.click()
    page.wait_for_url(f"**/nights/{rich.NIGHTS[-2]}")
    page.get_by_role("link", name="the night after →").click()
    page.wait_for_url(f"**/nights/{rich.NIGHTS[-1]}")
    page.get_by_role("link", name="side by side with it").click()
    page.wait_for_url("**/compare?**")
    column = page.locator("table[data-sortable] tbody td:nth-last-child(2)")
    largest = column.first.inner_text()
    page.get_by_role("button", name="change").click()
    page.get_by_role("button", name="change").click()
    assert column.first.inner_text() != largest


def test_a_failed_run_tells_why(page, server):
    page.goto(server.url)
    page.locator(".card").filter(has_text="failed").locator("a.key").first.click()
    page.wait_for_url("**/runs/*")
    assert page.locator(".headline.bad strong").inner_text()
    assert page.locator("pre").first.inner_text()
    assert "epwatch run" in page.get_by_role("heading", name="To repeat it").locator("+ pre").inner_text()


def test_a_run_shows_its_ranks_and_iterations(page, server):
    page.goto(server.url + "/runs/latest")
    kinds = [figure.get_attribute("data-plot") for figure in page.locator("figure.plot").all()]
    assert kinds == ["ranks", "iterations", "histogram"] * 2
    for figure in page.locator("figure.plot").all():
        assert Chart(figure).colours() > 10
    ranks, iterations, histogram = (Chart(page.locator("figure.plot").nth(place)) for place in range(3))
    assert "rank 0" in " ".join(ranks.press("Home"))
    assert "iteration 0" in " ".join(iterations.press("Home"))
    assert "of 20 iterations" in histogram.press("Home")[0]
    assert page.locator("tr", has_text="latency_us").first.locator("td").last.inner_text()
    assert "versions.driver" not in page.get_by_role("group", name="facts that differ").all_inner_texts()


def test_a_finger_is_told_first_and_opens_with_the_second_touch(new_page, server):
    page = new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.goto(server.url + series(rich.SLOWER.key))
    chart = Chart(page.locator("figure.plot"))
    chart.press("Home")
    place = chart.chosen()
    chart.page.keyboard.press("Escape")
    page.touchscreen.tap(*place)
    chart.said()
    assert "/series" in page.url
    page.touchscreen.tap(*place)
    page.wait_for_url("**/runs/*")
