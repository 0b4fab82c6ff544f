"""The body model: SMPL's format (6890 vertices, 24 joints), ten shape directions and, where there is one, the kid axis.

Knows the model file (plain npz) and linear blend skinning through smplx's functions; knows nothing of images. The whole
batch goes through one call; heights and joints are computed without a mesh. Metres, SMPL's own frame (y up at rest);
the root orientation of a label turns it into the camera frame.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from smplx.lbs import batch_rigid_transform, batch_rodrigues
from smplx.vertex_ids import vertex_ids
from torch import nn

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.config import STAND_IN_BODY
from dto_pipeline.errors import DtoError

SMPLX_EXTRA_JOINTS = (
    *("nose", "reye", "leye", "rear", "lear"),
    *("LBigToe", "LSmallToe", "LHeel", "RBigToe", "RSmallToe", "RHeel"),
    *("lthumb", "lindex", "lmiddle", "lring", "lpinky"),
    *("rthumb", "rindex", "rmiddle", "rring", "rpinky"),
)  # vertices that smplx appends to the 24 joints, in its order
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
_POSE_CHUNK = 64  # bodies skinned at once: bounds memory, and 16-80 a call is fastest on CPU


class BodyModelError(DtoError, ValueError):
    """A file that is not a usable body model; the message says what was found and what to do."""


class BodyModel(nn.Module):
    """Bodies from pose and shape, batched over any leading axes. Build one with `load_body`."""

    faces: torch.Tensor  # (F, 3) int64
    _template: torch.Tensor
    _shapedirs: torch.Tensor
    _posedirs: torch.Tensor
    _weights: torch.Tensor
    _joint_template: torch.Tensor
    _joint_shapedirs: torch.Tensor
    _parents: torch.Tensor
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
        parents = torch.as_tensor(arrays["kintree_table"][0].astype(np.int64))
        parents[0] = -1
        buffers = {
            "faces": torch.as_tensor(arrays["f"].astype(np.int64)),
            "_template": template,
            "_shapedirs": shapedirs,
            "_posedirs": posedirs.reshape(-1, posedirs.shape[-1]).T.contiguous(),  # (207, V * 3)
            "_weights": torch.as_tensor(arrays["weights"], dtype=torch.float32),
            "_joint_template": regressor @ template,
            "_joint_shapedirs": torch.einsum("jv,vkl->jkl", regressor, shapedirs),
            "_parents": parents,
            "_landmarks": torch.tensor([vertex_ids["smplh"][name] for name in SMPLX_EXTRA_JOINTS]),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)

    @property
    def num_vertices(self) -> int:
        return int(self._template.shape[0])

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

    def joints(self, pose: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor) -> torch.Tensor:
        """smplx's 45 joints (24 of the tree, then face, feet and finger tips), without building a mesh; differentiable.

        Args and units as `vertices`. Returns: (..., 45, 3) [m].
        """
        extra, tree = self._pose_flat(pose, betas, transl, self._landmarks)
        return torch.cat([tree, extra], dim=-2)

    def relative_human_joints(
        self, pose: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor, regressor: torch.Tensor
    ) -> torch.Tensor:
        """RelativeHuman's 14 joints: shoulders to ankles of the tree, head top and neck from vertices; differentiable.

        Args and units as `vertices`; regressor: (2, V) rows of head top and neck. Returns: (..., 14, 3) [m].
        """
        used = regressor.abs().sum(0).nonzero().squeeze(-1)
        vertices, tree = self._pose_flat(pose, betas, transl, used)
        return torch.cat([tree[..., list(_LIMBS), :], regressor[:, used].to(vertices) @ vertices], dim=-2)

    def posed_joints(self, rotations: torch.Tensor, betas: torch.Tensor) -> torch.Tensor:
        """The 24 joints of the tree without translation; differentiable.

        Args:
            rotations: (..., 24, 3, 3) of each joint relative to its parent, root first; betas: (..., 11).

        Returns:
            (..., 24, 3) [m]; the first is the pelvis, which a shape moves but a pose does not.
        """
        lead, dtype = rotations.shape[:-3], self._template.dtype
        if rotations.numel() == 0:
            return rotations.new_zeros(*lead, len(self._parents), 3)
        rest = self._joint_template + torch.einsum("jkl,bl->bjk", self._joint_shapedirs, betas.reshape(-1, NUM_BETAS))
        flat = rotations.reshape(-1, len(self._parents), 3, 3).to(dtype)
        return batch_rigid_transform(flat, rest, self._parents, dtype=dtype)[0].reshape(*lead, -1, 3)

    @torch.no_grad()
    def rest_height(self, betas: torch.Tensor) -> torch.Tensor:
        """Height of the body at zero pose: max y - min y of its vertices.

        Args:
            betas: (..., 11). Returns: (...) [m], in the dtype of `betas`.
        """
        directions = self._shapedirs[:, 1, :].to(betas.dtype)
        y = self._template[:, 1].to(betas.dtype) + betas.reshape(-1, NUM_BETAS) @ directions.T
        return (y.amax(dim=-1) - y.amin(dim=-1)).reshape(betas.shape[:-1])

    def _pose_flat(
        self, pose: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor, subset: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vertices (all, or `subset`) and the 24 joints; leading axes flattened, computed in chunks."""
        lead = pose.shape[:-1]
        if pose.numel() == 0:  # nobody: smplx cannot tell the shape of nothing
            count = self.num_vertices if subset is None else len(subset)
            return self._template.new_zeros(*lead, count, 3), self._template.new_zeros(*lead, len(self._parents), 3)
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
        count, dtype = pose.shape[0], self._template.dtype
        pose, betas = pose.to(dtype), betas.to(dtype)
        rotations = batch_rodrigues(pose.reshape(-1, 3)).view(count, -1, 3, 3)
        rest_joints = self._joint_template + torch.einsum("jkl,bl->bjk", self._joint_shapedirs, betas)
        joints, rigid = batch_rigid_transform(rotations, rest_joints, self._parents, dtype=dtype)

        template, shapedirs, weights, posedirs = self._template, self._shapedirs, self._weights, self._posedirs
        if subset is not None:
            template, shapedirs, weights = template[subset], shapedirs[subset], weights[subset]
            posedirs = posedirs.view(posedirs.shape[0], -1, 3)[:, subset].flatten(1)
        feature = (rotations[:, 1:] - torch.eye(3, dtype=dtype, device=pose.device)).reshape(count, -1)
        shaped = torch.addmm(template.reshape(1, -1), betas, shapedirs.flatten(0, 1).T)
        shaped = torch.addmm(shaped, feature, posedirs).view(count, -1, 3)
        skinning = torch.matmul(weights, rigid[:, :, :3].reshape(count, -1, 12)).view(count, -1, 3, 4)
        posed = (skinning[..., :3] * shaped.unsqueeze(-2)).sum(-1) + skinning[..., 3]
        shift = transl.unsqueeze(-2).to(dtype)
        return posed + shift, joints + shift


