"""Rules that every label row must obey, checked over whole columns.

A check has the rows it applies to, those that break it and what was found in them. Metres, pixels of the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dto_pipeline.axes import ADULT_FEMALE, HEIGHT_CLASSES, NUM_BETAS
from dto_pipeline.bounds import ASIDE, BETAS, DISTANCE, HEIGHT, POSE, Acceptance, read_acceptance
from dto_pipeline.data.label_files import LabelColumns, initial_betas
from dto_pipeline.maths.camera import project
from dto_pipeline.models.body import BodyModel
from dto_pipeline.status import PLACED, ImageStatus, PersonStatus

MANIFEST_PEOPLE = ("pose", "betas", "transl", "source_row")  # columns of the manifest that `check_undo` compares
SHIFT_PX, SHIFT_OF_HEIGHT = 4.0, 0.06  # joints may move this far, or this part of the person's height in the image
HEIGHT_SLACK = 0.03  # a height is reached by one secant step: this far beyond the limit still counts as reached [m]
HOLD_SIGMAS = 6.0  # of `joint.hold_z_sigma`: how far z may move to keep the joints in place
HEIGHT_AGREES = 2e-3  # of the column and the body of the betas [m]
_TREE_JOINTS = 24
_LOOK = "draw them (dto view RUN --key IMAGE -o pages), and leave out those that are wrong; see docs/checks.md"
_HUGE = 1e6  # beyond anything a label measures: metres, pixels of a side, sigmas
_LENGTHS = ["scale", "height_init_m", "height_m", "prior_mean_m", "prior_sigma_m", "z_sigma_m", "height_sigma_m"]
POSSIBLE: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_LENGTHS, (0.0, _HUGE)),
    "depth_std": (0.0, float(np.finfo(np.float32).max)),
    "corr": (-1.001, 1.001),  # single precision goes a little over 1
    "mask_pixels": (0, np.iinfo(np.int32).max),
    "visible_vertices": (0, 6890),
    "depth_group": (-1, 1),
    "beta_index": (-1, NUM_BETAS - 1),
}  # smallest and largest value of each measured column of people; NaN = not measured
_PEOPLE_AT_ONCE = 4096  # bounds the memory of a projection


@dataclass(frozen=True)
class Limits:
    """The options of a run that its labels must obey."""

    max_height: float  # [m]
    acceptance: Acceptance
    z_slack: float = 1e-5  # relative difference allowed between z and scale times the input's z


def limits_of(config: Mapping[str, Mapping[str, Any]]) -> Limits:
    """The limits of a run's config. The joint solver caps no height, and moves z a little to keep joints in place."""
    acceptance = read_acceptance(config)
    if config["solver"]["mode"] == "paper":
        return Limits(float(config["solver"]["max_height"]), acceptance)
    return Limits(HEIGHT.high, acceptance, HOLD_SIGMAS * float(config["joint"]["hold_z_sigma"]))


@dataclass(frozen=True)
class Check:
    """One rule over one table. Arrays have one entry per image, or per person."""

    name: str
    expected: str
    of_people: bool  # rows are persons; else images
    applies: np.ndarray  # (rows,) bool
    broken: np.ndarray  # (rows,) bool, only where it applies
    found: np.ndarray  # (rows,) what was found, for the message
    next_step: str = ""  # set: a judgement about undamaged rows, and what to do; else what breaks the rule is damaged


def _of_people(
    name: str, expected: str, broken: Any, found: np.ndarray, applies: np.ndarray | None = None, step: str = ""
) -> Check:
    applies = np.ones(len(broken), bool) if applies is None else applies
    return Check(name, expected, True, applies, applies & broken, found, step)


def _of_images(name: str, broken: Any, found: np.ndarray) -> Check:
    return Check(name, "agreement", False, np.ones(len(broken), bool), broken, found)


def check_labels(columns: LabelColumns, limits: Limits) -> list[Check]:
    """Rules that a label table must obey by itself."""
    valid = columns.people["status"] != str(PersonStatus.INVALID_LABEL)
    return [
        *_check_values(columns, valid),
        *_check_moves(columns, limits),
        _check_bounds(columns, valid & _finite(columns)),
        *_check_statuses(columns, limits),
    ]


