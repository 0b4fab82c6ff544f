"""Parts of the network: perceptrons, encoder blocks, decoder layers, the sine code, rows of unequal length, tokens.

Names of weights are those of the published files (`state_dict.csv` of the recorded cases), shapes stand at every door:
B images, N tokens of the longest image, Q queries, C and D widths of encoder and decoder. Knows no people.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dto_pipeline.train.config import CELL

TEMPERATURE = 20.0  # of the sine code
CONFIDENT = 0.3  # cells and queries from this confidence on show a person
SMALL = 0.5  # cells of smaller scale are looked at more closely
QUARTERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # y, x of the four patches of a cell
_ENCODER_EPS, _DECODER_EPS = 1e-6, 1e-5  # of the norms


class Mlp(nn.Module):
    """Linear layers of the given widths with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    @property
    def last(self) -> nn.Linear:
        """The layer whose outputs are the perceptron's."""
        return self.layers[-1]  # type: ignore[return-value]

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            values = layer(values).relu()
        return self.layers[-1](values)


class Attention(nn.Module):
    """Self-attention of an encoder block; rows of `qkv` are thirds: queries, keys, values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """tokens (B, N, C), real (B, N) bool: only these are looked at."""
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(tokens).chunk(3, dim=-1))
        return self.proj(attend(query, key, value, real[:, None, None]))


class FeedForward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(functional.gelu(self.fc1(tokens)))


class LayerScale(nn.Module):
    """A learnt factor for each feature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.gamma * tokens


class Block(nn.Module):
    """One block of a DINOv2: pre-norm attention and perceptron, both scaled by learnt factors."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = encoder_norm(width), encoder_norm(width)
        self.attn, self.mlp = Attention(width, heads), FeedForward(width, hidden)
        self.ls1, self.ls2 = LayerScale(width), LayerScale(width)

    def forward(self, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """tokens (B, N, C), real (B, N) bool."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens), real))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class Blocks(nn.Module):
    """The encoder's blocks: those of a DINOv2, and the additional ones that read the scale map."""

    def __init__(self, width: int, heads: int, layers: int, additional: int, hidden: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.additional_blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(additional))
        self.norm = encoder_norm(width)


class DecoderLayer(nn.Module):
    """Queries look at each other, then at the memory around their boxes (Conditional and DAB-DETR), pre-norm."""

    def __init__(self, width: int, heads: int, hidden: int, first: bool) -> None:
        super().__init__()
        self.heads, self.is_first = heads, first
        square = (nn.Linear(width, width) for _ in range(13))
        self.sa_qcontent_proj, self.sa_qpos_proj, self.sa_kcontent_proj = next(square), next(square), next(square)
        self.sa_kpos_proj, self.sa_v_proj, self.sa_out_proj = next(square), next(square), next(square)
        self.ca_qcontent_proj, self.ca_kcontent_proj, self.ca_kpos_proj = next(square), next(square), next(square)
        self.ca_v_proj, self.ca_qpos_sine_proj, self.ca_out_proj = next(square), next(square), next(square)
        if first:
            self.ca_qpos_proj = next(square)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width, eps=_DECODER_EPS) for _ in range(3))

    def forward(
        self, content: torch.Tensor, place: torch.Tensor, sine: torch.Tensor, memory: torch.Tensor,
        memory_place: torch.Tensor, real: torch.Tensor, may_see: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        """
        Args:
            content, place, sine: (B, Q, D) t, p and g of the queries.
            memory, memory_place: (B, N, D).
            real: (B, N) bool, tokens that are no padding.
            may_see: (Q, Q) bool, rows = who looks; None = everybody sees everybody.

        Returns:
            (B, Q, D) t.
        """
        seen = self.norm1(content)
        query = self.sa_qcontent_proj(seen) + self.sa_qpos_proj(place)
        key = self.sa_kcontent_proj(seen) + self.sa_kpos_proj(place)
        query, key, value = (split_heads(part, self.heads) for part in (query, key, self.sa_v_proj(seen)))
        content = content + self.sa_out_proj(attend(query, key, value, may_see))

        seen = self.norm2(content)
        query, key = self.ca_qcontent_proj(seen), self.ca_kcontent_proj(memory)
        key_place = self.ca_kpos_proj(memory_place)
        if self.is_first:
            query, key = query + self.ca_qpos_proj(place), key + key_place
        query, key = self._join(query, self.ca_qpos_sine_proj(sine)), self._join(key, key_place)
        value = split_heads(self.ca_v_proj(memory), self.heads)
        content = content + self.ca_out_proj(attend(query, key, value, real[:, None, None]))
        return content + self.linear2(self.linear1(self.norm3(content)).relu())

    def _join(self, content: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Two (B, n, D) -> (B, heads, n, 2 D / heads), content before place in every head."""
        return torch.cat([split_heads(content, self.heads), split_heads(place, self.heads)], dim=-1)


class DecoderStack(nn.Module):
    """The decoder's weights; `MeshNetwork` says how they are used."""

    def __init__(self, width: int, heads: int, hidden: int, layers: int, boxes: nn.ModuleList) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, hidden, layer == 0) for layer in range(layers))
        self.norm = nn.LayerNorm(width, eps=_DECODER_EPS)
        self.query_scale = Mlp(width, width, width)
        self.ref_point_head = Mlp(2 * width, width, width)
        self.ref_anchor_head = Mlp(width, width, 2)
        self.bbox_embed = boxes  # the same modules as the network's: published files hold them twice


