"""RelativeHuman's annotation files ``{train,val,test}_annots.npz``: one object array, read without running it.

| key of a person     | becomes                                                    |
|---------------------|------------------------------------------------------------|
| kp2d                | kp2d (14, 3) or (19, 3); flat lists are cut into triples   |
| depth_id            | depth_id, the layer; -1 = unknown                          |
| age, gender         | age, gender as codes; -1 = unknown                         |
| bbox                | bbox_xyxy of the visible part [px]                         |

Other keys (bbox_wb, body_type, occluded_by_others) are not read. What cannot be understood about a person becomes
unknown, and is listed with its reason; nobody is dropped, because the metrics count by position. These are annotations
for evaluation: they hold no body and no camera.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.data.npz import safe_load_npz
from dto_pipeline.data.sources.relative_human_joints import (
    AGES,
    BK_JOINTS,
    EVALUATED_JOINTS,
    GENDERS,
    UNKNOWN,
    Annotation,
)
from dto_pipeline.data.sources.rows import LabelFileError

ARRAY = "annots"
_LAYOUTS = (len(EVALUATED_JOINTS), len(BK_JOINTS))
_READ = ("kp2d", "depth_id", "age", "gender", "bbox")
_MAX_LAYER = 99  # published layers end at 9


@dataclass(frozen=True)
class AnnotationProblem:
    """Something about one person that could not be understood and is taken as unknown."""

    image: str
    person: int  # position among the people of the image
    problem: str


@dataclass(frozen=True)
class RelativeHumanAnnotations:
    """A whole annotation file."""

    images: dict[str, tuple[Annotation, ...]]  # file name -> people, in file order
    problems: tuple[AnnotationProblem, ...]


def read_annotations(path: str | Path) -> RelativeHumanAnnotations:
    """Read an annotation file.

    Raises:
        UnsafePickle, BrokenPickle: see `data.safe_pickle`; the message names file and member.
        LabelFileError: a sound npz that holds something else.
        OSError: the file cannot be read.
    """
    found = safe_load_npz(path, keys=(ARRAY,)).get(ARRAY)
    images = found[()] if found is not None and found.shape == () else None
    if not isinstance(images, dict) or not all(isinstance(people, list) for people in images.values()):
        held = "no such array" if found is None else f"{found.dtype} {found.shape}"
        raise LabelFileError(f"{path}, key {ARRAY!r}: {held}; expected one dict of image name -> list of people")
    problems: list[AnnotationProblem] = []
    annotations = {
        str(name): tuple(_read_person(str(name), row, person, problems) for row, person in enumerate(people))
        for name, people in images.items()
    }
    if not any(_tells_something(person) for people in annotations.values() for person in people):
        keys = sorted({str(key) for people in images.values() for person in people for key in _keys(person)})
        raise LabelFileError(
            f"{path} lists {sum(map(len, images.values()))} people of whom nothing can be used; they hold {keys[:12]}, "
            f"expected some of {list(_READ)}"
        )
    return RelativeHumanAnnotations(annotations, tuple(problems))


def _tells_something(person: Annotation) -> bool:
    codes = (person.depth_id, person.age, person.gender)
    return person.kp2d is not None or person.bbox_xyxy is not None or any(code != UNKNOWN for code in codes)


def _keys(person: Any) -> list[Any]:
    return list(person) if isinstance(person, Mapping) else []


def _read_person(image: str, row: int, person: Any, problems: list[AnnotationProblem]) -> Annotation:
    if not isinstance(person, Mapping):
        problems.append(AnnotationProblem(image, row, f"is {type(person).__name__}, expected a dict"))
        return Annotation(None, UNKNOWN, UNKNOWN)

    def take(key: str, read: Callable[[Any], Any], otherwise: Any) -> Any:
        try:
            return otherwise if person.get(key) is None else read(person[key])
        except (TypeError, ValueError, OverflowError) as error:
            problems.append(AnnotationProblem(image, row, f"{key}: {error}"))
            return otherwise

    return Annotation(
        kp2d=take("kp2d", _keypoints, None),
        depth_id=take("depth_id", lambda value: _code(value, _MAX_LAYER + 1), UNKNOWN),
        age=take("age", lambda value: _code(value, len(AGES)), UNKNOWN),
        gender=take("gender", lambda value: _code(value, len(GENDERS)), UNKNOWN),
        bbox_xyxy=take("bbox", _box, None),
    )


def _keypoints(value: Any) -> np.ndarray:
    flat = np.asarray(value, dtype=np.float32)
    if flat.size not in [3 * joints for joints in _LAYOUTS] or (flat.ndim > 1 and flat.shape[-1] != 3):
        raise ValueError(f"shape {flat.shape}, expected {' or '.join(f'({joints}, 3)' for joints in _LAYOUTS)}")
    return flat.reshape(-1, 3)


def _code(value: Any, count: int) -> int:
    code = int(value)
    if code != value or not UNKNOWN <= code < count:
        raise ValueError(f"{value!r}, expected {UNKNOWN} .. {count - 1}")
    return code


def _box(value: Any) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(side) for side in value)
    return left, top, right, bottom
