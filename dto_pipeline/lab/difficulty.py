"""The difficulties of the synthetic benchmark by name, and how one is made from ``option=value`` texts.

A difficulty is a `CrowdSet` of `solver_sets` with heights from growth charts. Names and numbers are part of what
`dto synth` promises: change one and published numbers can no longer be compared. Knows no files.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

import yaml

from dto_pipeline.errors import DtoError
from dto_pipeline.lab.crowd import LAYOUTS
from dto_pipeline.lab.solver_sets import BODIES, HEIGHTS, CrowdSet

VERSION = 1  # raised whenever equal settings would give other scenes
BENCHMARK_HEIGHTS = ("independent", "priors")
STANDARD = "standard"
_CHOICES = {"heights": HEIGHTS, "bodies": BODIES}
_WORDS = ("name", "meaning", "told")  # fields of a set that are no options


class DifficultyError(DtoError, ValueError):
    """A difficulty nobody knows, or an option that does not exist or cannot have this value."""


def _difficulty(name: str, meaning: str, **options: Any) -> CrowdSet:
    return CrowdSet(name, meaning, heights="independent", **options)


DIFFICULTIES = {
    kind.name: kind
    for kind in (
        _difficulty("easy", "depth nearly exact", person_error=0.005, row_tilt=0.01),
        _difficulty(STANDARD, "depth of a good network: 2 % per person, tilted by 4 %", offset=0.05),
        _difficulty("depth-noise", "2.5 times these errors", person_error=0.05, row_tilt=0.08, pixel_noise=0.01),
        _difficulty(
            "depth-bias",
            "an unknown offset, up to 15 % of the disparity at 6 m, and a tilt of 8 %",
            offset=0.15,
            row_tilt=0.08,
        ),
        _difficulty(
            "occlusion",
            "crowds squeezed sideways to 40 %, masks that leak up to 3 px",
            layouts=("street", "plaza", "queue", "row"),
            squeeze=0.4,
            leak=3,
        ),
        _difficulty(
            "label-corruption",
            "every eighth label grossly wrong in size, distance and pose, every fourth age somebody else's",
            wrong_labels=0.125,
            wrong_ages=0.25,
        ),
        _difficulty("children", "mostly children", layouts=("family", "playground")),
        _difficulty(
            "other-heights", "whole images taller or shorter than the growth charts, by 6 % (one sigma)", taller=0.06
        ),
        _difficulty(
            "hard",
            "all of it: noise, offset, occlusion, leaking masks, wrong labels and ages, other heights",
            layouts=("street", "plaza", "playground", "queue"),
            person_error=0.04,
            row_tilt=0.06,
            pixel_noise=0.008,
            offset=0.1,
            squeeze=0.6,
            taller=0.03,
            wrong_ages=0.15,
            leak=3,
            wrong_labels=0.08,
        ),
        _difficulty("blur", "depth maps blurred by 6 px, as small networks are", blur=6.0),
        _difficulty("smooth-error", "an error of 6 % that varies slowly over the map", smooth_error=0.06),
        _difficulty("power", "disparity goes with the distance to the power of -0.75", power=0.75),
        _difficulty("size-error", "a child looks far: its disparity times (height / 1.7 m)^0.3", size_error=0.3),
        _difficulty("unit-0.002", "the map's unit is 0.002 of the published network's", unit=0.002),
        _difficulty("unit-0.03", "the map's unit is 0.03 of the published network's", unit=0.03),
        _difficulty("unit-30", "the map's unit is 30 times the published network's", unit=30.0),
        _difficulty(
            "metric",
            "maps in metres, 10 % off per image, on people of unknown age",
            metric_error=0.1,
            unknown_ages=True,
        ),
        _difficulty("upside-down", "metres under the name of disparity", upside_down=True),
        _difficulty("weak-depth", "blurred by 14 px, 12 % smooth error", blur=14.0, smooth_error=0.12),
        _difficulty("foreign", "bodies of Anny, labels fitted to what is seen (needs the package anny)", bodies="anny"),
        _difficulty(
            "foreign-weak",
            "the same with weak depth",
            bodies="anny",
            blur=14.0,
            smooth_error=0.12,
        ),
        _difficulty("foreign-no-ages", "the same, nobody's age known", bodies="anny", unknown_ages=True),
    )
}
"""Name -> difficulty, in the order of the report."""


def choose_difficulty(name: str, texts: Sequence[str] = (), heights: str = "independent") -> CrowdSet:
    """The difficulty of this name, with options changed.

    Args:
        name: of `DIFFICULTIES`; texts: ``option=value``, value in YAML; heights: of `BENCHMARK_HEIGHTS`.

    Raises:
        DifficultyError: something that does not exist, named.
    """
    if name not in DIFFICULTIES:
        raise DifficultyError(f"difficulty is {name!r}; choose from {list(DIFFICULTIES)}")
    if heights not in BENCHMARK_HEIGHTS:
        raise DifficultyError(f"heights is {heights!r}; choose from {BENCHMARK_HEIGHTS}")
    return change_options(dataclasses.replace(DIFFICULTIES[name], heights=heights), texts)


def change_options(kind: CrowdSet, texts: Sequence[str]) -> CrowdSet:
    """`kind` with ``option=value`` texts applied."""
    hints = typing.get_type_hints(CrowdSet)
    options = [name for name in hints if name not in _WORDS]
    changes: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in options:
            raise DifficultyError(f"{text!r} is not of the form option=value; options are {options}")
        changes[key] = _read_value(key, hints[key], value)
    return dataclasses.replace(kind, **changes)


def _read_value(key: str, kind: Any, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DifficultyError(f"{key}={text}: value is not YAML: {error}") from error
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if key == "layouts":
        value = tuple(value) if isinstance(value, list) else (value,)
        known = [layout.name for layout in LAYOUTS]
        _expect(bool(value) and all(name in known for name in value), key, value, f"names of {known}")
        return value
    _expect(isinstance(value, kind) and isinstance(value, bool) == (kind is bool), key, value, kind.__name__)
    if key in _CHOICES:
        _expect(value in _CHOICES[key], key, value, f"one of {_CHOICES[key]}")
    else:
        _expect(value >= 0, key, value, "0 or more")
    if key in ("unit", "power"):
        _expect(value > 0, key, value, "more than 0: the maps would be flat")
    if key == "most_people":
        _expect(value >= 2, key, value, "at least 2")
    return value


def _expect(condition: bool, key: str, value: Any, wanted: str) -> None:
    if not condition:
        raise DifficultyError(f"{key} is {value!r}; expected {wanted}")


def describe_difficulties() -> str:
    """Names, meanings and what each changes, then all options with their defaults."""
    plain = dataclasses.asdict(CrowdSet("", "", heights="independent"))
    lines = ["difficulties:"]
    for name, kind in DIFFICULTIES.items():
        changed = [f"{k}={v}" for k, v in dataclasses.asdict(kind).items() if v != plain[k] and k not in _WORDS]
        lines.append(f"  {name:<17} {kind.meaning} ({', '.join(changed) or 'no change'})")
    lines.append("options and their defaults (meanings: dto_pipeline/lab/solver_sets.py, CrowdSet):")
    return "\n".join([*lines, *(f"  {key}={value}" for key, value in plain.items() if key not in _WORDS)])
