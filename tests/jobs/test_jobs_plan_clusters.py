"""Clusters in a plan: what they may be, what their jobs ask for, and how a plan that cannot be is refused."""

import pytest

from jobs.plan import Plan, PlanError, parse

HEAD = '[plan]\nname = "p"\n'
SLURM = '[cluster]\nkind = "slurm"\nname = "big"\n'
CASES = """\
[[cases]]
backend = "torch"
mode = "ll"
ranks = [2, 8]
tokens = 16
hidden = 256
topk = 2
experts = 8
"""


def plan_with(cluster: str, cases: str = CASES, measure: str = "") -> Plan:
    return parse(f"{HEAD}{cluster}{measure}{cases}", "night.toml")


def refused(cluster: str, cases: str = CASES, measure: str = "") -> str:
    with pytest.raises(PlanError) as raised:
        plan_with(cluster, cases, measure)
    sentence = str(raised.value)
    assert sentence.startswith("plan night.toml, line ")
    assert "\n" not in sentence
    return sentence


def test_ranks_are_spread_over_hosts_by_the_clusters_limit_and_the_cases_nodes():
    plan = plan_with(SLURM + "tasks_per_node = 4\n", CASES + "nodes = [1, 2]\n")
    (cluster,) = plan.clusters
    spread = {
        (one.case.ranks, one.case.nodes): (cluster.hosts(one.case), cluster.tasks_on_a_host(one.case))
        for one in plan.cases
    }
    assert spread == {(2, 1): (1, 2), (2, 2): (2, 1), (8, 1): (2, 4), (8, 2): (2, 4)}


def test_gpus_are_asked_for_where_cases_need_them_or_the_plan_says_so():
    cuda = plan_with(SLURM, CASES + 'device = ["cpu", "cuda"]\n')
    asked = {(one.case.device, one.case.ranks): cuda.clusters[0].gpus_on_a_host(one.case) for one in cuda.cases}
    assert asked == {("cpu", 2): 0, ("cpu", 8): 0, ("cuda", 2): 2, ("cuda", 8): 8}
    told = plan_with(SLURM + "gpus_per_node = 4\n")
    assert {told.clusters[0].gpus_on_a_host(one.case) for one in told.cases} == {4}


def test_the_time_limit_leaves_room_to_start_and_end():
    (cluster,) = plan_with(SLURM).clusters
    assert cluster.limit_min(600.0) * 60 >= 600.0 + 60
    (own,) = plan_with(SLURM + "time_limit_min = 45\n").clusters
    assert own.limit_min(600.0) == 45


