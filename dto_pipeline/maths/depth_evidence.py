"""Depth evidence: what a depth map says about each person.

Pure tensors. All pixels of all people of a batch form one flat list, and every statistic is a segment sum over it: no
loop over people, rows or scenes. Lengths in metres, image positions in pixels, depth = 1 / disparity. Follows arXiv
2511.13282 as implemented by its authors, row by row.

Two published numbers, `far_depth` and `default_alpha_min`, are in the unit of the published network. The unit of other
networks' maps is measured in each image, as the median of label z over depth, because every relative map has its own
scale. So a map times any constant gives the same results, in any batch.
"""

from __future__ import annotations

import torch

from dto_pipeline.axes import FAR, NEAR
from dto_pipeline.config import METRES_PER_DEPTH, EvidenceConfig
from dto_pipeline.maths.ordered import Segments, works_at_once
from dto_pipeline.scene import DepthEvidence, PersonMaps, SceneBatch

_QUARTILES = (0.25, 0.75)
_PIXELS_AT_ONCE_CPU = 1 << 16  # looked through at once on a CPU: what stays in its cache
_ROUNDING = 1e-24  # of float64 means, squared; single-precision depths differ by (6e-8)^2 or not at all


def _sample_pixels(maps: PersonMaps, batch: SceneBatch, skips_zeros: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Enlarge the person maps to the images by nearest neighbour and list every pixel of every person, n in all.

    Ordered by scene, then row-major; where a batch is done at once by person, then row, as `Segments` wants it. Pixels
    of zero disparity are left out in the scenes of `skips_zeros` (B,) bool; in others they get the map's smallest
    positive value, as published.

    Returns: all (n,): owner b * P + p int64; image row int64 [px]; depth 1 / disparity float32; z of the rendered label
    float32 [m].
    """
    _, height, width = batch.disparity.shape
    _, map_height, map_width = maps.person.shape
    map_row = _nearest_index(height, batch.map_size[:, :1], batch.image_size[:, :1])  # (B, H), -1 = padding
    map_column = _nearest_index(width, batch.map_size[:, 1:], batch.image_size[:, 1:])  # (B, W)

    def list_pixels(scene: torch.Tensor, row: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Owner, row, disparity and z of the pixels of some image rows (n,) that show anybody."""
        line_start = (scene * map_height + map_row[scene, row].clamp(min=0)) * map_width
        columns = map_column.index_select(0, scene)
        source = line_start[:, None] + columns.clamp(min=0)
        person = _pick(maps.person.reshape(-1), source).masked_fill_(columns < 0, -1)
        person.masked_fill_((batch.disparity[scene, row] <= 0) & skips_zeros[scene, None], -1)
        line, column = (person >= 0).nonzero(as_tuple=True)
        place, image_line = line * width + column, scene * height + row
        return (
            _pick(scene * batch.present.shape[1], line) + _pick(person.view(-1), place),
            _pick(row, line),
            _pick(batch.disparity.reshape(-1), _pick(image_line, line) * width + column),
            _pick(maps.z.reshape(-1), _pick(source.view(-1), place)),
        )

    at_once = works_at_once(batch.disparity.device)
    rows_at_once = height if at_once else max(1, _PIXELS_AT_ONCE_CPU // width)

    if at_once:
        place = torch.arange(map_row.numel(), device=map_row.device)
        blocks = [(torch.div(place, height, rounding_mode="floor"), place % height)]
    else:  # only image rows that hold anybody: skips sky and floor
        occupied = (maps.person >= 0).any(2).gather(1, map_row.clamp(min=0)) & (map_row >= 0)
        parts = (part.split(rows_at_once) for part in occupied.nonzero(as_tuple=True))
        blocks = list(zip(*parts, strict=True))
    found = zip(*(list_pixels(*block) for block in blocks), strict=True)
    owner, row, value, z = (torch.cat(parts) for parts in found)
    if at_once:
        order = torch.argsort(owner * height + row)
        owner, row, value, z = (_pick(part, order) for part in (owner, row, value, z))
    bands = batch.disparity.split(rows_at_once, dim=1)
    smallest = torch.stack([torch.where(band > 0, band, torch.inf).flatten(1).amin(1) for band in bands]).amin(0)
    scene = torch.div(owner, batch.present.shape[1], rounding_mode="floor")
    return owner, row, 1.0 / torch.where(value > 0, value, _pick(smallest, scene)), z


def measure_depth_evidence(
    maps: PersonMaps,
    batch: SceneBatch,
    config: EvidenceConfig,
    unit: float | None = 1.0,
    zero_is_unknown: bool = False,
) -> DepthEvidence:
    """Everything `DepthEvidence` holds, for all people of a batch at once.

    Pixels and people that are cut stay in the list and count as nothing, so that no number has to be read back.

    Args:
        maps, batch: of the same B scenes and P people.
        unit: of relative maps, see `DepthEvidence.unit`; None = measured in each scene. Metric maps have the unit 1.
        zero_is_unknown: leave out pixels of zero disparity, as is done in metric maps, and not take them for far ones.
    """
    shape, height = batch.present.shape, batch.disparity.shape[1]
    people = shape[0] * shape[1]
    owner, row, single, z = _sample_pixels(maps, batch, batch.metric | zero_is_unknown)
    depth = single.to(torch.float64)
    person, line = Segments(owner, people), Segments(owner * height + row, people * height)
    least = batch.image_size.to(torch.float64).div(config.min_pixels_grid).prod(-1)[:, None].expand(shape).reshape(-1)

    pixels = person.total(torch.ones_like(owner))
    big_enough = (pixels >= least) & (maps.visible_vertices.reshape(-1) >= config.min_visible_vertices)
    bounds = _outlier_bounds(owner, single, pixels, config.iqr_factor)
    low, high = (person.spread(bound) for bound in bounds.unbind(1))
    kept = (depth > low) & (depth < high) & person.spread(big_enough)
    inside = person.total(kept)
    survives = big_enough & (inside >= least)
    kept = kept & person.spread(survives)
    slope, corr, residual = _fit_internal_line(depth, z, kept, person, line)
    kept = kept & (residual.abs() <= config.max_residual)
    left = person.total(kept)
    usable = survives & (left > 0)
    ground_row = _row_percentile(line.total(kept).view(people, height), config.ground_percentile)
    ground = kept & (row >= person.spread(ground_row))
    lowest = person.total(ground)

    def means(values: torch.Tensor) -> torch.Tensor:
        parts = ((kept, left), (ground, lowest))
        return torch.stack([person.mean(torch.where(part, values, 0), number) for part, number in parts], -1)

    depth_means = means(depth)
    apart = depth - person.spread(depth_means[:, 0])  # two passes: spreads are small against their mean
    units = _units(depth_means[:, 0], usable, batch, unit)
    group = _group(depth_means[:, 0], batch, config.far_depth / units, config.far_scale)
    numbers = (pixels, torch.where(big_enough, inside, -1), *(torch.where(usable, n, -1) for n in (left, lowest)))
    measured = {
        "depth": depth_means,
        "z": means(z),
        "depth_std": torch.sqrt(person.mean(torch.where(kept, apart * apart, 0), left)),
        "slope": slope,
        "corr": corr,
        "ground_row": ground_row,
    }
    columns = {n: torch.where(usable.view(-1, *(1,) * (v.dim() - 1)), v, torch.nan) for n, v in measured.items()} | {
        "pixels": torch.stack(numbers, -1),
        "bounds": torch.where(big_enough[:, None], bounds, torch.nan),
        "usable": usable,
        "cut": torch.where(batch.present.reshape(-1), torch.where(big_enough, torch.where(usable, 0, 2), 1), -1),
        "group": torch.where(usable, group, -1),
    }
    return DepthEvidence(**{name: value.view(*shape, *value.shape[1:]) for name, value in columns.items()}, unit=units)


def _fit_internal_line(
    depth: torch.Tensor, z: torch.Tensor, kept: torch.Tensor, person: Segments, line: Segments
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Least squares z ~ slope * depth within each person after removing the mean of every image row.

    Slope and correlation (people,), residuals (n,) [m]. Row-centred values have mean zero per person, so slope =
    Sxy / Sxx and corr = Sxy / sqrt(Sxx Syy). A person whose depth does not vary along the rows has slope 0 and
    correlation 0.
    """
    depth, z = (torch.where(kept, values.to(torch.float64), 0) for values in (depth, z))
    depth_squares = person.sum(depth * depth)
    number = line.total(kept)
    depth, z = (torch.where(kept, values - line.spread(line.mean(values, number)), 0) for values in (depth, z))
    sxx, sxy, syy = (person.sum(product) for product in (depth * depth, depth * z, z * z))
    varies = sxx > _ROUNDING * depth_squares
    slope = torch.where(varies, sxy / torch.where(varies, sxx, 1), 0)
    norm = torch.sqrt(sxx * syy)
    corr = torch.where(norm > 0, sxy / torch.where(norm > 0, norm, 1), 0)
    return slope, corr, z - person.spread(slope) * depth


def _outlier_bounds(owner: torch.Tensor, depth: torch.Tensor, count: torch.Tensor, factor: float) -> torch.Tensor:
    """(people, 2) float64: max(Q1 - factor IQR, 0) and Q3 + factor IQR of each person's depth.

    Quartiles interpolate linearly between order statistics, in single precision as the published code does.
    """
    if len(depth) == 0:
        return torch.zeros(len(count), 2, dtype=torch.float64, device=depth.device)
    order = torch.sort((owner << 32) | depth.view(torch.int32).to(torch.int64)).values
    depth = (order & 0xFFFFFFFF).to(torch.int32).view(torch.float32)
    start = torch.cumsum(count, 0) - count
    quartiles = []
    for quantile in _QUARTILES:
        below, above, share = _ranks(count, quantile)
        low, high = (depth[(start + rank).clamp(max=len(depth) - 1)] for rank in (below, above))
        quartiles.append(torch.where(count > 0, _interpolate(low, high, share.to(depth.dtype)), 0))
    reach = factor * (quartiles[1] - quartiles[0])
    return torch.stack([(quartiles[0] - reach).clamp(min=0), quartiles[1] + reach], -1).to(torch.float64)


def _row_percentile(histogram: torch.Tensor, percentile: float) -> torch.Tensor:
    """(people,) float64 percentile of rows, from the number of pixels of each person in each row, (people, H)."""
    cumulative = torch.cumsum(histogram, 1)
    below, above, share = _ranks(cumulative[:, -1:], percentile / 100.0)
    low, high = (torch.searchsorted(cumulative, rank, right=True).to(torch.float64) for rank in (below, above))
    return _interpolate(low, high, share).squeeze(-1)


def _ranks(count: torch.Tensor, quantile: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ranks below and above a quantile among `count` numbers, and where it lies between them (0 .. 1)."""
    last = (count - 1).clamp(min=0)
    position = last.to(torch.float64) * quantile
    below = position.floor().to(torch.int64)
    return below, torch.minimum(below + 1, last), position - below


def _interpolate(low: torch.Tensor, high: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Linear interpolation from the nearer end, as in numpy's percentile."""
    step = high - low
    return torch.where(share >= 0.5, high - step * (1 - share), low + step * share)


def _units(depth_mean: torch.Tensor, usable: torch.Tensor, batch: SceneBatch, given: float | None) -> torch.Tensor:
    """(B,) `DepthEvidence.unit`, measured as the median of label z over depth where it is not given."""
    if given is not None:
        return torch.where(batch.metric, 1.0, given).to(depth_mean)
    depth = torch.where(usable, depth_mean, torch.nan).view(batch.present.shape) * METRES_PER_DEPTH
    unit = (batch.transl[..., 2] / depth).nanquantile(0.5, 1)
    return torch.where(batch.metric | unit.isnan(), 1.0, unit)  # NaN: nobody was measured


def _group(depth_mean: torch.Tensor, batch: SceneBatch, far_depth: torch.Tensor, far_scale: float) -> torch.Tensor:
    """(people,) NEAR or FAR, from mean depth (`far_depth`: (B,)) and from how large the label is in the image."""
    shortest = batch.image_size.amin(-1).to(torch.float64)
    relative_size = 2 * batch.intrinsics[:, 1, 1, None] / (batch.transl[..., 2].to(torch.float64) * shortest[:, None])
    deep = depth_mean.view(relative_size.shape) > far_depth[:, None]
    return torch.where(deep | (relative_size < far_scale), FAR, NEAR).view(-1)


def _pick(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`values[index]` of a list of values; a quarter of its time on CPU."""
    return values.index_select(0, index.reshape(-1)).view_as(index)


def _nearest_index(length: int, small: torch.Tensor, large: torch.Tensor) -> torch.Tensor:
    """(B, length) index floor(i small / large) of each image row or column, -1 beyond the image."""
    index = torch.arange(length, device=small.device)
    return torch.where(index < large, index * small // large, -1)
