"""The demo's scenes once more, for what their files do not say: the true z of every pixel.

Rebuilds bodies and pictures from the data set's own seed; writes true depth maps in the layout of the demo's `depth`
folder, and measures a depth network on the pictures as they lie on disk. Broken images are left out. Metres.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dto_pipeline.data.images import read_image
from dto_pipeline.evaluate.placements import MEASURES
from dto_pipeline.evaluate.tables import align
from dto_pipeline.lab.clothes import measure_template
from dto_pipeline.lab.dataset import MARKER
from dto_pipeline.lab.depth_quality import TrueDepth, depth_quality
from dto_pipeline.lab.scenes import build_picture
from dto_pipeline.lab.score import DemoScore
from dto_pipeline.lab.write import image_name, write_map
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.depth_anything import DepthNetwork
from dto_pipeline.models.depth_kinds import METRES_PER_DEPTH

_AT_ONCE = 8  # pictures given to the network together


@dataclass(frozen=True)
class TrueScene:
    """One unbroken image of the demo."""

    name: str  # of the image, relative to the images folder
    z: np.ndarray  # (H, W) float32 [m]
    person: np.ndarray  # (H, W) int64 index of the person seen, -1 = nobody


def build_true_scenes(data: Path, body: BodyModel) -> Iterator[TrueScene]:
    """The unbroken images of the demo's data set in a folder (0.35 s each on one core)."""
    facts = json.loads((data / MARKER).read_text())
    template = measure_template(body)
    for number in range(facts["images"]):
        if image_name(number) not in facts["broken"]:
            picture = build_picture(facts["seed"], number, body, template)
            yield TrueScene(image_name(number), picture.z, picture.person)


def write_true_depth(folder: Path, scene: TrueScene) -> None:
    """Write one true map as disparity, float32, named as in the demo's depth folder."""
    write_map(folder, scene.name, (METRES_PER_DEPTH / scene.z).astype(np.float32))


def measure_on_demo(network: DepthNetwork, images: Path, scenes: list[TrueScene]) -> dict[str, float]:
    """`depth_quality` of a network on the demo's pictures, none of which it was trained on."""
    pictures = []
    for start in range(0, len(scenes), _AT_ONCE):
        part = scenes[start : start + _AT_ONCE]
        found = network.estimate([read_image(images / scene.name).rgb for scene in part])
        for scene, disparity in zip(part, found, strict=True):
            if not isinstance(disparity, np.ndarray):
                raise disparity
            pictures.append(TrueDepth(disparity, scene.z, scene.person))
    return depth_quality(pictures)


def side_by_side(network: DemoScore, truth: DemoScore) -> str:
    """Label accuracy with the network's depth and with the true depth, as plain text."""
    selection = "all people"
    labels, *solvers = network.comparison[selection]
    given = network.comparison[selection][labels]
    depths = {"network": network.comparison[selection], "true depth": truth.comparison[selection]}
    columns = [given, *(found[name] for found in depths.values() for name in solvers)]
    head = ["given", *(f"{name}, {depth}" for depth in depths for name in solvers)]
    rows = [[title, *(f"{errors[key]:.3f}" for errors in columns)] for key, title in MEASURES.items()]
    return "\n".join(align([[f"{selection} of unbroken images ({given['persons']:.0f})", *head], *rows]))
