"""Depth maps that are files: every kind and format gives the same disparity, and what is no map is refused."""

from __future__ import annotations

import ast
import io
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dto_pipeline.models.depth import METRES_PER_DEPTH, DepthFiles, DepthInvalid, DepthMissing
from dto_pipeline.status import ImageStatus

RAMP = np.linspace(0, 2, 12).reshape(3, 4)
Z = np.array([[2.0, 4.0, 8.0], [2.5, 5.0, 10.0]])  # [m], exact in millimetres


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_maps_of_every_float_type_and_container_are_read(tmp_path, kind, suffix):
    path = tmp_path / "a" / f"x{suffix}"
    path.parent.mkdir()
    if suffix == ".npy":
        np.save(path, RAMP.astype(kind))
    else:
        np.savez_compressed(path, disparity=RAMP.astype(kind))
    disparity = DepthFiles(tmp_path).load(f"a/x{suffix}", 3, 4)
    assert disparity.dtype == np.float32
    np.testing.assert_allclose(disparity, RAMP, atol=1e-3)


def test_headers_are_parsed_by_one_thread_at_a_time_because_python_3_11_fails_at_that(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", RAMP)
    parse, inside, together = ast.literal_eval, [], []

    def slowly(text):
        inside.append(text)
        together.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return parse(text)

    monkeypatch.setattr(ast, "literal_eval", slowly)
    with ThreadPoolExecutor(4) as pool:
        maps = list(pool.map(lambda _: DepthFiles(tmp_path).load("x.npy", 3, 4), range(12)))
    assert len(maps) == len(together) == 12
    assert set(together) == {1}


BAD_MAPS = [
    ("zero everywhere", np.zeros((3, 4), np.float32)),
    ("not finite", np.where(RAMP > 1, np.nan, RAMP).astype(np.float32)),
    ("not finite|zero everywhere", np.full((3, 4), 1e300)),
    ("negative", (RAMP - 1).astype(np.float32)),
    ("expected that of the image", np.ones((4, 3), np.float32)),
    ("expected that of the image", np.ones((3, 4, 1), np.float32)),
    ("expected float16", np.ones((3, 4), np.int32)),
]


@pytest.mark.parametrize("kind", ["disparity", "depth"])
@pytest.mark.parametrize(("why", "array"), BAD_MAPS)
def test_maps_that_mean_nothing_are_refused_with_a_reason(tmp_path, why, array, kind):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(DepthInvalid, match=why) as caught:
        DepthFiles(tmp_path, kind).load("x.npy", 3, 4)
    assert caught.value.status is ImageStatus.DEPTH_INVALID
    assert str(tmp_path) not in str(caught.value)


def truncated(length: int) -> bytes:
    stream = io.BytesIO()
    np.save(stream, RAMP)
    return stream.getvalue()[:length]


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("data", [b"", b"text", truncated(30), truncated(140), truncated(-8)])
def test_damaged_files_are_invalid_not_a_crash(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DepthInvalid):
        DepthFiles(tmp_path).load(name, 3, 4)


def test_what_is_said_of_a_damaged_header_holds_no_address_of_this_process(tmp_path):
    (tmp_path / "x.npy").write_bytes(truncated(140).replace(b"'<f8'", b"f(8) "))
    with pytest.raises(DepthInvalid, match="object>"):
        DepthFiles(tmp_path).load("x.npy", 3, 4)


def test_object_arrays_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "x.npz", disparity=np.full((3, 4), None, object))
    with pytest.raises(DepthInvalid, match="type is object"):
        DepthFiles(tmp_path).load("x.npz", 3, 4)


def test_a_map_without_a_file_is_depth_missing(tmp_path):
    for depth, name in ((DepthFiles(tmp_path), "none.npy"), (DepthFiles(tmp_path), None), (DepthFiles(None), "x.npy")):
        with pytest.raises(DepthMissing) as caught:
            depth.load(name, 3, 4)
        assert caught.value.status is ImageStatus.DEPTH_MISSING


def test_a_map_outside_the_folder_is_never_opened(tmp_path):
    np.save(tmp_path / "x.npy", RAMP)
    with pytest.raises(DepthInvalid, match="leaves its folder"):
        DepthFiles(tmp_path / "depth").load("../x.npy", 3, 4)


