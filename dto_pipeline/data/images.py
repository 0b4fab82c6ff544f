"""Image files: their pixels, size and sha256. Memory and work are bounded before anything is decoded.

Opens JPEG (also MPO, which phones store as .jpg), PNG, WebP and BMP. Other formats never reach a decoder: Pillow would
start Ghostscript for an EPS and read whole films for a GIF. Of several frames (MPO, animated PNG, WebP) the first is
the image. Pixels stay as they are stored: labels refer to images that no EXIF tag has rotated. Sizes in pixels.
"""

from __future__ import annotations

import hashlib
import io
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from dto_pipeline.config import RunConfig
from dto_pipeline.data.storage import STORAGE_ERRORS, Location, error_text, open_store
from dto_pipeline.paths import UnsafePath, check_relative
from dto_pipeline.status import ImageStatus, UnusableImage

MAX_FILE_BYTES = 1 << 29  # of one image: 100 Mpx of RGBA without compression; nothing longer is read to its end
_HEADER_BYTES = 1 << 16  # hold the size of nearly every image; where they do not, the whole file is read
_USUAL_BYTES = 1 << 25  # files up to this are read by several threads at once, larger ones one after the other
_LARGE_FILE = threading.Lock()
TAR_MARK = ".tar!"  # ends the tar's part in the address of an image in a tar, ``<tar>!<member>``
MAX_PIXELS = 1 << 27  # of one image
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # Pillow's names; its JPEG opens MPO too
# Memory of decoding besides the file, measured with Pillow 13 [bytes a pixel]: for JPEG the coefficients of four
# components (progressive) and an RGB copy; for WebP two canvases, decoded bytes and an RGBA image; else the image.
# All but the first also hold the (H, W, 3) result.
_BYTES_PER_PIXEL = {"JPEG": 13, "PNG": 7, "WEBP": 16, "BMP": 7}
_COPIES = 3  # of the file's bytes in memory, with those of Pillow and libwebp
_BAND_PIXELS = 1 << 20  # converted to RGB at once
_MOST_PIECES = 1 << 20  # chunks of a PNG, which Pillow reads one by one: some seconds of work
_MOST_SCANS = 128  # of a JPEG, each a pass over all pixels; encoders write about ten
_PNG, _JPEG, _JPEG_SCAN, _JPEG_END = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
_JPEG_FAULTS = (ValueError, KeyError)  # of simplejpeg: no JPEG; one with a subsampling it does not know
_EXIF_ORIENTATION = 0x0112  # tag: how a viewer shall turn the picture
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # what ends a scan
# MAX_PIXELS replaces Pillow's bound, which warns on the terminal for every photograph above 89 Mpx.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


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
    size: tuple[int, int] = (0, 0)  # width and height of the image in the file; `rgb` may be smaller [px]


