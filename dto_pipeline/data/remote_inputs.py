"""Depth maps and body models from a folder or URI. Maps are read in place; a body model is copied while it loads."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from dto_pipeline.config import DepthConfig
from dto_pipeline.data.storage import STORAGE_ERRORS, Location, as_location, error_text, local_copy, open_store
from dto_pipeline.models.body import BodyModel, BodyModelError, load_body
from dto_pipeline.models.depth import DepthFiles
from dto_pipeline.paths import check_relative

_MOST_DEPTH_BYTES = 1 << 31  # of one file: twice float64 for the largest image


class RemoteDepth(DepthFiles):
    """Depth maps below a URI; otherwise as `DepthFiles`."""

    def __init__(self, root: str, kind: str, scale: float) -> None:
        super().__init__(None, kind, scale)
        self.place = root

    def _open(self, depth_file: str) -> io.BytesIO:
        try:
            return io.BytesIO(open_store(self.place).read(check_relative(depth_file), _MOST_DEPTH_BYTES))
        except FileNotFoundError:
            raise
        except STORAGE_ERRORS as error:
            raise ValueError(error_text(error)) from error


def open_depth(config: DepthConfig, root: Location) -> DepthFiles:
    """The maps below a folder or URI ("" = none), of the kind and scale of a config."""
    place = as_location(root)
    if isinstance(place, Path):
        return DepthFiles(root, config.kind, config.scale)
    return RemoteDepth(place, config.kind, config.scale)


def fetch_body(path: Location, kid_axis: bool = True, device: torch.device | str = "cpu") -> BodyModel:
    """`models.body.load_body` of a path or URI. Raises: BodyModelError: nothing is there, or it cannot be read."""
    try:
        with local_copy(as_location(path), (".npz",)) as copy:
            return load_body(copy, kid_axis, device)
    except FileNotFoundError as error:
        raise BodyModelError(f"no body model at {path}; expected an npz made by `dto body import`") from error
    except STORAGE_ERRORS as error:
        raise BodyModelError(f"the body model at {path} cannot be read: {error}") from error
