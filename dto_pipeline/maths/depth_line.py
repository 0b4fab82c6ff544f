"""The two ways relative depth may become metres, in one form: affine in depth, or affine in inverse depth.

Pure tensors. With d the depth of a person over the scene's typical depth, both lines have a distance of `scale` at
d = 1 and a `share` m that is 1 where the map has no offset:

* affine in depth (arXiv 2511.13282): z = scale * (1 + m (d - 1));
* affine in inverse depth (what the networks are trained for): 1 / z = (1 + m (1 / d - 1)) / scale.

At m = 1 they are the same, z = scale * d.
"""

from __future__ import annotations

import torch

AFFINE_DEPTH, AFFINE_DISPARITY = range(2)
DEPTH_MODELS = ("affine_depth", "affine_disparity")  # words for labels and `joint.depth_model`
_LEAST = 0.02  # of the bracket: a line may not turn distances negative


def log_distance(
    log_scale: torch.Tensor, share: torch.Tensor, log_depth: torch.Tensor, model: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithm of the distance on the line, and its elasticity d log z / d log depth.

    Args:
        log_scale, share: the line's two numbers; log_depth: of the relative depth over the typical one.
        model: int64, AFFINE_DEPTH or AFFINE_DISPARITY. All broadcast together.

    Returns:
        Two tensors of the broadcast shape: log z [log m], elasticity.
    """
    sign = torch.where(model == AFFINE_DEPTH, 1.0, -1.0).to(log_depth.dtype)
    ratio = (sign * log_depth).exp()
    bracket = (1 + share * (ratio - 1)).clamp(min=_LEAST)
    return log_scale + sign * bracket.log(), share * ratio / bracket


def line_coefficients(
    log_scale: torch.Tensor, share: torch.Tensor, typical_depth: torch.Tensor, model: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slope and offset of the line in its own terms.

    Returns:
        Affine in depth: alpha [m per depth unit] and beta [m] of z = alpha * depth + beta. Affine in inverse depth:
        p [1 / m per disparity unit] and q [1 / m] of 1 / z = p * disparity + q.
    """
    scale = log_scale.exp()
    direct = model == AFFINE_DEPTH
    slope = torch.where(direct, scale * share / typical_depth, share * typical_depth / scale)
    return slope, torch.where(direct, scale * (1 - share), (1 - share) / scale)
