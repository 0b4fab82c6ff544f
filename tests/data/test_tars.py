"""Tars read in place: what the index finds, what it refuses, and that damage costs one member."""

import io
import json
import os
import tarfile

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dto_pipeline.data.images import ImageCorrupt, ImageMissing
from dto_pipeline.data.tar_walk import sample_key, walk_tar
from dto_pipeline.data.tars import TarImages, TarIndexError, build_tar_index, list_tars, split_address
from tests.tars import write_tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def entry(name, kind=tarfile.REGTYPE, size=0, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


def tar_bytes(files, form=tarfile.PAX_FORMAT):
    """A tar of (name or TarInfo, contents) in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for item, data in files:
            info = entry(item, size=len(data)) if isinstance(item, str) else item
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def members(data):
    return walk_tar(pa.BufferReader(data))[0]


def problem(data):
    """What is wrong with the tar as a whole."""
    return walk_tar(pa.BufferReader(data))[1]


def usable(data):
    """name -> contents, read where the listing says."""
    return {m.name: data[m.offset : m.offset + m.size] for m in members(data) if m.problem is None}


def problems(data):
    return {m.name: m.problem for m in members(data) if m.problem}


@pytest.fixture
def indexed(tmp_path):
    """Make an index of tars given as name=bytes."""

    def make(**tars):
        for name, data in tars.items():
            (tmp_path / f"{name}.tar").write_bytes(data)
        out = tmp_path / "out" / "tars.parquet"
        build_tar_index(tmp_path, out)
        return TarImages(out, tmp_path)

    return make


names = st.from_regex(r"[a-zA-Zé0-9_ -]{1,120}(/[a-z0-9]{1,90}){0,2}\.(jpg|data\.pyd|detection\.npz)", fullmatch=True)


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@given(st.dictionaries(names, st.binary(max_size=1500), max_size=6))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_tarfile_writes_is_read_back(form, files):
    if form == tarfile.USTAR_FORMAT:
        files = {name: data for name, data in files.items() if len(name.encode()) < 100}
    data = tar_bytes(files.items(), form)
    assert usable(data) == files
    assert problem(data) is None


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_never_raise_and_never_point_outside(data):
    good = bytearray(tar_bytes([("a.jpg", b"x" * 700), ("b" * 150 + ".jpg", b"y" * 100), ("c.jpg", b"")]))
    for at in data.draw(st.lists(st.integers(0, len(good) - 1), max_size=6)):
        good[at] = data.draw(st.integers(0, 255))
    broken = bytes(good[: data.draw(st.integers(0, len(good)))])
    for member in members(broken):
        assert member.problem or member.offset + member.size <= len(broken)


@given(st.binary(max_size=3000))
@settings(max_examples=40, deadline=None)
def test_bytes_that_are_no_tar_are_a_problem(data):
    assert problem(data)
    assert not usable(data)


def test_contents_are_the_bytes_written(indexed):
    index = indexed(a=tar_bytes([("x/1.jpg", b"one"), ("x/2.jpg", b"two" * 999)]), b=tar_bytes([("1.jpg", b"")]))
    assert index.read_bytes("a.tar!x/2.jpg") == b"two" * 999
    assert index.read_bytes("a.tar!x/2.jpg", limit=4) == b"twot"
    assert index.read_bytes("b.tar!1.jpg") == b""
    assert index.rows("a.tar")["member"].to_pylist() == ["x/1.jpg", "x/2.jpg"]
    assert list(index.problems()) == []


def test_a_truncated_tar_keeps_its_good_members_and_names_the_rest():
    whole = tar_bytes([("1.jpg", b"1" * 600), ("2.jpg", b"2" * 600), ("3.jpg", b"3" * 600)])
    cut = whole[: 1536 + 512 + 100]  # inside the contents of 2.jpg
    assert usable(cut) == {"1.jpg": b"1" * 600}
    assert problems(cut) == {"2.jpg": "is truncated: 100 of 600 bytes are there"}
    assert problem(cut) == "is truncated at byte 2148"


def test_tar_cut_between_members_has_no_end_marker():
    whole = tar_bytes([("1.jpg", b"1" * 600), ("2.jpg", b"2" * 600)])
    assert usable(whole[:1536]) == {"1.jpg": b"1" * 600}
    assert "no end marker" in problem(whole[:1536])


def test_damaged_header_costs_one_member():
    data = bytearray(tar_bytes([("1.jpg", b"1" * 600), ("2.jpg", b"2" * 600), ("3.jpg", b"3" * 600)]))
    data[1536 + 130] ^= 0xFF
    assert list(usable(bytes(data))) == ["1.jpg", "3.jpg"]
    assert problem(bytes(data)) == "has a damaged header at byte 1536; goes on at byte 3072"


@pytest.mark.parametrize("name", ["../up.jpg", "a/../../up.jpg", "/etc/passwd.jpg", "C:/x.jpg", "a\\b.jpg", "a\nb.jpg"])
def test_names_that_leave_the_folder_are_refused(name):
    data = tar_bytes([(name, b"evil"), ("good.jpg", b"good")])
    assert usable(data) == {"good.jpg": b"good"}
    assert "is refused" in problems(data)[name]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE, b"Z"])
def test_what_is_no_regular_file_is_refused(kind):
    data = tar_bytes([(entry("odd.jpg", kind, link="good.jpg"), b""), ("good.jpg", b"good")])
    assert usable(data) == {"good.jpg": b"good"}
    assert f"(type {chr(kind[0])!r})" in problems(data)["odd.jpg"]


def test_names_that_are_not_utf8_are_refused():
    info = entry("caf\udce9.jpg", size=1)  # latin1 bytes
    data = tar_bytes([(info, b"x"), ("good.jpg", b"good")], tarfile.GNU_FORMAT)
    assert problems(data) == {"caf\\xe9.jpg": "has a name that is not UTF-8"}


def test_folders_are_not_members():
    data = tar_bytes([(entry("a", tarfile.DIRTYPE), b""), ("a/1.jpg", b"1")])
    assert usable(data) == {"a/1.jpg": b"1"}
    assert problems(data) == {}


def test_of_a_repeated_name_the_first_is_kept_and_the_other_named():
    data = tar_bytes([("1.jpg", b"first"), ("./1.jpg", b"second")])
    assert usable(data) == {"1.jpg": b"first"}
    assert problems(data) == {"1.jpg": "repeats the name of the member at byte 512"}


def test_members_behind_the_end_marker_are_reported():
    data = tar_bytes([("1.jpg", b"1")]) + tar_bytes([("2.jpg", b"2")])
    assert list(usable(data)) == ["1.jpg"]
    assert "goes on behind its end marker at byte 10240" in problem(data)


def test_compressed_tar_is_refused_with_advice():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.addfile(entry("1.jpg", size=1), io.BytesIO(b"1"))
    assert problem(buffer.getvalue()) == "is compressed (gzip) and cannot be read in place; decompress it"


def test_sizes_in_base_256_are_read_and_absurd_ones_are_truncations():
    info = entry("big.jpg", size=9 * 2**33)
    header = info.tobuf(tarfile.GNU_FORMAT)
    assert members(header + b"x" * 512)[0].problem == f"is truncated: 512 of {9 * 2**33} bytes are there"


def test_a_refused_entry_never_hides_a_usable_one_of_its_name(indexed):
    index = indexed(t=tar_bytes([(entry("1.jpg", tarfile.SYMTYPE, link="/etc/passwd"), b""), ("1.jpg", b"real")]))
    assert index.read_bytes("t.tar!1.jpg") == b"real"


def test_tar_that_changed_after_indexing_is_not_read(indexed, tmp_path):
    index = indexed(t=tar_bytes([("1.jpg", b"1" * 9)]))
    (tmp_path / "t.tar").write_bytes(tar_bytes([("0.jpg", b"0" * 20000), ("1.jpg", b"1")]))
    with pytest.raises(ImageCorrupt, match="build the index again"):
        index.read_bytes("t.tar!1.jpg")
    (tmp_path / "t.tar").unlink()
    with pytest.raises(ImageMissing, match=r"t\.tar does not exist"):
        index.read_bytes("t.tar!1.jpg")


def test_index_is_built_once_and_again_when_a_tar_changed(tmp_path):
    out = tmp_path / "i.parquet"
    (tmp_path / "a.tar").write_bytes(tar_bytes([("1.jpg", b"1")]))
    first = build_tar_index(tmp_path, out)
    bytes_then, made = out.read_bytes(), out.stat().st_mtime_ns
    assert build_tar_index(tmp_path, out) == first
    assert out.stat().st_mtime_ns == made
    out.unlink()
    build_tar_index(tmp_path, out)
    assert out.read_bytes() == bytes_then  # no clock in it
    (tmp_path / "a.tar").write_bytes(tar_bytes([("1.jpg", b"1" * 20000)]))
    assert build_tar_index(tmp_path, out) != first


def test_other_files_are_no_index(tmp_path, indexed):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(TarIndexError, match="not a whole Parquet file"):
        TarImages(tmp_path / "x.parquet", tmp_path)
    pa.parquet.write_table(pa.table({"a": [1]}), tmp_path / "y.parquet")
    with pytest.raises(TarIndexError, match="columns differ"):
        TarImages(tmp_path / "y.parquet", tmp_path)


@pytest.mark.parametrize("where", [b"dto-tar-index", b"member", b"tars"])
def test_an_index_with_a_byte_that_is_not_utf8_in_its_footer_is_named_and_built_again(indexed, tmp_path, where):
    index = indexed(t=tar_bytes([("1.jpg", b"1")]))
    data = index.path.read_bytes()
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")  # of the footer
    place = data.index(where, begin)
    index.path.write_bytes(data[:place] + b"\xff" + data[place + 1 :])

    with pytest.raises(TarIndexError, match=r"tars\.parquet"):
        TarImages(index.path, tmp_path)
    build_tar_index(tmp_path, index.path)
    assert index.path.read_bytes() == data


def test_a_pipe_or_a_device_in_the_place_of_a_tar_is_a_problem_of_that_tar_only(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes([("1.jpg", b"1")]))
    os.mkfifo(tmp_path / "b.tar")
    (tmp_path / "c.tar").symlink_to("/dev/zero")
    summaries = build_tar_index(tmp_path, tmp_path / "index.parquet")

    assert summaries[0].problem is None
    assert all("expected a regular file" in str(summary.problem) for summary in summaries[1:])


def test_a_tar_whose_name_would_end_an_address_is_refused(tmp_path):
    write_tar(tmp_path / "x.tar!y.tar", {})
    with pytest.raises(TarIndexError, match=r"without '\.tar!'"):
        build_tar_index(tmp_path, tmp_path / "i.parquet")
    assert not (tmp_path / "i.parquet").exists()


def test_tars_are_listed_in_order_below_a_folder(tmp_path):
    for name in ("s/000001.tar", "s/000000.tar", "s/deep/2.tar", "other/3.tar", "s/4.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_tars(tmp_path / "s") == ["000000.tar", "000001.tar", "deep/2.tar"]
    assert list_tars(f"file://{tmp_path}/other") == ["3.tar"]
    with pytest.raises(TarIndexError, match="does not exist"):
        list_tars(tmp_path / "nowhere")


def test_keys_end_at_the_first_dot_of_the_base_name():
    for name, key, extension in (
        ("a/b.c/d.data.pyd", "a/b.c/d", "data.pyd"),
        ("000.jpg", "000", "jpg"),
        ("a/noext", "a/noext", ""),
        ("a/.hidden", "a/", "hidden"),
    ):
        assert sample_key(name) == (key, extension)


def test_addresses_split_at_the_end_of_the_tars_name():
    assert split_address("s/000.tar!a/b!c.jpg") == ("s/000.tar", "a/b!c.jpg")
    assert split_address("a/b!c.jpg") is None
    assert split_address("a.tar!") is None


def test_an_index_that_leads_out_of_the_folder_is_refused(indexed, tmp_path):
    index = indexed(t=tar_bytes([("1.jpg", b"1")]))
    table = pa.parquet.read_table(index.path)
    for tar in ("../t.tar", ["t.tar"], 5):
        summaries = json.dumps([[tar, 10240, 1, 0, None]])
        metadata = {"schema": "dto-tar-index/1", "tars": summaries}
        pa.parquet.write_table(table.replace_schema_metadata(metadata), index.path)
        with pytest.raises(TarIndexError, match="cannot be used"):
            TarImages(index.path, tmp_path)
