"""Which file a named body model is; without loading it, so that the driver of a run need not load PyTorch."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from dto_pipeline.config import NAME_A_BODY, STAND_IN_BODY
from dto_pipeline.errors import DtoError

_NAMES = ("SMPLA_NEUTRAL.npz", "SMPL_NEUTRAL.npz")  # of a folder's body, the first that is there


class BodyModelError(DtoError, ValueError):
    """A file that is not a usable body model; the message says what was found and what to do."""


def locate_body(path: str | Path) -> Path:
    """The npz of a body model.

    Args:
        path: npz file, or a folder holding one of `_NAMES`; "demo" = the stand-in body of the package.

    Raises:
        BodyModelError: none is named, or nothing is there.
    """
    if not str(path):
        raise BodyModelError(f"no body model is named; {NAME_A_BODY}")
    place = Path(str(files("dto_pipeline.assets"))) if str(path) == STAND_IN_BODY else Path(path)
    for file in [place / name for name in _NAMES] if place.is_dir() else [place]:
        if file.is_file():
            return file
    raise BodyModelError(f"no body model at {path}; expected an npz made by `dto body import`")
