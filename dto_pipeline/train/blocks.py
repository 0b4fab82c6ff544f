"""Parts of the network: perceptrons, encoder blocks, decoder layers, the sine code, tokens, denoising queries.

B images, N tokens of the longest, Q queries, C and D widths of encoder and decoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

TEMPERATURE = 20.0  # of the sine code
CONFIDENT = 0.3  # least confidence of cells and queries that show a person
SMALL = 0.5  # cells of smaller scale become finer tokens
QUARTERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # y, x of the four patches of a cell
BOX_NOISE, CONTENT_NOISE = 0.4, 0.2  # of denoising queries: of half a box's side; of pose [rad] and shape
ENCODER_EPS, DECODER_EPS = 1e-6, 1e-5  # of the norms
# random numbers of denoising queries, rows [all positive, all negative] x G: signs -1 or 1 and sizes in [0, 1), of
# boxes (2 N G, 4), then the same of bodies (2 N G, 82)
Noise = tuple[Tensor, Tensor, Tensor, Tensor]


class Mlp(nn.Module):
    """Linear layers of the given widths with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, values: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            values = layer(values).relu()
        return self.layers[-1](values)


class Block(nn.Module):
    """One block of a DINOv2: pre-norm attention and perceptron, both scaled by learnt factors."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=ENCODER_EPS) for _ in range(2))
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": nn.Parameter(torch.ones(width))}) for _ in range(2))

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        """tokens (B, N, C), real (B, N) bool: no padding."""
        query, key, value = self.attn["qkv"](self.norm1(tokens)).chunk(3, dim=-1)
        attended = attend(query, key, value, self.heads, real[:, None, None])
        tokens = tokens + self.ls1["gamma"] * self.attn["proj"](attended)
        hidden = functional.gelu(self.mlp["fc1"](self.norm2(tokens)))
        return tokens + self.ls2["gamma"] * self.mlp["fc2"](hidden)


class DecoderLayer(nn.ModuleDict):
    """Self-attention of queries, then attention to the memory around their boxes (Conditional, DAB-DETR), pre-norm."""

    def __init__(self, width: int, heads: int, hidden: int, first: bool) -> None:
        own = ("qcontent", "qpos", "kcontent", "kpos", "v", "out")
        memory = ("qcontent", "kcontent", "kpos", "v", "qpos_sine", "out", *(["qpos"] if first else []))
        names = [f"{kind}_{name}_proj" for kind, parts in {"sa": own, "ca": memory}.items() for name in parts]
        super().__init__({name: nn.Linear(width, width) for name in names})
        self.update({"linear1": nn.Linear(width, hidden), "linear2": nn.Linear(hidden, width)})
        self.update({f"norm{number}": nn.LayerNorm(width, eps=DECODER_EPS) for number in (1, 2, 3)})
        self.heads, self.is_first = heads, first

    def forward(
        self, content: Tensor, place: Tensor, sine: Tensor, memory: Tensor,
        memory_place: Tensor, real: Tensor, may_see: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """t, p and g (B, Q, D) of the queries, memory and its places (B, N, D), `real` (B, N) bool: no padding,
        `may_see` (Q, Q) bool, rows attend to columns, None = all to all -> t (B, Q, D)."""
        # u = norm1(t), q = Wqc u + Wqp p, k = Wkc u + Wkp p, v = Wv u
        seen = self["norm1"](content)
        query = self["sa_qcontent_proj"](seen) + self["sa_qpos_proj"](place)
        key = self["sa_kcontent_proj"](seen) + self["sa_kpos_proj"](place)
        content = content + self["sa_out_proj"](attend(query, key, self["sa_v_proj"](seen), self.heads, may_see))

        # u = norm2(t), in every head q = [Wqc u, Wsine g], k = [Wkc memory, Wkp pos]; + Wqp p, + Wkp pos in layer 0
        query, key = self["ca_qcontent_proj"](self["norm2"](content)), self["ca_kcontent_proj"](memory)
        key_place = self["ca_kpos_proj"](memory_place)
        if self.is_first:
            query, key = query + self["ca_qpos_proj"](place), key + key_place
        pairs = (query, self["ca_qpos_sine_proj"](sine)), (key, key_place)
        query, key = (
            torch.cat([part.unflatten(-1, (self.heads, -1)) for part in pair], -1).flatten(-2) for pair in pairs
        )
        attended = attend(query, key, self["ca_v_proj"](memory), self.heads, real[:, None, None])
        content = content + self["ca_out_proj"](attended)
        return content + self["linear2"](self["linear1"](self["norm3"](content)).relu())


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """(B, n, heads * d) each -> (B, n, heads * d of the values); scaled by 1 / sqrt(d of the queries)."""
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(-2)


def sine_code(xy: Tensor, width: int) -> Tensor:
    """Code of a place: (..., 2) x, y in [0, 1] -> (..., width) [code of y, code of x].

    For n = width / 2 features of a coordinate v: phase 2 pi v / 20^(2 floor(k / 2) / n), even k sine, odd k cosine.
    """
    k = torch.arange(width // 2, device=xy.device)
    wave = TEMPERATURE ** (2 * (k // 2) / (width // 2))
    phase = xy.flip(-1)[..., None].float() * (2 * math.pi) / wave
    return torch.where(k % 2 == 0, phase.sin(), phase.cos()).flatten(-2)


def inverse_sigmoid(share: Tensor) -> Tensor:
    """ln(max(x, 1e-5) / max(1 - x, 1e-5)), x clipped to [0, 1]."""
    share = share.clamp(0, 1)
    return (share.clamp(min=1e-5) / (1 - share).clamp(min=1e-5)).log()


def corners(centred: Tensor) -> Tensor:
    """(..., 4) cx, cy, w, h -> left, top, right, bottom."""
    centre, half = centred[..., :2], centred[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def number_within(image: Tensor, count: int) -> Tensor:
    """(T,) number of each row within its image, `image` (T,) ascending of `count` images."""
    starts = torch.searchsorted(image, torch.arange(count, device=image.device))
    return torch.arange(len(image), device=image.device) - starts[image]


def pad_rows(values: Tensor, image: Tensor, count: int, longest: int) -> tuple[Tensor, Tensor]:
    """Rows (T, ...) of B images one after the other, `image` (T,) ascending -> (B, N, ...) padded with 0, and (B, N)
    bool where there is no padding; N is `longest`, the most rows of an image."""
    place = image, number_within(image, count)
    padded = values.new_zeros(count, longest, *values.shape[1:]).index_put(place, values)
    real = torch.zeros(count, longest, dtype=torch.bool, device=image.device)
    return padded, real.index_put(place, real.new_ones(()))


def image_numbers(lengths: Sequence[int], device: torch.device | None = None) -> Tensor:
    """(T,) image of each row."""
    return torch.cat([torch.full((length,), number, device=device) for number, length in enumerate(lengths)])


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # the cached tensors are also used in training
def z_order(rows: int, columns: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Rows and columns (n,) of a grid's cells in Z-order: bits of x at even places of the key, of y at odd ones."""
    sides = (torch.arange(side, device=device) for side in (rows, columns))
    y, x = (part.flatten() for part in torch.meshgrid(*sides, indexing="ij"))
    key = sum(((x >> bit & 1) << 2 * bit) + ((y >> bit & 1) << 2 * bit + 1) for bit in range(16))
    order = torch.argsort(torch.as_tensor(key))
    return y[order], x[order]


