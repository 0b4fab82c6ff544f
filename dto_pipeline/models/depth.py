"""Kinds of depth maps, and maps from files; `models.depth_anything` has networks.

Every kind becomes disparity: larger is nearer; zero means unknown or infinitely far. The method reads ``1 / disparity``
as relative depth of unknown scale. Its published thresholds (`EvidenceConfig.far_depth` = 0.02) are in the unit of
Depth Anything on crowds, where one unit of relative depth is about `METRES_PER_DEPTH`. Metric maps are converted to
this unit, so that far begins at 10 m; the unit of relative maps is measured in each image (`maths.depth_evidence`).

Files are npy and npz (float16 to float64) and PNG (16 bits), one per image and of its size: they are never resized,
because their alignment is not known.
"""

from __future__ import annotations

import io
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from dto_pipeline.array_files import read_npy, read_npz
from dto_pipeline.config import METRES_PER_DEPTH
from dto_pipeline.paths import UnsafePath, resolve_inside
from dto_pipeline.reading import open_regular
from dto_pipeline.status import ImageStatus, UnusableImage

DISPARITY = "disparity"  # relative inverse depth, larger is nearer
DEPTH = "depth"  # relative depth, larger is farther, in units like 1 / disparity of Depth Anything
METRIC_DEPTH = "metric_depth"  # distance along the camera axis in metres
NPZ_KEYS = {DISPARITY: "disparity", DEPTH: "depth", METRIC_DEPTH: "depth"}  # array of a npz, by kind
NPZ_FOCAL = "focal"  # of a metric npz: the focal length that its metres were made with [px of the image]
_PNG_EXTRA = 1 << 20  # bytes a PNG may have beyond twice its pixels: headers, notes
_NAMES_SHOWN = 10  # arrays of a file, in a message
_UNNAMED = "no depth map is named for this image; set `depth` in the dataset YAML or depth.root"


def as_disparity(values: np.ndarray, kind: str, scale: float = 1.0) -> np.ndarray:
    """A map (H, W) of any real type and of a declared kind as float32 disparity. NaN and negative numbers stay.

    `values` times `scale` (0.001 for millimetres) are in the unit of `kind`; 0 = unknown, and so is infinity of depths.
    """
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # overflow is reported as not finite
        scaled = values.astype(np.float32) * np.float32(scale)
        if kind == DISPARITY:
            return scaled
        unit = METRES_PER_DEPTH if kind == METRIC_DEPTH else 1.0
        return np.where(scaled == 0, np.float32(0), np.float32(unit) / scaled)


def is_metric(origin: str | None) -> bool:
    """True for a map of metres, by its origin (the label column `depth_origin`), which begins with the kind."""
    return (origin or "").startswith(METRIC_DEPTH)


class DepthMissing(UnusableImage):
    """There is no depth map for this image."""

    status = ImageStatus.DEPTH_MISSING


class DepthInvalid(UnusableImage):
    """The depth map is damaged, of another size, not finite, negative or zero everywhere."""

    status = ImageStatus.DEPTH_INVALID


