"""Which nodes are slow, asked of a history: whose runs count, in which nights, on which cluster."""

import random
from datetime import timedelta

import msgspec
import pytest
from synthetic_records import CASE, PLATFORM, START, failed_record, ok_record

from harness import record as records
from regress_db.errors import FilterError, NotFoundError
from regress_db.ingest import collect
from regress_db.nights import open_night
from regress_db.nodes import node_effects, slow_nodes
from regress_db.selection import Selection

CASES = [msgspec.structs.replace(CASE, tokens=tokens) for tokens in (8, 16, 32, 64)]
OTHER = msgspec.structs.replace(PLATFORM, cluster="other")
HOSTS = ["n1", "n2", "n3", "n4"]


class Cluster:
    """Nights of four cases on nodes of a cluster, chosen by chance, with a noise of one per cent."""

    def __init__(self, history, spool, platform=PLATFORM, seed=7):
        self.history, self.spool, self.platform = history, spool, platform
        self.chance = random.Random(seed)
        self.seed = seed

    def measure(self, nights, *, hosts=HOSTS, effects=None, per_run=1, first=0, named=True, repeats=2):
        """effects: factor by host; the slowest of a run's counts. named: nights of a plan, else runs made by hand."""
        for day in range(first, first + nights):
            started = START + timedelta(days=day, minutes=self.seed)
            name = f"{self.platform.cluster}-{day:03}" if named else ""
            if named:
                open_night(self.history, name, "plan", started, [])
            for repeat in range(repeats):
                for index, case in enumerate(CASES):
                    on = sorted(self.chance.sample(hosts, per_run))
                    factor = max((effects or {}).get(host, 1.0) for host in on)
                    made = ok_record(
                        case=case,
                        night=name,
                        repeat=repeat,
                        dispatch_us=100.0 * factor * self.chance.gauss(1, 0.01),
                        combine_us=200.0 * factor * self.chance.gauss(1, 0.01),
                        started=started + timedelta(minutes=index + 20 * repeat),
                        seed=self.chance.randrange(2**31),
                        platform=self.platform,
                        hostnames=on,
                    )
                    records.write(made, self.spool)
        assert not collect(self.history, self.spool).quarantined


@pytest.fixture
def cluster(history, spool):
    return Cluster(history, spool)


def verdicts(found):
    return {one.hostname: one.verdict for one in found}


def test_the_slow_node_comes_first_with_its_interval_and_the_others_are_usual(cluster):
    cluster.measure(12, effects={"n3": 1.08})
    found = node_effects(cluster.history)
    first = found[0]
    assert (first.hostname, first.cluster, first.verdict, first.alike, first.since) == ("n3", "local", "slow", (), "")
    assert first.low < 0.08 < first.high
    assert first.p_value < 0.01
    assert (max(one.nights for one in found), first.series) == (12, 8)
    assert sum(one.runs for one in found) == 12 * 8
    assert verdicts(found) == {"n3": "slow", "n1": "usual", "n2": "usual", "n4": "usual"}
    assert [one.hostname for one in slow_nodes(cluster.history, "local", 0.05)] == ["n3"]
    assert slow_nodes(cluster.history, "local", 0.2) == []
    last = max(one.last_seen for one in found)
    assert last == START + timedelta(days=11, minutes=cluster.seed + 23)


def test_runs_on_two_nodes_wait_for_the_slower_one(cluster):
    cluster.measure(14, effects={"n3": 1.08}, per_run=2)
    found = node_effects(cluster.history)
    assert verdicts(found)["n3"] == "slow"
    assert found[0].low < 0.08 < found[0].high
    assert {one.verdict for one in found[1:]} == {"usual"}


def test_nodes_that_always_ran_together_name_each_other(cluster):
    for night in range(10):
        for hosts, effect in ((["n1", "n2"], 1.0), (["n3", "n4"], 1.08)):
            cluster.measure(1, hosts=hosts, effects={"n3": effect}, per_run=2, first=night, repeats=1)
    found = {one.hostname: one for one in node_effects(cluster.history)}
    assert (found["n3"].alike, found["n4"].alike) == (("n4",), ("n3",))
    assert found["n3"].verdict == found["n4"].verdict == "slow"
    assert found["n3"].effect == found["n4"].effect


