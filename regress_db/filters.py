"""The filter language: what a person writes to choose runs, as values. `docs/queries.md` tells the grammar to users.

    argument = filter | pattern            any text with an operator in it is a filter
    filter   = field operator value {"," value}
    operator = "=" | "!=" | "~" | ">=" | "<=" | ">" | "<"
    pattern  = text on the case's key      the same as the filter case~text

`=` wants the whole text, in which `*` is any text and `?` any character; `~` the same, but without a `*` or `?` the
text may stand anywhere. Hashes (`commit`, `environment`, `run`) are named by their heads. Commas separate alternatives,
`!=` refuses all of them. Numbers compare as numbers. Capital letters of ASCII are small ones.

Pure, and loads nothing heavy. Called by `regress_db.selection`, which is the next to read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import ge, gt, le, lt
from typing import Literal, get_args

from harness.case import Case
from regress_db.errors import FilterError

Operator = Literal["!=", ">=", "<=", "=", "~", ">", "<"]
Kind = Literal["number", "text", "head"]

OPERATORS: tuple[Operator, ...] = get_args(Operator)
ORDERS: Mapping[str, Callable[[int, int], bool]] = {">=": ge, "<=": le, ">": gt, "<": lt}

CASE_FIELDS: tuple[str, ...] = Case.__struct_fields__

KINDS: Mapping[str, Kind] = {
    "case": "text",
    **{name: "number" if Case.__annotations__[name] == "int" else "text" for name in CASE_FIELDS},
    "platform": "text",
    "device_model": "text",
    "devices_per_node": "number",
    "interconnect": "text",
    "cluster": "text",
    "node": "text",
    "night": "text",
    "plan": "text",
    "commit": "head",
    "environment": "head",
    "run": "head",
    "repeat": "number",
    "outcome": "text",
}
"""Every field there is: `number`, `text`, or `head` (a hash, of which the first digits will do).

`case` is the case's key, `platform` the platform's; `node` is the host name of any rank of the run; `night` and `plan`
are "" for a run that belongs to no night.
"""

OPTIONS: Mapping[str, str] = {
    "phase": "--phase",
    "metric": "--metric",
    "since": "--since",
    "until": "--until",
    "limit": "--limit",
}
"""What someone may take for a field, and how it is said instead."""

MOST_ALTERNATIVES = 400
LONGEST_VALUE = 1000
LONGEST_NUMBER = 18
"""So many digits fit 64 bits, which is what a database compares."""

_NUMBER = re.compile(r"-?[0-9]+")
_OPERATOR = re.compile("|".join(map(re.escape, OPERATORS)))
_AGO = re.compile(r"([0-9]+)\s*([hdw])")
_AGO_UNITS = {"h": "hours", "d": "days", "w": "weeks"}
_SMALL = {capital: capital + 32 for capital in range(ord("A"), ord("Z") + 1)}


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition on one field. values: alternatives, whole numbers for a field of numbers, text for any other."""

    field: str
    operator: Operator
    values: tuple[str | int, ...]

    @property
    def kind(self) -> Kind:
        """What the field holds."""
        return KINDS[self.field]

    def accepts(self, value: str | int) -> bool:
        """Whether a run whose field has this value is chosen."""
        if self.operator in ORDERS:
            return ORDERS[self.operator](int(value), int(self.values[0]))
        if self.kind == "number":
            found = value in self.values
        else:
            found = any(_as_regex(self.pattern(str(wanted))).fullmatch(small(str(value))) for wanted in self.values)
        return found != (self.operator == "!=")

    def pattern(self, value: str) -> str:
        """The pattern on the whole of the field's text, in small letters, that an alternative of a text stands for."""
        if has_wildcard(value) or not value:
            return small(value)
        if self.operator == "~":
            return f"*{small(value)}*"
        return small(value) + "*" * (self.kind == "head")


