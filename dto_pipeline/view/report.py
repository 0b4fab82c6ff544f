"""`dto report`: a run as one HTML page that needs no network and no script; report.html is its template.

All columns that are counted are in memory at once: 0.3 kB a person. Metres.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from dto_pipeline.axes import FAR, HEIGHT_CLASSES, NEAR
from dto_pipeline.data.files import write_bytes_atomic
from dto_pipeline.data.label_files import EXPECTED_ERROR, Z_SIGMA, LabelColumns, flatten_table
from dto_pipeline.data.labels import read_label_metadata, read_labels
from dto_pipeline.models.body import BodyModel
from dto_pipeline.run.report import read_status
from dto_pipeline.status import PLACED, ImageStatus
from dto_pipeline.terminal import printable
from dto_pipeline.view.drawing import MUTED, RULE
from dto_pipeline.view.pages import draw_scene
from dto_pipeline.view.run_files import Pixels, RunFiles, choose_scenes, load_placed

FILE_NAME = "index.html"
_PEOPLE = (
    *("height_class", "height_init_m", "height_m", "scale", "transl", "transl_init", "depth_group", "status"),
    Z_SIGMA,
)
_IMAGES = (
    *("image_id", "status", "message", "is_optimized", "is_accepted", "mean_height_deviation", "num_persons"),
    EXPECTED_ERROR,
)
_FAILURES_SHOWN = 20
LIMITS = (0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5)  # of error and sigma that the report tries [m]
_FAILED = [str(status) for status in ImageStatus if status.is_failure]
_JPEG_QUALITY = 84
_BEFORE, _AFTER, _WARM = "#9aa3b2", "#2676cc", "#e66126"  # --a, --b, --warm of the page
_LEAST_BINS = 10  # of a histogram that are shown, however empty


@dataclass(frozen=True)
class Histogram:
    """Counts of one series, or of two (before, after), over shared bins; outer bins hold what lies beyond the edges."""

    title: str
    unit: str
    edges: np.ndarray  # (bins + 1,)
    series: tuple[np.ndarray, ...]  # what is counted; only finite values are
    mark: float | None = None  # where a dashed line stands
    prior: tuple[float, float] | None = None  # mean and sigma of a normal law drawn over the bars
    note: str = ""

    @cached_property
    def counts(self) -> np.ndarray:
        """(series, bins) int64."""
        finite = (values[np.isfinite(values)] for values in self.series)
        bins = [np.searchsorted(self.edges, values, side="right") - 1 for values in finite]
        last = len(self.edges) - 2
        return np.array([np.bincount(found.clip(0, last), minlength=last + 1) for found in bins])

    def draw(self) -> str:
        """The chart as the text of an SVG file; letters are drawn as shapes, so they look the same everywhere."""
        figure = Figure(figsize=(3.6, 2.1), dpi=100, layout="constrained")
        axes = figure.add_subplot()
        if len(self.series) == 2:
            axes.stairs(self.counts[0], self.edges, fill=True, color=_BEFORE, alpha=0.25)
            axes.stairs(self.counts[0], self.edges, color=_BEFORE, linewidth=1.6, zorder=3)
        axes.stairs(self.counts[-1], self.edges, fill=True, color=_AFTER, alpha=0.85)
        if self.prior is not None:
            axes.plot(*prior_curve(*self.prior, int(self.counts[-1].sum()), self.edges), color=_WARM, linewidth=1.8)
        if self.mark is not None:
            axes.axvline(self.mark, color=_WARM, linestyle="--", linewidth=1)
        if not np.isclose(*np.diff(self.edges)[[0, -1]]):
            axes.set_xscale("log", base=2)
        used = np.flatnonzero(self.counts.any(axis=0)).max(initial=0)
        last = len(self.edges) - 1 if self.prior else min(max(used + 2, _LEAST_BINS), len(self.edges) - 1)
        axes.set_xlim(self.edges[0], self.edges[last])  # without the empty tail; heights are compared, so they keep it
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(visible=True, axis="y", color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelsize=8, labelcolor=MUTED)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(self.unit, color=MUTED, fontsize=8)
        stream = io.StringIO()
        with mpl.rc_context({"svg.hashsalt": "dto"}):  # the same chart gives the same text
            figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
        return stream.getvalue()


def prior_curve(mean: float, sigma: float, people: int, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A height prior in persons per bin: x [m] and y, for as many people as the histogram counts."""
    x = np.linspace(edges[0], edges[-1], 120)
    density = np.exp(-0.5 * ((x - mean) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    return x, density * people * float(edges[1] - edges[0])


def count_labels(columns: LabelColumns, config: Mapping[str, Any]) -> list[Histogram]:
    """Heights by class, scales and deviations of fits, crowds, distances by group; those that counted something."""
    images, people = columns.images, columns.people
    heights, metres = np.arange(0.4, 2.2501, 0.05), np.arange(0, 40.1, 1.0)
    charts = []
    for name, mean, sigma in zip(HEIGHT_CLASSES, config["prior"]["mean"], config["prior"]["sigma"], strict=True):
        own = people["height_class"] == name
        title, both = f"Height, {name.replace('_', ' ')}", (people["height_init_m"][own], people["height_m"][own])
        note = f", prior {mean:.2f} \u00b1 {sigma:.2f} m"
        charts.append(Histogram(title, "height [m]", heights, both, prior=(mean, sigma), note=note))
    scale = people["scale"][np.isin(people["status"], PLACED)]
    title, note = "Scale on distance and height, moved persons", ", dashed: unchanged"
    charts.append(Histogram(title, "factor", np.geomspace(0.25, 4, 41), (scale,), 1.0, note=note))
    deviation, below = images["mean_height_deviation"][images["is_optimized"]], float(config["refine"]["accept_below"])
    title, note = "Height deviation of optimised images", f", accepted below {below:g}"
    charts.append(Histogram(title, "sigma", np.arange(0, 4.01, 0.1), (deviation,), below, note=note))
    crowds = images["num_persons"].astype(np.float64)
    charts.append(Histogram("Persons per image", "persons", np.arange(0, 31.1, 1.0) - 0.5, (crowds,)))
    for name, group in (("near", NEAR), ("far", FAR)):
        own = people["depth_group"] == group
        z = people["transl_init"][own, 2], people["transl"][own, 2]
        charts.append(Histogram(f"Distance, {name} group", "z [m]", metres, z))
    return [chart for chart in charts if chart.counts[-1].any()]


def write_report(
    run: RunFiles,
    body: BodyModel | None,
    pixels: Pixels | None,
    out: Path,
    worst: int = 3,
    random: int = 3,
    seed: int = 0,
) -> Path:
    """Write the page.

    Args:
        run: the run, finished or not.
        body: the model its labels were made with; None = no scene is drawn.
        pixels: where photographs and depth maps are; None = grey pictures.
        out: folder of the page, made if missing; an older page is replaced.
        worst, random: how many scenes of largest deviation, and at random with this seed, are shown.

    Raises:
        LabelsError: a label file is damaged; `dto verify` names all of them.
    """
    status, files = read_status(run.directory.root), [run.label_file(shard) for shard in run.shards]
    columns = flatten_table(read_labels(*files, columns=_IMAGES, people=_PEOPLE))
    footer = read_label_metadata(files[0]) if files else {}
    images, count = columns.images, columns.num_images
    optimized, accepted = (int(images[name].sum()) for name in ("is_optimized", "is_accepted"))
    moved = int(np.isin(columns.people["status"], PLACED).sum())
    failed = np.flatnonzero(np.isin(images["status"], _FAILED))
    tiles = [
        (f"{status.images_done:,}", "images", f"of {status.images_total:,}"),
        (f"{status.persons_done:,}", "persons", f"of {status.persons_total:,}"),
        (_share(optimized, count), "optimised", f"{optimized:,} images"),
        (_share(accepted, count), "accepted", f"{accepted:,} images"),
        (_share(moved, columns.num_people), "persons moved", f"{moved:,} persons"),
        (f"{failed.size:,}", "images failed", "rows kept, labels as given"),
        (f"{status.images_per_s:.1f}", "images a second", "last hour of work, all workers"),
    ]
    done = "all" if status.images_done == status.images_total else f"{status.images_done} of"
    whole = sum(status.stage_seconds.values())
    stages = [f"{name} {seconds:.1f} s ({_share(seconds, whole)})" for name, seconds in status.stage_seconds.items()]
    charts = [
        (chart.title, f"{chart.counts[-1].sum():,} counted{chart.note}", _inline("svg+xml", chart.draw().encode()))
        for chart in count_labels(columns, run.identity.config)
    ]
    page = render_page(
        title=f"{run.identity.subset}: {done} {status.images_total} images done",
        tiles=tiles,
        status=f"{status.as_table()}\nstages   {', '.join(stages)}",
        certain=try_limits(columns),
        charts=charts,
        scenes=[] if body is None else list(_scenes(run, body, pixels, worst, random, seed)),
        failures=[
            (images["image_id"][row], images["status"][row], images["message"][row] or "")
            for row in failed[:_FAILURES_SHOWN]
        ],
        failed=failed.size,
        settings=[
            ("run.json", json.dumps(asdict(run.identity), indent=1)),
            ("footer of the label files", "\n".join(f"{name}: {text}" for name, text in sorted(footer.items()))),
        ],
    )
    path = out / FILE_NAME
    write_bytes_atomic(path, page.encode())
    return path


def try_limits(columns: LabelColumns) -> list[list[str]]:
    """What each limit would leave of accepted images and of their people, as lines of a table; [] = nothing."""
    accepted = columns.images["is_accepted"]
    errors, sigmas = columns.images[EXPECTED_ERROR][accepted], columns.people[Z_SIGMA][accepted[columns.owner]]
    left = [(most, int((errors <= most).sum()), int((sigmas <= most).sum())) for most in LIMITS]
    return [
        [f"{most:g} m", f"{n:,}", _share(n, errors.size), f"{m:,}", _share(m, sigmas.size)]
        for most, n, m in left
        if any(left[-1][1:])
    ]


def render_page(**parts: Any) -> str:
    """The document; everything put into it is escaped, control characters and direction marks are written out."""
    folder = files("dto_pipeline.view")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((folder / "report.html").read_text())
    return printable(template.render(style=(folder / "page.css").read_text(), **parts))


def _inline(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _scenes(
    run: RunFiles, body: BodyModel, pixels: Pixels | None, worst: int, random: int, seed: int
) -> Iterator[tuple[str, Sequence[tuple[str, str]]]]:
    """The worst scenes and random ones: a title, image keys and pictures; no scene is shown twice."""
    if not run.shards:
        return
    bad = choose_scenes(run, worst=worst)
    drawn = choose_scenes(run, random=random + len(bad), seed=seed)
    some = [place for place in drawn if place not in bad][:random]
    for title, places in (("Optimised images of largest deviation", bad), (f"Random images (seed {seed})", some)):
        pictures = []
        for placed in load_placed(run, places, pixels):
            stream = io.BytesIO()
            draw_scene({"after": placed}, body).save(stream, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
            pictures.append((placed.scene.image_id, _inline("jpeg", stream.getvalue())))
        if pictures:
            yield title, pictures


def _share(part: float, whole: float) -> str:
    """``12.3 %``; a dash where there is nothing to share."""
    return f"{100 * part / whole:.1f} %" if whole else "-"
