"""What the tests of the web page share: a rich history, `epwatch serve` over it, and pages of a real Chromium.

A page of `page` or `new_page` is guarded: an error on its console, an exception in a script, or a request to anywhere
but the test's own server fails the test when it ends.
"""

import contextlib
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "regress_db"))

import rich_history
from served import chromium, serve

from regress_db.backup import back_up_file

DESKTOP = {"width": 1280, "height": 900}


@pytest.fixture(scope="session")
def rich_database(tmp_path_factory):
    """The path of the rich history; nobody writes to it."""
    folder = tmp_path_factory.mktemp("rich")
    rich_history.make(folder / "history.db", folder / "spool")
    return folder / "history.db"


@pytest.fixture
def own_database(rich_database, tmp_path):
    """A copy of the rich history, to write to."""
    back_up_file(rich_database, tmp_path / "own.db")
    return tmp_path / "own.db"


@pytest.fixture(scope="session")
def server(rich_database, tmp_path_factory):
    """The page over the rich history: `server.url`."""
    with serve(rich_database, tmp_path_factory.mktemp("server") / "log") as served:
        yield served


@pytest.fixture
def start_server(tmp_path):
    """A function that starts a server of the test's own: `start_server(path, "--allow-triage", ...)`."""
    with contextlib.ExitStack() as stack:
        count = iter(range(100))
        yield lambda database, *options: stack.enter_context(
            serve(database, tmp_path / f"server-{next(count)}.log", *options)
        )


@pytest.fixture(scope="session")
def browser():
    """One headless Chromium for the session."""
    program = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def new_page(browser):
    """A function that opens a guarded page: `new_page(color_scheme="dark", viewport=...)`."""
    contexts, complaints = [], []

    def opened(**options):
        context = browser.new_context(**{"viewport": DESKTOP, "locale": "en-GB", "timezone_id": "UTC"} | options)
        contexts.append(context)
        context.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        context.on("weberror", lambda error: complaints.append(f"{error.page.url}: {error.error}"))
        context.on("request", lambda request: _is_outside(request.url) and complaints.append(f"asks {request.url}"))
        context.on("dialog", lambda dialog: (complaints.append(f"says {dialog.message}"), dialog.dismiss()))
        return context.new_page()

    yield opened
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def page(new_page):
    """A guarded page on a desktop."""
    return new_page()


def _is_outside(url):
    parts = urlsplit(url)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1"
