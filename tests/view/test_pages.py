"""The pages of scenes: before/after, by solver, with and without a photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dto_pipeline.collate import keep_labels
from dto_pipeline.models.body import BodyModel
from dto_pipeline.status import ImageStatus, PersonStatus
from dto_pipeline.view.pages import (
    People,
    Table,
    compose_page,
    draw_rows,
    ground_places,
    person_table,
    save_png,
    scene_panel,
    scene_rows,
    solver_panel,
    solver_table,
)
from tests.crowds import Stander, make_scene

K = np.array([[300.0, 0, 160], [0, 300.0, 120], [0, 0, 1]])
GREY = np.full((240, 320, 3), 128, dtype=np.uint8)


@pytest.fixture
def people() -> People:
    """Two people standing side by side, 4 and 6 m away."""
    pose = np.zeros((2, 72))
    pose[:, 0] = np.pi
    return People(pose, np.zeros((2, 11)), np.array([[-0.8, 0.1, 4.0], [0.9, 0.1, 6.0]]))


def test_people_stand_where_their_joints_are(body: BodyModel, people: People) -> None:
    places = ground_places(people, body)
    np.testing.assert_allclose(places, people.transl[:, [0, 2]], atol=0.06)


def test_a_person_that_is_not_finite_costs_only_itself(body: BodyModel, people: People) -> None:
    pose = people.pose.copy()
    pose[1, 3] = np.nan
    broken = People(pose, people.betas, people.transl)
    assert np.isnan(ground_places(broken, body)).any(axis=1).tolist() == [False, True]
    table = Table(("class", "status"), [("adult", "moved"), ("adult", "invalid label")])
    page = compose_page(
        draw_rows(GREY, [("before", broken), ("after", broken)], K, body, truth=people), "two people", table
    )
    assert page.width > 900
    assert page.height > 2 * 500


def test_solvers_stand_beside_each_other_and_the_truth(body: BodyModel, people: People) -> None:
    scene = make_scene(body, [Stander(x=0, z=4), Stander(x=1, z=5)], size=(120, 160))
    placed = {"paper": keep_labels(scene), "joint": keep_labels(scene)}
    one, three = scene_panel(placed["paper"], body), solver_panel(placed, body, people)
    assert three.width > 1.1 * one.width
    table = solver_table(placed, body, people)
    assert table.columns[3:7] == ["height given", "paper", "joint", "true"]
    assert table.lines[0][6] == "1.70 m"
    assert all(len(line) == len(table.columns) for line in table.lines)


def test_a_scene_nobody_of_whom_moved_is_drawn_once(body: BodyModel) -> None:
    placed = keep_labels(make_scene(body, [Stander(x=0, z=4), Stander(x=1, z=5)], size=(120, 160)))
    rows = scene_rows(placed, body)
    assert [row.caption for row in rows] == ["Labels as given: nobody was moved", "Depth map"]
    placed.scene.disparity, placed.status = None, ImageStatus.PREDICTED
    assert [row.caption for row in scene_rows(placed, body)] == ["As predicted"]
    placed.person_status[1] = PersonStatus.MOVED
    captions = ["Before: labels as given", "After: placed together"]
    assert [row.caption for row in scene_rows(placed, body)] == captions


def test_an_image_that_was_never_read_is_drawn_at_the_size_of_its_camera(body: BodyModel) -> None:
    scene = make_scene(body, [Stander(x=0, z=4), Stander(x=1, z=5)], size=(120, 160))
    scene.width = scene.height = 0
    scene.disparity = None
    page = scene_panel(keep_labels(scene), body)
    assert scene_rows(keep_labels(scene), body)[0].left.size == (760, 570)
    assert page.height > 570
    scene.intrinsics[:2, 2] = np.nan
    scene.pose[:] = np.nan  # a camera that is no camera draws nobody
    assert scene_rows(keep_labels(scene), body)[0].left.size == (760, 570)


def test_an_image_without_people_gets_its_page(body: BodyModel) -> None:
    scene = make_scene(body, [Stander(x=0, z=4)], size=(120, 160))
    for name in ("pose", "betas", "transl", "age_years", "male_prob", "source_row", "bbox_xyxy", "det_score"):
        setattr(scene, name, getattr(scene, name)[:0])
    scene.person_problem = []
    assert scene_panel(keep_labels(scene), body).height > 1000


def test_the_uncertainty_of_z_stands_beside_it(body: BodyModel) -> None:
    from dto_pipeline.status import PersonStatus

    placed = keep_labels(make_scene(body, [Stander(x=0, z=4), Stander(x=1, z=5)], size=(120, 160)))
    placed.person_status = [PersonStatus.MOVED, PersonStatus.NOT_RUN]
    placed.z_sigma_m = np.array([0.25, np.nan], np.float32)
    table = person_table(placed)
    assert table.lines[0][-2] == "4.00 \u00b1 0.25 m"
    assert table.lines[1][-2] == "kept"


def test_a_saved_picture_is_what_was_drawn(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    save_png(picture, tmp_path / "new" / "picture.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "picture.png")), np.asarray(picture))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["picture.png"]