def choose_tokens(scale_map: Tensor, by_image: bool, limits: tuple[float, float]) -> Tensor:
    """(3, T) bool: cells that become four finer tokens (small), that stay, and that are merged with their group
    (background), by their confidence and scale (T, 2) and the limits of these, see `CONFIDENT` and `SMALL`.

    `by_image`: an image does not depend on others. False: as published, where small cells also stay if no image of the
    batch has any background.
    """
    confident = scale_map[:, 0] > limits[0]
    small = confident & (scale_map[:, 1] < limits[1])
    valid = confident.view(-1, 4).any(-1).repeat_interleave(4)
    kept = valid & ~small
    if not by_image:
        kept = kept | valid.all()
    return torch.stack([small, kept, ~valid])


def list_by_level(chosen: Tensor, lengths: list[int]) -> tuple[list[Tensor], int, int]:
    """Cells of each level (of background the first of each group); the most small tokens of an image; and the most
    tokens of all levels of an image. `lengths`: cells of each image. A GPU waits twice."""
    first = torch.arange(chosen.shape[1], device=chosen.device) % 4 == 0
    masks = chosen & torch.stack([torch.ones_like(first), torch.ones_like(first), first])
    counts = np.array(torch.stack([part.sum(1) for part in masks.split(lengths, dim=1)]).tolist())  # (B, 3)
    cells = masks.nonzero()[:, 1].split(counts.sum(0).tolist())
    tokens = counts * (len(QUARTERS), 1, 1)
    return list(cells), int(tokens[:, 0].max()), int(tokens.sum(1).max())


