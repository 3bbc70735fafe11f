"""Where the history is: who decides, in which order."""

import subprocess
import sys

import pytest

from regress_db.errors import HistoryError
from regress_db.locations import default_location, default_spool


@pytest.fixture
def home(tmp_path):
    return {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "config")}


def test_the_option_wins_then_the_environment_then_the_plan_then_the_file(tmp_path, home):
    (tmp_path / "epwatch.toml").write_text('history = "kept/here.db"\nspool = "/var/spool/epwatch"\n')
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    full = {**home, "EPWATCH_DB": "env.db"}
    assert default_location("opt.db", plan="plan.db", environ=full, cwd=below).where == "opt.db"
    assert default_location(None, plan="plan.db", environ=full, cwd=below).where == "env.db"
    assert default_location(None, plan="plan.db", environ=home, cwd=below).where == "plan.db"
    found = default_location(environ=home, cwd=below)
    assert found.where == str(tmp_path / "kept" / "here.db")
    assert found.decided_by == str(tmp_path / "epwatch.toml")
    assert default_spool(environ=home, cwd=below).where == "/var/spool/epwatch"


def test_the_user_configuration_counts_where_no_folder_has_one(tmp_path, home):
    file = tmp_path / "config" / "epwatch" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('history = "postgresql://host/db"\n')
    assert default_location(environ=home, cwd=tmp_path).where == "postgresql://host/db"


def test_with_nothing_said_it_is_the_users_data_folder(tmp_path, home):
    found = default_location(environ=home, cwd=tmp_path)
    assert found.where.endswith("history.db")
    assert found.decided_by == "the default"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("history = 3", "must be a string"), ("histroy = 'x'", "unknown key 'histroy'"), ("[", "not valid TOML")],
)
def test_a_configuration_file_with_a_mistake_is_a_sentence(tmp_path, home, content, sentence):
    (tmp_path / "epwatch.toml").write_text(content)
    with pytest.raises(HistoryError, match=sentence):
        default_location(environ=home, cwd=tmp_path)


def test_asking_for_the_place_loads_no_database(tmp_path):
    script = "import sys, regress_db.locations; print(sorted({'sqlalchemy', 'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60).stdout == "[]\n"
