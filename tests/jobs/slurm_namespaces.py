"""A Slurm whose nodes are network namespaces, joined by a switch, so that a node's link can go down. Root only.

Each namespace is held by a process that sleeps, has no name in the system, and goes with that process; these go with
whoever started them. A node has its own host name and hosts file, as a machine of its own would.
"""

import contextlib
import functools
import os
import shutil
import subprocess

import pytest
from slurm_fixtures import started_slurm

from harness.processes import die_with_parent
from jobs.private_slurm.machine import search_path
from jobs.private_slurm.settings import Host

NETWORK = "10.77.0"
SWITCH = "switch"
CONTROLLER = "ctl"


class Network:
    """Hosts n1, n2, ... and the controller's on one switch. folder: for the hosts file."""

    def __init__(self, nodes, folder):
        self._holders = {}
        self._hosts_file = folder / "hosts"
        names = [*(f"n{number + 1}" for number in range(nodes)), CONTROLLER]
        self._addresses = {name: f"{NETWORK}.{number + 1}" for number, name in enumerate(names)}
        self._hosts_file.write_text(
            "".join(f"{address} {name}\n" for name, address in self._addresses.items()) + "127.0.0.1 localhost\n"
        )

    def __enter__(self):
        self._hold(SWITCH)
        self._in(SWITCH, "ip", "link", "add", "br0", "up", "type", "bridge")
        for name, address in self._addresses.items():
            pid = self._hold(name)
            self._in(SWITCH, *f"ip link add v-{name} up type veth peer name eth0 netns {pid}".split())
            self._in(SWITCH, *f"ip link set v-{name} master br0".split())
            self._in(name, *f"ip address add {address}/24 dev eth0".split())
            for link in ("lo", "eth0"):
                self._in(name, "ip", "link", "set", link, "up")
        return self

    def __exit__(self, *_):
        for holder in self._holders.values():
            holder.kill()
            holder.wait()

    def host(self, name):
        """The namespace as Slurm gets it."""
        settle = f'hostname {name} && mount --bind {self._hosts_file} /etc/hosts && exec "$@"'
        enter = (*self._enter(name), "unshare", "--uts", "--mount", "sh", "-c", settle, "sh")
        return Host(name=name, address=self._addresses[name], enter=enter)

    def link_down(self, name):
        """Pull the cable out of a host."""
        self._in(SWITCH, "ip", "link", "set", f"v-{name}", "down")

    def link_up(self, name):
        """Put the cable back."""
        self._in(SWITCH, "ip", "link", "set", f"v-{name}", "up")

    def _hold(self, name):
        self._holders[name] = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"],
            stdout=subprocess.PIPE,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),
        )
        with self._holders[name].stdout as said:
            said.readline()
        return self._holders[name].pid

    def _enter(self, name):
        return ("nsenter", f"--net=/proc/{self._holders[name].pid}/ns/net")

    def _in(self, name, *command):
        subprocess.run([*self._enter(name), *command], check=True, capture_output=True, timeout=10)


@contextlib.contextmanager
def networked_slurm(nodes, folder):
    """A Slurm of so many nodes of two CPUs, and the network that they are in."""
    with Network(nodes, folder) as network:
        hosts = tuple(network.host(f"n{number + 1}") for number in range(nodes))
        settings = {"cpus": 2, "memory_mb": 4000, "gpus": 0, "hosts": hosts, "controller": network.host(CONTROLLER)}
        with started_slurm(nodes=nodes, **settings) as slurm:
            yield slurm, network


@pytest.fixture
def slurm_in_namespaces(tmp_path):
    """Three nodes n1 to n3 and their network, to break. What is missing is a failure in CI, and skips on a laptop."""
    missing = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name, path=search_path()) is None]
    if missing or os.geteuid() != 0:
        why = f"network namespaces need root and ip, nsenter and unshare (missing: {', '.join(missing) or 'root'})"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    with networked_slurm(3, tmp_path) as made:
        yield made
