"""The body model: a plain npz in SMPL's format (6890 vertices, 24 joints), with ten shape directions and perhaps a kid
axis.

Linear blend skinning of a whole batch per call; heights and joints are computed without a mesh. The bits of a body do
not depend on the others of the batch (see `maths.ordered`). Metres, in SMPL's own frame (y up at rest); the root
orientation of a label turns it into the camera frame.
"""

from __future__ import annotations

import hashlib
import io
import math
from pathlib import Path

import numpy as np
import torch
from smplx.vertex_ids import vertex_ids

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
_LANDMARKS = [vertex_ids["smplh"][name] for name in SMPLX_EXTRA_JOINTS]
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
_FLOATS = ("v_template", "shapedirs", "posedirs", "weights", "J_regressor")
_LIMBS = (16, 17, 18, 19, 20, 21, 1, 2, 4, 5, 7, 8)  # shoulders, elbows, wrists, hips, knees, ankles
_MOST_ARRAY_BYTES = 1 << 27  # the largest, posedirs of SMPL in float64, has 34 MB
_SUM_ERROR = 0.1  # of a row of a regressor, which is a mean: joints would move by this share of their distance
_POSE_CHUNK = 64  # bodies posed at once: bounds memory
_SKIN_CHUNK = 16  # bodies skinned at once: what stays in a CPU's cache


