"""Open a run for reading: receipts, labels shard by shard, manifest, chosen scenes. Writes nothing.

A run whose manifest is gone or cannot be read is opened without it: only photographs, depth maps and the comparison of
labels with the manifest are missing then. An image that cannot be read is missing on its own page only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dto_pipeline.config import STAND_IN_BODY, DepthConfig
from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.labels import LabelsError, placed_scenes, read_label_metadata, read_labels
from dto_pipeline.data.manifest import Manifest, ManifestError, find_manifest
from dto_pipeline.data.people import People
from dto_pipeline.data.remote_inputs import fetch_body, open_depth
from dto_pipeline.data.storage import Location, as_location
from dto_pipeline.data.tars import open_images
from dto_pipeline.models.body import BodyModel, BodyModelError
from dto_pipeline.models.depth import DepthFiles
from dto_pipeline.run.folder import RunDirectory, RunScan, read_identity, scan_run
from dto_pipeline.run.identity import RunIdentity
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import ImageStatus, UnusableImage

_CHOSEN_BY = ("image_id", "image_path", "status", "is_optimized", "mean_height_deviation")
Place = tuple[int, int]  # shard, row


@dataclass(frozen=True)
class RunFiles:
    """One run, open for reading."""

    directory: RunDirectory
    identity: RunIdentity
    scan: RunScan
    manifest: Manifest | None
    manifest_problem: str = ""  # why there is no manifest

    @property
    def shards(self) -> list[int]:
        """Shards with a receipt that holds, in order."""
        return sorted(self.scan.done)

    def label_file(self, shard: int) -> Location:
        """The label file of a shard that counts."""
        return self.scan.files[shard]


@dataclass(frozen=True)
class Pixels:
    """Where photographs and depth maps of a run are read from."""

    images: ImageStore
    depth: DepthFiles | None  # None: a network made the maps, and they are not kept


def open_run_files(run_dir: str | Path, manifest: str | Path | None = None) -> RunFiles:
    """Open a run's folder.

    Args:
        run_dir: the folder.
        manifest: where the manifest lies now; None = where it was when the run started.

    Raises:
        RunDirectoryError: the folder is not a run.
        ManifestError: the manifest that was named cannot be read or is another one.
    """
    directory = RunDirectory(as_location(run_dir))
    identity = read_identity(directory)
    found, problem = None, ""
    try:
        named = [] if manifest is None else [as_location(manifest)]
        recorded = as_location(identity.manifest_path)
        found = find_manifest(recorded, as_location(run_dir), identity.manifest_fingerprint, named)
    except ManifestError as error:
        if manifest is not None:
            raise
        problem = str(error)
    return RunFiles(directory, identity, scan_run(directory, identity), found, problem)


def open_pixels(run: RunFiles, images: Location | None = None, depth: Location | None = None) -> Pixels | None:
    """Stores of the run's photographs and depth maps, `images` and `depth` in place of the manifest's folders.

    Depth files that a run with a network never saw are not shown for its own, unless `depth` names a folder.

    Returns:
        None where the manifest is gone: the files' names are in it.
    """
    if run.manifest is None:
        return None
    store = open_images(images or run.manifest.images_root, run.manifest.path)
    options = run.identity.config["depth"]
    if options["source"] == "model" and depth is None:
        return Pixels(store, None)
    config = DepthConfig(kind=options["kind"], scale=options["scale"])
    return Pixels(store, open_depth(config, depth or options["root"] or run.manifest.depth_root or ""))


def load_run_body(run: RunFiles, path: str | Path | None) -> BodyModel:
    """The body model a run was made with; path: where it lies now, None = as in the run's config.

    Raises:
        BodyModelError: it cannot be read, or is another one than the labels' footer names.
    """
    options = run.identity.config["body"]
    named = options["model_path"] or STAND_IN_BODY  # until 0.3.0 a run that named none had the stand-in
    body = fetch_body(named if path is None else path, options["kid_axis"])
    for shard in run.shards[:1]:
        wanted = read_label_metadata(run.label_file(shard)).get("body_sha256", body.sha256)
        if wanted != body.sha256:
            found = f"sha256 {body.sha256[:16]}, the labels were made with {wanted[:16]}"
            raise BodyModelError(f"the body model has {found}; name the right one with --body")
    return body


def find_run_body(run: RunFiles, path: str | Path | None) -> tuple[BodyModel | None, str]:
    """The same, or None and the reason where no file is named."""
    try:
        return load_run_body(run, path), ""
    except BodyModelError as error:
        if path is not None:
            raise
        return None, str(error)


def choose_scenes(
    run: RunFiles,
    keys: Sequence[str] = (),
    worst: int = 0,
    random: int = 0,
    seed: int = 0,
    status: Sequence[str] = (),
) -> list[Place]:
    """Choose scenes without reading their people; a scene is taken if one of the arguments asks for it.

    Args:
        keys: image keys, paths, or the ends of them.
        worst: how many optimised scenes of largest deviation.
        random: how many at random, with this seed.
        status: image statuses; narrows `worst` and `random`, alone it takes all.

    Raises:
        LabelsError: a key that no finished shard holds, an unknown status, or nothing to choose from.
    """
    if unknown := sorted(set(status) - {str(one) for one in ImageStatus}):
        raise LabelsError(f"unknown status {unknown}; statuses are {[str(one) for one in ImageStatus]}")
    if not run.shards:
        raise LabelsError(f"{run.directory.root} has no finished shard yet; `dto status` shows how far it is")
    table = read_labels(*(run.label_file(shard) for shard in run.shards), columns=_CHOSEN_BY, people=())
    columns = {name: table.column(name).to_numpy() for name in _CHOSEN_BY}
    allowed = np.isin(columns["status"], list(status)) if status else np.ones(table.num_rows, bool)
    deviation = np.where(columns["is_optimized"] & allowed, columns["mean_height_deviation"], -1.0)
    largest = np.argsort(-deviation, kind="stable")[:worst]
    chosen = _find_keys(keys, [columns["image_id"], columns["image_path"]], "the finished shards hold")
    chosen += largest[deviation[largest] >= 0].tolist()
    chosen += _draw(np.setdiff1d(np.flatnonzero(allowed), chosen), random, seed)
    if status and not (keys or worst or random):
        chosen += np.flatnonzero(allowed).tolist()
    places = [(shard, row) for shard in run.shards for row in range(run.scan.done[shard].rows)]
    return [places[index] for index in dict.fromkeys(chosen)]


def choose_images(people: People, keys: Sequence[str], random: int, seed: int) -> list[int]:
    """Images of a file by key (or its end), and some at random among those with people.

    Raises:
        LabelsError: a key that no image has, or that several end with.
    """
    chosen = _find_keys(keys, [people.images], f"{people.source} holds")
    crowded = np.flatnonzero(np.bincount(people.owner, minlength=people.num_images))
    return list(dict.fromkeys([*chosen, *_draw(np.setdiff1d(crowded, chosen), random, seed)]))


def _draw(images: np.ndarray, count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).permutation(images)[:count].tolist()


def _find_keys(keys: Sequence[str], names: Sequence[np.ndarray], holder: str) -> list[int]:
    """The image of each key: one of its `names` (N,), or the end of the first name of one image only."""
    chosen = []
    for key in keys:
        found = np.flatnonzero(np.any([own == key for own in names], axis=0))
        found = found if found.size else np.flatnonzero([str(name).endswith("/" + key) for name in names[0]])
        if found.size != 1:
            some = names[0][found[:2] if found.size else slice(1)].tolist()
            many = f"{found.size} images {key!r}, for example {some}; give more of it"
            none = f"no image {key!r}; keys look like {', '.join(map(repr, some))}"
            raise LabelsError(f"{holder} {many if found.size else none}")
        chosen.append(int(found[0]))
    return chosen


def load_placed(run: RunFiles, places: Sequence[Place], pixels: Pixels | None) -> Iterator[PlacedScene]:
    """The chosen scenes, in order, with photograph and depth map where they can be read; else with the reason."""
    for shard, row in places:
        (placed,) = placed_scenes(read_labels(run.label_file(shard)).slice(row, 1))
        scene = placed.scene
        if pixels is not None and run.manifest is not None:
            (names,) = run.manifest.read_shard(shard).select(["image_file", "depth_file"]).slice(row, 1).to_pylist()
            try:
                scene.image = pixels.images.read(names["image_file"]).rgb
                scene.height, scene.width = scene.image.shape[:2]
                if pixels.depth is not None:
                    focal = float(scene.intrinsics[0, 0])
                    scene.disparity = pixels.depth.load(names["depth_file"], scene.height, scene.width, focal)
            except UnusableImage as error:  # a missing depth map is in the scene's own status
                placed.message = placed.message or ("" if scene.image is not None else str(error))
        yield placed
