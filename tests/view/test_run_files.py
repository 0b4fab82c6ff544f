"""Which scenes are chosen, and that a page and a 3D file come of every one, pixels or not."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dto_pipeline.data.labels import LabelsError
from dto_pipeline.models.body import BodyModel
from dto_pipeline.view.gltf import scene_to_glb
from dto_pipeline.view.pages import draw_scene, file_name
from dto_pipeline.view.run_files import RunFiles, choose_scenes, load_placed, open_pixels
from tests.tiny_dataset import TinyDataset


def chosen_ids(run: RunFiles, **choice: Any) -> list[str]:
    return [placed.scene.image_id for placed in load_placed(run, choose_scenes(run, **choice), None)]


def test_a_key_is_found_by_its_end_and_an_unknown_one_is_named(run: RunFiles) -> None:
    assert chosen_ids(run, keys=["000003.jpg", "tiny/000000.jpg"]) == ["tiny/000003.jpg", "tiny/000000.jpg"]
    with pytest.raises(LabelsError, match=r"no image 'nobody\.jpg'; keys look like 'tiny/000000\.jpg'"):
        choose_scenes(run, keys=["nobody.jpg"])


def test_the_worst_scenes_are_optimised_and_come_in_order(run: RunFiles) -> None:
    placed = list(load_placed(run, choose_scenes(run, worst=3), None))
    deviations = [item.deviation for item in placed]
    assert all(item.is_optimized for item in placed)
    assert deviations == sorted(deviations, reverse=True)


def test_a_random_choice_depends_on_its_seed_only(run: RunFiles) -> None:
    draws = [chosen_ids(run, random=4, seed=seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) == 4


def test_a_status_alone_takes_all_its_images_and_a_wrong_word_is_named(run: RunFiles) -> None:
    assert chosen_ids(run, status=["image_missing"]) == ["tiny/000001.jpg"]
    assert chosen_ids(run, status=["image_missing"], random=5) == ["tiny/000001.jpg"]
    with pytest.raises(LabelsError, match="unknown status"):
        choose_scenes(run, status=["lost"])


def test_photograph_and_depth_map_come_with_the_scene(run: RunFiles, tiny: TinyDataset) -> None:
    (placed,) = load_placed(run, choose_scenes(run, keys=["000000.jpg"]), open_pixels(run))
    assert placed.scene.image is not None
    assert placed.scene.disparity is not None
    expected = np.load(Path(tiny.dataset.root) / "depth" / "000000.npy")
    np.testing.assert_array_equal(placed.scene.disparity, expected)


def test_a_folder_that_moved_can_be_named(run: RunFiles, tiny: TinyDataset, tmp_path: Path) -> None:
    shutil.copytree(Path(tiny.dataset.root) / "images", tmp_path / "elsewhere")
    places = choose_scenes(run, keys=["000000.jpg"])
    (found,) = load_placed(run, places, open_pixels(run, tmp_path / "elsewhere"))
    (lost,) = load_placed(run, places, open_pixels(run, tmp_path / "nowhere", tmp_path / "nowhere"))
    assert found.scene.image is not None
    assert lost.scene.image is None
    assert lost.scene.disparity is None


def test_every_scene_gets_its_page_and_3d_file_even_without_a_photograph(run: RunFiles, body: BodyModel) -> None:
    scenes = load_placed(run, choose_scenes(run, ["000000.jpg", "000001.jpg", "000005.jpg"]), open_pixels(run))
    drawn = [(draw_scene({"after": placed}, body), scene_to_glb(placed, body)) for placed in scenes]
    assert all(data[:4] == b"glTF" for _, data in drawn)
    assert drawn[0][0].width > drawn[1][0].width  # the result, and the depth map with the fit, are columns of their own


def test_file_names_hold_no_folder() -> None:
    assert file_name("coco/a/b.c.jpg") == "coco-a-b.c"
    assert "/" not in file_name("../../x/..\\y\n.png")
    assert file_name("/../").startswith("scene~")


def test_every_key_has_a_file_name_of_its_own() -> None:
    words = ("a b", "a-b", "a/b", "a_b", "a~b", "照片", "фото", "日本", "a" * 300, "a" * 299 + "b", "-", "", "b.jpg")
    keys = [f"{start}{word}{end}" for start in ("s/", "s-") for word in words for end in (".jpg", ".png", ".JPG", "")]
    names = [file_name(key) for key in keys]
    assert len(set(names)) == len(set(keys))
    assert all(len(name) < 200 and name.isascii() and "/" not in name for name in names)


def test_depth_files_that_a_network_run_never_saw_are_not_drawn_as_its_own(
    run: RunFiles, tiny: TinyDataset, body: BodyModel
) -> None:
    config = {**run.identity.config, "depth": {**run.identity.config["depth"], "source": "model"}}
    seen = dataclasses.replace(run, identity=dataclasses.replace(run.identity, config=config))
    places = choose_scenes(seen, keys=["000000.jpg"])
    (placed,) = load_placed(seen, places, open_pixels(seen))
    assert placed.scene.image is not None
    assert placed.scene.disparity is None
    placed.scene.origin["depth"] = "disparity of depth_tiny@0123"
    assert draw_scene({"after": placed}, body).height > 1000
    (named,) = load_placed(seen, places, open_pixels(seen, depth=Path(tiny.dataset.root) / "depth"))
    assert named.scene.disparity is not None