def parse_filter(text: str) -> Filter:
    """The filter, or pattern on the case's key, that one argument is. Raises `FilterError`, saying what is wrong."""
    found = _OPERATOR.search(text)
    if found is None:
        if text in KINDS:
            raise FilterError(
                f"{text!r} is a field: say what it is to be, such as '{text}={_example(text)}'"
                + (f", and quote '{text}>=2': the shell takes < and > for itself" * (KINDS[text] == "number"))
            )
        if not text.strip():
            raise FilterError("an empty pattern chooses nothing: leave it out, or write one")
        return Filter("case", "~", (_checked(text.strip(), text),))
    field, operator = text[: found.start()].strip(), next(one for one in OPERATORS if one == found[0])
    if field not in KINDS:
        raise FilterError(_no_such_field(field))
    written = [_checked(value.strip(), text) for value in text[found.end() :].split(",")]
    if len(written) > MOST_ALTERNATIVES:
        raise FilterError(f"{field} has {len(written)} alternatives; at most {MOST_ALTERNATIVES} can be asked for")
    if KINDS[field] == "number":
        if operator in ORDERS and len(written) > 1:
            raise FilterError(f"{field}{operator} compares with one number, not with {','.join(written)}")
        return Filter(field, operator, tuple(_number(field, operator, value) for value in written))
    if operator in ORDERS:
        raise FilterError(f"{field} is a text, and {operator} compares numbers: use = != or ~ (a pattern)")
    if operator == "~" and "" in written:
        raise FilterError(f"{text!r} says no pattern: write something after the ~")
    return Filter(field, operator, tuple(written))


def is_pattern(text: str) -> bool:
    """Whether an argument is a pattern on the case's key, and no filter."""
    return _OPERATOR.search(text) is None


def parse_moment(text: str, now: datetime | None = None) -> datetime:
    """The aware time of a date or time (UTC unless it has a zone), or of an age: `36h`, `7d`, `2w`.

    now: what an age is counted from, default the present. Raises `FilterError`.
    """
    wanted = "write 2026-11-22, 2026-11-22T02:00 or an age: 36h, 7d, 2w"
    try:
        if ago := _AGO.fullmatch(text.strip()):
            return (now or datetime.now(UTC)) - timedelta(**{_AGO_UNITS[ago[2]]: int(ago[1])})
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:
        raise FilterError(f"{text!r} is before all calendars: {wanted}") from None
    except ValueError:
        raise FilterError(f"{text!r} is no time: {wanted}") from None


def small(text: str) -> str:
    """`text` with ASCII's capitals as small letters and all others as they are: what both databases' `lower` does."""
    return text.translate(_SMALL)


def has_wildcard(text: str) -> bool:
    """Whether the text is a pattern."""
    return "*" in text or "?" in text


def _as_regex(pattern: str) -> re.Pattern[str]:
    parts = {"*": ".*", "?": "."}
    return re.compile("".join(parts.get(char) or re.escape(char) for char in pattern), re.DOTALL)


def _checked(value: str, text: str) -> str:
    if len(value) > LONGEST_VALUE:
        raise FilterError(f"{text[:40]!r}... is longer than any value in a history ({LONGEST_VALUE} characters)")
    if "\0" in value:
        raise FilterError(f"{text!r} has a NUL in it, which no value in a history has")
    return value


def _number(field: str, operator: Operator, value: str) -> int:
    if operator == "~":
        raise FilterError(f"{field} is a number, and ~ matches texts: use = != >= <= > or <")
    if not _NUMBER.fullmatch(value):
        raise FilterError(f"{field} is a number, which {value!r} is not: write {field}=2,4 or '{field}>=2'")
    if len(value.lstrip("-0")) > LONGEST_NUMBER:
        raise FilterError(f"{field}{operator}{value[:40]} is beyond any number in a history")
    return int(value)


def _no_such_field(name: str) -> str:
    if name in OPTIONS:
        return f"{name} is no field but an option: {OPTIONS[name]}"
    import difflib

    near = difflib.get_close_matches(name.lower(), KINDS, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]}? There" if near else "there"
    return f"there is no field {name[:40]!r}: {guess} are {', '.join(KINDS)}"


def _example(field: str) -> str:
    return {"number": "2,4", "text": "...", "head": "3f2a9c"}[KINDS[field]]
