"""Depth evidence: what one depth map can say about each person.

Pure tensors in, pure tensors out; never opens a file. All pixels of all people of a batch form one flat list, and
every statistic is a segment sum over it: no loop over people, rows or scenes. Lengths in metres, image positions in
pixels, depth = 1 / disparity. Follows arXiv 2511.13282 as implemented by its authors, row by row.

Two published numbers, `far_depth` and `default_alpha_min`, are in the unit of the published network. Maps of others are
brought to it image by image: a relative map's scale is its image's own, and people's labels tell it well enough (the
median of label z over depth). So results are the same for a map times any constant, however images are put together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dto_pipeline.axes import FAR, NEAR
from dto_pipeline.config import METRES_PER_DEPTH, EvidenceConfig
from dto_pipeline.maths.ordered import segment_sum
from dto_pipeline.scene import DepthEvidence, PersonMaps, PixelSamples, SceneBatch

_QUARTILES = (0.25, 0.75)
_ROUNDING = 1e-24  # of float64 means, squared; single-precision depths differ by (6e-8)^2 or not at all


def sample_pixels(maps: PersonMaps, batch: SceneBatch) -> PixelSamples:
    """Enlarge the person maps to the images by nearest neighbour and list every pixel of every person.

    Zeros of a disparity map are replaced by its smallest positive value first.
    """
    _, height, width = batch.disparity.shape
    _, map_height, map_width = maps.person.shape
    map_row = _nearest_index(height, batch.map_size[:, :1], batch.image_size[:, :1])  # (B, H), -1 = padding
    map_column = _nearest_index(width, batch.map_size[:, 1:], batch.image_size[:, 1:])  # (B, W)

    occupied = (maps.person >= 0).any(2).gather(1, map_row.clamp(min=0)) & (map_row >= 0)
    scene, row = occupied.nonzero(as_tuple=True)  # only image rows that hold anybody: skips sky and floor
    line_start = (scene * map_height + map_row[scene, row]) * map_width
    source = line_start[:, None] + map_column.clamp(min=0).index_select(0, scene)
    person = _pick(maps.person.reshape(-1), source).masked_fill_(map_column.index_select(0, scene) < 0, -1)
    line, column = (person >= 0).nonzero(as_tuple=True)

    scene, row = _pick(scene, line), _pick(row, line)
    value = _pick(batch.disparity.reshape(-1), (scene * height + row) * width + column)
    smallest = torch.where(batch.disparity > 0, batch.disparity, torch.inf).flatten(1).amin(1)
    return PixelSamples(
        owner=scene * batch.present.shape[1] + _pick(person.view(-1), line * width + column),
        row=row,
        depth=1.0 / torch.where(value > 0, value, _pick(smallest, scene)),
        z=_pick(maps.z.reshape(-1), _pick(source.view(-1), line * width + column)),
    )


def measure_depth_evidence(
    samples: PixelSamples, maps: PersonMaps, batch: SceneBatch, config: EvidenceConfig, unit: float | None = 1.0
) -> DepthEvidence:
    """Everything `DepthEvidence` holds, for all people of a batch at once.

    Args:
        samples: the pixels of every person; maps: for the visible vertices; batch: for image sizes, K and transl.
        unit: of relative maps, see `DepthEvidence.unit`; None = measured in each scene. Metric maps have the unit 1.
    """
    shape = batch.present.shape
    people = shape[0] * shape[1]
    least = batch.image_size.to(torch.float64).div(config.min_pixels_grid).prod(-1)
    least = least[:, None].expand(shape).reshape(-1)

    pixels = _count(samples.owner, people)
    big_enough = (pixels >= least) & (maps.visible_vertices.reshape(-1) >= config.min_visible_vertices)
    samples = _select(samples, _pick(big_enough, samples.owner))

    bounds = _outlier_bounds(samples, people, config.iqr_factor)
    depth = samples.depth.to(torch.float64)
    low, high = (_pick(bound, samples.owner) for bound in bounds.unbind(1))
    samples = _select(samples, (depth > low) & (depth < high))
    pixels_cut = _count(samples.owner, people)
    survives = big_enough & (pixels_cut >= least)
    samples = _select(samples, _pick(survives, samples.owner))

    line = _fit_internal_line(samples, people, int(batch.image_size[:, 0].max()))
    near_line = line.residual.abs() <= config.max_residual
    samples = _select(samples, near_line)
    pixels_fit = _count(samples.owner, people)
    ground_row = _row_percentile(samples, people, int(batch.image_size[:, 0].max()), config.ground_percentile)
    ground = _select(samples, samples.row >= _pick(ground_row, samples.owner))
    pixels_ground = _count(ground.owner, people)

    depth_mean, depth_std = _mean_and_std(samples.owner, samples.depth, people)
    depth_pair = torch.stack([depth_mean, _mean(ground.owner, ground.depth, people)], -1)
    z_pair = torch.stack([_mean(samples.owner, samples.z, people), _mean(ground.owner, ground.z, people)], -1)

    usable = survives & (pixels_fit > 0)
    cut = torch.where(big_enough, torch.where(usable, 0, 2), 1)
    cut = torch.where(batch.present.reshape(-1), cut, -1)
    reached = [
        torch.where(big_enough, pixels_cut, -1),
        *(torch.where(usable, n, -1) for n in (pixels_fit, pixels_ground)),
    ]
    nan = torch.nan
    keep = usable[:, None]
    units = _units(depth_mean, usable, batch, unit)
    evidence = DepthEvidence(
        depth=torch.where(keep, depth_pair, nan),
        z=torch.where(keep, z_pair, nan),
        depth_std=torch.where(usable, depth_std, nan),
        slope=torch.where(usable, line.slope, nan),
        corr=torch.where(usable, line.corr, nan),
        pixels=torch.stack([pixels, *reached], -1),
        bounds=torch.where(big_enough[:, None], bounds, nan),
        ground_row=torch.where(usable, ground_row, nan),
        usable=usable,
        cut=cut,
        group=torch.where(usable, _group(depth_mean, batch, config.far_depth / units, config.far_scale), -1),
        unit=units,
    )
    unflat = {name: value.view(*shape, *value.shape[1:]) for name, value in vars(evidence).items() if name != "unit"}
    return DepthEvidence(**unflat, unit=units)


@dataclass(frozen=True)
class _InternalLine:
    slope: torch.Tensor  # (people,) float64
    corr: torch.Tensor  # (people,) float64
    residual: torch.Tensor  # (n,) float64 [m]


def _fit_internal_line(samples: PixelSamples, people: int, height: int) -> _InternalLine:
    """Least squares z ~ slope * depth within each person after removing the mean of every image row.

    Row-centred values have mean zero per person, so slope = Sxy / Sxx and corr = Sxy / sqrt(Sxx Syy). A person whose
    depth does not vary along the rows has slope 0 and correlation 0.
    """
    segment, segments = samples.owner * height + samples.row, people * height
    depth = samples.depth.to(torch.float64)
    depth_squares = _sum(samples.owner, depth * depth, people)
    z = samples.z.to(torch.float64)
    depth = depth - _pick(_mean(segment, depth, segments), segment)
    z = z - _pick(_mean(segment, z, segments), segment)
    sxx, sxy, syy = (_sum(samples.owner, product, people) for product in (depth * depth, depth * z, z * z))
    varies = sxx > _ROUNDING * depth_squares
    slope = torch.where(varies, sxy / torch.where(varies, sxx, 1), 0)
    norm = torch.sqrt(sxx * syy)
    corr = torch.where(norm > 0, sxy / torch.where(norm > 0, norm, 1), 0)
    return _InternalLine(slope, corr, z - _pick(slope, samples.owner) * depth)


def _outlier_bounds(samples: PixelSamples, people: int, factor: float) -> torch.Tensor:
    """(people, 2) float64: max(Q1 - factor IQR, 0) and Q3 + factor IQR of each person's depth.

    Quartiles interpolate linearly between order statistics, in single precision as the published code does.
    """
    order = torch.sort((samples.owner << 32) | samples.depth.view(torch.int32).to(torch.int64)).values
    depth = (order & 0xFFFFFFFF).to(torch.int32).view(torch.float32)
    count = _count(samples.owner, people)
    start = torch.cumsum(count, 0) - count
    quartiles = [_order_statistic(depth, start, count, q) for q in _QUARTILES]
    reach = factor * (quartiles[1] - quartiles[0])
    return torch.stack([(quartiles[0] - reach).clamp(min=0), quartiles[1] + reach], -1).to(torch.float64)


def _order_statistic(ordered: torch.Tensor, start: torch.Tensor, count: torch.Tensor, quantile: float) -> torch.Tensor:
    """(people,) quantile of each run [start, start + count) of `ordered`; 0 where the run is empty."""
    if len(ordered) == 0:
        return torch.zeros_like(start, dtype=ordered.dtype)
    position = (count - 1).clamp(min=0).to(torch.float64) * quantile
    below = position.floor().to(torch.int64)
    above = torch.minimum(below + 1, (count - 1).clamp(min=0))
    last = len(ordered) - 1
    low = ordered[(start + below).clamp(max=last)]
    high = ordered[(start + above).clamp(max=last)]
    share = (position - below).to(ordered.dtype)
    step = high - low
    value = torch.where(share >= 0.5, high - step * (1 - share), low + step * share)
    return torch.where(count > 0, value, 0)


def _row_percentile(samples: PixelSamples, people: int, height: int, percentile: float) -> torch.Tensor:
    """(people,) float64 percentile of each person's pixel rows, from a histogram: rows are small integers."""
    histogram = torch.bincount(samples.owner * height + samples.row, minlength=people * height).view(people, height)
    cumulative = torch.cumsum(histogram, 1)
    count = cumulative[:, -1:]
    position = (count - 1).clamp(min=0).to(torch.float64) * (percentile / 100.0)
    below = position.floor().to(torch.int64)
    above = torch.minimum(below + 1, (count - 1).clamp(min=0))
    low = torch.searchsorted(cumulative, below, right=True).to(torch.float64)
    high = torch.searchsorted(cumulative, above, right=True).to(torch.float64)
    share = position - below
    return torch.where(share >= 0.5, high - (high - low) * (1 - share), low + (high - low) * share).squeeze(-1)