def encoder_norm(width: int) -> nn.LayerNorm:
    """A norm as the encoder has it."""
    return nn.LayerNorm(width, eps=_ENCODER_EPS)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(B, heads, n, d) each -> (B, n, heads * d); scaled by 1 / sqrt(d of the queries)."""
    return functional.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(-2)


def split_heads(values: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, n, C) -> (B, heads, n, C / heads)."""
    return values.unflatten(-1, (heads, -1)).transpose(1, 2)


def sine_code(xy: torch.Tensor, width: int) -> torch.Tensor:
    """Code of a place: (..., 2) x, y in [0, 1] -> (..., width) [code of y, code of x].

    For n = width / 2 features of a coordinate v: phase 2 pi v / 20^(2 floor(k / 2) / n), even k sine, odd k cosine.
    """
    k = torch.arange(width // 2, device=xy.device)
    wave = TEMPERATURE ** (2 * torch.div(k, 2, rounding_mode="floor").to(torch.float32) / (width // 2))
    phase = xy.flip(-1)[..., None].float() * (2 * math.pi) / wave
    return torch.where(k % 2 == 0, phase.sin(), phase.cos()).flatten(-2)


def number_within(image: torch.Tensor, count: int) -> torch.Tensor:
    """(T,) of rows that lie image after image, `image` (T,) ascending of `count`: which row of its image each is."""
    starts = torch.searchsorted(image, torch.arange(count, device=image.device))
    return torch.arange(len(image), device=image.device) - starts[image]


def pad_rows(
    values: torch.Tensor, image: torch.Tensor, count: int, longest: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of B images one after the other -> a row of the longest for each image.

    Args:
        values: (T, ...) of all images; image: (T,) ascending; count: B.
        longest: N, rows of the longest; None = asked for, which a GPU waits for.

    Returns:
        (B, N, ...), 0 where there is nothing, and (B, N) bool where there is something.
    """
    place = image, number_within(image, count)
    if longest is None:
        longest = int(place[1].max()) + 1 if len(image) else 0
    padded = values.new_zeros(count, longest, *values.shape[1:]).index_put(place, values)
    real = torch.zeros(count, longest, dtype=torch.bool, device=image.device)
    return padded, real.index_put(place, real.new_ones(()))


def image_numbers(lengths: Sequence[int], device: torch.device | None = None) -> torch.Tensor:
    """(T,) which image each row belongs to."""
    return torch.cat([torch.full((length,), number, device=device) for number, length in enumerate(lengths)])


@dataclass(frozen=True)
class Cells:
    """T cells of 28 px of B images, image after image, each in Z-order: a group of 2 x 2 is four rows in a row."""

    image: torch.Tensor  # (T,) int64
    y: torch.Tensor  # (T,) int64 row
    x: torch.Tensor
    lengths: list[int]  # cells of each image


@dataclass(frozen=True)
class Choice:
    """What becomes of the cells."""

    small: torch.Tensor  # (T,) bool, replaced by four finer tokens
    kept: torch.Tensor  # (T,) bool, stay
    background: torch.Tensor  # (T,) bool, four of a group become one

    def list_by_level(self, lengths: list[int]) -> tuple[list[torch.Tensor], int, int]:
        """Rows of cells that are small, that stay, and that are the first of a group of background; then how many small
        tokens, and tokens of all levels, an image has at most. `lengths`: cells of each image. A GPU waits twice."""
        first = torch.arange(len(self.kept), device=self.kept.device) % 4 == 0
        masks = torch.stack([self.small, self.kept, self.background & first])
        counts = np.array(torch.stack([part.sum(1) for part in masks.split(lengths, dim=1)]).tolist())  # (B, 3)
        cells = masks.nonzero()[:, 1].split(counts.sum(0).tolist())
        tokens = counts * (len(QUARTERS), 1, 1)
        return list(cells), int(tokens[:, 0].max()), int(tokens.sum(1).max())


def list_cells(sizes: Sequence[tuple[int, int]], device: torch.device | None = None) -> Cells:
    """Cells of images of (height, width) px, both multiples of 56."""
    grids = [z_order(height // CELL, width // CELL, device) for height, width in sizes]
    y, x = (torch.cat([grid[axis] for grid in grids]) for axis in (0, 1))
    lengths = [len(y) for y, _ in grids]
    return Cells(image_numbers(lengths, device), y, x, lengths)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # or nothing that learns could use it
def z_order(rows: int, columns: int, device: torch.device | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns (n,) of a grid's cells in Z-order: bits of x at even places of the key, of y at odd ones."""
    sides = (torch.arange(side, device=device) for side in (rows, columns))
    y, x = (part.flatten() for part in torch.meshgrid(*sides, indexing="ij"))
    key = sum(((x >> bit & 1) << 2 * bit) + ((y >> bit & 1) << 2 * bit + 1) for bit in range(16))
    order = torch.argsort(torch.as_tensor(key))
    return y[order], x[order]


def choose_tokens(scale_map: torch.Tensor, by_image: bool, limits: tuple[float, float]) -> Choice:
    """Refine, keep or merge.

    Args:
        scale_map: (T, 2) confidence and scale of the cells.
        by_image: an image never depends on its neighbours. False: as published, where no image of the batch has any
            background, small cells stay beside the finer ones that replace them.
        limits: of confidence and scale, see `CONFIDENT` and `SMALL`.
    """
    confident = scale_map[:, 0] > limits[0]
    small = confident & (scale_map[:, 1] < limits[1])
    valid = confident.view(-1, 4).any(-1).repeat_interleave(4)
    kept = valid & ~small
    if not by_image:
        kept = kept | valid.all()
    return Choice(small, kept, ~valid)