@dataclass(frozen=True)
class Known:
    """The N people of B images that denoising queries start from (stage 1): noise is added to them, and the network
    learns to remove it. G groups of 2 P slots come before the queries, where P is the most people of an image. In group
    g person k of an image has the slot 2 P g + k with little noise ("positive"), and 2 P g + P + k with more
    ("negative")."""

    image: Tensor  # (N,) int64 ascending
    images: int  # B
    boxes: Tensor  # (N, 4) cx, cy, w, h as shares of S
    body: Tensor  # (N, 82) pose and betas
    groups: int  # G

    @cached_property
    def most(self) -> int:
        """P. A GPU waits for it once."""
        return int(number_within(self.image, self.images).max()) + 1 if len(self.image) else 0

    def slots(self, negative: bool) -> Tensor:
        """(G, N) slot of each person in each group."""
        group = torch.arange(self.groups, device=self.image.device)[:, None]
        return 2 * self.most * group + self.most * negative + number_within(self.image, self.images)


def noisy_queries(known: Known, encode: nn.Module, noise: Noise | None) -> tuple[Tensor, Tensor]:
    """Content (B, 2 P G, D) and box logits (B, 2 P G, 4) of the slots, 0 where empty. `noise`: None = random."""
    people, times = len(known.image), 2 * known.groups
    drawn = list(noise or ())
    for width in (4, known.body.shape[-1]) if noise is None else ():  # from torch's global generator, in this order
        drawn.append(torch.randint(0, 2, (people * times, width), device=known.boxes.device).float() * 2 - 1)
        drawn.append(torch.rand(people * times, width, device=known.boxes.device))
    box_sign, box_size, body_sign, body_size = drawn
    slots = torch.stack([known.slots(negative=False), known.slots(negative=True)], dim=1).flatten()
    image, count = known.image.repeat(times), times * known.most
    negative = (torch.arange(times, device=image.device) % 2 == 1).repeat_interleave(people)[:, None]
    reach = known.boxes[:, 2:].repeat(times, 2) / 2 * BOX_NOISE
    moved = (corners(known.boxes).repeat(times, 1) + box_sign * (box_size + negative) * reach).clamp(0, 1)
    boxes = torch.cat([(moved[:, :2] + moved[:, 2:]) / 2, moved[:, 2:] - moved[:, :2]], dim=-1)
    encoded = encode(known.body.repeat(times, 1) + body_sign * (body_size + negative) * CONTENT_NOISE)
    content = encoded.new_zeros(known.images, count, encoded.shape[-1]).index_put((image, slots), encoded)
    return content, boxes.new_zeros(known.images, count, 4).index_put((image, slots), inverse_sigmoid(boxes))


def allowed_pairs(known: Known, queries: int) -> Tensor:
    """(n, n) bool, rows attend to columns, n = 2 P G + Q: slots to their group and all queries, queries to queries."""
    slots = 2 * known.most * known.groups
    group = torch.arange(slots + queries, device=known.image.device) // max(1, 2 * known.most)
    group[slots:].fill_(-1)
    return (group[:, None] == group) | (group == -1)
