"""What is captured about machine and code: what matters is there, secrets are not, nothing missing is an error."""

import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import environment
from harness.environment import capture, code_state, conditions, is_secret, job_notes, nodes, platform, variables

WORDS = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=8)
# Part of a longer word without a break, as in PGPASSWORD, and words that have to stand alone.
ANYWHERE = ["PASSWD", "PASSWORD", "PASSPHRASE", "PWD", "SECRET", "TOKEN_", "CREDENTIAL", "APIKEY", "PrivateKey"]
ALONE = ["PASS", "KEY", "KEYS", "PAT", "AUTH", "CREDS", "TELL", "KEY2", "pass"]
HARMLESS = ["PATH", "BYPASS", "COMPASS", "PASSIVE", "TOKENIZERS", "PKEY", "RKEY", "PATTERN", "AUTHORITY", "KEEPALIVE"]
FIRST_RULE = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|KEY|AUTH|TELL)(_|$)")


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


@given(st.sampled_from(ANYWHERE), WORDS, WORDS)
def test_a_word_for_a_secret_is_found_within_another(word, before, after):
    assert is_secret(f"{before}{word}{after}", "1")


@given(st.lists(WORDS), st.sampled_from(ALONE), st.lists(WORDS))
def test_a_short_word_for_a_secret_is_found_between_underscores(before, word, after):
    name = "_".join([*before, word, *after])
    assert is_secret(name, "1") == (name.upper() != "NCCL_PAT_ENABLE")


@given(st.lists(st.sampled_from(HARMLESS), min_size=1))
def test_words_that_only_look_like_a_secret_s_are_none(words):
    assert not is_secret("_".join(words), "1")


@given(st.from_regex(FIRST_RULE))
def test_what_was_kept_out_of_records_by_the_first_rule_still_is(name):
    assert is_secret(name, "1")
    assert variables({f"NCCL_{name}": "1", f"EPWATCH_{name}": "1"}) == {}


@pytest.mark.parametrize(
    "name",
    ["PGPASSWORD", "MYSQL_PWD", "DB_PASS", "SSHPASS", "GITHUB_PAT", "OPENAI_APIKEY", "RESTIC_PASSPHRASE", "API_TOKENS"],
)
def test_the_secrets_that_people_have_are_secrets(name):
    assert is_secret(name, "x")


@pytest.mark.parametrize(
    "name",
    [
        *("PWD", "OLDPWD", "PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "XAUTHORITY", "SLURM_CONF", "CONDA_PREFIX"),
        *("NCCL_PAT_ENABLE", "NCCL_IB_PKEY", "NCCL_IB_HCA", "UCX_RC_MLX5_PKEY", "UCX_IB_MAX_IDLE_RKEY_COUNT"),
        *("MSCCLPP_EP_LL_TOKENS", "EPWATCH_INJECT_DELAY_US", "HYDRA_BOOTSTRAP", "TOKENIZERS_PARALLELISM"),
        *("OMP_WAIT_POLICY", "KMP_AFFINITY", "CUDA_VISIBLE_DEVICES", "TORCH_NCCL_ASYNC_ERROR_HANDLING"),
    ],
)
def test_what_ranks_need_is_no_secret(name):
    assert not is_secret(name, "1")


@given(WORDS, WORDS, WORDS, st.sampled_from(["http://", "socks5h://", "", "x ", "--proxy=", "a,http://"]))
def test_a_user_with_a_password_is_a_secret_whatever_the_variable_is_called(user, password, host, before):
    assert is_secret("https_proxy", f"{before}{user}:{password}@{host}:3128")
    assert variables({"UCX_PEOPLE": f"{before}{user}:{password}@{host}"}) == {}


@pytest.mark.parametrize(
    "value",
    [
        *("http://proxy:3128", "http://me@proxy:3128", "/opt/gcc@12/bin:/opt/openmpi@4/bin", "git@example.org:a/b"),
        *("mlx5_0:1,mlx5_1:1", "gcc/12:openmpi@4", '() { eval "$($LMOD_CMD bash "$@")" && eval "${X:-:}$@"\n}', ""),
    ],
)
def test_a_value_without_a_password_is_no_secret(value):
    assert not is_secret("SOME", value)


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
