"""Telling of a night, to real receivers: who is told what, and that a receiver of any temper fails no night."""

import email
import email.policy
import re
import sys
from datetime import timedelta
from pathlib import Path

import junitparser
import msgspec
import pytest
from epwatch_command import epwatch, sentence
from made_up_verdicts import KEY, finding, night, series
from receivers import mail_server, nobody, silence, web_hook

sys.path.insert(0, str(Path(__file__).parents[1] / "regress_db"))

from nights_of_records import run_night
from synthetic_records import START

from jobs.plan_tell import TellSection, check_tell
from jobs.tell import tell
from regress_db.history import History
from regress_db.nights import hosts_of_night, judged_before
from regress_db.schedules import set_schedule
from regress_db.verdicts import judge_night

SECRET = "s3cr3t-t0k3n"
REGRESSED = night(series("regressed", finding=1, cause="node"), findings=(finding(),))


def told_of(judged, section, tmp_path, urls, **more):
    options = {"report": Path("report.html"), "environ": {"EPWATCH_TELL": urls}, "deadline_s": 30.0}
    return tell("nightly", section, judged, **(options | more))


def test_a_web_hook_gets_title_and_plain_text(tmp_path, capfd):
    with web_hook() as (where, received):
        told = told_of(REGRESSED, TellSection(), tmp_path, f"json://{where}/{SECRET}")
    assert [(one.to, one.why) for one in told] == [("EPWATCH_TELL, URL 1 (JSON)", "")]
    ((path, document),) = received
    assert path == f"/{SECRET}"
    assert document["title"] == "epwatch: nightly: 1 series: 1 regressed."
    assert document["type"] == "failure"
    assert "#1 finding 1" in document["message"].splitlines()
    assert "report: report.html" in document["message"].splitlines()
    assert capfd.readouterr() == ("", "")


def test_mail_gets_the_whole_summary_as_html(tmp_path):
    judged = night(series("failed", sentence="<script>x</script> died", effect=None))
    with mail_server() as (where, envelopes):
        url = f"mailto://{where}?from=watch@example.org&to=ada@example.org&mode=insecure"
        (told,) = told_of(judged, TellSection(), tmp_path, url)
    assert (told.to, told.why) == ("EPWATCH_TELL, URL 1 (E-Mail)", "")
    (envelope,) = envelopes
    assert envelope.rcpt_tos == ["ada@example.org"]
    message = email.message_from_bytes(envelope.content, policy=email.policy.default)
    assert message["Subject"] == "epwatch: nightly: 1 series: 1 failed."
    html = message.get_body(("html",)).get_content()
    assert re.search(r"<td[^>]*>✗ failed</td>", html)
    assert "&lt;script&gt;x&lt;/script&gt; died" in html
    assert "<script>" not in html


def test_slack_shows_names_as_they_are_and_is_not_made_to_call_anybody(tmp_path):
    judged = night(series("failed", sentence=f"dispatch of {KEY} failed: <!channel> *bold*."))
    with web_hook() as (where, received):
        # The library's own URL of Slack goes to Slack alone; Mattermost's hook takes the same kind of document.
        (told,) = told_of(judged, TellSection(), tmp_path, f"mmost://{where}/3ccdd113474722377935511fc85d3dd4")
    assert told.why == ""
    ((_, document),) = received
    assert KEY in document["text"].replace("\\", "")
    assert "<!channel>" not in document["text"]


def test_everybody_is_told_though_some_cannot_be(tmp_path, capfd):
    with web_hook() as (good, received), web_hook(status=500) as (bad, _), silence() as mute:
        urls = (
            f"json://{good}/{SECRET}\n json://user:{SECRET}@{bad}/{SECRET} json://{mute}/{SECRET}\n"
            f"json://{nobody()}/{SECRET} nonsense://{SECRET} {SECRET}"
        )
        told = told_of(REGRESSED, TellSection(), tmp_path, urls)
    assert [one.to for one in told] == [
        *(f"EPWATCH_TELL, URL {position} (JSON)" for position in (1, 2, 3, 4)),
        "EPWATCH_TELL, URL 5",
        "EPWATCH_TELL, URL 6",
    ]
    assert len(received) == 1
    assert [bool(one.why) for one in told] == [False, *[True] * 5]
    assert told[1].why == "it answered with status 500"
    assert "notification library knows" in told[4].why
    printed = capfd.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 5
    assert lines[0] == "epwatch: could not tell EPWATCH_TELL, URL 2 (JSON): it answered with status 500"
    for secret in (SECRET, "127.0.0.1", "json://"):
        assert secret not in printed.err
        assert secret not in repr(told)


