"""Views laid out as HTML, by the templates in `templates/`. Everything from outside is escaped by them.

What a template may rely on:

- `page.html.j2` is the frame of every page of the server. It includes `parts/<kind>.html.j2`, one for each view's
  `kind` (night, nights, series, run, compare, backends, nodes, triage, error), which gets `view`.
- `report.html.j2` is the frame of a report's single file; it includes the same parts, one after another, with `view`
  set to each of them, and gets `report` (`regress_db.web.report.Report`) and `links.anchor(kind, name)`.
- Both get `kind`, `title`, `links` (`regress_db.web.links`; an empty address means: write the text without a link),
  `styles` and `scripts` (`regress_db.web.assets.Asset`: on the server `links.static(one.name)` leads to it, in a report
  `one.text` is put into the page), `single_file` (whether this is a report), `policy` (a report's
  Content-Security-Policy, for a meta tag), `made_at`.
- `data(view)` is the view's JSON, safe within `<script type="application/json">`, for scripts.
- Filters: percent, size, latency, moment, number, figure, duration, breakable, and those of `regress_db.web.shown`.
  Functions: interval, signs[verdict], and those of `regress_db.web.shown`.

Called by `regress_db.web.app` and `regress_db.web.report`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from markupsafe import Markup

from regress_db.web import shown
from regress_db.web.assets import SCRIPTS, STYLES, assets
from regress_db.web.links import Links
from regress_db.web.views.shared import Answer
from regress_db.wording import SIGNS, interval, latency, percent, size

if TYPE_CHECKING:
    from jinja2 import Environment

_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def kind_of(view: Answer) -> str:
    """The view's `kind`, as in its JSON."""
    return str(type(view).__struct_config__.tag)


def page(view: Answer, links: Links, *, title: str) -> str:
    """A page of the server."""
    return _render("page.html.j2", {"view": view, "kind": kind_of(view), "title": title, "links": links})


def report_page(report: msgspec.Struct, links: Links, *, title: str) -> str:
    """A report's single file."""
    hashes = {kind: " ".join(f"'{assets()[name].hash}'" for name in names) for kind, names in _LOADED.items()}
    policy = (
        f"default-src 'none'; script-src {hashes['scripts']}; style-src {hashes['styles']}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    context = {"report": report, "kind": "report", "title": title, "links": links, "policy": policy}
    return _render("report.html.j2", {**context, "single_file": True})


_LOADED = {"scripts": SCRIPTS, "styles": STYLES}


def _render(template: str, context: Mapping[str, Any]) -> str:
    loaded = {kind: [assets()[name] for name in names] for kind, names in _LOADED.items()}
    shared = {"single_file": False, "policy": "", "made_at": datetime.now(UTC), **loaded}
    return _environment().get_template(template).render({**shared, **context})


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("regress_db.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "size": size,
        "latency": latency,
        "moment": moment,
        "number": number,
        "figure": figure,
        "duration": duration,
        "breakable": breakable,
        **shown.FILTERS,
    }
    environment.globals |= {"signs": SIGNS, "interval": interval, "data": data, **shown.FUNCTIONS}
    return environment


def data(view: msgspec.Struct) -> Markup:
    """The JSON, with what could end a script element written otherwise."""
    text = msgspec.json.encode(view).decode()
    for unsafe, safe in _UNSAFE.items():
        text = text.replace(unsafe, safe)
    return Markup(text)


def moment(moment: datetime | None) -> str:
    """A time in UTC, to the minute."""
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def number(value: float | None) -> str:
    """Four significant digits, never in powers of ten for what a person reads."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def figure(value: float | None, unit: str) -> str:
    """A value with its unit: a latency in the unit that suits it, bytes with thin spaces between the thousands."""
    if value is None:
        return "–"
    if unit == "µs":
        return latency(value)
    if unit == "B":
        return f"{value:,.0f}".replace(",", "\u202f") + " B"
    return f"{number(value)} {unit}".rstrip()


def duration(seconds: float | None) -> str:
    """`2 min 05 s`, `1 h 07 min`; nothing for one that is not known."""
    if seconds is None or seconds < 0:
        return ""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {whole % 60:02} s" if minutes else f"{whole} s"


def breakable(key: str) -> Markup:
    """A case's key that may be broken after each `/`."""
    return Markup("/<wbr>").join(key.split("/"))
