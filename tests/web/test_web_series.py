"""Series through time in a real Chromium: drawn, hovered, zoomed, walked through by keyboard, opened, overlaid."""

import re

import pytest
import rich_history as rich
from looking import Chart, series
from playwright.sync_api import expect

STEP = rich.NIGHTS[10]


@pytest.fixture
def chart(page, server):
    page.goto(server.url + series(rich.SLOWER.key))
    return Chart(page.locator("figure.plot"))


def test_it_is_drawn_and_says_when(chart):
    assert chart.colours() > 20
    chart.page.wait_for_function("performance.getEntriesByName('epwatch:drawn').length === 1")


def test_the_keyboard_walks_from_point_to_point_and_opens_the_run(chart):
    newest = chart.press("End")
    assert newest[0].endswith("µs")
    assert "▲ regressed" in " ".join(newest)
    oldest = chart.press("Home")
    assert oldest != newest
    assert f"night {rich.NIGHTS[0]}" in oldest
    assert f"night {rich.NIGHTS[1]}" in chart.press("ArrowRight")
    assert f"night {rich.NIGHTS[0]}" in chart.press("ArrowLeft")
    assert chart.figure.locator("[aria-live]").inner_text().startswith(oldest[0])
    run = re.search(r"run (\w+)", " ".join(oldest))[1]
    chart.page.keyboard.press("Enter")
    chart.page.wait_for_url("**/runs/*")
    assert run in chart.page.locator("h1").inner_text()


def test_the_pointer_sees_what_the_keyboard_sees_and_a_click_opens_the_run(chart):
    by_key = chart.press("Home", "ArrowRight", "ArrowRight")
    place = chart.chosen()
    chart.page.keyboard.press("Escape")
    expect(chart.tip).to_be_hidden()
    chart.point_at(*place)
    assert chart.said() == by_key
    chart.page.mouse.click(*place)
    chart.page.wait_for_url("**/runs/*")


def test_plus_zooms_and_zero_shows_everything_again(chart):
    chart.press("Home", "PageDown")
    before = chart.chosen()
    chart.press("ArrowLeft")
    step = before[0] - chart.chosen()[0]
    chart.press("ArrowRight", "+", "+")
    right = chart.chosen()[0]
    chart.press("ArrowLeft")
    assert right - chart.chosen()[0] > 2 * step
    chart.press("ArrowRight", "0")
    assert chart.chosen() == pytest.approx(before, abs=1)


def test_a_drag_zooms_into_the_time_between(chart):
    chart.press("Home")
    left, _ = chart.chosen()
    box = chart.canvas.bounding_box()
    middle, top = box["x"] + box["width"] / 2, box["y"] + box["height"] / 3
    chart.page.mouse.move(middle, top)
    chart.page.mouse.down()
    chart.page.mouse.move(middle + 200, top, steps=4)
    chart.page.mouse.up()
    chart.press("Escape", "Home")
    assert f"night {rich.NIGHTS[0]}" in chart.said()
    assert chart.chosen()[0] > left + 20


def test_marks_tell_what_changed(chart):
    chart.press("Home", *["ArrowRight"] * 10)
    assert f"night {STEP}" in chart.said()
    x, _ = chart.chosen()
    box = chart.figure.locator(".u-over").bounding_box()
    chart.point_at(x, box["y"] + 8)
    assert chart.said()[0].startswith("Change point")
    assert "+20." in " ".join(chart.said())
    chart.point_at(x, box["y"] + box["height"] - 8)
    assert chart.said()[0].startswith("Environment changed")
    assert "driver" in " ".join(chart.said())


def test_what_marks_tell_stands_in_tables_too(chart):
    changes = chart.page.get_by_role("group", name="change points")
    assert "+20." in changes.inner_text()
    assert "versions.driver" in chart.page.get_by_role("group", name="changes of the environment").inner_text()


def test_the_logarithm_is_switched_at_once_and_stands_in_the_address(chart):
    chart.press("Home", "ArrowRight")
    linear = chart.chosen()
    chart.page.get_by_label("logarithmic").check()
    assert "log=1" in chart.page.url
    chart.press("Home", "ArrowRight")
    assert chart.chosen() != linear
    chart.page.reload()
    assert chart.page.get_by_label("logarithmic").is_checked()
    chart.page.get_by_label("logarithmic").uncheck()
    assert "log=" not in chart.page.url


def test_the_points_are_a_table_on_request(chart):
    chart.page.get_by_text("The points as a table").click()
    rows = chart.page.get_by_role("group", name="points", exact=True).locator("tbody tr")
    expect(rows).to_have_count(22)
    assert "▲ regressed" in rows.first.inner_text()
    rows.first.get_by_role("link").click()
    chart.page.wait_for_url("**/runs/*")


def test_a_metric_and_what_a_point_is_are_chosen_and_stand_in_the_address(page, server):
    page.goto(server.url + series(rich.SLOWER.key))
    page.get_by_label("metric").select_option("bandwidth_gbs")
    page.wait_for_url("**metric=bandwidth_gbs**")
    assert "since=" not in page.url
    assert "higher is better" in page.locator("figcaption").inner_text()
    page.get_by_label("a point is").select_option("commit")
    page.wait_for_url("**by=commit**")
    assert Chart(page.locator("figure.plot")).press("End")[0].endswith("GB/s")


def test_another_series_is_laid_over_it_and_arrows_change_between_them(page, server):
    page.goto(server.url + series(rich.SLOWER.key))
    page.get_by_role("heading", name="Lay another over it").locator("+ ul a").filter(has_text="torch/ll").first.click()
    page.wait_for_url(lambda url: url.count("s=") == 2)
    assert page.locator("h1").inner_text().startswith("2 series")
    chart = Chart(page.locator("figure.plot"))
    first = chart.press("End")
    second = chart.press("ArrowDown")
    assert first[0].split(":")[0] != second[0].split(":")[0]
    assert chart.press("ArrowUp")[0].split(":")[0] == first[0].split(":")[0]


def test_colours_follow_the_page_into_the_dark(chart):
    light = chart.figure.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    chart.page.emulate_media(color_scheme="dark")
    chart.page.wait_for_function("before => document.querySelector('canvas').toDataURL() !== before", arg=light)


def test_a_series_is_found_by_words_of_its_key(page, server):
    page.goto(server.url + "/series")
    page.get_by_label("words of the key").fill("torch bf16")
    page.locator("form.filters").get_by_label("phase").select_option("combine")
    expect(page.locator("#choices tbody tr:visible")).to_have_count(1)
    assert "1 of " in page.get_by_role("status").inner_text()
    page.reload()
    expect(page.locator("#choices tbody tr:visible")).to_have_count(1)
    page.locator("#choices tbody tr:visible a").click()
    page.wait_for_url("**/series?s=**")
