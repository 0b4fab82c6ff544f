"""The picture of a body model: heights that are drawn as written, and a model without kid axis."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dto_pipeline.axes import KID_AXIS
from dto_pipeline.models.body import BodyModel, BodyModelError, load_body
from dto_pipeline.view.body_sheet import KID, SMALL, TALL, draw_body_sheet, reach_height


@pytest.fixture(scope="module")
def sheet(body: BodyModel) -> Image.Image:
    return draw_body_sheet(body)


@pytest.mark.parametrize(("height", "index"), [(TALL, 0), (SMALL, 0), (KID, KID_AXIS), (1.7, 0)])
def test_a_wanted_height_is_reached_by_one_coefficient(height: float, index: int, body: BodyModel) -> None:
    betas = reach_height(body, height, index)
    assert float(body.rest_height(betas)) == pytest.approx(height, abs=1e-5)
    assert torch.equal(betas.nonzero().flatten(), torch.tensor([index])) or float(betas.abs().sum()) < 1e-4


def test_a_coefficient_without_effect_on_height_is_refused(body: BodyModel) -> None:
    with pytest.raises(BodyModelError, match=r"coefficient 1 .* no height"):
        reach_height(body, 5.0, 1)


def _drawn_heights(sheet: Image.Image, count: int) -> list[float]:
    """From the highest to the lowest coloured pixel of each body [m], at the sheet's 270 pixels a metre."""
    pixels = np.asarray(sheet).astype(int)
    coloured = pixels.max(axis=-1) - pixels.min(axis=-1) > 25
    coloured[sheet.height - 88 :] = False
    columns = 90 + (np.arange(count)[:, None] + 0.5) * 270 + np.array([-100, 100])
    bodies = [np.nonzero(coloured[:, int(left) : int(right)].any(axis=1))[0] for left, right in columns]
    return [(rows.max() - rows.min()) / 270 for rows in bodies]


def test_four_bodies_stand_on_one_line_in_their_heights(sheet: Image.Image) -> None:
    template, tall, small, kid = _drawn_heights(sheet, 4)
    name_tags = 0.12  # a coloured tag floats above every head [m]
    for drawn, height in ((template, 1.70), (tall, TALL), (small, SMALL), (kid, KID)):
        assert height - 0.02 < drawn < height + name_tags


def test_a_model_without_kid_axis_is_drawn_without_the_kid(sheet: Image.Image) -> None:
    without = draw_body_sheet(load_body("demo", kid_axis=False))
    assert without.height == sheet.height
    assert sheet.width - without.width == 270


def test_the_same_model_gives_the_same_picture(body: BodyModel, sheet: Image.Image) -> None:
    assert draw_body_sheet(body).tobytes() == sheet.tobytes()
