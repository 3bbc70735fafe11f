"""Triage in a real Chromium: an open regression is acknowledged by whoever has the token, and by nobody else."""

import pytest
import rich_history as rich

from regress_db.history import History
from regress_db.notes import add_note

TOKEN = "a token of twenty letters"
WHY = "waiting <b>for</b> the fix"


@pytest.fixture
def served(start_server, own_database, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    add_note(History.open(own_database), "new <i>firmware</i>", who="bob", case=rich.SLOWER.key, at=rich.START)
    return start_server(own_database, "--allow-triage", "--token-file", str(tmp_path / "token"))


def acknowledge(page, token):
    page.get_by_role("checkbox", name=rich.SLOWER.key).check()
    form = page.locator("#ack")
    form.get_by_label("by").fill("ada")
    form.get_by_label("why").fill(WHY)
    form.get_by_label("until").fill("2099-12-31")
    form.get_by_label("token").fill(token)
    form.get_by_role("button").click()


def test_an_open_regression_is_acknowledged_with_the_token(page, served):
    page.goto(f"{served.url}/triage")
    assert "1 open, 0 acknowledged" in page.locator("main").inner_text()
    acknowledge(page, TOKEN)
    page.wait_for_url("**/triage")
    page.get_by_text("0 open, 1 acknowledged").wait_for()
    row = page.get_by_role("group", name="Acknowledged").locator("tbody tr").inner_text()
    assert WHY in row
    assert "2099-12-31" in row
    page.get_by_role("group", name="Acknowledged").get_by_role("link", name="combine").click()
    assert "new <i>firmware</i>" in page.locator("main").inner_text()


def test_nobody_acknowledges_without_the_token(browser, served):
    page = browser.new_page()  # not guarded: the console tells the answer's status
    try:
        page.goto(f"{served.url}/triage")
        acknowledge(page, "a guess")
        assert "token" in page.locator(".headline").inner_text()
        page.goto(f"{served.url}/triage")
        assert "1 open, 0 acknowledged" in page.locator("main").inner_text()
    finally:
        page.close()
