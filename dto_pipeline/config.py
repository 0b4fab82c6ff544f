"""Every option of the pipeline: frozen dataclasses, one per section, with unit and origin.

`config_tree` reads YAML and ``section.key=value`` overrides; `run.identity` lists the options that can change a label.
Section numbers refer to arXiv 2511.13282 as implemented by its authors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

from dto_pipeline.config_tree import ABOVE_ZERO, Sections, build_sections, expect, read_tree

DEPTH_UNITS = ("measured", "published")  # or a number; explained in `maths.depth_evidence`
METRES_PER_DEPTH = 500.0  # [m] of one unit of relative depth in the published network's unit: far_depth is 10 m
DEPTH_PRECISIONS = ("auto", "float32", "tf32", "float16", "bfloat16")  # maps and the last layer are always float32
# Values that 0 in the config stands for: (on a CPU, on a GPU). A GPU needs 32 images to hide the 1,300 kernel launches
# of a batch, and up to 8 threads to decode them (calculated, not measured)
BY_DEVICE = {"run.batch_images": (8, 32), "depth.batch": (8, 32), "run.decode_threads": (2, 8)}
_CHOICES = {
    "solver.mode": ("paper", "joint"),
    "joint.depth_model": ("auto", "affine_depth", "affine_disparity"),
    "depth.source": ("files", "model"),
    "depth.kind": ("disparity", "depth", "metric_depth"),
    "depth.precision": DEPTH_PRECISIONS,
    "masks.source": ("labels", "model", "none"),
    "attributes.source": ("labels", "model", "none"),
    "attributes.crop": ("face", "body"),
}
_NUMBERS: dict[tuple[float, float], tuple[str, ...]] = {  # least and most; others are 0 or more, see `Sections.check`
    (-1, inf): ("run.gpus_per_worker",),  # -1: follows the device
    (0, 0.999): ("joint.size_error", "joint.anybody_weight", "joint.wrong_ages_weight"),
    (0, 1): (
        *("run.max_failed_images", "masks.min_score", "masks.min_match"),
        *("joint.growth_weight", "joint.gender_trust", "joint.unknown_age_below"),
    ),
    (0, 100): ("evidence.ground_percentile",),
    ABOVE_ZERO: (  # divisors, arguments of logarithms, times
        *("prior.mean", "prior.sigma", "prior.adult_sigma_without_gender", "depth.scale"),
        *("joint.share_sigma", "joint.metric_sigma", "joint.slope_sigma", "joint.age_sigma"),
        *("joint.joint_sigma", "joint.hold_z_sigma", "joint.anybody_mean", "joint.usual_deviation"),
        "joint.growth_ages",
        *("run.shard_timeout_s", "run.warm_up_timeout_s", "run.heartbeat_s"),
    ),
    (1, inf): (
        *("run.max_attempts", "run.decode_memory_mb", "run.torch_threads", "masks.batch", "attributes.batch"),
        *("evidence.min_pixels_grid", "joint.min_pixels_grid", "evidence.render_max_side", "solver.max_rounds"),
    ),
    (14, inf): ("depth.short_side",),
    (32, inf): ("masks.short_side",),
}
_RANGES = {name: limits for limits, names in _NUMBERS.items() for name in names}
_Six = tuple[float, float, float, float, float, float]
_MIXTURES = (  # options of `joint` that hold as many numbers as each other
    ("tail_widths", "tail_weights"),
    ("noise_levels", "noise_level_weights"),
    ("noise_levels", "blurred_level_weights"),
)
_ASCENDING = ("prior.age_limits", "joint.unknown_age_below", "joint.growth_ages", "joint.blurred_corr")
_DISTINCT = _ASCENDING[2:]  # limits of classes may coincide, points that are interpolated between may not


@dataclass(frozen=True)
class PriorConfig:
    """Height priors by age and gender. Means and sigmas in metres, ages in years (DTO's published constants)."""

    age_prior: bool = True  # False: all people are treated as adults
    gender_prior: bool = True  # False: adults keep their own height as mean, with `adult_sigma_without_gender`
    age_limits: tuple[float, float, float] = (3.0, 8.0, 15.0)  # below: baby, kid, teen; else adult [years]
    female_below: float = 0.33  # p_male under this: adult female
    male_from: float = 0.67  # p_male at or over this: adult male
    # baby, kid, teen, adult female, adult male, adult of unknown gender
    mean: _Six = (0.801, 1.122, 1.477, 1.647, 1.784, 1.715)  # [m]
    sigma: _Six = (0.126, 0.12, 0.156, 0.0707, 0.0759, 0.1)  # [m]
    adult_sigma_without_gender: float = 0.073  # [m]


@dataclass(frozen=True)
class EvidenceConfig:
    """Requirements on a person's pixels (DTO's published constants)."""

    render_max_side: int = 512  # longest side of the person map [px]; images are scaled down, never up
    visible_tolerance: float = 0.01  # a vertex this far behind the map still counts as visible [m]
    min_pixels_grid: int = 20  # a person needs (H / grid) * (W / grid) pixels
    min_visible_vertices: int = 500  # of the 6890 of SMPL
    iqr_factor: float = 1.5  # depth outliers lie this many interquartile ranges beyond the quartiles
    max_residual: float = 0.10  # |z - line| of a pixel that counts, row means removed [m]
    ground_percentile: float = 90.0  # rows at or below this percentile of a person's rows touch the ground [%]
    far_depth: float = 0.02  # mean relative depth beyond which a person is far [1 / disparity, in `depth.unit`]
    far_scale: float = 0.25  # 2 fy / (z * min(H, W)) under which a person is far


@dataclass(frozen=True)
class SolverConfig:
    """The maximum-a-posteriori fit of alpha and beta (DTO's published constants)."""

    mode: str = "paper"  # paper: the published method; joint: this project's own
    internal_constraint: bool = True  # alpha may not be flatter than the bodies in the crowd
    min_corr: float = 0.5  # a body's slope counts above this correlation (strict)
    default_alpha_min: float = 20.0  # [m per depth unit, in `depth.unit`] where no body's slope counts
    max_height: float = 2.1  # of a placed person [m]
    max_rounds: int = 10  # rounds of setting the tallest aside


@dataclass(frozen=True)
class CrowdConfig:
    """`solver.mode: joint`, this project's own solver. (tuned): on crowds of `lab`, seeds 1, 2, 11, 12, 31 and 32."""

    depth_model: str = "auto"  # affine_depth or affine_disparity; auto = both, weighted by their evidence in the image
    move_single: bool = False  # place the only person of an image by its height prior
    min_pixels_grid: int = 45  # replaces evidence.min_pixels_grid: small people count, with more noise
    min_visible_vertices: int = 100  # replaces evidence.min_visible_vertices
    # depth noise, relative to z
    depth_sigma: float = 0.02  # error of one person's depth as a whole: what good monocular networks reach
    noise_levels: tuple[float, ...] = (0.4, 1.0, 2.5, 6.0)  # factors on it that an image may have ...
    # ... and their probabilities where the map shows the shape of bodies (mean correlation inside them at least the
    # second of `blurred_corr`) and where it is too blurred to (at most the first); in between the two are mixed
    noise_level_weights: tuple[float, ...] = (0.27, 0.39, 0.31, 0.03)  # (tuned)
    blurred_level_weights: tuple[float, ...] = (0.02, 0.13, 0.45, 0.40)  # (tuned)
    blurred_corr: tuple[float, float] = (0.2, 0.45)  # blurred by 6 px: 0.0 to 0.35, by 1 px: 0.4 to 0.7
    edge_sigma: float = 0.2  # added: this over the square root of a person's pixels (borders blur; tuned)
    # Student's t of about 4 degrees of freedom and rare gross errors, as normal laws of these widths and weights
    tail_widths: tuple[float, ...] = (0.9, 2.0, 8.0)
    tail_weights: tuple[float, ...] = (0.70, 0.27, 0.03)
    # in some images a network places small people too far: depth is (1.7 m / height)^k times the truth
    size_error: float = 0.35  # k of such an image (tuned with k = 0.3; this one k stands for smaller and larger ones)
    size_error_probability: float = 0.04  # of such an image (tuned)
    metric_sigma: float = 0.1  # of a metric map's scale, per image, relative: its networks report 5 to 15 %
    share_sigma: float = 0.15  # of the line's share, whose mean is 1: an offset of 15 % of typical disparity is 1 sigma
    # slopes inside bodies, as measurements of the line's elasticity
    slope_gain: float = 1.6  # the slope falls short of the truth by corr to this power (tuned; 2 = noise in depth only)
    slope_sigma: float = 0.25  # of the elasticity, over the correlation (tuned)
    min_corr: float = 0.3  # slopes of lower correlation are not used
    # heights
    size_sigma: float = 0.025  # relative error of a label's size in the picture: 3 % in labels fitted to other bodies
    label_height_sigma: float = 0.25  # of an adult's label height: networks label children as adults
    age_sigma: float = 0.2  # of the logarithm of an estimated age
    # the odds of a male probability are raised to this power, because estimates avoid 0 and 1 and the published method
    # takes 0.67 as certain; of the distance from 0.5 this share is kept then (tuned)
    gender_power: float = 2.5
    gender_trust: float = 0.96
    # a child's height follows its age: log-linear through the published class means at these ages [years], then grown
    growth_ages: tuple[float, float, float, float] = (1.5, 5.5, 11.5, 17.0)
    growth_weight: float = 0.25  # probability that a child follows its age rather than only its class (tuned)
    growth_sigma: float = 0.05  # of the logarithm of the height among children of one age (growth charts: 4-5 %)
    # without an age: probability of a baby, of a kid or younger, of a teen or younger; else an adult. With lower values
    # children are taken for adults, with higher ones adults for children where depth is weak (tuned on crowds of both)
    unknown_age_below: tuple[float, float, float] = (0.015, 0.045, 0.09)
    anybody_weight: float = 0.045  # probability that age and gender are another person's ...
    wrong_ages_weight: float = 0.3  # ... the same in an image whose ages are wrong more often ...
    wrong_ages_probability: float = 0.1  # ... and the probability of such an image (tuned)
    anybody_mean: float = 1.5  # [m]
    anybody_sigma: float = 0.25  # of the logarithm of the height
    # people keep their place in the picture
    joint_sigma: float = 0.02  # of joints in the picture when proportions change, relative to the body
    hold_z_sigma: float = 0.01  # of the change of z that this may cause, relative
    # added to the posterior:
    # a common relative error of the heights of one image's people, which no image shows (calibrated on our own crowds
    # and on foreign bodies together)
    population_sigma: float = 0.015
    # added to it, times the share of people without an age (calibrated on both kinds of crowds without ages)
    unknown_ages_sigma: float = 0.025
    focal_sigma: float = 0.0  # of the labels' focal length, relative; 0: sigmas are given the camera
    # factor on the posterior sigmas of the fit itself: people vary less than the priors and label errors allow
    # (calibrated with the two above so that 50, 80 and 95 % intervals hold, on synthetic crowds, seeds 1, 2, 31, 32)
    temperature: float = 0.86
    # then variances are scaled by how far an image's people are from their height priors on average: by 1 at this mean
    # deviation [sigma], which is averaged in as if it came from so many people (calibrated with these)
    usual_deviation: float = 0.56
    deviation_people: float = 6.0
    # acceptance, in addition to `refine.accept_below`
    accept_error_below: float = 0.05  # largest expected error of z over the mean distance (tuned)
    grown_above: float = 1.45  # least height of people who are not children by their age [m]
    rerender_pixels: int = 20  # of the person map that change owner before a scene is measured again


@dataclass(frozen=True)
class RefineConfig:
    """From a fit to labels (DTO's published constants)."""

    kid_axis_below: float = 1.45  # a person ending below this height is scaled along the kid axis [m]
    set_aside_penalty: float = 3.0  # deviation charged for a person set aside by height [sigma]
    accept_below: float = 1.5  # mean height deviation of an image that is accepted [sigma]


STAND_IN_BODY = "demo"  # names the free body of assets/ in place of a path
NAME_A_BODY = (
    "name a body: body.model_path=PATH (or --body PATH) of an npz made by `dto body import`, or demo for the free "
    "stand-in"
)


@dataclass(frozen=True)
class BodyConfig:
    """The body model, a file in SMPL's format."""

    # npz, or folder with SMPLA_NEUTRAL.npz / SMPL_NEUTRAL.npz; demo = the stand-in; "" = not named, and refused
    model_path: str = ""
    kid_axis: bool = True  # use the 11th shape direction when the model has one


@dataclass(frozen=True)
class DepthConfig:
    """Source of disparity: files, or a network; `models.networks` has licences."""

    source: str = "files"  # files or model
    root: str = ""  # files: folder with one map per image; "" = the `depth` folder named by the manifest
    kind: str = "disparity"  # files: disparity, depth or metric_depth, see `models.depth`; a network has its own kind
    scale: float = 1.0  # files: stored numbers times this are in the kind's unit (0.001: millimetres)
    # relative maps: their disparity is this many times the published network's; a number, or see `DEPTH_UNITS`
    unit: float | str = "measured"
    model: str = ""  # model: hub name or folder; "demo" = the package's small network, for the demo's pictures only
    revision: str = ""  # model: commit a hub name is pinned to
    offline: bool = False  # model: never ask the hub, only its cache on this machine
    short_side: int = 518  # model: shorter side of Depth Anything's input [px], as published
    # model: images at once on a GPU; part of the run's identity, because it can change last bits; 0 = see `BY_DEVICE`
    batch: int = 0
    precision: str = "auto"  # model: see `DEPTH_PRECISIONS`; auto = float32 on a CPU, bfloat16 on a GPU

    @property
    def given_unit(self) -> float | None:
        """`unit` as a number; None = measured in each image."""
        if isinstance(self.unit, str):
            return None if self.unit == "measured" else 1.0
        return self.unit


@dataclass(frozen=True)
class MaskConfig:
    """Source of instance masks, recorded in the labels' column `mask_origin`."""

    source: str = "labels"  # labels: those of the manifest; model: all from a network; none: rendered silhouettes
    model: str = ""  # hub name or folder of an instance (universal) segmentation network of transformers
    revision: str = ""  # commit a hub name is pinned to
    offline: bool = False  # never ask the hub
    short_side: int = 640  # of the network's input [px]
    batch: int = 4  # images at once
    min_score: float = 0.5  # least score of an instance
    min_match: float = 0.3  # least mean of silhouette IoU and share of joints inside, to assign an instance to a person


@dataclass(frozen=True)
class AttributeConfig:
    """Source of age and gender of people whose labels have none, recorded in the column `attribute_origin`."""

    source: str = "labels"  # labels: the manifest, else unknown; model: a network for the unknown; none: all unknown
    model: str = ""  # hub name or folder of an image classification network of transformers (ages, genders or both)
    revision: str = ""  # commit a hub name is pinned to
    gender_model: str = ""  # a second network, where the first knows ages only
    gender_revision: str = ""
    crop: str = "face"  # input of a classifier: face or body; MiVOLO takes both
    offline: bool = False  # never ask the hub
    trust_remote_code: bool = False  # run the repository's own Python code (MiVOLO v2 needs it); needs the revision
    batch: int = 32  # people at once


@dataclass(frozen=True)
class RunConfig:
    """Execution. Not part of a run's identity: only `device` can change a bit of a label, see docs/promise.md."""

    workers: int = 2  # Ray actors; 0 runs in this process without Ray
    batch_images: int = 0  # scenes optimised together; 0 = see `BY_DEVICE`
    decode_threads: int = 0  # threads per worker that decode images and masks; 0 = see `BY_DEVICE`
    # memory for decoding in a worker [MiB]: one JPEG, PNG or WebP of 100 Mpx fits. Images wait for each other; one that
    # needs more, by its header, is not decoded (image_corrupt)
    decode_memory_mb: int = 1792
    device: str = "auto"  # cpu, cuda, cuda:1 ...; auto = cuda where there is one
    torch_threads: int = 1  # threads per worker on a CPU, of the optimiser; networks compute as many images at once
    cpus_per_worker: float = 1.0  # of a Ray actor
    gpus_per_worker: float = -1.0  # of a Ray actor; fractions allowed; -1 = one where there are any
    max_attempts: int = 3  # attempts a shard gets before it is given up
    shard_timeout_s: float = 1800.0  # a shard without a result for this long is taken from its worker [s]
    # a worker that has its CPUs and GPUs but is not ready for this long is ended [s]; 1.3 GB of Depth Anything V2 Large
    # take 22 minutes at 1 MB/s. Waiting for CPUs and GPUs has no limit
    warm_up_timeout_s: float = 1800.0
    max_failed_shards: int = 20  # shards given up after which the run stops
    # share of unusable images, and of people (see `run.sanity`), beyond which a launch stops and a run ends with exit
    # code 1; 1 = all of them may fail. A choice: more than dead links and a few bad files
    max_failed_images: float = 0.05
    max_poison_images: int = 3  # images of one shard that may end their process before the shard is given up
    lease_s: float = 60.0  # a driver on another host without a heartbeat for this long is taken to be dead [s]
    heartbeat_s: float = 10.0  # time between heartbeats of a driver [s]


@dataclass(frozen=True)
class PipelineConfig(Sections):
    """All sections of the pipeline."""

    prior: PriorConfig = field(default_factory=PriorConfig)
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    joint: CrowdConfig = field(default_factory=CrowdConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    body: BodyConfig = field(default_factory=BodyConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    attributes: AttributeConfig = field(default_factory=AttributeConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        self.check(_CHOICES, _RANGES)
        joint, unit = self.joint, self.depth.unit
        for widths, weights in _MIXTURES:
            sizes = len(getattr(joint, widths)), len(getattr(joint, weights))
            expect(sizes[0] == sizes[1] > 0, f"joint.{widths} and joint.{weights} hold {sizes} numbers; want as many")
            total = sum(getattr(joint, weights))
            expect(0 < total < inf, f"joint.{weights} have the sum {total:g}; expected a finite one of more than 0")
        for name in _ASCENDING:
            limits = self.option(name)
            sound = all(a < b if name in _DISTINCT else a <= b for a, b in pairwise(limits))
            found = ", ".join(f"{limit:g}" for limit in limits)
            expect(sound, f"{name} is {found}; expected ascending numbers{', all different' * (name in _DISTINCT)}")
        female, male = self.prior.female_below, self.prior.male_from
        expect(
            female <= male,
            f"prior.female_below is {female:g}, prior.male_from {male:g}; expected the lower probability first",
        )
        unusual = joint.wrong_ages_probability, joint.size_error_probability
        expect(
            sum(unusual) < 1,
            f"joint.wrong_ages_probability and joint.size_error_probability are {unusual}; expected a sum below 1",
        )
        expect(
            unit in DEPTH_UNITS if isinstance(unit, str) else 1e-37 < unit < 1e37,  # of float32
            f"depth.unit is {unit!r}; choose from {DEPTH_UNITS} or give a positive number",
        )
        expect(
            self.depth.source != "model" or bool(self.depth.model),
            "depth.source is 'model' but depth.model is empty; set depth.model to a hub name (with depth.revision) or "
            "a folder, see docs/seeing.md",
        )
        expect(
            3 * self.run.heartbeat_s <= self.run.lease_s,
            "run.heartbeat_s must be at most a third of run.lease_s: a driver may miss two beats",
        )


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Build a config from defaults, an optional YAML file and ``section.key=value`` overrides, in this order.

    Raises: ConfigError: a file, section, key or value that cannot be used, named.
    """
    return config_from_dict(read_tree(path, overrides))


def require_body(config: BodyConfig) -> None:
    """Raises: ConfigError: no body model is named. Call it before anything is written."""
    expect(bool(config.model_path), f"no body model is named; {NAME_A_BODY}")


def with_body(config: PipelineConfig, path: str | None) -> PipelineConfig:
    """The config with this body model; None or "" = unchanged."""
    return dataclasses.replace(config, body=dataclasses.replace(config.body, model_path=path)) if path else config


def config_from_dict(tree: Mapping[str, Mapping[str, Any]]) -> PipelineConfig:
    """Inverse of `PipelineConfig.to_dict`; missing keys take their defaults, unknown ones are refused."""
    return PipelineConfig(**build_sections(PipelineConfig, tree))
