"""Tars for tests, written by tarfile as the originals are, and indices over them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from dto_pipeline.data.tars import TarImages, build_tar_index


def jpeg(shade: int = 90, width: int = 32, height: int = 24, comment: bytes = b"") -> bytes:
    """A grey JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), shade, np.uint8)).save(buffer, "JPEG", comment=comment)
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for member, data in files.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def make_index(folder: Path, **tars: dict[str, bytes]) -> TarImages:
    """Tars name=files in a folder, and their index."""
    for name, files in tars.items():
        write_tar(folder / f"{name}.tar", files)
    out = folder / "tars.parquet"
    build_tar_index(folder, out)
    return TarImages(out, folder)