def check_undo(columns: LabelColumns, manifest: LabelColumns) -> list[Check]:
    """`transl_init` and `beta_init` restore the manifest's labels (`MANIFEST_PEOPLE`) bit by bit; poses stay."""
    people, given = columns.people, manifest.people
    restored = {
        "pose is the input's": (people["pose"], given["pose"]),
        "betas restored by beta_init": (initial_betas(columns), given["betas"]),
        "transl_init is the input's": (people["transl_init"], given["transl"]),
        "source_row is the input's": (people["source_row"][:, None], given["source_row"][:, None]),
    }
    checks = []
    for name, (after, before) in restored.items():
        differs = _differs(after, before)
        worst = np.nanmax(np.where(differs, np.abs(after - before), 0), axis=1, initial=0.0)
        checks.append(_of_people(name, "no difference", differs.any(axis=1), worst))
    return checks


def check_heights(columns: LabelColumns, body: BodyModel) -> Check:
    """The height column is that of the body the betas make."""
    people = columns.people
    known = np.isfinite(people["height_m"])
    height = body.rest_height(torch.from_numpy(np.nan_to_num(people["betas"].astype(np.float64)))).numpy()
    differs = np.abs(height - people["height_m"]) > HEIGHT_AGREES
    return _of_people("height_m is the body's", f"within {HEIGHT_AGREES} m", differs, height, known)


