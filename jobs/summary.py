"""A judged night in words for those who were not there: a title, a short text, and a Markdown summary. Pure.

Called by `jobs.tell`. Every text that a record, a host or a rank may have written is made harmless here: it neither
breaks a table nor becomes markup. Next to read: `jobs.junit`, the same night for programs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from regress_db.nightverdict import NO_NUMBER, NightVerdict, SeriesVerdict
from regress_db.wording import SIGNS, latency, percent

if TYPE_CHECKING:
    from jobs.judging import Judged
    from regress_db.schedules import AbsentNight

ROWS_SHOWN = 20
SENTENCES_SHOWN = 20
HOSTS_SHOWN = 32
LONGEST_TEXT = 600

_PLAIN = re.compile(r"[\w./@+-]+", re.ASCII)
_MARKUP = str.maketrans(
    {char: f"\\{char}" for char in "`*_[]~$#!"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "\\": "&#92;"}
)
_MENTION = re.compile(r"(?<!\w)@(?=[A-Za-z])|<(?=[@!#])")
_NO_WIDTH = "\u200b"


@dataclass(frozen=True, slots=True)
class NightSummary:
    """A judged night and what belongs to it.

    before: the verdict on the plan's night before it, None where there is none. hosts: on which it was measured.
    report, logs: where they are, None for none. absent: the plan's nights between the one before and it that were to
    happen and did not.
    """

    plan: str
    judged: Judged
    before: NightVerdict | None = None
    hosts: tuple[str, ...] = ()
    report: Path | None = None
    logs: Path | None = None
    absent: tuple[AbsentNight, ...] = ()


def recovered(summary: NightSummary) -> tuple[SeriesVerdict, ...]:
    """The series that had regressed or had no valid result the night before and are well now."""
    if summary.before is None:
        return ()
    ill = {_key(one) for one in summary.before.series if _is_ill(one)}
    return tuple(
        one
        for one in summary.judged.verdict.series
        if one.verdict in ("unchanged", "improved") and (ill & {_key(one), (one.case, one.phase, "")})
    )


def changed(summary: NightSummary) -> bool:
    """Whether something regressed, improved, recovered or has no valid result, or a night before did not happen."""
    series = summary.judged.verdict.series
    return bool(
        summary.judged.exit_code
        or summary.absent
        or any(_is_ill(one) or one.verdict == "improved" for one in series)
        or recovered(summary)
    )


def title(summary: NightSummary) -> str:
    """The subject of a message."""
    return _one_line(f"epwatch: {summary.plan}: {summary.judged.verdict.headline}")


def text(summary: NightSummary) -> str:
    """The message for services that show plain text: what a person wants to know, and where the rest is."""
    lines = [_spoken(summary.judged.summary)]
    lines += _capped([_spoken(sentence) for sentence in summary.judged.told_in_words], SENTENCES_SHOWN)
    lines += _capped([_spoken(sentence) for sentence in _recovery_sentences(summary)], SENTENCES_SHOWN)
    lines += _capped([_spoken(sentence) for sentence in _absence_sentences(summary)], SENTENCES_SHOWN)
    lines += [f"{what}: {_spoken(where)}" for what, where in _places(summary)]
    return "\n".join(lines)


def markdown(summary: NightSummary) -> str:
    """The summary in GitHub-flavoured Markdown."""
    verdict = summary.judged.verdict
    parts = [f"## epwatch: {escaped(summary.plan)}", escaped(summary.judged.summary)]
    rows = _worth_a_look(summary)
    if rows:
        parts.append("\n".join(_table(rows, {_key(one) for one in recovered(summary)})))
    if verdict.findings:
        parts += ["### What moved together", _numbered([finding.sentence for finding in verdict.findings])]
    alone = [one.sentence for one in verdict.series if one.verdict == "regressed" and one.finding is None]
    parts += _section("What got slower by itself", alone)
    parts += _section("No valid result", [one.sentence for one in verdict.series if one.verdict in NO_NUMBER])
    parts += _section("Recovered", _recovery_sentences(summary))
    parts += _section("Nights that did not happen", _absence_sentences(summary))
    parts += _section("Notes", [f"{remark}." for remark in verdict.remarks])
    ends = [f"{what}: {escaped(where)}" for what, where in _places(summary)]
    if ends:
        parts.append("  \n".join(ends))
    return "\n\n".join(parts) + "\n"


def escaped(words: object) -> str:
    """Text from outside, inert in GitHub-flavoured Markdown, in HTML and in a cell of a table."""
    return _one_line(str(words)).translate(_MARKUP)


def _key(one: SeriesVerdict) -> tuple[str, str, str]:
    return one.case, one.phase, one.platform_key


def _is_ill(one: SeriesVerdict) -> bool:
    """Whether the series regressed, and nothing waives it, or has no valid result."""
    return (one.verdict == "regressed" and not one.waiver) or one.verdict in NO_NUMBER


def _worth_a_look(summary: NightSummary) -> list[SeriesVerdict]:
    """What the table shows, worst first; series of a verdict are in that order already."""
    well = {_key(one) for one in recovered(summary)}
    shown = {"regressed", "improved", *NO_NUMBER} | ({"inconclusive"} if summary.judged.exit_code == 4 else set())
    return [one for one in summary.judged.verdict.series if one.verdict in shown or _key(one) in well]


def _table(rows: Sequence[SeriesVerdict], well: set[tuple[str, str, str]]) -> Iterator[str]:
    yield "| verdict | case | phase | platform | change | latency | before | finding |"
    yield "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |"
    for one in rows[:ROWS_SHOWN]:
        verdict = f"{SIGNS[one.verdict]} {one.verdict}"
        if _key(one) in well:
            verdict += ", recovered"
        cells = (
            f"{verdict}, {one.passes_as}" if one.passes_as else verdict,
            _code(one.case),
            one.phase,
            _code(one.platform_key),
            "" if one.effect is None else percent(one.effect),
            "" if one.latency_us is None else latency(one.latency_us),
            "" if one.baseline_latency_us is None else latency(one.baseline_latency_us),
            "" if one.finding is None else str(one.finding),
        )
        yield f"| {' | '.join(cells)} |"
    if len(rows) > ROWS_SHOWN:
        yield f"\nand {len(rows) - ROWS_SHOWN} more"


def _recovery_sentences(summary: NightSummary) -> list[str]:
    if summary.before is None:
        return []
    before = {_key(one): one.verdict for one in summary.before.series}
    return [
        f"{one.phase} of {one.case} recovered: it was "
        f"{before.get(_key(one)) or before[one.case, one.phase, '']} in night {summary.before.night}."
        for one in recovered(summary)
    ]


def _absence_sentences(summary: NightSummary) -> list[str]:
    return [f"{one.sentence}." for one in summary.absent]


def _places(summary: NightSummary) -> Iterator[tuple[str, str]]:
    if summary.hosts:
        yield "measured on", ", ".join(_capped(summary.hosts, HOSTS_SHOWN))
    if summary.report is not None:
        yield "report", str(summary.report)
    if summary.logs is not None and summary.judged.told_in_words:
        yield "logs", str(summary.logs)


def _section(heading: str, sentences: Sequence[str]) -> list[str]:
    """A heading and a list, nothing where the list is empty."""
    if not sentences:
        return []
    return [f"### {heading}", "\n".join(f"- {line}" for line in _capped(map(escaped, sentences), SENTENCES_SHOWN))]


def _numbered(sentences: Iterable[str]) -> str:
    lines = [f"{number}. {escaped(sentence)}" for number, sentence in enumerate(sentences, start=1)]
    return "\n".join(_capped(lines, SENTENCES_SHOWN))


def _capped(lines: Iterable[str], most: int) -> list[str]:
    """At most so many lines, and one that says how many are left out."""
    every = list(lines)
    return every if len(every) <= most else [*every[:most], f"and {len(every) - most} more"]


def _code(words: str) -> str:
    """A key in a code span, which shows nothing but itself; escaped where it holds more than keys do."""
    return f"`{words}`" if _PLAIN.fullmatch(words) else escaped(words)


def _spoken(words: str) -> str:
    """Text from outside in one line of plain text, that calls nobody: neither `@everyone` nor `<!channel>`."""
    return _MENTION.sub(lambda found: found[0] + _NO_WIDTH, _one_line(words))


def _one_line(words: str) -> str:
    """Text in one line of bounded length, without characters that cannot be seen."""
    line = "".join(char if char.isprintable() else " " for char in words)
    line = re.sub(r" +", " ", line).strip()
    return line if len(line) <= LONGEST_TEXT else f"{line[:LONGEST_TEXT]}…"
