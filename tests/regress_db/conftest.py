"""What the tests of the history share: a history, in a file and in PostgreSQL, a spool, and the helper modules."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

from postgres_server import PostgresServer, programs

from regress_db.history import History

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

_TEMPLATE = "epwatch_template"


@pytest.fixture
def spool(tmp_path):
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server for the whole session. Missing is a failure in CI, and skips on a laptop."""
    found = programs()
    if found is None:
        why = "PostgreSQL's server is not installed (Debian: apt-get install postgresql)"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    server = PostgresServer(found)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres_template(postgres):
    """The name of a database with an empty history, to copy: faster than making one."""
    postgres.run(f"CREATE DATABASE {_TEMPLATE}")
    History.open(postgres.url(_TEMPLATE)).close()
    return _TEMPLATE


@pytest.fixture
def postgres_url(postgres):
    """The URL of a new, empty PostgreSQL database."""
    with postgres.database() as url:
        yield url


@pytest.fixture
def postgres_history(postgres, postgres_template):
    """An empty history in PostgreSQL."""
    with postgres.database(postgres_template) as url, History.open(url) as opened:
        yield opened


@pytest.fixture
def sqlite_history(tmp_path):
    """An empty history in a file."""
    with History.open(tmp_path / "history.db") as opened:
        yield opened


@pytest.fixture(params=["sqlite", "postgresql"])
def history(request):
    """An empty history in each kind of database in turn."""
    return request.getfixturevalue({"sqlite": "sqlite_history", "postgresql": "postgres_history"}[request.param])


@pytest.fixture(params=["sqlite", "postgresql"])
def new_place(request, tmp_path):
    """Where no history is yet: a path, and the URL of an empty PostgreSQL database."""
    if request.param == "sqlite":
        return str(tmp_path / "new" / "history.db")
    return request.getfixturevalue("postgres_url")
