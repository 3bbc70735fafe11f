"""A judged night as JUnit XML, as CI systems read it. Called by `jobs.tell`; pure.

One test case for each series: its name is the phase, its class the case's key. A regression is a failure, what gave no
valid result is an error; nothing is ever marked as skipped, since a skip reads as a pass.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from regress_db.nightverdict import NO_NUMBER, SeriesVerdict

if TYPE_CHECKING:
    from junitparser import TestCase

    from jobs.judging import Judged

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(plan: str, judged: Judged) -> str:
    """The XML document. A regression that is waived passes, as it does in the exit code."""
    from junitparser import JUnitXml, TestSuite

    verdict = judged.verdict
    suite = TestSuite(_legal(plan))
    suite.timestamp = verdict.judged_at.isoformat(timespec="seconds")
    for name, value in (("night", verdict.night), ("plan", plan), ("baseline", verdict.baseline or "")):
        suite.add_property(name, _legal(value))
    platforms = Counter((one.case, one.phase) for one in verdict.series)
    for one in verdict.series:
        suite.add_testcase(_test_case(one, alone=platforms[one.case, one.phase] == 1))
    if not verdict.series:
        suite.add_testcase(_nothing(plan, verdict.headline))
    document = JUnitXml("epwatch")
    document.add_testsuite(suite)
    document.update_statistics()
    return str(document.tostring().decode())


def _test_case(one: SeriesVerdict, *, alone: bool) -> TestCase:
    """alone: whether no other platform has this case and phase."""
    from junitparser import Error, Failure, TestCase

    case = TestCase(one.phase if alone else f"{one.phase} [{_legal(one.platform_key)}]", _legal(one.case), 0.0)
    sentence = _legal(one.sentence)
    if one.verdict == "regressed" and not one.waiver:
        case.result = [Failure(sentence, one.verdict)]
    elif one.verdict in NO_NUMBER:
        case.result = [Error(sentence, one.verdict)]
    elif one.verdict != "unchanged":
        case.system_out = sentence
    if one.warnings:
        case.system_err = _legal("\n".join(one.warnings))
    return case


def _nothing(plan: str, headline: str) -> TestCase:
    """What stands for a night without a series, which is no pass."""
    from junitparser import Error, TestCase

    case = TestCase("night", _legal(plan), 0.0)
    case.result = [Error(_legal(headline), "missing")]
    return case


def _legal(words: str) -> str:
    """The text without what XML cannot hold."""
    return _NOT_XML.sub("�", words)
