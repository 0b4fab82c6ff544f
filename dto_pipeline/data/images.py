"""Image files: their pixels, their size and the sha256 of their bytes.

Knows the formats of `image_decoding`. Pixels stay as stored: an EXIF orientation is ignored, because labels refer to
un-rotated pixels. Sizes in pixels.
"""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dto_pipeline.config import RunConfig
from dto_pipeline.data.image_decoding import ImageHeader, Undecodable, decode_pixels, read_header
from dto_pipeline.data.storage import STORAGE_ERRORS, Location, error_text, read_head
from dto_pipeline.paths import UnsafePath
from dto_pipeline.status import ImageStatus, UnusableImage

MAX_FILE_BYTES = 1 << 29  # of one image: 100 Mpx of RGBA without compression; nothing longer is read to its end
_HEADER_BYTES = 1 << 16  # nearly every image tells its size in its first bytes; of others more is read
_USUAL_BYTES = 1 << 25  # files up to this are read by several threads at once, larger ones one after the other
_LARGE_FILE = threading.Lock()


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
    size: tuple[int, int] = (0, 0)  # width and height of the photograph, which `rgb` may be smaller than [px]


class ImageStore(ABC):
    """Where images are kept under the names a manifest gives them; called from several threads."""

    @abstractmethod
    def read_bytes(self, image_file: str, limit: int | None = None) -> bytes:
        """The file as it is, or its first `limit` bytes; raises `ImageMissing` or `ImageCorrupt`."""

    def read(
        self, image_file: str, decode_memory_mb: int = RunConfig.decode_memory_mb, least_side: int = 0
    ) -> ImageFile:
        """Decode one image; raises `ImageMissing` or `ImageCorrupt`.

        Args:
            image_file: its name.
            decode_memory_mb: see `RunConfig.decode_memory_mb`.
            least_side: a JPEG may come smaller, its longer side not below this [px]; 0 = as it is.
        """
        data = self.read_bytes(image_file, _USUAL_BYTES + 1)
        if len(data) <= _USUAL_BYTES:
            return decode_image(data, image_file, decode_memory_mb, least_side)
        with _LARGE_FILE:
            whole = self.read_bytes(image_file, MAX_FILE_BYTES + 1)
            return decode_image(whole, image_file, decode_memory_mb, least_side)

    def size(self, image_file: str) -> tuple[int, int]:
        """(width, height) [px]; see `header`."""
        header = self.header(image_file)
        return header.width, header.height

    def header(self, image_file: str) -> ImageHeader:
        """What its header says, pixels are not decoded; raises `ImageMissing` or `ImageCorrupt`."""
        head = self.read_bytes(image_file, _HEADER_BYTES)
        try:
            try:
                return read_header(head)
            except Undecodable:
                if len(head) < _HEADER_BYTES:
                    raise
            with _LARGE_FILE:
                return read_header(self.read_bytes(image_file, MAX_FILE_BYTES))
        except Undecodable as error:
            raise ImageCorrupt(f"image {image_file} {error}") from error


@dataclass(frozen=True)
class ImageFolder(ImageStore):
    """Images as files of a folder or below a URI. A name that leaves it is never opened: it counts as corrupt."""

    root: Location

    def read_bytes(self, image_file: str, limit: int | None = None) -> bytes:
        """See `ImageStore`."""
        try:
            return read_head(self.root, image_file, MAX_FILE_BYTES + 1 if limit is None else limit)
        except FileNotFoundError as error:
            raise ImageMissing(f"image {image_file} does not exist") from error
        except UnsafePath as error:
            raise ImageCorrupt(str(error)) from error
        except STORAGE_ERRORS as error:
            raise ImageCorrupt(f"image {image_file} cannot be read: {error_text(error)}") from error


def read_image(path: str | Path) -> ImageFile:
    """Decode an image file of this machine.

    Raises:
        ImageMissing: there is no file.
        ImageCorrupt: it cannot be read or decoded completely.
    """
    path = Path(path)
    try:
        return ImageFolder(path.parent).read(path.name)
    except UnusableImage as error:
        raise type(error)(f"{path.parent}: {error}") from error


def decode_image(
    data: bytes, name: str, decode_memory_mb: int = RunConfig.decode_memory_mb, least_side: int = 0
) -> ImageFile:
    """Decode the bytes of an image file; errors call it `name`; `least_side` as in `ImageStore.read`.

    Raises:
        ImageCorrupt: the bytes are not a whole image of a format that is opened, or decoding them takes more memory
            than `decode_memory_mb` [MiB].
    """
    if len(data) > MAX_FILE_BYTES:
        raise ImageCorrupt(f"image {name} has more than {MAX_FILE_BYTES} bytes; no larger file is read")
    try:
        rgb = decode_pixels(data, decode_memory_mb, least_side)
    except Undecodable as error:
        raise ImageCorrupt(f"image {name} ({len(data)} bytes) {error}") from error
    size = (rgb.shape[1], rgb.shape[0])
    if least_side:
        header = read_header(data)
        size = (header.width, header.height)
    return ImageFile(rgb, hashlib.sha256(data).hexdigest(), size)
