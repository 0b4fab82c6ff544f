"""A manifest from and to S3 itself, as moto's loopback server speaks it; skipped where moto is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.data.manifest_build.check import check_manifest
from dto_pipeline.data.storage import list_names, open_store
from tests.data.small_set import HEIGHT, WIDTH, build_small, small_dataset, write_image
from tests.s3_server import ENVIRONMENT, s3_client, s3_uri, serve_s3
from tests.tars import jpeg, write_tar

pytestmark = pytest.mark.slow
NAMES = ["x/b.jpg", "x/a.jpg", "x/b.jpg", "gone.jpg"]


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("moto.server", reason="pip install 'moto[server,s3]'")
    with serve_s3() as address:
        yield address


@pytest.fixture
def uri(server, monkeypatch):
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    s3_client(server).create_bucket(Bucket="bucket")
    return lambda path: s3_uri(server, path)


def upload(folder: Path, uri: str) -> None:
    for name in list_names(folder, ("",)):
        open_store(uri).replace(name, (folder / name).read_bytes())


@pytest.mark.parametrize("images_in", ["folder", "tars"])
def test_labels_images_and_manifest_may_lie_on_s3(uri, tmp_path, images_in):
    write_image(tmp_path, "x/a.jpg")
    write_image(tmp_path, "x/b.jpg")
    tar = {f"{name}.jpg": jpeg(90, WIDTH, HEIGHT) for name in ("a", "b")}
    write_tar(tmp_path / "images" / "0.tar", tar)
    local, _ = build_small(tmp_path, NAMES, depth="", images_in=images_in)
    upload(tmp_path, uri(images_in))
    out = uri(f"out/{images_in}.parquet")
    dataset = small_dataset(uri(images_in), depth="", images_in=images_in)
    report = build_manifest(dataset, out, progress=False)
    assert report.image_problems == {"image_missing": 1}
    assert Manifest.open(out).fingerprint == local.fingerprint
    assert check_manifest(out, deep=True, progress=False).counts == {"fine": 2, "known": 1}
