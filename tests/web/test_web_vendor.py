"""What is shipped of others is what they published: the sums of `static/vendor/README.md`."""

import hashlib
import re
from pathlib import Path

import regress_db.web
from regress_db.web.assets import SCRIPTS, STYLES, assets

STATIC = Path(regress_db.web.__file__).parent / "static"
VENDOR = STATIC / "vendor"


def test_every_file_of_others_has_its_sum():
    sums = dict(re.findall(r"`([\w.]+)` \| [\d.]+ \| `([0-9a-f]{64})`", (VENDOR / "README.md").read_text()))
    there = {one.name for one in VENDOR.iterdir()} - {"README.md"}
    assert there == set(sums)
    for name, wanted in sums.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == wanted


def test_what_pages_load_is_there_and_names_no_other_place():
    for name in (*SCRIPTS, *STYLES):
        text = assets()[name].text
        assert "</script" not in text
        assert "</style" not in text
        assert not re.findall(r"(?:import|url\(|src=|fetch\()\s*['\"(]?\s*(?:https?:)?//", text)
