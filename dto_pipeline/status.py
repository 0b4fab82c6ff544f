"""Outcomes of images, people, predictions and shards: closed lists of words, each with a sentence of advice.

The words are columns of the labels, so a value is never renamed or reused; new ones may be added.
"""

from __future__ import annotations

from enum import StrEnum


class _Advised(StrEnum):
    """A word with a sentence of advice."""

    advice: str

    def __new__(cls, word: str, advice: str = "") -> _Advised:
        member = str.__new__(cls, word)
        member._value_ = word
        member.advice = advice
        return member


class ImageStatus(_Advised):
    """Outcome of one input image; every image of the manifest leaves with exactly one."""

    OPTIMIZED = "optimized", "At least one group of two or more people was placed; see mean_height_deviation."
    NOT_OPTIMIZED = (
        "not_optimized",
        "People were seen, but no group of two was fitted; a pair placed by heights alone moves, but does not count.",
    )
    PLACED_BY_PRIOR = "placed_by_prior", "Fewer than two depths could be compared; people stand by height priors alone."
    TOO_FEW_PEOPLE = "too_few_people", "Fewer than two people can be compared; labels are passed through unchanged."
    PREDICTED = "predicted", "People as a network predicted them; `dto run` on the manifest beside them places them."
    PREDICTION_INVALID = (
        "prediction_invalid",
        "The network's output cannot be used, such as numbers that are not finite; use another checkpoint, or train "
        "with a lower loop.rate.",
    )
    NO_PEOPLE = "no_people", "The image has no person with a usable label; see the persons' statuses."
    IMAGE_MISSING = (
        "image_missing",
        "The image file was not found; fetch it, or check --images, then use dto run --retry-failed: it does this "
        "image only. (Tars fetched again: docs/real_run.md. Predictions: predict anew.)",
    )
    IMAGE_CORRUPT = (
        "image_corrupt",
        "The image could not be decoded; replace the file, then use dto run --retry-failed: it does this image only. "
        "(Tars fetched again: docs/real_run.md. Predictions: predict anew.)",
    )
    SIZE_MISMATCH = (
        "size_mismatch",
        "The image is not of the size its camera, or the manifest, expects (see the message). Another file, or one "
        "turned by its EXIF note: put the right one there, then use dto run --retry-failed. A wrong camera: mend the "
        "labels, then build a new manifest and start a new run.",
    )
    DEPTH_MISSING = (
        "depth_missing",
        "No depth map was found; write it, or name its folder with --depth, then use dto run --retry-failed.",
    )
    DEPTH_INVALID = (
        "depth_invalid",
        "The depth map is empty, constant zero, not finite or of another size (see the message); a file: write it "
        "anew, then use dto run --retry-failed; a network's map will be the same again.",
    )
    LABEL_INVALID = (
        "label_invalid",
        "The label row itself is unusable (for example its camera); see the message, mend the labels, then build a new "
        "manifest and start a new run.",
    )
    INTERNAL_ERROR = "internal_error", "The pipeline raised on this image; please report it with the message."
    OUT_OF_MEMORY = (
        "out_of_memory",
        "Memory ran out on the machine while this image was worked on; use fewer workers, or keep others off the "
        "machine, then use dto run --retry-failed.",
    )
    WORKER_DIED = (
        "worker_died",
        "The process that worked on this image alone died, twice; look at the file, then use dto run --retry-failed.",
    )

    @property
    def is_failure(self) -> bool:
        """True where the image could not be processed at all and its labels are as given."""
        done = ("optimized", "not_optimized", "placed_by_prior", "too_few_people", "predicted", "no_people")
        return self not in done


class UnusableImage(Exception):
    """An image that cannot be processed; the class has the status, the text what was found (no absolute path)."""

    status = ImageStatus.INTERNAL_ERROR


class PersonStatus(_Advised):
    """Outcome of one person; every label row leaves with exactly one."""

    MOVED = "moved", "Placed by the fit of its depth_group."
    TOO_TALL = "too_tall", "Set aside: the fit would make this person taller than any prior allows; label kept."
    ALONE_IN_GROUP = "alone_in_group", "Set aside: nobody else in its near or far group to compare with; label kept."
    BEHIND_CAMERA = "behind_camera", "Set aside: the fit would place this person behind the camera; label kept."
    IMPLAUSIBLE = "implausible", "Set aside: the fit would make a place or a body that cannot be; label kept."
    PLACED_BY_PRIOR = "placed_by_prior", "Placed by its height prior alone: its depth could not be measured."
    NO_FIT = "no_fit", "The group's depths are equal without spread, so no line is determined; label kept."
    TOO_SMALL = (
        "too_small",
        "Dropped: too few visible pixels or vertices to measure, or too few left between the outlier bounds of its "
        "depth, as in a flat map (the message says which); label kept.",
    )
    EMPTY_MASK = "empty_mask", "Dropped: the instance mask holds no pixel; label kept."
    INVALID_LABEL = (
        "invalid_label",
        "The label cannot be used (see the message): not finite, behind the camera, not a person, with a mask that is "
        "damaged or of another size, or on a kid axis the body lacks; kept as given.",
    )
    DUPLICATE = (
        "duplicate",
        "The same person as another row of its image (the message names it): not measured, goes where that row goes; "
        "exports leave it out.",
    )
    NOT_RUN = "not_run", "The image was not optimised (see its status); label kept."


PLACED = (PersonStatus.MOVED, PersonStatus.PLACED_BY_PRIOR)  # the person has a new place; others keep their label
UNUSED = (PersonStatus.INVALID_LABEL, PersonStatus.DUPLICATE)  # rows that are not for training


class PredictionStatus(_Advised):
    """Outcome of one predicted person that was offered to a manifest; every prediction gets exactly one."""

    ADDED = "added", "No released person is the same; appended to its image with source_row -1."
    MATCHED = "matched", "The same as a released person, whose label is kept."
    DUPLICATE = "duplicate", "The same person as a prediction that matched or has a higher score; dropped."
    IMAGE_UNKNOWN = "image_unknown", "The manifest has no such image; spell it as image_file, image_path or image_id."
    IMAGE_UNUSABLE = "image_unusable", "The manifest's image has a problem itself; mend it, build, merge again."
    INVALID_LABEL = "invalid_label", "Not finite, behind the camera, or with a damaged mask; see the message."
    INVALID_CAMERA = "invalid_camera", "Its camera is no pinhole without skew, or of an image of another size; refused."
    INVALID_SCORE = "invalid_score", "It has no finite score to rank it by; refused."
    BELOW_MIN_SCORE = "below_min_score", "Its score is lower than asked for (--min-score); refused."
    CROWD_TOO_LARGE = "crowd_too_large", "Its image has more predictions than are compared; only the best are."


class ShardStatus(_Advised):
    """State of one shard of a run, derived from files only."""

    DONE = "done", "Its receipt exists; it is never changed again."
    FAILED = "failed", "Attempted and given up; `dto run` with --retry-failed tries it again."
    PENDING = "pending", "No receipt yet; `dto run` will do it."
