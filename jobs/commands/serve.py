"""`epwatch serve`: the history as a web page."""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
from pathlib import Path

import click

from harness.errors import EpwatchError
from jobs.options import history_option
from jobs.places import open_history
from jobs.tables import say

_NEEDED = ("starlette", "uvicorn", "prometheus_client")
_SHORTEST_TOKEN = 16
_WAIT_FOR_ANSWERS_S = 3


class ServeError(EpwatchError):
    """The page cannot be served."""


@click.command()
@history_option
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=8642, show_default=True, help="0: any that is free.")
@click.option(
    "--allow-host",
    "names",
    multiple=True,
    metavar="NAME",
    help="Answer for this host name too, as a proxy in front passes it on; repeat for more. On loopback only its own "
    "names are answered for, elsewhere all.",
)
@click.option("--allow-triage", is_flag=True, help="Take acknowledgements from whoever has the token.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where the token stands; without, a new one is made and printed.",
)
def serve(
    db: str | None, host: str, port: int, names: tuple[str, ...], allow_triage: bool, token_file: Path | None
) -> None:
    """Show the history as a web page: last night, series through time, runs, nodes, triage.

    Nothing can be changed through it but, with --allow-triage, what is acknowledged. Every page is also `.json` and
    `.csv`; /openapi.json tells what they mean.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ServeError(f"epwatch serve needs {', '.join(missing)}, not installed here: pip install 'epwatch[web]'")
    if token_file is not None and not allow_triage:
        raise click.UsageError("--token-file is for --allow-triage: give both")
    import uvicorn

    from regress_db.web.app import create_app
    from regress_db.web.security import LOOPBACK_NAMES, is_loopback

    token = _token(token_file) if allow_triage else None
    with open_history(db) as history, _listen(host, port) as listener:
        local = is_loopback(host)
        hosts = {*LOOPBACK_NAMES, host, *names} if local or names else set()
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{listener.getsockname()[1]}/ shows {history.where}; Ctrl-C ends it")
        if not local:
            say(f"it listens on {host}: whoever reaches this machine can read the history")
        if token is not None and token_file is None:
            say(f"the token for acknowledging: {token}")
        config = uvicorn.Config(
            create_app(history, token=token, hosts=hosts),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=_WAIT_FOR_ANSWERS_S,
        )
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        why = error.strerror if isinstance(error, socket.gaierror) or not error.errno else os.strerror(error.errno)
        raise ServeError(f"cannot listen on {host} port {port}: {why}; choose with --host and --port") from None


def _token(file: Path | None) -> str:
    if file is None:
        return secrets.token_urlsafe(24)
    token = file.read_text(encoding="utf-8").strip()
    if len(token) < _SHORTEST_TOKEN:
        raise ServeError(f"the token in {file} has {len(token)} characters: make it {_SHORTEST_TOKEN} or longer")
    return token