def bomb(**arrays: np.ndarray) -> bytes:
    """An npz whose member "other" unpacks to 4 GB of zeros."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w") as member:
                np.save(member, array)
        with archive.open("other.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (1 << 30,)})
            for _ in range(4):
                member.write(bytes(1 << 20))
    return stream.getvalue()


def test_arrays_of_an_npz_that_nobody_asked_for_are_never_unpacked(tmp_path):
    (tmp_path / "x.npz").write_bytes(bomb(disparity=RAMP))
    np.testing.assert_allclose(DepthFiles(tmp_path).load("x.npz", 3, 4), RAMP, atol=1e-6)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_a_header_is_believed_only_as_far_as_the_image_goes(tmp_path, suffix):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 20, 1 << 20)})
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        path.write_bytes(header.getvalue())
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("disparity.npy", header.getvalue())
    with pytest.raises(DepthInvalid, match="expected that of the image"):
        DepthFiles(tmp_path).load(path.name, 3, 4)
    with pytest.raises(DepthInvalid, match="cannot be read"):
        DepthFiles(tmp_path).load(path.name, 1 << 20, 1 << 20)  # should an image ever be that large


def test_files_whose_content_is_not_what_their_name_ends_in_are_invalid(tmp_path):
    stream = io.BytesIO()
    np.savez(stream, disparity=RAMP)
    (tmp_path / "zip.npy").write_bytes(stream.getvalue())
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "gif.png", "GIF")
    png = io.BytesIO()
    Image.fromarray(np.ones((3, 4), np.uint16)).save(png, "PNG")
    (tmp_path / "cut.png").write_bytes(png.getvalue().replace(b"IDAT", b"IDAX"))
    (tmp_path / "no.png").write_bytes(b"not a picture")
    Image.fromarray(np.ones((3, 4), np.uint8)).save(tmp_path / "coarse.png")
    Image.fromarray(np.ones((3, 3), np.uint16)).save(tmp_path / "other.png")
    reasons = {"coarse.png": "16 bits", "other.png": "shape"}
    for name in ("zip.npy", "gif.png", "cut.png", "no.png", *reasons):
        with pytest.raises(DepthInvalid, match=rf"{name} .*{reasons.get(name, '')}"):
            DepthFiles(tmp_path).load(name, 3, 4)


def test_a_png_chunk_that_claims_two_gigabytes_is_read_no_further_than_its_file(tmp_path):
    Image.fromarray(np.full((4, 6), 7, np.uint16)).save(tmp_path / "good.png")
    data = (tmp_path / "good.png").read_bytes()
    place = data.index(b"IDAT") - 4
    (tmp_path / "bad.png").write_bytes(data[:place] + (2**31 - 1).to_bytes(4, "big") + data[place + 4 :])
    (tmp_path / "long.png").write_bytes(data + bytes(2 << 20))
    assert DepthFiles(tmp_path, "depth").load("bad.png", 4, 6).shape == (4, 6)  # its pixels are all there
    with pytest.raises(DepthInvalid, match="expected at most"):
        DepthFiles(tmp_path, "depth").load("long.png", 4, 6)


def load(root: Path, name: str, **options: object) -> np.ndarray:
    return DepthFiles(root, **options).load(name, 2, 3)  # type: ignore[arg-type]


def test_disparity_depth_and_metric_depth_agree_up_to_their_units(tmp_path: Path) -> None:
    np.save(tmp_path / "disparity.npy", METRES_PER_DEPTH / Z)
    np.save(tmp_path / "depth.npy", Z / METRES_PER_DEPTH)
    np.save(tmp_path / "metric.npy", Z)
    disparity = load(tmp_path, "disparity.npy")
    np.testing.assert_allclose(load(tmp_path, "depth.npy", kind="depth"), disparity, rtol=1e-6)
    np.testing.assert_allclose(load(tmp_path, "metric.npy", kind="metric_depth"), disparity, rtol=1e-6)


def test_a_png_of_millimetres_is_metric_depth_by_its_scale(tmp_path: Path) -> None:
    Image.fromarray((Z * 1000).astype(np.uint16)).save(tmp_path / "mm.png")
    found = load(tmp_path, "mm.png", kind="metric_depth", scale=0.001)
    np.testing.assert_allclose(found, METRES_PER_DEPTH / Z, rtol=1e-6)


def test_unknown_and_infinite_depth_have_no_disparity(tmp_path: Path) -> None:
    np.save(tmp_path / "holes.npy", np.array([[0.0, np.inf, 2.0], [2.0, 2.0, 2.0]]))
    found = load(tmp_path, "holes.npy", kind="metric_depth")
    assert found[0].tolist() == [0.0, 0.0, METRES_PER_DEPTH / 2]


def test_a_npz_holds_its_kind_under_its_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "map.npz", depth=Z)
    np.testing.assert_allclose(load(tmp_path, "map.npz", kind="metric_depth"), METRES_PER_DEPTH / Z, rtol=1e-6)
    with pytest.raises(DepthInvalid, match="expected 'disparity'"):
        load(tmp_path, "map.npz")


def test_metres_made_with_another_focal_length_are_brought_to_the_labels_camera(tmp_path: Path) -> None:
    np.savez(tmp_path / "map.npz", depth=Z, focal=np.float64(800.0))
    files = DepthFiles(tmp_path, "metric_depth")
    np.testing.assert_allclose(files.load("map.npz", 2, 3, 800.0), METRES_PER_DEPTH / Z, rtol=1e-6)
    np.testing.assert_allclose(files.load("map.npz", 2, 3, 1600.0), METRES_PER_DEPTH / (2 * Z), rtol=1e-6)
    np.testing.assert_allclose(files.load("map.npz", 2, 3), METRES_PER_DEPTH / Z, rtol=1e-6)


@pytest.mark.parametrize(("focal", "reason"), [(-3.0, "above 0"), (np.nan, "above 0"), (np.ones(2), "one number")])
def test_a_focal_length_that_is_none_is_refused(tmp_path: Path, focal: object, reason: str) -> None:
    np.savez(tmp_path / "map.npz", depth=Z, focal=focal)  # type: ignore[arg-type]
    with pytest.raises(DepthInvalid, match=reason):
        load(tmp_path, "map.npz", kind="metric_depth")
