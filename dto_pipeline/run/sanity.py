"""Whether a run's result may be kept: how many inputs could not be used, and shares that no sound run shows.

A failure is an input that could not be used: an image with an error status, an image none of whose people can be used,
a person whose label is invalid. What the method decides about sound inputs (alone in a group, too tall, too small ...)
is a judgement and never counts; nor does an empty mask, which is what a person hidden by others has.

Beyond that, workers count the signs of a shard when they write its receipt, so that summing them up opens no label
file; receipts of older versions have none and are left out. A warning is something to look at. A contradiction is a
result nobody would keep: `dto run` ends with exit code 1. Shares are parts of 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dto_pipeline.axes import FAR
from dto_pipeline.config import METRES_PER_DEPTH, STAND_IN_BODY, DepthConfig
from dto_pipeline.data.label_files import LabelColumns, flatten_table
from dto_pipeline.data.receipts import Receipt, add_counts
from dto_pipeline.models.depth import is_metric
from dto_pipeline.run.identity import RunIdentity
from dto_pipeline.status import PLACED, ImageStatus, PersonStatus

# Fewer failures than this share of so many never stop a launch on its way: with 5 %, 20. Of a data set with 3 %
# failures spread at random, 400 images hold more than 20 less than once in a hundred times.
JUDGED_FROM = 400
FAILED_IN_A_ROW = 10  # shards, or twice the workers if that is more, that fail with none finished in between
UNUSABLE_IMAGES = (*(status for status in ImageStatus if status.is_failure), ImageStatus.NO_PEOPLE)
_ADVICE = {str(status): status.advice for status in (*UNUSABLE_IMAGES, PersonStatus.INVALID_LABEL)}
_NEXT = (
    "mend the cause and start again with --retry-failed: what is finished stays; if it is to be so, "
    "--set run.max_failed_images=1 lets it through"
)
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


@dataclass(frozen=True)
class Charge:
    """An attempt that a shard has used up."""

    shard: int
    attempts: int  # so far
    given_up: bool  # True: it is quarantined, not queued again


class FailureBudget:
    """Counts what could not be used, and says whether that is more than a run may lose (`run.max_failed_images`).

    The driver's loop tells it what became of each shard and asks for a `complaint`: did this launch lose more than the
    share of what it looked at, shards finished before it left out, so that a launch after the cause was mended goes
    on? The summary adds all finished shards and asks for the `verdict`.
    """

    def __init__(self, share: float, images: Mapping[int, int], repairs: Iterable[int] = (), workers: int = 1) -> None:
        """
        Args:
            share: of images, and of people, that may fail; 1 = all of them, nothing is judged.
            images: of each shard of this launch.
            repairs: shards that were finished before; only their failed images are done again, and are not judged.
        """
        self.examples: dict[str, Receipt] = {}  # cause -> the first shard whose rows show it
        self._share, self._shard_images, self._repairs = share, images, frozenset(repairs)
        self._images = self._people = 0  # looked at
        self._image_causes: Counter[str] = Counter()  # ImageStatus word, or what a shard said -> images
        self._people_causes: Counter[str] = Counter()  # PersonStatus word -> people
        self._row_limit = max(FAILED_IN_A_ROW, 2 * workers)
        self._row: set[int] = set()  # shards that failed since one was finished
        self._last_error = ""

    def shard_done(self, receipt: Receipt) -> None:
        self._row.clear()
        if receipt.shard in self._repairs:
            return
        self._images += receipt.images
        self._people += receipt.persons
        images, people = receipt.image_status, receipt.person_status
        lost = {str(word): images[word] for word in UNUSABLE_IMAGES if images.get(word)}
        invalid = {str(word): people[word] for word in (PersonStatus.INVALID_LABEL,) if people.get(word)}
        self._image_causes.update(lost)
        self._people_causes.update(invalid)
        self.examples = {**dict.fromkeys([*lost, *invalid], receipt), **self.examples}

    def shard_charged(self, charge: Charge, error: str) -> None:
        """A shard used up an attempt. Its images are lost once it is given up."""
        self._row.add(charge.shard)
        self._last_error = error
        if charge.given_up and charge.shard not in self._repairs:
            images = self._shard_images.get(charge.shard, 0)
            self._images += images
            self._image_causes[error] += images

    @property
    def causes(self) -> list[tuple[str, int]]:
        """Cause and how many were lost for it, the commonest first."""
        return (self._image_causes + self._people_causes).most_common()

    def complaint(self) -> str:
        """Why the launch is to stop, with counts and the next step; "" = it may go on."""
        if self._share < 1 and len(self._row) >= self._row_limit:
            row = f"{len(self._row)} shards failed one after the other and none was finished"
            return f"stopped: {row}; the last said: {self._last_error}; {_NEXT}"
        lost = self.verdict(JUDGED_FROM)
        return lost and f"stopped, because in this launch {lost}"

    def verdict(self, least: int = 0) -> str:
        """What was lost, a line for each cause with its advice, and the next step; "" = not more than the share.

        `least`: fewer images or people are judged as if they were so many.
        """
        parts = ((self._image_causes, self._images, "images"), (self._people_causes, self._people, "people"))
        if self._share >= 1 or not any(lost.total() > self._share * max(whole, least) for lost, whole, _ in parts):
            return ""
        told = " and ".join(f"{lost.total()} of {whole} {what}" for lost, whole, what in parts if lost)
        lines = [f"  {cause:<16} {count:>9}  {_ADVICE.get(cause, '')}".rstrip() for cause, count in self.causes]
        first = f"{told} could not be used, more than {self._share:.3g} of all (run.max_failed_images)"
        return "\n".join([first, *lines, _NEXT])


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
    images, people, owner = columns.images, columns.people, columns.owner
    words = table.column("persons").combine_chunks().flatten().field("status").to_pylist()  # pandas is not loaded
    judged = np.array([word not in _NOT_COMPARED for word in words], dtype=bool)
    compared = judged & (np.bincount(owner, weights=judged, minlength=columns.num_images) >= 2)[owner]
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
        "people of accepted images": images["is_accepted"][owner].sum(),
        "optimised images": images["is_optimized"].sum(),
        "compared": compared.sum(),
        "unmeasured": (compared & ~measured).sum(),
        "measured": measured.sum(),
        "far": (people["depth_group"] == FAR).sum(),
        **_count_fits(columns, metric, config),
        **{f"corr {number:02d}": count for number, count in enumerate(bins.tolist())},
        "in metres": (measured & metric[owner]).sum(),
        **{f"unit {number}": count for number, count in sorted(units.items())},
    }
    return {name: int(count) for name, count in counts.items() if count}


def _count_fits(columns: LabelColumns, metric: np.ndarray, config: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Fits of the published solver, and how many are held at `default_alpha_min`; 0 = the whole group was set aside."""
    if config["solver"]["mode"] != "paper":
        return {}
    alpha = np.stack([columns.images["alpha_near"], columns.images["alpha_far"]])
    unit: float | np.ndarray | None = _told_unit(config)
    if unit is None:  # what `maths.depth_evidence` measured, each image's median, from the same numbers
        each = columns.people["transl_init"][:, 2] / (
            columns.people["depth_mean"].astype(np.float64) * METRES_PER_DEPTH
        )
        parts = np.split(each, columns.starts[1:-1])
        unit = np.array([np.median(part[~np.isnan(part)]) if not np.isnan(part).all() else np.nan for part in parts])
    fits = np.isfinite(alpha) & (alpha != 0)
    bound = config["solver"]["default_alpha_min"] * np.where(metric, 1.0, unit)
    held = fits & np.isclose(alpha, bound, rtol=1e-5, atol=0)
    return {"fits": int(fits.sum()), "fits at the default bound": int(held.sum())}