def _units(depth_mean: torch.Tensor, usable: torch.Tensor, batch: SceneBatch, told: float | None) -> torch.Tensor:
    """(B,) `DepthEvidence.unit`, where it is not told by the median of label z over depth."""
    if told is not None:
        return torch.where(batch.metric, 1.0, told).to(depth_mean)
    depth = torch.where(usable, depth_mean, torch.nan).view(batch.present.shape) * METRES_PER_DEPTH
    unit = (batch.transl[..., 2] / depth).nanquantile(0.5, 1)
    return torch.where(batch.metric | unit.isnan(), 1.0, unit)  # nobody measured: nobody is judged by it


def _group(depth_mean: torch.Tensor, batch: SceneBatch, far_depth: torch.Tensor, far_scale: float) -> torch.Tensor:
    """(people,) NEAR or FAR, from mean depth (`far_depth`: (B,)) and from how large the label is in the image."""
    shortest = batch.image_size.amin(-1).to(torch.float64)
    relative_size = 2 * batch.intrinsics[:, 1, 1, None] / (batch.transl[..., 2].to(torch.float64) * shortest[:, None])
    deep = depth_mean.view(relative_size.shape) > far_depth[:, None]
    return torch.where(deep | (relative_size < far_scale), FAR, NEAR).view(-1)


