"""Whether a run's numbers look like those of any sound run: a few shares, and a sentence for each that is far off.

Workers count the signs of a shard when they write its receipt, so that summing them up opens no label file, however
many shards there are; receipts of older versions have none and are left out. A warning is something to look at. A
contradiction is a result nobody would keep: `dto run` ends with exit code 1. Shares are parts of 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dto_pipeline.axes import FAR
from dto_pipeline.config import METRES_PER_DEPTH, STAND_IN_BODY, DepthConfig
from dto_pipeline.data.label_files import LabelColumns, flatten_table
from dto_pipeline.data.receipts import Receipt, add_counts
from dto_pipeline.models.depth import is_metric
from dto_pipeline.run.identity import RunIdentity
from dto_pipeline.status import PLACED, ImageStatus, PersonStatus

# Fewer people, or images, say nothing: the median of ten correlations about 0.1 is seldom below -0.2.
LEAST_PEOPLE, LEAST_IMAGES, LEAST_FITS = 10, 10, 5
# Correlation of rendered z with depth inside bodies: 0.6 with exact maps, 0.14 with maps blurred beyond use, -0.6 with
# the same maps turned round, where 97 % of the bodies are negative (36 % with blurred maps).
BACKWARDS_CORR, BACKWARDS_SHARE = -0.2, 0.75
WEAK_CORR = 0.1  # below: the maps hardly know the bodies; other images' maps give 0
MOST = 0.9  # "nearly all": on sound runs 4 % are too small, 11 % far (all, with maps in another unit), 7 % at the bound
TOO_TALL_SHARE = 0.3  # 4 % on photographs in the published unit, 70 % with the same maps times 1000
ALONE_SHARE = 0.5  # 1 % on crowds
# Metric networks are within 5 to 15 %, and heights tell a crowd's distance to a few percent.
WRONG_METRES, ODD_METRES = 1.5, 1.25
ODD_UNIT = 3.0  # factor between a unit that was told and the one that people show; images of one network vary by 1.5
ACCEPTED_SHARE = 0.1  # of optimised images; 40 to 100 % whatever the depth, 8 % with maps the wrong way round

_NOT_COMPARED = (PersonStatus.NOT_RUN, PersonStatus.INVALID_LABEL)
_NOT_PLACED = (*_NOT_COMPARED, PersonStatus.EMPTY_MASK)
_IMAGES = ("is_accepted", "is_optimized", "alpha_near", "alpha_far", "depth_origin", "persons")
_PEOPLE = ("corr", "depth_group", "depth_mean", "transl", "transl_init")
_BINS = 40  # of correlations from -1 to 1: the median is known to 0.05
_UNIT_BINS = 40  # of units, to a factor of ten: the median is known to 3 %
LabelTable = Any  # a pyarrow.Table of schema.LABELS_SCHEMA; pyarrow itself is imported in data/ only


def count_signs(table: LabelTable, config: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """What the receipt of a shard tells beyond its statuses.

    Args:
        table: label rows of the shard.
        config: of the run, as `PipelineConfig.to_dict` gives it.

    Returns:
        Counts by name; `corr NN` is a histogram of correlations inside bodies, `unit NN` one of `Sanity.unit`. Zeros
        are left out.
    """
    columns = flatten_table(table.select(list(_IMAGES)), _PEOPLE)
    images, people = columns.images, columns.people
    words = (
        table.column("persons").combine_chunks().flatten().field("status").to_pylist()
    )  # pandas is not loaded for it
    judged = np.array([word not in _NOT_COMPARED for word in words], dtype=bool)
    together = np.bincount(columns.owner, weights=judged, minlength=columns.num_images)
    compared = judged & (together >= 2)[columns.owner]
    measured = people["depth_group"] >= 0
    metric = np.array([is_metric(origin) for origin in images["depth_origin"]], dtype=bool)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        z, depth = people["transl"][measured, 2].astype(np.float64), people["depth_mean"][measured].astype(np.float64)
        unit = np.log10(z / (depth * METRES_PER_DEPTH)) * _UNIT_BINS
    units = Counter(np.rint(unit[np.isfinite(unit)]).astype(int).tolist())
    corr = people["corr"][np.isfinite(people["corr"])]
    bins = np.bincount(((corr.clip(-1, 1) + 1) / 2 * _BINS).astype(int).clip(0, _BINS - 1), minlength=_BINS)
    counts = {
        "accepted images": images["is_accepted"].sum(),
        "people of accepted images": images["is_accepted"][columns.owner].sum(),
        "optimised images": images["is_optimized"].sum(),
        "compared": compared.sum(),
        "unmeasured": (compared & ~measured).sum(),
        "measured": measured.sum(),
        "far": (people["depth_group"] == FAR).sum(),
        **_count_fits(columns, metric, config),
        **{f"corr {number:02d}": count for number, count in enumerate(bins.tolist())},
        "in metres": (measured & metric[columns.owner]).sum(),
        **{f"unit {number}": count for number, count in sorted(units.items())},
    }
    return {name: int(count) for name, count in counts.items() if count}


def _count_fits(columns: LabelColumns, metric: np.ndarray, config: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Fits of the published solver, and how many are held at `default_alpha_min`; 0 = the whole group was set aside."""
    if config["solver"]["mode"] != "paper":
        return {}
    alpha = np.stack([columns.images["alpha_near"], columns.images["alpha_far"]])
    told = _told_unit(config)
    if told is None:  # what `maths.depth_evidence` measured, each image's median, from the same numbers
        depth = columns.people["depth_mean"].astype(np.float64)
        unit = columns.people["transl_init"][:, 2] / (depth * METRES_PER_DEPTH)
        order = np.lexsort([unit, columns.owner])  # NaN come last
        people = np.bincount(columns.owner[~np.isnan(unit)], minlength=columns.num_images)
        some = np.flatnonzero(people)
        measured = np.full(columns.num_images, np.nan)
        middle = (columns.starts[some] + (people[some] - 1 + up) // 2 for up in (0, 1))
        measured[some] = np.mean([unit[order[position]] for position in middle], axis=0)
    unit = np.where(metric, 1.0, measured if told is None else told)
    fits = np.isfinite(alpha) & (alpha != 0)
    held = fits & np.isclose(alpha, config["solver"]["default_alpha_min"] * unit, rtol=1e-5, atol=0)
    return {"fits": int(fits.sum()), "fits at the default bound": int(held.sum())}


def _told_unit(config: Mapping[str, Mapping[str, Any]]) -> float | None:
    return DepthConfig(unit=config["depth"].get("unit", "published")).told_unit  # runs before 0.4 had no other


@dataclass(frozen=True)
class Sanity:
    """The figures of a run; None = nothing to take the share of."""

    body: str  # used by the run; likewise `depth`
    depth: str
    shards: int  # whose receipts tell the figures
    shards_silent: int  # receipts of older versions, left out of the figures
    accepted_images: float | None
    accepted_people: float | None  # in accepted images
    too_small: float | None  # of people who were to be placed; likewise the next two
    too_tall: float | None
    alone: float | None
    fits_at_default_bound: float | None  # solver.mode paper only
    far: float | None  # of people whose depth was measured
    unmeasured: float | None  # of people who were to be compared with somebody
    median_corr: float | None  # of rendered z with depth inside bodies
    unit: float | None  # median over people of distance (after) / (relative depth * METRES_PER_DEPTH): of metric maps 1
    warnings: list[str]
    contradictions: list[str]

    def lines(self) -> list[str]:
        """Text for a terminal; without figures where no shard tells any."""
        shares = {
            "accepted images": self.accepted_images,
            "accepted people": self.accepted_people,
            "too small": self.too_small,
            "too tall": self.too_tall,
            "alone": self.alone,
            "far": self.far,
            "fits at the default bound": self.fits_at_default_bound,
        }
        told = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items() if share is not None)
        parts = [
            told,
            "" if self.median_corr is None else f"median corr inside bodies {self.median_corr:.2f}",
            "" if self.unit is None else f"{self.unit:.3g} of the published depth unit",
            f"{self.shards_silent} shards of an older version not counted" if self.shards_silent else "",
        ]
        return [
            f"used     body {self.body}; depth {self.depth}",
            *([f"sanity   {'; '.join(filter(None, parts))}"] if self.shards else []),
            *(f"WRONG    {text}" for text in self.contradictions),
            *(f"look     {text}" for text in self.warnings),
        ]


