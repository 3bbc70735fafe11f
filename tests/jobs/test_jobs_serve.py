"""`epwatch serve` as a user runs it: it says where it is, answers, ends when told to, and refuses in a sentence."""

import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from epwatch_command import clean_environment, epwatch, sentence

from regress_db.history import History

DEADLINE_S = 60


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "history.db"
    History.open(path).close()
    return path


def start(database, cwd, *options):
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", "serve", "--db", str(database), "--port", "0", *options],
        cwd=cwd,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_serves_the_history_until_it_is_told_to_end(database, tmp_path, number, code):
    server = start(database, tmp_path)
    try:
        said = server.stdout.readline()
        address = re.fullmatch(r"(http://127\.0\.0\.1:\d+/) shows (.+); Ctrl-C ends it\n", said)
        assert address[2] == str(database)
        with urllib.request.urlopen(f"{address[1]}nights.json", timeout=DEADLINE_S) as answer:
            assert answer.status == 200
            assert b'"kind":"nights"' in answer.read()
    finally:
        server.send_signal(number)
        _, complaints = server.communicate(timeout=DEADLINE_S)
    assert server.returncode == code
    assert "Traceback" not in complaints


def test_a_token_is_made_where_none_is_given(database, tmp_path):
    server = start(database, tmp_path, "--allow-triage", "--host", "0.0.0.0")
    try:
        lines = [server.stdout.readline() for _ in range(3)]
    finally:
        server.terminate()
        server.communicate(timeout=DEADLINE_S)
    assert lines[1] == "it listens on 0.0.0.0: whoever reaches this machine can read the history\n"
    assert re.fullmatch(r"the token for acknowledging: \S{32}\n", lines[2])


def test_what_it_cannot_do_is_a_sentence(database, tmp_path):
    said = sentence(epwatch("serve", "--db", tmp_path / "none.db", cwd=tmp_path))
    assert said.startswith(f"epwatch: there is no history at {tmp_path / 'none.db'}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = sentence(epwatch("serve", "--db", database, "--port", str(port), cwd=tmp_path))
    assert said == (
        f"epwatch: cannot listen on 127.0.0.1 port {port}: Address already in use; choose with --host and --port"
    )
    (tmp_path / "token").write_text("short\n")
    said = sentence(
        epwatch("serve", "--db", database, "--allow-triage", "--token-file", tmp_path / "token", cwd=tmp_path)
    )
    assert "has 5 characters: make it 16 or longer" in said
    assert "--token-file is for --allow-triage" in sentence(
        epwatch("serve", "--db", database, "--token-file", tmp_path / "token", cwd=tmp_path)
    )


def test_without_the_extra_it_says_what_to_install(database, tmp_path):
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None: None if name == 'uvicorn' else find(name, package)\n"
    )
    said = sentence(epwatch("serve", "--db", database, cwd=tmp_path, PYTHONPATH=str(tmp_path / "without")))
    assert said == "epwatch: epwatch serve needs uvicorn, not installed here: pip install 'epwatch[web]'"
