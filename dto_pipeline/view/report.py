"""`dto report`: a run as one HTML page that needs no network and no script.

Labels are counted shard by shard, so that memory does not grow with the run; report.html holds the layout. Metres.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from dto_pipeline.data.label_files import (
    EXPECTED_ERROR,
    Z_SIGMA,
    LabelColumns,
    Limits,
    flatten_table,
)
from dto_pipeline.data.labels import read_label_metadata, read_labels
from dto_pipeline.models.body import BodyModel
from dto_pipeline.run.report import RunStatus, read_status
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


@dataclass
class Histogram:
    """Counts of one series, or of two (before, after), over shared bins; outer bins hold what lies beyond the edges."""

    title: str
    unit: str
    edges: np.ndarray  # (bins + 1,)
    series: int = 1
    counts: np.ndarray = field(init=False)  # (series, bins) int64

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.series, len(self.edges) - 1), dtype=np.int64)

    def add(self, values: np.ndarray, series: int = 0) -> None:
        """Count the values that are finite."""
        bins = np.searchsorted(self.edges, values[np.isfinite(values)], side="right") - 1
        self.counts[series] += np.bincount(bins.clip(0, len(self.edges) - 2), minlength=len(self.edges) - 1)

    def draw(self, mark: float | None = None, prior: tuple[float, float] | None = None) -> str:
        """The chart as the text of an SVG file; letters are drawn as shapes, so they look the same everywhere.

        mark: where a dashed line stands; prior: mean and sigma of a normal law drawn over the bars.
        """
        figure = Figure(figsize=(3.6, 2.1), dpi=100, layout="constrained")
        axes = figure.add_subplot()
        if self.series == 2:
            axes.stairs(self.counts[0], self.edges, fill=True, color=_BEFORE, alpha=0.25)
            axes.stairs(self.counts[0], self.edges, color=_BEFORE, linewidth=1.6, zorder=3)
        axes.stairs(self.counts[-1], self.edges, fill=True, color=_AFTER, alpha=0.85)
        if prior is not None:
            axes.plot(*prior_curve(*prior, int(self.counts[-1].sum()), self.edges), color=_WARM, linewidth=1.8)
        if mark is not None:
            axes.axvline(mark, color=_WARM, linestyle="--", linewidth=1)
        if not np.isclose(*np.diff(self.edges)[[0, -1]]):
            axes.set_xscale("log", base=2)
        used = np.flatnonzero(self.counts.any(axis=0)).max(initial=0)
        last = len(self.edges) - 1 if prior else min(max(used + 2, _LEAST_BINS), len(self.edges) - 1)
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


def _histograms() -> dict[str, Histogram]:
    """Heights by class, the scales and deviations of fits, crowds, distances by group."""
    heights, metres = np.arange(0.4, 2.2501, 0.05), np.arange(0, 40.1, 1.0)
    return {
        **{n: Histogram(f"Height, {n.replace('_', ' ')}", "height [m]", heights, 2) for n in HEIGHT_CLASSES},
        "scale": Histogram("Scale on distance and height, moved persons", "factor", np.geomspace(0.25, 4, 41)),
        "deviation": Histogram("Height deviation of optimised images", "sigma", np.arange(0, 4.01, 0.1)),
        "crowd": Histogram("Persons per image", "persons", np.arange(0, 31.1, 1.0) - 0.5),
        "near": Histogram("Distance, near group", "z [m]", metres, 2),
        "far": Histogram("Distance, far group", "z [m]", metres, 2),
    }


@dataclass
class Facts:
    """All numbers of the report."""

    status: RunStatus
    histograms: dict[str, Histogram] = field(default_factory=_histograms)
    total: Counter[str] = field(default_factory=Counter)  # images, persons, and those of a kind
    # limit [m] -> accepted images of at most this expected error, and people of accepted images of at most this sigma
    certain: dict[float, tuple[int, int]] = field(default_factory=lambda: dict.fromkeys(LIMITS, (0, 0)))
    failures: list[tuple[str, str, str]] = field(default_factory=list)  # image key, status, message; the first ones
    footer: dict[str, str] = field(default_factory=dict)  # of a label file: versions, models, label files


def gather_facts(run: RunFiles) -> Facts:
    """Read every finished shard of a run once.

    Raises:
        LabelsError: a label file is damaged; `dto verify` names all of them.
    """
    facts = Facts(read_status(run.directory.root))
    for shard in run.shards:
        _add_shard(facts, flatten_table(read_labels(run.label_file(shard), columns=_IMAGES, people=_PEOPLE)))
        facts.footer = facts.footer or read_label_metadata(run.label_file(shard))
    return facts


def _add_shard(facts: Facts, columns: LabelColumns) -> None:
    images, people = columns.images, columns.people
    moved, failed = np.isin(people["status"], PLACED), np.isin(images["status"], _FAILED)
    optimized, accepted = (images[name].astype(bool) for name in ("is_optimized", "is_accepted"))
    of_accepted = accepted[columns.owner]
    for name in HEIGHT_CLASSES:
        own = people["height_class"] == name
        facts.histograms[name].add(people["height_init_m"][own], 0)
        facts.histograms[name].add(people["height_m"][own], 1)
    for name, group in (("near", NEAR), ("far", FAR)):
        own = people["depth_group"] == group
        facts.histograms[name].add(people["transl_init"][own, 2], 0)
        facts.histograms[name].add(people["transl"][own, 2], 1)
    facts.histograms["scale"].add(people["scale"][moved])
    facts.histograms["deviation"].add(images["mean_height_deviation"][optimized])
    facts.histograms["crowd"].add(images["num_persons"].astype(np.float64))
    for most, (count, persons) in facts.certain.items():
        limits = Limits(most, most)
        count += int(limits.images(images[EXPECTED_ERROR][accepted]).sum())
        facts.certain[most] = count, persons + int(limits.people(people[Z_SIGMA][of_accepted]).sum())
    facts.total.update({"images": columns.num_images, "persons": columns.num_people})
    kinds = {"optimized": optimized, "accepted": accepted, "failed": failed, "moved": moved}
    facts.total.update({name: int(chosen.sum()) for name, chosen in kinds.items()})
    facts.total["accepted persons"] += int(of_accepted.sum())
    for row in np.flatnonzero(failed)[: _FAILURES_SHOWN - len(facts.failures)]:
        facts.failures.append((images["image_id"][row], images["status"][row], images["message"][row] or ""))


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
    """
    facts = gather_facts(run)
    status, total = facts.status, facts.total
    tiles = [
        (f"{status.images_done:,}", "images", f"of {status.images_total:,}"),
        (f"{status.persons_done:,}", "persons", f"of {status.persons_total:,}"),
        (_share(total["optimized"], total["images"]), "optimised", f"{total['optimized']:,} images"),
        (_share(total["accepted"], total["images"]), "accepted", f"{total['accepted']:,} images"),
        (_share(total["moved"], total["persons"]), "persons moved", f"{total['moved']:,} persons"),
        (f"{total['failed']:,}", "images failed", "rows kept, labels as given"),
        (f"{status.images_per_s:.1f}", "images a second", "last hour of work, all workers"),
    ]
    done = "all" if status.images_done == status.images_total else f"{status.images_done} of"
    whole = sum(status.stage_seconds.values())
    stages = [f"{name} {seconds:.1f} s ({_share(seconds, whole)})" for name, seconds in status.stage_seconds.items()]
    page = render_page(
        title=f"{run.identity.subset}: {done} {status.images_total} images done",
        tiles=tiles,
        status=f"{status.as_table()}\nstages   {', '.join(stages)}",
        certain=[
            [f"{most:g} m", f"{n:,}", _share(n, total["accepted"]), f"{m:,}", _share(m, total["accepted persons"])]
            for most, (n, m) in facts.certain.items()
            if any(map(any, facts.certain.values()))  # some label has an expected error
        ],
        charts=list(_charts(facts, run.identity.config)),
        scenes=[] if body is None else list(_scenes(run, body, pixels, worst, random, seed)),
        failures=facts.failures,
        failed=total["failed"],
        settings=[
            ("run.json", json.dumps(asdict(run.identity), indent=1)),
            ("footer of the label files", "\n".join(f"{name}: {text}" for name, text in sorted(facts.footer.items()))),
        ],
    )
    path = out / FILE_NAME
    write_bytes_atomic(path, page.encode())
    return path


def render_page(**parts: Any) -> str:
    """The document; everything put into it is escaped, control characters and direction marks are written out."""
    folder = files("dto_pipeline.view")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((folder / "report.html").read_text())
    return printable(template.render(style=(folder / "page.css").read_text(), **parts))


def _charts(facts: Facts, config: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Title, a line of text and the picture of every histogram that counted something."""
    priors = dict(zip(HEIGHT_CLASSES, zip(config["prior"]["mean"], config["prior"]["sigma"], strict=True), strict=True))
    marks = {"scale": 1.0, "deviation": float(config["refine"]["accept_below"])}
    notes = {"scale": ", dashed: unchanged", "deviation": f", accepted below {marks['deviation']:g}"}
    for name, histogram in facts.histograms.items():
        count, prior = int(histogram.counts[-1].sum()), priors.get(name)
        if count:
            words = f", prior {prior[0]:.2f} \u00b1 {prior[1]:.2f} m" if prior else notes.get(name, "")
            source = _inline("svg+xml", histogram.draw(marks.get(name), prior).encode())
            yield {"title": histogram.title, "note": f"{count:,} counted{words}", "source": source}


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
