"""Decide whether a run's result can be kept: too many unusable inputs, or figures that no sound run has.

A failure is an input that could not be used: an image with an error status, an image none of whose people can be used,
a person with an invalid label. Decisions of the method about sound inputs (alone in a group, too tall, too small ...)
never count, nor does an empty mask: hidden people have one.

A worker counts what the figures need when it writes a shard's receipt (`Receipt.signs`), so that a summary opens no
label file. A warning asks the user for a check. A contradiction means that the result is unusable: `dto run` ends with
exit code 1. Shares are fractions, not percentages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from dto_pipeline.axes import FAR
from dto_pipeline.config import METRES_PER_DEPTH, STAND_IN_BODY, DepthConfig
from dto_pipeline.data.label_files import LabelColumns, flatten_table
from dto_pipeline.data.receipts import Receipt, add_counts
from dto_pipeline.models.depth import is_metric
from dto_pipeline.run.identity import RunIdentity
from dto_pipeline.status import PLACED, UNUSED, ImageStatus, PersonStatus

# A launch is not stopped before it has more failures than the allowed share of so many images: 20 with 5 %. In a data
# set with 3 % failures at random places, 400 images contain more than 20 failures in less than 1 % of all cases.
JUDGED_FROM = 400
FAILED_IN_A_ROW = 10  # shards that fail with none finished in between; twice the number of workers if that is more
UNUSABLE_IMAGES = (*(status for status in ImageStatus if status.is_failure), ImageStatus.NO_PEOPLE)
_ADVICE = {str(status): status.advice for status in (*UNUSABLE_IMAGES, PersonStatus.INVALID_LABEL)}
_NEXT = (
    "repair the cause and start again with --retry-failed: finished shards stay; or accept the failures with "
    "--set run.max_failed_images=1"
)
# Runs with fewer people, images or fits get no verdict: the median of ten correlations around 0.1 is rarely below -0.2.
LEAST_PEOPLE, LEAST_IMAGES, LEAST_FITS = 10, 10, 5
# Correlation of rendered z with depth inside bodies: 0.6 with exact maps, 0.14 with maps blurred beyond use, -0.6 with
# the same maps inverted, where 97 % of the bodies have a negative one (36 % with blurred maps).
BACKWARDS_CORR, BACKWARDS_SHARE = -0.2, 0.75
# Of images, by the mean over their bodies: 3 % are negative with the worst sound maps (seven in ten then lie between).
MIXED_CORR, MIXED_SHARE, MIXED_SURE = 0.2, 0.15, 0.75
WEAK_CORR = 0.1  # below it the maps hardly show the bodies; maps of other images give 0
MOST = 0.9  # "nearly all": on sound runs 4 % are too small, 11 % far (all, with maps in another unit), 7 % at the bound
TOO_TALL_SHARE = 0.3  # 4 % on photographs in the published unit, 70 % with the same maps times 1000
ALONE_SHARE = 0.5  # 1 % on crowds
UNMEASURED_SHARE = 0.3  # 4 % on sound runs, 30 % where masks show heads only
ODD_FACTOR = 1.5  # median; 0.97 to 1 on crowds, 0.82 where most are children; 0.5 where all ages are wrongly 0
# Metric networks are within 5 to 15 %, and heights give a crowd's distance to a few percent.
WRONG_METRES, ODD_METRES = 1.5, 1.25
ODD_UNIT = 3.0  # factor between the configured unit and the one that people show; images of one network vary by 1.5
ACCEPTED_SHARE = 0.1  # of optimised images; 40 to 100 % whatever the depth, 8 % with maps the wrong way round

_NOT_COMPARED = (PersonStatus.NOT_RUN, *UNUSED)
_NOT_PLACED = (*_NOT_COMPARED, PersonStatus.EMPTY_MASK)
_IMAGES = ("is_accepted", "is_optimized", "alpha_near", "alpha_far", "depth_origin", "persons")
_PEOPLE = ("corr", "depth_group", "depth_mean", "transl", "transl_init", "scale")
_BINS = 40  # of correlations from -1 to 1: the median is known to 0.05
_UNIT_BINS = 40  # of units, to a factor of ten: the median is known to 3 %
LabelTable = Any  # a pyarrow.Table of schema.LABELS_SCHEMA; pyarrow itself is imported in data/ only


class FailureBudget:
    """Counts inputs that could not be used, and compares their share with `run.max_failed_images`.

    The driver's loop reports each shard and asks for a `complaint`: whether more than that share of the images that
    this launch processed has failed. Shards finished before do not count, so that a launch after a repair goes on. The
    summary reports all finished shards and asks for the `verdict`.
    """

    def __init__(self, share: float, images: Mapping[int, int], repairs: Iterable[int] = (), workers: int = 1) -> None:
        """
        Args:
            share: of images, and of people, that may fail; 1 = all of them, nothing is judged.
            images: of each shard of this launch.
            repairs: shards that were finished before; only their failed images are done again, and are not judged.
        """
        self.examples: dict[str, Receipt] = {}  # cause -> the first shard with a row of it
        self._share, self._shard_images, self._repairs = share, images, frozenset(repairs)
        self._seen = Counter[str]()  # images and people that were processed
        self._lost = {"images": Counter[str](), "people": Counter[str]()}  # status word, or error of a shard -> count
        self._row_limit = max(FAILED_IN_A_ROW, 2 * workers)
        self._row: dict[int, str] = {}  # shards that failed since one was finished -> error

    def shard_done(self, receipt: Receipt) -> None:
        self._row.clear()
        if receipt.shard in self._repairs:
            return
        self._seen.update(images=receipt.images, people=receipt.persons)
        for what, counts in (("images", receipt.image_status), ("people", receipt.person_status)):
            failed = Counter({word: count for word, count in counts.items() if word in _ADVICE})
            self._lost[what].update(failed)
            self.examples = {**dict.fromkeys(failed, receipt), **self.examples}

    def attempt_failed(self, shard: int, given_up: bool, error: str) -> None:
        """A shard used up an attempt. Its images are lost once it is given up."""
        self._row.pop(shard, None)
        self._row[shard] = error
        if given_up and shard not in self._repairs:
            images = self._shard_images.get(shard, 0)
            self._seen["images"] += images
            self._lost["images"][error] += images

    @property
    def causes(self) -> list[tuple[str, int]]:
        """Causes with their counts, the most frequent first."""
        return (self._lost["images"] + self._lost["people"]).most_common()

    def complaint(self) -> str:
        """Why the launch should stop, with counts and the next step; "" = the launch continues."""
        if self._share < 1 and len(self._row) >= self._row_limit:
            row = f"{len(self._row)} shards failed one after the other and none was finished"
            return f"stopped: {row}; the last error: {[*self._row.values()][-1]}; {_NEXT}"
        lost = self.verdict(JUDGED_FROM)
        return lost and f"stopped, because in this launch {lost}"

    def verdict(self, least: int = 0) -> str:
        """Counts per cause with advice, and the next step, if more than the share was lost; else "".

        `least`: smaller numbers of images or people count as this number.
        """
        parts = [(lost.total(), self._seen[what], what) for what, lost in self._lost.items()]
        if self._share >= 1 or not any(lost > self._share * max(seen, least) for lost, seen, _ in parts):
            return ""
        counts = " and ".join(f"{lost} of {seen} {what}" for lost, seen, what in parts if lost)
        lines = [f"  {cause:<16} {count:>9}  {_ADVICE.get(cause, '')}".rstrip() for cause, count in self.causes]
        first = f"{counts} could not be used, more than {self._share:.3g} of all (run.max_failed_images)"
        return "\n".join([first, *lines, _NEXT])


def count_signs(table: LabelTable, config: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """What the figures of `Sanity` need to know about a shard, for its receipt, besides the counts of statuses.

    Args:
        table: label rows of the shard.
        config: of the run, as from `PipelineConfig.to_dict`.

    Returns:
        Counts by name; `corr NN` is a histogram of correlations inside bodies, `unit NN` one of `Sanity.unit`, `factor
        NN` one of `Sanity.factor`. Zeros are left out.
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
        factor = np.log10(people["scale"][[word in PLACED for word in words]].astype(np.float64)) * _UNIT_BINS
        known = np.isfinite(people["corr"])
        bodies = np.bincount(owner[known], minlength=columns.num_images)
        mean = np.bincount(owner[known], people["corr"][known], columns.num_images) / bodies
    several, corr = bodies >= 2, people["corr"][known]
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
        "images of several bodies": several.sum(),
        "images forwards": (several & (mean > MIXED_CORR)).sum(),
        "images backwards": (several & (mean < -MIXED_CORR)).sum(),
        **_histogram("unit", unit),
        **_histogram("factor", factor),
    }
    return {name: int(count) for name, count in counts.items() if count}


