"""`dto report`: a run as one HTML page that needs no network and no script.

What labels say is counted shard by shard, so that memory does not grow with the run; report.html says how the page
looks. Metres, sigma, seconds.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

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
from dto_pipeline.reading import parse_json
from dto_pipeline.run.report import RunStatus, format_duration, read_status
from dto_pipeline.run.sanity import Sanity
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import PLACED, ImageStatus, PersonStatus
from dto_pipeline.terminal import printable
from dto_pipeline.view.pages import FROM_ABOVE, person_table, scene_rows, scene_title
from dto_pipeline.view.plots import Chart, Histogram, draw_histogram
from dto_pipeline.view.run_files import Pixels, RunFiles, choose_scenes, load_placed

FILE_NAME = "index.html"
GROUPS = {"near": NEAR, "far": FAR}
_PEOPLE = (
    *("height_class", "height_init_m", "height_m", "scale", "transl", "transl_init", "depth_group", "status"),
    Z_SIGMA,
)
_IMAGES = (
    *("image_id", "subset", "status", "message", "is_optimized", "is_accepted"),
    *("mean_height_deviation", "used_ground_evidence", "num_persons", EXPECTED_ERROR),
)
_FAILURES_SHOWN = 20
LIMITS = (0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5)  # of error and sigma that the report tries [m]
_FAILED = [str(status) for status in ImageStatus if status.is_failure]
_FOOTER_ELSEWHERE = frozenset(  # what a label file's footer says and the page tells elsewhere, or is of one shard only
    (
        *("body_sha256", "config", "config_hash", "dataset", "images", "label_files", "licence"),
        *("manifest_fingerprint", "pipeline_version", "rows_sha256", "schema", "shard", "shard_key", "shards"),
        *("subset", "versions"),
    )
)
_JPEG_QUALITY = 84
Block = dict[str, Any]  # of the page: its kind and what the template shows of it
_BEFORE_AFTER = [("before", "before"), ("after", "after")]  # class of the stylesheet, word; a swatch each


def _two(edges: np.ndarray, names: tuple[str, ...]) -> dict[str, Histogram]:
    return {name: Histogram.empty(edges, 2) for name in names}


@dataclass
class Facts:
    """All numbers of the report. Two series of a histogram are before and after."""

    status: RunStatus
    heights: dict[str, Histogram] = field(default_factory=lambda: _two(np.arange(0.4, 2.2501, 0.05), HEIGHT_CLASSES))
    distances: dict[str, Histogram] = field(default_factory=lambda: _two(np.arange(0, 40.1, 1.0), (*GROUPS,)))
    scales: Histogram = field(default_factory=lambda: Histogram.empty(np.geomspace(0.25, 4, 41)))
    deviations: Histogram = field(default_factory=lambda: Histogram.empty(np.arange(0, 4.01, 0.1)))
    crowds: Histogram = field(default_factory=lambda: Histogram.empty(np.arange(0, 31.1, 1.0) - 0.5))  # persons a scene
    # data set -> images, optimized, accepted and failed ones; persons, those of accepted images and those moved
    subsets: dict[str, Counter[str]] = field(default_factory=dict)
    group_status: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in GROUPS})
    ground_used: int = 0  # images whose near group was placed by ground evidence
    # limit [m] -> accepted images of at most this expected error, and people of accepted images of at most this sigma
    certain: dict[float, tuple[int, int]] = field(default_factory=lambda: dict.fromkeys(LIMITS, (0, 0)))
    failures: list[tuple[str, str, str]] = field(default_factory=list)  # image key, status, message; the first ones
    footer: dict[str, str] = field(default_factory=dict)  # of a label file: versions, models, label files

    @property
    def total(self) -> Counter[str]:
        """All subsets together."""
        return sum(self.subsets.values(), Counter())


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
    accepted = images["is_accepted"].astype(bool)
    of_accepted = accepted[columns.owner]
    for name, histogram in facts.heights.items():
        own = people["height_class"] == name
        histogram.add(people["height_init_m"][own], 0)
        histogram.add(people["height_m"][own], 1)
    for name, group in GROUPS.items():
        own = people["depth_group"] == group
        facts.group_status[name].update(people["status"][own].tolist())
        facts.distances[name].add(people["transl_init"][own, 2], 0)
        facts.distances[name].add(people["transl"][own, 2], 1)
    facts.scales.add(people["scale"][moved])
    facts.deviations.add(images["mean_height_deviation"][images["is_optimized"]])
    facts.crowds.add(images["num_persons"].astype(np.float64))
    facts.ground_used += int((images["used_ground_evidence"] & images["is_optimized"]).sum())
    for most, (count, persons) in facts.certain.items():
        limits = Limits(most, most)
        count += int(limits.images(images[EXPECTED_ERROR][accepted]).sum())
        facts.certain[most] = count, persons + int(limits.people(people[Z_SIGMA][of_accepted]).sum())
    of_image = {"optimized": images["is_optimized"], "accepted": accepted, "failed": failed}
    of_person = {"accepted persons": of_accepted, "moved": moved}
    for name in np.unique(images["subset"]).tolist():
        own, their = images["subset"] == name, images["subset"][columns.owner] == name
        part = facts.subsets.setdefault(name, Counter())
        part.update({"images": int(own.sum()), "persons": int(their.sum())})
        part.update({key: int(values[own].sum()) for key, values in of_image.items()})
        part.update({key: int(values[their].sum()) for key, values in of_person.items()})
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
        pixels: where photographs and depth maps are; None = grey sheets.
        out: folder of the page, made if missing; an older page is replaced.
        worst, random: how many scenes of largest deviation, and drawn by lot with this seed, are shown.
    """
    facts = gather_facts(run)
    status, total = facts.status, facts.total
    sections = [
        _sanity(status.sanity),
        _statuses(facts),
        _subsets(facts),
        _certain(facts),
        _heights(facts, run.identity.config["prior"]),
        _placing(facts, float(run.identity.config["refine"]["accept_below"])),
        _speed(facts, run),
        *(_scenes(run, body, pixels, worst, random, seed) if body is not None else ()),
        _failures(facts),
        _provenance(facts, run),
    ]
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
    title = f"{run.identity.subset}: {done} {status.images_total} images done"
    subtitle = "Labels of crowds in metres (DTO, arXiv 2511.13282). Before: as given; after: as placed together."
    path = out / FILE_NAME
    page = render_page(title, subtitle, tiles, [part for part in sections if part["blocks"]])
    write_bytes_atomic(path, page.encode())
    return path


