"""A pickled dictionary read item by item equals what numpy reads, in any protocol, and nothing is run."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.data.inert_pickle import BrokenPickle, UnsafePickle, check_values
from dto_pipeline.data.npz import ITEM_LIMITS, read_items
from dto_pipeline.data.sources.annots import open_ma_hmr
from dto_pipeline.data.sources.rows import LabelFileError
from tests.pickle_streams import same
from tests.released_files import released_annots

PROTOCOLS = (2, 3, 4, 5)


def npz(path: Path, raw: bytes, packed: bool = False) -> Path:
    """The archive np.savez makes around a pickle."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|O", "fortran_order": False, "shape": ()})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        archive.writestr("annots.npy", head.getvalue() + raw)
    return path


def dumped(values: dict[Any, Any], protocol: int = 3) -> bytes:
    array = np.empty((), object)
    array[()] = values
    return pickle.dumps(array, protocol)


def read(path: Path) -> dict[Any, Any]:
    found = {}

    def take(key: Any, value: Any) -> None:
        check_values(value, ITEM_LIMITS)
        found[key] = value

    read_items(path, "annots", take)
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_gives_what_numpy_gives(protocol: int, packed: bool, tmp_path: Path) -> None:
    annots = released_annots(1100, 2)  # more than the thousand that the pickler sets at once
    assert same(read(npz(tmp_path / "a.npz", dumped(annots, protocol), packed)), annots)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_that_images_share_are_the_same_in_each(protocol: int, tmp_path: Path) -> None:
    camera = {"focal": np.array([1, 2], np.float32), "princpt": np.array([3, 4], np.float32)}
    pose, crowd = np.arange(72, dtype=np.float32), released_annots(1, 2)["000000.jpg"]
    annots: dict[str, Any] = {f"{k}": [{"pose": pose, "camera": camera, "size": (k, 7)}] for k in range(2500)}
    annots |= {"again": crowd, "once more": crowd, "bytes": np.array([5], np.uint8), "flag": np.array([5], np.uint8)}
    assert same(read(npz(tmp_path / "a.npz", dumped(annots, protocol))), annots)


def test_a_pickle_without_unused_memo_entries_is_read(tmp_path: Path) -> None:
    annots = released_annots(300, 2)
    assert same(read(npz(tmp_path / "a.npz", pickletools.optimize(dumped(annots)))), annots)


ARRAYS = st.builds(
    lambda dtype, shape, order: np.asarray(np.arange(int(np.prod(shape))).reshape(shape), dtype, order=order),
    st.sampled_from(["<f4", ">f4", "<f8", "<i8", "u1", "?"]),
    st.sampled_from([(), (0,), (1,), (3,), (72,), (2, 3), (300,)]),
    st.sampled_from(["C", "F"]),
)
VALUES = st.recursive(
    st.one_of(ARRAYS, st.integers(-5, 5), st.text(max_size=3), st.none(), st.floats(allow_nan=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=12,
)


@settings(deadline=None, max_examples=60)
@given(values=st.dictionaries(st.text(max_size=4), VALUES, max_size=6), protocol=st.sampled_from(PROTOCOLS))
def test_any_dictionary_comes_back_equal(values, protocol, tmp_path_factory) -> None:
    assert same(read(npz(tmp_path_factory.mktemp("any") / "a.npz", dumped(values, protocol))), values)


class Armed:
    """Runs a command where it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_command_deep_in_the_file_is_refused_by_name_and_not_run(protocol, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    annots: dict[str, Any] = {**released_annots(1500, 1), "last.jpg": [Armed()]}
    with pytest.raises(UnsafePickle, match=r"a\.npz, array .annots.: its pickle: byte \d+: refuses .*system"):
        read(npz(tmp_path / "a.npz", dumped(annots, protocol)))
    assert not (tmp_path / "ran").exists()


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    raw = dumped(released_annots(2, 1))
    for end in range(0, len(raw) - 1, 7):
        with pytest.raises(BrokenPickle, match="annots"):
            read(npz(tmp_path / "a.npz", raw[:end]))


def test_bytes_changed_on_the_disk_are_found_by_the_checksum(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", dumped(released_annots(20, 2)))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1  # a digit of a pose: the pickle is as sound as before
    path.write_bytes(whole)
    with pytest.raises(BrokenPickle, match="CRC-32"):
        read(path)


@pytest.mark.parametrize("values", [np.zeros(3), np.array([1, None], object), np.array({}, object).reshape(1)])
def test_arrays_of_another_kind_are_named(values: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", annots=values)
    with pytest.raises(BrokenPickle, match=r"expected one object"):
        read(tmp_path / "a.npz")


def test_an_image_listed_twice_far_apart_is_refused_with_the_readers_message(tmp_path: Path) -> None:
    raw = dumped(released_annots(1500, 1)).replace(b"001400.jpg", b"000003.jpg")
    with pytest.raises(LabelFileError, match=r"a\.npz: image 000003\.jpg is listed twice; expected every image once$"):
        open_ma_hmr(npz(tmp_path / "a.npz", raw))


def test_a_key_set_twice_is_refused(tmp_path: Path) -> None:
    raw = dumped({"a": 1, "b": 2}).replace(b"X\x01\x00\x00\x00b", b"X\x01\x00\x00\x00a")
    with pytest.raises(BrokenPickle, match="a key occurs twice"):
        read(npz(tmp_path / "a.npz", raw))


@pytest.mark.parametrize("protocol", [3, 4])
def test_memory_does_not_grow_with_the_number_of_images(protocol: int, tmp_path: Path) -> None:
    def peak(images: int) -> int:
        path = npz(tmp_path / f"{images}.npz", dumped(released_annots(images, 2), protocol))
        people = 0

        def take(_: Any, crowd: Any) -> None:
            nonlocal people
            people += len(crowd)

        tracemalloc.start()
        read_items(path, "annots", take)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert people == 2 * images
        return used

    # one batch of a thousand images is held, and a count per camera that people share (0.1 kB an image)
    assert peak(3000) - peak(1500) < 1500 * 400
