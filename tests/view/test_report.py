"""The page of a run: its numbers are the run's, it needs nothing from outside, and browsers show it at any width."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from dto_pipeline.data.label_files import flatten_table
from dto_pipeline.data.labels import read_label_metadata, read_labels
from dto_pipeline.models.body import BodyModel
from dto_pipeline.run.folder import RunDirectory
from dto_pipeline.run.report import read_status
from dto_pipeline.status import ImageStatus
from dto_pipeline.view.report import Histogram, count_labels, prior_curve, write_report
from dto_pipeline.view.run_files import RunFiles, open_pixels, open_run_files
from tests.tiny_dataset import TinyDataset

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def page(run: RunFiles, body: BodyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    return write_report(run, body, open_pixels(run), out, worst=1, random=2)


class Listing(HTMLParser):
    """Tags that are open, and every attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_charts_and_tiles_count_every_image_and_person_once(page: Path, run: RunFiles, tiny: TinyDataset) -> None:
    columns, status = flatten_table(read_labels(*map(run.label_file, run.shards))), read_status(run.directory.root)
    sums = {chart.title: int(chart.counts[-1].sum()) for chart in count_labels(columns, run.identity.config)}
    moved, optimized = status.person_status["moved"], status.image_status["optimized"]
    assert sums["Persons per image"] == tiny.images
    assert sums["Height deviation of optimised images"] == optimized
    assert sums["Scale on distance and height, moved persons"] == moved
    people, measured = (sum(n for title, n in sums.items() if word in title) for word in ("Height,", "Distance,"))
    assert people >= measured >= moved
    text = page.read_text()
    for tile in (f"{optimized} images", f"{moved} persons", "<b>3</b><span>images failed</span>"):
        assert tile in text


def counted(values: Sequence[float], edges: Sequence[float], **further: Any) -> Histogram:
    return Histogram("a <b>", "m", np.array(edges), (np.array(values),), **further)


def test_a_histogram_counts_what_lies_beyond_in_its_outer_bins_and_leaves_out_what_is_no_number() -> None:
    histogram = counted([-5.0, 0.0, 0.99, 1.0, 2.0, 99.0, np.nan, np.inf], [0.0, 1.0, 2.0])
    assert histogram.counts.tolist() == [[3, 3]]


def test_the_highest_bar_is_the_most_counted_bin() -> None:
    svg = counted([0.5, 2.5, 2.6, 2.7, 2.8, 3.1, 3.2], [0, 1, 2, 3, 4]).draw()
    bars = [e.attrib["d"] for e in ElementTree.fromstring(svg).iter() if "opacity: 0.85" in e.get("style", "")]
    y = np.array([float(found) for found in re.findall(r"[ML] \S+ (\S+)", bars[0])])
    heights = np.unique((y.max() - y).round(3))
    assert heights / heights.max() == pytest.approx(np.array([0, 1, 2, 4]) / 4, abs=0.01)


def test_the_same_chart_gives_the_same_text_with_all_its_parts_or_without_a_count() -> None:
    full = counted([0.3, 1.0, 2.0], np.geomspace(0.25, 4, 9).tolist(), mark=1.0, prior=(1.2, 0.1))
    full = dataclasses.replace(full, series=full.series * 2)
    assert full.draw() == full.draw()
    ElementTree.fromstring(full.draw())
    ElementTree.fromstring(counted([], [0, 1, 2]).draw())


def test_a_prior_curve_holds_as_many_people_as_the_bars() -> None:
    edges = np.arange(0.4, 2.2501, 0.05)
    x, y = prior_curve(1.2, 0.1, 40, edges)
    assert np.trapezoid(y, x) / (edges[1] - edges[0]) == pytest.approx(40, rel=1e-3)


def test_the_page_is_whole_and_asks_for_nothing_from_outside(page: Path) -> None:
    text = page.read_text()
    listing = Listing()
    listing.feed(text)
    assert listing.open == []
    links = [value for _, name, value in listing.attributes if name in ("src", "href", "srcset", "action")]
    assert links
    assert all(value.startswith(("data:image/jpeg;base64,", "data:image/svg+xml;base64,")) for value in links)
    assert not any(tag in ("script", "link", "iframe") for tag, _, _ in listing.attributes)
    assert "<script" not in text
    assert not re.search(r"url\(|@import", text)
    assert all(value for tag, name, value in listing.attributes if (tag, name) == ("img", "alt"))


def test_the_page_tells_statuses_with_advice_failures_and_models(page: Path, run: RunFiles) -> None:
    text, footer = page.read_text(), read_label_metadata(run.label_file(0))
    assert ImageStatus.IMAGE_MISSING.advice in text
    assert "tiny/000001.jpg" in text
    assert footer["body_sha256"] in text
    assert "accept_below" in text
    assert footer["coordinates"] in text
    assert read_status(run.directory.root).sanity.lines()[0] in text
    assert text.count('class="scene"') == 3


def test_words_from_data_cannot_become_markup(copy: Path, body: BodyModel, tmp_path: Path) -> None:
    run_file = RunDirectory(copy).at("run.json")
    run_file.write_text(run_file.read_text().replace('"subset": "tiny"', '"subset": "<script>alert(1)</script>"'))
    text = write_report(open_run_files(copy), body, None, tmp_path / "out", 0, 0).read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_a_run_that_has_done_nothing_yet_gets_a_page(copy: Path, body: BodyModel, tmp_path: Path) -> None:
    for path in RunDirectory(copy).at("receipts").iterdir():
        path.unlink()
    text = write_report(open_run_files(copy), body, None, tmp_path / "out").read_text()
    assert "0 of 9 images done" in text


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium (apt-get install chromium)")
@pytest.mark.parametrize("width", [390, 1280])
def test_browsers_show_the_page_without_sideways_scrolling(page: Path, width: int, tmp_path: Path) -> None:
    """The page stands in a frame of the width: what does not fit would make the frame wider than asked."""
    frame = (
        '<body style="margin:0"><style>iframe{border:0}</style>'
        f'<iframe id="f" src="page.html" width="{width}" height="3000"></iframe>'
        "<script>f.onload=()=>{const d=f.contentDocument.documentElement;"
        'document.title=[d.scrollWidth,d.querySelectorAll("img.chart").length,'
        '[...d.querySelectorAll("img")].every(i=>i.naturalWidth>0||i.loading=="lazy")].join(" ")}</script>'
    )
    shutil.copy(page, tmp_path / "page.html")
    (tmp_path / "frame.html").write_text(frame)
    address = (tmp_path / "frame.html").as_uri()
    common = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files"]
    dom = subprocess.run(
        [*common, "--virtual-time-budget=5000", "--dump-dom", address], capture_output=True, timeout=90, check=True
    )
    title = re.search(r"<title>(.*?)</title>", dom.stdout.decode())
    assert title is not None, dom.stderr.decode()[-500:]
    scroll, charts, pictures = title[1].split()
    assert int(scroll) <= width
    assert int(charts) >= 5
    assert pictures == "true"
    shot = tmp_path / "shot.png"
    size = f"--window-size={max(width, 500)},1600"
    subprocess.run([*common, size, f"--screenshot={shot}", address], capture_output=True, timeout=90, check=True)
    pixels = np.asarray(Image.open(shot).convert("L"))[:, :width]
    assert pixels.std() > 5
    assert (pixels < 60).mean() > 0.003  # there is text
