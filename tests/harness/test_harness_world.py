"""Rank variables of every launcher, read by a pure function: what is understood, what is refused and how."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import WorldError
from harness.world import first_host, place

RENDEZVOUS = {"MASTER_ADDR": "head", "MASTER_PORT": "29500"}


def torchrun(rank, size, local_rank, local_size):
    return RENDEZVOUS | {
        "TORCHELASTIC_RUN_ID": "none",
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_size),
    }


def open_mpi(rank, size, local_rank, local_size):
    return {
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_SIZE": str(size),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(local_rank),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(local_size),
        "PMIX_NAMESPACE": "prterun-head-4711@1",
    }


def hydra(rank, size, local_rank, local_size):
    return RENDEZVOUS | {
        "PMI_RANK": str(rank),
        "PMI_SIZE": str(size),
        "MPI_LOCALRANKID": str(local_rank),
        "MPI_LOCALNRANKS": str(local_size),
    }


def slurm(rank, size, local_rank, local_size):
    nodes = size // local_size
    return {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_LOCALID": str(local_rank),
        "SLURM_NODEID": str(rank // local_size),
        "SLURM_STEP_TASKS_PER_NODE": f"{local_size}(x{nodes})" if nodes > 1 else str(local_size),
        "SLURM_STEP_NODELIST": "gpu[07-09,12]",
    }


LAUNCHERS = {"torchrun": torchrun, "mpirun (Open MPI)": open_mpi, "mpirun (PMI)": hydra, "srun": slurm}
worlds = st.tuples(st.integers(1, 4), st.integers(1, 8)).flatmap(
    lambda shape: st.tuples(st.just(shape[0]), st.just(shape[1]), st.integers(0, shape[0] * shape[1] - 1))
)


@pytest.mark.parametrize("name", LAUNCHERS)
@given(world=worlds)
def test_each_launcher_gives_the_same_place(name, world):
    nodes, per_node, rank = world
    variables = LAUNCHERS[name](rank, nodes * per_node, rank % per_node, per_node)
    if nodes > 1 and name == "mpirun (Open MPI)":
        variables |= RENDEZVOUS
    found = place(variables)
    assert found.launcher == name
    assert (found.rank, found.size) == (rank, nodes * per_node)
    assert (found.local_rank, found.local_size) == (rank % per_node, per_node)


@pytest.mark.parametrize("name", ["mpirun (Open MPI)", "srun"])
def test_ranks_of_one_job_agree_where_to_meet_and_two_jobs_do_not(name):
    def meet(rank, **changes):
        found = place(LAUNCHERS[name](rank, 4, rank, 4) | changes)
        return found.master_addr, found.master_port

    assert len({meet(rank) for rank in range(4)}) == 1
    assert meet(0)[0] == "127.0.0.1"
    assert meet(0) != meet(0, SLURM_JOB_ID="78", PMIX_NAMESPACE="prterun-head-4712@1")


def test_slurm_over_several_nodes_meets_on_the_first():
    assert place(slurm(5, 8, 1, 4)).master_addr == "gpu07"


def test_slurm_nodes_named_by_loopback_addresses_are_one_machine():
    several = slurm(5, 8, 1, 4)
    assert not place(several).one_machine
    found = place(several | {"SLURM_STEP_NODELIST": "127.0.1.[1-2]"})
    assert (found.master_addr, found.local_size, found.one_machine) == ("127.0.1.1", 4, True)
    assert place(several | {"MASTER_ADDR": "localhost"}).one_machine
    assert not place(several | {"MASTER_ADDR": "127-0-0-1.example"}).one_machine


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("gpu[07-09,12]", "gpu07"),
        ("head", "head"),
        ("127.0.1.[1-2]", "127.0.1.1"),
        ("a1,b[2-3]", "a1"),
        ("rack[3,5]-eth", "rack3-eth"),
        ("n-1.cluster,n-2.cluster", "n-1.cluster"),
    ],
)
def test_first_host_of_a_slurm_list(nodelist, first):
    assert first_host(nodelist) == first


def test_uneven_slurm_nodes():
    uneven = slurm(6, 7, 0, 3) | {"SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "3(x2),1"}
    assert place(uneven).local_size == 1


def test_torchrun_wins_over_whatever_started_torchrun():
    nested = slurm(1, 2, 0, 1) | open_mpi(3, 4, 1, 2) | torchrun(6, 8, 2, 4)
    assert place(nested).rank == 6


def test_mpirun_inside_a_slurm_allocation_wins_over_slurm():
    assert place(slurm(0, 2, 0, 1) | RENDEZVOUS | open_mpi(3, 4, 1, 2)).rank == 3


def test_a_wrapper_script_that_maps_mpi_to_rank_is_understood():
    mapped = open_mpi(2, 4, 2, 4) | RENDEZVOUS | {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "2"}
    with pytest.raises(WorldError, match="LOCAL_WORLD_SIZE is not set"):
        place(mapped)
    assert place(mapped | {"LOCAL_WORLD_SIZE": "4"}).rank == 2


def test_a_batch_script_is_no_rank():
    batch = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}
    with pytest.raises(WorldError, match="no rank variables are set"):
        place(batch)


REFUSED = {
    "no rank variables are set": {},
    "WORLD_SIZE is not set": {"RANK": "0"},
    "RANK is not set": {"WORLD_SIZE": "2"},
    "RANK='first' is not an integer": torchrun(0, 2, 0, 2) | {"RANK": "first"},
    "RANK is -1, wanted at least 0": torchrun(-1, 2, 0, 2),
    "RANK is 2 but WORLD_SIZE is 2": torchrun(2, 2, 0, 2),
    "WORLD_SIZE is 0, wanted at least 1": torchrun(0, 0, 0, 1),
    "says local rank 3 of 2 in a world of 4": torchrun(3, 4, 3, 2),
    "says local rank 0 of 8 in a world of 4": torchrun(0, 4, 0, 8),
    "MASTER_PORT is 70000": torchrun(0, 2, 0, 2) | {"MASTER_PORT": "70000"},
    "MASTER_PORT='any' is not an integer": torchrun(0, 2, 0, 2) | {"MASTER_PORT": "any"},
    "set MASTER_ADDR to its host": open_mpi(0, 4, 0, 2),
    "names no port to meet on": {k: v for k, v in torchrun(0, 2, 0, 2).items() if k != "MASTER_PORT"},
    "says rank 1 of 2 .RANK, WORLD_SIZE. but mpirun .Open MPI. says rank 0 of 2": open_mpi(0, 2, 0, 2)
    | {k: v for k, v in torchrun(1, 2, 1, 2).items() if k != "TORCHELASTIC_RUN_ID"},
    "is not a list of counts": slurm(0, 2, 0, 2) | {"SLURM_STEP_TASKS_PER_NODE": "2*2"},
    "SLURM_NODEID is 4": slurm(0, 2, 0, 2) | {"SLURM_NODEID": "4"},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(sentence):
    with pytest.raises(WorldError, match=sentence) as caught:
        place(REFUSED[sentence])
    assert "\n" not in str(caught.value)