def test_cases_run_on_the_clusters_they_name_or_on_all():
    two = '[[cluster]]\nkind = "slurm"\nname = "a"\n[[cluster]]\nkind = "local"\n'
    plan = plan_with(two, CASES + 'clusters = "a"\n' + CASES.replace("[2, 8]", "4"))
    assert [cluster.name for cluster in plan.clusters] == ["a", "local"]
    assert [one.clusters for one in plan.cases] == [("a",), ("a",), ("a", "local")]
    assert "there is no cluster 'b'; there are a, local" in refused(two, CASES + 'clusters = ["a", "b"]\n')


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('qos = "a\\nscancel -u root"', ["cluster.qos", "one line"]),
        ('partition = "\\u0007"', ["cluster.partition", "one line"]),
        ('exclude = ["n1; rm -rf ~"]', ["cluster.exclude", "not a host's name"]),
        ("tasks_per_node = 0", ["cluster.tasks_per_node", "at least 1"]),
        ("tasks_per_node = 3", ["cases[1].ranks", "spread evenly", "big"]),
        ("jobs_at_once = 0", ["cluster.jobs_at_once", "at least 1"]),
        ("memory_gb = -1.0", ["cluster.memory_gb", "at least 0.001"]),
        ("exclude_slow = 0.0", ["cluster.exclude_slow", "above 0"]),
        ("time_limit_min = 5", ["cluster.time_limit_min", "job_deadline_s"]),
        ("memory_gb = 0.0001", ["cluster.memory_gb", "at least 0.001"]),
        ("exclude_slow = 5", ["cluster.exclude_slow", "above 0 and at most 1 (0.05 is 5 %)"]),
        ('nodelist = "n1"', ["cluster.nodelist: is one text, wanted a list"]),
        ('nodelist = ["n1", "n2"]', ["cluster.nodelist: names 2 hosts", "r2n1", "has 1 host"]),
        ('nodelist = ["n[1-3,7],m1"]', ["cluster.nodelist: names 5 hosts"]),
        ('launcher = "rsh"', ["cluster.launcher: is 'rsh', wanted srun, torchrun or mpirun"]),
        ('launcher = "mpirun"\ncontainer = "a.sqsh"', ["cluster.container", "srun"]),
        ('launcher = "mpirun"\nsrun_args = ["-v"]', ["cluster.srun_args", "srun"]),
        ('launcher = "mpirun"\ncontainer_mounts = ["/a"]', ["cluster.container_mounts", "srun"]),
        ('container_mounts = ["/a:/a"]', ["cluster.container_mounts", "no container"]),
        ("environment = { A = 4 }", ["line 6: cluster.environment.A: is a whole number, wanted text"]),
        ('environment.B = "x"\nenvironment.A = 4', ["line 7: cluster.environment.A: is a whole number, wanted text"]),
        ('environment = { HF_TOKEN = "x" }', ["cluster.environment", "secret", "pass_environment"]),
        ('environment = { PGPASSWORD = "x" }', ["cluster.environment", "PGPASSWORD looks like a secret"]),
        ('environment = { https_proxy = "http://me:x@proxy:3128" }', ["https_proxy looks like a secret"]),
        ('environment = { "A B" = "x" }', ["cluster.environment", "'A B'"]),
        ('pass_environment = ["A=B"]', ["cluster.pass_environment", "'A=B'"]),
        ('partion = "x"', ["cluster.partion", "no such field", "partition"]),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_by_field(lines, words):
    sentence = refused(f"{SLURM}{lines}\n")
    assert all(word in sentence for word in words), sentence


def test_hosts_to_be_contained_are_no_more_than_each_job_has():
    two_hosts = CASES.replace("ranks = [2, 8]", "ranks = 8")
    nodelist = SLURM + 'tasks_per_node = 4\nnodelist = ["n[1-2]"]\n'
    assert plan_with(nodelist, two_hosts).clusters[0].nodelist == ["n[1-2]"]
    assert "names 2 hosts" in refused(nodelist, CASES)
    assert "4 ranks on 1 node," in refused(SLURM + "tasks_per_node = 3\n", CASES.replace("[2, 8]", "4"))
    second = '[[cluster]]\nkind = "local"\n[[cluster]]\nkind = "slurm"\nname = "a"\nnodelist = ["n1", "n2"]\n'
    assert "line 8: cluster[2].nodelist" in refused(second)


@pytest.mark.parametrize("line", ['DB_PASSWORD = "hunter2"', 'https_proxy = "http://me:hunter2@proxy:3128"'])
def test_a_secret_in_a_plan_is_not_repeated(line):
    assert "hunter2" not in refused(f"{SLURM}environment = {{ {line} }}\n")


def test_names_are_given_once_and_for_good():
    assert "cluster.name: is missing" in refused('[cluster]\nkind = "slurm"\n')
    twice = '[[cluster]]\nkind = "local"\n[[cluster]]\nkind = "local"\n'
    assert "line 5: cluster[2].name: 'local' is another cluster's already" in refused(twice)
    with pytest.raises(PlanError, match="cluster: is empty"):
        parse(f"cluster = []\n{HEAD}{CASES}", "night.toml")


def test_this_machine_takes_nothing_that_is_for_a_queue():
    sentence = refused('[cluster]\nkind = "local"\nqos = "high"\n')
    assert "line 5: cluster.qos" in sentence
    assert 'kind "slurm"' in sentence
    assert "is one machine" in refused('[cluster]\nkind = "local"\n', CASES + "nodes = 2\n")
