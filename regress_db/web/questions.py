"""What an address may ask: the parameters of each page, as they are documented and as they are read.

Pure. One description serves both: `regress_db.web.routes` states it, `regress_db.web.openapi` documents it, and `read`
refuses what does not fit in one sentence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from harness.errors import EpwatchError
from regress_db.filters import parse_moment

LONGEST_TEXT = 2000
MOST_TIMES = 400


class QuestionError(EpwatchError):
    """An address asks for what cannot be understood."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter. values: what it may be, where that is a choice; least, most: of a number.

    repeated: it may stand in the address several times. where: in the query, or in the path.
    """

    name: str
    words: str
    kind: Literal["text", "number", "moment", "flag"] = "text"
    values: tuple[str, ...] = ()
    repeated: bool = False
    least: int = 1
    most: int = 1
    where: Literal["query", "path"] = "query"

    @property
    def schema(self) -> dict[str, Any]:
        """Its JSON Schema. A choice may be left empty, as a form sends it."""
        one: dict[str, Any] = {"type": "string", "maxLength": LONGEST_TEXT}
        if self.kind == "number":
            one = {"type": "integer", "minimum": self.least, "maximum": self.most}
        elif self.kind == "flag":
            one = {"type": "string", "enum": ["", "0", "1"]}
        elif self.values:
            one = {"type": "string", "enum": ["", *self.values]}
        return {"type": "array", "items": one, "maxItems": MOST_TIMES} if self.repeated else one


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked, by parameter; empty values are as good as absent."""

    asked: dict[str, list[str]]

    def texts(self, name: str) -> list[str]:
        """Every value of a parameter."""
        return self.asked.get(name, [])

    def text(self, name: str, default: str = "") -> str:
        """The value of a parameter that is given once."""
        return next(iter(self.texts(name)), default)

    def number(self, name: str, default: int) -> int:
        """A number."""
        return int(self.text(name, str(default)))

    def flag(self, name: str) -> bool:
        """Whether it is set."""
        return self.text(name) == "1"

    def moment(self, name: str) -> datetime | None:
        """A time, as `epwatch trend --since` takes it."""
        return parse_moment(self.text(name)) if self.text(name) else None


def read(parameters: Sequence[Parameter], given: Iterable[tuple[str, str]]) -> Question:
    """The question. Raises `QuestionError` for a parameter that is unknown, given too often, or out of its values."""
    known = {one.name: one for one in parameters}
    asked: dict[str, list[str]] = defaultdict(list)
    for name, value in given:
        if name not in known:
            names = ", ".join(known) or "none"
            raise QuestionError(f"there is no parameter {name[:40]!r} here; there are: {names}")
        if value:
            asked[name].append(_checked(known[name], value))
    for name, values in asked.items():
        if len(values) > (MOST_TIMES if known[name].repeated else 1):
            raise QuestionError(f"{name} is given {len(values)} times: give it {_how_often(known[name])}")
    return Question(dict(asked))


def _how_often(parameter: Parameter) -> str:
    return f"at most {MOST_TIMES} times" if parameter.repeated else "once"


def _checked(parameter: Parameter, value: str) -> str:
    name = parameter.name
    if len(value) > LONGEST_TEXT:
        raise QuestionError(f"{name} is longer than {LONGEST_TEXT} characters")
    if "\0" in value:
        raise QuestionError(f"{name} has a NUL in it, which nothing in a history has")
    choices = ("0", "1") if parameter.kind == "flag" else parameter.values
    if choices and value not in choices:
        raise QuestionError(f"{name} is {value[:40]!r}: there are {', '.join(choices)}")
    if parameter.kind == "number":
        fits = value.isascii() and value.isdigit() and len(value) < 10
        if not fits or not parameter.least <= int(value) <= parameter.most:
            raise QuestionError(f"{name} is {value[:40]!r}: give a number from {parameter.least} to {parameter.most}")
    return value
