"""Read true joints in space: MuPoTS-3D and CMU Panoptic, in their own files.

    MuPoTS-3D     ROOT/TS1 .. TS20, each with annot.mat (MATLAB 5: cells of frames x people) and img_000000.jpg ...
    CMU Panoptic  ROOT/SEQUENCE with calibration_SEQUENCE.json and hdPose3d_stage1_coco19 (or hdPose3d_stage1, 15
                  joints) / body3DScene_00000000.json; images hdImgs/00_16/00_16_00000000.jpg

Metres in the camera frame, pixels.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from dto_pipeline.errors import DtoError
from dto_pipeline.reading import parse_json, read_regular

MUPOTS_JOINTS, PANOPTIC_JOINTS = 17, 15
_MOST_BYTES = 1 << 28  # of a file
_PANOPTIC_FOLDERS = {"hdPose3d_stage1_coco19": ("joints19", 19), "hdPose3d_stage1": ("joints15", 15)}
_NOT_SHARED = 1  # of the 15: the top of the head, the nose in files of 19 joints
_EXTENTS = 0.3, 3.0  # of the joints of a person in space, the median of all [m]
_FRAME = re.compile(r"body3DScene_(\d{8})\.json")


class JointTruthError(DtoError, ValueError):
    """Files in another format; the message names the file, what was found and what was expected."""


@dataclass(frozen=True)
class JointTruth:
    """n people of N images, ordered by image."""

    source: str
    images: tuple[str, ...]  # names below the root
    sequence: np.ndarray  # (N,) object, of each image
    owner: np.ndarray  # (n,) int64 image of each person
    joints: np.ndarray  # (n, J, 3) float64 [m], NaN = unknown
    places: np.ndarray  # (n, J, 2) float64 [px], NaN = unknown
    unusable: int  # people that the files mark as not valid


_Person = tuple[int, np.ndarray, np.ndarray]  # image, joints [m], places [px]


def read_mupots(root: str | Path) -> JointTruth:
    """All sequences of a folder. Raises: JointTruthError."""
    files = sorted(Path(root).glob("TS*/annot.mat"), key=lambda path: (len(path.parent.name), path.parent.name))
    if not files:
        raise JointTruthError(f"{root} holds no TS*/annot.mat; name the folder of MuPoTS-3D (MultiPersonTestSet)")
    images, people, unusable = list[str](), list[_Person](), 0
    for path in files:
        for frame, row in enumerate(_read_mat(path)):
            for cell in row:
                joints, places, valid = _read_cell(cell, f"{path}, frame {frame}")
                unusable += not valid
                if valid:
                    people.append((len(images), joints, places))
            images.append(f"{path.parent.name}/img_{frame:06d}.jpg")
    return _join(str(root), images, people, MUPOTS_JOINTS, unusable, "millimetres (annot3)")


def read_panoptic(root: str | Path, cameras: Sequence[str]) -> JointTruth:
    """All sequences of a folder, seen by some HD cameras (``00_16``). Raises: JointTruthError."""
    calibrations = sorted(Path(root).glob("*/calibration_*.json"))
    if not calibrations:
        raise JointTruthError(f"{root} holds no SEQUENCE/calibration_SEQUENCE.json; name the folder of the sequences")
    images, people = list[str](), list[_Person]()
    for calibration in calibrations:
        folder, views = calibration.parent, _read_cameras(calibration, cameras)
        kind = next((kind for kind in _PANOPTIC_FOLDERS if (folder / kind).is_dir()), None)
        if kind is None:
            raise JointTruthError(f"{folder} has none of {', '.join(_PANOPTIC_FOLDERS)}; unpack its hdPose3d archive")
        for path in sorted(path for path in (folder / kind).iterdir() if _FRAME.fullmatch(path.name)):
            crowd = _read_frame(path, *_PANOPTIC_FOLDERS[kind])
            for camera, view in views.items():
                people += [(len(images), *_see(world, view)) for world in crowd]
                images.append(f"{folder.name}/hdImgs/{camera}/{camera}_{path.stem[-8:]}.jpg")
    return _join(str(root), images, people, PANOPTIC_JOINTS, 0, "centimetres")


def _join(source: str, images: list[str], people: list[_Person], joints: int, unusable: int, unit: str) -> JointTruth:
    seen = [places[np.isfinite(places).all(1)] for _, places, _ in people]
    extents = [float(np.linalg.norm(np.ptp(places, axis=0))) for places in seen if len(places) > 1]
    if extents and not _EXTENTS[0] <= (extent := float(np.median(extents))) <= _EXTENTS[1]:
        raise JointTruthError(f"{source}: its people are {extent:.3g} m large; expected joints in {unit}")
    return JointTruth(
        source=source,
        images=tuple(images),
        sequence=np.array([name.partition("/")[0] for name in images], dtype=object),
        owner=np.array([owner for owner, _, _ in people], np.int64),
        joints=np.array([places for _, places, _ in people], np.float64).reshape(-1, joints, 3),
        places=np.array([places for _, _, places in people], np.float64).reshape(-1, joints, 2),
        unusable=unusable,
    )


@contextmanager
def _expecting(where: object, what: str) -> Iterator[None]:
    """Raise JointTruthError for a file that cannot be read or is not as expected; scipy raises any type of error."""
    try:
        yield
    except Exception as error:
        raise JointTruthError(f"{where} cannot be read ({error or type(error).__name__}); expected {what}") from error


def _read_mat(path: Path) -> np.ndarray:
    with _expecting(path, "MATLAB 5 with annotations, frames x people"):
        data = io.BytesIO(read_regular(path, _MOST_BYTES))
        cells = loadmat(data, variable_names=["annotations"])["annotations"]
        if cells.dtype != object or cells.ndim != 2:
            raise ValueError(f"annotations is {cells.dtype} of shape {cells.shape}")
    return cells


def _read_cell(cell: Any, where: str) -> tuple[np.ndarray, np.ndarray, bool]:
    with _expecting(where, "annot3 (3 x 17), annot2 (2 x 17) and isValidFrame, as annot.mat of MuPoTS-3D has"):
        parts = [np.asarray(cell[name][0, 0], np.float64) for name in ("annot3", "annot2", "isValidFrame")]
        if parts[0].shape != (3, MUPOTS_JOINTS) or parts[1].shape != (2, MUPOTS_JOINTS) or parts[2].size != 1:
            raise ValueError(f"shapes {[part.shape for part in parts]}")
    return parts[0].T / 1000, parts[1].T, bool(parts[2].item())


def _read_cameras(path: Path, wanted: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    shapes, found = {"K": (3, 3), "R": (3, 3), "t": (3, 1), "distCoef": (5,)}, {}
    with _expecting(path, "Panoptic's cameras"):
        for camera in parse_json(read_regular(path, _MOST_BYTES))["cameras"]:
            if camera["name"] in wanted:
                arrays = {key: np.array(camera[key], np.float64).reshape(shape) for key, shape in shapes.items()}
                found[str(camera["name"])] = arrays
    if missing := [name for name in wanted if name not in found]:
        raise JointTruthError(f"{path} has no camera {', '.join(missing)}; choose HD cameras such as 00_16")
    return found


def _read_frame(path: Path, key: str, count: int) -> list[np.ndarray]:
    """(15, 3) joints [m] of each person in world coordinates, NaN = not seen."""
    crowd = []
    with _expecting(path, f"bodies with {count} x 4 numbers {key}"):
        for body in parse_json(read_regular(path, _MOST_BYTES))["bodies"]:
            points = np.array(body[key], np.float64).reshape(count, 4)
            joints = np.where(points[:PANOPTIC_JOINTS, 3:] > 0, points[:PANOPTIC_JOINTS, :3] / 100, np.nan)
            if count != PANOPTIC_JOINTS:
                joints[_NOT_SHARED] = np.nan
            crowd.append(joints)
    return crowd


def _see(world: np.ndarray, camera: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Joints in a camera's frame [m] and their places in its image [px], with lens distortion."""
    joints = world @ camera["R"].T + camera["t"].T / 100
    x, y = (joints[:, :2] / joints[:, 2:]).T
    k1, k2, p1, p2, k3 = camera["distCoef"]
    r = x * x + y * y
    radial = 1 + k1 * r + k2 * r**2 + k3 * r**3
    bent_x = x * radial + 2 * p1 * x * y + p2 * (r + 2 * x * x)
    bent_y = y * radial + p1 * (r + 2 * y * y) + 2 * p2 * x * y
    bent = np.stack([bent_x, bent_y, np.ones_like(x)], axis=1)
    return joints, (bent @ camera["K"].T)[:, :2]
