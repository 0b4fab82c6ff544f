from __future__ import annotations

from pathlib import Path

import pytest

from dto_pipeline.data.dataset import DatasetError, dataset_from_dict, load_dataset, shipped_datasets
from tests.memory_store import put

MANIFESTS = Path(__file__).parents[2] / "manifests"
PLAIN = {"name": "x", "source": "camerahmr", "labels": "l.npz", "images": "i"}


@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_description_loads_and_says_its_licence(path):
    dataset = load_dataset(path, "data")
    assert dataset.name == path.stem
    assert dataset.licence
    assert dataset.labels_path == Path("data") / dataset.labels
    assert dataset.key_parts == (3 if dataset.name in ("insta1", "insta2", "demo") else 1)
    assert 200 <= dataset.shard_images <= 1000 or dataset.name == "demo"  # as the docs recommend for nodes that die


def test_paths_are_relative_to_the_data_root_and_optional_ones_may_be_absent():
    dataset = dataset_from_dict({**PLAIN, "depth": "d"}, "/data")
    assert dataset.images_root == Path("/data/i")
    assert dataset.depth_root == Path("/data/d")
    assert dataset.place("sidecar") is None
    assert "root" not in dataset.describe()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"shard_image": 3}, "unknown keys .'shard_image'."),
        ({"root": "/"}, "unknown keys .'root'."),
        ({"source": "cliff"}, "source is 'cliff'; choose from"),
        ({"principal_point": "left"}, "principal_point is 'left'"),
        ({"key_parts": 0}, "key_parts is 0"),
        ({"key_parts": True}, "key_parts is True; expected int"),
        ({"key_parts": "3"}, "key_parts is '3'; expected int"),
        ({"shard_images": 0}, "shard_images is 0"),
        ({"labels": "/abs.npz"}, "labels: .*data root"),
        ({"labels": ""}, "labels: .*empty"),
        ({"depth": "../d"}, "depth: .*leaves its folder"),
        ({"name": "a/b"}, "name is 'a/b'"),
        ({"depth_suffix": "npy"}, "depth_suffix is 'npy'"),
        ({"images_in": "zip"}, "images_in is 'zip'"),
        ({"masks": "guess"}, "masks is 'guess'"),
        ({"labels": []}, r"labels is \[\]; expected str"),
        ({"labels": ["a.npz", 3]}, "labels is .*; expected str"),
        ({"labels": ["a.npz", "../b.npz"]}, "labels: .*leaves its folder"),
        ({"label_values": "now"}, "label_values is 'now'"),
        ({"image_prefixes": "a"}, "image_prefixes is 'a'; expected dict"),
        ({"predictions": "../p"}, "predictions: .*leaves its folder"),
        ({"places": {}}, "unknown keys .'places'."),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(changes, why):
    with pytest.raises(DatasetError, match=why):
        dataset_from_dict({**PLAIN, **changes}, "data")


def test_places_and_changes_come_before_the_description(tmp_path):
    (tmp_path / "x.yaml").write_text("{name: x, source: camerahmr, labels: l.npz, images: i}")
    places = {"images": "s3://bucket/i", "labels": "/elsewhere/l.npz"}
    dataset = load_dataset(tmp_path / "x.yaml", "/data", places, images_in="tars")
    assert (dataset.images_root, dataset.labels_path) == ("s3://bucket/i", Path("/elsewhere/l.npz"))
    assert dataset.images_in == "tars"
    assert dataset.describe()["images"] == "i"
    assert "places" not in dataset.describe()
    bare = dataset_from_dict({"name": "x", "source": "camerahmr"}, "/data", places)
    assert bare.labels_path == Path("/elsewhere/l.npz")


def test_a_data_root_may_be_a_uri_and_depth_maps_lie_below_it_or_elsewhere():
    assert dataset_from_dict(PLAIN, "s3://bucket/data").labels_path == "s3://bucket/data/l.npz"
    assert dataset_from_dict({**PLAIN, "depth": "d"}, "s3://bucket/data").depth_root == "s3://bucket/data/d"
    assert dataset_from_dict({**PLAIN, "depth": "d"}, "s3://bucket/data", {"depth": "/d"}).depth_root == Path("/d")


def test_a_description_is_read_from_a_uri_as_from_its_path(tmp_path):
    text = "name: x\nsource: camerahmr\nlabels: l.npz\nimages: i\n"
    (tmp_path / "a b.yaml").write_text(text)
    put("yaml/x.yaml", text.encode())
    expected = dataset_from_dict(PLAIN, "/data")
    assert load_dataset((tmp_path / "a b.yaml").as_uri(), "/data") == expected
    assert load_dataset("memory://yaml/x.yaml", "/data") == expected
    with pytest.raises(DatasetError, match=r"memory://yaml/y\.yaml does not exist"):
        load_dataset("memory://yaml/y.yaml", "/data")


def test_a_missing_key_a_missing_file_and_a_broken_file_have_their_own_messages(tmp_path):
    with pytest.raises(DatasetError, match=r"missing keys .'images'."):
        dataset_from_dict({k: v for k, v in PLAIN.items() if k != "images"}, "data")
    with pytest.raises(DatasetError, match="does not exist"):
        load_dataset(tmp_path / "none.yaml", "data")
    for text, why in (("a: [", "not valid YAML"), ("- 1", "expected key: value"), ("", "expected key: value")):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(DatasetError, match=why) as caught:
            load_dataset(tmp_path / "x.yaml", "data")
        assert "x.yaml" in str(caught.value)


def test_a_description_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_dataset("coco", "data").name == "coco"
    assert set(shipped_datasets()) == {path.stem for path in MANIFESTS.glob("*.yaml")}
    (tmp_path / "coco").write_text("{name: own, source: camerahmr, labels: l.npz, images: i}")
    assert load_dataset("coco", "data").name == "own"
    with pytest.raises(DatasetError, match=r"does not exist; by name there are aic, coco, .*mpii"):
        load_dataset("cocoa", "data")


@pytest.mark.parametrize("name", ["aic", "coco", "insta1", "insta2", "mpii"])
def test_files_are_found_where_the_public_projects_put_them(tmp_path, name):
    plain = load_dataset(name, tmp_path)
    assert plain.labels == f"labels/{name}-release.npz"
    labels = tmp_path / f"data/training-labels/{name}-release.npz"
    images = tmp_path / f"hmr2_training_data/dataset_tars/{plain.images}"
    labels.parent.mkdir(parents=True)
    labels.write_bytes(b"")
    images.mkdir(parents=True)
    found = load_dataset(name, tmp_path)
    assert (found.labels_path, found.images_root) == (labels, images)
    assert load_dataset(name, tmp_path, {"labels": "/l.npz"}).labels_path == Path("/l.npz")


def test_a_folder_of_images_contradicts_no_masks_beside_them():
    dataset = load_dataset("coco", "data", images_in="folder", shard_images=7, principal_point="free")
    assert (dataset.masks, dataset.shard_images, dataset.principal_point) == ("detection", 7, "free")
    assert load_dataset("coco", "data", masks="sidecar").masks == "sidecar"
