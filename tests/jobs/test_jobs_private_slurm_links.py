"""A node whose link goes down, in a Slurm whose nodes are network namespaces. Needs root and iproute2."""

import pytest
from slurm_fixtures import output_of, submit, submit_and_see, wait_for_state


@pytest.mark.slow
def test_a_node_whose_link_goes_down_is_lost_and_comes_back(slurm_in_namespaces):
    slurm, network = slurm_in_namespaces
    names = slurm.run("srun", "-N3", "hostname").split()
    assert sorted(names) == ["n1", "n2", "n3"] == list(slurm.node_names)

    lost = submit_and_see(slurm, "-N2", "--nodelist=n1,n2", "--no-requeue", tasks=2)
    network.link_down("n2")
    wait_for_state(slurm, lost, "NODE_FAIL", deadline_s=90)
    elsewhere = submit(slurm, "-N2", "--exclude=n2", wrap="srun hostname")
    wait_for_state(slurm, elsewhere, "COMPLETED")
    assert sorted(output_of(slurm, elsewhere).split()) == ["n1", "n3"]

    network.link_up("n2")
    slurm.wait_idle(timeout_s=60)
    back = submit(slurm, "-N3", wrap="srun hostname")
    wait_for_state(slurm, back, "COMPLETED")
