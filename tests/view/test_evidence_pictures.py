"""The depth map and the fit as pictures."""

from __future__ import annotations

import numpy as np

from dto_pipeline.collate import keep_labels
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import ImageStatus, PersonStatus
from dto_pipeline.view.drawing import INK, PAPER, draw_depth_map, grey_sheet, person_colours
from dto_pipeline.view.pages import person_table, scene_panel, scene_rows
from dto_pipeline.view.plots import draw_fit
from tests.crowds import Stander, make_scene


def brightness(picture: np.ndarray) -> np.ndarray:
    return picture.astype(float) @ [0.299, 0.587, 0.114]


def test_near_is_brighter_than_far_and_a_constant_map_is_drawn() -> None:
    disparity = np.tile(np.linspace(1, 9, 80), (60, 1))
    picture = brightness(np.asarray(draw_depth_map(disparity, (160, 120)))[:80])
    assert (np.diff(picture.mean(axis=0)) > -0.5).all()
    assert picture[:, -1].mean() > picture[:, 0].mean() + 100
    assert np.asarray(draw_depth_map(np.ones((60, 80)), (160, 120)))[:80].std() < 60
    draw_depth_map(np.full((60, 80), np.nan), (160, 120))


def test_a_grey_sheet_says_why() -> None:
    sheet = grey_sheet((400, 300), "no photograph: the file was not found")
    assert sheet.shape == (300, 400, 3)
    assert (brightness(sheet) < 100).any()


def fitted(body: BodyModel, depth: list[float], group: list[int], alpha: float) -> PlacedScene:
    """People at z = 3, 5, 12, 14 m and their fit; labels stand a fifth farther."""
    standers = [Stander(x=0, z=1.2 * z) for z in (3, 5, 12, 14)[: len(depth)]]
    placed = keep_labels(make_scene(body, standers, size=(120, 160)))
    placed.transl = placed.scene.transl / 1.2
    placed.depth_mean, placed.depth_group = np.array(depth), np.array(group)
    placed.alpha, placed.beta = (alpha, alpha), (1.0, 4.0)
    return placed


def test_the_line_runs_through_people_who_lie_on_it_and_the_far_group_has_its_own(body: BodyModel) -> None:
    pixels = np.asarray(draw_fit(fitted(body, [0.01, 0.02, 0.04, 0.05], [0, 0, 1, 1], 200.0), (500, 400)))
    for person, colour in enumerate(person_colours(4)):
        assert (np.abs(pixels.astype(int) - colour).sum(axis=-1) < 30).sum() > 40, person
    assert (np.abs(pixels.astype(int) - INK).sum(axis=-1) < 60).any()


def test_one_line_for_near_and_far_people_is_drawn_along_all_of_them(body: BodyModel) -> None:
    def drawn(group: list[int]) -> np.ndarray:
        placed = fitted(body, [0.01, 0.02, 0.04, 0.05], group, 200.0)
        placed.beta = (1.0, 1.0)
        return np.asarray(draw_fit(placed, (500, 400)))

    assert (drawn([0, 0, 0, 1]) == drawn([0, 0, 0, 0])).all()


def test_people_without_evidence_are_left_out_of_the_fit(body: BodyModel) -> None:
    pixels = np.asarray(draw_fit(fitted(body, [np.nan] * 2, [-1, -1], np.nan), (300, 200)))
    assert (pixels == PAPER).all(axis=-1).mean() > 0.9
    assert draw_fit(fitted(body, [0.02], [0], np.nan), (300, 200)).size == (300, 200)


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