def check_reprojection(columns: LabelColumns, body: BodyModel) -> Check:
    """People keep their place in the image: on average the 24 joints of a moved person hardly shift."""
    moved = np.isin(columns.people["status"], PLACED) & _finite(columns)
    shift, allowed = np.zeros(columns.num_people), np.full(columns.num_people, np.inf)
    for part in np.array_split(np.flatnonzero(moved), -(-int(moved.sum()) // _PEOPLE_AT_ONCE) or 1):
        if part.size:
            shift[part], allowed[part] = _joint_shift(columns, part, body)
    expected = f"joints move less than {SHIFT_PX:g} px or {SHIFT_OF_HEIGHT:.0%} of the person's height"
    return _of_people("joints keep their pixels", expected, ~(shift <= allowed), shift, moved, _LOOK)


def _check_values(columns: LabelColumns, valid: np.ndarray) -> list[Check]:
    """Each column by itself, of people with a `valid` (n,) label: numbers that no run writes were changed later."""
    images, people = columns.images, columns.people
    z, lengths = people["transl"][:, 2], np.diff(columns.starts)
    index = np.arange(columns.num_people) - np.repeat(columns.starts[:-1], lengths)
    wrong, found = np.zeros(columns.num_people, bool), np.full(columns.num_people, "possible", dtype=object)
    for name, (least, most) in POSSIBLE.items():
        if (values := people.get(name)) is None:
            continue
        outside = valid & ~(((values >= least) & (values <= most)) | np.isnan(values.astype(np.float64)))
        found[outside] = [f"{name} {value:g}" for value in values[outside].tolist()]
        wrong |= outside
    sizes = np.minimum(images["width"], images["height"])
    deviation, error = images["mean_height_deviation"], images["expected_error_m"]
    return [
        _of_people("labels are finite", "no NaN", ~_finite(columns), z, valid),
        _of_people("people stand before the camera", "z > 0", ~(z > 0), z, valid),
        _of_people("person_index counts", "0, 1, 2 ...", people["person_index"] != index, people["person_index"]),
        _of_images("num_persons is the list's", images["num_persons"] != lengths, lengths),
        _of_people("people's numbers are possible", "the column's range", wrong, found, valid),
        _of_images("sizes are possible", sizes < 0, sizes),
        _of_images("scores are possible", ~((deviation >= 0) & (deviation < _HUGE)), deviation),
        _of_images("expected errors are possible", (error <= 0) | (error >= _HUGE), error),
    ]


def _check_moves(columns: LabelColumns, limits: Limits) -> list[Check]:
    people = columns.people
    moved = np.isin(people["status"], PLACED)
    still = ~moved & (people["status"] != str(PersonStatus.DUPLICATE))  # duplicates move with the person they repeat
    scale, height = people["scale"], people["height_m"]
    changed = (scale != 1) | (people["beta_index"] >= 0) | _differs(people["transl"], people["transl_init"]).any(axis=1)
    z, expected_z = people["transl"][:, 2], scale * people["transl_init"][:, 2]
    with np.errstate(invalid="ignore"):
        off = ~(np.abs(z - expected_z) <= limits.z_slack * np.abs(z) + 1e-6)
    outside = ~((height >= HEIGHT.low) & (height <= limits.max_height + HEIGHT_SLACK))
    tall = f"{HEIGHT.low:g} .. {limits.max_height:g} m (and {HEIGHT_SLACK:g} m for the last step)"
    return [
        _of_people("who was not moved keeps the label", "scale 1, label as given", changed, scale, still),
        _of_people("z is scale times the input's", f"within {limits.z_slack:.0e}", off, z - expected_z, moved),
        _of_people("heights are human", tall, outside, height, moved, _LOOK),
    ]


def _check_bounds(columns: LabelColumns, judged: np.ndarray) -> Check:
    """Labels of the `judged` (n,) people are within the bounds of input labels, which older versions did not have."""
    people = columns.people
    numbers = ((POSE, people["pose"]), (BETAS, people["betas"]), (ASIDE, people["transl"][:, :2]),
               (DISTANCE, people["transl"][:, 2:]))  # fmt: skip
    within = np.all([bound.holds(values).all(axis=1) for bound, values in numbers], axis=0)
    expected = "; no ".join(str(bound) for bound, _ in numbers)
    step = "a run of this version into another folder marks them invalid_label or implausible; leave them out till then"
    z = people["transl"][:, 2]
    return _of_people("numbers are plausible", f"no {expected}", ~within, z, judged, step)


def _check_statuses(columns: LabelColumns, limits: Limits) -> list[Check]:
    images, people = columns.images, columns.people
    deviation, optimized, status = images["mean_height_deviation"], images["is_optimized"], images["status"]
    accepted = limits.acceptance.judge(
        optimized,
        deviation,
        images["expected_error_m"],
        columns.owner,
        people["transl"][:, 2],
        people["z_sigma_m"],
        people["height_m"],
        np.isin(people["height_class"].astype(str), HEIGHT_CLASSES[:ADULT_FEMALE]),
    )
    unknown = np.array([word is not None and word not in HEIGHT_CLASSES for word in people["height_class"]], bool)
    other, odd = np.full(columns.num_people, "other", dtype=object), ~np.isin(people["status"], list(PersonStatus))
    return [
        _of_images("status is a known word", ~np.isin(status, list(ImageStatus)), status),
        _of_people("person status is known", "a PersonStatus", odd, other),
        _of_people("height_class is known", "a class or null", unknown, other),
        _of_images("is_optimized fits the status", optimized != (status == str(ImageStatus.OPTIMIZED)), status),
        _of_images("is_accepted follows its rule", images["is_accepted"] != accepted, deviation),
    ]


def _joint_shift(columns: LabelColumns, part: np.ndarray, body: BodyModel) -> tuple[np.ndarray, np.ndarray]:
    """Mean movement of the joints of some people, and how far they may move [px]."""
    people = columns.people
    device = body.faces.device
    pose = torch.from_numpy(people["pose"][part]).to(device)
    camera = torch.from_numpy(columns.intrinsics[columns.owner[part]]).to(device)[:, None]

    def seen(betas: np.ndarray, transl: np.ndarray) -> torch.Tensor:
        joints = body.joints(pose, *(torch.from_numpy(value[part]).to(device) for value in (betas, transl)))
        return project(joints[:, :_TREE_JOINTS].to(torch.float64), camera)

    before, after = seen(initial_betas(columns), people["transl_init"]), seen(people["betas"], people["transl"])
    shift = (after - before).norm(dim=-1).mean(dim=-1).cpu().numpy()
    tall = (before[..., 1].amax(-1) - before[..., 1].amin(-1)).cpu().numpy()
    return shift, np.maximum(SHIFT_PX, SHIFT_OF_HEIGHT * tall)


def _finite(columns: LabelColumns) -> np.ndarray:
    return np.all([np.isfinite(columns.people[name]).all(axis=1) for name in ("pose", "betas", "transl")], axis=0)


def _differs(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """(n, k) bool: numbers that are not equal, NaN being equal to NaN."""
    return np.logical_not((after == before) | (np.isnan(after) & np.isnan(before)))
