"""The network of Metric-Aware HMR (arXiv 2511.13282), compatible with the published weights: images in, people out.

S input size (the long side), B images, Q queries, L decoder layers, C and D widths; pixels are those of the image
resized to S, without its padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dto_pipeline.maths.ordered import constant
from dto_pipeline.maths.rotation import matrix_from_6d, matrix_to_axis_angle
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.network_input import IMAGENET_MEAN, IMAGENET_STD
from dto_pipeline.train import blocks
from dto_pipeline.train.blocks import QUARTERS, Known, Mlp, Noise, inverse_sigmoid, pad_rows, sine_code
from dto_pipeline.train.config import CELL, GROUP, PATCH, EncoderConfig, ModelConfig

LEAST_FOV = 0.08  # [rad]
STAGE_ONE_FOV = math.pi / 3  # 60 degrees over S, where there is no camera branch [rad]
LARGEST_FOV = 3.0  # [rad]; beyond pi there is no camera (ours: the original has no upper limit)
_FIRST_CONFIDENCE = 0.01  # before training


@dataclass(frozen=True)
class Predictions:
    """Q people of each of B images from every decoder layer; the last layer is the result."""

    confs: Tensor  # (L, B, Q) 0 .. 1
    boxes: Tensor  # (L, B, Q, 4) cx, cy, w, h as shares of S
    poses: Tensor  # (L, B, Q, 72) axis-angle, root first [rad]
    betas: Tensor  # (L, B, Q, 10 or 11)
    transl: Tensor  # (L, B, Q, 3) SMPL's transl [m]
    depths: Tensor  # (L, B, Q, 2) its distance T_z and T_z / f [m, m / px]
    intrinsics: Tensor  # (B, 3, 3) camera
    scale_map: Tensor  # (T, 2) confidence and scale of the 28 px cells of all images
    cells: tuple[Tensor, Tensor, list[int]] | None  # rows and columns (T,) of the cells, and their number in each image
    input_size: int  # S
    j3ds: Tensor | None = None  # (L, B, Q, J, 3) joints before the camera [m], see `with_joints`
    j2ds: Tensor | None = None  # (L, B, Q, J, 2) their places
    known: Predictions | None = None  # of the denoising queries, in training
    tokens: dict[str, Any] = field(default_factory=dict)  # from here on intermediate results, see `_encode`
    states: Tensor | None = None  # (L, B, Q, D) h
    references: Tensor | None = None  # (L, B, Q, 4) r
    fov: Tensor | None = None  # (B,) before its bounds


class MeshNetwork(nn.Module):
    """All weights under their published names."""

    mean_pose: Tensor
    mean_shape: Tensor
    encoder: Any  # its parts are accessed by name
    decoder: Any
    bbox_embed: Any

    def __init__(self, encoder: EncoderConfig, model: ModelConfig, side: int) -> None:
        """Sizes of encoder and decoder, and S."""
        super().__init__()
        self.sizes, self.side = model, side
        self.limits = blocks.CONFIDENT, blocks.SMALL  # of tokens, see `blocks.choose_tokens`
        wide, width, grid = encoder.width, model.width, side // PATCH
        self.additional = min(encoder.additional, encoder.layers - 1)  # as many own blocks see the small tokens
        self.encoder_patch_proj = nn.ModuleList(nn.Conv2d(3, wide, PATCH, PATCH) for _ in range(2))
        self.encoder_cr_token = nn.Parameter(torch.randn(1, wide) * 0.02)
        self.encoder_pos_embeds = nn.Parameter(torch.randn(grid, grid, wide) * 0.02)
        sizes = (wide, encoder.heads, encoder.hidden or 4 * wide)
        stacks = {"blocks": encoder.layers, "additional_blocks": self.additional}
        stacked = {name: nn.ModuleList(blocks.Block(*sizes) for _ in range(count)) for name, count in stacks.items()}
        self.encoder = nn.ModuleDict({**stacked, "norm": nn.LayerNorm(wide, eps=blocks.ENCODER_EPS)})
        self.enc_inter_norm = nn.LayerNorm(wide, eps=blocks.ENCODER_EPS)
        self.scale_head = Mlp(wide, wide, wide, wide, 2)
        self.feature_proj = nn.Linear(wide, width)
        self.level_embed = nn.Parameter(torch.randn(3, width))
        self.tgt_embed, self.refpoint_embed = nn.Embedding(model.queries, width), nn.Embedding(model.queries, 4)
        layers = range(model.layers)
        self.bbox_embed = nn.ModuleList(Mlp(width, width, width, 4) for _ in layers)
        decoder = {
            "layers": nn.ModuleList(blocks.DecoderLayer(width, model.heads, model.hidden, k == 0) for k in layers),
            "norm": nn.LayerNorm(width, eps=blocks.DECODER_EPS),
            "query_scale": Mlp(width, width, width),
            "ref_point_head": Mlp(2 * width, width, width),
            "ref_anchor_head": Mlp(width, width, 2),
            "bbox_embed": self.bbox_embed,  # the same weights: published files hold them twice
        }
        self.decoder = nn.ModuleDict({"decoder": nn.ModuleDict(decoder)})  # published names have it one level down
        self.pose_head = nn.ModuleList(Mlp(*[width] * 6, 144) for _ in layers)
        self.shape_head = nn.ModuleList(Mlp(*[width] * 5, model.betas) for _ in layers)
        self.cam_head = Mlp(width, width // 2, width // 2, 3)
        self.conf_head = nn.Linear(width, 1)
        if model.camera:
            self.fov_head = Mlp(*[wide] * 4, 1)
        if model.denoising:
            self.dn_enc = nn.Linear(72 + 10, width)
        self.register_buffer("mean_pose", torch.tensor([[1.0, 0, 0, -1, 0, 0], *[[1.0, 0, 0, 1, 0, 0]] * 23]).flatten())
        self.register_buffer("mean_shape", torch.zeros(model.betas))
        self._start()

    def forward(
        self, images: Sequence[Tensor], centres: Tensor | None = None, known: Known | None = None,
        noise: Noise | None = None, given_map: Tensor | None = None,
    ) -> Predictions:  # fmt: skip
        """B images (3, h, w) uint8 RGB, each of its own size, the longer side S -> Q people of each.

        `centres`: (B, 2) principal points of the images [px], None = the middle, as published always; `known`: people
        for denoising queries, with their noise (None = random); `given_map`: (T, 2) scale map that chooses the tokens
        instead of the predicted one.
        """
        size = torch.tensor([image.shape[:0:-1] for image in images])  # (B, 2) w, h
        size = size.to(self.level_embed.device, non_blocking=True)
        tokens, classes, scale_map, cells = self._encode(images, given_map)
        content = self.tgt_embed.weight.expand(len(images), -1, -1)
        logits = self.refpoint_embed.weight.expand(len(images), -1, -1)
        may_see, slots = None, 0
        if known is not None and len(known.image):
            first = blocks.noisy_queries(known, self.dn_enc, noise)
            content, logits = (torch.cat([a.to(b.dtype), b], 1) for a, b in zip(first, (content, logits), strict=True))
            slots, may_see = first[0].shape[1], blocks.allowed_pairs(known, self.sizes.queries)
        states, references = self._decode(content, logits.sigmoid(), tokens, len(images), may_see)

        # f = h / (2 tan(fov / 2)), h without padding; without the branch 60 degrees over S
        fov = self.fov_head(classes).squeeze(-1).float() if self.sizes.camera else None
        focal = torch.full_like(size[:, 1], self.side / (2 * math.tan(STAGE_ONE_FOV / 2)), dtype=torch.float32)
        if fov is not None:
            focal = size[:, 1] / (2 * torch.tan(fov.clamp(LEAST_FOV, LARGEST_FOV) / 2))
        camera = torch.diag_embed(torch.stack([focal, focal, torch.ones_like(focal)], dim=-1))
        camera[:, :2, 2] = size / 2 if centres is None or self.sizes.as_published else centres
        heads: dict[str, Any] = self._read_heads(states, references, camera, size / 2)
        heads |= {"states": states, "references": references}
        found = Predictions(
            **{name: value[:, :, slots:] for name, value in heads.items()}, intrinsics=camera, scale_map=scale_map,
            cells=cells, tokens=tokens, fov=fov, input_size=self.side,
        )  # fmt: skip
        if not slots:
            return found
        return replace(found, known=replace(found, **{name: value[:, :, :slots] for name, value in heads.items()}))

    def _encode(self, images: Sequence[Tensor], given_map: Tensor | None) -> tuple[Any, Tensor, Tensor, Any]:
        """Images -> T tokens, by image and then by level: image, level (T,), place (T, 2) x, y in tokens of the level,
        memory, code (T, D), the most of an image; class tokens (B, C), scale map (cells, 2), cells."""
        count, device = len(images), self.level_embed.device
        grids = [blocks.z_order(*(-(-side // GROUP) * 2 for side in image.shape[1:]), device) for image in images]
        lengths = [len(y) for y, _ in grids]
        cell_y, cell_x = (torch.cat([grid[axis] for grid in grids]) for axis in (0, 1))
        cell_image = blocks.image_numbers(lengths, device)
        fine = torch.cat([_cells_of(image) for image in images])
        position, own = self.encoder_pos_embeds, self.encoder["blocks"]

        # 1 map tokens: every cell halved to one patch;  2 additional blocks and scale map
        halved = fine.unflatten(-1, (PATCH, 2)).unflatten(-3, (PATCH, 2)).mean((-1, -3))
        tokens = self._project(1, halved) + shrink_positions(position)[cell_y, cell_x]
        first = self.encoder_cr_token.expand(count, -1)
        more = self.encoder["additional_blocks"]
        tokens, classes = _run(more, tokens, cell_image, first, max(lengths))
        scale_map = self.scale_head(self.enc_inter_norm(tokens)).float().sigmoid()

        # 3 levels of the cells
        chosen_by = (scale_map if given_map is None else given_map).detach()
        levels = blocks.choose_tokens(chosen_by, not self.sizes.as_published, self.limits)
        (chosen, kept, empty), most_small, longest = blocks.list_by_level(levels, lengths)

        # 4 small cells at full resolution; their class token is dropped
        y = torch.stack([2 * cell_y[chosen] + dy for dy, _ in QUARTERS], dim=1).flatten()
        x = torch.stack([2 * cell_x[chosen] + dx for _, dx in QUARTERS], dim=1).flatten()
        patches = fine[chosen].unflatten(-1, (2, PATCH)).unflatten(-3, (2, PATCH))  # (n, 3, 2, 14, 2, 14)
        small = self._project(0, patches.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)) + position[y, x]
        small_image = cell_image[chosen].repeat_interleave(4)
        if len(small):
            small, _ = _run(own[: self.additional], small, small_image, first, most_small)

        # 5 groups without people: the largest of four;  6 all of them through the other blocks
        merged = tokens.unflatten(0, (-1, 4)).amax(1)[empty // 4]
        image = torch.cat([small_image, cell_image[kept], cell_image[empty]])
        level = blocks.image_numbers([len(small), len(kept), len(empty)], device)
        x, y = torch.cat([x, cell_x[kept], cell_x[empty] // 2]), torch.cat([y, cell_y[kept], cell_y[empty] // 2])
        order = torch.argsort(image, stable=True)
        image, level, place = image[order], level[order], torch.stack([x, y], dim=-1)[order]
        tokens = torch.cat([small, tokens[kept], merged.to(tokens.dtype)])[order]
        tokens, classes = _run(own[self.additional :], tokens, image, classes, longest)
        memory = self.feature_proj(self.encoder["norm"](tokens))
        step = PATCH * 2.0 ** level[:, None] / self.side
        code = (sine_code((place + 0.5) * step, self.sizes.width) + self.level_embed[level]).to(memory.dtype)
        found = {"image": image, "level": level, "place": place, "memory": memory, "code": code, "longest": longest}
        return found, classes, scale_map, (cell_y, cell_x, lengths)

    def _decode(
        self, content: Tensor, box: Tensor, tokens: dict[str, Any], count: int, may_see: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Content t (B, Q, D), box b (B, Q, 4) -> h (L, B, Q, D), r (L, B, Q, 4): the first boxes of each layer."""
        decoder, width = self.decoder["decoder"], self.sizes.width
        of_images = (tokens["image"], count, tokens["longest"])
        (memory, real), (memory_place, _) = (pad_rows(tokens[name], *of_images) for name in ("memory", "code"))
        states, references = [], [box]
        for number, layer in enumerate(decoder["layers"]):
            # e = [code(cx, cy), code(w, h)]: y, x, h, w;  p = ref_point_head(e)
            code = torch.cat([sine_code(box[..., :2], width), sine_code(box[..., 2:], width)], dim=-1).to(memory.dtype)
            sine = code[..., :width] * (decoder["query_scale"](content) if number else 1)
            # g: the half of x times m_0 / w, that of y times m_1 / h
            factor = decoder["ref_anchor_head"](content).sigmoid() / box[..., 2:].to(memory.dtype)
            sine = sine * factor.flip(-1).repeat_interleave(width // 2, dim=-1)
            content = layer(content, decoder["ref_point_head"](code), sine, memory, memory_place, real, may_see)
            states.append(decoder["norm"](content))
            refined = (self.bbox_embed[number](states[-1]).float() + inverse_sigmoid(box)).sigmoid()
            references.append(refined)  # with gradient, as in look forward twice (DINO)
            box = refined.detach()
        return torch.stack(states), torch.stack(references[:-1])

    def _read_heads(self, states: Tensor, references: Tensor, camera: Tensor, middle: Tensor) -> dict[str, Tensor]:
        """h and r of all layers, cameras (B, 3, 3) and middles (B, 2) of the images -> (L, B, Q, ...) each."""
        layers, focal = range(len(states)), camera[:, 0, 0]
        # P_l = P_{l-1} + head_l(h_l), P_{-1} the mean
        six, betas = (
            torch.stack(
                [mean.float().expand(*states.shape[1:3], -1), *(heads[k](states[k]).float() for k in layers)]
            ).cumsum(0)[1:]
            for heads, mean in ((self.pose_head, self.mean_pose), (self.shape_head, self.mean_shape))
        )
        columns = six.unflatten(-1, (24, 3, 2)).transpose(-1, -2).flatten(-2)  # of a row-major 3 x 2 matrix a joint
        boxes = torch.stack([self.bbox_embed[layer](states[layer]).float() for layer in layers])
        off_centre = 2 * (camera[:, :2, 2] - middle) / self.side
        weak = self.cam_head(states).float()
        transl = metric_translation(weak, focal[:, None], off_centre[:, None], self.side)
        return {
            "confs": self.conf_head(states).float().sigmoid().squeeze(-1),
            "boxes": (boxes + inverse_sigmoid(references)).sigmoid(),
            "poses": matrix_to_axis_angle(matrix_from_6d(columns)).flatten(-2),
            "betas": betas,
            "transl": transl,
            "depths": torch.stack([transl[..., 2], transl[..., 2] / focal[:, None]], dim=-1),
        }

    def _project(self, number: int, patches: Tensor) -> Tensor:
        """(n, 3, 14, 14) -> (n, C)."""
        projection: Any = self.encoder_patch_proj[number]
        return functional.linear(patches.flatten(1), projection.weight.flatten(1), projection.bias)

    def _start(self) -> None:
        """First values, as published: boxes do not move, confidences are low, the field of view is about 30 degrees."""
        for name, weight in self.decoder["decoder"].named_parameters():
            if weight.dim() > 1 and not name.startswith("bbox_embed"):
                nn.init.xavier_uniform_(weight)
        for head in self.bbox_embed:
            nn.init.zeros_(head.layers[-1].weight)
            nn.init.zeros_(head.layers[-1].bias)
        nn.init.constant_(self.conf_head.bias, math.log(_FIRST_CONFIDENCE / (1 - _FIRST_CONFIDENCE)))
        if self.sizes.camera:
            nn.init.xavier_uniform_(self.get_parameter("fov_head.layers.3.weight"), gain=0.1)
            nn.init.constant_(self.get_parameter("fov_head.layers.3.bias"), math.pi / 6)


def with_joints(
    predictions: Predictions, body: BodyModel, regressor: Tensor | None = None, with_all: bool = False
) -> Predictions:
    """The predictions with the joints of their bodies and their places in the image.

    smplx's 45; with a regressor (2, V) of head top and neck RelativeHuman's 14, or (`with_all`) the two after the 45.
    """
    betas = functional.pad(predictions.betas, (0, 11 - predictions.betas.shape[-1]))
    people = (predictions.poses, betas, predictions.transl)
    joints = body.learnt_joints(*people, regressor)
    if with_all:
        joints = torch.cat([body.learnt_joints(*people), joints[..., -2:, :]], dim=-2)
    seen = joints @ predictions.intrinsics.transpose(-1, -2)[None, :, None]
    known = predictions.known and with_joints(predictions.known, body, regressor, with_all)
    return replace(predictions, j3ds=joints, j2ds=seen[..., :2] / (seen[..., 2:] + 1e-6), known=known)


def shrink_positions(grid: Tensor) -> Tensor:
    """(n, n, C) of 14 px tokens -> (n / 2, n / 2, C) of 28 px cells, bicubic."""
    planes, side = grid.permute(2, 0, 1)[None], len(grid) // 2
    return functional.interpolate(planes, (side, side), mode="bicubic", align_corners=False)[0].permute(1, 2, 0)


def metric_translation(weak: Tensor, focal: Tensor, off_centre: Tensor, side: int) -> Tensor:
    """Metres from weak perspective: sigma = 2 sigmoid(s) + 1e-6, T = (tx / sigma, ty / sigma, 2 f / (sigma S)).

    `weak`: (..., 3) tx, ty, s: a metre at the person is sigma S / 2 px, (tx, ty) is the place of the body's origin;
    `focal`: (...) f [px]; `off_centre`: (..., 2) of the principal point from the image's middle, in S / 2.
    """
    sigma = 2 * weak[..., 2:].sigmoid() + 1e-6
    return torch.cat([(weak[..., :2] - off_centre) / sigma, 2 * focal[..., None] / (sigma * side)], dim=-1)


def _cells_of(image: Tensor) -> Tensor:
    """(3, h, w) uint8, black at the right and bottom up to multiples of 56 px, normalised -> (n, 3, 28, 28) cells."""
    down, right = (-side % GROUP for side in image.shape[1:])
    mean, scale = (constant(of, image.device, torch.float32).view(3, 1, 1) for of in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = (functional.pad(image, (0, right, 0, down)).float() / 255 - mean) / scale
    grid = pixels.unflatten(-1, (-1, CELL)).unflatten(-3, (-1, CELL)).permute(1, 3, 0, 2, 4)
    return grid[blocks.z_order(*grid.shape[:2], image.device)]


def _run(stack: nn.ModuleList, tokens: Tensor, image: Tensor, classes: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Tokens (T, C) of images and their class tokens (B, C) through blocks, each image by itself."""
    rows, real = pad_rows(tokens, image, len(classes), longest)
    rows = torch.cat([classes[:, None].to(rows.dtype), rows], dim=1)
    real = torch.cat([real.new_ones(len(classes), 1), real], dim=1)
    for block in stack:
        rows = block(rows, real)
    return rows[image, 1 + blocks.number_within(image, len(classes))], rows[:, 0]
