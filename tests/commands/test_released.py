"""Released DTO-Humans through every verb: a file of 1,100 images, written with numpy alone, and nobody lost.

Listing, comparing and training take all of them (more than the thousand that a pickler sets at once); the run, which
costs 40 ms an image, one shard of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dto_pipeline.cli import main
from dto_pipeline.commands.training_data import open_label_sets
from dto_pipeline.data.label_files import find_label_files, flatten_table
from dto_pipeline.data.labels import read_labels
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.config import DataConfig
from dto_pipeline.train.dataset import TrainingData, TrainingImages, epoch_order
from tests.released_files import released_annots, rendered_disparity, write_pictures, write_released

IMAGES, PEOPLE, SHARD = 1100, 3, 30
FILE = "COCO_CHMR_SMPL_OPT.npz"
YAML = f"""
name: coco
source: camerahmr
labels: labels/coco-release.npz
images: images
depth: depth
shard_images: {SHARD}
"""
OPTIONS = """
encoder: {width: 32, layers: 2, heads: 4}
model: {width: 32, layers: 1, hidden: 32, queries: 6}
loop: {steps: 2, warm_up: 1, rate: 1e-3, log_every: 1}
data: {select: all, input_size: 112, workers: 0, batch_images: 4}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, body: BodyModel) -> Path:
    """The released file, its pictures, and a depth map for the shard that is run."""
    root = tmp_path_factory.mktemp("released")
    annots = released_annots(IMAGES, PEOPLE)
    write_released(root / FILE, annots)
    write_pictures(root / "images", list(annots))
    (root / "depth").mkdir()
    for name, crowd in list(annots.items())[:SHARD]:
        np.save(root / "depth" / f"{name[:-4]}.npy", rendered_disparity(crowd, body))
    (root / "coco.yaml").write_text(YAML)
    return root


@pytest.fixture(scope="module")
def manifest(root: Path) -> Path:
    place = root / "lists" / "coco.parquet"
    told = ["--data-root", root, "--labels", root / FILE, "--source", "ma_hmr", "--quiet"]
    told += ["--max-failed-images", 1]  # most have no depth map and are not run
    assert main(["manifest", "build", *map(str, [root / "coco.yaml", "-o", place, *told])]) == 0
    return place


@pytest.fixture(scope="module")
def run_dir(root: Path, manifest: Path) -> Path:
    options = ["--workers", "0", "--shards", "0", "--set", "body.model_path=demo", "--set", "run.device=cpu"]
    assert main(["run", str(manifest), "-o", str(root / "run"), *options]) == 3  # the rest stays pending, as asked
    return root / "run"


