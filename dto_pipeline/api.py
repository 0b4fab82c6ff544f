"""The pipeline from Python: read results as scenes, as Arrow or as a training set; place one crowd in memory.

For notebooks and training code, without Ray; ``import dto_pipeline as dto`` offers these functions lazily. Conventions
(camera frame, units, axis letters) are those of `dto_pipeline`. docs/api.md has examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.bounds import CAMERA_BEYOND, implausible_cameras
from dto_pipeline.collate import collate_scenes, keep_labels, map_size, split_batch
from dto_pipeline.config import AttributeConfig, DepthConfig, MaskConfig, PipelineConfig, load_config
from dto_pipeline.data.duplicates import LabelledPeople, find_duplicates
from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.label_files import Limits, find_label_files, flatten_table
from dto_pipeline.data.labels import read_labels, read_placed
from dto_pipeline.data.scenes import mark_repeats
from dto_pipeline.data.sources.rows import ROW_PROBLEMS, SEEN_RANGES, find_row_problems
from dto_pipeline.data.storage import Location, as_location
from dto_pipeline.data.training_labels import LABEL_IMAGES, LABEL_PEOPLE, LabelDataset, read_run_columns
from dto_pipeline.errors import DtoError
from dto_pipeline.maths.crowd_solver import interval_halfwidth
from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.models.depth import DISPARITY, METRIC_DEPTH, as_disparity
from dto_pipeline.models.seeing import Perception
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.run.folder import RunDirectory, read_run_labels
from dto_pipeline.run.placing import refuse_kid_axis
from dto_pipeline.scene import PlacedScene, Scene
from dto_pipeline.status import PersonStatus
from dto_pipeline.timing import StageClock

__all__ = [
    "PipelineConfig",
    "interval_halfwidth",
    "load_body",
    "load_config",
    "optimize_scene",
    "read_scenes",
    "read_table",
    "torch_dataset",
]
LabelTable = Any  # a pyarrow.Table; only data/ imports pyarrow
Source = str | Path | Iterable[str | Path]
_LOAD_ONCE = lru_cache(maxsize=2)(load_body)


class SceneInputError(DtoError, ValueError):
    """An argument that cannot be used; the message names it, what was found and what is needed."""


def read_scenes(source: Source) -> Iterator[PlacedScene]:
    """Every image of a run or an export in the order of the files; one label file is in memory at a time.

    `source`: a run's folder (its finished shards), a folder of label files, one label file, or several of these; each a
    path or a URI. ``placed.transl`` (P, 3) [m] and ``placed.betas`` (P, 11) are the labels after, ``placed.scene`` has
    the input (pose (P, 72) [rad], transl, betas, intrinsics (3, 3) [px]); photographs, masks and depth maps are None.

    Raises: LabelsError: no labels there, or a damaged file.
    """
    for path in _label_files(source):
        yield from read_placed(path)


def read_table(source: Source, columns: Sequence[str] | None = None, people: Sequence[str] | None = None) -> LabelTable:
    """Labels as one Arrow table, one row per image, people in ``persons``.

    Args:
        source: as in `read_scenes`.
        columns: image columns to read; None = all.
        people: person columns to read; None = all, () = no ``persons`` at all.

    Returns: ``pyarrow.Table``; columns, units and meanings are in its schema's field metadata.

    Raises: LabelsError: no labels there, a damaged file, or a column that does not exist.
    """
    return read_labels(*_label_files(source), columns=columns, people=people)


def torch_dataset(
    source: Source,
    images: bool | str | Path = False,
    select: str = "accepted",
    manifest: str | Path | None = None,
    max_error: float | None = None,
    max_z_sigma: float | None = None,
) -> LabelDataset:
    """Labels as a map-style torch Dataset, one item per image; see `LabelDataset.__getitem__` for an item.

    Args:
        source: as in `read_scenes`.
        images: False = no photographs; True = those of the run's manifest (`source` must be a run); a folder = those
            in it, by the manifest's names for a run, else by their ``image_path``.
        select: "accepted", "optimized" or "all" images.
        manifest: the run's manifest, where it was moved.
        max_error: images whose expected error of z is at most this [m]; None = all. Images without one (solver.mode
            paper) are left out; ``left_out`` of the dataset counts by reason.
        max_z_sigma: people whose sigma of z is at most this [m] are ``usable``; others stay in the item and are not.

    Raises:
        LabelsError: no labels there, a limit that is not above 0, or one on errors that no label holds.
        ManifestError: photographs are needed and the run's manifest is missing.
    """
    limits = Limits(max_error, max_z_sigma)
    folder = "" if isinstance(images, bool) else as_location(images)
    if images is not False and isinstance(source, str | Path) and RunDirectory(as_location(source)).is_run():
        run = read_run_labels(source, partial=True, manifests=[manifest] if manifest else [])
        return LabelDataset(*read_run_columns(run, folder), select, limits)
    if images is True:
        raise SceneInputError(f"images=True needs a run's folder, found {source}; give the folder of the photographs")
    columns = flatten_table(read_table(source, LABEL_IMAGES, LABEL_PEOPLE))
    return LabelDataset(columns, ImageStore(folder) if folder else None, select, limits)


def optimize_scene(
    pose: np.ndarray,
    betas: np.ndarray,
    transl: np.ndarray,
    intrinsics: np.ndarray,
    disparity: np.ndarray | None = None,
    masks: np.ndarray | None = None,
    ages: np.ndarray | None = None,
    male_prob: np.ndarray | None = None,
    body: BodyModel | str | Path = "",
    config: PipelineConfig | None = None,
    metres: np.ndarray | None = None,
) -> PlacedScene:
    """Place the P people of one image, in memory, on the device of `body`.

    Args:
        pose: (P, 72) or (P, 24, 3) axis-angle, root first [rad], root in the camera frame.
        betas: (P, 10) or (P, 11) SMPL shape, kid axis last.
        transl: (P, 3) SMPL translation [m], camera frame.
        intrinsics: (3, 3) of the photograph [px].
        disparity: (H, W) relative inverse depth of the photograph, larger is nearer, finite, not negative.
        masks: (P, H, W) bool, visible part of each person; None = the outlines of the bodies, nearer
            labels before farther ones.
        ages: (P,) [years]; NaN or None = unknown, most likely an adult.
        male_prob: (P,) 0 .. 1; NaN or None = unknown.
        body: a loaded body model, or the file of one ("demo" = the free stand-in); "" = as in `config`.
        config: options; None = those of the paper.
        metres: (H, W) distance along the camera axis [m] in place of `disparity`, of a metric network; 0 = unknown.

    Returns:
        `PlacedScene`: ``transl`` (P, 3) [m] and ``betas`` (P, 11) after, ``scale`` (P,), ``person_status``,
        ``is_accepted`` and the rest of a label row. People whose label is not finite or behind the camera keep it, with
        a status that says so.

    Raises:
        SceneInputError: an argument of a wrong shape or without numbers, a camera, disparity, age or probability that
            cannot be.
        BodyModelError: no body model is named, or it cannot be read.
    """
    config = config or PipelineConfig()
    _expect((disparity is None) != (metres is None), "give either disparity or metres")
    relative = metres is None
    values = _array("disparity", disparity) if relative else _array("metres", metres)
    depth = as_disparity(values, DISPARITY if relative else METRIC_DEPTH)
    scene = _build_scene((pose, betas, transl), intrinsics, depth, ages, male_prob)
    scene.origin["depth"] = "memory" if relative else f"{METRIC_DEPTH} in memory"
    _add_masks(scene, masks, config.evidence.render_max_side)
    if scene.num_people == 0:
        return keep_labels(scene)
    if not isinstance(body, BodyModel):
        body = _LOAD_ONCE(str(body) or config.body.model_path, config.body.kid_axis)
    if not body.has_kid_axis:
        refuse_kid_axis([scene])
    plain = replace(config, depth=DepthConfig(), masks=MaskConfig(), attributes=AttributeConfig())
    Perception(plain, body).perceive([scene], StageClock())
    optimized = SceneOptimizer(body, config)(collate_scenes([scene], body.faces.device))
    return split_batch([scene], optimized, config)[0]


def _label_files(source: Source) -> list[Location]:
    sources = [source] if isinstance(source, str | Path) else list(source)
    return [path for one in sources for path in find_label_files(one)]


def _build_scene(
    labels: tuple[np.ndarray, np.ndarray, np.ndarray],
    intrinsics: np.ndarray,
    disparity: np.ndarray,
    ages: np.ndarray | None,
    male_prob: np.ndarray | None,
) -> Scene:
    pose, betas, transl = (
        _array(name, values) for name, values in zip(("pose", "betas", "transl"), labels, strict=True)
    )
    people = len(transl) if transl.ndim else 1
    pose = _array("pose", pose.reshape(people, 72) if pose.shape == (people, 24, 3) else pose, (people, 72))
    ten = betas.shape[1:] == (NUM_BETAS - 1,)
    betas = _array("betas", np.pad(betas, ((0, 0), (0, 1))) if ten else betas, (people, NUM_BETAS))
    transl = _array("transl", transl, (people, 3))
    unknown = np.full(people, np.nan, np.float32)
    seen = {}
    for column, name, given in (("age_years", "ages", ages), ("male_prob", "male_prob", male_prob)):
        seen[column] = known = unknown if given is None else _array(name, given, (people,))
        low, high = SEEN_RANGES[column]
        wrong = known[(known < low) | (known > high)]
        _expect(not wrong.size, f"{name} holds {wrong[:3].tolist()}; expected {low:g} .. {high:g}, or NaN for unknown")
    problems = [ROW_PROBLEMS[code] for code in find_row_problems(pose, betas, transl)]
    shape = disparity.shape
    _expect(disparity.ndim == 2 and disparity.size, f"disparity has shape {shape}; expected (H, W) of the photograph")
    right = np.isfinite(disparity).all() and disparity.min() >= 0 and disparity.max() > 0
    _expect(right, "disparity (or metres) must be finite, 0 or more and somewhere above; of disparity larger is nearer")
    height, width = shape
    scene = Scene(
        image_id="memory/scene",
        subset="memory",
        image_path="scene",
        width=width,
        height=height,
        intrinsics=_check_camera(intrinsics, width, height),
        pose=pose,
        betas=betas,
        transl=transl,
        age_years=seen["age_years"],
        male_prob=seen["male_prob"],
        source_row=np.arange(people),
        bbox_xyxy=np.full((people, 4), np.nan, np.float32),
        det_score=unknown,
        person_problem=[(PersonStatus.INVALID_LABEL, text) if text else None for text in problems],
        disparity=disparity,
        origin={"masks": "memory", "attributes": "memory"},
    )
    crowds, one_image = np.zeros(people, bool), np.array([people])
    rows = (pose, betas, transl, scene.bbox_xyxy, scene.det_score, crowds, scene.usable, one_image)
    mark_repeats(scene, find_duplicates(LabelledPeople(*rows)))
    return scene


def _add_masks(scene: Scene, masks: np.ndarray | None, max_side: int) -> None:
    """Sample the masks at the size of the person map; a person whose mask is empty is not measured."""
    height, width = map_size(scene.height, scene.width, max_side)
    if masks is None:
        scene.masks = np.zeros((scene.num_people, height, width), dtype=bool)
        scene.has_mask = np.zeros(scene.num_people, dtype=bool)
        return
    full, expected = np.asarray(masks), (scene.num_people, scene.height, scene.width)
    right = full.shape == expected and full.dtype == bool
    _expect(right, f"masks is {full.dtype} of shape {full.shape}; expected bool of shape {expected}")
    rows = np.arange(height) * scene.height // height
    cols = np.arange(width) * scene.width // width
    scene.masks = full[:, rows[:, None], cols]
    for person in np.flatnonzero(~full.any(axis=(1, 2))):
        if scene.person_problem[person] is None:
            scene.person_problem[person] = (PersonStatus.EMPTY_MASK, "the instance mask holds no pixel")


def _array(name: str, values: Any, shape: tuple[int, ...] | None = None, dtype: type = np.float32) -> np.ndarray:
    """The values as an array of numbers, of exactly this shape where one is given."""
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise SceneInputError(f"{name} is not an array: {error}") from error
    _expect(array.dtype.kind in "biuf", f"{name} holds {array.dtype}; expected numbers")
    right = shape is None or array.shape == shape
    _expect(right, f"{name} has shape {array.shape}; expected {shape}, one entry per row of transl")
    with np.errstate(over="ignore"):  # infinity, which callers refuse
        return array.astype(dtype)


def _check_camera(intrinsics: Any, width: int, height: int) -> np.ndarray:
    camera = _array("intrinsics", intrinsics, dtype=np.float64)
    right = camera.shape == (3, 3) and np.isfinite(camera).all() and (camera.diagonal()[:2] > 0).all()
    _expect(right, f"intrinsics is {camera.tolist()}; expected a finite 3 x 3 matrix with focal lengths above 0")
    skewed = camera[[0, 1, 2, 2], [1, 0, 0, 1]].any() or camera[2, 2] != 1
    _expect(not skewed, f"intrinsics is {camera.tolist()}; expected no skew and a last row of 0 0 1")
    beyond = implausible_cameras(camera, width, height)
    _expect(not beyond, f"intrinsics is {camera.tolist()} for an image of {width} x {height}: {CAMERA_BEYOND}")
    return camera


def _expect(condition: Any, message: str) -> None:
    if not condition:
        raise SceneInputError(message)