def _select(samples: PixelSamples, keep: torch.Tensor) -> PixelSamples:
    index = keep.nonzero().squeeze(-1)
    return PixelSamples(*(_pick(values, index) for values in vars(samples).values()))


def _pick(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`values[index]` of a list of values; a quarter of its time on CPU."""
    return values.index_select(0, index.reshape(-1)).view_as(index)


def _count(segment: torch.Tensor, segments: int) -> torch.Tensor:
    return torch.bincount(segment, minlength=segments)


def _sum(segment: torch.Tensor, values: torch.Tensor, segments: int) -> torch.Tensor:
    return segment_sum(segment, values, segments)


def _mean(segment: torch.Tensor, values: torch.Tensor, segments: int) -> torch.Tensor:
    """float64 means; 0 where a segment is empty."""
    return _sum(segment, values.to(torch.float64), segments) / _count(segment, segments).clamp(min=1)


def _mean_and_std(segment: torch.Tensor, values: torch.Tensor, segments: int) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 mean and population standard deviation, in two passes (depth spreads are small against their mean)."""
    mean = _mean(segment, values, segments)
    return mean, torch.sqrt(_mean(segment, (values.to(torch.float64) - _pick(mean, segment)) ** 2, segments))


def _nearest_index(length: int, small: torch.Tensor, large: torch.Tensor) -> torch.Tensor:
    """(B, length) index floor(i small / large) of each image row or column, -1 beyond the image."""
    index = torch.arange(length, device=small.device)
    return torch.where(index < large, index * small // large, -1)
