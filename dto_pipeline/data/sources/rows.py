"""What every source of labels delivers: rows of people in this project's own names, one per label row.

Knows what makes a label row usable; knows no file format. Camera frame and units as in `dto_pipeline`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, runtime_checkable

import numpy as np

from dto_pipeline.bounds import ASIDE, BETAS, DISTANCE, POSE
from dto_pipeline.data.sources.sidecar import SidecarRows
from dto_pipeline.errors import DtoError

POSE_NOT_FINITE = "pose is not finite"
BETAS_NOT_FINITE = "betas are not finite"
TRANSL_NOT_FINITE = "transl is not finite"
BEHIND_CAMERA = "transl has z <= 0: the person is not in front of the camera"
LABEL_VALUES = ("after", "before")
ROW_PROBLEMS = (
    *(None, POSE_NOT_FINITE, BETAS_NOT_FINITE, TRANSL_NOT_FINITE, BEHIND_CAMERA),
    *map(str, (POSE, BETAS, DISTANCE, ASIDE)),
)


class LabelFileError(DtoError, ValueError):
    """A label file that cannot be used at all; names file, key, what was found and what was expected."""


@dataclass(frozen=True)
class LabelRows:
    """n people, one per label row, not yet judged."""

    pose: np.ndarray  # (n, 72) float32 axis-angle [rad], root first
    betas: np.ndarray  # (n, 11) float32, kid axis last (0 where the source has ten)
    transl: np.ndarray  # (n, 3) float32 [m]
    bbox_xyxy: np.ndarray  # (n, 4) float32 [px], NaN = unknown
    intrinsics: np.ndarray  # (n, 3, 3) float64 [px], as told by each row; cx and cy both NaN = the image's centre
    seen: SidecarRows | None = field(default=None, kw_only=True)  # what the file itself tells of these; None = nothing
    keypoints: np.ndarray | None = field(
        default=None, kw_only=True
    )  # (n, J, 3) float32 u, v [px], confidence (0 = none)


@dataclass(frozen=True)
class SourceOptions:
    """What a source is asked for besides its file; each looks at what concerns it."""

    values: str = "after"  # label files of this project: values after or before optimisation, see LABEL_VALUES
    predictions: Path | None = None  # RelativeHuman: predicted people, its own files hold no bodies
    keypoints: bool = False  # fill `LabelRows.keypoints` where the file has them


@dataclass(frozen=True)
class Finding:
    """Something a source noticed that no label row stands for."""

    image: str
    reason: str


class LabelSource(Protocol):
    """An open label file. Use as a context manager."""

    num_rows: int
    files: list[Path]  # read by this source; their sha256 go into the manifest

    def image_names(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) str: image of each of these rows, relative to the images folder."""
        ...

    def rows(self, index: np.ndarray) -> LabelRows:
        """The rows named by `index` (n,) int, in this order."""
        ...

    def __enter__(self) -> LabelSource: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class NoticingSource(Protocol):
    """A source that noticed more than its rows tell."""

    findings: Sequence[Finding]


def decode_names(names: np.ndarray) -> np.ndarray:
    """(n,) str from text or bytes; what is not UTF-8 becomes lone surrogates, which no path check lets through."""
    names = np.asarray(names)
    return names if names.dtype.kind == "U" else np.char.decode(names, "utf-8", "surrogateescape")


def find_row_problems(pose: np.ndarray, betas: np.ndarray, transl: np.ndarray) -> np.ndarray:
    """(n,) int index into `ROW_PROBLEMS` of the first reason why a row cannot be used; 0 = usable."""
    checks = (
        ~np.isfinite(pose).all(axis=1),
        ~np.isfinite(betas).all(axis=1),
        ~np.isfinite(transl).all(axis=1),
        ~(transl[:, 2] > 0),
        ~POSE.holds(pose).all(axis=1),
        ~BETAS.holds(betas).all(axis=1),
        ~DISTANCE.holds(transl[:, 2]),
        ~ASIDE.holds(transl[:, :2]).all(axis=1),
    )
    return np.select(checks, range(1, len(ROW_PROBLEMS)), default=0)
