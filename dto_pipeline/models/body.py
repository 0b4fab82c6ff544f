"""The body model: SMPL's format (6890 vertices, 24 joints), ten shape directions and, where there is one, the kid axis.

Knows the model file (plain npz) and linear blend skinning; knows nothing of images. The whole batch goes through one
call; heights and joints are computed without a mesh. A body is the same to the last bit in whatever company it is
computed: see `maths.ordered`. Metres, SMPL's own frame (y up at rest); the root orientation of a label turns it into
the camera frame.
"""

from __future__ import annotations

import hashlib
import io
import math
from pathlib import Path

import numpy as np
import torch
from smplx.vertex_ids import vertex_ids
from torch import nn

from dto_pipeline.array_files import read_npy, read_npz
from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.config_tree import expect
from dto_pipeline.errors import DtoError
from dto_pipeline.maths.ordered import ExactMatrix, exact_product, fold_sum, make_exact
from dto_pipeline.models.networks import BodyModelError, locate_body
from dto_pipeline.models.rasterizer import is_closed
from dto_pipeline.reading import open_regular, read_regular

SMPLX_EXTRA_JOINTS = (
    *("nose", "reye", "leye", "rear", "lear"),
    *("LBigToe", "LSmallToe", "LHeel", "RBigToe", "RSmallToe", "RHeel"),
    *("lthumb", "lindex", "lmiddle", "lring", "lpinky"),
    *("rthumb", "rindex", "rmiddle", "rring", "rpinky"),
)  # vertices that smplx appends to the 24 joints, in its order
_MOST_BYTES = 1 << 31  # of a body model's file; SMPL with 300 directions has some 50 MB
_REQUIRED = {
    "v_template": (None, 3),
    "shapedirs": (None, 3, None),
    "posedirs": (None, 3, None),
    "weights": (None, 24),
    "J_regressor": (24, None),
    "kintree_table": (2, 24),
    "f": (None, 3),
}
_LIMBS = (16, 17, 18, 19, 20, 21, 1, 2, 4, 5, 7, 8)  # shoulders, elbows, wrists, hips, knees, ankles
_MOST_ARRAY_BYTES = 1 << 27  # the largest, posedirs of SMPL in float64, has 34 MB
_POSE_CHUNK = 64  # bodies posed at once: bounds memory
_SKIN_CHUNK = 16  # bodies skinned at once: what stays in a CPU's cache


