"""`dto manifest build` ends with 1 where much of what it wrote cannot be used, whatever the reason."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dto_pipeline.cli import main
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.data.sources.sidecar import write_sidecar
from tests.data.small_set import WIDTH, label_arrays, small_dataset, write_depth, write_image, write_labels_file
from tests.tars import write_tar

NAMES = [f"{number:03d}.jpg" for number in range(20)]
YAML = "{name: small, source: camerahmr, labels: labels/small-release.npz, images: images, depth: depth}"
Arrays = dict[str, np.ndarray]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twenty sound images of one person each, with depth maps."""
    for name in NAMES:
        write_image(tmp_path, name)
        write_depth(tmp_path, name)
    write_labels_file(tmp_path, label_arrays(NAMES))
    (tmp_path / "d.yaml").write_text(YAML)
    return tmp_path


def build(root: Path, *more: str) -> int:
    (root / "d.yaml").touch()
    command = ["manifest", "build", str(root / "d.yaml"), "--data-root", str(root), "-o", str(root / "m.parquet")]
    return main([*command, "--quiet", *more])


def relabel(change: Callable[[Arrays], Arrays]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        write_labels_file(root, {**label_arrays(NAMES), **change(label_arrays(NAMES))})

    return spoil


def _numbers(column: str, first: int, value: float) -> Callable[[Arrays], Arrays]:
    """One number of every row changed, the last axis at `first`."""

    def change(arrays: Arrays) -> Arrays:
        arrays[column][..., first] = value
        return {column: arrays[column]}

    return change


def _camera(row: int, column: int, value: float) -> Callable[[Arrays], Arrays]:
    def change(arrays: Arrays) -> Arrays:
        arrays["cam_int"][:, row, column] = value
        return {"cam_int": arrays["cam_int"]}

    return change


def _cut_tar(root: Path) -> None:
    """All images in one tar, of which half is left."""
    path = root / "images/all.tar"
    files = {name: (root / "images" / name).read_bytes() for name in NAMES}
    write_tar(path, files)
    for name in NAMES:
        (root / "images" / name).unlink()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (root / "d.yaml").write_text(YAML.replace("}", ", images_in: tars}"))


def _rename_depth(root: Path) -> None:
    for path in (root / "depth").iterdir():
        path.rename(path.with_suffix(".npz"))


def _sidecar(**columns: np.ndarray) -> Callable[[Path], None]:
    def add(root: Path) -> None:
        write_sidecar(root / "seen.parquet", np.arange(len(NAMES)), **columns)
        (root / "d.yaml").write_text(YAML.replace("}", ", sidecar: seen.parquet}"))

    return add


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_sidecar(male_prob=np.linspace(0, 100, 20)), "male_prob outside 0 .. 1, taken as unknown: 19 of 20 values"),
        (
            _sidecar(age_years=np.r_[[-1.0] * 10, [30, 250] * 5]),
            "taken as unknown: 5 of 10 values of age_years; give y",
        ),
        (relabel(lambda a: {"imgname": np.array([f"/fast/{name}" for name in NAMES])}), "label_invalid: 20 of 20"),
        (relabel(lambda a: {"imgname": np.array([f"x{name}" for name in NAMES])}), "image_missing: 20 of 20"),
        (relabel(_camera(0, 2, WIDTH)), "size_mismatch: 20 of 20"),
        (relabel(_camera(0, 0, 1e-3)), "label_invalid: 20 of 20 images; image 000.jpg: focal length beyond"),
        (relabel(_numbers("trans_cam", 2, 1e6)), "transl z beyond 0.05 .. 500 m: 20 of 20 label rows"),
        (relabel(_numbers("shape", 0, 50)), "betas beyond -30 .. 30 sigma: 20 of 20 label rows"),
        (relabel(_numbers("pose_cam", 5, np.nan)), "pose is not finite: 20 of 20 label rows"),
        (relabel(lambda a: {"scale": -a["scale"]}), "bbox_xyxy that ends before it begins, taken as unknown: 20 of 20"),
        (
            relabel(lambda a: {"trans_cam": a["trans_cam"] * np.array([-1, 1, 1], np.float32)}),
            "20 of 20 people with a box stand",
        ),
        (relabel(lambda a: {"trans_cam": a["trans_cam"] * np.float32(10)}), "20 of 20 people with a box stand"),
        (relabel(lambda a: {"center": a["center"] * np.float32(20 / WIDTH)}), "people with a box stand elsewhere"),
        (lambda root: shutil.rmtree(root / "depth"), "there is no depth folder"),
        (_rename_depth, "depth map 000.npy does not exist below"),
        (_cut_tar, "1 tars are damaged"),
        (lambda root: shutil.rmtree(root / "images"), "image_missing: 20 of 20 images; image 000.jpg does not exist"),
    ],
)
def test_what_cannot_be_used_is_written_and_reported_and_ends_with_1(
    root: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], said: str
) -> None:
    spoil(root)
    assert build(root) == 1
    assert said in capsys.readouterr().err
    assert Manifest.open(root / "m.parquet").num_images == 20
    assert build(root, "--max-failed-images", "1") == 0


def test_a_sound_data_set_and_one_fault_in_twenty_end_with_0_and_two_with_1(root: Path) -> None:
    assert build(root) == 0
    (root / "images/000.jpg").unlink()
    assert build(root) == 0
    (root / "images/001.jpg").unlink()
    assert build(root) == 1


def test_manifests_whose_names_differ_behind_a_point_keep_files_of_their_own(root: Path) -> None:
    for name in ("small-1.0", "small-1.5"):
        assert build(root, "-o", str(root / name)) == 0
        assert {path.name for path in root.glob(f"{name}*")} == {
            name,
            f"{name}.report.json",
            f"{name}.findings.parquet",
        }


def test_where_a_network_looks_no_depth_folder_is_asked_for(root: Path) -> None:
    shutil.rmtree(root / "depth")
    assert build(root, "--depth", "") == 0
    assert Manifest.open(root / "m.parquet").depth_root is None


def test_photographs_that_a_viewer_turns_are_counted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note = Image.Exif()
    note[0x0112] = 3  # upside down: the sides do not tell
    path = root / "images/000.jpg"
    Image.open(path).save(path, exif=note)
    assert build(root) == 0
    said = capsys.readouterr().out
    assert re.search(r"images with an EXIF note that turns them, .* 1\n", said)


def test_the_commonest_reason_comes_first(root: Path) -> None:
    for number in range(3):
        (root / "images" / NAMES[number]).unlink()
    for number in range(7):
        write_depth(root, NAMES[number]).unlink()
    report = build_manifest(small_dataset(root), root / "m.parquet", progress=False)
    lines = report.complaint(0.05).splitlines()
    assert lines[0].startswith("3 of 20 images, 3 of 20 label rows, 7 of 20 depth maps looked for cannot be used")
    assert [line.split(":")[0].strip() for line in lines[1:3]] == ["depth_missing", "image_missing"]


@pytest.mark.parametrize("share", ["1.5", "-1", "nan"])
def test_a_share_that_is_none_is_refused(root: Path, share: str) -> None:
    with pytest.raises(SystemExit) as caught:
        build(root, f"--max-failed-images={share}")
    assert caught.value.code == 2


@pytest.mark.parametrize("place", ["", ".", "/"])
def test_a_folder_is_no_place_for_a_manifest(
    root: Path, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    assert build(root, "-o", place) == 2
    assert "is a folder; name the manifest's file (-o)" in capsys.readouterr().err
