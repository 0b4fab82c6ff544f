from __future__ import annotations

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from dto_pipeline.data import images
from dto_pipeline.data.images import (
    ImageCorrupt,
    ImageMissing,
    ImageStore,
    decode_image,
    read_image,
)
from dto_pipeline.status import ImageStatus
from tests.data.small_set import HEIGHT, WIDTH, write_image

JPEG = simplejpeg.encode_jpeg(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8), quality=85)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_a_jpeg_is_read_as_rgb_with_its_digest(tmp_path):
    path = write_image(tmp_path, "a.jpg")
    image = read_image(path)
    assert image.rgb.shape == (HEIGHT, WIDTH, 3)
    assert image.rgb.dtype == np.uint8
    assert len(image.sha256) == 64
    assert ImageStore(path.parent).size("a.jpg") == (WIDTH, HEIGHT)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16", "1", "CMYK"])
def test_every_pixel_format_becomes_three_channels(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    image = Image.new(mode, (7, 5))
    assert decode_image(saved(image, kind), "x").rgb.shape == (5, 7, 3)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        ("WEBP", "RGB"),
        ("WEBP", "RGBA"),
        ("BMP", "P"),
    ],
)
def test_bands_hold_what_the_whole_image_would(monkeypatch, mode, kind):
    monkeypatch.setattr(images, "_BAND_PIXELS", 100)
    pixels = np.random.default_rng(1).integers(0, 255, (23, 37, 4), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    data = saved(image, kind, lossless=True, exact=True)
    with Image.open(io.BytesIO(data)) as whole:
        assert np.array_equal(decode_image(data, "x").rgb, np.array(whole.convert("RGB")))


def test_grey_of_sixteen_bits_is_scaled_to_eight():
    grey = np.linspace(0, 65535, 40 * 30).round().astype(np.uint16).reshape(30, 40)
    rgb = decode_image(saved(Image.fromarray(grey), "PNG"), "x").rgb
    assert np.array_equal(rgb, np.repeat((grey // 256).astype(np.uint8)[..., None], 3, axis=2))
    assert (rgb.min(), rgb.max()) == (0, 255)


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("lost", [1, 2])
def test_a_jpeg_that_lacks_only_its_end_marker_is_decoded(mode, options, lost):
    pixels = np.random.default_rng(2).integers(0, 255, (33, 41, 4), dtype=np.uint8)
    data = saved(Image.fromarray(pixels, "CMYK").convert(mode), "JPEG", **options)
    whole = decode_image(data, "x").rgb
    assert np.array_equal(decode_image(data[:-lost], "x").rgb, whole)
    with pytest.raises(ImageCorrupt):
        decode_image(data[: -lost - 30], "x")


def test_an_exif_orientation_does_not_turn_the_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by 90 degrees"
    path = tmp_path / "turned.jpg"
    path.write_bytes(saved(Image.new("RGB", (40, 30)), "JPEG", exif=exif))
    assert ImageStore(tmp_path).size("turned.jpg") == (40, 30)
    header = ImageStore(tmp_path).header("turned.jpg")
    assert header.orientation == 6
    assert "orientation 6" in header.explain(30, 40)
    assert header.explain(40, 30) == header.explain(31, 44) == ""
    assert read_image(path).rgb.shape == (30, 40, 3)


def test_stray_bytes_that_only_libjpeg_complains_about_do_not_lose_an_image():
    end = JPEG.rindex(b"\xff\xd9")
    image = decode_image(JPEG[:end] + b"\x00\x01\x02" + JPEG[end:], "x")
    assert image.rgb.shape == (30, 40, 3)


@pytest.mark.parametrize("data", [b"", b"not an image", JPEG[:20], JPEG[:-200], b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_broken_files_are_corrupt_whatever_is_wrong_with_them(tmp_path, data):
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageCorrupt) as caught:
        ImageStore(tmp_path).read("x.jpg")
    assert caught.value.status is ImageStatus.IMAGE_CORRUPT
    assert str(tmp_path) not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(ImageMissing):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(ImageMissing):
        ImageStore(tmp_path).size("none.jpg")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageCorrupt):
        read_image(tmp_path / "folder")
    with pytest.raises(ImageCorrupt):
        ImageStore(tmp_path).size("folder")


def test_a_header_that_claims_a_huge_image_is_refused_without_decoding():
    png = bytearray(saved(Image.new("RGB", (7, 5)), "PNG"))
    png[16:24] = (60000).to_bytes(4, "big") * 2
    with pytest.raises(ImageCorrupt):
        decode_image(bytes(png), "x")


def test_a_folder_of_images_opens_nothing_outside_itself(tmp_path):
    write_image(tmp_path, "../secret.jpg")
    folder = ImageStore(tmp_path / "images")
    for name in ("../secret.jpg", str(tmp_path / "secret.jpg")):
        with pytest.raises(ImageCorrupt, match="leaves its folder"):
            folder.read(name)
        with pytest.raises(ImageCorrupt, match="leaves its folder"):
            folder.size(name)
