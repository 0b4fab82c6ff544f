"""The demo's data set as a whole: made once, recognised ever after.

Files of one data set:

    images/insta-train/<a>/<b>/<c>.jpg    pictures, in CameraHMR's folder layout
    labels/demo-release.npz               labels as CameraHMR publishes them (see `data.sources.camerahmr`)
    labels/demo-sidecar.parquet           masks, ages, male probabilities (see `data.sources.sidecar`)
    depth/insta-train/<a>/<b>/<c>.npy     disparity, float16, of the picture's size
    truth.npz                             what is true, one row per label row (see `write.TRUTH_COLUMNS`)
    README.md                             what lies where, what is broken and why
    demo.json                             settings and counts; written last, exists = the data set is whole

Equal settings give identical bytes. Knows no pixels; metres, camera frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.axes import HEIGHT_CLASSES
from dto_pipeline.data.files import write_bytes_atomic, write_json_atomic
from dto_pipeline.lab.breakages import BREAKAGES, plan_breakages
from dto_pipeline.lab.clothes import measure_template
from dto_pipeline.lab.crowd import HEIGHT_RANGE
from dto_pipeline.lab.marker import DemoDataError, recognise
from dto_pipeline.lab.people import LABEL_HEIGHT
from dto_pipeline.lab.scenes import build_scene
from dto_pipeline.lab.write import (
    LABELS,
    SIDECAR,
    TRUTH,
    TRUTH_COLUMNS,
    image_name,
    join_rows,
    person_rows,
    write_people,
    write_pixels,
)
from dto_pipeline.models.body import BodyModel

VERSION = 2  # raised whenever equal settings would give other files
MARKER = "demo.json"


@dataclass(frozen=True)
class DemoSettings:
    """All that determines the data set, besides the body model."""

    images: int = 24  # how many, broken ones included
    seed: int = 7
    scale: float = 1.0  # of the pictures, 640 x 480 and alike
    broken: bool = True  # some images are spoilt on purpose, where there are enough


@dataclass(frozen=True)
class DemoData:
    """What was written, or was there already."""

    root: Path
    images: int
    persons: int
    broken: dict[str, str]  # image name -> key of `BREAKAGES`
    created: bool  # False: the folder held this data set already and nothing was written


def build_demo_data(
    root: str | Path,
    body: BodyModel,
    settings: DemoSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DemoData:
    """Write the demo's data set, unless it is there.

    Args:
        root: folder of the data set, made if missing; a half-written data set is completed.
        body: model of all people, `models.body.load_body("demo")` for the stand-in.
        settings: see `DemoSettings`.
        progress: called with (images done, all images).

    Raises:
        DemoDataError: the folder holds a data set of other settings or another body model.
    """
    root, settings = Path(root), settings or DemoSettings()
    identity = {"version": VERSION, **asdict(settings), "body_sha256": body.sha256}
    if there := recognise(root / MARKER, identity):
        return DemoData(root, there["images"], there["persons"], there["broken"], created=False)
    template = measure_template(body)
    broken = plan_breakages(settings.images) if settings.broken else {}
    parts = []
    for number in range(settings.images):
        scene = build_scene(settings.seed, number, body, template, settings.scale)
        write_pixels(root, scene, broken.get(number, ""))
        parts.append(person_rows(scene, broken.get(number, "")))
        if progress is not None:
            progress(number + 1, settings.images)
    people = join_rows(parts)
    write_people(root, people)
    names = {image_name(number): kind for number, kind in broken.items()}
    facts = {**identity, "persons": len(people.age_years), "broken": names}
    write_bytes_atomic(root / "README.md", _readme(facts).encode())
    write_json_atomic(root / MARKER, facts)
    return DemoData(root, settings.images, len(people.age_years), names, created=True)


def read_truth(root: str | Path) -> dict[str, np.ndarray]:
    """`TRUTH_COLUMNS` of a data set, one row per label row.

    Raises:
        DemoDataError: there is no whole data set in this folder.
    """
    path = Path(root) / TRUTH
    if not (Path(root) / MARKER).exists() or not path.exists():
        raise DemoDataError(f"{root} holds no whole demo data set (no {MARKER} or {TRUTH}); write it with `dto demo`")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in TRUTH_COLUMNS}


def _readme(facts: dict[str, Any]) -> str:
    heights = [f"- {HEIGHT_CLASSES[c]}: {low:.2f} .. {high:.2f} m" for c, (low, high) in HEIGHT_RANGE.items()]
    broken = [f"- `{name}`: {kind}, {BREAKAGES[kind]}" for name, kind in facts["broken"].items()]
    columns = [f"- `{name}`: {meaning}" for name, meaning in TRUTH_COLUMNS.items()]
    lines = [
        "# Synthetic crowds with known truth",
        "",
        f"{facts['images']} images, {facts['persons']} people, seed {facts['seed']}, made by `dto demo`.",
        "Nobody here is real: procedural bodies on a ground plane, seen by a pinhole camera. Free to use (Apache-2.0).",
        "",
        "- `images/`: pictures",
        f"- `{LABELS}`: labels in CameraHMR's layout",
        f"- `{SIDECAR}`: masks, ages and male probabilities by label row",
        "- `depth/`: disparity (larger is nearer), one float16 map per picture",
        f"- `{TRUTH}`: what is true, row i = label row i (below)",
        "",
        f"Labels are wrong the way single-person networks are: heights lie around {LABEL_HEIGHT} m whoever it is, and",
        "distances are stretched by the same factor. True heights are uniform, and not the pipeline's priors:",
        "",
        *heights,
        "",
        f"Columns of `{TRUTH}`:",
        "",
        *columns,
        "",
        "Broken on purpose, to show that bad input costs one item:",
        "",
        *(broken or ["- nothing"]),
    ]
    return "\n".join(lines) + "\n"