class DepthFiles:
    """Depth maps in a folder, read from several threads; without a folder every map is missing."""

    def __init__(self, root: str | Path | None, kind: str = DISPARITY, scale: float = 1.0) -> None:
        """`kind` and `scale` of the stored numbers: see `as_disparity`."""
        self.root = None if root is None else Path(root)
        self.kind, self.scale = kind, scale
        self.origin = "file" if kind == DISPARITY else f"{kind} file"  # of the label column depth_origin

    def load(self, depth_file: str | None, height: int, width: int, focal: float | None = None) -> np.ndarray:
        """Read one map.

        Args:
            depth_file: path relative to `root`; None = the manifest names none.
            height, width: size of the image [px], which the map must have.
            focal: of the labels' camera [px]. Metres that were made with another focal length (`NPZ_FOCAL`) are
                converted: with twice the focal length, what has the same size in the image is twice as far.

        Returns: (height, width) float32 disparity, larger is nearer, all finite and >= 0, somewhere > 0.

        Raises:
            DepthMissing: no file is named, or it does not exist.
            DepthInvalid: the file cannot be used; the message says why.
        """
        if not depth_file:
            raise DepthMissing(_UNNAMED)
        try:
            with self._open(depth_file) as source:
                array, own = _read_array(source, PurePosixPath(depth_file).suffix, (height, width), self.kind)
        except FileNotFoundError as error:
            raise DepthMissing(f"depth map {depth_file} does not exist") from error
        except UnsafePath as error:
            raise DepthInvalid(str(error)) from error
        except (ValueError, OSError) as error:
            reason = getattr(error, "strerror", None) or error  # without the path, so that labels do not depend on it
            raise DepthInvalid(f"depth map {depth_file} cannot be read: {reason}") from error
        longer = 1.0 if own is None or focal is None else focal / own
        disparity = as_disparity(array, self.kind, self.scale * longer)
        lowest, highest = float(disparity.min()), float(disparity.max())
        if not np.isfinite(lowest + highest):  # NaN passes through min and max
            raise DepthInvalid(f"depth map {depth_file} holds values that are not finite")
        if lowest < 0:
            raise DepthInvalid(f"depth map {depth_file} holds negative numbers; expected {self.kind} of 0 or more")
        if highest == 0:
            raise DepthInvalid(f"depth map {depth_file} is zero everywhere")
        return disparity

    def _open(self, depth_file: str) -> BinaryIO:
        """The file of a map (`data.remote_inputs` has another); raises FileNotFoundError, ValueError or OSError."""
        if self.root is None:
            raise DepthMissing(_UNNAMED)
        return open_regular(resolve_inside(self.root, depth_file))


def _read_array(source: BinaryIO, suffix: str, shape: tuple[int, int], kind: str) -> tuple[np.ndarray, float | None]:
    """The array of a npy, npz or PNG, read only if its header fits the image, and its focal length."""

    def check(key: str, found: tuple[int, ...], dtype: np.dtype) -> None:
        if key == NPZ_FOCAL:
            if found not in ((), (1,)):
                raise ValueError(f"the shape of {NPZ_FOCAL!r} is {found}; expected one number [px]")
            return
        if found != shape:
            raise ValueError(f"its shape is {found}; expected that of the image {shape}")
        if dtype.kind != "f" or dtype.itemsize > 8:
            raise ValueError(f"its type is {dtype}; expected float16, float32 or float64")

    if suffix == ".png":
        return _read_png(source, shape), None
    if suffix != ".npz":
        return read_npy(source, check), None
    npz_key = NPZ_KEYS[kind]
    arrays, names = read_npz(source, [npz_key, NPZ_FOCAL] if kind == METRIC_DEPTH else [npz_key], check)
    if npz_key not in arrays:
        raise ValueError(f"npz holds {sorted(names)[:_NAMES_SHOWN]}; expected {npz_key!r}")
    own = float(arrays[NPZ_FOCAL].reshape(())) if NPZ_FOCAL in arrays else None
    if own is not None and not 0 < own < float("inf"):
        raise ValueError(f"{NPZ_FOCAL!r} is {own:g}; expected a focal length above 0 [px]")
    return arrays[npz_key], own


def _read_png(source: BinaryIO, shape: tuple[int, int]) -> np.ndarray:
    size, most = source.seek(0, io.SEEK_END), 4 * shape[0] * shape[1] + _PNG_EXTRA
    if size > most:
        raise ValueError(f"it is a PNG of {size} bytes; expected at most {most} for an image of {shape}")
    source.seek(0)
    try:  # from memory: from a file, Pillow requests as many bytes as a chunk claims to have
        with Image.open(io.BytesIO(source.read()), formats=["PNG"]) as image:
            if image.size != shape[::-1]:
                raise ValueError(f"its shape is {image.size[::-1]}; expected that of the image {shape}")
            if not image.mode.startswith("I"):
                raise ValueError(f"it is a PNG of mode {image.mode}; expected one channel of 16 bits")
            return np.asarray(image)
    except UnidentifiedImageError as error:  # its text holds an address
        raise ValueError("it is not a PNG") from error
    except (ValueError, OSError, MemoryError):
        raise
    except Exception as error:  # Pillow raises any type on damaged files
        raise ValueError(f"it is not a whole PNG: {error}") from error
