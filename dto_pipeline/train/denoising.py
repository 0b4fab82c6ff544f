"""Denoising queries: people of the labels, made wrong on purpose, that the decoder learns to put right (stage 1).

G groups of 2 P slots stand before the queries of their own, P being the most people of an image: P near their people
("positive"), then P farther away ("negative"); person k of an image stands at 2 P g + k and at 2 P g + P + k.
Pure tensors and a random generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from dto_pipeline.train.blocks import number_within

BOX_NOISE, CONTENT_NOISE = 0.4, 0.2  # of half a box's side; of pose [rad] and shape


@dataclass(frozen=True)
class Known:
    """The N people of B images."""

    image: torch.Tensor  # (N,) int64 ascending
    images: int  # B
    boxes: torch.Tensor  # (N, 4) cx, cy, w, h as shares of S
    body: torch.Tensor  # (N, 82) pose and betas
    groups: int  # G

    @cached_property
    def most(self) -> int:
        """P; a GPU waits for it once."""
        return int(number_within(self.image, self.images).max()) + 1 if len(self.image) else 0

    def slots(self, negative: bool) -> torch.Tensor:
        """(G, N) where each person stands in each group."""
        group = torch.arange(self.groups, device=self.image.device)[:, None]
        return 2 * self.most * group + self.most * negative + number_within(self.image, self.images)


@dataclass(frozen=True)
class Noise:
    """What chance gives, rows [all positive, all negative] x G; `sign` in -1, 1, `size` in [0, 1)."""

    box_sign: torch.Tensor  # (2 N G, 4)
    box_size: torch.Tensor
    body_sign: torch.Tensor  # (2 N G, 82)
    body_size: torch.Tensor


def draw_noise(known: Known) -> Noise:
    """From torch's global generator, in the order of the fields."""
    rows, drawn = 2 * len(known.image) * known.groups, []
    for width in (4, known.body.shape[-1]):
        drawn.append(torch.randint(0, 2, (rows, width), device=known.boxes.device).float() * 2 - 1)
        drawn.append(torch.rand(rows, width, device=known.boxes.device))
    return Noise(*drawn)


def noisy_queries(known: Known, noise: Noise, encode: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Content (B, 2 P G, D) and box logits (B, 2 P G, 4) of the slots; 0 where nobody stands."""
    people, times = len(known.image), 2 * known.groups
    slots = torch.stack([known.slots(negative=False), known.slots(negative=True)], dim=1).flatten()
    image, count = known.image.repeat(times), times * known.most
    negative = (torch.arange(times, device=image.device) % 2 == 1).repeat_interleave(people)[:, None]
    centre, half = known.boxes[:, :2], known.boxes[:, 2:] / 2
    corners = torch.cat([centre - half, centre + half], dim=-1).repeat(times, 1)
    reach = half.repeat(times, 2) * BOX_NOISE
    corners = (corners + noise.box_sign * (noise.box_size + negative) * reach).clamp(0, 1)
    boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=-1)
    body = known.body.repeat(times, 1) + noise.body_sign * (noise.body_size + negative) * CONTENT_NOISE
    encoded = encode(body)
    content = encoded.new_zeros(known.images, count, encoded.shape[-1]).index_put((image, slots), encoded)
    return content, boxes.new_zeros(known.images, count, 4).index_put((image, slots), inverse_sigmoid(boxes))


def allowed_pairs(known: Known, queries: int) -> torch.Tensor:
    """(n, n) bool, rows look at columns, n = 2 P G + Q: slots at their group and all queries, queries at queries."""
    slots = 2 * known.most * known.groups
    group = torch.arange(slots + queries, device=known.image.device) // max(1, 2 * known.most)
    group[slots:].fill_(-1)
    return (group[:, None] == group) | (group == -1)


def inverse_sigmoid(share: torch.Tensor) -> torch.Tensor:
    """ln(max(x, 1e-5) / max(1 - x, 1e-5)), x clipped to [0, 1]."""
    share = share.clamp(0, 1)
    return (share.clamp(min=1e-5) / (1 - share).clamp(min=1e-5)).log()
