"""Hostile images: no interpreter starts, and memory and time stay within bounds that follow from the header."""

from __future__ import annotations

import ast
import io
import os
import re
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from dto_pipeline.data import images
from dto_pipeline.data.images import MAX_FILE_BYTES, ImageCorrupt, ImageStore, decode_image
from tests.data.test_images import saved
from tests.limited import run_limited

DECODE = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from dto_pipeline.data.images import ImageCorrupt, ImageStore
folder = ImageStore(Path(sys.argv[1]))
def decode(name):
    try:
        return list(folder.read(name).rgb.shape)
    except ImageCorrupt as error:
        return str(error)
before, start = peak(), time.process_time()
with ThreadPoolExecutor(int(sys.argv[2])) as threads:
    found = {name: result for name, result in zip(sys.argv[3:], threads.map(decode, sys.argv[3:]))}
tell(found=found, memory=peak() - before, seconds=time.process_time() - start)
"""


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 0, between: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + between + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def empty_png(width: int, height: int) -> bytes:
    """One bit a pixel, all black: 16 KB for 128 megapixels."""
    packer, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    rows = b"".join(packer.compress(row * 256) for _ in range(height // 256)) + packer.compress(row * (height % 256))
    return png(width, height, rows + packer.flush(), depth=1)


def webp_that_claims(width: int, height: int) -> bytes:
    data = bytearray(saved(Image.new("RGB", (16, 16)), "WEBP", lossless=True))
    bits = int.from_bytes(data[21:25], "little") & ~0xFFFFFFF
    data[21:25] = (bits | (width - 1) | (height - 1) << 14).to_bytes(4, "little")
    return bytes(data)


def repeat_scan(side: int, times: int) -> bytes:
    """A progressive JPEG that goes over its pixels again and again; a scan costs a hundred bytes."""
    data = saved(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    starts = [found.start() for found in re.finditer(b"\xff\xda", data)]
    scan = data[starts[-1] : -2]
    return data[:-2] + scan * times + data[-2:]


def test_a_postscript_file_named_jpg_starts_no_interpreter(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "bin").mkdir()
    for name in ("gs", "gswin64c"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ntouch {ran}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    binary = struct.pack("<4sIIIIII", b"\xc5\xd0\xd3\xc6", 32, len(eps), 0, 0, 0, 0).ljust(32, b"\0") + eps
    (tmp_path / "a.jpg").write_bytes(eps)
    (tmp_path / "b.png").write_bytes(binary)
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    found = run_limited(DECODE, tmp_path, 1, "a.jpg", "b.png", env=env)["found"]
    assert all("expected a JPEG, PNG, WebP or BMP" in text for text in found.values())
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "ICO", "PPM", "TGA", "PCX", "JPEG2000", "PDF", "DDS", "SGI", "ICNS"])
def test_formats_outside_the_list_are_refused_whatever_their_name(kind):
    data = saved(Image.new("RGB", (16, 16)), kind)
    with pytest.raises(ImageCorrupt, match=r"image x\.jpg .*expected a JPEG, PNG, WebP or BMP"):
        decode_image(data, "x.jpg")


def test_the_first_frame_of_several_is_the_image():
    red, blue = Image.new("RGB", (16, 8), "red"), Image.new("RGB", (16, 8), "blue")
    for kind in ("MPO", "PNG", "WEBP"):
        data = saved(red, kind, save_all=True, append_images=[blue], lossless=True)
        assert decode_image(data, kind).rgb.mean((0, 1)) == pytest.approx([254, 0, 0], abs=2)


@pytest.mark.slow
def test_memory_follows_the_header_and_decoders_share_it(tmp_path):
    side = 11_500  # 132 megapixels: within the bound on pixels
    for name in ("1.png", "2.png", "3.png", "4.png"):
        (tmp_path / name).write_bytes(empty_png(side, side))
    (tmp_path / "canvas.webp").write_bytes(webp_that_claims(side, side))
    told = run_limited(DECODE, tmp_path, 4, "canvas.webp", "1.png", "2.png", "3.png", "4.png")
    assert (
        told["found"].pop("canvas.webp").endswith("raise run.decode_memory_mb, or store the image smaller or as a JPEG")
    )
    assert set(map(tuple, told["found"].values())) == {(side, side, 3)}
    # four results of 378 MiB are kept, and two images of 126 MiB are decoded at once
    assert told["memory"] < 4 * 378 + 2 * 126 + 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photograph_of_a_hundred_megapixels_is_decoded_in_less_than_two_gigabytes(tmp_path, kind):
    side, name = 10_000, f"large.{kind.lower()}"
    Image.new("RGB", (side, side), "orange").save(tmp_path / name, kind, progressive=True, compress_level=1, method=0)
    told = run_limited(DECODE, tmp_path, 2, name)
    assert told["found"] == {name: [side, side, 3]}
    assert told["memory"] < 1900


def test_an_image_that_takes_more_than_the_limit_names_it(tmp_path):
    (tmp_path / "a.png").write_bytes(empty_png(2000, 2000))
    assert ImageStore(tmp_path).read("a.png", decode_memory_mb=27).rgb.shape == (2000, 2000, 3)
    with pytest.raises(
        ImageCorrupt, match=r"a PNG of 2000 x 2000 pixels, which takes 26 MiB .* limit is 26: raise run"
    ):
        ImageStore(tmp_path).read("a.png", decode_memory_mb=26)
    assert ImageStore(tmp_path).size("a.png") == (2000, 2000)


def test_decoders_wait_until_their_memory_is_free():
    budget, order = images._Budget(), []

    def second() -> None:
        with budget.take(6, 10):
            order.append("second")

    with budget.take(6, 10):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    with budget.take(20, 10):  # an image that is larger than a limit of somebody else still finds its turn
        pass


def test_a_file_without_end_is_not_read_to_it(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8)))
    with path.open("ab") as stream:
        stream.truncate(MAX_FILE_BYTES + 1)  # of holes
    code = DECODE + "\ntell(found=found, memory=peak() - before)"
    told = run_limited(code, tmp_path, 2, "a.jpg")
    assert "more than 536870912 bytes" in told["found"]["a.jpg"]
    assert told["memory"] < 700


def test_work_that_small_files_ask_for_is_bounded(tmp_path):
    empty = b"\0\0\0\0aaAa" + struct.pack(">I", zlib.crc32(b"aaAa"))
    (tmp_path / "scans.jpg").write_bytes(repeat_scan(6000, 20_000))
    (tmp_path / "chunks.png").write_bytes(png(1, 1, zlib.compress(b"\0\0"), between=empty * 1_100_000))
    texts = b"zTXta\0\0" + zlib.compress(bytes(1 << 24))
    text = struct.pack(">I", len(texts) - 4) + texts + struct.pack(">I", zlib.crc32(texts))
    (tmp_path / "texts.png").write_bytes(png(1, 1, zlib.compress(b"\0\0"), between=text * 100))
    told = run_limited(DECODE, tmp_path, 1, "scans.jpg", "chunks.png", "texts.png")
    assert "a JPEG of more than 128 scans" in told["found"]["scans.jpg"]
    assert "a PNG of more than 1048576 chunks" in told["found"]["chunks.png"]
    assert "Decompressed" in str(told["found"]["texts.png"])
    assert told["seconds"] < 20
    assert told["memory"] < 300


def test_a_compressed_bitmap_is_refused():
    header = b"BM" + struct.pack("<IHHI", 60, 0, 0, 14 + 40 + 1024)
    info = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 8, 1, 0, 0, 0, 256, 0)
    with pytest.raises(ImageCorrupt, match="a compressed BMP, which is not opened"):
        decode_image(header + info + bytes(1024) + b"\0\x01" * 8, "x.bmp")


def test_a_jpeg_in_which_two_readers_find_two_sizes_is_refused():
    data = saved(Image.new("RGB", (16, 16)), "JPEG")
    at = data.index(b"\xff\xc0")
    second = data[at : at + 5] + struct.pack(">HH", 8000, 8000) + data[at + 9 : at + 19]
    for place in (at, at + 19):
        with pytest.raises(ImageCorrupt):
            decode_image(data[:place] + second + data[place:], "x")


def test_every_door_to_a_decoder_names_its_formats_and_no_file_goes_to_torch_load():
    package = Path(images.__file__).parent.parent
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            called = ast.unparse(node.func)
            assert called != "torch.load", path
            assert called != "Image.open" or "formats" in {word.arg for word in node.keywords}, path


def test_a_jpeg_whose_subsampling_has_no_name_is_refused_or_decoded_never_a_key_error() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(stream, "JPEG", subsampling=0)
    data = bytearray(stream.getvalue())
    data[data.index(b"\xff\xc0") + 11] = 0x14  # luminance sampled 1 x 4: libjpeg knows it as 4:4:1
    assert decode_image(bytes(data), "x.jpg").rgb.shape == (24, 32, 3)  # by Pillow
