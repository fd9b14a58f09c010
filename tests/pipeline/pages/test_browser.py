"""The page in a browser, once for a desk and once for a phone: what sorts, what is too wide, what overlaps."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsfix.pipeline.pages.page import render_report
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig

from .full_report import full_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: the page is not looked at in a browser")

# Frames, because a window of Chromium is never narrower than 500 pixels.
PROBE = """
const areas = (rects) => {
  const found = [];
  for (let i = 0; i < rects.length; i++) for (let j = 0; j < i; j++) {
    const [a, b] = [rects[i].box, rects[j].box];
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1 && high > 1) found.push([rects[i].text, rects[j].text]);
  }
  return found;
};
const look = (frame) => {
  const page = frame.contentDocument, result = { overlapping: [], cut: [], texts: 0, size: 99 };
  result.overflow = page.documentElement.scrollWidth - frame.contentWindow.innerWidth;
  result.width = frame.contentWindow.innerWidth;
  for (const svg of page.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    if (!frame.width) continue;
    const texts = [...svg.querySelectorAll("text")].map((e) => ({ text: e.textContent, box: e.getBoundingClientRect() }));
    result.texts += texts.length;
    result.overlapping.push(...areas(texts));
    for (const { text, box } of texts) {
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1) result.cut.push(text);
      result.size = Math.min(result.size, Math.min(box.height, box.width || 99));
    }
  }
  return result;
};
const sort = (page, id, heading) => {
  const table = page.getElementById(id);
  const heads = [...table.tHead.rows[0].cells];
  const column = heads.findIndex((head) => head.textContent === heading);
  heads[column].querySelector("button").click();
  return { state: heads.map((head) => head.getAttribute("aria-sort")), cells: [...table.tBodies[0].rows].map((row) => row.cells[column].textContent) };
};
onload = () => {
  const result = {};
  for (const frame of document.querySelectorAll("iframe")) result[frame.id] = look(frame);
  const page = document.getElementById("desk").contentDocument;
  result.sorts = SORTS.map(([id, heading]) => sort(page, id, heading));
  const pre = document.createElement("pre");
  pre.textContent = JSON.stringify(result);
  document.body.replaceChildren(pre);
};
"""
SORTS = [
    ("batch-norms", "variance ratio before"),
    ("batch-norms", "variance ratio before"),
    ("batch-norms", "BatchNorm"),
    ("batch-norms", "#"),
    ("benchmark", "SNR"),
    ("benchmark", "SNR"),
]
# What the probe must see: two words on one another, one that leaves its picture, a box wider than the window.
PLANTED = """<div style="width: 3000px">x</div><svg width="90" height="40"><text x="5" y="20">over</text>
<text x="9" y="21">laid</text><text x="70" y="20">leaves it</text></svg>"""


def browse(page: str, folder: Path) -> Mapping[str, Any]:
    """The findings of Chromium on a page at two widths, and on a page with planted mistakes."""
    frames = {"desk": (1280, page), "phone": (400, page), "planted": (400, PLANTED)}
    inside = "".join(
        f'<iframe id="{name}" width="{width}" height="900" style="border: 0" srcdoc="{html.escape(text)}"></iframe>'
        for name, (width, text) in frames.items()
    )
    script = PROBE.replace("SORTS", json.dumps(SORTS))
    (folder / "frames.html").write_text(f'<!doctype html><meta charset="utf-8"><body>{inside}<script>{script}</script>')
    command = [str(BROWSER), *"--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --dump-dom".split()]
    done = subprocess.run(
        [*command, f"--user-data-dir={folder / 'profile'}", (folder / "frames.html").as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found: dict[str, Any] = json.loads(html.unescape(done.stdout.split("<pre>")[1].split("</pre>")[0]))
    return found


@pytest.fixture
def repaired(settled, open_model):
    images = np.random.default_rng(11).normal(0.3, 1.2, (60, 3, 8, 8)).astype(np.float32)
    report = repair_model(settled, [{"x": images}], open_model, RepairConfig(refine=False)).report
    # Ten BatchNorms, so that 10 stands behind 9, and long names.
    outcomes = tuple(
        replace(one, before=replace(one.before, name=f"bn{number}", mismatch=(number * 7) % 11 + 0.5))
        for number, one in enumerate(report.batch_norms * 4)
    )
    unmeasured = replace(outcomes[3], before=replace(outcomes[3].before, mismatch=None))
    outcomes = (*outcomes[:3], unmeasured, *outcomes[4:])
    return replace(report, batch_norms=outcomes, method_reason="w" * 300)


def test_the_page_sorts_and_fits_a_desk_and_a_phone(repaired, tmp_path):
    found = browse(render_report(full_report(repaired)), tmp_path)
    ascending = sorted(f"{(number * 7) % 11 + 0.5:.3f}" for number in range(12) if number != 3)
    ascending.sort(key=float)
    names = [f"bn{number}" for number in range(12)]
    rising, falling, by_name, by_number, snr, snr_down = found["sorts"]
    assert rising["cells"] == [*ascending, "–"]
    assert falling["cells"] == [*reversed(ascending), "–"]
    assert by_name["cells"] == names
    assert by_number["cells"] == [str(number) for number in range(1, 13)]
    assert snr["cells"] == ["65.8 dB", "exact", "–"]
    assert snr_down["cells"] == ["exact", "65.8 dB", "–"]
    assert rising["state"].count("ascending") == falling["state"].count("descending") == 1
    assert set(by_name["state"]) == {"none", "ascending"}
    for name, width in (("desk", 1280), ("phone", 400)):
        seen = found[name]
        assert seen["width"] == width
        assert seen["overflow"] <= 0
        assert seen["overlapping"] == []
        assert seen["cut"] == []
        assert seen["texts"] > 30
        assert seen["size"] >= 7, "letters too small to read"
    planted = found["planted"]
    assert planted["overflow"] > 0
    assert planted["overlapping"] == [["laid", "over"]]
    assert planted["cut"] == ["leaves it"]
