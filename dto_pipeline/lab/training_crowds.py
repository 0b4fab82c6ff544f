"""Crowds to train on: small pictures in the public formats, nothing broken, the truth beside them.

Files as in `demo.dataset`; `crowds.json` is written last, exists = the set is whole. Equal settings give identical
bytes. Metres, camera frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from dto_pipeline.data.files import write_json_atomic
from dto_pipeline.lab.clothes import measure_template
from dto_pipeline.lab.marker import recognise
from dto_pipeline.lab.scenes import build_scene
from dto_pipeline.lab.write import join_rows, person_rows, write_people, write_pixels
from dto_pipeline.models.body import BodyModel

MARKER = "crowds.json"


@dataclass(frozen=True)
class CrowdSettings:
    """All that determines a set, besides the body model."""

    images: int
    seed: int
    scale: float = 0.4  # of the demo's pictures: 256 x 192 instead of 640 x 480


def build_crowds(
    root: Path, body: BodyModel, settings: CrowdSettings, progress: Callable[[int, int], None] | None = None
) -> bool:
    """Write a set, unless it is there.

    Args:
        root: its folder, made if missing.
        body: model of all people.
        settings: see there.
        progress: called with (images done, all images).

    Returns:
        True if it was written, False if it was there.

    Raises:
        DemoDataError: the folder holds a set of other settings or of another body model.
    """
    identity = {**asdict(settings), "body_sha256": body.sha256}
    if recognise(root / MARKER, identity):
        return False
    template = measure_template(body)
    parts = []
    for number in range(settings.images):
        scene = build_scene(settings.seed, number, body, template, settings.scale)
        write_pixels(root, scene)
        parts.append(person_rows(scene))
        if progress is not None:
            progress(number + 1, settings.images)
    write_people(root, join_rows(parts))
    write_json_atomic(root / MARKER, identity)
    return True
