"""`dto view`: which scenes of a run to look at, and their pages and 3D files.

Joins labels, photographs and depth maps by the manifest's rows; a photograph or map that cannot be read costs only its
part of the page. Knows no drawing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dto_pipeline.data.files import write_bytes_atomic
from dto_pipeline.data.label_files import read_label_files
from dto_pipeline.data.labels import LabelsError, placed_scenes
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import ImageStatus, UnusableImage
from dto_pipeline.view.gltf import scene_to_glb
from dto_pipeline.view.panel import save_png
from dto_pipeline.view.run_files import Pixels, RunFiles
from dto_pipeline.view.scene_panel import scene_panel

_LIGHT = ("image_id", "image_path", "status", "is_optimized", "mean_height_deviation", "num_persons")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*(/[A-Za-z0-9_][A-Za-z0-9_.]*)*\.jpg")  # "-" stands for "/" only
_LONGEST = 150  # letters: file systems take 255 bytes, endings included
_DIGITS = 12  # of a sha256: among a million keys two are equal with a chance of 1 in 500
Place = tuple[int, int]  # shard, row


@dataclass(frozen=True)
class Choice:
    """Which scenes are wanted; what is given adds up."""

    keys: Sequence[str] = ()  # image keys, paths, or the ends of them
    worst: int = 0  # optimised scenes of largest deviation
    random: int = 0
    seed: int = 0  # of the random choice
    status: Sequence[str] = ()  # image statuses; narrows worst and random, alone it takes all


def choose_scenes(run: RunFiles, choice: Choice) -> list[Place]:
    """Find scenes without reading their people.

    Raises:
        LabelsError: a key that no finished shard holds, an unknown status, or nothing to choose from.
    """
    if unknown := sorted(set(choice.status) - {str(status) for status in ImageStatus}):
        raise LabelsError(f"unknown status {unknown}; statuses are {[str(status) for status in ImageStatus]}")
    if not run.shards:
        raise LabelsError(f"{run.directory.root} has no finished shard yet; `dto status` tells how far it is")
    table = read_label_files([run.label_file(shard) for shard in run.shards], _LIGHT)
    columns = {name: table.column(name).to_numpy() for name in _LIGHT}
    places = [(shard, row) for shard in run.shards for row in range(run.scan.done[shard].rows)]
    allowed = np.isin(columns["status"], list(choice.status)) if choice.status else np.ones(len(places), bool)
    chosen = [_find_key(columns, key) for key in choice.keys]
    chosen += _worst(columns, allowed, choice.worst)
    if choice.random:
        rest = np.setdiff1d(np.flatnonzero(allowed), chosen)
        draw = np.random.default_rng(choice.seed).permutation(rest)[: choice.random]
        chosen += draw.tolist()
    if choice.status and not (choice.keys or choice.worst or choice.random):
        chosen += np.flatnonzero(allowed).tolist()
    return [places[index] for index in dict.fromkeys(chosen)]


def load_placed(run: RunFiles, places: Sequence[Place], pixels: Pixels | None) -> Iterator[PlacedScene]:
    """The chosen scenes, in order, with photograph and depth map where they can be read."""
    for shard, row in places:
        (placed,) = placed_scenes(run.read_shard(shard).slice(row, 1))
        if pixels is not None and run.manifest is not None:
            (files,) = run.manifest.read_shard(shard).select(["image_file", "depth_file"]).slice(row, 1).to_pylist()
            _fill(placed, pixels, files["image_file"], files["depth_file"])
        yield placed


def write_pictures(scenes: Iterator[PlacedScene], body: BodyModel, out: Path, glb: bool = False) -> Iterator[Path]:
    """Write one page per scene, and with `glb` a 3D file beside it; gives each file as it is written."""
    for placed in scenes:
        name = file_name(placed.scene.image_id)
        save_png(scene_panel(placed, body), out / f"{name}.png")
        yield out / f"{name}.png"
        if glb:
            write_bytes_atomic(out / f"{name}.glb", scene_to_glb(placed, body))
            yield out / f"{name}.glb"


def file_name(image_id: str) -> str:
    """An image key as a file name, another one for every key: ``coco/a/b.jpg`` -> ``coco-a-b``.

    Where letters are lost on the way, or might be another key's, the first digits of the key's sha256 follow.
    """
    if _PLAIN_KEY.fullmatch(image_id) and len(image_id) <= _LONGEST:
        return image_id.removesuffix(".jpg").replace("/", "-")
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", re.sub(r"\.[A-Za-z0-9]{1,5}$", "", image_id)).strip(".-")
    digits = hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    return f"{stem[:_LONGEST] or 'scene'}~{digits}"


def _worst(columns: dict[str, np.ndarray], allowed: np.ndarray, count: int) -> list[int]:
    deviation = np.where(columns["is_optimized"] & allowed, columns["mean_height_deviation"], -1.0)
    order = np.argsort(-deviation, kind="stable")[:count]
    return order[deviation[order] >= 0].tolist()


def _find_key(columns: dict[str, np.ndarray], key: str) -> int:
    """The image of this key; else the only one whose key ends with it."""
    ids = columns["image_id"]
    exact = np.flatnonzero((ids == key) | (columns["image_path"] == key))
    found = exact if exact.size else np.flatnonzero([image.endswith("/" + key) for image in ids])
    if found.size == 0:
        raise LabelsError(f"no finished shard holds the image {key!r}; keys look like {ids[0]!r}")
    if found.size > 1:
        raise LabelsError(f"{found.size} images are called {key!r}, for example {ids[found[:2]].tolist()}; give more")
    return int(found[0])


def _fill(placed: PlacedScene, pixels: Pixels, image_file: str, depth_file: str | None) -> None:
    """Add photograph and depth map; a reason why not goes where the page shows it."""
    scene = placed.scene
    try:
        scene.image = pixels.images.read(image_file).rgb
        scene.height, scene.width = scene.image.shape[:2]
    except UnusableImage as error:
        placed.message = placed.message or str(error)
        return
    if pixels.depth is None:
        return
    try:
        scene.disparity = pixels.depth.load(depth_file, scene.height, scene.width, float(scene.intrinsics[0, 0]))
    except UnusableImage:
        scene.disparity = None  # the page has no depth map then; the scene's own status tells of it
