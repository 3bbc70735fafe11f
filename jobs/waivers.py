"""The file of waivers: TOML, reviewed like code, read into `regress_db.waivers.Waiver`. Torch-free.

    [[waiver]]
    case = "ep_core/ll/*"          # a case's key, or a pattern: * is any text
    phase = "combine"              # left out: both
    platform = "*"                 # left out: all
    up_to = 0.15                   # the largest slowing it covers
    until = 2026-12-31             # the last day it holds; every waiver ends
    who = "ada"
    why = "driver 580.2 is slower; 580.3 is announced"

Called by `jobs.judging` and `epwatch plan check`; every mistake is an error that names the file, the line and the
field.
"""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path

import msgspec

from harness.case import Phase
from harness.errors import EpwatchError
from jobs.plan import Plan
from jobs.toml_lines import line_of, shown
from jobs.toml_words import misfit
from regress_db.waivers import Waiver


class WaiverError(EpwatchError):
    """A file of waivers that cannot be read or does not make sense."""


class _Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    case: str
    up_to: float
    until: datetime.date
    who: str
    why: str
    phase: Phase | None = None
    platform: str = "*"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    waiver: list[_Written] = []


def of_plan(plan: Plan) -> tuple[Waiver, ...]:
    """The waivers of the plan, none where it has no file of them. Raises `PlanError` for one that cannot be used."""
    if plan.waivers_file is None:
        return ()
    try:
        return load(plan.waivers_file)
    except WaiverError as error:
        raise plan.mistake("verdict.waivers", str(error)) from None


def load(path: Path) -> tuple[Waiver, ...]:
    """The waivers in the file, in its order. Raises `WaiverError`."""
    try:
        source = path.read_text(encoding="utf-8")
        document = tomllib.loads(source)
    except OSError as error:
        raise WaiverError(f"cannot read the waivers {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WaiverError(f"the waivers {path} are not valid TOML: {error}") from None
    try:
        written = msgspec.convert(document, _File)
    except msgspec.ValidationError as error:
        raise _mistake(path, source, *misfit(error, document, _File)) from None
    for position, one in enumerate(written.waiver):
        for field in ("case", "who", "why"):
            if not getattr(one, field).strip():
                raise _mistake(path, source, f"waiver[{position}].{field}", "is empty")
        if not 0 < one.up_to <= 10:
            raise _mistake(
                path, source, f"waiver[{position}].up_to", f"is {one.up_to}, wanted a slowing above 0 and at most 10"
            )
    return tuple(
        Waiver(one.case, one.phase, one.platform, one.up_to, one.until, one.who, one.why) for one in written.waiver
    )


def _mistake(path: Path, source: str, field: str, what: str) -> WaiverError:
    line = line_of(source, field)
    return WaiverError(f"waivers {path}{f', line {line}' if line else ''}: {shown(field)}: {what}")
