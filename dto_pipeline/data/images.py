"""Image files: their pixels, their size and the sha256 of their bytes.

Knows JPEG (simplejpeg, Pillow where that refuses) and whatever else Pillow opens. Pixels stay as stored: an EXIF
orientation is ignored, because labels refer to un-rotated pixels. Sizes in pixels.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from dto_pipeline.data.storage import STORAGE_ERRORS, Location, error_text, read_head
from dto_pipeline.paths import UnsafePath, resolve_inside
from dto_pipeline.reading import read_start
from dto_pipeline.status import ImageStatus, UnusableImage

MAX_PIXELS = 1 << 27  # of one image; a hostile header stops here
_HEADER_BYTES = 1 << 16  # nearly every image tells its size in its first bytes ...
_MOST_HEADER_BYTES = 1 << 28  # ... and where not, more of it is read, up to this: a stray large file fits in memory
MAX_FILE_BYTES = 1 << 30  # of an image file: more than MAX_PIXELS need in any format
_JPEG_MAGIC = b"\xff\xd8\xff"


class ImageMissing(UnusableImage):
    """There is no such image file."""

    status = ImageStatus.IMAGE_MISSING


class ImageCorrupt(UnusableImage):
    """The file is there but is not a whole image."""

    status = ImageStatus.IMAGE_CORRUPT


@dataclass(frozen=True)
class ImageFile:
    """A decoded image."""

    rgb: np.ndarray  # (H, W, 3) uint8
    sha256: str  # of the file's bytes, hex


class ImageStore(ABC):
    """Where images are kept under the names a manifest gives them; called from several threads."""

    @abstractmethod
    def read_bytes(self, image_file: str, limit: int | None = None) -> bytes:
        """The file as it is, or its first `limit` bytes; raises `ImageMissing` or `ImageCorrupt`."""

    def read(self, image_file: str) -> ImageFile:
        """Decode one image; raises `ImageMissing` or `ImageCorrupt`."""
        return decode_image(_bounded(self.read_bytes(image_file, MAX_FILE_BYTES + 1), image_file), image_file)

    def size(self, image_file: str) -> tuple[int, int]:
        """(width, height) [px] from its header, pixels are not decoded; raises `ImageMissing` or `ImageCorrupt`."""
        head = self.read_bytes(image_file, _HEADER_BYTES)
        try:
            return _decode_size(head, image_file)
        except ImageCorrupt:
            if len(head) < _HEADER_BYTES:
                raise
            return _decode_size(self.read_bytes(image_file, _MOST_HEADER_BYTES), image_file)


@dataclass(frozen=True)
class ImageFolder(ImageStore):
    """Images as files of a folder. A name that leaves the folder is never opened: it counts as corrupt."""

    root: Path

    def read_bytes(self, image_file: str, limit: int | None = None) -> bytes:
        """See `ImageStore`."""
        try:
            path = resolve_inside(self.root, image_file)
        except UnsafePath as error:
            raise ImageCorrupt(str(error)) from error
        return _read_file(path, image_file, limit)


@dataclass(frozen=True)
class RemoteImages(ImageStore):
    """Images as files below a URI; otherwise as `ImageFolder`."""

    root: str

    def read_bytes(self, image_file: str, limit: int | None = None) -> bytes:
        """See `ImageStore`."""
        try:
            return read_head(self.root, image_file, limit)
        except FileNotFoundError as error:
            raise ImageMissing(f"image {image_file} does not exist") from error
        except UnsafePath as error:
            raise ImageCorrupt(str(error)) from error
        except STORAGE_ERRORS as error:
            raise ImageCorrupt(f"image {image_file} cannot be read: {error_text(error)}") from error


def open_folder(root: Location) -> ImageStore:
    """The store of plain image files in a folder or below a URI."""
    return ImageFolder(root) if isinstance(root, Path) else RemoteImages(root)


def read_image(path: str | Path) -> ImageFile:
    """Decode an image file.

    Raises:
        ImageMissing: there is no file.
        ImageCorrupt: it cannot be read or decoded completely.
    """
    return decode_image(_bounded(_read_file(Path(path), str(path)), str(path)), str(path))


def decode_image(data: bytes, name: str) -> ImageFile:
    """Decode the bytes of an image file; errors call it `name`.

    Raises:
        ImageCorrupt: the bytes are not a whole image.
    """
    rgb = _decode_jpeg(data) if data.startswith(_JPEG_MAGIC) else None
    if rgb is None:
        rgb = _decode_with_pillow(data, name)
    return ImageFile(rgb=rgb, sha256=hashlib.sha256(data).hexdigest())


def _decode_size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) [px] from the first bytes of an image file; raises `ImageCorrupt` where they hold no header."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except Exception as error:  # Pillow's plugins raise any type on damaged files
        raise ImageCorrupt(f"image {name} has no readable header: {_reason(error)}") from error
    _check_size(width, height, name)
    return width, height


def _read_file(path: Path, name: str, limit: int | None = None) -> bytes:
    try:
        return read_start(path, MAX_FILE_BYTES + 1 if limit is None else limit)
    except FileNotFoundError as error:
        raise ImageMissing(f"image {name} does not exist") from error
    except OSError as error:
        raise ImageCorrupt(f"image {name} cannot be read: {_reason(error)}") from error


def _bounded(data: bytes, name: str) -> bytes:
    if len(data) > MAX_FILE_BYTES:
        raise ImageCorrupt(f"image {name} holds more than {MAX_FILE_BYTES} bytes")
    return data


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """(H, W, 3), or None where libjpeg complains: Pillow then decides whether it is a quirk (CMYK, stray bytes)."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        if height * width > MAX_PIXELS:
            return None
        return simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False)
    except ValueError:
        return None


def _decode_with_pillow(data: bytes, name: str) -> np.ndarray:
    _decode_size(data, name)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))  # a copy: Pillow's own buffer is read-only
    except MemoryError:  # within MAX_PIXELS: the machine lacks it
        raise
    except Exception as error:  # Pillow's plugins raise any type on damaged files
        raise ImageCorrupt(f"image {name} ({len(data)} bytes) cannot be decoded: {_reason(error)}") from error


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise ImageCorrupt(f"image {name} claims {width} x {height} pixels; expected 1 .. {MAX_PIXELS}")


def _reason(error: Exception) -> str:
    """Text of an error without paths and addresses: it ends up in labels, which are equal on every machine."""
    if isinstance(error, UnidentifiedImageError):
        return "no known image format"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
