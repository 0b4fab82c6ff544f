"""Rules for label rows, checked over whole columns. Metres, pixels of the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
HEIGHT_SLACK = 0.03  # one secant step finds the betas of a height: it may end this far beyond the limit [m]
HOLD_SIGMAS = 6.0  # of `joint.hold_z_sigma`: how far z may move to keep the joints in place
Z_SLACK = 1e-5  # relative difference allowed between z and scale times the input's z
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
_KEPT = 200  # offences remembered per rule; all are counted


@dataclass
class Rule:
    """How often one rule was applied and broken over a whole run."""

    name: str
    checked: int = 0
    broken: int = 0
    offences: list[str] = field(default_factory=list)  # the first ones: where, found, expected
    next_step: str = ""  # what to do about people who break the rule in undamaged rows; "" = these rows are damaged

    def offend(self, text: str) -> None:
        self.broken += 1
        if len(self.offences) < _KEPT:
            self.offences.append(text)


class RowChecks:
    """Applies rules to the rows of one label file, and counts them in the rules of its run."""

    def __init__(self, columns: LabelColumns, file: str, rule: Callable[[str, str], Rule]) -> None:
        """`file`: its name in messages; `rule`: a rule by name and next step, made where it is new."""
        self.columns, self.owner = columns, columns.owner
        self._file, self._rule = file, rule
        people = columns.people
        self.moved = np.isin(people["status"], PLACED)
        self.valid = people["status"] != str(PersonStatus.INVALID_LABEL)
        numbers = [people[name] for name in ("pose", "betas", "transl")]
        self.finite = np.all([np.isfinite(values).all(axis=1) for values in numbers], axis=0)

    def check_labels(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        """Rules that a label table must obey by itself; `config`: that of its run."""
        self._check_values()
        self._check_moves(config)
        self._check_bounds()
        self._check_statuses(read_acceptance(config))

    def check_undo(self, manifest: LabelColumns) -> None:
        """`transl_init` and `beta_init` restore the manifest's labels (`MANIFEST_PEOPLE`) bit by bit; poses stay."""
        people, given = self.columns.people, manifest.people
        restored = {
            "pose is the input's": (people["pose"], given["pose"]),
            "betas restored by beta_init": (initial_betas(self.columns), given["betas"]),
            "transl_init is the input's": (people["transl_init"], given["transl"]),
            "source_row is the input's": (people["source_row"][:, None], given["source_row"][:, None]),
        }
        for name, (after, before) in restored.items():
            differs = _differs(after, before)
            with np.errstate(invalid="ignore"):  # of infinite numbers
                worst = np.nanmax(np.where(differs, np.abs(after - before), 0), axis=1, initial=0.0)
            self._people(name, "no difference", np.any(differs, axis=1), worst)

    def check_heights(self, body: BodyModel) -> None:
        """The height column is that of the body the betas make."""
        people = self.columns.people
        known = np.isfinite(people["height_m"])
        height = body.rest_height(torch.from_numpy(np.nan_to_num(people["betas"].astype(np.float64)))).numpy()
        differs = np.abs(height - people["height_m"]) > HEIGHT_AGREES
        self._people("height_m is the body's", f"within {HEIGHT_AGREES} m", differs, height, known)

    def check_reprojection(self, body: BodyModel) -> None:
        """People keep their place in the image: on average the 24 joints of a moved person hardly shift."""
        moved = self.moved & self.finite
        shift, allowed = np.zeros(len(moved)), np.full(len(moved), np.inf)
        if moved.any():
            shift[moved], allowed[moved] = _joint_shift(self.columns, np.flatnonzero(moved), body)
        expected = f"joints move less than {SHIFT_PX:g} px or {SHIFT_OF_HEIGHT:.0%} of the person's height"
        self._people("joints keep their pixels", expected, ~(shift <= allowed), shift, moved, _LOOK)

    def _check_values(self) -> None:
        """Each column by itself, of people with a valid label: numbers that no run writes were changed later."""
        images, people, starts = self.columns.images, self.columns.people, self.columns.starts
        z, lengths, count = people["transl"][:, 2], np.diff(starts), len(self.owner)
        index = np.arange(count) - starts[:-1][self.owner]
        wrong, found = np.zeros(count, bool), np.full(count, "possible", dtype=object)
        for name, (least, most) in POSSIBLE.items():
            if (values := people.get(name)) is None:
                continue
            outside = self.valid & ~(((values >= least) & (values <= most)) | np.isnan(values.astype(np.float64)))
            found[outside] = [f"{name} {value:g}" for value in values[outside].tolist()]
            wrong |= outside
        sizes = np.minimum(images["width"], images["height"])
        deviation, error = images["mean_height_deviation"], images["expected_error_m"]
        self._people("labels are finite", "no NaN", ~self.finite, z, self.valid)
        self._people("people stand before the camera", "z > 0", ~(z > 0), z, self.valid)
        self._people("person_index counts", "0, 1, 2 ...", people["person_index"] != index, people["person_index"])
        self._images("num_persons is the list's", images["num_persons"] != lengths, lengths)
        self._people("people's numbers are possible", "the column's range", wrong, found, self.valid)
        self._images("sizes are possible", sizes < 0, sizes)
        self._images("scores are possible", ~((deviation >= 0) & (deviation < _HUGE)), deviation)
        self._images("expected errors are possible", (error <= 0) | (error >= _HUGE), error)

    def _check_moves(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        """The joint solver caps no height, and moves z a little to keep joints in place."""
        paper, people = config["solver"]["mode"] == "paper", self.columns.people
        highest = float(config["solver"]["max_height"]) if paper else HEIGHT.high
        slack = Z_SLACK if paper else HOLD_SIGMAS * float(config["joint"]["hold_z_sigma"])
        scale, height, transl, given = (people[name] for name in ("scale", "height_m", "transl", "transl_init"))
        still = ~self.moved & (people["status"] != str(PersonStatus.DUPLICATE))  # these move with whom they repeat
        changed = (scale != 1) | (people["beta_index"] >= 0) | _differs(transl, given).any(axis=1)
        z, expected_z = transl[:, 2], scale * given[:, 2]
        with np.errstate(invalid="ignore"):
            off = ~(np.abs(z - expected_z) <= slack * np.abs(z) + 1e-6)
        outside = ~((height >= HEIGHT.low) & (height <= highest + HEIGHT_SLACK))
        tall = f"{HEIGHT.low:g} .. {highest:g} m (and {HEIGHT_SLACK:g} m for the last step)"
        self._people("who was not moved keeps the label", "scale 1, label as given", changed, scale, still)
        self._people("z is scale times the input's", f"within {slack:.0e}", off, z - expected_z, self.moved)
        self._people("heights are human", tall, outside, height, self.moved, _LOOK)

    def _check_bounds(self) -> None:
        """Labels are within the bounds of input labels, which older versions did not have."""
        people = self.columns.people
        numbers = ((POSE, people["pose"]), (BETAS, people["betas"]), (ASIDE, people["transl"][:, :2]),
                   (DISTANCE, people["transl"][:, 2:]))  # fmt: skip
        within = np.all([bound.holds(values).all(axis=1) for bound, values in numbers], axis=0)
        expected = "; no ".join(str(bound) for bound, _ in numbers)
        step = "a run of this version into another folder marks them invalid_label or implausible; leave them out till"
        judged, z = self.valid & self.finite, people["transl"][:, 2]
        self._people("numbers are plausible", f"no {expected}", ~within, z, judged, f"{step} then")

    def _check_statuses(self, acceptance: Acceptance) -> None:
        images, people = self.columns.images, self.columns.people
        deviation, optimized, status = images["mean_height_deviation"], images["is_optimized"], images["status"]
        accepted = acceptance.judge(
            optimized,
            deviation,
            images["expected_error_m"],
            self.owner,
            people["transl"][:, 2],
            people["z_sigma_m"],
            people["height_m"],
            np.isin(people["height_class"].astype(str), HEIGHT_CLASSES[:ADULT_FEMALE]),
        )
        known, other = [*HEIGHT_CLASSES, None], np.full(len(self.owner), "other", dtype=object)
        unknown = np.array([word not in known for word in people["height_class"]], bool)
        self._images("status is a known word", ~np.isin(status, list(ImageStatus)), status)
        odd = ~np.isin(people["status"], list(PersonStatus))
        self._people("person status is known", "a PersonStatus", odd, other)
        self._people("height_class is known", "a class or null", unknown, other)
        self._images("is_optimized fits the status", optimized != (status == str(ImageStatus.OPTIMIZED)), status)
        self._images("is_accepted follows its rule", images["is_accepted"] != accepted, deviation)

    def _images(self, name: str, broken: np.ndarray, found: np.ndarray) -> None:
        """Count a rule about images. Args: broken (N,) bool; found (N,) what is there, for messages."""
        rule = self._rule(name, "")
        rule.checked += len(broken)
        for row in np.flatnonzero(broken).tolist():
            rule.offend(self._describe(row, "", found[row], "agreement"))

    def _people(
        self,
        name: str,
        expected: str,
        broken: np.ndarray,
        found: np.ndarray,
        applies: np.ndarray | None = None,
        step: str = "",
    ) -> None:
        """Count a rule about people.

        Args:
            broken: (n,) bool; applies: (n,) bool, None = to all; found: (n,) what is there, for messages.
            step: the next step of a judgement; "" = who breaks the rule is damaged.
        """
        rule = self._rule(name, step)
        applies = np.ones(len(broken), bool) if applies is None else applies
        rule.checked += int(applies.sum())
        for person in np.flatnonzero(applies & broken).tolist():
            row = int(self.owner[person])
            place = f", person {person - int(self.columns.starts[row])}"
            rule.offend(self._describe(row, place, found[person], expected))

    def _describe(self, row: int, place: str, found: Any, expected: str) -> str:
        shown = f"{found:.4g}" if isinstance(found, float | np.floating) else str(found)
        return f"{self._file} row {row}, {self.columns.images['image_id'][row]}{place}: {shown}; expected {expected}"


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


def _differs(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """(n, k) bool: numbers that are not equal, NaN being equal to NaN."""
    return np.logical_not((after == before) | (np.isnan(after) & np.isnan(before)))