def test_the_newest_nights_count_and_a_time_or_a_filter_chooses_others(cluster):
    cluster.measure(10, effects={"n2": 1.1})
    cluster.measure(10, effects={"n3": 1.1}, first=10)
    newest = node_effects(cluster.history, since_nights=10)
    assert [one.hostname for one in newest if one.verdict == "slow"] == ["n3"]
    assert newest[0].nights <= 10
    before = node_effects(cluster.history, Selection.of(until=START + timedelta(days=10)), since_nights=10)
    assert [one.hostname for one in before if one.verdict == "slow"] == ["n2"]
    since = node_effects(cluster.history, Selection.of(since=START + timedelta(days=10)))
    assert [one.hostname for one in since if one.verdict == "slow"] == ["n3"]
    one_case = node_effects(cluster.history, Selection.of("tokens=8"))
    assert {one.series for one in one_case} == {2}


def test_a_node_that_got_slow_says_since_which_night(cluster):
    cluster.measure(18)
    cluster.measure(10, effects={"n3": 1.1}, first=18)
    first = node_effects(cluster.history)[0]
    assert (first.hostname, first.verdict, first.since) == ("n3", "slow", "local-018")
    assert first.nights <= 10
    assert first.low < 0.1 < first.high


def test_a_node_never_beside_another_cannot_be_told_and_nor_can_one_with_too_few_runs(cluster):
    cluster.measure(3, hosts=["n1"])
    (found,) = node_effects(cluster.history)
    assert (found.verdict, found.effect, found.low, found.high, found.p_value) == ("cannot tell", *[None] * 4)
    cluster.measure(1, first=3, repeats=1)
    assert all(one.verdict == "cannot tell" for one in node_effects(cluster.history))


def test_clusters_are_told_apart_and_failed_runs_are_nobodys(cluster, spool):
    cluster.measure(8, effects={"n1": 1.1})
    Cluster(cluster.history, spool, OTHER, seed=8).measure(8, hosts=["m1", "m2", "m3"], effects={"m2": 1.1})
    records.write(failed_record(started=START, hostname="m9", platform=OTHER), spool)
    collect(cluster.history, spool)
    found = node_effects(cluster.history)
    assert {(one.cluster, one.hostname) for one in found if one.verdict == "slow"} == {("local", "n1"), ("other", "m2")}
    assert {one.hostname for one in node_effects(cluster.history, cluster="other")} == {"m1", "m2", "m3"}
    with pytest.raises(NotFoundError, match=r"no cluster 'elsewhere'; it has local, other"):
        node_effects(cluster.history, cluster="elsewhere")


def test_runs_made_by_hand_count_by_the_day(cluster):
    cluster.measure(10, effects={"n3": 1.1}, named=False)
    found = node_effects(cluster.history)
    assert [one.hostname for one in found if one.verdict == "slow"] == ["n3"]
    assert max(one.nights for one in found) == 10


def test_an_empty_history_has_no_node_and_numbers_out_of_range_are_refused(history):
    assert node_effects(history) == []
    with pytest.raises(NotFoundError, match="it has none yet"):
        node_effects(history, cluster="local")
    with pytest.raises(FilterError, match="no probability"):
        node_effects(history, level=1.5)
    with pytest.raises(FilterError, match="at least 1"):
        node_effects(history, since_nights=0)


def test_no_node_is_known_to_be_slow_on_a_cluster_that_the_history_does_not_have(history, cluster):
    assert slow_nodes(history, "local", 0.05) == []
    cluster.measure(8, effects={"n3": 1.1})
    assert slow_nodes(cluster.history, "elsewhere", 0.05) == []


def test_a_notebook_asks_the_same(cluster):
    cluster.measure(8, effects={"n3": 1.1})
    asked = cluster.history.nodes("mode=ll", since=START, cluster="local")
    assert list(asked) == node_effects(cluster.history, Selection.of("mode=ll", since=START))
    assert asked.column("verdict")[0] == "slow"
