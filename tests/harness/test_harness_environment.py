"""What is captured about machine and code: what matters is there, secrets are not, nothing missing is an error."""

import subprocess

import pytest

from harness import environment
from harness.environment import capture, code_state, conditions, job_notes, nodes, platform, variables


def test_variables_are_taken_by_allow_list():
    environ = {
        "NCCL_DEBUG": "INFO",
        "EP_TIMEOUT_S": "5",
        "MSCCLPP_EP_BENCH_TOKENS": "64",
        "EPWATCH_INJECT_DELAY_US": "300",
        "HOME": "/root",
        "PATH": "/bin",
    }
    assert variables(environ) == {k: environ[k] for k in sorted(environ) if k not in ("HOME", "PATH")}


@pytest.mark.parametrize(
    "name",
    [
        "NCCL_API_TOKEN",
        "EPWATCH_PASSWORD",
        "EP_SECRET_X",
        "UCX_AUTH",
        "EPWATCH_DB",
        "EPWATCH_JOB",
        "AWS_SECRET_ACCESS_KEY",
        "EPWATCH_TELL",
        "EPWATCH_TELL_OPS",
    ],
)
def test_secrets_and_places_are_never_recorded(name):
    assert variables({name: "x"}) == {}


def test_an_address_is_never_recorded_whatever_its_name():
    assert variables({"UCX_PEOPLE": "json://token@host/ slack://a/b/c", "UCX_TLS": "tcp"}) == {"UCX_TLS": "tcp"}


def test_capture_twice_is_the_same_environment():
    assert capture({"NCCL_DEBUG": "INFO"}).digest == capture({"NCCL_DEBUG": "INFO", "HOME": "/x"}).digest


def test_capture_names_what_a_reader_needs():
    found = capture({})
    assert {"python", "kernel", "torch", "epwatch"} <= found.versions.keys()
    assert int(found.topology["cores_usable"]) >= 1


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=trunk"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def test_code_state_follows_the_working_tree(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "first")
    clean = code_state(tmp_path)
    assert (clean["branch"], clean["dirty"], len(clean["commit"])) == ("trunk", "no", 40)
    (tmp_path / "a").write_text("2")
    assert code_state(tmp_path)["dirty"] == "yes"
    assert code_state(tmp_path)["describe"].endswith("-dirty")


def test_code_state_of_a_repository_without_commits_or_no_repository_is_empty(tmp_path):
    assert code_state(tmp_path) == {}
    git(tmp_path, "init")
    assert code_state(tmp_path) == {}


def test_code_state_without_git_is_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_state(tmp_path) == {}


def test_platform_key_has_four_parts_whatever_the_model_is_called(monkeypatch):
    monkeypatch.setattr(environment, "cpu_model", lambda: "Model 9-B")
    found = platform("local", "cpu", 1)
    assert found.key.split("/") == ["local", "Model 9-B", f"x{found.devices_per_node}", "shared-memory"]


def test_cpu_model_has_no_slash_or_line_break():
    model = environment.cpu_model()
    assert model
    assert "/" not in model
    assert model == " ".join(model.split())


def test_conditions_are_numbers_named_by_when():
    before = conditions("before")
    assert before
    assert all(name.endswith("_before") and value >= 0 for name, value in before.items())


def test_nodes_keep_the_order_of_ranks():
    found = nodes(["b", "a", "b", "a"])
    assert [(node.hostname, node.ranks) for node in found] == [("b", [0, 2]), ("a", [1, 3])]


def test_the_job_of_a_scheduler_is_a_note():
    assert job_notes({"SLURM_JOB_ID": "12"}) == ["Slurm job 12"]
    assert job_notes({}) == []
