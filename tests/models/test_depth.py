from __future__ import annotations

import io

import numpy as np
import pytest

from dto_pipeline.models.depth import DepthFiles, DepthInvalid, DepthMissing
from dto_pipeline.status import ImageStatus

RAMP = np.linspace(0, 2, 12).reshape(3, 4)


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


BAD_MAPS = [
    ("zero everywhere", np.zeros((3, 4), np.float32)),
    ("not finite", np.where(RAMP > 1, np.nan, RAMP).astype(np.float32)),
    ("not finite", np.full((3, 4), 1e300)),
    ("negative", (RAMP - 1).astype(np.float32)),
    ("expected that of the image", np.ones((4, 3), np.float32)),
    ("expected that of the image", np.ones((3, 4, 1), np.float32)),
    ("expected float16", np.ones((3, 4), np.int32)),
]


@pytest.mark.parametrize(("why", "array"), BAD_MAPS)
def test_maps_that_mean_nothing_are_refused_with_a_reason(tmp_path, why, array):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(DepthInvalid, match=why) as caught:
        DepthFiles(tmp_path).load("x.npy", 3, 4)
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


def test_a_header_that_claims_a_huge_map_costs_no_memory(tmp_path):
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(DepthInvalid):
        DepthFiles(tmp_path).load("x.npy", 3, 4)


def test_object_arrays_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "x.npz", disparity=np.full((3, 4), None, object))
    with pytest.raises(DepthInvalid, match="type is object"):
        DepthFiles(tmp_path).load("x.npz", 3, 4)


def test_a_map_that_is_nowhere_is_missing(tmp_path):
    for depth, name in ((DepthFiles(tmp_path), "none.npy"), (DepthFiles(tmp_path), None), (DepthFiles(None), "x.npy")):
        with pytest.raises(DepthMissing) as caught:
            depth.load(name, 3, 4)
        assert caught.value.status is ImageStatus.DEPTH_MISSING


def test_a_map_outside_the_folder_is_never_opened(tmp_path):
    np.save(tmp_path / "x.npy", RAMP)
    with pytest.raises(DepthInvalid, match="leaves its folder"):
        DepthFiles(tmp_path / "depth").load("../x.npy", 3, 4)
