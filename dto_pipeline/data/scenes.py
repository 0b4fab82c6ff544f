"""Scenes from manifest rows: labels, decoded images, masks at the size of the person map, depth maps, and problems.

Bad input raises nothing: an image that cannot be used gets `Scene.problem`, a person `Scene.person_problem`. Messages
name files relative to their roots, because they become part of the labels. Sizes in pixels, lengths in metres.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from dto_pipeline.bounds import CAMERA_BEYOND, implausible_cameras
from dto_pipeline.collate import map_size
from dto_pipeline.config import EvidenceConfig, RunConfig
from dto_pipeline.data.cameras import describe_off_centre, is_off_centre, read_cameras
from dto_pipeline.data.duplicates import LabelledPeople, find_duplicates
from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.label_files import flatten_table
from dto_pipeline.data.rle import RleError, decode_rle, measure_rles
from dto_pipeline.data.sources.rows import ROW_PROBLEMS, find_row_problems
from dto_pipeline.models.depth import DepthFiles
from dto_pipeline.scene import Scene
from dto_pipeline.status import ImageStatus, PersonStatus, UnusableImage

_LOG = logging.getLogger(__name__)
_PERSON_FIELDS = (
    *("pose", "betas", "transl", "bbox_xyxy"),
    *("source_row", "det_score", "age_years", "male_prob", "mask_height", "mask_width"),
)
MENDABLE = frozenset((ImageStatus.IMAGE_MISSING, ImageStatus.IMAGE_CORRUPT, ImageStatus.SIZE_MISMATCH))
"""Problems in the manifest that a repaired image file may have ended: every launch of the run reads the file again."""
Clock = Callable[[str], AbstractContextManager[None]]
_Mask = tuple[bytes | None, int, int]  # of a person: run lengths, height and width [px]
_NO_MASK: _Mask = (None, 0, 0)


class _SizeMismatch(UnusableImage):
    """The image does not have the size that the manifest says or its camera implies."""

    status = ImageStatus.SIZE_MISMATCH


@dataclass(frozen=True)
class SceneLoader:
    """Makes scenes of manifest rows, with images from one store."""

    images: ImageStore
    depth: DepthFiles | None  # disparity maps in files; None = `Scene.disparity` is set by a later stage
    max_side: int = EvidenceConfig.render_max_side  # longer side of the person map, at whose size masks are sampled
    label_masks: bool = True  # take the manifest's masks; False = no masks
    centred: bool = True  # where the manifest has no size of an image, it must have the size its camera implies
    decode_memory_mb: int = RunConfig.decode_memory_mb

    def load(self, rows: pa.Table, threads: Executor | None = None, clock: Clock | None = None) -> list[Scene]:
        """The scenes of rows of `schema.MANIFEST_SCHEMA`, in order.

        `threads`: one image per task; None = in this thread. `clock`: times decode, masks, depth: `timing.StageClock`.
        """
        found = list(_read_labels(rows))
        scenes = [scene for scene, _ in found]
        masks = [mask if self.label_masks else [_NO_MASK] * scene.num_people for scene, mask in found]
        files = (rows.column(name).to_pylist() for name in ("image_file", "depth_file"))
        fill = partial(self._fill, clock or (lambda stage: nullcontext()))
        list((map if threads is None else threads.map)(fill, scenes, *files, masks))  # waits for every image
        return scenes

    def _fill(self, clock: Clock, scene: Scene, image_file: str, depth_file: str | None, masks: list[_Mask]) -> None:
        """Add image, masks and disparity, or the problem that prevents them."""
        if scene.problem is not None:
            return
        try:
            self._read(clock, scene, image_file, depth_file, masks)
        except UnusableImage as error:
            scene.problem = (error.status, str(error))
        except MemoryError:  # sizes are bounded before memory is allocated, so the machine is at fault, not the image
            scene.problem = (ImageStatus.OUT_OF_MEMORY, "memory ran out while it was loaded")
        except Exception as error:  # costs this image only
            _LOG.exception("loading %s failed", scene.image_id)
            scene.problem = (ImageStatus.INTERNAL_ERROR, f"loading failed: {error!r}")

    def _read(self, clock: Clock, scene: Scene, image_file: str, depth_file: str | None, masks: list[_Mask]) -> None:
        if scene.width == 0:
            self._measure(scene, image_file)
        with clock("decode"):
            image = self.images.read(image_file, self.decode_memory_mb)
        scene.image_sha256 = image.sha256
        height, width = image.rgb.shape[:2]
        if (width, height) != (scene.width, scene.height):
            why = self.images.header(image_file).explain(scene.width, scene.height)
            raise _SizeMismatch(
                f"image {image_file} is {width} x {height}, the manifest says {scene.width} x {scene.height}; "
                f"the file changed since{why}; put the file back, or build a new manifest"
            )
        scene.image = image.rgb
        with clock("masks"):
            _sample_masks(scene, masks, self.max_side)
        if self.depth is not None:
            with clock("depth"):
                scene.disparity = self.depth.load(depth_file, height, width, float(scene.intrinsics[0, 0]))
                scene.origin["depth"] = self.depth.origin

    def _measure(self, scene: Scene, image_file: str) -> None:
        """Set the size of an image from its file where the manifest has none, with the checks of the build."""
        header = self.images.header(image_file)
        scene.width, scene.height = header.width, header.height
        camera, size = scene.intrinsics, np.array([header.width, header.height])
        if np.isnan(camera[:2, 2]).all():
            camera[:2, 2] = size / 2
        elif self.centred and is_off_centre(camera[None], size[None])[0]:
            raise _SizeMismatch(describe_off_centre(image_file, header, camera))


def read_label_scenes(rows: pa.Table) -> list[Scene]:
    """The scenes of manifest rows without pixels; no image file is opened."""
    return [scene for scene, _ in _read_labels(rows)]


def _read_labels(rows: pa.Table) -> Iterator[tuple[Scene, list[_Mask]]]:
    """Scenes with everything the manifest holds, and the encoded masks of their people."""
    flat = flatten_table(rows.select(["persons"]), (*_PERSON_FIELDS, "mask_rle", "problem"))
    columns = dict(flat.people)
    rle, problems = columns.pop("mask_rle"), columns.pop("problem")
    found = find_row_problems(columns["pose"], columns["betas"], columns["transl"])
    repeats = find_duplicates(
        LabelledPeople(
            **{name: columns[name] for name in ("pose", "betas", "transl", "bbox_xyxy", "det_score")},
            has_mask=np.array([mask is not None for mask in rle], bool),
            usable=(found == 0) & np.array([text is None for text in problems], bool),
            counts=np.diff(flat.starts),
        )
    )
    images = rows.drop_columns(["persons"]).to_pylist()
    for row, (start, stop) in zip(images, pairwise(flat.starts.tolist()), strict=True):
        own = slice(start, stop)
        parts: dict[str, Any] = {name: np.array(values[own]) for name, values in columns.items()}
        masks = list(zip(rle[own], parts.pop("mask_height").tolist(), parts.pop("mask_width").tolist(), strict=True))
        reasons = [text or ROW_PROBLEMS[code] for text, code in zip(problems[own], found[own], strict=True)]
        scene = Scene(
            **{name: row[name] for name in ("image_id", "subset", "image_path", "width", "height")},
            intrinsics=read_cameras(row),
            **parts,
            person_problem=[(PersonStatus.INVALID_LABEL, reason) if reason else None for reason in reasons],
        )
        mark_repeats(scene, np.where(repeats[own] >= 0, repeats[own] - start, -1))
        _take_problem(scene, row)
        scene.origin["masks"] = row["mask_origin"] or "none"
        scene.origin["attributes"] = row["attribute_origin"] or "unknown"
        yield scene, masks


def mark_repeats(scene: Scene, same_as: np.ndarray) -> None:
    """Set the problem of people who are labelled twice; `same_as`: (P,) position of the row each repeats, -1 = none."""
    for person in np.flatnonzero(same_as >= 0).tolist():
        kept = int(same_as[person])
        row = f" (label row {scene.source_row[kept]})" if scene.source_row[kept] >= 0 else ""
        problem = (PersonStatus.DUPLICATE, f"the same person as person {kept}{row} of this image")
        scene.person_problem[person], scene.same_as = problem, same_as


def _take_problem(scene: Scene, row: dict[str, Any]) -> None:
    """Set the problem that the manifest has of an image, unless the file may have been repaired since the build."""
    camera, size = scene.intrinsics, (row["width"], row["height"])
    if row["problem_status"] is None:
        if implausible_cameras(camera[None], *(np.array([side]) for side in size))[0]:  # older builds did not check
            found = f"{CAMERA_BEYOND}; {camera.ravel().tolist()} for {size[0]} x {size[1]}"
            scene.problem = (ImageStatus.LABEL_INVALID, found)
        return
    status = ImageStatus(row["problem_status"])
    if status in MENDABLE and scene.num_people and np.isfinite(camera[:2, :2]).all():
        scene.width = scene.height = 0
    else:
        then = "seen when the manifest was built: mend it, then build a new one and start a new run"
        scene.problem = (status, f"{row['problem']} ({then})")


def _sample_masks(scene: Scene, masks: list[_Mask], max_side: int) -> None:
    """Set `Scene.masks` at the size of the person map; without a mask of a person every pixel may be that person's."""
    height, width = map_size(scene.height, scene.width, max_side)
    rows = np.arange(height) * scene.height // height
    cols = np.arange(width) * scene.width // width
    sampled = np.zeros((scene.num_people, height, width), dtype=bool)
    seen = np.zeros(scene.num_people, dtype=bool)
    for person, (rle, high, wide) in enumerate(masks):
        if scene.person_problem[person] is not None:
            continue
        if rle is None:
            sampled[person] = True
            continue
        try:
            if (high, wide) != (scene.height, scene.width):
                expected = f"expected the size of the image, {scene.width} x {scene.height}"
                raise RleError(f"it is {wide} x {high}; {expected}")
            sampled[person] = decode_rle(rle, high, wide, rows, cols)
        except RleError as error:
            scene.person_problem[person] = (PersonStatus.INVALID_LABEL, f"instance mask: {error}")
            continue
        seen[person] = True
        if not sampled[person].any() and not measure_rles(np.frombuffer(rle, np.uint8), np.array([0, len(rle)]))[0][0]:
            scene.person_problem[person] = (PersonStatus.EMPTY_MASK, "the instance mask holds no pixel")
    scene.masks, scene.has_mask = sampled, seen