def judge_run(identity: RunIdentity, receipts: Iterable[Receipt]) -> Sanity:
    """The figures of the shards that are done, and what is far from any sound run."""
    receipts, path = list(receipts), identity.config["body"]["model_path"]
    telling = [receipt for receipt in receipts if receipt.signs]
    signs = Counter(add_counts(receipt.signs for receipt in telling))
    people = Counter(add_counts(receipt.person_status for receipt in receipts))
    placing = people.total() - sum(people[word] for word in _NOT_PLACED)
    bins = np.array([signs[f"corr {number:02d}"] for number in range(_BINS)], dtype=np.float64)
    below = np.concatenate([[0], np.cumsum(bins)])  # bodies of a correlation below the edge of each bin
    bodies = below[-1]
    corr = round(float(np.interp(bodies / 2, below, np.linspace(-1, 1, _BINS + 1))), 3) if bodies else None
    figures = {
        "accepted_images": _share(signs["accepted images"], sum(r.images for r in telling)),
        "accepted_people": _share(signs["people of accepted images"], sum(r.persons for r in telling)),
        "too_small": _share(people[PersonStatus.TOO_SMALL], placing),
        "too_tall": _share(people[PersonStatus.TOO_TALL], placing),
        "alone": _share(people[PersonStatus.ALONE_IN_GROUP], placing),
        "fits_at_default_bound": _share(signs["fits at the default bound"], signs["fits"]),
        "far": _share(signs["far"], signs["measured"]),
        "unmeasured": _share(signs["unmeasured"], signs["compared"]),
        "median_corr": corr,
        "unit": _median_unit(signs),
    }
    look = _Look(
        enough=bool(bodies >= LEAST_PEOPLE),
        negative=float(below[_BINS // 2] / max(1, bodies)),
        metres=signs["in metres"] >= max(LEAST_PEOPLE, MOST * signs["measured"]),
        told_unit=_told_unit(identity.config),
    )
    return Sanity(
        body=f"{STAND_IN_BODY} (the stand-in, not SMPL)" if path in ("", STAND_IN_BODY) else str(path),
        depth=_describe_depth(identity),
        shards=len(telling),
        shards_silent=len(receipts) - len(telling),
        **figures,
        warnings=_warn(signs, figures, look, placing),
        contradictions=[*_contradict(signs, figures, look), *_nobody_to_compare(receipts, people)],
    )


class _Look(NamedTuple):
    """What the sentences ask beside the figures."""

    enough: bool  # correlations of bodies to judge by
    negative: float  # share of them below 0
    metres: bool  # nearly all maps of enough people were metric
    told_unit: float | None  # `depth.unit`; None = measured

    def is_backwards(self, corr: float) -> bool:
        return self.enough and corr < BACKWARDS_CORR and self.negative >= BACKWARDS_SHARE


def _contradict(signs: Counter[str], figures: Mapping[str, float | None], look: _Look) -> list[str]:
    """What no sound run shows."""
    found = []
    corr = figures["median_corr"]
    if corr is not None and look.is_backwards(corr):
        found.append(
            f"depth runs the wrong way round: inside {100 * look.negative:.0f} % of the bodies it falls where "
            f"the body goes farther away (median correlation {corr:.2f}); check depth.kind: disparity is larger for "
            "nearer, depth for farther; then run into another folder"
        )
    if look.metres and _off(figures["unit"], 1.0) >= WRONG_METRES:
        found.append(
            f"the maps' metres contradict the people, who by their heights stand at {figures['unit']:.2g} times the "
            "distance that the maps say (median): check depth.kind, and depth.scale (0.001 for millimetres); then run "
            "into another folder"
        )
    if signs["compared"] >= LEAST_PEOPLE and (figures["unmeasured"] or 0) >= MOST:
        found.append(
            f"nothing could be measured on {100 * (figures['unmeasured'] or 0):.0f} % of the people, who keep their "
            "label or stand by height priors alone: masks that do not fit the people (order or size of the run "
            "lengths, another image's), labels in other units than metres, or flat depth maps; dto view draws it"
        )
    return found


def _nobody_to_compare(receipts: Iterable[Receipt], people: Mapping[str, int]) -> list[str]:
    """A run that placed nobody, because its images hold one person each: all labels are as they came."""
    images = Counter(add_counts(receipt.image_status for receipt in receipts))
    alone = images[ImageStatus.TOO_FEW_PEOPLE]
    if alone < LEAST_IMAGES or alone < MOST * images.total() or any(people[word] for word in PLACED):
        return []
    return [
        f"nobody was placed: {alone} of {images.total()} images hold fewer than two people that can be compared; "
        "solver.mode=joint with joint.move_single=true places people who are alone by their heights"
    ]


def _warn(signs: Counter[str], figures: Mapping[str, float | None], look: _Look, placing: int) -> list[str]:
    """What is seldom right."""
    told, metres = look.told_unit, look.metres
    unit = "the labels' distances are wrong"
    if told is not None:
        unit = "the depth is not in the unit that depth.unit tells, for which this border was set"
    shares = (
        ("far", MOST, signs["measured"], LEAST_PEOPLE,
         f"nearly all measured people are far (evidence.far_depth): {unit}, or people are small in the pictures; "
         "solver.mode=joint has no such border"),
        ("fits_at_default_bound", MOST, signs["fits"], LEAST_FITS,
         f"nearly all fits are held at solver.default_alpha_min, because no body's slope counted: {unit}, or the maps "
         "are blurred; solver.mode=joint has no such bound"),
        ("too_tall", TOO_TALL_SHARE, placing, LEAST_PEOPLE,
         f"many people would be too tall: {unit}, or masks or labels are other people's"),
        ("alone", ALONE_SHARE, placing, LEAST_PEOPLE,
         f"most people are alone in their group: {unit}, or the labels' distances are wrong"),
    )  # fmt: skip
    found = [text for name, limit, of, least, text in shares if of >= least and (figures[name] or 0) >= limit]
    off = _off(figures["unit"], 1.0 if metres or told is None else told)
    if metres and ODD_METRES <= off < WRONG_METRES:
        found.append(
            f"the maps' metres are hardly those of the people, who by their heights stand at {figures['unit']:.2f} "
            "times the distance that the maps say (median): look at the labels' focal length, and at what the network "
            "is for (indoors, outdoors)"
        )
    if told is not None and not metres and off >= ODD_UNIT and look.enough:
        found.append(
            f"depth.unit tells {told:g} of the published network's unit, people show {figures['unit']:.2g}: "
            "evidence.far_depth and solver.default_alpha_min mean nothing so; take depth.unit=measured"
        )
    corr = figures["median_corr"]
    if corr is not None and corr < WEAK_CORR and look.enough and not look.is_backwards(corr):
        found.append(
            f"depth hardly knows the bodies (median correlation inside them {corr:.2f}): blurred maps, or maps of "
            "other images or another crop"
        )
    optimised = signs["optimised images"]
    if optimised >= LEAST_IMAGES and signs["accepted images"] < ACCEPTED_SHARE * optimised:
        found.append(
            "hardly any optimised image is accepted: heights contradict the priors; look at ages, masks and depth.kind"
        )
    return found


def _off(unit: float | None, expected: float) -> float:
    """Factor by which a unit is not the expected one, 1 or more; 1 where it is not known."""
    return 1.0 if unit is None else max(unit / expected, expected / unit)


def _median_unit(signs: Counter[str]) -> float | None:
    bins = sorted((int(name.removeprefix("unit ")), count) for name, count in signs.items() if name.startswith("unit "))
    if not bins:
        return None
    middle = np.searchsorted(np.cumsum([count for _, count in bins]), sum(count for _, count in bins) / 2)
    return float(f"{10 ** (bins[int(middle)][0] / _UNIT_BINS):.3g}")


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _describe_depth(identity: RunIdentity) -> str:
    depth = identity.config["depth"]
    if depth["source"] == "model":
        told = identity.inputs.get("depth network", "")
        if told and "@" not in told:  # a folder: what it holds, and where it lay
            return f"network {depth['model']} (sha256 {told[:16]})"
        return f"network {told or identity.versions.get('depth network', depth['model'])}"
    scale = "" if depth["scale"] == 1 else f" times {depth['scale']:g}"
    return f"files of {depth['kind']}{scale}"
