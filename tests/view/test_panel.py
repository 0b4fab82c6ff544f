"""Meshes over a photograph, and the page before/after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dto_pipeline.collate import keep_labels
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import Scene
from dto_pipeline.status import ImageStatus
from dto_pipeline.view.drawing import draw_overlays
from dto_pipeline.view.pages import (
    People,
    Table,
    compose_page,
    draw_rows,
    ground_places,
    person_table,
    save_png,
    scene_panel,
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


def test_meshes_colour_their_pixels_and_nothing_else(body: BodyModel, people: People) -> None:
    vertices = body.vertices(*(torch.from_numpy(v).float() for v in (people.pose, people.betas, people.transl)))
    camera = torch.from_numpy(K)[None]
    (figure,) = draw_overlays(GREY, vertices[None], torch.ones(1, 2, dtype=torch.bool), body.faces, camera, 320)
    pixels = np.asarray(figure).astype(int)
    assert pixels.shape == GREY.shape
    chest = 120 + 300 * 0.1 / 4  # the first person's middle
    assert np.abs(pixels[int(chest), int(160 - 300 * 0.8 / 4)] - 128).max() > 30
    assert (pixels[:5] == 128).all()
    assert (pixels[:, :20] == 128).all()


def test_an_absent_person_is_not_drawn(body: BodyModel, people: People) -> None:
    vertices = body.vertices(*(torch.from_numpy(v).float() for v in (people.pose, people.betas, people.transl)))
    nobody = torch.zeros(1, 2, dtype=torch.bool)
    (figure,) = draw_overlays(GREY, vertices[None], nobody, body.faces, torch.from_numpy(K)[None], 320)
    assert (np.asarray(figure) == 128).all()


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


def test_a_scene_that_was_not_optimised_still_gets_its_page(body: BodyModel, people: People) -> None:
    unknown = np.full(2, np.nan, dtype=np.float32)
    scene = Scene(
        image_id="demo/a.jpg",
        subset="demo",
        image_path="a.jpg",
        width=320,
        height=240,
        intrinsics=K,
        pose=people.pose.astype(np.float32),
        betas=people.betas.astype(np.float32),
        transl=people.transl.astype(np.float32),
        age_years=unknown,
        male_prob=unknown,
        source_row=np.arange(2),
        bbox_xyxy=np.full((2, 4), np.nan, dtype=np.float32),
        det_score=unknown,
        person_problem=[None, None],
        problem=(ImageStatus.IMAGE_MISSING, "gone"),
    )
    placed = keep_labels(scene)
    assert [line[-1] for line in person_table(placed).lines] == ["not run", "not run"]
    assert scene_panel(placed, body).height > 500


def test_solvers_stand_beside_each_other_and_the_truth(body: BodyModel, people: People) -> None:
    scene = make_scene(body, [Stander(x=0, z=4), Stander(x=1, z=5)], size=(120, 160))
    placed = {"paper": keep_labels(scene), "joint": keep_labels(scene)}
    one, three = scene_panel(placed["paper"], body), solver_panel(placed, body, people)
    assert three.width > 1.1 * one.width
    table = solver_table(placed, body, people)
    assert table.columns[3:7] == ["height given", "paper", "joint", "true"]
    assert table.lines[0][6] == "1.70 m"
    assert all(len(line) == len(table.columns) for line in table.lines)


def test_a_saved_picture_is_what_was_drawn(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    save_png(picture, tmp_path / "new" / "picture.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "picture.png")), np.asarray(picture))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["picture.png"]