class ImageStore:
    """Images in a folder or below a URI, read by the names a manifest gives them, from several threads.

    A name that leaves the folder counts as corrupt and is never opened.
    """

    def __init__(self, root: Location) -> None:
        self.root = root

    def read_bytes(self, image_file: str, limit: int | None = None) -> bytes:
        """The file as it is, or its first `limit` bytes; raises `ImageMissing` or `ImageCorrupt`."""
        try:
            name = check_relative(image_file)
            return open_store(self.root).read(name, MAX_FILE_BYTES + 1 if limit is None else limit)
        except FileNotFoundError as error:
            advice = "; it is in a tar, and the index (*.tars.parquet) is missing next to the manifest: copy it there"
            raise ImageMissing(
                f"image {image_file} does not exist{advice if TAR_MARK in image_file else ''}"
            ) from error
        except UnsafePath as error:
            raise ImageCorrupt(str(error)) from error
        except STORAGE_ERRORS as error:
            raise ImageCorrupt(f"image {image_file} cannot be read: {error_text(error)}") from error

    def read(
        self, image_file: str, decode_memory_mb: int = RunConfig.decode_memory_mb, least_side: int = 0
    ) -> ImageFile:
        """Decode one image; raises `ImageMissing` or `ImageCorrupt`.

        Args:
            decode_memory_mb: see `RunConfig.decode_memory_mb`.
            least_side: a JPEG may be decoded smaller, its longer side at least this [px]; 0 = never.
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
        """The header of an image; no pixel is decoded. Raises `ImageMissing` or `ImageCorrupt`."""
        head = self.read_bytes(image_file, _HEADER_BYTES)
        try:
            with suppress(Undecodable) if len(head) == _HEADER_BYTES else nullcontext():
                return read_header(head)
            with _LARGE_FILE:
                return read_header(self.read_bytes(image_file, MAX_FILE_BYTES))
        except Undecodable as error:
            raise ImageCorrupt(f"image {image_file} {error}") from error


def read_image(path: str | Path) -> ImageFile:
    """Decode an image file of this machine; raises `ImageMissing` or `ImageCorrupt`."""
    path = Path(path)
    try:
        return ImageStore(path.parent).read(path.name)
    except UnusableImage as error:
        raise type(error)(f"{path.parent}: {error}") from error


def decode_image(
    data: bytes, name: str, decode_memory_mb: int = RunConfig.decode_memory_mb, least_side: int = 0
) -> ImageFile:
    """Decode the bytes of an image file to (H, W, 3) uint8 RGB; errors call it `name`.

    Grey of 16 bits keeps its high byte, as colours of 16 bits do in Pillow. A JPEG that lacks nothing but its end
    marker is whole. With `least_side` a JPEG may be decoded at half its size or less, see `ImageStore.read`. All
    decoders of this process share `decode_memory_mb` [MiB]. Raises: ImageCorrupt: the bytes are not a whole image of a
    format that is opened, or decoding them takes more memory than that.
    """
    if len(data) > MAX_FILE_BYTES:
        raise ImageCorrupt(f"image {name} has more than {MAX_FILE_BYTES} bytes; no larger file is read")
    try:
        header = read_header(data)
        wanted = header.width * header.height * _BYTES_PER_PIXEL[header.format] + _COPIES * len(data)
        if wanted > decode_memory_mb << 20:
            raise Undecodable(
                f"is a {header.format} of {header.width} x {header.height} pixels, which takes {wanted >> 20} MiB to "
                f"decode; the limit is {decode_memory_mb}: raise run.decode_memory_mb, or store the image smaller or "
                "as a JPEG"
            )
        _check_work(data)
        with _BUDGET.take(wanted, decode_memory_mb << 20):
            rgb = _decode(data, header, least_side)
    except Undecodable as error:
        raise ImageCorrupt(f"image {name} ({len(data)} bytes) {error}") from error
    size = (header.width, header.height) if least_side else (rgb.shape[1], rgb.shape[0])
    return ImageFile(rgb, hashlib.sha256(data).hexdigest(), size)


class Undecodable(ValueError):
    """Bytes that are not decoded; the text follows the image's name and holds no path or memory address."""


@dataclass(frozen=True)
class ImageHeader:
    """What an image file says before its pixels."""

    width: int  # [px] of the pixels as they are stored
    height: int  # [px]
    orientation: int = 1  # EXIF: 1 = upright, 2 to 8 = a viewer turns or mirrors the picture, from 5 on sides swap
    format: str = ""  # of FORMATS

    def explain(self, width: float, height: float) -> str:
        """Why the image may be of another size than expected, as the end of a sentence; "" = unknown."""
        swapped = abs(self.width - height) <= 1 and abs(self.height - width) <= 1
        if self.orientation < 5 or not swapped:
            return ""
        return (
            f"; its EXIF note (orientation {self.orientation}) turns it to that size, and pixels are taken as stored: "
            "save the photo upright, without the note"
        )


class _Budget:
    """Memory that the decoders of this process share; each waits until enough is free."""

    def __init__(self) -> None:
        self._used, self._freed = 0, threading.Condition()

    @contextmanager
    def take(self, wanted: int, most: int) -> Iterator[None]:
        """Use `wanted` of `most` bytes for as long as the block lasts."""
        with self._freed:
            self._freed.wait_for(lambda: self._used == 0 or self._used + wanted <= most)
            self._used += wanted
        try:
            yield
        finally:
            with self._freed:
                self._used -= wanted
                self._freed.notify_all()


_BUDGET = _Budget()


