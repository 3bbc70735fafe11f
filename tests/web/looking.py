"""How the tests of the web page look at it: addresses, charts by keyboard and by pointer."""

from __future__ import annotations

from urllib.parse import urlencode

PLATFORM = "alps/Some GPU 3000/x8/nvlink"
"""The rich history's platform."""

_INK = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const seen = new Set();
  for (let place = 0; place < data.length; place += 4) {
    if (data[place + 3]) seen.add(data[place] << 16 | data[place + 1] << 8 | data[place + 2]);
  }
  return seen.size;
}"""


def series(*cases, phase="combine", **options):
    """The address of these series, overlaid."""
    names = [("s", f"{case}|{phase}|{PLATFORM}") for case in cases]
    return f"/series?{urlencode([*names, *options.items()])}"


class Chart:
    """One chart of a page, as somebody with a keyboard and a pointer has it."""

    def __init__(self, figure):
        self.page = figure.page
        self.figure = figure
        self.canvas = figure.locator(".canvas")
        self.tip = figure.locator(".tip")
        figure.scroll_into_view_if_needed()
        figure.locator("canvas").wait_for()

    def colours(self):
        """How many colours are drawn: a chart with nothing on it has a handful."""
        return self.figure.locator("canvas").evaluate(_INK)

    def press(self, *keys):
        """Keys on the focused chart; returns the lines of its hover box."""
        self.canvas.focus()
        for key in keys:
            self.page.keyboard.press(key)
        return self.said()

    def said(self):
        """The lines of the hover box."""
        self.tip.wait_for()
        return self.tip.inner_text().split("\n")

    def chosen(self):
        """Where the chosen point is on the page."""
        box = self.figure.locator(".ring").bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def point_at(self, x, y):
        """Move the pointer there, from elsewhere."""
        self.page.mouse.move(x, y + 60)
        self.page.mouse.move(x, y)