@pytest.mark.parametrize("drip", [False, True])
def test_a_service_that_never_ends_is_left_at_the_deadline(drip, tmp_path, capfd):
    with silence(drip=drip) as mute, web_hook() as (good, received):
        urls = f"json://{mute}/?rto=300 json://{good}/"
        told = told_of(REGRESSED, TellSection(), tmp_path, urls, deadline_s=4.0)
    assert [one.why for one in told] == ["it did not answer within 4 s", ""]
    assert len(received) == 1
    assert "URL 1 (JSON): it did not answer within 4 s" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("when", "judged", "expected"),
    [
        ("always", night(series()), True),
        ("on-change", night(series()), False),
        ("on-change", night(series("improved")), True),
        ("on-change", night(series("missing")), True),
        ("on-regression", night(series("improved")), False),
        ("on-regression", night(series("missing")), True),
        ("on-regression", night(series("regressed", waiver="waived")), False),
        ("on-regression", REGRESSED, True),
        ("on-regression", night(series("inconclusive"), strict=True), False),
        ("on-change", night(series("inconclusive"), strict=True), True),
    ],
)
def test_when_a_message_is_sent(when, judged, expected, tmp_path):
    with web_hook() as (where, received):
        told = told_of(judged, TellSection(when=when), tmp_path, f"json://{where}/")
    assert (len(told), len(received)) == (expected, expected)


def test_what_recovered_is_a_change(tmp_path):
    with web_hook() as (where, received):
        told_of(night(series()), TellSection(), tmp_path, f"json://{where}/", before=REGRESSED.verdict)
    ((_, document),) = received
    assert "recovered" in document["message"]
    assert document["type"] == "success"


def test_files_are_written_after_every_night(tmp_path):
    section = TellSection(markdown=f"{tmp_path}/out/{{night}}.md", junit=f"{tmp_path}/{{plan}}.xml")
    told = told_of(night(series(), name="n1"), section, tmp_path, "")
    assert [one.sentence for one in told] == [
        f"wrote {tmp_path}/out/n1.md",
        f"wrote {tmp_path}/nightly.xml",
    ]
    assert (tmp_path / "out" / "n1.md").read_text().startswith("## epwatch: nightly\n\nnight n1 of plan nightly ")
    assert junitparser.JUnitXml.fromfile(str(tmp_path / "nightly.xml")).tests == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["n1.md", "nightly.xml", "out"]


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path, capfd):
    (tmp_path / "file").write_text("in the way")
    (told,) = told_of(night(series()), TellSection(markdown=f"{tmp_path}/file/x.md"), tmp_path, "")
    assert told.why
    assert capfd.readouterr().err.startswith(f"epwatch: could not write {tmp_path}/file/x.md: ")


def test_a_variable_that_only_the_plan_knows_is_missed(tmp_path, capfd):
    (told,) = told_of(REGRESSED, TellSection(to_env=["EPWATCH_TELL", "OPS_TELL"]), tmp_path, "")
    assert told.to == "OPS_TELL"
    assert "is not set" in capfd.readouterr().err
    assert told_of(REGRESSED, TellSection(), tmp_path, "") == []


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"to_env": ["OK", f"slack://{SECRET}"]}, "tell.to_env", "entry 2 is a notification URL"),
        ({"to_env": [f"-{SECRET}"]}, "tell.to_env", "entry 1 is not the name"),
        ({"to_env": ["A", "A"]}, "tell.to_env", "twice"),
        ({"markdown": "{nigth}.md"}, "tell.markdown", "{night} and {plan}"),
        ({"junit": "{"}, "tell.junit", "{night} and {plan}"),
        ({"junit": "{night.x}"}, "tell.junit", "{night} and {plan}"),
        ({"junit": "a", "markdown": "a"}, "tell.junit", "same file"),
    ],
)
def test_a_section_that_cannot_be_is_refused_without_repeating_a_secret(fields, field, words):
    wrong = check_tell(TellSection(**fields))
    assert wrong is not None
    assert wrong[0] == field
    assert words in wrong[1]
    assert SECRET not in wrong[1]


