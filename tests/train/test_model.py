"""The network's promises; that it equals the published one is for `tests/lab/test_golden_mahmr.py`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from dto_pipeline.maths.rotation import matrix_from_6d, matrix_to_axis_angle
from dto_pipeline.models.networks import ModelMissing, ModelReference
from dto_pipeline.models.pretrained import load_dinov2
from dto_pipeline.train.blocks import choose_tokens, image_numbers, pad_rows, sine_code, z_order
from dto_pipeline.train.checkpoint import CheckpointError, begin_network, dinov2_weights, make_network, read_sizes
from dto_pipeline.train.config import load_train_config, train_config_from_dict
from dto_pipeline.train.model import MeshNetwork, metric_translation

SIZES = {
    "encoder": {"width": 32, "layers": 3, "heads": 2, "hidden": 64, "additional": 1},
    "model": {"width": 32, "layers": 2, "hidden": 32, "queries": 5, "betas": 11, "camera": True, "denoising": 0},
    "data": {"input_size": 112},
}
CONFIG = train_config_from_dict(SIZES)


@pytest.fixture(scope="module")
def network() -> MeshNetwork:
    torch.manual_seed(0)
    made = make_network(CONFIG)
    torch.nn.init.normal_(made.get_parameter("scale_head.layers.3.weight"), std=2.0)  # all kinds of cells
    return made.eval()


def pictures(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


@torch.no_grad()
def test_an_image_is_seen_alike_alone_and_beside_others(network: MeshNetwork) -> None:
    images = pictures((112, 112), (60, 112), (112, 33))
    together = network(images)
    assert set(together.tokens["level"].tolist()) >= {0, 1}
    for number, image in enumerate(images):
        alone = network([image])
        for name in ("confs", "boxes", "poses", "transl"):
            torch.testing.assert_close(
                getattr(alone, name)[:, 0], getattr(together, name)[:, number], rtol=1e-4, atol=2e-5
            )


@torch.no_grad()
def test_pruning_depends_on_neighbours_only_as_published(network: MeshNetwork) -> None:
    scale_map = torch.tensor([[0.9, 0.2]] * 16 + [[0.1, 0.0]] * 4)  # small people everywhere, and nobody
    alone, beside = (choose_tokens(scale_map[:n], False, (0.3, 0.5))[1] for n in (16, 20))
    assert alone.all()
    assert not beside.any()
    ours = [choose_tokens(scale_map[:n], True, (0.3, 0.5))[1] for n in (16, 20)]
    assert torch.equal(ours[0], ours[1][:16])


def test_cells_come_in_z_order_so_that_groups_follow_each_other() -> None:
    y, x = z_order(4, 6)
    assert list(zip(y.tolist(), x.tolist(), strict=True))[:6] == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3)]
    groups = torch.stack([y // 2, x // 2], dim=-1).view(-1, 4, 2)
    assert (groups == groups[:, :1]).all()


def test_rows_of_unequal_length_are_padded_and_found_again() -> None:
    values = torch.arange(12.0).view(6, 2)
    image = image_numbers([1, 0, 5])
    rows, real = pad_rows(values, image, 3, 5)
    assert rows.shape == (3, 5, 2)
    assert real.sum(1).tolist() == [1, 0, 5]
    assert torch.equal(rows[real], values)


def test_a_metre_is_as_large_as_the_weak_perspective_says() -> None:
    weak, focal = torch.tensor([[0.2, -0.1, 0.3]]), torch.tensor([500.0])
    place = metric_translation(weak, focal, torch.zeros(1, 2), 400)
    sigma = 2 / (1 + math.exp(-0.3)) + 1e-6
    torch.testing.assert_close(place, torch.tensor([[0.2 / sigma, -0.1 / sigma, 2 * 500 / (sigma * 400)]]))
    shifted = metric_translation(weak, focal, torch.tensor([[0.05, 0.0]]), 400)
    # the body is seen where (tx, ty) says, whatever the principal point: f x / z + c stays
    torch.testing.assert_close(500 * shifted[0, 0] / shifted[0, 2] + 0.05 * 200, 500 * place[0, 0] / place[0, 2])


def test_the_sine_code_has_y_before_x_and_temperature_20() -> None:
    code = sine_code(torch.tensor([0.25, 0.5]), 8)
    wave = [1.0, 1.0, 20**0.5, 20**0.5]
    expected = [
        f(2 * math.pi * v / w) for v in (0.5, 0.25) for f, w in zip((math.sin, math.cos) * 2, wave, strict=True)
    ]
    torch.testing.assert_close(code, torch.tensor(expected), atol=1e-6, rtol=0)


def test_an_untrained_body_stands_upright_before_the_camera(network: MeshNetwork) -> None:
    root = matrix_to_axis_angle(matrix_from_6d(network.mean_pose[:6].view(3, 2).T.flatten()))
    torch.testing.assert_close(root.abs(), torch.tensor([math.pi, 0, 0]))


def test_a_known_principal_point_moves_people_and_not_their_places_in_the_picture(network: MeshNetwork) -> None:
    (image,) = pictures((112, 80))
    with torch.no_grad():
        middle, aside = network([image]), network([image], centres=torch.tensor([[50.0, 20.0]]))
    assert aside.intrinsics[0, :2, 2].tolist() == [50, 20]

    def seen(found: object) -> torch.Tensor:
        place = found.transl[-1] @ found.intrinsics.transpose(-1, -2)  # type: ignore[attr-defined]
        return place[..., :2] / place[..., 2:]

    torch.testing.assert_close(seen(middle), seen(aside), atol=1e-3, rtol=1e-4)


def test_sizes_are_read_off_the_shapes(network: MeshNetwork) -> None:
    assert read_sizes(network.state_dict(), "x", 2) == SIZES
    with pytest.raises(CheckpointError, match=r"lacks encoder\.norm\.weight"):
        read_sizes({"weights": torch.zeros(3)}, "x", None)


@pytest.mark.parametrize("old", [False, True], ids=["transformers 5", "transformers 4"])
def test_a_dinov2_begins_the_encoder_under_both_of_its_names(old: bool, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 2}
    source = Dinov2Model(Dinov2Config(**shape, patch_size=14, image_size=70)).eval()
    source.save_pretrained(tmp_path)
    state, heads = load_dinov2(ModelReference(str(tmp_path), option="encoder"))
    assert heads == 2
    if old:
        names = {
            f"attention.{letter}_proj": f"attention.attention.{word}"
            for letter, word in zip("qkv", ("query", "key", "value"), strict=True)
        }
        names["attention.o_proj"] = "attention.output.dense"
        for new, before in names.items():
            state = {name.replace(new, before): value for name, value in state.items()}
    made = make_network(CONFIG)
    found = made.load_state_dict(dinov2_weights(state, CONFIG), strict=False)
    assert not found.unexpected_keys
    tokens = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    real = torch.ones(1, 4, dtype=torch.bool)
    for layer in range(3):
        theirs = source.encoder.layer[layer](tokens)
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        torch.testing.assert_close(made.encoder["blocks"][layer](tokens, real), theirs, rtol=1e-5, atol=1e-5)
    weights = made.state_dict()
    copied, first = (weights[f"encoder.{name}.0.attn.qkv.weight"] for name in ("additional_blocks", "blocks"))
    assert torch.equal(copied, first)
    sizes = ["encoder.width=32", "encoder.layers=3", "encoder.heads=2", "model.width=32", "data.input_size=112"]
    with pytest.raises(ValueError, match=r"of another shape \(15\)"):  # the perceptron of this one is half as wide
        begin_network(load_train_config(None, [*sizes, f"encoder.model={tmp_path}"]))


def test_a_network_that_is_no_dinov2_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing):
        load_dinov2(ModelReference(str(tmp_path / "nothing"), option="encoder"))
