"""The inert unpickler: what it reads back exactly, what it refuses by name, and that nothing ever runs."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dto_pipeline.data.inert_pickle import BrokenPickle, Limits, PickleRefused, UnsafePickle
from dto_pipeline.data.npz import NpzFile
from dto_pipeline.data.safe_pickle import NUMPY_ONLY, safe_loads
from tests.audit_watch import AuditWatch
from tests.pickle_streams import (
    F8,
    HOSTILE,
    SENTINEL,
    Armed,
    Stream,
    array,
    buffer,
    call,
    dtype,
    integer,
    name,
    same,
    text,
    whole,
)

PROTOCOLS = range(6)


@pytest.fixture(scope="module")
def watch() -> AuditWatch:
    for protocol in PROTOCOLS:  # codecs load on first use
        safe_loads(pickle.dumps(["\u20ac", 1.5, np.zeros(1)], protocol))
    return AuditWatch()


# what must be read


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_reads_back_equal(protocol: int) -> None:
    value = {
        "image.jpg": [
            {"kp2d": np.arange(42, dtype=np.float32).reshape(14, 3), "age": -1, "box": [1.5, 2, 3, None], "ok": True},
            {"text": "\u20ac\n'\\", "raw": b"\x00\xff", "pair": (1, (2,)), "big": 2**40, "negative": -(2**40)},
        ],
        7: np.array([[True, False]]),
        "empty": [np.zeros((0, 3)), b"", "", [], (), {}],
        "text": np.array(["left", "\u20ac"]),
        "bytes": np.array([b"ab", b"c"]),
        "order": [np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1)],
        "foreign": np.arange(3, dtype=">f4"),
        "single": np.array(2.5),
        "complex": np.array([1 + 2j]),
    }
    assert same(safe_loads(pickle.dumps(value, protocol)), value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_scalars_come_back_as_python_numbers(protocol: int) -> None:
    value = [np.float32(0.1), np.int64(-3), np.bool_(True), np.str_("ab"), np.float16(2), np.str_("")]
    expected = [float(np.float32(0.1)), -3, True, "ab", 2.0, ""]
    assert same(safe_loads(pickle.dumps(value, protocol)), expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_object_arrays_are_read_where_they_are_allowed(protocol: int) -> None:
    value = np.empty((2, 1), object)
    value[0, 0], value[1, 0] = {"a": [np.arange(3)]}, None
    found = safe_loads(pickle.dumps(value, protocol), object_arrays=True)
    assert found.shape == (2, 1)
    assert same(found[0, 0], value[0, 0])
    assert found[1, 0] is None


@pytest.mark.parametrize("protocol", [2, 3])
def test_the_names_of_numpy_1_and_2_mean_the_same(protocol: int) -> None:
    data = pickle.dumps([np.arange(3.0), np.float32(1)], protocol)
    old = data.replace(b"numpy._core.", b"numpy.core.")
    assert old != data
    assert same(safe_loads(old), safe_loads(data))


def test_python_2_strings_are_latin1_and_hold_array_bytes() -> None:
    raw = np.array([1.5, -2.0]).tobytes()
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    float64 = b"cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    body = b"}(U\x05na\xefve" + reconstruct + b"(K\x01K\x02\x85" + float64 + b"\x89U\x10" + raw + b"tbu"
    assert same(safe_loads(whole(body, 2)), {"na\xefve": np.array([1.5, -2.0])})


def test_python_2_text_protocol_reads_every_byte() -> None:
    line = b"S'" + b"".join(b"\\x%02x" % value for value in range(256)) + b"'\n."
    assert safe_loads(line) == bytes(range(256)).decode("latin1")
    assert safe_loads(b"S'a\\'\\n\\\\'\n.") == "a'\n\\"


def test_sharing_is_kept_and_built_once() -> None:
    shared = np.zeros(1000)
    found = safe_loads(pickle.dumps([shared] * 50), limits=Limits(max_array_bytes=8000))
    assert all(item is found[0] for item in found)


def test_arrays_are_writable_and_own_their_memory() -> None:
    for size in (4, 4000):
        found, other = safe_loads(pickle.dumps([np.zeros(size), np.zeros(size)], 4))
        found[0] = 1.0
        assert found[0] == 1.0
        assert other[0] == 0.0


_DTYPES: list[Any] = [np.float64, np.int16, np.bool_, np.complex64, np.dtype(">i4")]
_NUMBERS: st.SearchStrategy[Any] = npst.arrays(
    st.sampled_from(_DTYPES), npst.array_shapes(min_dims=0, max_side=3, min_side=0)
)
_ATOMS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=5)
_LEAVES: st.SearchStrategy[Any] = _ATOMS | st.binary(max_size=5) | _NUMBERS


def _nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keys = st.text(max_size=3)
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=8
    )


@settings(max_examples=60, deadline=None)
@given(value=_nested(_LEAVES | npst.arrays("U3", 2)), protocol=st.integers(0, 5))
def test_whatever_is_plain_reads_back_equal(value: Any, protocol: int) -> None:
    assert same(safe_loads(pickle.dumps(value, protocol)), value)


# what must be refused


@pytest.mark.parametrize("stream", HOSTILE, ids=[stream.name for stream in HOSTILE])
def test_hostile_pickles_are_refused_and_nothing_runs(
    stream: Stream, watch: AuditWatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with watch.listening() as heard, pytest.raises(stream.error) as refusal:
        safe_loads(stream.data, stream.allow, where="stranger.pkl")
    assert heard == []
    assert stream.mentions in str(refusal.value)
    assert str(refusal.value).startswith("stranger.pkl: ")
    assert len(str(refusal.value)) < 400
    assert list(tmp_path.iterdir()) == []


def test_the_watch_and_the_sentinel_notice_the_standard_library(
    watch: AuditWatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with watch.listening() as heard:
        pickle.loads(pickle.dumps(Armed()))
    assert any(event.startswith("pickle.find_class") for event in heard)
    assert any(event.startswith("os.system") for event in heard)
    assert (tmp_path / SENTINEL).exists()


def test_extension_codes_are_refused_even_when_registered_and_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pickle._extension_cache, 7, print)  # type: ignore[attr-defined]
    with pytest.raises(UnsafePickle, match="instruction 0x82"):
        safe_loads(whole(b"\x82\x07" + text("hello") + b"\x85R"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_stream_cut_at_any_byte_is_broken(protocol: int) -> None:
    value = {"a": [np.arange(3.0), np.float32(1), "text", -5, 2**40, None], "b": (b"raw", {1: True})}
    data = pickle.dumps(value, protocol)
    assert same(safe_loads(data)["b"], value["b"])
    for length in range(len(data)):
        with pytest.raises(BrokenPickle):
            safe_loads(data[:length])


@pytest.mark.parametrize(
    "data",
    [
        whole(b"\x8e" + struct.pack("<Q", 2**40)),
        whole(b"\x96" + struct.pack("<Q", 2**40), 5),
        whole(b"N" + b"r" + struct.pack("<I", 2**32 - 1)),
        whole(array(integer(2**40) + b"\x85", F8, b"C\x00")),
        whole(array(b"K\x00" + integer(2**40) + b"\x86", F8, b"C\x00")),
        whole(b"(" + b"N" * 2000 + b"tq\x000" + name("numpy", "dtype") + b"q\x010](" + b"h\x01h\x00R" * 1000 + b"e"),
    ],
    ids=["bytes8", "bytearray8", "memo-index", "shape", "empty-shape", "shared-arguments"],
)
def test_claims_of_size_allocate_nothing(data: bytes) -> None:
    tracemalloc.start()
    try:
        safe_loads(data)
    except PickleRefused:
        assert data
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_side_that_no_array_has_is_refused_before_sides_are_multiplied() -> None:
    with pytest.raises(BrokenPickle, match="an array of shape"):  # 32 sides of a megabyte each: hours
        safe_loads(whole(array(integer(2**64) + b"\x85", F8, b"C\x00")))


@pytest.mark.parametrize(
    ("limits", "value"),
    [
        (Limits(max_bytes=2000), "longer" * 400),
        (Limits(max_bytes=2000), list(range(20))),
        (Limits(max_depth=3), [[[[1]]]]),
        (Limits(max_items=5), [1, 2, 3, 4, 5, 6]),
        (Limits(max_array_bytes=79), [np.zeros(5), np.ones(5)]),
    ],
)
def test_each_limit_holds(limits: Limits, value: Any) -> None:
    data = pickle.dumps(value)
    assert same(safe_loads(data), value)
    with pytest.raises(BrokenPickle, match=r"than|at most"):
        safe_loads(data, limits=limits)


def test_one_text_encoded_many_times_counts_each_time() -> None:
    page = text("a" * 1000) + b"q\x000"
    body = page + b"](" + call("_codecs", "encode", b"h\x00", text("latin1")) * 20 + b"e"
    assert len(safe_loads(whole(body))) == 20
    with pytest.raises(BrokenPickle, match="bytes of arrays"):
        safe_loads(whole(body), limits=Limits(max_array_bytes=19_999))


def test_states_never_reach_a_class() -> None:
    before = dict(vars(np.ndarray))
    with pytest.raises(BrokenPickle):
        safe_loads(whole(b"cnumpy\nndarray\n(N}" + text("sort") + b"Nst" + b"b"))
    assert dict(vars(np.ndarray)) == before


def test_an_array_of_text_dtype_needs_its_own_item_size() -> None:
    kind = dtype(text("U2"), item_size=b"K\x08")
    assert safe_loads(whole(array(b"K\x01\x85", kind, buffer(b"a\0\0\0b\0\0\0")))).tolist() == ["ab"]


# npz and npy


def _zip(path: Path, members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, data in members:
            archive.writestr(member, data)
    return path


def _npy(value: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value, allow_pickle=True)
    return stream.getvalue()


def _lying_npy(descr: str, shape: str, contents: bytes) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + contents


def read_npz(path: str | Path) -> dict[str, Any]:
    npz = NpzFile(path)
    return {key: npz.array(key, NUMPY_ONLY) for key in npz.keys}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files_read_back_equal(save: Any, tmp_path: Path) -> None:
    annots = {"a.jpg": [{"bbox": [1.0, 2.0], "kp2d": None, "smpl": {"pose": np.zeros(72, np.float32)}}]}
    plain = {
        "pose": np.random.default_rng(0).normal(size=(4, 72)),
        "imgname": np.array(["a", "bc"]),
        "flag": np.array(True),
    }
    save(tmp_path / "file.npz", annots=annots, fortran=np.asfortranarray(np.eye(3)[:2]), **plain)
    found = read_npz(tmp_path / "file.npz")
    assert same(found["annots"].item(), annots)
    assert same({key: found[key] for key in plain}, plain)
    assert np.array_equal(found["fortran"], np.eye(3)[:2])
    with pytest.raises(BrokenPickle, match="has no array 'absent'; it holds"):
        NpzFile(tmp_path / "file.npz").array("absent")


def test_npz_object_arrays_go_through_the_inert_unpickler(
    watch: AuditWatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "evil.npz", annots=np.array({"a": Armed()}, object))
    monkeypatch.chdir(tmp_path)
    with watch.listening() as heard, pytest.raises(UnsafePickle, match=r"array 'annots'.*system"):
        read_npz("evil.npz")
    assert [event for event in heard if not event.startswith(("open", "compile (b\"{'descr'"))] == []
    assert [file.name for file in tmp_path.iterdir()] == ["evil.npz"]


@pytest.mark.parametrize("name", ["../a.npy", "/a.npy", "x/a.npy", "x\\a.npy", "C:a.npy", ".npy", "..npy"])
def test_npz_members_with_a_path_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafePickle, match="refuses the member"):
        read_npz(_zip(tmp_path / "a.npz", [("good.npy", _npy(np.zeros(1))), (name, _npy(np.zeros(1)))]))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_npz_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokenPickle, match="two members"):
        read_npz(_zip(tmp_path / "a.npz", [("a.npy", _npy(np.zeros(1))), ("a.npy", _npy(np.ones(1)))]))


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb = _zip(tmp_path / "a.npz", [("a.npy", _npy(np.zeros(1_000_000, np.uint8)))], zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 10_000
    with pytest.raises(BrokenPickle, match="unpacks to"):
        NpzFile(bomb, most=999_999).array("a")


@pytest.mark.parametrize(
    ("data", "error", "mentions"),
    [
        (_lying_npy("'<f8'", "(1000000000000,)", b""), BrokenPickle, "expects"),
        (_lying_npy("'<f8'", "(-3,)", bytes(24)), BrokenPickle, "expects"),
        (_lying_npy("'<f8'", "(3,)", bytes(23)), BrokenPickle, "expects"),
        (_lying_npy("'<f8'", "(3,)", bytes(25)), BrokenPickle, "expects"),
        (_lying_npy("'<U0'", "(9,)", b""), BrokenPickle, "expects"),
        (_lying_npy("'|b1'", "(1,)", b"\x02"), BrokenPickle, "boolean"),
        (_lying_npy("'<M8[s]'", "(1,)", bytes(8)), UnsafePickle, "datetime64"),
        (_lying_npy("[('a', '<f8')]", "(1,)", bytes(8)), UnsafePickle, "dtype"),
        (_lying_npy("[('a', '|O')]", "(1,)", bytes(8)), UnsafePickle, "dtype"),
        (_lying_npy("'|O'", "(3,)", pickle.dumps(np.array([None] * 2))), BrokenPickle, "something else"),
        (_lying_npy("'|O'", "()", pickle.dumps([1])), BrokenPickle, "something else"),
        (
            _lying_npy("__import__('os').system('touch it_ran')", "()", b""),
            BrokenPickle,
            "ast.Call object>",
        ),  # no address
        (_lying_npy("(" * 500, "()", b""), BrokenPickle, "array 'a'"),
        (b"\x93NUMPY\x09\x00" + bytes(20), BrokenPickle, "npy"),
        (b"PK\x03\x04", BrokenPickle, "array 'a'"),
        (b"", BrokenPickle, "array 'a'"),
    ],
)
def test_npy_members_that_lie_are_refused(data: bytes, error: type, mentions: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=mentions):
        read_npz(_zip(tmp_path / "a.npz", [("a.npy", data)]))
