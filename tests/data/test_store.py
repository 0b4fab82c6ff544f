"""A store means the same wherever it lies: local folder, object store."""

import pytest

from dto_pipeline.data.storage import StorageError, open_store, parent_and_name, read_bytes, read_many, sha256_of
from tests.memory_store import clear_memory


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


def test_a_fresh_store_is_empty(store):
    assert store.entries() == store.entries("a") == store.entries("nowhere") == {}


def test_a_file_is_created_once_and_replaced_at_will(store):
    assert store.create("a/x.json", b"first")
    assert not store.create("a/x.json", b"second")
    assert store.read("a/x.json") == b"first"
    store.replace("a/x.json", b"third")
    store.replace("a/y.json", b"")
    assert store.read("a/x.json") == b"third"
    assert store.entries("a") == {"x.json": 5, "y.json": 0}
    assert store.entries() == {}


@pytest.mark.parametrize(("tail", "found"), [(0, b"0123456789"), (3, b"789"), (10, b"0123456789"), (99, b"0123456789")])
def test_the_end_of_a_file_can_be_read_alone(store, tail, found):
    store.create("a/x", b"0123456789")

    assert store.read("a/x", tail) == found
    assert store.size("a/x") == 10


def test_what_is_not_there_is_missing_everywhere(store):
    for ask in (store.read, store.size, lambda name: store.read(name, 5)):
        with pytest.raises(FileNotFoundError):
            ask("a/none")
    store.remove("a/none")


def test_a_removed_file_can_be_created_again(store):
    store.create("a/x", b"1")
    store.remove("a/x")

    assert store.create("a/x", b"2")


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
