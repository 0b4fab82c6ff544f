"""The network's geometry: where weak perspective and field of view put people."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from dto_pipeline.maths.camera import project
from dto_pipeline.models.encoder import EncoderShape, build_encoder, load_encoder, restore_encoder
from dto_pipeline.models.networks import ModelError, ModelMissing, ModelReference
from dto_pipeline.train.checkpoint import build_network
from dto_pipeline.train.model import MeshNetwork, metric_translation
from tests.train.small_crowds import tiny_config

SIDE = 96


def camera(focal: float, centre: tuple[float, float]) -> torch.Tensor:
    return torch.tensor([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1.0]])


def network(**knobs: object) -> MeshNetwork:
    torch.manual_seed(0)
    return build_network(tiny_config(**knobs)).eval()


def test_a_metre_at_the_person_is_sigma_half_inputs_long() -> None:
    weak = torch.tensor([0.0, 0.2, -0.1])  # sigma = 2 sigmoid(0) = 1
    transl = metric_translation(weak, camera(100.0, (48, 48)), SIDE)
    assert transl.tolist() == pytest.approx([0.2, -0.1, 2 * 100 / SIDE], rel=1e-5)


@pytest.mark.parametrize("centre", [(48.0, 48.0), (30.0, 70.0)])
def test_a_person_is_seen_where_tx_and_ty_say_whatever_the_principal_point(centre: tuple[float, float]) -> None:
    intrinsics = camera(110.0, centre)
    transl = metric_translation(torch.tensor([-1.3, 0.5, -0.25]), intrinsics, SIDE)
    seen = project(transl, intrinsics)
    assert seen.tolist() == pytest.approx([(1 + 0.5) * SIDE / 2, (1 - 0.25) * SIDE / 2], rel=1e-5)


def test_the_untrained_camera_is_the_one_the_paper_starts_from() -> None:
    answer = network()(torch.rand(2, 3, SIDE, SIDE))
    assert answer.fov.tolist() == pytest.approx([math.pi / 6] * 2, abs=0.05)
    assert answer.focal.tolist() == pytest.approx((SIDE / (2 * torch.tan(answer.fov / 2))).tolist())


@pytest.mark.parametrize(("raw", "limit"), [(-5.0, 0.08), (9.0, 3.0)])
def test_a_field_of_view_beyond_its_limits_is_cut_and_can_come_back(raw: float, limit: float) -> None:
    learning = network()
    last = learning.fov_branch[-1]
    assert isinstance(last, torch.nn.Linear)
    torch.nn.init.constant_(last.bias, raw)
    fov = learning(torch.rand(1, 3, SIDE, SIDE)).fov
    assert fov.tolist() == pytest.approx([limit])
    fov.sum().backward()
    assert last.bias.grad is not None
    assert last.bias.grad.item() == pytest.approx(1.0)


@torch.no_grad()
def test_the_preset_decides_whose_principal_point_is_used() -> None:
    image, given = torch.rand(1, 3, SIDE, SIDE), camera(500.0, (30, 70))[None]
    start = {"model__queries_from": "places"}  # the paper's: the same weights are drawn
    ours, paper = network(**start)(image, given), network(**start, loss__preset="paper")(image, given)
    assert ours.intrinsics[0, :2, 2].tolist() == [30, 70]
    assert paper.intrinsics[0, :2, 2].tolist() == [SIDE / 2, SIDE / 2]
    assert torch.equal(ours.focal, paper.focal)  # the focal length is never taken from the label


@torch.no_grad()
def test_without_intrinsics_the_principal_point_is_the_centre() -> None:
    assert network()(torch.rand(1, 3, SIDE, SIDE)).intrinsics[0, :2, 2].tolist() == [SIDE / 2, SIDE / 2]


@torch.no_grad()
def test_predictions_have_the_shapes_others_rely_on() -> None:
    answer = network(model__betas=10)(torch.rand(2, 3, SIDE, SIDE))
    assert answer.confidence.shape == (2, 12)
    assert answer.boxes.shape == (2, 12, 4)
    assert answer.pose.shape == (2, 12, 72)
    assert answer.transl.shape == (2, 12, 3)
    assert answer.betas.shape == (2, 12, 11)
    assert (answer.betas[..., 10] == 0).all()  # ten coefficients: no kid axis
    assert (answer.boxes[..., 2:] >= answer.boxes[..., :2]).all()
    assert (answer.transl[..., 2] > 0).all()


@torch.no_grad()
def test_every_token_proposes_somebody_where_it_lies() -> None:
    proposals = network()(torch.rand(2, 3, SIDE, SIDE)).proposals
    assert proposals is not None
    assert proposals.logits.shape == (1, 2, 36)  # 6 x 6 patches of 16 px
    centres = proposals.centred_boxes[0, 0, :, :2].reshape(6, 6, 2)
    steps = [(step + 0.5) / 6 for step in range(6)]
    assert centres[2, :, 0].tolist() == pytest.approx(steps, abs=0.02)
    assert centres[:, 2, 1].tolist() == pytest.approx(steps, abs=0.02)


@torch.no_grad()
def test_queries_start_from_the_surest_tokens() -> None:
    ours = network(model__layers=1)
    for weight in ours.box_head.parameters():
        torch.nn.init.zeros_(weight)  # so that boxes stay where they start
    answer = ours(torch.rand(1, 3, SIDE, SIDE))
    assert answer.proposals is not None
    scores = answer.proposals.logits[0, 0]
    around = torch.nn.functional.pad(scores.reshape(6, 6), (1, 1, 1, 1), value=-torch.inf)
    peak = torch.stack([around[r : r + 6, c : c + 6] for r in range(3) for c in range(3)]).amax(0).flatten() == scores
    assert 0 < peak.sum() < 12
    order = sorted(range(36), key=lambda token: (not peak[token], -scores[token]))  # one that others exceed comes after
    assert torch.allclose(answer.centred_boxes[0, 0], answer.proposals.centred_boxes[0, 0, order[:12]], atol=1e-6)


@torch.no_grad()
def test_there_are_no_more_queries_than_tokens() -> None:
    answer = network(model__queries=50)(torch.rand(1, 3, SIDE, SIDE))
    assert answer.confidence.shape == (1, 36)


@torch.no_grad()
def test_the_papers_queries_start_at_learnt_places() -> None:
    paper = network(model__queries_from="places", model__queries=50)
    answer = paper(torch.rand(1, 3, SIDE, SIDE))
    assert answer.proposals is None
    assert answer.confidence.shape == (1, 50)
    assert paper.first_box.requires_grad


@pytest.mark.parametrize("start", ["tokens", "places"])
def test_every_weight_learns(start: str) -> None:
    learning = network(model__queries_from=start).train()
    answer = learning(torch.rand(1, 3, SIDE, SIDE))
    parts = (answer.logits, answer.centred_boxes, answer.rotations, answer.all_betas, answer.all_transl)
    sum(part.sum() for part in parts).backward()
    assert [name for name, weight in learning.named_parameters() if weight.grad is None] == []


def test_an_encoder_of_a_folder_is_the_one_saved(tmp_path: Path) -> None:
    encoder = build_encoder(EncoderShape(width=32, layers=2, heads=2, patch=16, image=SIDE)).eval()
    encoder.network.save_pretrained(tmp_path)
    loaded = load_encoder(ModelReference(str(tmp_path), knob="encoder")).eval()
    image = torch.rand(1, 3, SIDE, SIDE)
    assert torch.equal(loaded(image)[1], encoder(image)[1])
    assert restore_encoder(encoder.describe()).width == 32


def test_a_missing_encoder_is_named_with_its_knob(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=r"encoder\.model"):
        load_encoder(ModelReference(str(tmp_path / "nothing"), knob="encoder"))
    with pytest.raises(ModelError, match=r"encoder\.revision"):
        load_encoder(ModelReference("facebook/dinov2-base", knob="encoder"))
