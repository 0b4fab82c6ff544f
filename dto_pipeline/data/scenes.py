"""Scenes from manifest rows: labels taken over, images decoded, masks sampled, depth maps read, everything judged.

Nothing raises for bad input: an image that cannot be used gets `Scene.problem`, a person `Scene.person_problem`.
Messages name files relative to their roots, because they become part of the labels. Sizes in pixels, lengths in metres.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from dto_pipeline.collate import map_size
from dto_pipeline.config import EvidenceConfig, RunConfig
from dto_pipeline.data.cameras import read_cameras
from dto_pipeline.data.columns import read_vectors, single_array
from dto_pipeline.data.images import ImageStore, open_folder
from dto_pipeline.data.rle import RleError, measure_rles, sample_rle
from dto_pipeline.data.sources.rows import ROW_PROBLEMS, find_row_problems
from dto_pipeline.data.storage import Location, as_location
from dto_pipeline.models.depth import DepthSource
from dto_pipeline.scene import Scene
from dto_pipeline.status import ImageStatus, PersonStatus, UnusableImage

_LOG = logging.getLogger(__name__)
_PERSON_FIELDS = ("source_row", "det_score", "age_years", "male_prob", "mask_height", "mask_width")
_PERSON_VECTORS = ("pose", "betas", "transl", "bbox_xyxy")


class Clock(Protocol):
    """Times a stage by its name, see `dto_pipeline.timing.StageClock`."""

    def __call__(self, stage: str, /) -> AbstractContextManager[None]: ...


class _SizeMismatch(UnusableImage):
    """The image is not of the size the manifest saw."""

    status = ImageStatus.SIZE_MISMATCH


@dataclass(frozen=True)
class _Masks:
    """Encoded masks of one image's P people."""

    rle: list[bytes | None]
    height: np.ndarray  # (P,) [px]
    width: np.ndarray  # (P,) [px]

    def without_masks(self) -> _Masks:
        """The same people, nobody with a mask."""
        return _Masks([None] * len(self.rle), self.height, self.width)


@dataclass(frozen=True)
class _Loader:
    """What one image needs to become a whole scene."""

    images: ImageStore
    depth: DepthSource | None
    max_side: int
    clock: Clock
    decode_memory_mb: int

    def fill(self, scene: Scene, image_file: str, depth_file: str | None, masks: _Masks) -> None:
        """Add image, masks and disparity, or the problem that prevents them."""
        if scene.problem is not None:
            return
        try:
            self._read(scene, image_file, depth_file, masks)
        except UnusableImage as error:
            scene.problem = (error.status, str(error))
        except (
            MemoryError
        ):  # sizes are bounded before memory is asked for, so the machine lacks it: not the image's fault
            scene.problem = (ImageStatus.OUT_OF_MEMORY, "memory ran out while it was loaded")
        except Exception as error:  # one image must not cost the others; the log keeps the trace
            _LOG.exception("loading %s failed", scene.image_id)
            scene.problem = (ImageStatus.INTERNAL_ERROR, f"loading failed: {error!r}")

    def _read(self, scene: Scene, image_file: str, depth_file: str | None, masks: _Masks) -> None:
        with self.clock("decode"):
            image = self.images.read(image_file, self.decode_memory_mb)
        scene.image_sha256 = image.sha256
        height, width = image.rgb.shape[:2]
        if (width, height) != (scene.width, scene.height):
            raise _SizeMismatch(
                f"image {image_file} is {width} x {height}, the manifest says {scene.width} x {scene.height}; "
                "the file changed, build the manifest again"
            )
        scene.image = image.rgb
        with self.clock("masks"):
            _sample_masks(scene, masks, self.max_side)
        if self.depth is not None:
            with self.clock("depth"):
                scene.disparity = self.depth.load(depth_file, height, width)
                scene.origin["depth"] = self.depth.origin


