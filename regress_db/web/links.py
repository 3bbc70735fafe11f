"""Where pages are: one function for each, so that a page of the server and a report's single file link alike.

Templates write `links.run(run_id)` and nothing else. Links of the server are relative: the page works below any
address. Pure. Used by `regress_db.web.pages`, `regress_db.web.report` and `regress_db.web.feeds`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote, urlencode

from harness.case import Phase
from regress_db.web.views.shared import SeriesName

_SERIES = re.compile(r"(?P<case>.+)\|(?P<phase>dispatch|combine)\|(?P<platform>.*)", re.DOTALL)


def series_text(name: SeriesName) -> str:
    """A series as the address has it: `case|phase|platform`."""
    return f"{name.case}|{name.phase}|{name.platform}"


def series_of(text: str) -> SeriesName | None:
    """The series that `series_text` made a text of; None for what is none."""
    found = _SERIES.fullmatch(text)
    if found is None:
        return None
    phase: Phase = "dispatch" if found["phase"] == "dispatch" else "combine"
    return SeriesName(case=found["case"], phase=phase, platform=found["platform"])


class Links:
    """Links of the server's pages. Each returns an address that a template may put into `href`, "" where none leads.

    root: what leads from the page to `/` ("../" for one below it). here: the page's own path and query from there,
    without what says the format.
    """

    def __init__(self, root: str = "", here: str = "", query: str = "") -> None:
        self.root = root
        self._here = here
        self._query = query

    def home(self) -> str:
        """The newest judged night."""
        return self.root or "./"

    def nights(self) -> str:
        """The list of nights."""
        return f"{self.root}nights"

    def night(self, night: str) -> str:
        """A night by its id."""
        return f"{self.root}nights/{quote(night, safe='')}"

    def run(self, run_id: str) -> str:
        """A run by its id."""
        return f"{self.root}runs/{quote(run_id, safe='')}"

    def series(self, *names: SeriesName, **options: str) -> str:
        """Series through time, overlaid. options: `metric`, `by`, `since`, `until`, `log`; an empty one is left out."""
        query = [("s", series_text(name)) for name in names]
        query += [(name, value) for name, value in options.items() if value]
        return f"{self.root}series{'?' if query else ''}{urlencode(query)}"

    def one_series(self, case: str, phase: str, platform: str, **options: str) -> str:
        """One series through time, as a template has its name."""
        found = series_of(f"{case}|{phase}|{platform}")
        return "" if found is None else self.series(found, **options)

    def compare(self, first: str = "", second: str = "", **options: str) -> str:
        """Two sides, as `epwatch compare` names them."""
        query = [(name, value) for name, value in {"a": first, "b": second, **options}.items() if value]
        return f"{self.root}compare{'?' if query else ''}{urlencode(query)}"

    def backends(self, case: str = "") -> str:
        """Backends side by side on a case."""
        return f"{self.root}backends{'?' if case else ''}{urlencode({'case': case} if case else {})}"

    def nodes(self) -> str:
        """Nodes."""
        return f"{self.root}nodes"

    def triage(self) -> str:
        """Triage."""
        return f"{self.root}triage"

    def feed(self) -> str:
        """The Atom feed of regressions."""
        return f"{self.root}atom.xml"

    def interface(self) -> str:
        """The OpenAPI document."""
        return f"{self.root}openapi.json"

    def static(self, name: str) -> str:
        """A file of the page itself: a script, a style sheet."""
        return f"{self.root}static/{quote(name, safe='')}"

    def as_format(self, form: str) -> str:
        """This page as `json` or `csv`, with the same query."""
        query = f"?{self._query}" if self._query else ""
        return f"{self.root}{quote(self._here or 'nights/latest')}.{form}{query}"


class ReportLinks(Links):
    """Links within a report: to what is in the file, by the anchors that `anchors` says; nothing else has one.

    anchors: the id of an element by what it is of: ("night", id), ("run", id), ("series", "case|phase|platform"),
    ("nodes", ""), ("triage", "").
    """

    def __init__(self, anchors: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._anchors = {key: f"{key[0]}-{place}" for place, key in enumerate(anchors)}

    def anchor(self, kind: str, name: str = "") -> str:
        """The id of the element of this thing, "" where it is not in the file."""
        return self._anchors.get((kind, name), "")

    def _to(self, kind: str, name: str = "") -> str:
        found = self.anchor(kind, name)
        return f"#{found}" if found else ""

    def home(self) -> str:
        """See `Links`."""
        return "#top"

    def nights(self) -> str:
        """See `Links`."""
        return ""

    def night(self, night: str) -> str:
        """See `Links`."""
        return self._to("night", night)

    def run(self, run_id: str) -> str:
        """See `Links`."""
        return self._to("run", run_id)

    def series(self, *names: SeriesName, **options: str) -> str:
        """See `Links`."""
        return self._to("series", series_text(names[0])) if len(names) == 1 else ""

    def compare(self, first: str = "", second: str = "", **options: str) -> str:
        """See `Links`."""
        return ""

    def backends(self, case: str = "") -> str:
        """See `Links`."""
        return ""

    def nodes(self) -> str:
        """See `Links`."""
        return self._to("nodes")

    def triage(self) -> str:
        """See `Links`."""
        return self._to("triage")

    def feed(self) -> str:
        """See `Links`."""
        return ""

    def interface(self) -> str:
        """See `Links`."""
        return ""

    def static(self, name: str) -> str:
        """See `Links`."""
        return ""

    def as_format(self, form: str) -> str:
        """See `Links`."""
        return ""
