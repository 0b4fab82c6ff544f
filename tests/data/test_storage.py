"""Places of files behind URIs: the in-process ``memory://`` stands for any object store here."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dto_pipeline.data.images import ImageCorrupt, ImageMissing, ImageStore
from dto_pipeline.data.manifest import Manifest, report_path
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.data.manifest_build.check import check_manifest
from dto_pipeline.data.object_store import open_remote
from dto_pipeline.data.storage import (
    StorageError,
    as_location,
    base_name,
    beside,
    exists,
    join_location,
    list_names,
    local_copy,
    open_store,
    parent_and_name,
    read_bytes,
    read_many,
    sha256_of,
    write_bytes,
    written,
)
from dto_pipeline.data.tars import open_images
from dto_pipeline.paths import UnsafePath
from tests.data.small_set import (
    HEIGHT,
    WIDTH,
    all_rows,
    build_small,
    label_arrays,
    read_findings,
    small_dataset,
    write_image,
    write_labels_file,
)
from tests.memory_store import clear_memory, put, upload
from tests.tars import jpeg, write_tar

NAMES = ["x/b.jpg", "x/a.jpg", "x/b.jpg", "gone.jpg"]


@pytest.fixture
def bucket():
    clear_memory()
    yield open_store("memory://")
    clear_memory()


def fail_half_way(location: str) -> None:
    with written(location) as local:
        local.write_bytes(b"half")
        raise RuntimeError


def test_file_uris_are_plain_paths():
    assert as_location("file:///a/b%20c.npz") == Path("/a/b c.npz")
    assert as_location("a/b") == Path("a/b")


@pytest.mark.parametrize("uri", ["file://a/b", "file://", "file://other:1/a"])
def test_a_file_uri_of_another_machine_is_refused(uri: str):
    with pytest.raises(StorageError, match="expected file:///FOLDER"):
        as_location(uri)


def test_locations_are_joined_and_renamed_without_losing_their_query():
    uri = "s3://bucket/data?endpoint_override=localhost:1"
    assert join_location(uri, "a//b.jpg") == "s3://bucket/data/a/b.jpg?endpoint_override=localhost:1"
    assert beside("s3://bucket/m.parquet?region=x", ".report.json") == "s3://bucket/m.report.json?region=x"
    assert beside(Path("d/m.parquet"), ".report.json") == Path("d/m.report.json")
    assert base_name("s3://bucket/d/m.parquet?region=x") == "m.parquet"
    with pytest.raises(UnsafePath):
        join_location(uri, "../x")


def test_passwords_and_unknown_schemes_are_refused():
    with pytest.raises(StorageError, match="environment") as raised:
        as_location("s3://key:hush@bucket/x")
    assert "hush" not in str(raised.value)
    with pytest.raises(StorageError, match="nowhere://x"):
        exists("nowhere://x/y")


def test_a_file_appears_whole_or_not_at_all(bucket):
    with written("memory://d/e/x.bin") as local:
        local.write_bytes(b"abc")
        assert not exists("memory://d/e/x.bin")
    assert bucket.read("d/e/x.bin") == b"abc"
    with pytest.raises(RuntimeError):
        fail_half_way("memory://d/e/y.bin")
    write_bytes("memory://d/e/x.bin", b"new")
    assert bucket.read("d/e/x.bin") == b"new"
    assert list(bucket.entries("d/e")) == ["x.bin"]


def test_files_and_folders_are_copied_for_as_long_as_needed(bucket):
    for name in ("labels/a.parquet", "labels/b/c.parquet", "labels/d.txt"):
        put(f"r/{name}", name.encode())
    with local_copy("memory://r/labels", (".parquet",)) as folder:
        found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        assert found == ["a.parquet", "b/c.parquet"]
    assert not folder.exists()
    with local_copy("memory://r/labels/a.parquet") as file:
        assert file.read_bytes() == b"labels/a.parquet"
    with pytest.raises(FileNotFoundError), local_copy("memory://r/none.npz"):
        pass


class LargeObject:
    """What a store over a network answers: an object of 16 MiB that comes in pieces."""

    def bytes(self):
        return b"x" * (1 << 24)

    def stream(self):
        return (b"x" * (1 << 20) for _ in range(16))


def test_a_copy_of_a_large_file_is_not_held_in_memory(bucket, monkeypatch):
    monkeypatch.setattr(open_remote("memory://r"), "_client", SimpleNamespace(get=lambda key: LargeObject()))
    tracemalloc.start()
    try:
        with local_copy("memory://r/large.npz") as file:
            assert file.stat().st_size == 1 << 24
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("remote", [False, True])
def test_names_are_listed_and_read_alike_everywhere(bucket, tmp_path, remote):
    for name in ("a/1.jpg", "a/b/2.JPG", "3.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    upload(tmp_path, "box")
    root = "memory://box" if remote else tmp_path
    assert sorted(list_names(root, (".jpg",))) == ["a/1.jpg", "a/b/2.JPG"]
    assert open_store(root).read("a/1.jpg", 3) == b"a/1"
    with pytest.raises(ImageCorrupt, match="leaves its folder"):
        ImageStore(root).read_bytes("../1.jpg", 3)
    with pytest.raises(FileNotFoundError):
        list(list_names(as_location("memory://none") if remote else tmp_path / "none", ("",)))


def test_links_to_folders_are_followed_and_circles_end(tmp_path, caplog):
    root, disk = tmp_path / "tars", tmp_path / "other disk"
    (root / "a").mkdir(parents=True)
    (disk / "deep").mkdir(parents=True)
    for place in (root / "a/0.tar", disk / "1.tar", disk / "deep/2.tar"):
        place.write_bytes(b"")
    (root / "b").symlink_to(disk)
    (root / "c").symlink_to(disk)  # the same folder once more
    (root / "a2").symlink_to(root / "a")  # one that has a name of its own here
    (disk / "up").symlink_to(root)
    (disk / "deep/self").symlink_to(disk / "deep")
    (root / "3.tar").symlink_to(disk / "1.tar")  # a link to a file is that file
    (root / "gone").symlink_to(tmp_path / "nowhere")

    assert sorted(list_names(root, (".tar",))) == ["3.tar", "a/0.tar", "b/1.tar", "b/deep/2.tar"]
    assert [record.message.split()[0] for record in caplog.records] == [str(root / "gone")]


def test_a_folder_that_is_itself_a_link_is_listed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/0.tar").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "real")

    assert list(list_names(tmp_path / "link", (".tar",))) == ["0.tar"]


def test_images_behind_a_uri_are_judged_like_files(bucket, tmp_path):
    put("i/a.jpg", jpeg(60))
    put("i/cut.jpg", jpeg()[:100])
    store = ImageStore("memory://i")
    assert store.size("a.jpg") == (32, 24)
    assert int(store.read("a.jpg").rgb.mean()) == 60
    with pytest.raises(ImageMissing):
        store.size("b.jpg")
    with pytest.raises(ImageCorrupt):
        store.read("cut.jpg")
    with pytest.raises(ImageCorrupt, match="leaves its folder"):
        store.read("../a.jpg")


def test_a_manifest_is_built_checked_and_read_without_a_local_file(bucket, tmp_path):
    for name in ("x/b.jpg", "x/a.jpg", "x/c.jpg"):
        write_image(tmp_path, name)
    local, _ = build_small(tmp_path, NAMES, depth="")
    upload(tmp_path, "data")
    out = "memory://out/small.parquet"
    report = build_manifest(small_dataset("memory://data", depth=""), out, progress=False)
    manifest = Manifest.open(out)
    assert manifest.fingerprint == local.fingerprint
    assert manifest.images_root == "memory://data/images"
    assert report.findings == {"image_missing": 1, "image_without_labels": 1}
    assert read_findings(out).num_rows == 2
    assert exists(report_path(out))
    assert check_manifest(out, deep=True, progress=False).counts == {"fine": 2, "known": 1}


def test_tars_behind_a_uri_are_read_in_place(bucket, tmp_path):
    write_labels_file(tmp_path, label_arrays(["insta-train/a/b/1.jpg", "insta-train/a/b/2.jpg"]))
    write_tar(tmp_path / "tars" / "0.tar", {"a/b/1.jpg": jpeg(50, WIDTH, HEIGHT), "a/b/3.jpg": jpeg(70)})
    upload(tmp_path, "data")
    dataset = small_dataset("memory://data", images="tars", images_in="tars", key_parts=3, depth="")
    build_manifest(dataset, "memory://out/m.parquet", progress=False)
    manifest = Manifest.open("memory://out/m.parquet")
    files = [row["image_file"] for row in all_rows(manifest)]
    assert files == ["0.tar!a/b/1.jpg", "insta-train/a/b/2.jpg"]
    store = open_images(manifest.images_root, manifest.path)
    assert int(store.read(files[0]).rgb.mean()) == 50
    np.testing.assert_array_equal(store.size(files[0]), (WIDTH, HEIGHT))


@pytest.fixture(params=["folder", "memory"])
def root(request, tmp_path):
    if request.param == "folder":
        return tmp_path / "run"
    clear_memory()
    return "memory://store/run"


@pytest.fixture
def store(root):
    store = open_store(root)
    store.prepare(["a", "b"])
    return store


def test_a_file_is_created_once_and_replaced_at_will(store):
    assert store.create("a/x.json", b"first")
    assert not store.create("a/x.json", b"second")
    assert store.read("a/x.json") == b"first"
    store.replace("a/x.json", b"third")
    store.replace("a/y.json", b"")
    assert store.read("a/x.json") == b"third"
    assert store.entries("a") == {"x.json": 5, "y.json": 0}
    assert store.entries() == {}


@pytest.mark.parametrize(
    ("count", "start", "end"), [(3, b"012", b"789"), *((n, b"0123456789", b"0123456789") for n in (10, 99))]
)
def test_start_and_end_of_a_file_can_be_read_alone(store, root, count, start, end):
    store.create("a/x", b"0123456789")
    store.create("a/empty", b"")

    assert store.read("a/x", count) == start
    assert list(read_many(root, ["a/x", "a/empty"], count)) == [("a/x", end), ("a/empty", b"")]
    assert (store.read("a/x"), store.size("a/x")) == (b"0123456789", 10)


def test_what_is_not_there_is_missing_everywhere(store):
    for ask in (store.read, store.size, store.open):
        with pytest.raises(FileNotFoundError):
            ask("a/none")
    store.remove("a/none")


def test_many_files_are_read_in_order_and_those_gone_are_left_out(store, root):
    names = [f"b/{number:04d}" for number in range(1200)]
    for name in names:
        store.replace(name, name.encode())
    store.remove(names[700])

    assert list(read_many(root, names, 2)) == [(name, name[-2:].encode()) for name in names if name != names[700]]


def test_single_files_are_found_by_their_location(store, root):
    place = root / "a" / "x y" if not isinstance(root, str) else f"{root}/a/x%20y"

    assert store.create("a/x y", b"abc")
    assert read_bytes(place) == b"abc"
    assert sha256_of(place).startswith("ba7816bf")
    assert list(store.entries("a")) == ["x y"]


def test_a_location_is_taken_apart_without_losing_its_query():
    place = "s3://bucket/runs/a%20b/x.json?region=x"
    assert parent_and_name(place) == ("s3://bucket/runs/a%20b?region=x", "x.json")
    with pytest.raises(StorageError, match="names no file"):
        parent_and_name("s3://bucket")
