"""Metric-Aware HMR's training files, in which DTO-Humans is released: ``{AIC,COCO,INSTA,MPII}_CHMR_SMPL_OPT.npz``.

    annots -> {image key: [{"smpl_param": {"shape": (10,) or (11,), "pose": (72,), "trans": (3,)},
                            "cam_param": {"focal": (2,), "princpt": (2,)}}, ...]}

The dictionary is read item by item into flat arrays: 0.4 kB of memory a person instead of the dictionary's 1.3 kB. A
person that is not as above keeps its row, with NaN as numbers and a finding with the reason; a file in which nobody can
be used is refused. People keep the order of the file. Metres, radians, pixels.

When a manifest is built, an image's name is its key in the file (`a/b/c.jpg` below `insta-train/` for INSTA, the base
name for the others): `images` is the folder these keys are relative to, or `image_prefixes` leads there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.cameras import camera_matrices
from dto_pipeline.data.inert_pickle import PickleRefused, check_values
from dto_pipeline.data.npz import ITEM_LIMITS, read_items
from dto_pipeline.data.sources.rows import Finding, LabelFileError, LabelSource, find_row_problems

ARRAY = "annots"
BODY, CAMERA = "smpl_param", "cam_param"
NEEDED = f"{BODY} with pose (72,), shape (10,) or (11,), trans (3,) and {CAMERA} with focal (2,), princpt (2,)"
_BODY_NUMBERS, _CAMERA_NUMBERS = 72 + NUM_BETAS + 3, 4
_FAULTS = (KeyError, IndexError, TypeError, ValueError, OverflowError, PickleRefused)  # of a person's values


def open_ma_hmr(path: Path) -> LabelSource:
    """Open a ``*_CHMR_SMPL_OPT.npz`` and read it into memory.

    Raises:
        LabelFileError: it lists an image twice, or nobody that can be used; with its content.
        FileNotFoundError, PickleRefused: no such file; not an npz, damaged, or with something that is not allowed.
    """
    counts, findings = dict[str, int](), list[Finding]()  # image -> people
    bodies, cameras = bytearray(), bytearray()

    def add(key: Any, people: Any) -> None:
        name, listed = str(key), _listed(people)
        if name in counts:
            raise LabelFileError(f"{path}: image {name} is listed twice; expected every image once")
        counts[name] = len(listed)
        for place, person in enumerate(listed):
            try:
                body, camera = _read_person(person)
            except _FAULTS as error:
                body, camera = np.full(_BODY_NUMBERS, np.nan), np.full(_CAMERA_NUMBERS, np.nan)
                what = (
                    f"{error}" if isinstance(error, PickleRefused | ValueError) else f"{type(error).__name__}: {error}"
                )
                findings.append(Finding(name, f"person {place}: {what}; expected {NEEDED}"))
            with np.errstate(over="ignore"):  # what single precision cannot hold becomes infinite
                bodies.extend(body.astype(np.float32).tobytes())
            cameras.extend(camera.tobytes())

    read_items(path, ARRAY, add)
    numbers = np.frombuffer(bodies, np.float32).reshape(-1, _BODY_NUMBERS)
    pose, betas, transl = np.split(numbers, (72, 72 + NUM_BETAS), axis=1)
    if (find_row_problems(pose, betas, transl) > 0).all():
        why = findings[0].reason if findings else "their numbers are not finite or behind the camera"
        raise LabelFileError(
            f"{path} lists {len(counts)} images with {len(numbers)} people, of whom none can be used ({why}); expected "
            f"{NEEDED}"
        )
    intrinsics = camera_matrices(np.frombuffer(cameras).reshape(-1, _CAMERA_NUMBERS))
    return LabelSource(
        files=[path],
        image_names=np.repeat(np.array(list(counts), object), list(counts.values())),
        columns={"pose": pose, "betas": betas, "transl": transl, "intrinsics": intrinsics},
        findings=findings,
        empty_images=[name for name, count in counts.items() if not count],
    )


def first_people(path: Path, most: int = 1000) -> list[Any]:
    """The first people of a file, as plain values, each of any type. Raises: PickleRefused, FileNotFoundError."""
    found: list[Any] = []

    def take(_: Any, people: Any) -> bool:
        found.extend(_listed(people))
        return len(found) >= most

    read_items(path, ARRAY, take, look=True)
    for person in found[:most]:
        check_values(person, ITEM_LIMITS)
    return found[:most]


def _read_person(person: Any) -> tuple[np.ndarray, np.ndarray]:
    """Pose, betas, transl (86,) and the camera fx, fy, cx, cy (4,), float64. Raises: `_FAULTS`: not as documented."""
    check_values(person, ITEM_LIMITS)
    body, camera = person[BODY], person[CAMERA]
    shape = _numbers(body, "shape", (NUM_BETAS - 1, NUM_BETAS))
    parts = _numbers(body, "pose", (72,)), shape, np.zeros(NUM_BETAS - shape.size), _numbers(body, "trans", (3,))
    view = _numbers(camera, "focal", (2,)), _numbers(camera, "princpt", (2,))
    return np.concatenate(parts), np.concatenate(view)


def _listed(people: Any) -> list[Any]:
    """The people of an image: a list, a tuple or an object array of them; anything else is one person."""
    is_array = type(people) is np.ndarray and people.dtype.hasobject
    return list(people.flat) if is_array else list(people) if isinstance(people, list | tuple) else [people]


def _numbers(holder: Any, key: str, lengths: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(holder[key], np.float64).reshape(-1)
    if values.size not in lengths:
        raise ValueError(f"{key} holds {values.size} numbers, expected {' or '.join(map(str, lengths))}")
    return values