def render_page(title: str, subtitle: str, tiles: Sequence[tuple[str, str, str]], sections: Sequence[Block]) -> str:
    """The document; everything put into it is escaped, control characters and direction marks are written out."""
    room = files("dto_pipeline.view")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((room / "report.html").read_text())
    style = (room / "page.css").read_text()
    return printable(template.render(title=title, subtitle=subtitle, tiles=tiles, sections=sections, style=style))


def _section(title: str, *blocks: Block, note: str = "") -> Block:
    return {"title": title, "blocks": blocks, "note": note}


def _table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: Sequence[int] = (),
    key: bool = False,
    style: str = "",
) -> Block:
    """A table; on a narrow screen a list of cards, or with style "words" two lines a row.

    numeric: columns that are aligned right; key: the first column is a long key in a fixed-width typeface.
    """
    return {"kind": "table", "columns": columns, "rows": rows, "numeric": numeric, "key": key, "style": style}


def _charts(charts: Sequence[Chart]) -> Block:
    """Charts side by side, as many as fit; each with a line of text below its title."""
    cards = []
    for chart in charts:
        words, source = chart.describe(), _inline("svg+xml", draw_histogram(chart).encode())
        cards.append({"title": chart.title, "note": chart.note or words, "words": words, "source": source})
    return {"kind": "charts", "charts": cards}


