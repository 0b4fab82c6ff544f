"""Errors of labels and solvers on scenes with known truth, as sums per image.

From sums per image follow the errors of one difficulty, of several together, and of bootstrap samples
(`evaluate.evaluation.estimate`). Methods: the labels as given; "height prior alone", which scales every label to its
prior height (adults: the mean of the label's height and the class's) without any depth; both solvers; "paper, else
prior", the published fit, and the height prior for people whom it does not move; and "true line", which is no solver:
it places people where their measured depth lies on the line that the depth map was made with. Metres, pixels.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch

from dto_pipeline.axes import KID_AXIS, MEAN
from dto_pipeline.collate import collate_scenes, split_batch
from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.labels import unpack_covariance
from dto_pipeline.evaluate.evaluation import Sums
from dto_pipeline.evaluate.placements import Placement, join_placements, placement_sums
from dto_pipeline.lab.golden import read_index
from dto_pipeline.lab.golden_labels import load_image_case, recorded_body
from dto_pipeline.lab.known_scenes import KnownScene
from dto_pipeline.maths.crowd_solver import interval_halfwidth
from dto_pipeline.maths.refine import KID_SHIFT_JOINTS
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import PLACED

SOLVERS = ("paper", "joint")
LABELS, PRIOR, FAIR, TRUE_LINE = "label input", "height prior alone", "paper, else prior", "true line"
METHODS = (LABELS, PRIOR, "paper", FAIR, "joint", TRUE_LINE)
EVERYBODY, MOVED = "all people", "moved by paper"
ACCEPTED = {solver: f"accepted by {solver}" for solver in SOLVERS}
SELECTIONS = (EVERYBODY, MOVED, *ACCEPTED.values())
BEHAVIOUR, INTERVALS, EXPECTED = "behaviour", "intervals", "expected error"  # further sums, of solvers only
LEVELS = (0.50, 0.80, 0.95)  # of the intervals
_BATCH = 8  # scenes placed together

Measured = dict[tuple[str, str], Sums]  # method (or variant of a solver), whom or what -> what each image adds


@dataclass(frozen=True)
class Outcome:
    """The N people of several images, as labelled and as placed by one solver."""

    placed: Sequence[PlacedScene]  # one per image
    image: np.ndarray  # (N,) number of the image
    labels: Placement
    found: Placement
    prior: Placement  # labels scaled to their prior height
    moved: np.ndarray  # (N,) bool
    accepted: np.ndarray  # (N,) bool, people of accepted images
    on_line: Placement | None = None  # people on the true line, if it is known
    seconds: float = 0.0  # of processor time

    @classmethod
    def of(cls, placed: Sequence[PlacedScene], on_line: Placement | None = None, seconds: float = 0.0) -> Outcome:

        def column(name: str) -> np.ndarray:
            return np.concatenate([getattr(item, name) for item in placed]).astype(np.float64)

        image = np.repeat(np.arange(len(placed)), [item.scene.num_people for item in placed])
        given, found, prior = (column(f"{name}_m") for name in ("height_init", "height", "prior_mean"))
        z = np.concatenate([item.scene.transl[:, 2] for item in placed]).astype(np.float64)
        factor = (prior / given).astype(np.float32)
        return cls(
            placed,
            image,
            labels=Placement(z, given),
            found=Placement(column("transl")[:, 2], np.where(np.isnan(found), given, found)),
            prior=Placement(z * factor, given * factor),
            moved=np.array([status in PLACED for item in placed for status in item.person_status]),
            accepted=np.array([item.is_accepted for item in placed], bool)[image],
            on_line=on_line,
            seconds=seconds,
        )

    @property
    def else_prior(self) -> Placement:
        """The solver's placement of the people it moves, and the prior's of the others."""
        sides = [np.stack([one.z, one.height]) for one in (self.found, self.prior)]
        return Placement(*np.where(self.moved, *sides))


def place_all(known: Sequence[KnownScene], config: PipelineConfig, mode: str) -> Outcome:
    """Every scene placed by one solver, as in a run."""
    config = replace(config, solver=replace(config.solver, mode=mode))
    placed: list[PlacedScene] = []
    lines: list[Placement] = []
    begun = time.process_time()
    for _, same_body in groupby(known, key=lambda item: id(item.body)):
        items = list(same_body)
        optimizer = SceneOptimizer(items[0].body, config)
        for part in (items[start : start + _BATCH] for start in range(0, len(items), _BATCH)):
            optimized = optimizer(collate_scenes([item.scene for item in part]))
            evidence = optimized.evidence
            measures = torch.stack([evidence.depth[..., MEAN], evidence.z[..., MEAN], optimized.prior.height], -1)
            placed += split_batch([item.scene for item in part], optimized, config)
            lines += [_on_true_line(*pair) for pair in zip(part, measures.numpy(), strict=True)]
    return Outcome.of(placed, join_placements(lines), time.process_time() - begun)


def _on_true_line(item: KnownScene, measures: np.ndarray) -> Placement:
    """People without evidence get their true place. `measures`: (>= P, 3) mean depth; mean z, height of labels [m]."""
    depth, label_z, height = measures[: item.scene.num_people].T
    scale, offset = item.line
    factor = scale / (1 / depth - offset) / label_z
    known = np.isfinite(factor) & (factor > 0)
    z = np.where(known, item.scene.transl[:, 2] * factor, item.z)
    return Placement(z, np.where(known, height * factor, item.height))


def measure_methods(
    known: Sequence[KnownScene], config: PipelineConfig, variants: Mapping[tuple[str, str], PipelineConfig]
) -> Measured:
    """Sums of all methods on some scenes; `variants`: (solver, what is switched off) -> config, measured as well."""
    truth = join_placements([Placement(item.z, item.height) for item in known])
    outcomes = {mode: place_all(known, config, mode) for mode in SOLVERS}
    paper, joint = outcomes["paper"], outcomes["joint"]
    placements = {LABELS: paper.labels, PRIOR: paper.prior, FAIR: paper.else_prior}
    placements |= {TRUE_LINE: joint.on_line or truth, **{mode: outcome.found for mode, outcome in outcomes.items()}}

    def sums(found: Placement, selected: np.ndarray | None = None) -> Sums:
        return placement_sums(found, truth, paper.image, len(known), selected)

    measured: Measured = {}
    for name in METHODS:
        measured[name, EVERYBODY] = sums(placements[name])
        measured[name, MOVED] = sums(placements[name], paper.moved)
    for mode, outcome in outcomes.items():
        for name in (LABELS, mode):
            measured[name, ACCEPTED[mode]] = sums(placements[name], outcome.accepted)
        measured[mode, BEHAVIOUR] = _behaviour(known, outcome)
    for (mode, name), changed in variants.items():
        measured[mode, name] = sums(place_all(known, changed, mode).found)
    measured["joint", INTERVALS] = _inside_intervals(known, joint)
    expected = [np.nan if item.expected_error is None else item.expected_error for item in joint.placed]
    total = measured["joint", EVERYBODY]
    measured["joint", EXPECTED] = {"expected": np.array(expected), "error": total["z_gap"] / total["persons"]}
    return measured


def pool(parts: Sequence[Measured]) -> Measured:
    """Add up several difficulties image by image: all images i are sampled together, because they share a crowd."""
    return {
        key: {
            name: np.concatenate(values) if key[1] == EXPECTED else np.sum(values, axis=0)
            for name, values in ((name, [part[key][name] for part in parts]) for name in parts[0][key])
        }
        for key in parts[0]
        if all(key in part for part in parts)
    }


def _behaviour(known: Sequence[KnownScene], outcome: Outcome) -> Sums:
    """Per image: people, and how far their joints move in the picture, also of those on the kid axis alone; time."""
    images = len(known)
    shift = np.concatenate([_image_shift(*pair) for pair in zip(outcome.placed, known, strict=True)])
    kid = np.concatenate([item.beta_index for item in outcome.placed]) == KID_AXIS
    return {
        "persons": np.bincount(outcome.image, minlength=images),
        "shift": np.bincount(outcome.image, shift, images),
        "kids": np.bincount(outcome.image, kid, images),
        "kid_shift": np.bincount(outcome.image, shift * kid, images),
        "images": np.ones(images),
        "seconds": np.full(images, outcome.seconds / images),
    }


def _image_shift(placed: PlacedScene, known: KnownScene) -> np.ndarray:
    """(P,) mean distance in the image [px] between the joints of each new body and those of its label."""
    scene = placed.scene
    pose = torch.from_numpy(scene.pose)

    def pixels(betas: np.ndarray, transl: np.ndarray) -> np.ndarray:
        joints = known.body.joints(pose, torch.from_numpy(betas), torch.from_numpy(transl)).numpy()
        joints = joints[:, list(KID_SHIFT_JOINTS)]
        return joints[..., :2] / joints[..., 2:] * scene.intrinsics[[0, 1], [0, 1]]

    moved = pixels(placed.betas, placed.transl) - pixels(scene.betas, scene.transl)
    return np.linalg.norm(moved, axis=-1).mean(-1)


def _inside_intervals(known: Sequence[KnownScene], joint: Outcome) -> Sums:
    """How many errors of z, of differences of z and of heights there are, and how many lie inside each interval."""
    found: dict[str, np.ndarray] = {}
    errors = [_errors_in_sigmas(*pair) for pair in zip(known, joint.placed, strict=True)]
    for what in ("z", "pairs", "height"):
        size = np.abs(np.concatenate([one[what] for one in errors]))
        size = size[np.isfinite(size)]
        found[what] = np.array(len(size))
        for level in LEVELS:
            normal = NormalDist().inv_cdf((1 + level) / 2)
            found[f"{what} {level:.2f}"] = (size < (normal if what == "height" else interval_halfwidth(level))).sum()
    return found


def _errors_in_sigmas(item: KnownScene, placed: PlacedScene) -> dict[str, np.ndarray]:
    """Errors divided by the sigmas of the labels: of z, of differences of z, of heights; empty if there are none."""
    if placed.z_covariance is None:
        return dict.fromkeys(("z", "pairs", "height"), np.zeros(0))
    covariance = unpack_covariance(placed.z_covariance, item.scene.num_people)
    miss, variance = placed.transl[:, 2] - item.z, covariance.diagonal()
    first, second = np.tril_indices(item.scene.num_people, -1)
    apart = variance[first] + variance[second] - 2 * covariance[first, second]
    return {
        "z": miss / placed.z_sigma_m,
        "pairs": (miss[first] - miss[second]) / np.sqrt(apart),
        "height": (placed.height_m - item.height) / placed.height_sigma_m,
    }


def read_recorded(folder: Path) -> list[KnownScene]:
    """The recorded images of a folder such as `tests/golden`, with their truth; nothing was tuned on them."""
    known = []
    for entry in read_index(folder / "image" / "index.json"):
        scene, case = load_image_case(folder / "image" / f"{entry['case']}.npz")
        z, height = (case[key].astype(np.float64) for key in ("gt_trans", "gt_height"))
        body = recorded_body(folder, bool(entry["kid_shape"]))
        known.append(KnownScene(scene, z[:, 2], height, tuple(case["gt_disparity_ab"].tolist()), body))
    return known
