"""What a private Slurm is asked to be, and the files that say so: pure functions, tried with inputs of all kinds."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.private_slurm import SlurmError, SlurmSettings
from jobs.private_slurm.configuration import Description, Places, Ports, check_folder, files, stand_in_devices
from jobs.private_slurm.settings import Machine, shape_of

MACHINES = st.builds(
    Machine,
    cpus=st.integers(1, 256),
    memory_mb=st.integers(1, 4_000_000),
    gpu_devices=st.integers(0, 16).map(lambda count: tuple(f"/dev/nvidia{number}" for number in range(count))),
)
ASKED = st.builds(
    SlurmSettings,
    nodes=st.integers(1, 20),
    cpus=st.none() | st.integers(1, 64),
    memory_mb=st.none() | st.integers(1, 100_000),
    gpus=st.none() | st.integers(0, 8),
    accounting=st.booleans(),
)


def described(settings, machine, folder=Path("/tmp/here")):
    return Description(
        folder=folder,
        host="box",
        user="me",
        ports=Ports(controller=10001, accounting=10002, nodes=tuple(range(10003, 10003 + settings.nodes))),
        shape=shape_of(settings, machine),
        settings=settings,
        first_job_id=77,
        cgroup_plugin="cgroup/v1",
    )


def lines(text, beginning):
    return [line for line in text.splitlines() if line.startswith(beginning)]


@given(settings=ASKED, machine=MACHINES)
def test_nodes_get_what_was_asked_or_a_share_of_the_machine(settings, machine):
    if 0 < len(machine.gpu_devices) < (settings.gpus or 0) * settings.nodes:
        with pytest.raises(SlurmError, match="ask for fewer"):
            shape_of(settings, machine)
        return
    shape = shape_of(settings, machine)
    assert len({node.name for node in shape.nodes}) == settings.nodes
    for node in shape.nodes:
        assert node.cpus == (settings.cpus or max(1, machine.cpus // settings.nodes))
        assert node.memory_mb >= 1
    handed_out = [device for node in shape.nodes for device in node.gpu_devices]
    assert len(handed_out) == len(set(handed_out))
    assert set(handed_out) <= set(machine.gpu_devices)
    if settings.gpus is None:
        assert not shape.stand_in_gpus
    assert shape.stand_in_gpus == bool(settings.gpus and not machine.gpu_devices)


@given(settings=ASKED, machine=MACHINES)
def test_files_say_each_thing_once(settings, machine):
    try:
        description = described(settings, machine)
    except SlurmError:
        return
    written = files(description)
    conf = written["slurm.conf"].text
    keys = [line.split("=")[0] for line in conf.splitlines() if not line.startswith(("NodeName", "PartitionName"))]
    assert len(keys) == len(set(keys))
    assert len(lines(conf, "NodeName=")) == settings.nodes
    assert len(set(re.findall(r" Port=(\d+)", conf))) == settings.nodes
    devices = re.findall(r"File=(\S+)", written["gres.conf"].text)
    assert len(devices) == len(set(devices)) == description.shape.gpus
    stand_ins = {str(path) for path in stand_in_devices(description)}
    assert {device for device in devices if not device.startswith("/dev/")} == stand_ins
    assert ("slurmdbd.conf" in written) == settings.accounting == ("AccountingStorageType" in conf)


def test_the_files_of_a_workstation():
    machine = Machine(cpus=16, memory_mb=64_000, gpu_devices=("/dev/nvidia0", "/dev/nvidia1"))
    written = files(described(SlurmSettings(accounting=True), machine))
    conf = written["slurm.conf"].text
    assert lines(conf, "NodeName=") == [
        "NodeName=127.0.1.1 NodeHostname=box NodeAddr=127.0.1.1 Port=10003 CPUs=16 Sockets=1 CoresPerSocket=16 "
        "ThreadsPerCore=1 RealMemory=64000 Gres=gpu:2 State=UNKNOWN"
    ]
    assert lines(conf, "PartitionName=") == ["PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP"]
    for line in (
        "SlurmctldHost=box(127.0.0.1)",
        "SlurmctldPort=10001",
        "AuthInfo=socket=/tmp/here/munge.sock,cred_expire=5",
        "AccountingStoragePort=10002",
        "AccountingStoragePass=/tmp/here/munge.sock",
        "TaskPlugin=task/affinity",
        "FirstJobId=77",
        "DefMemPerCPU=4000",
        "EnforcePartLimits=ALL",
        "ReturnToService=1",
        "SlurmdTimeout=10",
        "KillWait=2",
        "MinJobAge=86400",
        "ScronParameters=enable",
    ):
        assert line in conf.splitlines()
    assert written["gres.conf"].text.splitlines() == [
        "AutoDetect=off",
        "NodeName=127.0.1.1 Name=gpu File=/dev/nvidia0",
        "NodeName=127.0.1.1 Name=gpu File=/dev/nvidia1",
    ]
    assert written["slurmdbd.conf"].mode == 0o600
    assert "StorageHost=localhost" in written["slurmdbd.conf"].text.splitlines()


def test_lines_of_the_callers_come_last():
    machine = Machine(cpus=4, memory_mb=8000, gpu_devices=())
    partition = "PartitionName=night Nodes=ALL Default=YES State=UP"
    settings = SlurmSettings(nodes=2, partitions=(partition,), extra_conf=("KillWait=9", "PreemptMode=CANCEL"))
    conf = files(described(settings, machine))["slurm.conf"].text.splitlines()
    assert conf[-3:] == [partition, "KillWait=9", "PreemptMode=CANCEL"]
    assert not any(line.startswith("PartitionName=debug") for line in conf)


@pytest.mark.parametrize(
    ("asked", "machine_cpus", "bound"),
    [
        ({"nodes": 1}, 8, True),
        ({"nodes": 4}, 8, False),
        ({"nodes": 2, "cpus": 2}, 2, True),
        ({"nodes": 1, "cpus": 4}, 2, False),
        ({"nodes": 4, "bind_cpus": True}, 8, True),
        ({"nodes": 1, "bind_cpus": False}, 8, False),
    ],
)
def test_tasks_are_bound_where_nodes_do_not_crowd_on_some_cpus(asked, machine_cpus, bound):
    machine = Machine(cpus=machine_cpus, memory_mb=8000, gpu_devices=())
    assert shape_of(SlurmSettings(**asked), machine).bind_cpus is bound


def test_too_few_gpus_are_refused_and_none_get_stand_ins():
    machine = Machine(cpus=4, memory_mb=8000, gpu_devices=("/dev/nvidia0",))
    with pytest.raises(SlurmError, match="2 nodes of 1 GPUs need 2, and this machine has 1"):
        shape_of(SlurmSettings(nodes=2, gpus=1), machine)
    without = Machine(cpus=4, memory_mb=8000, gpu_devices=())
    assert shape_of(SlurmSettings(nodes=2, gpus=1), without).stand_in_gpus
    assert shape_of(SlurmSettings(nodes=2), machine).gpus == 0


@given(name=st.text(st.characters(categories=("L", "N"), include_characters="._-/ #,=%[\"'\\"), max_size=90))
def test_a_folder_that_passes_fits_every_socket_and_file(name):
    folder = Path("/tmp") / name.lstrip("/")
    nodes = shape_of(SlurmSettings(nodes=3), Machine(cpus=3, memory_mb=300, gpu_devices=())).nodes
    try:
        check_folder(folder, nodes)
    except SlurmError:
        return
    step = Places(folder).spool("127.0.1.3") / "127.0.1.3_67043328.4294967291"
    assert len(bytes(step)) <= 107
    assert not set(str(folder)) & set(" #,=%[\"'\\")
