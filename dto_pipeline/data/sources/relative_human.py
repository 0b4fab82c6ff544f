"""Read RelativeHuman's annotation files ``{train,val,test}_annots.npz``: a pickled dictionary, of which no code is run.

| key of a person     | becomes                                                    |
|---------------------|------------------------------------------------------------|
| kp2d                | kp2d (14, 3) or (19, 3); flat lists are cut into triples   |
| depth_id            | depth_id, the layer; -1 = unknown                          |
| age                 | age as a code; -1 = unknown                                |
| bbox                | bbox_xyxy of the visible part [px]                         |

Other keys are ignored. Values that cannot be read become unknown and are reported; nobody is dropped, because the
metrics count people by their position. Three layouts of keypoints (14 joints, 19 in "BK" order, 19 in OCHuman order;
the length of the file name decides between the last two) become the 14 joints of the metrics.

The files hold no bodies and no cameras: a manifest takes its people from a prediction file (see `predictions`), and no
annotated value, because results are evaluated against layers and ages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.data.npz import NpzFile
from dto_pipeline.data.safe_pickle import NUMPY_ONLY
from dto_pipeline.data.sources.predictions import open_predictions
from dto_pipeline.data.sources.rows import Finding, LabelFileError, LabelSource, SourceOptions

AGES = ("adult", "teen", "kid", "baby")  # by code
UNKNOWN = -1  # code of an unknown layer or age
EVALUATED_JOINTS: tuple[str, ...] = (
    *("left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist"),
    *("left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle"),
    *("head_top", "neck"),
)
BK_JOINTS: tuple[str, ...] = (
    *("head_top", "nose", "neck", "left_eye", "right_eye", "left_shoulder", "right_shoulder"),
    *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
    *("left_knee", "right_knee", "left_ankle", "right_ankle", "left_big_toe", "right_big_toe"),
)
OCHUMAN_JOINTS: tuple[str, ...] = (
    *("right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
    *("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    *("head_top", "neck", "right_ear", "left_ear", "nose", "right_eye", "left_eye"),
)
BK_NAME_LENGTH = 7  # characters of a file name, without .jpg, whose 19 joints are in BK order
UNLABELLED = -2.0  # position given to a joint that is invisible or absent [px]
ARRAY = "annots"
_LAYERS = 100  # published layers end at 9


class KeypointLayoutError(ValueError):
    """Keypoints in none of the three layouts."""


@dataclass(frozen=True)
class Annotation:
    kp2d: np.ndarray | None  # (14, 3) or (19, 3) x, y [px], visible; None = without keypoints
    depth_id: int  # layer, 0 = nearest, -1 = unknown
    age: int  # index into AGES, -1 = unknown
    bbox_xyxy: tuple[float, float, float, float] | None = None  # of the visible part [px]; None = unknown


@dataclass(frozen=True)
class RelativeHumanAnnotations:
    images: dict[str, tuple[Annotation, ...]]  # file name -> people, in file order
    problems: tuple[Finding, ...]  # about people, taken as unknown


def evaluated_joints(kp2d: np.ndarray, file_name: str) -> tuple[np.ndarray, np.ndarray]:
    """One person's annotation on the 14 evaluated joints.

    The neck of 19 joints is left out: it is another point of the body than that of 14 joints.

    Args:
        kp2d: (14, 3) or (19, 3) x, y [px] and visibility (visible where positive and x, y finite).
        file_name: of the image; its length decides between the layouts of 19.

    Returns:
        (14, 2) float32 positions [px], `UNLABELLED` where not visible, and (14,) bool visible.

    Raises:
        KeypointLayoutError: another number of joints, or rows that are not (x, y, visible).
    """
    points = np.asarray(kp2d, dtype=np.float32)
    if points.ndim != 2 or points.shape[1] != 3:
        raise KeypointLayoutError(f"{file_name}: keypoints of shape {points.shape}; expected (14, 3) or (19, 3)")
    layout = EVALUATED_JOINTS
    if len(points) == len(BK_JOINTS):
        stem = file_name.replace("\\", "/").rpartition("/")[2].replace(".jpg", "")
        layout = BK_JOINTS if len(stem) == BK_NAME_LENGTH else OCHUMAN_JOINTS
    elif len(points) != len(EVALUATED_JOINTS):
        found = f"{file_name}: a person has {len(points)} keypoints"
        raise KeypointLayoutError(f"{found}; expected 14 or 19, or none at all")
    kept = EVALUATED_JOINTS if layout is EVALUATED_JOINTS else EVALUATED_JOINTS[:-1]
    rows = np.array([layout.index(name) if name in kept else -1 for name in EVALUATED_JOINTS])
    taken = points[rows]
    visible = (rows >= 0) & (taken[:, 2] > 0) & np.isfinite(taken[:, :2]).all(axis=1)
    return np.where(visible[:, None], taken[:, :2], np.float32(UNLABELLED)), visible


def read_annotations(path: str | Path) -> RelativeHumanAnnotations:
    """Read an annotation file.

    Raises:
        UnsafePickle, BrokenPickle: see `data.safe_pickle`; the message names file and member.
        LabelFileError: a sound npz that holds something else.
        OSError: the file cannot be read.
    """
    npz = NpzFile(path, most=1 << 31)
    found = npz.array(ARRAY, NUMPY_ONLY) if ARRAY in npz.keys else None
    images = found[()] if found is not None and found.shape == () else None
    if not isinstance(images, dict) or not all(isinstance(people, list) for people in images.values()):
        held = "no such array" if found is None else f"{found.dtype} {found.shape}"
        raise LabelFileError(f"{path}, key {ARRAY!r}: {held}; expected one dict of image name -> list of people")
    problems: list[Finding] = []
    annotations = {
        str(name): tuple(_read_person(str(name), row, person, problems) for row, person in enumerate(people))
        for name, people in images.items()
    }
    everyone = [person for people in annotations.values() for person in people]
    if all(person.kp2d is None and person == Annotation(None, UNKNOWN, UNKNOWN) for person in everyone):
        mappings = [person for people in images.values() for person in people if isinstance(person, Mapping)]
        keys = sorted({str(key) for person in mappings for key in person})
        raise LabelFileError(
            f"{path} lists {len(everyone)} people of whom nothing can be used; they hold {keys[:12]}, "
            f"expected some of {[key for key, _, _ in _FIELDS.values()]}"
        )
    return RelativeHumanAnnotations(annotations, tuple(problems))


def _read_person(image: str, row: int, person: Any, problems: list[Finding]) -> Annotation:
    fields: dict[str, Any] = {}
    if not isinstance(person, Mapping):
        problems.append(Finding(image, f"person {row}: is {type(person).__name__}, expected a dict"))
        person = {}
    for name, (key, read, unknown) in _FIELDS.items():
        fields[name] = unknown
        try:
            fields[name] = unknown if person.get(key) is None else read(person[key])
        except (TypeError, ValueError, OverflowError) as error:
            problems.append(Finding(image, f"person {row}: {key}: {error}"))
    return Annotation(**fields)


def _keypoints(value: Any) -> np.ndarray:
    flat, layouts = np.asarray(value, dtype=np.float32), (len(EVALUATED_JOINTS), len(BK_JOINTS))
    if flat.size not in [3 * joints for joints in layouts] or (flat.ndim > 1 and flat.shape[-1] != 3):
        raise ValueError(f"shape {flat.shape}, expected {' or '.join(f'({joints}, 3)' for joints in layouts)}")
    return flat.reshape(-1, 3)


def _box(value: Any) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(side) for side in value)
    return left, top, right, bottom


def _code(value: Any, count: int) -> int:
    found = int(value)
    if found != value or not UNKNOWN <= found < count:
        raise ValueError(f"{value!r}, expected {UNKNOWN} .. {count - 1}")
    return found


_FIELDS: dict[str, tuple[str, Callable[[Any], Any], Any]] = {  # of `Annotation` -> key, reader, what unknown is
    "kp2d": ("kp2d", _keypoints, None),
    "depth_id": ("depth_id", lambda value: _code(value, _LAYERS), UNKNOWN),
    "age": ("age", lambda value: _code(value, len(AGES)), UNKNOWN),
    "bbox_xyxy": ("bbox", _box, None),
}


PERSON_KEYS = frozenset(key for key, _, _ in _FIELDS.values())


def open_relative_human(path: Path, options: SourceOptions) -> LabelSource:
    """The people of `options.predictions`; images that only they or only the annotations have are findings.

    Raises:
        LabelFileError, PickleRefused: no predictions are named, or one of the files cannot be used.
    """
    if options.predictions is None:
        raise LabelFileError(
            f"{path}: RelativeHuman's annotations hold no bodies and no cameras, so there is nothing to optimise; name "
            "a file of predicted people under `predictions` in the dataset YAML (--predictions), or use them for "
            "evaluation only"
        )
    annotated = list(read_annotations(path).images)
    found = open_predictions(options.predictions)
    predicted: dict[str, str] = {}  # base name, as annotations have no folders -> name
    for name in dict.fromkeys(found.image_names.tolist()):
        predicted.setdefault(name.rpartition("/")[2], name)
    known = {name.rpartition("/")[2] for name in annotated}
    missing = [name for name in annotated if name.rpartition("/")[2] not in predicted]
    extra = [name for base, name in sorted(predicted.items()) if base not in known]
    findings = [
        *(Finding(name, "annotated, but without a predicted person") for name in missing),
        *(Finding(name, "predicted, but not annotated: it cannot be evaluated") for name in extra),
    ]
    return dataclasses.replace(found, files=[path, *found.files], findings=findings)