def _told_unit(config: Mapping[str, Mapping[str, Any]]) -> float | None:
    return DepthConfig(unit=config["depth"].get("unit", "published")).given_unit  # runs before 0.4 had no other


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
    warnings: list[str] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)

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
        parts = [", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items() if share is not None)]
        parts += [] if self.median_corr is None else [f"median corr inside bodies {self.median_corr:.2f}"]
        parts += [] if self.unit is None else [f"{self.unit:.3g} of the published depth unit"]
        parts += [f"{self.shards_silent} shards of an older version not counted"] if self.shards_silent else []
        return [
            f"used     body {self.body}; depth {self.depth}",
            *([f"sanity   {'; '.join(filter(None, parts))}"] if self.shards else []),
            *(f"WRONG    {text}" for text in self.contradictions),
            *(f"look     {text}" for text in self.warnings),
        ]


def judge_run(identity: RunIdentity, receipts: Sequence[Receipt]) -> Sanity:
    """The figures of the shards that are done, and what is far from any sound run."""
    path = identity.config["body"]["model_path"]
    telling = [receipt for receipt in receipts if receipt.signs]
    signs = Counter(add_counts(receipt.signs for receipt in telling))
    people = Counter(add_counts(receipt.person_status for receipt in receipts))
    placing = people.total() - sum(people[word] for word in _NOT_PLACED)
    below = _bodies_below(signs)
    bodies = below[-1]
    corr = round(float(np.interp(bodies / 2, below, np.linspace(-1, 1, _BINS + 1))), 3) if bodies else None
    found = Sanity(
        body=f"{STAND_IN_BODY} (the stand-in, not SMPL)" if path in ("", STAND_IN_BODY) else str(path),
        depth=_describe_depth(identity),
        shards=len(telling),
        shards_silent=len(receipts) - len(telling),
        accepted_images=_share(signs["accepted images"], sum(receipt.images for receipt in telling)),
        accepted_people=_share(signs["people of accepted images"], sum(receipt.persons for receipt in telling)),
        too_small=_share(people[PersonStatus.TOO_SMALL], placing),
        too_tall=_share(people[PersonStatus.TOO_TALL], placing),
        alone=_share(people[PersonStatus.ALONE_IN_GROUP], placing),
        fits_at_default_bound=_share(signs["fits at the default bound"], signs["fits"]),
        far=_share(signs["far"], signs["measured"]),
        unmeasured=_share(signs["unmeasured"], signs["compared"]),
        median_corr=corr,
        unit=_median_unit(signs),
    )
    images = Counter(add_counts(receipt.image_status for receipt in receipts))
    contradictions = [*_contradictions(signs, found), *_nobody_to_compare(images, people)]
    unit = 1.0 if _is_metric(signs) else _told_unit(identity.config)
    return replace(found, warnings=_warnings(signs, found, unit, placing), contradictions=contradictions)


def _bodies_below(signs: Counter[str]) -> np.ndarray:
    """(_BINS + 1,) how many bodies have a correlation below the edge of each bin; the last: all of them."""
    return np.cumsum([0, *(signs[f"corr {number:02d}"] for number in range(_BINS))])


def _negative(signs: Counter[str], found: Sanity) -> float:
    """The share of bodies inside which depth falls, where that is most of them and the median says so too; else 0."""
    below = _bodies_below(signs)
    share = float(below[_BINS // 2] / max(1, below[-1]))
    backwards = found.median_corr is not None and found.median_corr < BACKWARDS_CORR and share >= BACKWARDS_SHARE
    return share if backwards and below[-1] >= LEAST_PEOPLE else 0.0


def _is_metric(signs: Counter[str]) -> bool:
    """Whether nearly all maps of enough people were metric."""
    return signs["in metres"] >= max(LEAST_PEOPLE, MOST * signs["measured"])


def _contradictions(signs: Counter[str], found: Sanity) -> list[str]:
    """What no sound run shows."""
    texts = []
    if negative := _negative(signs, found):
        texts.append(
            f"depth runs the wrong way round: inside {100 * negative:.0f} % of the bodies it falls where "
            f"the body goes farther away (median correlation {found.median_corr:.2f}); check depth.kind: disparity is "
            "larger for nearer, depth for farther; then run into another folder"
        )
    if _is_metric(signs) and _off(found.unit, 1.0) >= WRONG_METRES:
        texts.append(
            f"the maps' metres contradict the people, who by their heights stand at {found.unit:.2g} times the "
            "distance that the maps say (median): check depth.kind, and depth.scale (0.001 for millimetres); then run "
            "into another folder"
        )
    if signs["compared"] >= LEAST_PEOPLE and (found.unmeasured or 0) >= MOST:
        texts.append(
            f"nothing could be measured on {100 * (found.unmeasured or 0):.0f} % of the people, who keep their "
            "label or stand by height priors alone: masks that do not fit the people (order or size of the run "
            "lengths, another image's), labels in other units than metres, or flat depth maps; dto view draws it"
        )
    return texts


def _nobody_to_compare(images: Counter[str], people: Counter[str]) -> list[str]:
    """A run that placed nobody, because its images hold one person each: all labels are as they came."""
    alone = images[ImageStatus.TOO_FEW_PEOPLE]
    if alone < LEAST_IMAGES or alone < MOST * images.total() or any(people[word] for word in PLACED):
        return []
    return [
        f"nobody was placed: {alone} of {images.total()} images hold fewer than two people that can be compared; "
        "solver.mode=joint with joint.move_single=true places people who are alone by their heights"
    ]


def _warnings(signs: Counter[str], found: Sanity, expected: float | None, placing: int) -> list[str]:
    """What is seldom right. `expected`: the depth's unit as told, 1 of metric maps; None = each image tells its own."""
    metres, bodies = _is_metric(signs), _bodies_below(signs)[-1]
    told = expected is not None and not metres
    unit = "the depth is not in the unit that depth.unit tells, for which this border was set"
    unit = unit if told else "the labels' distances are wrong"
    off = _off(found.unit, 1.0 if expected is None else expected)
    corr = found.median_corr
    weak = corr is not None and corr < WEAK_CORR and bodies >= LEAST_PEOPLE and not _negative(signs, found)
    optimised = signs["optimised images"]
    rules = (
        (signs["measured"] >= LEAST_PEOPLE and (found.far or 0) >= MOST,
         f"nearly all measured people are far (evidence.far_depth): {unit}, or people are small in the pictures; "
         "solver.mode=joint has no such border"),
        (signs["fits"] >= LEAST_FITS and (found.fits_at_default_bound or 0) >= MOST,
         f"nearly all fits are held at solver.default_alpha_min, because no body's slope counted: {unit}, or the maps "
         "are blurred; solver.mode=joint has no such bound"),
        (placing >= LEAST_PEOPLE and (found.too_tall or 0) >= TOO_TALL_SHARE,
         f"many people would be too tall: {unit}, or masks or labels are other people's"),
        (placing >= LEAST_PEOPLE and (found.alone or 0) >= ALONE_SHARE,
         f"most people are alone in their group: {unit}, or the labels' distances are wrong"),
        (metres and ODD_METRES <= off < WRONG_METRES,
         f"the maps' metres are hardly those of the people, who by their heights stand at {found.unit or 1:.2f} "
         "times the distance that the maps say (median): look at the labels' focal length, and at what the network "
         "is for (indoors, outdoors)"),
        (told and off >= ODD_UNIT and bodies >= LEAST_PEOPLE,
         f"depth.unit tells {expected or 1:g} of the published network's unit, people show {found.unit or 1:.2g}: "
         "evidence.far_depth and solver.default_alpha_min mean nothing so; take depth.unit=measured"),
        (weak,
         f"depth hardly knows the bodies (median correlation inside them {corr or 0:.2f}): blurred maps, or maps of "
         "other images or another crop"),
        (optimised >= LEAST_IMAGES and signs["accepted images"] < ACCEPTED_SHARE * optimised,
         "hardly any optimised image is accepted: heights contradict the priors; look at ages, masks and depth.kind"),
    )  # fmt: skip
    return [text for is_so, text in rules if is_so]


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