def read_header(data: bytes) -> ImageHeader:
    """Size and format from the first bytes of a file. Raises: Undecodable: not found, or of another format."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        found = ImageHeader(*_webp_size(data), format="WEBP")  # Pillow would make the decoder, canvases and all
    else:
        found = _pillow_header(data)
    if found.width < 1 or found.height < 1 or found.width * found.height > MAX_PIXELS:
        raise Undecodable(f"claims {found.width} x {found.height} pixels; expected 1 .. {MAX_PIXELS}")
    return found


def _decode(data: bytes, header: ImageHeader, least_side: int) -> np.ndarray:
    if header.format == "JPEG":
        high, wide = header.height, header.width
        with suppress(*_JPEG_FAULTS):  # memory was counted by Pillow's size, libjpeg allocates by its own
            high, wide, *_ = simplejpeg.decode_jpeg_header(data, strict=False)
        if (high, wide) != (header.height, header.width):
            sizes = f"{wide} x {high} and {header.width} x {header.height}"
            raise Undecodable(f"is a JPEG with two sizes, {sizes}; save it again")
        is_wide = header.width >= header.height
        least = {"min_width" if is_wide else "min_height": least_side, "min_factor": 2} if least_side else {}
        rgb = _strict_jpeg(data, "RGB", least)
        if rgb is None and not data.endswith(_JPEG_END):
            ended = data + (_JPEG_END[1:] if data.endswith(_JPEG_END[:1]) else _JPEG_END)
            rgb = _strict_jpeg(ended, "RGB", least)
            if rgb is None and _strict_jpeg(ended, "CMYK") is not None:
                data = ended
        if rgb is not None:
            return rgb
    return _decode_with_pillow(data)


def _strict_jpeg(data: bytes, colours: str, least: Mapping[str, int] | None = None) -> np.ndarray | None:
    """(H, W, channels), scaled down to no less than `least`; None where libjpeg has any complaint.

    Pillow then tells damage from what is only unusual (CMYK, stray bytes).
    """
    try:
        return simplejpeg.decode_jpeg(data, colorspace=colours, fastdct=False, fastupsample=False, **(least or {}))
    except _JPEG_FAULTS:
        return None


def _decode_with_pillow(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.format == "BMP" and image.tile[0][0] != "raw":
                raise Undecodable("is a compressed BMP, which is not opened; convert it to PNG")
            image.load()
            image.fp = None  # a WebP keeps its decoded bytes there
            return _bands_to_rgb(image)
    except (Undecodable, MemoryError):  # the machine lacks memory that the limit allows: not the image's fault
        raise
    except Exception as error:  # Pillow's plugins raise any type on damaged files
        raise Undecodable(f"cannot be decoded: {_reason(error)}") from error


def _bands_to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3), a band of rows at a time: a second image of this size would double the memory."""
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    step = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, step):
        band = image.crop((0, top, image.width, min(top + step, image.height)))
        if band.mode.startswith("I"):  # grey of 16 bits, which Pillow would clip to white
            rgb[top : top + step] = (np.asarray(band).clip(0, 65535) >> 8)[..., None]
        else:
            rgb[top : top + step] = np.asarray(band.convert("RGB"))
    return rgb


def _pillow_header(data: bytes) -> ImageHeader:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            kind = "JPEG" if image.format == "MPO" else str(image.format)
            return ImageHeader(*image.size, _orientation(image), kind)
    except UnidentifiedImageError as error:
        raise Undecodable("has no readable header; expected a JPEG, PNG, WebP or BMP") from error
    except Exception as error:  # Pillow's plugins raise any type on damaged files
        raise Undecodable(f"has no readable header: {_reason(error)}") from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation stored before the pixels; 1 where there is none or it cannot be read."""
    if "exif" not in image.info:  # `getexif` would decode a PNG
        return 1
    try:
        found = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # of damaged EXIF data; the image can still be read
        return 1
    return found if found in range(1, 9) else 1


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) of the canvas, see RFC 9649."""

    def number(start: int, end: int) -> int:
        return int.from_bytes(data[start:end], "little")

    if data[12:16] == b"VP8 " and data[23:26] == b"\x9d\x01\x2a" and len(data) >= 30:
        return number(26, 28) & 0x3FFF, number(28, 30) & 0x3FFF
    if data[12:16] == b"VP8L" and data[20:21] == b"\x2f" and len(data) >= 25:
        return (number(21, 25) & 0x3FFF) + 1, (number(21, 25) >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8X" and len(data) >= 30:
        return number(24, 27) + 1, number(27, 30) + 1
    raise Undecodable("has no readable header: a WebP that is cut off or damaged")


def _check_work(data: bytes) -> None:
    """Refuse files that take minutes to decode: millions of empty chunks, or thousands of scans of the same pixels."""
    if data.startswith(_PNG):
        at = len(_PNG)
        for _ in range(_MOST_PIECES):
            at += 12 + int.from_bytes(data[at : at + 4], "big")
            if at >= len(data):
                return
        raise Undecodable(f"is a PNG of more than {_MOST_PIECES} chunks; none is decoded")
    if data.startswith(_JPEG) and data.count(_JPEG_SCAN) > _MOST_SCANS and _count_scans(data) > _MOST_SCANS:
        raise Undecodable(f"is a JPEG of more than {_MOST_SCANS} scans; none is decoded")


def _count_scans(data: bytes) -> int:
    """Scans of a JPEG up to its end marker, without those of thumbnails in its segments; stops at too many."""
    at, scans = 2, 0
    while scans <= _MOST_SCANS and (found := _JPEG_MARKER.search(data, at)):
        at = found.start()
        if data[at : at + 2] == _JPEG_END:
            break
        scans += data[at : at + 2] == _JPEG_SCAN
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return scans


def _reason(error: Exception) -> str:
    """Text of an error without its path: it ends up in labels, which are equal on every machine."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
