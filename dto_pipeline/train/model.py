"""The network: an image in, people in metres out (MA-HMR, arXiv 2511.13282, in a thin version).

DINOv2 tokens, each of which proposes the person it lies on; queries that start from the surest proposals (or from
learnt places), each with a box that every decoder layer refines (DAB-DETR); heads for confidence, pose, shape and a
weak-perspective camera; a camera branch that reads the field of view off the CLS token and so turns weak perspective
into metres. Knows no labels, losses or files. Pixels are those of the S x S input.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.maths.rotation import axis_angle_to_matrix, matrix_from_6d, matrix_to_6d, matrix_to_axis_angle
from dto_pipeline.models.encoder import Encoder
from dto_pipeline.train.config import ModelConfig

_JOINTS = 24
_UPRIGHT = (math.pi, 0.0, 0.0)  # root of a body that stands in front of the camera [rad]
_FIRST_BOX = (0.12, 0.4)  # width and height of queries' first boxes, shares of S
_BOX_METRES = 1.6  # what the height of a box stands for before training: people stand or sit, and are cut [m]
_LEAST_HEIGHT = 0.01  # of a box that says something about scale, share of S
_FIRST_CONFIDENCE = 0.05  # before training; focal loss wants it small
_LARGEST_FOV = 3.0  # [rad]; tan(fov / 2) ends at pi
_FIRST_STD = 1e-3  # of the last weights of heads
_LEAST_REACH = 0.05  # attention looks at least this far around a box's centre, share of S


@dataclass(frozen=True)
class Predictions:
    """Q people for each of B images, as every decoder layer saw them (L first; the last is the answer).

    Attributes:
        logits: (L, B, Q) of the confidence.
        centred_boxes: (L, B, Q, 4) cx, cy, w, h as shares of S.
        rotations: (L, B, Q, 24, 3, 3) of joints relative to their parents, root first.
        all_betas: (L, B, Q, 11).
        all_transl: (L, B, Q, 3) SMPL's transl [m].
        fov: (B,) vertical field of view [rad]; focal: (B,) [px].
        intrinsics: (B, 3, 3) camera the people are seen with: predicted focal length, principal point as configured.
        side: S [px].
        proposals: what every token says of the person it lies on (L = 1, Q = N, row by row), where queries start from
            tokens; None where they start from learnt places.
    """

    logits: torch.Tensor
    centred_boxes: torch.Tensor
    rotations: torch.Tensor
    all_betas: torch.Tensor
    all_transl: torch.Tensor
    fov: torch.Tensor
    focal: torch.Tensor
    intrinsics: torch.Tensor
    side: int
    proposals: Predictions | None = None

    @property
    def confidence(self) -> torch.Tensor:
        """(B, Q) in 0 .. 1."""
        return self.logits[-1].sigmoid()

    @property
    def boxes(self) -> torch.Tensor:
        """(B, Q, 4) left, top, right, bottom [px]."""
        return corners(self.centred_boxes[-1]) * self.side

    @property
    def pose(self) -> torch.Tensor:
        """(B, Q, 72) axis-angle, root first [rad]."""
        return matrix_to_axis_angle(self.rotations[-1]).flatten(-2)

    @property
    def betas(self) -> torch.Tensor:
        """(B, Q, 11)."""
        return self.all_betas[-1]

    @property
    def transl(self) -> torch.Tensor:
        """(B, Q, 3) [m]."""
        return self.all_transl[-1]


class MeshNetwork(nn.Module):
    """Encoder, decoder, heads and camera branch; `forward` reads top to bottom."""

    mean_pose: torch.Tensor

    def __init__(self, config: ModelConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        width = config.width
        self.tokens = nn.Linear(encoder.width, width)
        self.place = nn.Linear(width, width)  # of where a token is
        # all queries start alike but for their places: what one learns of a person all know
        self.content = nn.Parameter(torch.randn(width) * 0.02)
        if config.queries_from == "tokens":
            self.propose = _mlp(width, 2 * width, width, 2)
            self.proposed = nn.Linear(width, width)  # what a query keeps of the token it starts from
        else:
            self.first_box = nn.Parameter(_spread_boxes(config.queries))
        self.layers = nn.ModuleList(DecoderLayer(width, config.heads) for _ in range(config.layers))
        self.query_place = _mlp(2 * width, width, width, 2)
        self.norm = nn.LayerNorm(width)
        # one set of heads for all layers, as DAB-DETR's box head
        self.box_head = _mlp(width, width, 4, 3)
        self.confidence_head = nn.Linear(width, 1)
        self.pose_head = _mlp(width, width, 6 * _JOINTS, 2)
        self.betas_head = _mlp(width, width, config.betas, 2)
        self.camera_head = _mlp(width + 4, width, 3, 2)
        self.fov_branch = _mlp(encoder.width, encoder.width, 1, 4)
        self.register_buffer("mean_pose", _mean_pose(), persistent=False)
        self._start_small()

    def forward(self, image: torch.Tensor, intrinsics: torch.Tensor | None = None) -> Predictions:
        """
        Args:
            image: (B, 3, S, S) RGB in [0, 1].
            intrinsics: (B, 3, 3) whose principal point is used (never its focal length) [px]; None = the centre.

        Returns:
            Q people an image.
        """
        side = image.shape[-1]
        cls, tokens = self.encoder(image)
        fov = self._fov(cls)
        tokens = self.tokens(tokens)
        grid = token_places(side // self.encoder.patch, image.device)
        keys = tokens + self.place(_sines(grid, tokens.shape[-1] // 2)).to(tokens.dtype)
        from_tokens = self.config.queries_from == "tokens"
        start = self._start_at_tokens(tokens, grid) if from_tokens else self._start_at_places(len(image))
        box_logit, content = start.box_logit, start.content
        raw: list[dict[str, torch.Tensor]] = []
        for layer in self.layers:
            box = box_logit.sigmoid()
            place = self.query_place(_sines(box, content.shape[-1] // 2))
            content = layer(content, place, keys, tokens, box, grid)
            seen = self.norm(content)
            refined = box_logit + self.box_head(seen).float()
            raw.append(self._read_heads(seen, refined, raw[-1] if raw else start.said))
            box_logit = refined.detach()  # every layer refines, none is blamed for the next
        proposals = None if start.proposals is None else self._in_metres([start.proposals], fov, intrinsics, side)
        return replace(self._in_metres(raw, fov, intrinsics, side), proposals=proposals)

    def _start_at_places(self, images: int) -> _Start:
        """Queries that know nothing yet, at learnt places (DAB-DETR)."""
        box_logit = self.first_box.expand(images, -1, -1)
        return _Start(box_logit, self.content.expand(*box_logit.shape[:2], -1))

    def _start_at_tokens(self, tokens: torch.Tensor, grid: torch.Tensor) -> _Start:
        """Every token says what person it lies on; queries go on from the surest (two stages, as Deformable DETR).

        Tokens that are surer than those around them come first: a large person has many tokens, a small one few.
        """
        seen = self.norm(tokens + self.propose(tokens))
        shape = grid.new_tensor(_FIRST_BOX).expand(len(grid), 2)
        refined = torch.cat([grid, shape], dim=-1).logit() + self.box_head(seen).float()
        said = self._read_heads(seen, refined, None)
        surest = _peaks_first(said["logit"].detach()).topk(min(self.config.queries, len(grid)), dim=1).indices
        chosen = {name: _pick(values, surest) for name, values in said.items()}
        content = self.content + self.proposed(_pick(seen, surest))
        return _Start(_pick(refined, surest).detach(), content, chosen, said)

    def _fov(self, cls: torch.Tensor) -> torch.Tensor:
        """CLS token (B, C) -> vertical field of view (B,) [rad]; cut to its limits, beyond them it still learns."""
        raw = self.fov_branch(cls).squeeze(-1).float() + self.config.first_fov
        return raw.clamp(self.config.least_fov, _LARGEST_FOV).detach() + (raw - raw.detach())

    def _read_heads(
        self, seen: torch.Tensor, box_logit: torch.Tensor, before: dict[str, torch.Tensor] | None
    ) -> dict[str, torch.Tensor]:
        """What one layer says; pose, shape and camera are added to what the layer before said."""
        steps = {
            "pose": self.pose_head(seen).float(),
            "betas": self.betas_head(seen).float(),
            "camera": self.camera_head(torch.cat([seen, box_logit.detach().to(seen.dtype)], dim=-1)).float(),
        }
        if before is None:
            said = {"pose": self.mean_pose + steps["pose"], "betas": steps["betas"], "camera": steps["camera"]}
        else:
            said = {name: before[name] + step for name, step in steps.items()}
        return said | {"logit": self.confidence_head(seen).squeeze(-1).float(), "box": box_logit.sigmoid()}

    def _in_metres(
        self, layers: Sequence[dict[str, torch.Tensor]], fov: torch.Tensor, intrinsics: torch.Tensor | None, side: int
    ) -> Predictions:
        """Weak perspective and field of view -> camera and translations."""
        raw = {name: torch.stack([said[name] for said in layers]) for name in layers[0]}
        focal = side / (2 * torch.tan(fov / 2))
        camera = _pinhole(focal, self._principal_point(intrinsics, focal, side))
        weak = raw["camera"] + _camera_of_box(raw["box"])
        missing = NUM_BETAS - self.config.betas
        return Predictions(
            logits=raw["logit"],
            centred_boxes=raw["box"],
            rotations=matrix_from_6d(raw["pose"].unflatten(-1, (_JOINTS, 6))),
            all_betas=functional.pad(raw["betas"], (0, missing)),
            all_transl=metric_translation(weak, camera[:, None], side),
            fov=fov,
            focal=focal,
            intrinsics=camera,
            side=side,
        )

    def _principal_point(self, intrinsics: torch.Tensor | None, focal: torch.Tensor, side: int) -> torch.Tensor:
        if intrinsics is None or self.config.principal_point == "centre":
            return focal.new_full((len(focal), 2), side / 2)
        return intrinsics[:, :2, 2].to(focal.dtype)

    def _start_small(self) -> None:
        """Before training every query says: the mean body, about here, probably nobody."""
        for head in (self.box_head, self.pose_head, self.betas_head, self.camera_head, self.fov_branch):
            nn.init.normal_(_last_linear(head).weight, std=_FIRST_STD)
        nn.init.constant_(self.confidence_head.bias, math.log(_FIRST_CONFIDENCE / (1 - _FIRST_CONFIDENCE)))


@dataclass(frozen=True)
class _Start:
    """Queries before the first decoder layer."""

    box_logit: torch.Tensor  # (B, Q, 4)
    content: torch.Tensor  # (B, Q, C)
    said: dict[str, torch.Tensor] | None = None  # by the tokens they start from
    proposals: dict[str, torch.Tensor] | None = None  # by all tokens


class DecoderLayer(nn.Module):
    """Queries look at each other, then at the tokens around their boxes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.own = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.mlp = _mlp(width, 4 * width, width, 2)
        self.looked = nn.Linear(2 * heads, width)
        self.focus = nn.Parameter(torch.linspace(-1.0, 1.0, heads))  # how closely each head keeps to the box

    def forward(
        self,
        content: torch.Tensor,
        place: torch.Tensor,
        keys: torch.Tensor,
        tokens: torch.Tensor,
        box: torch.Tensor,
        grid: torch.Tensor,
    ) -> torch.Tensor:
        """content, place: (B, Q, C); keys, tokens: (B, N, C); box: (B, Q, 4) cx, cy, w, h and grid: (N, 2) shares."""
        query = self.norms[0](content)
        content = content + self._look_at_each_other(query + place, query)
        query = self.norms[1](content) + place
        content = content + self._look_at_tokens(query, keys, tokens, box, grid)
        return content + self.mlp(self.norms[2](content))

    def _look_at_each_other(self, query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            self._split(project(part)) for project, part in zip(self.own, (query, query, value), strict=False)
        )
        return self.own[3](_merge(functional.scaled_dot_product_attention(query, key, value)))

    def _look_at_tokens(
        self, query: torch.Tensor, keys: torch.Tensor, tokens: torch.Tensor, box: torch.Tensor, grid: torch.Tensor
    ) -> torch.Tensor:
        """What is seen around the box, and where it was seen, told from the box: a shift of both changes nothing."""
        query, key, value = (
            self._split(project(part)) for project, part in zip(self.cross, (query, keys, tokens), strict=False)
        )
        bias = self.focus.exp()[None, :, None, None] * _modulation(box, grid)[:, None]
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias).softmax(-1)
        where = weights.to(grid.dtype) @ grid - box[:, None, :, :2]
        where = where / box[:, None, :, 2:].clamp(min=_LEAST_REACH)
        return self.cross[3](_merge(weights.to(value.dtype) @ value)) + self.looked(_merge(where).to(value.dtype))

    def _split(self, values: torch.Tensor) -> torch.Tensor:
        """(B, n, C) -> (B, heads, n, C / heads)."""
        return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def metric_translation(weak: torch.Tensor, intrinsics: torch.Tensor, side: int) -> torch.Tensor:
    """Metres from weak perspective (MA-HMR), for any principal point.

    With sigma = 2 sigmoid(s) + 1e-6 a metre at the person is sigma S / 2 pixels, so T_z = 2 f / (sigma S); (tx, ty)
    is where the body's origin is seen, -1 .. 1 over the input, so T_xy = (tx, ty) / sigma if the principal point is
    the centre.

    Args:
        weak: (..., 3) s, tx, ty; intrinsics: (..., 3, 3) with one focal length [px]; side: S [px].

    Returns:
        (..., 3) [m].
    """
    sigma = 2 * weak[..., :1].sigmoid() + 1e-6
    off_centre = 2 * intrinsics[..., :2, 2] / side - 1
    z = 2 * intrinsics[..., 0, :1] / (sigma * side)
    return torch.cat([(weak[..., 1:] - off_centre) / sigma, z], dim=-1)


