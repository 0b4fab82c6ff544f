"""The body model against smplx's own, and its two shortcuts (heights and joints without a mesh)."""

from __future__ import annotations

import pickle
import zipfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import smplx
import torch

from dto_pipeline import models
from dto_pipeline.maths.rotation import axis_angle_to_matrix
from dto_pipeline.models.body import BodyModel, BodyModelError, load_body

ASSETS = Path(str(files("dto_pipeline.assets")))


def random_people(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pose = 0.5 * torch.randn(count, 72, generator=generator)
    return pose, torch.randn(count, 11, generator=generator), torch.randn(count, 3, generator=generator)


def test_vertices_and_joints_equal_smplx_with_its_kid_axis(body: BodyModel, tmp_path: Path) -> None:
    arrays = smplx.utils.Struct(**np.load(ASSETS / "SMPL_NEUTRAL.npz"))
    kid = tmp_path / "kid.npy"
    np.save(kid, np.load(ASSETS / "extra.npz")["smpl_kid_template"])
    reference = smplx.SMPL(model_path="", data_struct=arrays, age="kid", kid_template_path=str(kid), batch_size=3)
    pose, betas, transl = random_people(3)
    expected = reference(betas=betas, body_pose=pose[:, 3:], global_orient=pose[:, :3], transl=transl)
    assert torch.allclose(body.vertices(pose, betas, transl), expected.vertices, atol=2e-6)
    assert torch.allclose(body.joints(pose, betas, transl), expected.joints, atol=2e-6)


def test_rest_height_is_the_vertical_extent_of_the_zero_pose_mesh(body: BodyModel) -> None:
    _, betas, _ = random_people(4, seed=1)
    mesh = body.vertices(torch.zeros(4, 72), betas, torch.zeros(4, 3))[..., 1]
    assert torch.allclose(body.rest_height(betas), mesh.amax(-1) - mesh.amin(-1), atol=2e-6)


def test_heights_of_a_whole_shard_do_not_fill_the_memory_with_its_vertices(
    body: BodyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = list[int]()
    multiply = models.body.exact_product

    def counted(factors: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        counts.append(len(factors))
        return multiply(factors, *others, **options)

    betas = random_people(1000, seed=3)[1]
    alone = [body.rest_height(betas[person]) for person in (0, 500, 999)]
    monkeypatch.setattr(models.body, "exact_product", counted)
    heights = body.rest_height(betas)
    assert sum(counts) == 1000
    assert max(counts) <= 64
    assert torch.equal(heights[[0, 500, 999]], torch.stack(alone))


def test_leading_axes_and_long_batches_change_nothing(body: BodyModel) -> None:
    pose, betas, transl = random_people(70, seed=2)
    flat = body.vertices(pose, betas, transl)
    shaped = body.vertices(pose.view(7, 10, 72), betas.view(7, 10, 11), transl.view(7, 10, 3))
    assert torch.allclose(flat, shaped.flatten(0, 1), atol=1e-6)
    assert torch.allclose(flat[3:4], body.vertices(pose[3:4], betas[3:4], transl[3:4]), atol=2e-6)


def test_without_the_kid_axis_the_last_coefficient_does_nothing() -> None:
    plain = load_body("demo", kid_axis=False)
    betas = torch.zeros(2, 11)
    betas[1, 10] = 0.7
    assert not plain.has_kid_axis
    assert torch.equal(plain.rest_height(betas)[0], plain.rest_height(betas)[1])


def test_a_missing_file_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(BodyModelError, match="dto body import"):
        load_body(tmp_path / "nothing.npz")


def test_a_pickle_is_refused_and_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "SMPL_NEUTRAL.npz"
    path.write_bytes(pickle.dumps({"v_template": np.zeros(3)}))
    with pytest.raises(BodyModelError, match="not a plain npz"):
        load_body(path)


def test_a_wrong_shape_is_named_with_what_was_expected(tmp_path: Path) -> None:
    arrays = dict(np.load(ASSETS / "SMPL_NEUTRAL.npz"))
    arrays["weights"] = arrays["weights"][:, :20]
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(BodyModelError, match=r"'weights' has shape \(6890, 20\), expected \(None, 24\)"):
        load_body(tmp_path / "wrong.npz")


def test_joints_from_rotations_are_those_of_the_pose_and_have_derivatives(body: BodyModel) -> None:
    pose, betas, transl = random_people(3)
    rotations = axis_angle_to_matrix(pose.reshape(-1, 24, 3)).requires_grad_()
    joints = body.posed_joints(rotations, betas)
    assert torch.allclose(joints + transl[:, None], body.joints(pose, betas, transl)[:, :24], atol=1e-5)
    joints.sum().backward()
    assert rotations.grad is not None
    assert body.posed_joints(rotations[:0], betas[:0]).shape == (0, 24, 3)


def test_joints_to_learn_with_are_the_joints_and_have_gradients(body: BodyModel) -> None:
    generator = torch.Generator().manual_seed(0)
    pose, betas, transl = (torch.randn(2, 3, n, generator=generator) * 0.5 for n in (72, 11, 3))
    pose.requires_grad_()
    joints = body.learnt_joints(pose, betas, transl)
    torch.testing.assert_close(joints.detach(), body.joints(pose.detach(), betas, transl), atol=2e-6, rtol=1e-5)
    joints.square().sum().backward()
    assert pose.grad is not None
    assert pose.grad.abs().sum() > 0
    assert body.learnt_joints(pose[:0], betas[:0], transl[:0]).shape == (0, 3, 45, 3)


@pytest.mark.parametrize(
    ("key", "change", "mentions"),
    [
        ("f", lambda array: np.where(array == 5, 7000, array), "outside the 6890 vertices"),
        ("f", lambda array: np.where(array == 5, -1, array.astype(np.int64)), "outside the 6890 vertices"),
        ("kintree_table", lambda array: array[:, ::-1], "not a tree"),
        ("v_template", lambda array: array[:100], "100 vertices, others have"),
        ("posedirs", lambda array: array[..., :10], "posedirs has 10 directions, expected 207"),
        ("weights", lambda array: array * np.nan, "not finite"),
        ("v_template", lambda array: np.zeros((6 << 20, 3)), "larger than that of any body model"),
    ],
)
def test_a_body_that_contradicts_itself_is_refused(tmp_path: Path, key: str, change: Any, mentions: str) -> None:
    with np.load(ASSETS / "SMPL_NEUTRAL.npz") as archive:
        arrays = dict(archive)
    np.savez_compressed(tmp_path / "body.npz", **{**arrays, key: change(arrays[key])})
    with pytest.raises(BodyModelError, match=mentions):
        load_body(tmp_path / "body.npz")


def test_members_of_a_body_file_that_nobody_knows_are_never_loaded(tmp_path: Path) -> None:
    (tmp_path / "body.npz").write_bytes((ASSETS / "SMPL_NEUTRAL.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "body.npz", "a") as archive:
        archive.writestr("unknown.npy", b"\x93NUMPY and then nothing sound")
        archive.writestr("notes/readme.txt", b"text")
    assert load_body(tmp_path / "body.npz").num_vertices == 6890