def load_scenes(
    rows: pa.Table,
    images: Location | ImageStore,
    depth: DepthSource | None,
    evidence: EvidenceConfig,
    threads: Executor | None = None,
    clock: Clock | None = None,
    label_masks: bool = True,
    decode_memory_mb: int = RunConfig.decode_memory_mb,
) -> list[Scene]:
    """Load the scenes of some manifest rows.

    Args:
        rows: table of `schema.MANIFEST_SCHEMA`.
        images: folder (or store) the image files are in.
        depth: source of disparity maps; None leaves `Scene.disparity` to a later stage.
        evidence: gives the size of the person map that masks are sampled at.
        threads: run one image per task; None = in this thread.
        clock: gets the seconds of decode, masks and depth, threads added up.
        label_masks: take the manifest's masks; False treats everybody as without one.
        decode_memory_mb: see `RunConfig`.

    Returns:
        One scene per row, in order.
    """
    store = open_folder(as_location(images)) if isinstance(images, Path | str) else images
    quiet = clock or (lambda stage: nullcontext())
    loader = _Loader(store, depth, evidence.render_max_side, quiet, decode_memory_mb)
    scenes, masks = [], []
    for scene, mask in _read_labels(rows):
        scenes.append(scene)
        masks.append(mask if label_masks else mask.without_masks())
    files = (rows.column(name).to_pylist() for name in ("image_file", "depth_file"))
    run = map if threads is None else threads.map
    for _ in run(loader.fill, scenes, *files, masks):
        pass  # exhausting the iterator waits for every image
    return scenes


def read_label_scenes(rows: pa.Table) -> list[Scene]:
    """The scenes of manifest rows as their labels tell them; no image is opened."""
    return [scene for scene, _ in _read_labels(rows)]


def _read_labels(rows: pa.Table) -> Iterator[tuple[Scene, _Masks]]:
    """Scenes with everything the manifest itself holds, and their masks still encoded."""
    persons = single_array(rows["persons"])
    people = persons.flatten()
    columns = {name: people.field(name).to_numpy(zero_copy_only=False) for name in _PERSON_FIELDS}
    columns.update({name: read_vectors(people.field(name)) for name in _PERSON_VECTORS})
    rle, told = people.field("mask_rle").to_pylist(), people.field("problem").to_pylist()
    found = find_row_problems(columns["pose"], columns["betas"], columns["transl"])
    ends = np.cumsum(persons.value_lengths().to_numpy(zero_copy_only=False))
    for image, (row, stop) in enumerate(zip(rows.drop_columns(["persons"]).to_pylist(), ends.tolist(), strict=True)):
        own = slice(int(ends[image - 1]) if image else 0, stop)
        parts: dict[str, Any] = {name: np.array(values[own]) for name, values in columns.items()}
        masks = _Masks(rle[own], parts.pop("mask_height"), parts.pop("mask_width"))
        reasons = [text or ROW_PROBLEMS[code] for text, code in zip(told[own], found[own], strict=True)]
        scene = Scene(
            **{name: row[name] for name in ("image_id", "subset", "image_path", "width", "height")},
            intrinsics=read_cameras(row),
            **parts,
            person_problem=[(PersonStatus.INVALID_LABEL, reason) if reason else None for reason in reasons],
            problem=_manifest_problem(row["problem_status"], row["problem"]),
        )
        scene.origin["masks"] = row["mask_origin"] or "none"
        scene.origin["attributes"] = row["attribute_origin"] or "unknown"
        yield scene, masks


def _manifest_problem(status: str | None, text: str | None) -> tuple[ImageStatus, str] | None:
    if status is None:
        return None
    return ImageStatus(status), f"{text} (seen when the manifest was built; build it again once this is mended)"


def _sample_masks(scene: Scene, masks: _Masks, max_side: int) -> None:
    """Fill `Scene.masks` at person-map size; a person without a mask may own any pixel its rendered body covers."""
    height, width = map_size(scene.height, scene.width, max_side)
    rows = np.arange(height) * scene.height // height
    cols = np.arange(width) * scene.width // width
    sampled = np.zeros((scene.num_people, height, width), dtype=bool)
    seen = np.zeros(scene.num_people, dtype=bool)
    for person, rle in enumerate(masks.rle):
        if scene.person_problem[person] is not None:
            continue
        if rle is None:
            sampled[person] = True
            continue
        size = (int(masks.height[person]), int(masks.width[person]))
        try:
            _check_mask_size(size, (scene.height, scene.width))
            sampled[person] = sample_rle(rle, *size, rows, cols)
        except RleError as error:
            scene.person_problem[person] = (PersonStatus.INVALID_LABEL, f"instance mask: {error}")
            continue
        seen[person] = True
        if not sampled[person].any() and _is_empty(rle):
            scene.person_problem[person] = (PersonStatus.EMPTY_MASK, "the instance mask holds no pixel")
    scene.masks, scene.has_mask = sampled, seen


def _check_mask_size(mask: tuple[int, int], image: tuple[int, int]) -> None:
    if mask != image:
        raise RleError(f"it is {mask[1]} x {mask[0]}; expected the size of the image, {image[1]} x {image[0]}")


def _is_empty(rle: bytes) -> bool:
    foreground, _ = measure_rles(np.frombuffer(rle, dtype=np.uint8), np.array([0, len(rle)]))
    return int(foreground[0]) == 0