class BodyModel:
    """Bodies from pose and shape, batched over any leading axes. Build one with `load_body`."""

    def __init__(self, arrays: dict[str, np.ndarray], kid_axis: bool = True, sha256: str = "") -> None:
        """`arrays`: SMPL's keys as plain arrays; a model with ten directions gets a kid axis of zeros."""
        single = {key: torch.as_tensor(value, dtype=torch.float32) for key, value in arrays.items() if key in _FLOATS}
        shapedirs, regressor = single["shapedirs"][..., :NUM_BETAS], single["J_regressor"]
        self.has_kid_axis = bool(kid_axis and shapedirs.shape[-1] == NUM_BETAS)
        self.sha256 = sha256
        if not self.has_kid_axis:
            shapedirs = torch.nn.functional.pad(shapedirs[..., : NUM_BETAS - 1], (0, 1))
        self._tree = [-1, *arrays["kintree_table"][0].astype(np.int64).tolist()[1:]]
        self.faces = torch.as_tensor(arrays["f"].astype(np.int64))  # (F, 3)
        self._template = single["v_template"].T.to(torch.float64).contiguous()  # (3, V)
        self._joint_template = _regress(regressor, single["v_template"])  # (24, 3)
        self._joint_shapedirs = _regress(regressor, shapedirs.flatten(1)).view(len(regressor), 3, NUM_BETAS)
        self._landmarks = torch.tensor(_LANDMARKS)
        # (11 + 207, 3 V): what shape and pose add to x, then y, then z
        self._blend = make_exact(torch.cat([shapedirs, single["posedirs"]], dim=-1).permute(2, 1, 0).flatten(1))
        self._weights = make_exact(single["weights"].T)  # (24, V)
        self._joint_blend = make_exact(self._joint_shapedirs.flatten(0, 1).T)  # (11, 72)
        self.closed = is_closed(single["v_template"], self.faces)

    def to(self, device: torch.device | str) -> BodyModel:
        """The same body, moved to a device."""
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device))
            elif isinstance(value, ExactMatrix):
                setattr(self, name, value._replace(values=value.values.to(device), scale=value.scale.to(device)))
        return self

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

        Returns: (..., V, 3) [m].
        """
        return self._pose(pose, betas, transl, None)[0]

    @torch.no_grad()
    def joints(self, pose: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor) -> torch.Tensor:
        """smplx's 45 joints (24 of the tree, then face, feet and finger tips), without building a mesh.

        Args and units as `vertices`. Returns: (..., 45, 3) [m].
        """
        extra, tree = self._pose(pose, betas, transl, self._landmarks)
        return torch.cat([tree, extra], dim=-2)

    def learnt_joints(
        self, pose: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor, regressor: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`joints` in single precision and differentiable, (..., 45, 3) [m].

        With `regressor` (2, V) of head top and neck: RelativeHuman's 14 joints, shoulders to ankles and these two.
        """
        used = self._landmarks if regressor is None else regressor.abs().sum(0).nonzero().squeeze(-1)
        lead, count = pose.shape[:-1], pose[..., 0].numel()
        rotations = rotate(pose.reshape(count, 24, 3))
        shape = betas.reshape(count, NUM_BETAS)
        rest = self._joint_template + torch.einsum("jkl,bl->bjk", self._joint_shapedirs, shape)
        joints, rigid = chain_joints(rotations, rest, self._tree)
        blend = self._blend.values.unflatten(1, (3, -1))[:, :, used] * self._blend.scale[:, None, None]
        bent = rotations[:, 1:] - torch.eye(3, dtype=pose.dtype, device=pose.device)
        factors = torch.cat([shape, bent.flatten(1)], dim=1)
        shaped = self._template[:, used].to(pose.dtype) + torch.einsum("bf,fkv->bkv", factors, blend.to(pose.dtype))
        weights = (self._weights.values[:, used] * self._weights.scale[:, None]).to(pose.dtype)
        pulls = torch.einsum("bjkl,jv->bklv", rigid, weights)
        points = ((pulls[:, :, :3] * shaped[:, None]).sum(2) + pulls[:, :, 3]).mT
        if regressor is None:
            found = torch.cat([joints, points], dim=1)
        else:
            found = torch.cat([joints[:, list(_LIMBS)], regressor[:, used].to(points) @ points], dim=1)
        return found.reshape(*lead, found.shape[1], 3) + transl[..., None, :]

    def posed_joints(self, rotations: torch.Tensor, betas: torch.Tensor) -> torch.Tensor:
        """(..., 24, 3) joints of the tree without translation [m], differentiable; the first is the pelvis.

        Args: rotations (..., 24, 3, 3) of each joint relative to its parent, root first; betas (..., 11).
        """
        rest = self._joint_template + torch.einsum("jkl,bl->bjk", self._joint_shapedirs, betas.reshape(-1, NUM_BETAS))
        flat = rotations.reshape(-1, 24, 3, 3).to(rest.dtype)
        return chain_joints(flat, rest, self._tree)[0].reshape(*rotations.shape[:-3], 24, 3)

    @torch.no_grad()
    def rest_height(self, betas: torch.Tensor) -> torch.Tensor:
        """(...) height at zero pose, max y - min y of the vertices [m], of betas (..., 11) and in their dtype."""
        values, scale, bits = self._blend
        directions = ExactMatrix(values[:NUM_BETAS].view(NUM_BETAS, 3, -1)[:, 1], scale[:NUM_BETAS], bits)
        heights = []
        for some in betas.reshape(-1, NUM_BETAS).split(_POSE_CHUNK):
            y = self._template[1] + exact_product(some, directions, parts=2)
            heights.append(y.amax(dim=-1) - y.amin(dim=-1))
        return torch.cat(heights).reshape(betas.shape[:-1]).to(betas.dtype)

    def _pose(
        self, pose: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor, subset: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 vertices (..., V, 3), all or those of `subset`, and joints (..., 24, 3); float64 up to the last
        step."""
        template, blend, weights = self._template, self._blend, self._weights
        if subset is not None:
            template, weights = template[:, subset], weights._replace(values=weights.values[:, subset])
            chosen = blend.values.unflatten(1, (3, -1))[:, :, subset]
            blend = blend._replace(values=chosen.flatten(1))
        vertices, joints = [], []
        identity = torch.eye(3, dtype=torch.float64, device=pose.device)
        flat = (pose.reshape(-1, 24, 3), betas.reshape(-1, NUM_BETAS), transl.reshape(-1, 3))
        for turns, shape, place in zip(*(value.to(torch.float64).split(_POSE_CHUNK) for value in flat), strict=True):
            rotations = rotate(turns)
            moved = exact_product(shape, self._joint_blend).unflatten(1, (-1, 3))
            posed, rigid = chain_joints(rotations, self._joint_template + moved, self._tree)
            factors = torch.cat([shape, (rotations[:, 1:] - identity).flatten(1)], dim=1)
            shaped = exact_product(factors, blend).unflatten(1, (3, -1)).add_(template)
            shift = (place + 0.0)[:, :, None]  # + 0.0: no sum with it is a negative zero
            pieces = zip(shaped.split(_SKIN_CHUNK), rigid.split(_SKIN_CHUNK), shift.split(_SKIN_CHUNK), strict=True)
            vertices += [_skin(*piece, weights) for piece in pieces]
            joints.append((posed + shift.mT).to(torch.float32))
        lead = pose.shape[:-1]
        return (
            torch.cat(vertices).reshape(*lead, template.shape[1], 3),
            torch.cat(joints).reshape(*lead, len(self._tree), 3),
        )


def _skin(shaped: torch.Tensor, rigid: torch.Tensor, shift: torch.Tensor, weights: ExactMatrix) -> torch.Tensor:
    """(M, V, 3) float32 vertices: shaped (M, 3, V), moved as each joint moves (M, J, 3, 4), and shifted (M, 3, 1)."""
    pulled = rigid.permute(0, 2, 3, 1).flatten(0, 2)
    pulls = exact_product(pulled, weights).unflatten(0, (-1, 3, 4))
    posed = pulls[:, :, 3] + shift
    term = torch.empty_like(posed)
    for axis in range(3):
        posed += torch.mul(pulls[:, :, axis], shaped[:, None, axis], out=term)
    return posed.mT.to(torch.float32, memory_format=torch.contiguous_format)


def read_regressor(
    path: str, body: BodyModel, option: str, name: str = "J_regressor_extra.npy", joints: int = 9
) -> np.ndarray:
    """(joints, V) regressor of a body model, published as `name`; `option` named the file. Raises: DtoError."""
    wanted = (joints, body.num_vertices)
    try:
        with open_regular(path) as stream:
            regressor = read_npy(stream, lambda _, shape, kind: expect(shape == wanted, f"shape {shape}"))
        sums = regressor.sum(axis=1, dtype=np.float64)  # a joint is a mean of vertices, wherever the body stands
        expect((np.abs(sums - 1) < _SUM_ERROR).all(), "its rows do not all add up to 1")
        return regressor
    except (OSError, ValueError) as error:
        raise DtoError(
            f"{option} {path} cannot be used: {error}; expected {name}, {wanted}, as the body model"
        ) from error


def _regress(regressor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """(J, C) float32 of a regressor (J, V) and values (V, C) of the vertices, the same on any number of threads."""
    values = values.to(torch.float64)
    return torch.stack([fold_sum(row[:, None].to(torch.float64) * values, 0) for row in regressor]).to(torch.float32)


def rotate(axis_angle: torch.Tensor) -> torch.Tensor:
    """(..., 3, 3) rotations of axis-angle vectors (..., 3) [rad]: Rodrigues' formula with smplx's 1e-8 in the angle."""
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
    """Forward kinematics, elementwise: with BLAS the last bits of a body would depend on the number of bodies.

    Args:
        rotations: (M, J, 3, 3) relative to the parent; rest: (M, J, 3) joints of the rest pose [m].
        parents: of each joint, an earlier one; the first has none.

    Returns: (M, J, 3) posed joints, and (M, J, 3, 4) the matrices that move points of the rest pose with each joint.
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
        BodyModelError: no path or file, a pickle, missing keys, wrong shapes, indices out of range, numbers not finite.
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
    if problem := _find_problem(arrays):
        raise BodyModelError(f"{file}: {problem}")
    return BodyModel(arrays, kid_axis, hashlib.sha256(data).hexdigest()).to(device)


def _check_array(file: Path, key: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Refuse an array by its header, before it is read."""
    expected = _REQUIRED[key]
    right = len(shape) == len(expected) and all(want in (None, got) for want, got in zip(expected, shape, strict=True))
    if not right:
        raise BodyModelError(f"{file}: array {key!r} has shape {shape}, expected {expected} (None = any)")
    if math.prod(shape) * dtype.itemsize > _MOST_ARRAY_BYTES:
        raise BodyModelError(f"{file}: array {key!r} {shape} of {dtype} is larger than that of any body model")


def _find_problem(arrays: dict[str, np.ndarray]) -> str | None:
    """How arrays contradict each other or hold numbers that cannot be used; None = they do not."""
    directions, vertices = arrays["shapedirs"].shape[-1], len(arrays["v_template"])
    counts = {key: len(arrays[key]) for key in ("shapedirs", "posedirs", "weights")}
    counts["J_regressor"] = arrays["J_regressor"].shape[1]
    joints, bends = arrays["kintree_table"].shape[1], arrays["posedirs"].shape[-1]
    parents, faces = arrays["kintree_table"][0].astype(np.int64), arrays["f"].astype(np.int64)
    infinite = [key for key in _FLOATS if not np.isfinite(arrays[key]).all()]
    problems = {
        f"shapedirs has {directions} directions, expected 10 or 11": directions < NUM_BETAS - 1,
        f"v_template has {vertices} vertices, others have {counts}": set(counts.values()) != {vertices},
        f"posedirs has {bends} directions, expected {9 * (joints - 1)}": bends != 9 * (joints - 1),
        "kintree_table is not a tree with every joint after its parent": (parents[1:] < 0).any()
        or (parents[1:] >= np.arange(1, joints)).any(),
        f"f holds indices outside the {vertices} vertices": faces.size
        and not 0 <= faces.min() <= faces.max() < vertices,
        f"{vertices} vertices, fewer than SMPL's landmarks need; expected 6890": vertices <= max(_LANDMARKS),
        f"{', '.join(infinite)} holds numbers that are not finite": infinite,
    }
    return next((text for text, found in problems.items() if found), None)
