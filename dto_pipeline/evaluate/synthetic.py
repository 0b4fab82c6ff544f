"""How far placed people are from a known truth: distances, distances between people, their order, heights.

Plain arrays in, numbers out; knows no files, no bodies and no statuses (callers say who is selected). Metres.

Definitions, over the selected people and over the pairs of selected people of one image:

* depth error: |z - true z| of the translation; relative depth error: the same divided by the true z;
* pair depth error: |(z_i - z_j) - (true z_i - true z_j)|;
* ordinal accuracy: share of pairs whose relation (same within 0.2 m, nearer, farther) is right;
* height error: |height - true height| in the rest pose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dto_pipeline.evaluate.tables import align, column_widths

SAME_DEPTH = 0.2  # people closer than this stand at the same depth [m]
MEASURES = {
    "depth_error": "absolute z error [m]",
    "relative_depth_error": "relative z error",
    "pair_depth_error": "pairwise depth error [m]",
    "ordinal": "ordinal accuracy at 0.2 m",
    "height_error": "height error [m]",
}  # keys of `placement_errors` that are means, with what tables call them


@dataclass(frozen=True)
class Placement:
    """Where N people of one or more images are and how tall; arrays share the axis."""

    z: np.ndarray  # (N,) z of the translation [m]
    height: np.ndarray  # (N,) in the rest pose [m]


class Placed(Protocol):
    """Anything that knows where P people are and how tall, as `Placement` does."""

    @property
    def z(self) -> np.ndarray: ...
    @property
    def height(self) -> np.ndarray: ...


def join_placements(parts: Sequence[Placed]) -> Placement:
    """People of several images or sets, one after the other."""
    return Placement(np.concatenate([part.z for part in parts]), np.concatenate([part.height for part in parts]))


def placement_errors(
    found: Placement,
    truth: Placement,
    image: np.ndarray,
    selected: np.ndarray | None = None,
) -> dict[str, float]:
    """Mean errors of a placement.

    Args:
        found, truth: the same N people in the same order.
        image: (N,) int, equal for people of one image.
        selected: (N,) bool, who takes part at all; None = everyone.

    Returns:
        `persons` and `pairs` (counts) and the keys of `MEASURES`, NaN where nothing is selected.

    Raises:
        ValueError: arrays of different lengths.
    """
    _check_lengths(found.z, found.height, truth.z, truth.height, image)
    kept = np.ones(len(image), bool) if selected is None else np.asarray(selected, bool)
    first, second = image_pairs(np.asarray(image), kept)
    z_error = np.abs(found.z - truth.z)[kept]
    apart, true_apart = found.z[first] - found.z[second], truth.z[first] - truth.z[second]
    return {
        "persons": int(kept.sum()),
        "pairs": len(first),
        "depth_error": _mean(z_error),
        "relative_depth_error": _mean(z_error / truth.z[kept]),
        "pair_depth_error": _mean(np.abs(apart - true_apart)),
        "ordinal": _mean(depth_relation(apart) == depth_relation(true_apart)),
        "height_error": _mean(np.abs(found.height - truth.height)[kept]),
    }


def compare_placements(
    placements: Mapping[str, Placement], truth: Placement, image: np.ndarray, selections: Mapping[str, np.ndarray]
) -> dict[str, dict[str, dict[str, float]]]:
    """`placement_errors` of several placements, for several selections of people.

    Args:
        placements: what to call each -> the N people of `truth`, in its order.
        image: (N,) int, equal for people of one image.
        selections: name -> (N,) bool, for example all people, those moved, those of accepted images.

    Returns:
        selection -> name of the placement -> errors, JSON-ready but for NaN.
    """
    return {
        selection: {name: placement_errors(found, truth, image, selected) for name, found in placements.items()}
        for selection, selected in selections.items()
    }


def as_table(comparison: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The result of `compare_placements` as plain text: a line per measure, first -> ... -> last per selection."""
    heads = [f"{name} ({next(iter(found.values()))['persons']:.0f})" for name, found in comparison.items()]
    rows = [["", *heads]]
    for key, title in MEASURES.items():
        rows.append([title, *(_cell(key, [errors[key] for errors in found.values()]) for found in comparison.values())])
    rule = ["-" * width for width in column_widths(rows)]
    return "\n".join(align([rows[0], rule, *rows[1:]]))


def depth_relation(apart: np.ndarray) -> np.ndarray:
    """-1 nearer, 0 same depth, 1 farther. Args: apart (...) z of one minus z of the other [m]."""
    return np.where(np.abs(apart) < SAME_DEPTH, 0, np.sign(apart)).astype(np.int64)


def image_pairs(image: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both members (M,) of every unordered pair of kept people of one image, as indices into `image`."""
    person = np.flatnonzero(kept)
    person = person[np.argsort(image[person], kind="stable")]
    _, start, size = np.unique(image[person], return_index=True, return_counts=True)
    last = np.repeat(start + size, size)
    place = np.arange(len(person))
    partners = last - place - 1  # people of the same image that come later
    first = np.repeat(place, partners)
    within = np.arange(len(first)) - np.repeat(np.cumsum(partners) - partners, partners)
    return person[first], person[first + 1 + within]


def _check_lengths(*arrays: np.ndarray) -> None:
    shapes = [np.shape(array) for array in arrays]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1:
        raise ValueError(f"found, truth and image have shapes {shapes}; expected one length (N,) for all")


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _cell(key: str, values: Sequence[float]) -> str:
    return " -> ".join(f"{100 * value:.1f} %" if key == "ordinal" else f"{value:.3f}" for value in values)