class BodyModel(nn.Module):
    """Bodies from pose and shape, batched over any leading axes. Build one with `load_body`."""

    faces: torch.Tensor  # (F, 3) int64
    _template: torch.Tensor  # (3, V) float64
    _blend: torch.Tensor  # (11 + 207, 3 V) float64: what shape and pose add to x, then y, then z; see `ExactMatrix`
    _blend_scale: torch.Tensor
    _weights: torch.Tensor  # (24, V) float64
    _weights_scale: torch.Tensor
    _joint_template: torch.Tensor
    _joint_shapedirs: torch.Tensor
    _joint_blend: torch.Tensor  # (11, 72) float64
    _joint_blend_scale: torch.Tensor
    _landmarks: torch.Tensor

    def __init__(self, arrays: dict[str, np.ndarray], kid_axis: bool = True, sha256: str = "") -> None:
        """`arrays`: SMPL's keys as plain arrays; a model with ten directions gets a kid axis of zeros."""
        super().__init__()
        shapedirs = torch.as_tensor(arrays["shapedirs"], dtype=torch.float32)[..., :NUM_BETAS]
        self.has_kid_axis = bool(kid_axis and shapedirs.shape[-1] == NUM_BETAS)
        self.sha256 = sha256
        if not self.has_kid_axis:
            shapedirs = torch.nn.functional.pad(shapedirs[..., : NUM_BETAS - 1], (0, 1))
        regressor = torch.as_tensor(arrays["J_regressor"], dtype=torch.float32)
        template = torch.as_tensor(arrays["v_template"], dtype=torch.float32)
        posedirs = torch.as_tensor(arrays["posedirs"], dtype=torch.float32)
        joint_shapedirs = _regress(regressor, shapedirs.flatten(1)).view(len(regressor), 3, NUM_BETAS)
        blend = make_exact(torch.cat([shapedirs, posedirs], dim=-1).permute(2, 1, 0).flatten(1))
        weights = make_exact(torch.as_tensor(arrays["weights"], dtype=torch.float32).T)
        joint_blend = make_exact(joint_shapedirs.flatten(0, 1).T)
        self._bits = blend.bits, weights.bits, joint_blend.bits
        self._tree = [-1, *arrays["kintree_table"][0].astype(np.int64).tolist()[1:]]
        buffers = {
            "faces": torch.as_tensor(arrays["f"].astype(np.int64)),
            "_template": template.T.to(torch.float64).contiguous(),
            "_blend": blend.values,
            "_blend_scale": blend.scale,
            "_weights": weights.values,
            "_weights_scale": weights.scale,
            "_joint_template": _regress(regressor, template),
            "_joint_shapedirs": joint_shapedirs,
            "_joint_blend": joint_blend.values,
            "_joint_blend_scale": joint_blend.scale,
            "_landmarks": torch.tensor([vertex_ids["smplh"][name] for name in SMPLX_EXTRA_JOINTS]),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)
        self.closed = is_closed(template, self.faces)

    @property
    def num_vertices(self) -> int:
        return int(self._template.shape[1])

    @torch.no_grad()
    def vertices(self, pose: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor) -> torch.Tensor:
        """Posed meshes.

        Args:
            pose: (..., 72) axis-angle, root first [rad].
            betas: (..., 11) shape, kid axis last.
            transl: (..., 3) added after skinning [m].

        Returns:
            (..., V, 3) [m].
        """
        return self._pose_flat(pose, betas, transl, None)[0]

    @torch.no_grad()
    def joints(self, pose: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor) -> torch.Tensor:
        """smplx's 45 joints (24 of the tree, then face, feet and finger tips), without building a mesh.

        Args and units as `vertices`. Returns: (..., 45, 3) [m].
        """
        extra, tree = self._pose_flat(pose, betas, transl, self._landmarks)
        return torch.cat([tree, extra], dim=-2)

    def learnt_joints(
        self, pose: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor, regressor: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Joints in single precision and differentiable, for learning; the same as `joints` but for rounding.

        Args:
            pose, betas, transl: see `vertices`.
            regressor: (2, V) of head top and neck: RelativeHuman's 14 joints, shoulders to ankles and these two.

        Returns:
            (..., 45, 3), or (..., 14, 3) [m].
        """
        used = self._landmarks if regressor is None else regressor.abs().sum(0).nonzero().squeeze(-1)
        lead, count = pose.shape[:-1], pose[..., 0].numel()
        rotations = rotate(pose.reshape(count, 24, 3))
        shape = betas.reshape(count, NUM_BETAS)
        rest = self._joint_template + torch.einsum("jkl,bl->bjk", self._joint_shapedirs, shape)
        joints, rigid = chain_joints(rotations, rest, self._tree)
        blend = self._blend.view(len(self._blend), 3, -1)[:, :, used] * self._blend_scale[:, None, None]
        bent = rotations[:, 1:] - torch.eye(3, dtype=pose.dtype, device=pose.device)
        factors = torch.cat([shape, bent.flatten(1)], dim=1)
        shaped = self._template[:, used].to(pose.dtype) + torch.einsum("bf,fkv->bkv", factors, blend.to(pose.dtype))
        weights = (self._weights[:, used] * self._weights_scale[:, None]).to(pose.dtype)
        pulls = torch.einsum("bjkl,jv->bklv", rigid, weights)
        points = ((pulls[:, :, :3] * shaped[:, None]).sum(2) + pulls[:, :, 3]).mT
        if regressor is None:
            found = torch.cat([joints, points], dim=1)
        else:
            found = torch.cat([joints[:, list(_LIMBS)], regressor[:, used].to(points) @ points], dim=1)
        return found.reshape(*lead, found.shape[1], 3) + transl[..., None, :]

    def posed_joints(self, rotations: torch.Tensor, betas: torch.Tensor) -> torch.Tensor:
        """The 24 joints of the tree without translation; differentiable, unlike all else here.

        Args:
            rotations: (..., 24, 3, 3) of each joint relative to its parent, root first; betas: (..., 11).

        Returns:
            (..., 24, 3) [m]; the first is the pelvis, which a shape moves but a pose does not.
        """
        rest = self._joint_template + torch.einsum("jkl,bl->bjk", self._joint_shapedirs, betas.reshape(-1, NUM_BETAS))
        flat = rotations.reshape(-1, 24, 3, 3).to(rest.dtype)
        return chain_joints(flat, rest, self._tree)[0].reshape(*rotations.shape[:-3], 24, 3)

    @torch.no_grad()
    def rest_height(self, betas: torch.Tensor) -> torch.Tensor:
        """Height of the body at zero pose: max y - min y of its vertices.

        Args:
            betas: (..., 11). Returns: (...) [m], in the dtype of `betas`.
        """
        height_axis = slice(self.num_vertices, 2 * self.num_vertices)
        directions = ExactMatrix(self._blend[:NUM_BETAS, height_axis], self._blend_scale[:NUM_BETAS], self._bits[0])
        y = self._template[1] + exact_product(betas.reshape(-1, NUM_BETAS), directions, parts=2)
        return (y.amax(dim=-1) - y.amin(dim=-1)).reshape(betas.shape[:-1]).to(betas.dtype)

    def _pose_flat(
        self, pose: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor, subset: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vertices (all, or `subset`) and the 24 joints; leading axes flattened, computed in chunks."""
        lead = pose.shape[:-1]
        if pose.numel() == 0:
            count = self.num_vertices if subset is None else len(subset)
            empty = self._joint_template.new_zeros
            return empty(*lead, count, 3), empty(*lead, len(self._tree), 3)
        flat = zip(
            pose.reshape(-1, 72).split(_POSE_CHUNK),
            betas.reshape(-1, NUM_BETAS).split(_POSE_CHUNK),
            transl.reshape(-1, 3).split(_POSE_CHUNK),
            strict=True,
        )
        parts = [self._pose_chunk(*chunk, subset) for chunk in flat]
        vertices = torch.cat([v for v, _ in parts])
        joints = torch.cat([j for _, j in parts])
        return vertices.reshape(*lead, -1, 3), joints.reshape(*lead, -1, 3)

    def _pose_chunk(
        self, pose: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor, subset: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 vertices (M, V, 3) and joints (M, 24, 3), in float64 up to the last step."""
        template, blend, weights = self._template, self._blend, self._weights
        if subset is not None:
            template, weights = template[:, subset], weights[:, subset]
            blend = blend.view(len(blend), 3, -1)[:, :, subset].flatten(1)
        count = len(pose)
        rotations = rotate(pose.to(torch.float64).view(count, -1, 3))
        joint_blend = ExactMatrix(self._joint_blend, self._joint_blend_scale, self._bits[2])
        rest = self._joint_template + exact_product(betas, joint_blend).view(count, -1, 3)
        joints, rigid = chain_joints(rotations, rest, self._tree)

        bent = rotations[:, 1:] - torch.eye(3, dtype=torch.float64, device=pose.device)
        factors = torch.cat([betas.to(torch.float64), bent.flatten(1)], dim=1)
        shaped = exact_product(factors, ExactMatrix(blend, self._blend_scale, self._bits[0])).view(count, 3, -1)
        shaped += template
        shift = (transl.to(torch.float64) + 0.0)[:, :, None]  # + 0.0: no sum with it is a negative zero
        skin = ExactMatrix(weights, self._weights_scale, self._bits[1])
        parts = (slice(start, start + _SKIN_CHUNK) for start in range(0, count, _SKIN_CHUNK))
        vertices = torch.cat([_skin(shaped[part], rigid[part], shift[part], skin) for part in parts])
        return vertices, (joints + shift.mT).to(torch.float32)


def _skin(shaped: torch.Tensor, rigid: torch.Tensor, shift: torch.Tensor, weights: ExactMatrix) -> torch.Tensor:
    """(M, V, 3) float32 vertices: shaped (M, 3, V), moved as each joint moves (M, J, 3, 4), and shifted (M, 3, 1)."""
    count = len(shaped)
    pulled = rigid.permute(0, 2, 3, 1).reshape(count * 12, -1)
    pulls = exact_product(pulled, weights).view(count, 3, 4, -1)
    posed = pulls[:, :, 3] + shift
    term = torch.empty_like(posed)
    for axis in range(3):
        posed += torch.mul(pulls[:, :, axis], shaped[:, None, axis], out=term)
    return posed.mT.to(torch.float32, memory_format=torch.contiguous_format)


def read_regressor(path: str, body: BodyModel, option: str) -> np.ndarray:
    """(9, V) J_regressor_extra.npy of a body model; `option`: what named the file. Raises: DtoError."""
    wanted = (9, body.num_vertices)
    try:
        with open_regular(path) as stream:
            return read_npy(stream, lambda _, shape, kind: expect(shape == wanted, f"shape {shape}"))
    except (OSError, ValueError) as error:
        said = f"expected J_regressor_extra.npy, {wanted}, as the body model"
        raise DtoError(f"{option} {path} cannot be used: {error}; {said}") from error


def _regress(regressor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """(J, C) float32 of a regressor (J, V) and values (V, C) of the vertices, the same on any number of threads."""
    values = values.to(torch.float64)
    return torch.stack([fold_sum(row[:, None].to(torch.float64) * values, 0) for row in regressor]).to(torch.float32)


def rotate(axis_angle: torch.Tensor) -> torch.Tensor:
    """SMPL's rotations: Rodrigues' formula with smplx's 1e-8 in the angle, elementwise.

    Args:
        axis_angle: (..., 3) [rad]. Returns: (..., 3, 3).
    """
    moved = axis_angle + 1e-8
    x, y, z = moved.unbind(-1)
    angle = (x * x + y * y + z * z).sqrt()[..., None]
    direction = axis_angle / angle
    x, y, z = direction.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    square = direction[..., :, None] * direction[..., None, :]
    identity = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    square = square - (x * x + y * y + z * z)[..., None, None] * identity  # cross @ cross
    angle = angle[..., None]
    return identity + angle.sin() * cross + (1 - angle.cos()) * square


def chain_joints(rotations: torch.Tensor, rest: torch.Tensor, parents: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward kinematics, elementwise: BLAS would let a body's last bits depend on the number of bodies.

    Args:
        rotations: (M, J, 3, 3) relative to the parent; rest: (M, J, 3) joints of the rest pose [m]; parents: of each
            joint, before it; the first has none.

    Returns:
        (M, J, 3) posed joints and (M, J, 3, 4) what moves a point of the rest pose with each joint.
    """
    chain = [torch.cat([rotations[:, 0], rest[:, 0, :, None]], dim=-1)]
    for joint, parent in enumerate(parents[1:], start=1):
        bone = (rest[:, joint] - rest[:, parent])[..., None]
        own, above = torch.cat([rotations[:, joint], bone], dim=-1), chain[parent]
        placed = above[..., 0:1] * own[:, 0:1] + above[..., 1:2] * own[:, 1:2] + above[..., 2:3] * own[:, 2:3]
        placed[..., 3] += above[..., 3]
        chain.append(placed)
    placed = torch.stack(chain, dim=1)
    turned = placed[..., 0] * rest[..., 0:1] + placed[..., 1] * rest[..., 1:2] + placed[..., 2] * rest[..., 2:3]
    posed = placed[..., 3]
    return posed, torch.cat([placed[..., :3], (posed - turned)[..., None]], dim=-1)


def load_body(path: str | Path, kid_axis: bool = True, device: torch.device | str = "cpu") -> BodyModel:
    """Read a body model from a plain npz in SMPL's format.

    Args:
        path: npz file, or a folder holding SMPLA_NEUTRAL.npz or SMPL_NEUTRAL.npz; "demo" = the stand-in body.
        kid_axis: use the 11th direction when the file has one.

    Raises:
        BodyModelError: none is named, missing file, a pickle, missing keys, wrong shapes, indices out of range, numbers
            not finite.
    """
    file = locate_body(path)
    try:
        data = read_regular(file, _MOST_BYTES)
        arrays, names = read_npz(io.BytesIO(data), _REQUIRED, lambda *found: _check_array(file, *found))
    except BodyModelError:
        raise
    except (ValueError, OSError) as error:
        hint = "convert the official file with `dto body import`"
        raise BodyModelError(f"{file} is not a plain npz body model ({error}); {hint}") from error
    for key in _REQUIRED:
        if key not in arrays:
            raise BodyModelError(f"{file} lacks the array {key!r}; found {sorted(names)}")
    _check_fit(file, arrays)
    return BodyModel(arrays, kid_axis, hashlib.sha256(data).hexdigest()).to(device)


def _check_array(file: Path, key: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Refuse an array by its header, before it is read."""
    expected = _REQUIRED[key]
    right = len(shape) == len(expected) and all(want in (None, got) for want, got in zip(expected, shape, strict=True))
    if not right:
        raise BodyModelError(f"{file}: array {key!r} has shape {shape}, expected {expected} (None = any)")
    if math.prod(shape) * dtype.itemsize > _MOST_ARRAY_BYTES:
        raise BodyModelError(f"{file}: array {key!r} {shape} of {dtype} is larger than that of any body model")


def _check_fit(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Refuse arrays that contradict each other or hold numbers that would be read beyond an end."""
    directions, vertices = arrays["shapedirs"].shape[-1], len(arrays["v_template"])
    if directions < NUM_BETAS - 1:
        raise BodyModelError(f"{file}: shapedirs has {directions} directions, expected 10 or 11")
    counts = {key: len(arrays[key]) for key in ("shapedirs", "posedirs", "weights")}
    counts["J_regressor"] = arrays["J_regressor"].shape[1]
    if any(count != vertices for count in counts.values()):
        raise BodyModelError(f"{file}: v_template has {vertices} vertices, others have {counts}")
    joints = arrays["kintree_table"].shape[1]
    if arrays["posedirs"].shape[-1] != 9 * (joints - 1):
        raise BodyModelError(
            f"{file}: posedirs has {arrays['posedirs'].shape[-1]} directions, expected {9 * (joints - 1)}"
        )
    parents, faces = arrays["kintree_table"][0].astype(np.int64), arrays["f"].astype(np.int64)
    if (parents[1:] < 0).any() or (parents[1:] >= np.arange(1, joints)).any():
        raise BodyModelError(f"{file}: kintree_table is not a tree with every joint after its parent")
    if faces.size and (faces.min() < 0 or faces.max() >= vertices):
        raise BodyModelError(f"{file}: f holds indices outside the {vertices} vertices")
    if vertices <= max(vertex_ids["smplh"][name] for name in SMPLX_EXTRA_JOINTS):
        raise BodyModelError(f"{file} has {vertices} vertices, fewer than SMPL's landmarks need; expected 6890")
    for key in ("v_template", "shapedirs", "posedirs", "weights", "J_regressor"):
        if not np.isfinite(arrays[key]).all():
            raise BodyModelError(f"{file}: {key} holds numbers that are not finite")