def ask(capsys: pytest.CaptureFixture[str], code: int, *arguments: Any) -> Any:
    """What a verb prints as JSON."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_every_image_and_person_is_in_the_manifest(manifest: Path) -> None:
    listed = Manifest.open(manifest)
    assert (listed.num_images, listed.num_people) == (IMAGES, IMAGES * PEOPLE)
    problems = [listed.read_shard(shard, ["problem"])["problem"].null_count for shard in range(listed.num_shards)]
    assert sum(problems) == IMAGES


def test_the_run_has_a_row_for_everybody_and_the_file_is_its_input(run_dir: Path, root: Path, capsys) -> None:
    columns = flatten_table(read_labels(*find_label_files(run_dir / "labels")))
    assert (columns.num_images, columns.num_people) == (SHARD, SHARD * PEOPLE)
    assert (columns.people["status"] == "moved").any()
    told = ask(capsys, 1, "diff", run_dir, root / FILE)  # some people moved
    assert (told["images"], told["images_only"]) == (SHARD, {"before": 0, "after": IMAGES - SHARD})
    assert (told["people"], told["by_place"]) == (SHARD * PEOPLE, 0)
    moved = np.abs(columns.people["transl"] - columns.people["transl_init"]).max(axis=1) > 0
    assert told["different"] == moved.sum()
    assert told["measures"]["dz"]["largest"] > 0
    assert told["measures"]["dheight"]["largest"] > 0
    assert main(["verify", str(run_dir)]) == 3


def test_a_released_file_compared_with_itself_is_equal(root: Path, capsys) -> None:
    told = ask(capsys, 0, "diff", root / FILE, root / FILE)
    assert (told["images"], told["people"], told["different"], told["equal"]) == (IMAGES, IMAGES * PEOPLE, 0, True)


def test_the_way_out_and_in_again_changes_nothing(run_dir: Path, tmp_path: Path, capsys) -> None:
    export = ["export", str(run_dir), "--partial", "--quiet", "--format", "ma-hmr"]
    assert main([*export, "-o", str(tmp_path / "accepted")]) == 0
    for sides in ([run_dir, tmp_path / "accepted" / FILE], [tmp_path / "accepted" / FILE, run_dir]):
        told = ask(capsys, 0, "diff", *sides)
        assert told["people"] == SHARD * PEOPLE
        assert told["measures"]["dz"]["largest"] == told["measures"]["dheight"]["largest"] == 0
    assert main([*export, "--all", "-o", str(tmp_path / "all")]) == 0
    told = ask(capsys, 0, "diff", run_dir, tmp_path / "all" / FILE)
    assert (told["people"], told["different"]) == (SHARD * PEOPLE, 0)


def test_everybody_is_trained_on_once_an_epoch(root: Path, body: BodyModel) -> None:
    config = DataConfig((str(root / FILE),), images=(str(root / "images"),), workers=0, batch_images=50, input_size=112)
    images = TrainingImages(open_label_sets(config), body, config)
    order = epoch_order(images.counts, images.weights, config.seed, 0, config.shuffle_images)
    assert sorted(order.tolist()) == list(range(IMAGES))
    batch = next(iter(TrainingData(images)))
    assert not batch.skipped
    assert (len(set(batch.image_ids)), int(batch.targets.has_body.sum())) == (50, 50 * PEOPLE)


@pytest.mark.parametrize("labels", ["file", "run"])
def test_the_trainer_takes_the_file_as_it_takes_the_run(labels: str, root: Path, run_dir: Path, tmp_path: Path) -> None:
    assert train(root / FILE if labels == "file" else run_dir, root, tmp_path) == 0


def train(labels: Path, root: Path, out: Path, *options: str) -> int:
    (out / "train.yaml").write_text(OPTIONS)
    named = (f"data.labels=[{labels}]", f"data.images=[{root / 'images'}]", "body.model_path=demo", *options)
    sets = [part for option in named for part in ("--set", option)]
    return main(["train", str(out / "train.yaml"), "-o", str(out / "out"), "--quiet", *sets])


def test_scenes_are_drawn_from_the_file(root: Path, tmp_path: Path) -> None:
    options = ["--images", str(root / "images"), "--body", "demo", "--random", "1", "--key", "000007.jpg"]
    few = write_released(tmp_path / "few.npz", released_annots(9, PEOPLE))
    assert main(["view", str(few), "-o", str(tmp_path / "view"), *options]) == 0
    assert len(list((tmp_path / "view").iterdir())) == 2


def test_a_file_alone_does_not_guess_its_body(root: Path, tmp_path: Path, capsys) -> None:
    assert main(["view", str(root / FILE), "-o", str(tmp_path / "view")]) == 2
    assert "name it with --body" in capsys.readouterr().err


def test_meshes_are_evaluated_on_the_file_and_on_the_run(root: Path, run_dir: Path, capsys) -> None:
    """The truth is the released file: everybody of the run is found in it, before the run without an error."""
    told = ["--body", "demo", "--resamples", "0"]
    assert main(["eval", "meshes", str(run_dir), str(root / FILE), "--values", "before", "--match", "rows", *told]) == 0
    text = capsys.readouterr().out
    counts = {line.rsplit("  ", 1)[0].strip(): line.rsplit("  ", 1)[-1].strip() for line in text.splitlines()}
    assert counts["matched"] == counts["people found"] == str(SHARD * PEOPLE)
    assert counts["images without any found person"] == str(IMAGES - SHARD)
    assert any(line.split()[:2] == ["absolute", "MPJPE"] and float(line.split()[-1]) == 0 for line in text.splitlines())


def test_several_pairs_are_one_table_and_the_worst_code_counts(root: Path, run_dir: Path, capsys) -> None:
    few = write_released(root / "few.npz", released_annots(9, PEOPLE))
    told = ask(capsys, 1, "diff", few, run_dir, "--against", few)
    assert [row["exit_code"] for row in told] == [0, 1]
    assert main(["diff", str(run_dir), str(run_dir), "--against", str(run_dir)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 3
    assert table[0].split()[:2] == ["images", "persons"]


def test_a_training_that_sees_nobody_in_an_epoch_stops(root: Path, tmp_path: Path, capsys) -> None:
    """Everybody stands 50 m beside the picture."""
    far = released_annots(6, 2)
    for crowd in far.values():
        for person in crowd:
            person["smpl_param"]["trans"][0] += np.float32(50)
    assert train(write_released(tmp_path / "far.npz", far), root, tmp_path, "loop.steps=5") == 2
    assert "a whole epoch of 6 images had no people" in capsys.readouterr().err


def test_kinds_are_kept_apart_in_a_manifest(root: Path, capsys) -> None:
    told = ["--data-root", str(root), "--labels", str(root / FILE), "--quiet", "-o", str(root / "x.parquet")]
    assert main(["manifest", "build", str(root / "coco.yaml"), *told]) == 2
    assert "set source: ma_hmr (--source ma_hmr)" in capsys.readouterr().err
