"""The page's own files, read from the package when they are first needed: scripts, style sheets, the icon.

A fixed table of names, so that no name from an address ever reaches the file system. Used by `regress_db.web.app`,
which sends them, and by `regress_db.web.pages`, which puts them into a report.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib.resources import files

import msgspec

STYLES = ("uPlot.min.css", "epwatch.css")
SCRIPTS = ("uPlot.iife.min.js", "chart.js", "views.js", "page.js")
"""What every page loads, in this order. Scripts are classic ones, loaded at the end of the page."""

_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_FOLDERS = ("static", "static/vendor")


class Asset(msgspec.Struct, frozen=True):
    """One file: its name in the address, its content, its media type."""

    name: str
    content: bytes
    media_type: str

    @property
    def text(self) -> str:
        """The content of a script or a style sheet."""
        return self.content.decode()

    @property
    def hash(self) -> str:
        """As a Content-Security-Policy names what it allows."""
        return f"sha256-{base64.b64encode(hashlib.sha256(self.content).digest()).decode()}"

    @property
    def tag(self) -> str:
        """Its entity tag."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:20]}"'


@functools.cache
def assets() -> dict[str, Asset]:
    """Every file by its name."""
    found: dict[str, Asset] = {}
    for folder in _FOLDERS:
        for one in files("regress_db.web").joinpath(folder).iterdir():
            media_type = _TYPES.get(one.name.rpartition(".")[2])
            if media_type and one.is_file():
                found[one.name] = Asset(one.name, one.read_bytes(), media_type)
    return found