def _inline(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _picture(image: Image.Image, caption: str) -> Block:
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
    source = _inline("jpeg", stream.getvalue())
    return {"source": source, "width": image.width, "height": image.height, "caption": caption}


def _sanity(sanity: Sanity) -> Block:
    """What is far from any sound run first, then the figures it was judged by."""
    found = [["wrong", text] for text in sanity.contradictions] + [["look", text] for text in sanity.warnings]
    rows = [[name, value] for name, value in sanity.figures()]
    rows += [["body used", sanity.body], ["depth used", sanity.depth]]
    parts = [_table(["", "what is far from any sound run"], found)] if found else []
    note = "Nothing is far from what sound runs show." if not found else ""
    note = note if sanity.shards else "The receipts are of an older version and have no figures."
    return _section("Does it make sense", *parts, _table(["figure", "value"], rows), note=note)


def _statuses(facts: Facts) -> Block:
    tables = []
    for name, words, counts in (
        ("image status", ImageStatus, facts.status.image_status),
        ("person status", PersonStatus, facts.status.person_status),
    ):
        whole = sum(counts.values())
        advice = {str(word): word.advice for word in words}
        ordered = sorted(counts.items(), key=lambda item: -item[1])
        rows = [
            [_plain(w), f"{n:,}", _share(n, whole), advice.get(w, "written by another version")] for w, n in ordered
        ]
        tables.append(_table([name, "count", "share", "what it means"], rows, numeric=(1, 2), style="words"))
    shards = ", ".join(f"{count} {word}" for word, count in facts.status.shards.items())
    return _section("What became of images and persons", *tables, note=f"Shards: {shards}.")


def _subsets(facts: Facts) -> Block:
    rows = [
        [
            name,
            *(f"{part[key]:,}" for key in ("images", "optimized", "accepted")),
            _share(part["accepted"], part["images"]),
            _share(part["accepted"], part["optimized"]),
            f"{part['failed']:,}",
            f"{part['persons']:,}",
            _share(part["moved"], part["persons"]),
        ]
        for name, part in facts.subsets.items()
    ]
    columns = ["subset", "images", "optimised", "accepted", "of all", "of optimised", "failed", "persons", "moved"]
    return _section("Accepted share by subset", _table(columns, rows, numeric=range(1, len(columns))))


def _certain(facts: Facts) -> Block:
    """What --max-error and --max-z-sigma would leave; nothing where no posterior told any."""
    accepted, people = facts.total["accepted"], facts.total["accepted persons"]
    rows = [
        [f"{most:g} m", f"{images:,}", _share(images, accepted), f"{n:,}", _share(n, people)]
        for most, (images, n) in facts.certain.items()
    ]
    columns = ["limit", "accepted images", "of all accepted", "people of accepted images", "of all these"]
    tables = [_table(columns, rows, numeric=range(1, len(columns)))] if any(map(any, facts.certain.values())) else []
    note = (
        "Images left by --max-error (data.max_error in training), people left by --max-z-sigma (data.max_z_sigma), "
        "each alone. A limit leaves out whatever nobody knows the error of."
    )
    return _section("What limits of the expected error would leave", *tables, note=note)


def _heights(facts: Facts, prior: Mapping[str, Any]) -> Block:
    charts = []
    for (name, histogram), mean, sigma in zip(facts.heights.items(), prior["mean"], prior["sigma"], strict=True):
        people = int(histogram.counts[1].sum())
        if people:
            curve = prior_curve(mean, sigma, people, histogram.edges)
            note = f"{people:,} persons, prior {mean:.2f} \u00b1 {sigma:.2f} m"
            charts.append(Chart(_plain(name), histogram, "height [m]", curve=curve, note=note))
    legend = {"kind": "legend", "names": [*_BEFORE_AFTER, ("prior", "prior of the class")]}
    note = "Rest-pose heights of everybody who was measured. Adults' own priors lie between this one and their label."
    return _section("Heights against the priors", legend, _charts(charts), note=note)


def prior_curve(mean: float, sigma: float, people: int, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bell of a height prior in persons per bin: x [m] and y, for as many people as the histogram counts."""
    x = np.linspace(edges[0], edges[-1], 120)
    density = np.exp(-0.5 * ((x - mean) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    return x, density * people * float(edges[1] - edges[0])


def _placing(facts: Facts, limit: float) -> Block:
    moved, unchanged = ("moved",), (1.0, "unchanged")
    images, accepted = ("images",), (limit, f"accepted below {limit:g}")
    scales = Chart("Scale on distance and height, moved persons", facts.scales, "factor", moved, mark=unchanged)
    charts = [
        replace(scales, logarithmic=True),
        Chart("Height deviation of optimised images", facts.deviations, "sigma", images, mark=accepted).without_tail(),
        Chart("Persons per image", facts.crowds, "persons", images).without_tail(),
    ]
    for name in GROUPS:
        counts = facts.group_status[name]
        moved_people = sum(count for word, count in counts.items() if word in PLACED)
        note = f"{counts.total():,} persons, {_share(moved_people, counts.total())} moved"
        charts.append(Chart(f"Distance, {name} group", facts.distances[name], "z [m]", note=note).without_tail())
    ground = f"{facts.ground_used:,} images had their near group placed by ground evidence."
    legend = {"kind": "legend", "names": _BEFORE_AFTER}
    return _section("Placing", legend, _charts(charts), note=f"{ground} Outer bars hold what lies beyond.")


def _speed(facts: Facts, run: RunFiles) -> Block:
    stages = facts.status.stage_seconds
    whole, longest = sum(stages.values()), max(stages.values(), default=0.0) or 1.0
    bars = []
    for name, seconds in stages.items():
        took = f"{seconds:.2f} s" if seconds < 10 else format_duration(seconds)
        share = f"{100 * seconds / whole:.0f} %" if whole > 0 else "-"
        bars.append((name, f"{100 * seconds / longest:.1f}", f"{took}, {share}"))
    rows = []
    for worker in sorted({receipt.worker for receipt in run.scan.done.values()}):
        own = [receipt for receipt in run.scan.done.values() if receipt.worker == worker]
        images, seconds = sum(receipt.images for receipt in own), sum(receipt.wall_s for receipt in own)
        speed = f"{images / seconds:.1f}" if seconds > 0 else "-"
        repeated = sum(receipt.attempt - 1 for receipt in own)
        rows.append([worker, f"{len(own):,}", f"{images:,}", format_duration(seconds), speed, f"{repeated}"])
    columns = ["worker", "shards", "images", "busy", "images a second", "attempts repeated"]
    note = f"{facts.status.images_per_s:.1f} images a second together. Stages add up the threads of all workers."
    parts = [{"kind": "bars", "bars": bars}, _table(columns, rows, numeric=range(1, len(columns)))]
    return _section("Speed by stage and worker", *parts, note=note)


def _scenes(
    run: RunFiles, body: BodyModel, pixels: Pixels | None, worst: int, random: int, seed: int
) -> Iterator[Block]:
    """A section for the worst scenes and one for scenes drawn by lot; no scene is shown twice."""
    if not run.shards:
        return
    bad = choose_scenes(run, worst=worst)
    drawn = choose_scenes(run, random=random + len(bad), seed=seed)
    some = [place for place in drawn if place not in bad][:random]
    for title, places, note in (
        ("Worst scenes", bad, "Optimised images of largest mean height deviation."),
        ("Random scenes", some, f"Drawn by lot among all images (seed {seed})."),
    ):
        scenes = [_scene(placed, body) for placed in load_placed(run, places, pixels)]
        if scenes:
            yield _section(title, *scenes, note=note)


def _scene(placed: PlacedScene, body: BodyModel) -> Block:
    """The pictures of a page of `dto view`, photographs before views from above, and its table."""
    rows, people = scene_rows(placed, body), person_table(placed)
    above = [row for row in rows if row.note == FROM_ABOVE]
    pictures = [_picture(row.left, row.caption) for row in above]
    pictures += [_picture(row.right, f"{row.caption.split(':')[0]}, {row.note}") for row in above]
    for row in rows[len(above) :]:
        note = row.note[:1].upper() + row.note[1:] or "No fit"
        pictures += [_picture(row.left, row.caption), _picture(row.right, note)]
    listing = _table(["person", *people.columns], [[f"{i}", *line] for i, line in enumerate(people.lines, start=1)])
    return {"kind": "scene", "title": scene_title(placed), "pictures": pictures, "people": listing}


def _failures(facts: Facts) -> Block:
    parts = []
    if facts.failures:
        rows = [[image, _plain(status), message] for image, status, message in facts.failures]
        parts.append(_table(["image", "status", "what was found"], rows, key=True))
    if facts.status.failed:
        lost = [[f"shard {f['shard']}", f"{f['attempts']}", f["error"]] for f in facts.status.failed]
        parts.append(_table(["shard", "attempts", "last error"], lost, numeric=(1,)))
    shown, failed = len(facts.failures), facts.total["failed"]
    note = f"The first {shown} of {failed:,}." if failed > shown else "Their rows are in the labels, as given."
    return _section("Images that could not be processed", *parts, note=note)


def _provenance(facts: Facts, run: RunFiles) -> Block:
    identity, footer = run.identity, facts.footer
    try:  # what the footer says of the files it was made from; none where that cannot be read
        inputs = [(str(item["file"]), str(item["sha256"])) for item in parse_json(footer.get("label_files", "[]"))]
    except (ValueError, TypeError, KeyError):
        inputs = []
    rows = [
        ["config hash", identity.config_hash],
        ["manifest fingerprint", identity.manifest_fingerprint],
        ["body model, sha256", footer.get("body_sha256", "-")],
        ["licence of the labels", footer.get("licence") or "-"],
        ["label schema", footer.get("schema", "-")],
        *([_plain(name), text] for name, text in sorted(footer.items()) if name not in _FOOTER_ELSEWHERE),
        *([f"version of {name}", str(number)] for name, number in sorted(identity.versions.items())),
        *([f"input {file}, sha256", sha256] for file, sha256 in inputs),
    ]
    parts = [_table(["what", "value"], rows)]
    for section, options in identity.config.items():
        text = "\n".join(f"{key}: {json.dumps(value)}" for key, value in options.items())
        parts.append({"kind": "text", "title": f"config section {section}", "text": text})
    return _section("Configuration and models", *parts)


def _share(part: int, whole: int) -> str:
    """``12.3 %``; a dash where there is nothing to share."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _plain(word: str) -> str:
    return word.replace("_", " ")
