"""`[tell]` of a plan: when a night is told of, to whom, and in which files. Pure; `jobs.plan` reads it.

Whom to tell is a secret more often than not, since the address of a webhook is its password: a plan names variables of
the environment and holds no address. Next to read: `jobs.tell`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import msgspec

DEFAULT_VARIABLE = "EPWATCH_TELL"

BRACES_WORDS = "may hold {night} and {plan}, and no other braces"

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class TellSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[tell]`: what follows a judged night.

    when: messages are sent after each night (`always`), when something regressed, improved, recovered or has no valid
    result or a night since the last one did not happen (`on-change`), or when something regressed or has no valid
    result (`on-regression`).
    to_env: names of environment variables, each with one or more notification URLs, separated by spaces or lines.
    markdown: path of a Markdown summary; junit: of a JUnit XML file. They are written after every judged night;
    `{night}` and `{plan}` are filled in; "" for none. Relative paths are relative to the working folder.
    """

    when: Literal["always", "on-change", "on-regression"] = "on-change"
    to_env: list[str] = msgspec.field(default_factory=lambda: [DEFAULT_VARIABLE])
    markdown: str = ""
    junit: str = ""


def check_tell(section: TellSection) -> tuple[str, str] | None:
    """The field that cannot be and why, None where all is well. Never repeats what may be a secret."""
    for position, name in enumerate(section.to_env, start=1):
        if "://" in name:
            return "tell.to_env", (
                f"entry {position} is a notification URL, which is a secret: put it into an environment variable and "
                "name that here"
            )
        if not _VARIABLE.fullmatch(name):
            return "tell.to_env", (
                f"entry {position} is not the name of an environment variable: use letters, digits and _"
            )
    if len(set(section.to_env)) != len(section.to_env):
        return "tell.to_env", "names a variable twice"
    for field in ("markdown", "junit"):
        if has_other_braces(getattr(section, field)):
            return f"tell.{field}", BRACES_WORDS
    if section.markdown and section.markdown == section.junit:
        return "tell.junit", "is the same file as tell.markdown"
    return None


def has_other_braces(path: str) -> bool:
    """Whether a path holds braces other than those that are filled in."""
    return bool(re.search(r"[{}]", re.sub(r"\{(night|plan)\}", "", path)))


def filled(path: str, *, night: str, plan: str) -> Path:
    """The path with the night's id and the plan's name filled in."""
    return Path(path.replace("{night}", night).replace("{plan}", plan))