def corners(centred: torch.Tensor) -> torch.Tensor:
    """(..., 4) cx, cy, w, h -> left, top, right, bottom."""
    centre, half = centred[..., :2], centred[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def _camera_of_box(box: torch.Tensor) -> torch.Tensor:
    """What the camera head's (s, tx, ty) is told from: somebody of usual size who fills the box.

    Args:
        box: (..., 4) cx, cy, w, h, shares of S.

    Returns:
        (..., 3): s with which the box is `_BOX_METRES` high (no gradient: boxes are learnt from boxes), and the box's
        centre, -1 .. 1 over the input.
    """
    metre = (box[..., 3:].detach() / _BOX_METRES).clamp(min=_LEAST_HEIGHT, max=1 - _LEAST_HEIGHT)
    return torch.cat([metre.logit(), box[..., :2] * 2 - 1], dim=-1)


def _peaks_first(scores: torch.Tensor) -> torch.Tensor:
    """Scores (B, N) of a square grid, row by row; those that some of the eight around them exceed come last."""
    across = math.isqrt(scores.shape[-1])
    highest = functional.max_pool2d(scores.unflatten(-1, (1, across, across)), 3, stride=1, padding=1).flatten(1)
    behind = scores.amax(-1, keepdim=True) - scores.amin(-1, keepdim=True) + 1
    return torch.where(scores == highest, scores, scores - behind)


def _pick(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Values (B, N, ...) at places (B, Q) -> (B, Q, ...)."""
    return values[torch.arange(len(values), device=values.device)[:, None], places]


def _merge(values: torch.Tensor) -> torch.Tensor:
    """(B, heads, n, c) -> (B, n, heads * c)."""
    return values.transpose(1, 2).flatten(-2)


def _pinhole(focal: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """(B,) and (B, 2) [px] -> (B, 3, 3)."""
    camera = torch.diag_embed(torch.stack([focal, focal, torch.ones_like(focal)], dim=-1))
    return camera + functional.pad(centre[:, :, None], (2, 0, 0, 1))


def _modulation(box: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """(B, Q, N): minus the squared distance of tokens (N, 2) from a box's centre, in half sides of the box."""
    half = (box[..., None, 2:] / 2).clamp(min=_LEAST_REACH)
    return -(((grid - box[..., None, :2]) / half) ** 2).sum(-1) / 2


def token_places(count: int, device: torch.device) -> torch.Tensor:
    """(count^2, 2) centres x, y of the patches, in the order of tokens (row by row), shares of S."""
    centre = (torch.arange(count, device=device) + 0.5) / count
    return torch.stack(torch.meshgrid(centre, centre, indexing="xy"), dim=-1).flatten(0, 1)


def _sines(shares: torch.Tensor, width: int) -> torch.Tensor:
    """Numbers (..., n) in 0 .. 1 -> (..., n * width) sines and cosines of rising frequency."""
    octaves = torch.arange(width // 2, device=shares.device) / (width // 2)
    angle = 2 * math.pi * shares[..., None] * 32**octaves
    return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def _spread_boxes(count: int) -> torch.Tensor:
    """(count, 4) logits of first boxes, spread evenly over the input (the additive sequence of the plastic number)."""
    steps = torch.tensor([0.7548776662466927, 0.5698402909980532], dtype=torch.float64)
    centre = (0.04 + 0.92 * ((torch.arange(count)[:, None] + 0.5) * steps).frac()).float()
    return torch.cat([centre, torch.tensor(_FIRST_BOX).expand(count, 2)], dim=-1).logit()


def _mean_pose() -> torch.Tensor:
    """(144,) 6D of a body in rest pose that stands upright before the camera."""
    pose = torch.zeros(_JOINTS, 3)
    pose[0] = torch.tensor(_UPRIGHT)
    return matrix_to_6d(axis_angle_to_matrix(pose)).flatten()


def _last_linear(mlp: nn.Sequential) -> nn.Linear:
    last = mlp[-1]
    assert isinstance(last, nn.Linear)
    return last


def _mlp(inputs: int, hidden: int, outputs: int, layers: int) -> nn.Sequential:
    sizes = [inputs, *[hidden] * (layers - 1), outputs]
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        linear = nn.Linear(before, after)
        # keeps the differences between inputs alive through four layers; torch's own start shrinks them
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        parts += [linear, nn.GELU()]
    return nn.Sequential(*parts[:-1])
