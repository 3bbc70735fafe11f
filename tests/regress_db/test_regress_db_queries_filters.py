"""The filter language: what it means, what it refuses; both databases choose what a plain predicate chooses."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_records import CASE, PLATFORM, START, environment, ok_record

from harness import record as records
from harness.case import Case
from harness.record import Platform
from regress_db.errors import FilterError
from regress_db.filters import KINDS, MOST_ALTERNATIVES, OPERATORS, Filter, parse_filter, parse_moment
from regress_db.ingest import collect
from regress_db.queries import runs, trend
from regress_db.selection import Selection

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("mode=ll", Filter("mode", "=", ("ll",))),
        ("ranks>=16", Filter("ranks", ">=", (16,))),
        ("ranks<=016", Filter("ranks", "<=", (16,))),
        ("ranks != 2 , 4", Filter("ranks", "!=", (2, 4))),
        ("seed=-1", Filter("seed", "=", (-1,))),
        ("dtype=fp8*,bf16", Filter("dtype", "=", ("fp8*", "bf16"))),
        ("node~gpu0*", Filter("node", "~", ("gpu0*",))),
        ("night=", Filter("night", "=", ("",))),
        ("platform=a=b", Filter("platform", "=", ("a=b",))),
        ("commit=3f2a9c", Filter("commit", "=", ("3f2a9c",))),
        ("ep_core/ll", Filter("case", "~", ("ep_core/ll",))),
        ("a,b", Filter("case", "~", ("a,b",))),
        ("case~a,b", Filter("case", "~", ("a", "b"))),
    ],
)
def test_what_is_written_is_what_is_meant(text, meant):
    assert parse_filter(text) == meant


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("xyz=1", "no field 'xyz': there are case, backend"),
        ("colour=red", "no field 'colour'"),
        ("rank=2", "did you mean ranks? There are case, backend"),
        ("Mode=ll", "did you mean mode?"),
        ("=ll", "no field ''"),
        ("phase=combine", "an option: --phase"),
        ("since=7d", "--since"),
        ("ranks", "'ranks' is a field"),
        ("ranks", "the shell takes < and >"),
        ("mode", "'mode=...'"),
        ("ranks=many", "ranks is a number, which 'many' is not"),
        ("ranks=", "which '' is not"),
        ("ranks=2,", "which '' is not"),
        ("ranks=1.5", "which '1.5' is not"),
        ("ranks=1*", "which '1*' is not"),
        ("ranks>=2,4", "compares with one number"),
        ("ranks~2", "~ matches texts"),
        ("ranks>=99999999999999999999", "beyond any number"),
        ("ranks=٣", "which '٣' is not"),
        ("mode>=ll", "mode is a text"),
        ("node~", "no pattern"),
        ("", "empty pattern"),
        ("  ", "empty pattern"),
        ("x" * 2000, "longer than any value"),
        ("mode=\0", "NUL"),
        ("ranks=" + ",".join("1" * (MOST_ALTERNATIVES + 1)), "alternatives"),
    ],
)
def test_a_mistake_is_a_sentence(text, words):
    with pytest.raises(FilterError, match=re.escape(words)) as error:
        parse_filter(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-20", datetime(2026, 11, 20, tzinfo=UTC)),
        ("2026-11-20T02:00", datetime(2026, 11, 20, 2, tzinfo=UTC)),
        ("2026-11-20 02:00:30+02:00", datetime(2026, 11, 20, 0, 0, 30, tzinfo=UTC)),
        ("36h", NOW - timedelta(hours=36)),
        ("30d", NOW - timedelta(days=30)),
        (" 2 w ", NOW - timedelta(weeks=2)),
        ("0d", NOW),
    ],
)
def test_a_time_is_a_date_a_moment_or_an_age(text, moment):
    assert parse_moment(text, NOW) == moment


@pytest.mark.parametrize("text", ["yesterday", "", "7", "7y", "-7d", "2026-13-01", "999999999d", "99999999999999d"])
def test_no_time_is_a_sentence(text):
    with pytest.raises(FilterError, match="write 2026-11-22"):
        parse_moment(text, NOW)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"since": "7d", "until": "30d"}, "no run starts from"),
        ({"since": "2026-10-01", "until": "2026-10-01"}, "no run starts from"),
        ({"limit": 0}, "at least 1"),
        ({"limit": -3}, "at least 1"),
        ({"at": ""}, "which commit"),
    ],
)
def test_what_can_choose_nothing_is_refused(how, words):
    with pytest.raises(FilterError, match=words):
        Selection.of(**how)


def test_too_many_patterns_and_filters_are_refused():
    with pytest.raises(FilterError, match="too many"):
        Selection.of(*(f"p{number}" for number in range(MOST_ALTERNATIVES + 1)))
    with pytest.raises(FilterError, match="too many"):
        Selection.of(*(f"ranks={number}" for number in range(MOST_ALTERNATIVES + 1)))


def test_as_many_alternatives_as_are_allowed_reach_the_database(history):
    texts = [f"p{number}*" for number in range(MOST_ALTERNATIVES)]
    assert runs(history, Selection.of(*texts, "node~" + ",".join(texts), "night!=" + ",".join(texts))) == []


def test_an_empty_history_has_no_run_that_matches_anything(history):
    assert trend(history, Selection.of("mode=ll", "node!=x", "night=", "ranks<5", since="7d")) == []


# A history with everything that could be taken for something else: quotes, %, _, brackets, capitals, other alphabets.
HOSTS = (
    "gpu01",
    "gpu02",
    "GPU03",
    "it's",
    "100%",
    "a_b",
    "axb",
    "[gpu]",
    "straße",
    "STRASSE",
    "ÄRGER",
    "ärger",
    "n*de",
    "\\",
)
NIGHTS = ("", "n1", "N1", "n_2", "nx2", "50%", "50 %", 'say "so"')


ODD_PLATFORM = Platform(device_model="Some GPU_1 100%", devices_per_node=4, interconnect="NVLink", cluster="Cluster-Ä")


@pytest.fixture
def varied(history, spool):
    """Twenty-eight runs, each of which differs from the next in most fields."""
    for number in range(28):
        record = ok_record(
            case=Case(
                backend=("ep_core", "torch", "nccl.ep")[number % 3],
                mode="ll",
                ranks=(1, 2, 4, 16)[number % 4],
                tokens=32 + number % 5,
                hidden=256,
                topk=2,
                experts=16,
                seed=number % 2,
            ),
            started=START + timedelta(hours=number),
            night=NIGHTS[number % len(NIGHTS)],
            repeat=number % 3,
            hostname=HOSTS[number % len(HOSTS)],
            env=environment(commit=f"{number % 5:x}bc" * 13),
            platform=PLATFORM if number % 2 else ODD_PLATFORM,
            seed=number,
            iters=3,
        )
        records.write(record, spool)
    assert len(collect(history, spool).accepted) == 28
    return history


FIELDS = st.sampled_from(sorted(KINDS))
PATTERNS = ("gpu0*", "gpu0?", "g*", "*", "?", "??", "*%", "*gpu_1*", "*/r2*", "r4n1/t3?", "ep*")
TEXTS = ("_", "%", "[", "torch", "NCCL.EP", "ll", "0bc", "3BC", "cluster-Ä", "CLUSTER-ä", "nvlink", "local", "ok", "16")
WORDS = st.sampled_from([*HOSTS, *NIGHTS, *PATTERNS, *TEXTS])
NUMBERS = st.integers(-2, 40)


@st.composite
def written_filters(draw):
    """A filter as a person writes it, of those that are understood."""
    field = draw(FIELDS)
    if KINDS[field] == "number":
        operator = draw(st.sampled_from([one for one in OPERATORS if one != "~"]))
        several = operator in ("=", "!=")
        values = [str(draw(NUMBERS)) for _ in range(draw(st.integers(1, 3)) if several else 1)]
    else:
        operator = draw(st.sampled_from(["=", "!=", "~"]))
        values = [draw(WORDS) for _ in range(draw(st.integers(1, 3)))]
        values = [value for value in values if value or operator != "~"] or ["x"]
    space = draw(st.sampled_from(["", " "]))
    return f"{field}{space}{operator}{space}{','.join(values)}"


def lowered(text):
    return "".join(char.lower() if char.isascii() else char for char in text)


def matches(value, pattern):
    """Whether the text fits the pattern, by a walk over both that knows nothing of regular expressions or SQL."""
    if not pattern:
        return not value
    if pattern[0] == "*":
        return matches(value, pattern[1:]) or (bool(value) and matches(value[1:], pattern))
    return bool(value) and pattern[0] in ("?", value[0]) and matches(value[1:], pattern[1:])


def predicate(text, run):
    """What the documents say of a filter, in Python. `run` has a list of values for each field."""
    field, operator, wanted = re.fullmatch(r"(\w+) ?(!=|>=|<=|=|~|>|<) ?(.*)", text, re.DOTALL).groups()
    values = run[field]
    if KINDS[field] == "number":
        (value,) = values
        numbers = [int(number) for number in wanted.split(",")]
        if operator in ("=", "!="):
            return (value in numbers) == (operator == "=")
        (number,) = numbers
        return {">=": value >= number, "<=": value <= number, ">": value > number, "<": value < number}[operator]

    def fits(value, one):
        one, value = lowered(one.strip()), lowered(value)
        if "*" in one or "?" in one:
            return matches(value, one)
        if operator == "~":
            return one in value
        return value.startswith(one) if KINDS[field] == "head" and one else value == one

    return any(fits(value, one) for value in values for one in wanted.split(",")) == (operator != "!=")


def everything(history):
    """Every run by its id, with what it has in each field."""
    from regress_db.details import load_detail
    from regress_db.lookup import run

    found = {}
    with history.read() as connection:
        for line in runs(history):
            detail = load_detail(connection, run(connection, line.run_id)[0])
            case = Case.parse(line.case)
            platform = PLATFORM if line.platform == PLATFORM.key else ODD_PLATFORM
            found[line.run_id] = {
                **{name: [getattr(case, name)] for name in Case.__struct_fields__},
                **{name: [getattr(platform, name)] for name in Platform.__struct_fields__},
                "case": [line.case],
                "platform": [line.platform],
                "node": list(line.hosts),
                "night": [line.night],
                "plan": [""],
                "commit": [line.commit],
                "environment": [detail.environment_digest],
                "run": [line.run_id],
                "repeat": [detail.repeat],
                "outcome": [line.outcome],
            }
    return found


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(texts=st.lists(written_filters(), min_size=1, max_size=3))
def test_the_database_chooses_what_a_plain_predicate_chooses(varied, texts):
    known = everything_once(varied)
    chosen = {line.run_id for line in runs(varied, Selection.of(*texts))}
    assert chosen == {run_id for run_id, run in known.items() if all(predicate(text, run) for text in texts)}
    for text in texts:
        parsed = parse_filter(text)
        if parsed.field not in ("node",):
            assert {run_id for run_id, run in known.items() if parsed.accepts(run[parsed.field][0])} == {
                run_id for run_id, run in known.items() if predicate(text, run)
            }


_KNOWN = {}


def everything_once(history):
    """`everything` of this history, gathered at its first example."""
    if history.where not in _KNOWN:
        _KNOWN[history.where] = everything(history)
    return _KNOWN[history.where]


def test_the_names_of_hosts_are_text_and_not_patterns_of_the_database(varied):
    def hosts(text):
        return sorted({host for line in runs(varied, Selection.of(text)) for host in line.hosts})

    assert hosts("node=100%") == ["100%"]
    assert hosts("node=a_b") == ["a_b"]
    assert hosts("node=a?b") == ["a_b", "axb"]
    assert hosts("node~[") == ["[gpu]"]
    assert hosts("node=\\") == ["\\"]
    assert hosts("node=GPU0*") == ["GPU03", "gpu01", "gpu02"]
    assert hosts("node=ärger") == ["ärger"]
    assert hosts("node~'") == ["it's"]


def test_a_case_key_can_be_given_whole(varied):
    key = runs(varied)[0].case
    assert {line.case for line in runs(varied, Selection.of(key))} == {key}
    assert trend(varied, Selection.of(CASE.key)) == []