def _histogram(name: str, values: np.ndarray) -> dict[str, int]:
    """Counts of the finite values rounded to whole numbers, by name and number."""
    counts = Counter(np.rint(values[np.isfinite(values)]).astype(int).tolist())
    return {f"{name} {number}": count for number, count in sorted(counts.items())}


def _count_fits(columns: LabelColumns, metric: np.ndarray, config: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Fits of the published solver, and how many are at `default_alpha_min`; alpha 0 = a group without a fit."""
    if config["solver"]["mode"] != "paper":
        return {}
    alpha = np.stack([columns.images["alpha_near"], columns.images["alpha_far"]])
    unit: float | np.ndarray | None = _configured_unit(config)
    if unit is None:  # as `maths.depth_evidence` measured it: the median of each image
        metres = columns.people["depth_mean"].astype(np.float64) * METRES_PER_DEPTH
        parts = np.split(columns.people["transl_init"][:, 2] / metres, columns.starts[1:-1])
        unit = np.array([np.median(part[~np.isnan(part)]) if not np.isnan(part).all() else np.nan for part in parts])
    fits = np.isfinite(alpha) & (alpha != 0)
    bound = config["solver"]["default_alpha_min"] * np.where(metric, 1.0, unit)
    held = fits & np.isclose(alpha, bound, rtol=1e-5, atol=0)
    return {"fits": int(fits.sum()), "fits at the default bound": int(held.sum())}


def _configured_unit(config: Mapping[str, Mapping[str, Any]]) -> float | None:
    """`depth.unit` as a number; None = measured. Runs of 0.3.0 have the published one."""
    return DepthConfig(unit=config["depth"].get("unit", "published")).given_unit


def _figure(text: str, share: bool = True) -> Any:
    """A field that is shown under this name, as a percentage or a number."""
    return field(default=None, metadata={"text": text, "share": share})


@dataclass(frozen=True)
class Sanity:
    """The figures of a run; None = not known, as most are of runs of version 0.3.0."""

    body: str  # used by the run
    depth: str
    accepted_images: float | None = _figure("accepted images")
    accepted_people: float | None = _figure("people in accepted images")
    too_small: float | None = _figure("people too small")  # of people who were to be placed; likewise the next two
    too_tall: float | None = _figure("people too tall")
    alone: float | None = _figure("people alone in their group")
    far: float | None = _figure("measured people that are far")
    fits_at_default_bound: float | None = _figure("fits at the default bound")  # solver.mode paper only
    unmeasured: float | None = _figure("people without a measurement")  # of people who were to be compared
    median_corr: float | None = _figure("median correlation of z and depth inside bodies", share=False)
    factor: float | None = _figure("median factor on distance and height", share=False)
    # median over people of distance (after) / (relative depth * METRES_PER_DEPTH); 1 for right metric maps
    unit: float | None = _figure("depth unit, as a multiple of the published one", share=False)
    warnings: list[str] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)

    def figures(self) -> list[tuple[str, str]]:
        """Name and value of each known figure, as text."""
        found = [(f.metadata, getattr(self, f.name)) for f in fields(self) if f.metadata]
        return [
            (about["text"], f"{100 * value:.1f} %" if about["share"] else f"{value:.3g}")
            for about, value in found
            if value is not None
        ]

    def lines(self) -> list[str]:
        """Text for a terminal."""
        return [
            f"used     body {self.body}; depth {self.depth}",
            *(f"sanity   {value:>7}  {name}" for name, value in self.figures()),
            *(f"WRONG    {text}" for text in self.contradictions),
            *(f"look     {text}" for text in self.warnings),
        ]


def judge_run(identity: RunIdentity, receipts: Sequence[Receipt]) -> Sanity:
    """The figures of the shards that are done, with warnings and contradictions."""
    path = identity.config["body"]["model_path"]
    signs = Counter(add_counts(receipt.signs for receipt in receipts))
    images = Counter(add_counts(receipt.image_status for receipt in receipts))
    people = Counter(add_counts(receipt.person_status for receipt in receipts))
    placing = people.total() - sum(people[word] for word in _NOT_PLACED)
    below = _bodies_below(signs)
    bodies = below[-1]
    found = Sanity(
        body=f"{STAND_IN_BODY} (the stand-in, not SMPL)" if path in ("", STAND_IN_BODY) else str(path),
        depth=_describe_depth(identity),
        accepted_images=_share(signs["accepted images"], images.total() if signs else 0),
        accepted_people=_share(signs["people of accepted images"], people.total() if signs else 0),
        too_small=_share(people[PersonStatus.TOO_SMALL], placing),
        too_tall=_share(people[PersonStatus.TOO_TALL], placing),
        alone=_share(people[PersonStatus.ALONE_IN_GROUP], placing),
        fits_at_default_bound=_share(signs["fits at the default bound"], signs["fits"]),
        far=_share(signs["far"], signs["measured"]),
        unmeasured=_share(signs["unmeasured"], signs["compared"]),
        median_corr=round(float(np.interp(bodies / 2, below, np.linspace(-1, 1, _BINS + 1))), 3) if bodies else None,
        factor=_median_power(signs, "factor "),
        unit=_median_power(signs, "unit "),
    )
    unit = 1.0 if _is_metric(signs) else _configured_unit(identity.config)
    warnings = _warnings(signs, found, people, unit, placing)
    return replace(found, warnings=warnings, contradictions=_contradictions(signs, found, images, people))


def _bodies_below(signs: Counter[str]) -> np.ndarray:
    """(_BINS + 1,) bodies with a correlation below the edge of each bin; the last: all of them."""
    return np.cumsum([0, *(signs[f"corr {number:02d}"] for number in range(_BINS))])


def _negative(signs: Counter[str], found: Sanity) -> float:
    """The share of bodies inside which depth falls, if that is most of them and the median agrees; else 0."""
    below = _bodies_below(signs)
    share = float(below[_BINS // 2] / max(1, below[-1]))
    backwards = found.median_corr is not None and found.median_corr < BACKWARDS_CORR and share >= BACKWARDS_SHARE
    return share if backwards and below[-1] >= LEAST_PEOPLE else 0.0


def _is_metric(signs: Counter[str]) -> bool:
    """Whether nearly all maps of enough people were metric."""
    return signs["in metres"] >= max(LEAST_PEOPLE, MOST * signs["measured"])


def _contradictions(signs: Counter[str], found: Sanity, images: Counter[str], people: Counter[str]) -> list[str]:
    """Results that no sound run has."""
    negative, unmeasured, alone = _negative(signs, found), found.unmeasured or 0, images[ImageStatus.TOO_FEW_PEOPLE]
    placed = any(people[word] for word in PLACED)
    kept = max(PersonStatus, key=lambda word: people[word] if word not in _NOT_PLACED else 0)  # the commonest outcome
    several, right, wrong = (signs[f"images {words}"] for words in ("of several bodies", "forwards", "backwards"))
    rules = (
        (negative > 0,
         f"depth runs the wrong way round: inside {100 * negative:.0f} % of the bodies it falls where the body goes "
         f"farther away (median correlation {found.median_corr or 0:.2f}); check depth.kind: disparity is larger for "
         "nearer, depth for farther; then run into another folder"),
        (several >= LEAST_IMAGES and min(right, wrong) >= MIXED_SHARE * several
         and right + wrong >= MIXED_SURE * several,
         f"depth runs the wrong way round in {wrong} of {several} images and the right way in {right}: maps of "
         "different kinds are mixed; make all of them of one depth.kind, then run into another folder"),
        (_is_metric(signs) and _off(found.unit, 1.0) >= WRONG_METRES,
         f"the maps' metres contradict the people, who by their heights stand at {found.unit or 1:.2g} times the "
         "distance in the maps (median): check depth.kind, and depth.scale (0.001 for millimetres); then run into "
         "another folder"),
        (signs["compared"] >= LEAST_PEOPLE and unmeasured >= MOST,
         f"nothing could be measured on {100 * unmeasured:.0f} % of the people, who keep their label or are placed by "
         "height priors alone: masks that do not fit the people (order or size of the run lengths, another image's), "
         "labels in other units than metres, or depth that is flat or unknown; dto view draws it"),
        (alone >= max(LEAST_IMAGES, MOST * images.total()) and not placed,
         f"nobody was placed: {alone} of {images.total()} images hold fewer than two people that can be compared; "
         "solver.mode=joint with joint.move_single=true places people who are alone by their heights"),
        (signs["compared"] >= LEAST_PEOPLE and unmeasured < MOST and not placed,
         f"nobody was placed, though {signs['compared']} people could be compared; {people[kept]} of them are {kept} "
         f"({kept.advice}): check the options that were changed (--config, --set) and the labels' units"
         f"{', or take solver.mode=joint, which has no groups' * (kept is PersonStatus.ALONE_IN_GROUP)}; then run into "
         "another folder"),
    )  # fmt: skip
    return [text for applies, text in rules if applies]


def _warnings(
    signs: Counter[str], found: Sanity, people: Counter[str], expected: float | None, placing: int
) -> list[str]:
    """Results that are seldom right. `expected`: the depth's unit, 1 of metric maps; None = measured per image."""
    metres, bodies = _is_metric(signs), _bodies_below(signs)[-1]
    configured = expected is not None and not metres
    unit = "the depth is not in the unit of depth.unit, for which this limit was set"
    unit = unit if configured else "the labels' distances are wrong"
    off = _off(found.unit, 1.0 if expected is None else expected)
    corr = 1.0 if found.median_corr is None else found.median_corr
    optimised = signs["optimised images"]
    rules = (
        (signs["measured"] >= LEAST_PEOPLE and (found.far or 0) >= MOST,
         f"nearly all measured people are far (evidence.far_depth): {unit}, or people are small in the pictures; "
         "solver.mode=joint has no such limit"),
        (signs["fits"] >= LEAST_FITS and (found.fits_at_default_bound or 0) >= MOST,
         f"nearly all fits are held at solver.default_alpha_min, because no body's slope counted: {unit}, or the maps "
         "are blurred; solver.mode=joint has no such bound"),
        (placing >= LEAST_PEOPLE and (found.too_tall or 0) >= TOO_TALL_SHARE,
         f"many people would be too tall: {unit}, or masks or labels are other people's"),
        (placing >= LEAST_PEOPLE and (found.alone or 0) >= ALONE_SHARE,
         f"most people are alone in their group: {unit}, or the labels' distances are wrong"),
        (signs["compared"] >= LEAST_PEOPLE and UNMEASURED_SHARE <= (found.unmeasured or 0) < MOST,
         f"nothing could be measured on {100 * (found.unmeasured or 0):.0f} % of the people: masks that do not fit "
         "them (order, parts of people), labels that do not lie on them, or flat or unknown depth; dto view draws it"),
        (sum(people[word] for word in PLACED) >= LEAST_PEOPLE and _off(found.factor, 1.0) >= ODD_FACTOR,
         f"people stand at {found.factor or 1:.2g} times the distance of their labels (median): check that ages are "
         "in years (0 is a newborn; NaN or -1: unknown), and that labels are in metres and of this body model"),
        (metres and ODD_METRES <= off < WRONG_METRES,
         f"the maps' metres hardly agree with the people, who by their heights stand at {found.unit or 1:.2f} times "
         "the distance in the maps (median): check the labels' focal length, and what the network is for (indoors, "
         "outdoors)"),
        (configured and off >= ODD_UNIT and bodies >= LEAST_PEOPLE,
         f"depth.unit is {expected or 1:g} of the published network's unit, people show {found.unit or 1:.2g}: "
         "evidence.far_depth and solver.default_alpha_min have no meaning then; take depth.unit=measured"),
        (corr < WEAK_CORR and bodies >= LEAST_PEOPLE and not _negative(signs, found),
         f"depth hardly shows the bodies (median correlation inside them {corr:.2f}): blurred maps, or maps of other "
         "images or another crop"),
        (optimised >= LEAST_IMAGES and signs["accepted images"] < ACCEPTED_SHARE * optimised,
         "hardly any optimised image is accepted: heights contradict the priors; check ages, masks and depth.kind"),
    )  # fmt: skip
    return [text for applies, text in rules if applies]


def _off(unit: float | None, expected: float) -> float:
    """Factor between a unit and the expected one, 1 or more; 1 if it is not known."""
    return 1.0 if unit is None else max(unit / expected, expected / unit)


def _median_power(signs: Counter[str], name: str) -> float | None:
    """The median of a histogram of powers of ten."""
    bins = sorted((int(sign.removeprefix(name)), count) for sign, count in signs.items() if sign.startswith(name))
    if not bins:
        return None
    middle = np.searchsorted(np.cumsum([count for _, count in bins]), sum(count for _, count in bins) / 2)
    return float(f"{10 ** (bins[int(middle)][0] / _UNIT_BINS):.3g}")


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _describe_depth(identity: RunIdentity) -> str:
    depth = identity.config["depth"]
    if depth["source"] == "model":
        content = identity.inputs.get("depth network", "")
        if content and "@" not in content:  # a folder: its content, and its path
            return f"network {depth['model']} (sha256 {content[:16]})"
        return f"network {content or identity.versions.get('depth network', depth['model'])}"
    scale = "" if depth["scale"] == 1 else f" times {depth['scale']:g}"
    return f"files of {depth['kind']}{scale}"
