"""The pages of scenes: before/after, by solver, with and without a photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dto_pipeline.collate import keep_labels
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import ImageStatus, PersonStatus
from dto_pipeline.view.drawing import missing_photo
from dto_pipeline.view.pages import (
    DrawnPeople,
    compose_page,
    draw_scene,
    ground_places,
    person_table,
    save_png,
    scene_states,
)
from tests.crowds import Stander, make_scene

K = np.array([[300.0, 0, 160], [0, 300.0, 120], [0, 0, 1]])
GREY = np.full((240, 320, 3), 128, dtype=np.uint8)


@pytest.fixture
def people() -> DrawnPeople:
    """Two people standing side by side, 4 and 6 m away."""
    pose = np.zeros((2, 72))
    pose[:, 0] = np.pi
    return DrawnPeople(pose, np.zeros((2, 11)), np.array([[-0.8, 0.1, 4.0], [0.9, 0.1, 6.0]]))


@pytest.fixture
def placed(body: BodyModel) -> PlacedScene:
    return keep_labels(make_scene(body, [Stander(x=0, z=4), Stander(x=1, z=5)], size=(120, 160)))


def test_people_stand_where_their_joints_are(body: BodyModel, people: DrawnPeople) -> None:
    np.testing.assert_allclose(ground_places(people, body), people.transl[:, [0, 2]], atol=0.06)


def test_a_person_that_is_not_finite_costs_only_itself(body: BodyModel, people: DrawnPeople) -> None:
    pose = people.pose.copy()
    pose[1, 3] = np.nan
    broken = DrawnPeople(pose, people.betas, people.transl)
    assert np.isnan(ground_places(broken, body)).any(axis=1).tolist() == [False, True]
    table = ("class", "status"), [("adult", "moved"), ("adult", "invalid label")]
    states = [("before", broken), ("after", broken)]
    page = compose_page("two people", GREY, "", states, K, body, table, truth=people)
    assert page.width > 900
    assert page.height > 2 * 400


def test_solvers_stand_beside_each_other_and_the_truth(
    body: BodyModel, placed: PlacedScene, people: DrawnPeople
) -> None:
    placed.person_status[0] = PersonStatus.MOVED
    solvers = {"paper": placed, "joint": placed}
    one, two = draw_scene({"after": placed}, body), draw_scene(solvers, body, people)
    assert two.width > 1.1 * one.width
    columns, lines = person_table(solvers, body, people)
    assert columns[3:7] == ["height given", "paper", "joint", "true"]
    assert lines[0][6] == "1.70 m"
    assert all(len(line) == len(columns) for line in lines)


def captions(placed: PlacedScene) -> list[str]:
    return [caption for caption, _ in scene_states({"after": placed})]


def test_a_scene_nobody_of_whom_moved_is_drawn_once(placed: PlacedScene) -> None:
    assert captions(placed) == ["labels as given"]
    placed.status = ImageStatus.PREDICTED
    assert captions(placed) == ["as predicted"]
    placed.person_status[1] = PersonStatus.MOVED
    assert captions(placed) == ["labels as given", "after, not accepted"]


def test_an_image_that_was_never_read_is_drawn_at_the_size_of_its_camera(body: BodyModel, placed: PlacedScene) -> None:
    assert missing_photo(np.array([100, 60]), K).shape == (60, 100, 3)
    assert missing_photo(np.array([0, 0]), K).shape == (240, 320, 3)
    assert missing_photo(np.array([np.nan, 9]), np.full((3, 3), np.nan)).shape == (480, 640, 3)
    scene = placed.scene
    scene.width = scene.height = 0
    scene.disparity = None
    scene.intrinsics[:2, 2] = np.nan
    scene.pose[:] = np.nan  # a camera that is no camera draws nobody
    assert draw_scene({"after": placed}, body).height > 570


def test_an_image_without_people_gets_its_page(body: BodyModel, placed: PlacedScene) -> None:
    scene = placed.scene
    for name in ("pose", "betas", "transl", "age_years", "male_prob", "source_row", "bbox_xyxy", "det_score"):
        setattr(scene, name, getattr(scene, name)[:0])
    scene.person_problem = []
    assert draw_scene({"after": keep_labels(scene)}, body).height > 1000


def test_names_that_look_like_formulas_or_use_other_letters_are_titles(body: BodyModel, placed: PlacedScene) -> None:
    placed.scene.image_path = "a/$x_{$/\u0444\u043e\u0442\u043e \\frac.jpg"
    assert draw_scene({"after": placed}, body).width > 900


def test_the_uncertainty_of_z_stands_beside_it(body: BodyModel, placed: PlacedScene) -> None:
    placed.person_status = [PersonStatus.MOVED, PersonStatus.NOT_RUN]
    placed.z_sigma_m = np.array([0.25, np.nan], np.float32)
    _, lines = person_table({"after": placed}, body)
    assert [line[-2] for line in lines] == ["4.00 \u00b1 0.25 m", "kept"]


def test_a_duplicate_that_went_with_another_person_is_not_called_kept(body: BodyModel, placed: PlacedScene) -> None:
    placed.person_status = [PersonStatus.MOVED, PersonStatus.DUPLICATE]
    placed.transl = placed.scene.transl * np.float32(1.5)
    z = f"{placed.transl[1, 2]:.2f} m"
    assert person_table({"after": placed}, body)[1][1][-2] == z
    placed.transl[1] = placed.scene.transl[1]
    assert person_table({"after": placed}, body)[1][1][-2] == "kept"


def test_a_table_of_more_people_than_a_figure_has_room_for_is_cut_and_the_title_says_so(
    body: BodyModel, people: DrawnPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    def page(title: str, lines: int) -> np.ndarray:
        table = ["z"], [["4 m"]] * lines
        return np.asarray(compose_page(title, GREY, "", [("two", people)], K, body, table))

    monkeypatch.setattr("dto_pipeline.view.pages._MOST_LINES", 2)
    said = "a.jpg (table without the last 70,000 people)".replace(",", "")
    np.testing.assert_array_equal(page("a.jpg", 70_002), page(said, 2))


def test_a_saved_picture_is_what_was_drawn(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    save_png(picture, tmp_path / "new" / "picture.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "picture.png")), np.asarray(picture))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["picture.png"]
