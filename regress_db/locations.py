"""Where the history and the spool are, decided in one place.

The first of these that says something wins: the command's option, the environment, the plan, a configuration file,
the user's data folder. Imports neither SQLAlchemy nor torch. Called by the command line; next: `regress_db.history`.

The configuration file is `epwatch.toml` in the working folder or the nearest parent that has one, else
`$XDG_CONFIG_HOME/epwatch/config.toml`. Its keys are `history` and `spool`; relative paths are relative to the file.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from regress_db.errors import HistoryError

HISTORY_VARIABLE = "EPWATCH_DB"
SPOOL_VARIABLE = "EPWATCH_SPOOL"
PROJECT_FILE = "epwatch.toml"
_KEYS = frozenset({"history", "spool"})


@dataclass(frozen=True, slots=True)
class Location:
    """A place, and who decided it (for messages): `where` is a path, or for the history a database URL."""

    where: str
    decided_by: str


def default_location(
    option: str | None = None,
    *,
    plan: str | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Location:
    """Where the history is. `option`: of the command line, `plan`: what the plan says, each None where silent.

    Raises `HistoryError` for a configuration file that cannot be read.
    """
    return _locate("history", HISTORY_VARIABLE, "--db", "history.db", option, plan, environ, cwd)


def default_spool(
    option: str | None = None,
    *,
    plan: str | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Location:
    """Where the spool is; same order as `default_location`."""
    return _locate("spool", SPOOL_VARIABLE, "--spool", "spool", option, plan, environ, cwd)


def _locate(
    key: str,
    variable: str,
    option_name: str,
    default: str,
    option: str | None,
    plan: str | None,
    environ: Mapping[str, str] | None,
    cwd: Path | None,
) -> Location:
    environ = os.environ if environ is None else environ
    if option:
        return Location(option, option_name)
    if environ.get(variable):
        return Location(environ[variable], variable)
    if plan:
        return Location(plan, "the plan")
    file = _config_file(Path.cwd() if cwd is None else cwd, environ)
    if file is not None:
        value = _config(file).get(key)
        if value:
            return Location(value if "://" in value else str(file.parent / value), str(file))
    import platformdirs

    return Location(str(Path(platformdirs.user_data_dir("epwatch")) / default), "the default")


def _config_file(cwd: Path, environ: Mapping[str, str]) -> Path | None:
    for folder in (cwd, *cwd.parents):
        if (folder / PROJECT_FILE).is_file():
            return folder / PROJECT_FILE
    base = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".config")
    file = Path(base) / "epwatch" / "config.toml"
    return file if file.is_file() else None


def _config(file: Path) -> dict[str, str]:
    try:
        config = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise HistoryError(f"cannot read {file}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HistoryError(f"{file} is not valid TOML: {error}") from None
    for key, value in config.items():
        if key not in _KEYS:
            raise HistoryError(f"{file}: unknown key {key!r}; wanted {' or '.join(sorted(_KEYS))}")
        if not isinstance(value, str):
            raise HistoryError(f"{file}: {key} must be a string, got {value!r}")
    return config
