"""`dto view`: which scenes of a run, or of a file of people, to look at, and their pages and 3D files.

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
from dto_pipeline.data.people import People
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import ImageStatus, UnusableImage
from dto_pipeline.view.gltf import scene_to_glb
from dto_pipeline.view.pages import scene_panel
from dto_pipeline.view.panel import save_png
from dto_pipeline.view.run_files import Pixels, RunFiles

_LIGHT = ("image_id", "image_path", "status", "is_optimized", "mean_height_deviation")
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
    names = [columns["image_id"], columns["image_path"]]
    chosen = [_find_key(names, key, "the finished shards hold") for key in choice.keys]
    deviation = np.where(columns["is_optimized"] & allowed, columns["mean_height_deviation"], -1.0)
    worst = np.argsort(-deviation, kind="stable")[: choice.worst]
    chosen += worst[deviation[worst] >= 0].tolist()
    chosen += _draw(np.setdiff1d(np.flatnonzero(allowed), chosen), choice.random, choice.seed)
    if choice.status and not (choice.keys or choice.worst or choice.random):
        chosen += np.flatnonzero(allowed).tolist()
    return [places[index] for index in dict.fromkeys(chosen)]


def choose_images(people: People, keys: Sequence[str], random: int, seed: int) -> list[int]:
    """Images of a file by key (or its end), and some by lot among those with people.

    Raises:
        LabelsError: a key that no image has, or that several end with.
    """
    chosen = [_find_key([people.images], key, f"{people.source} holds") for key in keys]
    crowded = np.flatnonzero(np.bincount(people.owner, minlength=people.num_images))
    return list(dict.fromkeys([*chosen, *_draw(np.setdiff1d(crowded, chosen), random, seed)]))


def _draw(images: np.ndarray, count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).permutation(images)[:count].tolist()


def _find_key(names: Sequence[np.ndarray], key: str, holder: str) -> int:
    """The image that one of its `names` (N,) calls so; else the only one whose first name ends with the key."""
    found = np.flatnonzero(np.any([own == key for own in names], axis=0))
    found = found if found.size else np.flatnonzero([str(name).endswith("/" + key) for name in names[0]])
    if found.size == 0:
        some = "".join(f"; keys look like {str(name)!r}" for name in names[0][:1])
        raise LabelsError(f"{holder} no image {key!r}{some}")
    if found.size > 1:
        some = names[0][found[:2]].tolist()
        raise LabelsError(f"{holder} {found.size} images called {key!r}, for example {some}; give more of it")
    return int(found[0])


def load_placed(run: RunFiles, places: Sequence[Place], pixels: Pixels | None) -> Iterator[PlacedScene]:
    """The chosen scenes, in order, with photograph and depth map where they can be read."""
    for shard, row in places:
        (placed,) = placed_scenes(run.read_shard(shard).slice(row, 1))
        if pixels is not None and run.manifest is not None:
            (files,) = run.manifest.read_shard(shard).select(["image_file", "depth_file"]).slice(row, 1).to_pylist()
            _fill(placed, pixels, files["image_file"], files["depth_file"])
        yield placed


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