def load_body(path: str | Path = "", kid_axis: bool = True, device: torch.device | str = "cpu") -> BodyModel:
    """Read a body model from a plain npz in SMPL's format.

    Args:
        path: npz file, or a folder holding SMPLA_NEUTRAL.npz or SMPL_NEUTRAL.npz; "demo" (or "") = the stand-in body.
        kid_axis: use the 11th direction when the file has one.

    Raises:
        BodyModelError: missing file, a pickle, missing keys or wrong shapes.
    """
    own = str(path) in ("", STAND_IN_BODY)
    file = _locate(Path(str(files("dto_pipeline.assets"))) if own else Path(path))
    data = file.read_bytes()
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        hint = "convert the official file with `dto body import`"
        raise BodyModelError(f"{file} is not a plain npz body model ({error}); {hint}") from error
    _check_arrays(file, arrays)
    return BodyModel(arrays, kid_axis, hashlib.sha256(data).hexdigest()).to(device)


def _locate(path: Path) -> Path:
    candidates = [path / "SMPLA_NEUTRAL.npz", path / "SMPL_NEUTRAL.npz"] if path.is_dir() else [path]
    for file in candidates:
        if file.is_file():
            return file
    raise BodyModelError(f"no body model at {path}; expected an npz made by `dto body import`")


def _check_arrays(file: Path, arrays: dict[str, np.ndarray]) -> None:
    for key, shape in _REQUIRED.items():
        if key not in arrays:
            raise BodyModelError(f"{file} lacks the array {key!r}; found {sorted(arrays)}")
        found = arrays[key].shape
        right = len(found) == len(shape) and all(want in (None, got) for want, got in zip(shape, found, strict=True))
        if not right:
            raise BodyModelError(f"{file}: array {key!r} has shape {found}, expected {shape} (None = any)")
    if arrays["shapedirs"].shape[-1] < NUM_BETAS - 1:
        raise BodyModelError(f"{file}: shapedirs has {arrays['shapedirs'].shape[-1]} directions, expected 10 or 11")