def test_a_section_that_can_be_is_taken():
    assert check_tell(TellSection()) is None
    assert check_tell(TellSection(to_env=[], markdown="{night}/{plan}.md", junit="x.xml")) is None
    with pytest.raises(msgspec.ValidationError, match="`to`"):
        msgspec.convert({"to": "slack://x"}, TellSection)


PLAN = """\
[plan]
name = "nightly"
[cluster]
kind = "local"
[baseline]
policy = "none"
[tell]
when = "on-regression"
markdown = "{night}.md"
[[cases]]
backend = "ep_core"
mode = "ll"
ranks = 2
tokens = 32
hidden = 256
topk = 4
experts = 8
"""


@pytest.fixture
def two_nights(tmp_path):
    """A folder with a plan and a history of two judged nights of it, the second with a run that hung."""
    with History.open(tmp_path / "history.db") as history:
        run_night(history, tmp_path / "spool", "first")
        run_night(history, tmp_path / "spool", "second", bad={1: "hung"}, started=START + timedelta(days=2))
        for name in ("first", "second"):
            judge_night(history, name, baseline=None)
        assert judged_before(history, "second") == "first"
        assert judged_before(history, "first") is None
        assert hosts_of_night(history, "second") == ("node-1",)
    (tmp_path / "plan.toml").write_text(PLAN)
    return tmp_path


def test_a_night_is_told_of_again(two_nights):
    with web_hook() as (where, received):
        done = epwatch(
            *("tell", "latest", "plan.toml", "--db", "history.db"),
            cwd=two_nights,
            EPWATCH_TELL=f"json://{where}/{SECRET}",
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["wrote second.md", "told EPWATCH_TELL, URL 1 (JSON)"]
    assert "2 hung" in received[0][1]["title"]
    assert "measured on: node-1" in (two_nights / "second.md").read_text()


def test_a_night_that_did_not_happen_is_told_of(two_nights):
    with History.open(two_nights / "history.db") as history:
        expected = START + timedelta(hours=12)
        set_schedule(history, "nightly", f"{expected:%H:%M}", "UTC", "ann", when=START + timedelta(hours=1))
    done = epwatch("tell", "latest", "plan.toml", "--db", "history.db", "--dry-run", cwd=two_nights)
    assert done.returncode == 0, done.stderr
    assert f"The night of {expected:%Y-%m-%d %H:%M} UTC did not happen." in done.stdout


def test_a_dry_run_tells_nobody_and_shows_no_address(two_nights):
    with web_hook() as (where, received):
        done = epwatch(
            *("tell", "first", "plan.toml", "--dry-run", "--db", "history.db"),
            cwd=two_nights,
            EPWATCH_TELL=f"json://{where}/{SECRET} {SECRET}",
        )
    assert (done.returncode, done.stderr, received) == (0, "", [])
    assert "epwatch: nightly: 2 series: 2 insufficient." in done.stdout
    assert "would tell EPWATCH_TELL, URL 1 (JSON)" in done.stdout
    assert "would not reach EPWATCH_TELL, URL 2: " in done.stdout
    assert "would write first.md" in done.stdout
    assert SECRET not in done.stdout
    assert not (two_nights / "first.md").exists()


def test_a_telling_that_did_not_arrive_is_no_success(two_nights):
    tell_it = ("tell", "second", "plan.toml", "--db", "history.db")
    done = epwatch(*tell_it, cwd=two_nights, EPWATCH_TELL=f"json://{nobody()}/")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "epwatch: 1 of 2 could not be told"
    (two_nights / "plan.toml").write_text(PLAN.replace('markdown = "{night}.md"', ""))
    assert "nobody to tell: EPWATCH_TELL" in sentence(epwatch(*tell_it, cwd=two_nights))


def test_an_address_in_a_plan_is_refused_and_not_repeated(two_nights):
    (two_nights / "plan.toml").write_text(PLAN.replace("[tell]", f'[tell]\nto_env = ["slack://{SECRET}"]'))
    said = sentence(epwatch("plan", "check", "plan.toml", cwd=two_nights))
    assert "line 8" in said
    assert "tell.to_env: entry 1 is a notification URL" in said
    assert SECRET not in said
