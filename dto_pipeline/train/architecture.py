"""The sizes of a network: told by a config, or read off the shapes of a file's weights. Knows no file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dto_pipeline.errors import DtoError

PATCH, CELL, GROUP = 14, 28, 56  # sides of tokens of level 0, 1 and 2 [px]
DECODER_HEADS = 4  # of the published network, whatever its width
_HEAD_WIDTH = 64  # features of an encoder's head, in every DINOv2
_MOST = {"encoder_layers": 64, "additional": 16, "decoder_layers": 24, "encoder_width": 4096, "width": 4096}
_MOST |= {"encoder_hidden": 16384, "hidden": 16384, "queries": 2000, "input_size": 5600}


class ArchitectureError(DtoError, ValueError):
    """Sizes that make no network."""


@dataclass(frozen=True)
class Architecture:
    """All that decides names and shapes of the weights; defaults are those published."""

    input_size: int = 1288  # S, the long side of an image [px]
    encoder_width: int = 768
    encoder_heads: int = 12
    encoder_layers: int = 12
    encoder_hidden: int = 3072
    additional: int = 3  # blocks that read the scale map; as many of the encoder's own see the small tokens
    width: int = 768
    heads: int = DECODER_HEADS
    decoder_layers: int = 6
    hidden: int = 2048
    queries: int = 50
    betas: int = 11  # shape coefficients, 11 with the kid axis
    camera: bool = True  # a branch that says the field of view
    denoising: bool = False  # has the weights for denoising queries

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            found, wanted = getattr(self, field.name), type(field.default)
            if type(found) is not wanted:
                raise ArchitectureError(f"{field.name} is {found!r:.80}; expected {wanted.__name__}")
        for name, most in _MOST.items():
            found = getattr(self, name)
            least = 0 if name == "additional" else 1
            if not least <= found <= most:
                raise ArchitectureError(f"{name} is {found}; expected {least} .. {most}")
        for name in ("heads", "encoder_heads"):
            if getattr(self, name) < 1:
                raise ArchitectureError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.encoder_width % self.encoder_heads or self.width % self.heads or self.width % 4:
            raise ArchitectureError(
                f"widths {self.encoder_width} and {self.width} are no multiples of their heads "
                f"({self.encoder_heads} and {self.heads}), or the second none of 4"
            )
        if self.input_size % GROUP:
            raise ArchitectureError(f"the input size is {self.input_size}; expected a multiple of {GROUP} px")
        if self.additional >= self.encoder_layers:
            raise ArchitectureError(
                f"{self.encoder_layers} encoder layers are too few; expected over {self.additional}"
            )
        if self.betas not in (10, 11):
            raise ArchitectureError(f"{self.betas} shape coefficients; expected 10 or 11")

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready."""
        return dataclasses.asdict(self)


def read_architecture(shapes: Mapping[str, tuple[int, ...]], encoder_heads: int | None = None) -> Architecture:
    """The network that weights of these names and shapes are of.

    Args:
        shapes: by name, in the published layout.
        encoder_heads: not told by shapes; None = one per 64 features, as in every DINOv2.

    Raises:
        ArchitectureError: something is missing, or sizes make no network.
    """

    def size(name: str, axis: int) -> int:
        if name not in shapes or len(shapes[name]) <= axis:
            raise ArchitectureError(f"lacks {name}; expected the weights of an MA-HMR network (pytorch_model.bin)")
        return shapes[name][axis]

    width = size("encoder.norm.weight", 0)
    return Architecture(
        input_size=size("encoder_pos_embeds", 0) * PATCH,
        encoder_width=width,
        encoder_heads=encoder_heads or max(1, width // _HEAD_WIDTH),
        encoder_layers=_count(shapes, r"encoder\.blocks\.(\d+)\."),
        encoder_hidden=size("encoder.blocks.0.mlp.fc1.weight", 0),
        additional=_count(shapes, r"encoder\.additional_blocks\.(\d+)\."),
        width=size("feature_proj.weight", 0),
        decoder_layers=_count(shapes, r"decoder\.decoder\.layers\.(\d+)\."),
        hidden=size("decoder.decoder.layers.0.linear1.weight", 0),
        queries=size("tgt_embed.weight", 0),
        betas=size("mean_shape", 0),
        camera=any(name.startswith("fov_head.") for name in shapes),
        denoising="dn_enc.weight" in shapes,
    )


def _count(names: Iterable[str], pattern: str) -> int:
    found = [int(match[1]) for name in names if (match := re.match(pattern, name)) and len(match[1]) < 4]
    return max(found, default=-1) + 1
