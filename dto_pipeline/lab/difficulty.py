"""The difficulties of the synthetic benchmark by name, and their options.

Published numbers can be compared only while names and numbers stay as they are. Images are about 480 x 360. Metres,
pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dto_pipeline.config_tree import ABOVE_ZERO, Sections, build_sections, expect, read_tree
from dto_pipeline.lab.crowd import LAYOUTS

VERSION = 1  # raised whenever equal settings would give other scenes
STANDARD = "standard"
_LAYOUTS = tuple(layout.name for layout in LAYOUTS)
_CHOICES = {"difficulty.heights": ("independent", "priors"), "difficulty.bodies": ("stand-in", "anny")}
_RANGES = {"difficulty.most_people": (2, math.inf), "difficulty.unit": ABOVE_ZERO, "difficulty.power": ABOVE_ZERO}
_WORDS = ("name", "meaning")  # fields that are no options


@dataclass(frozen=True)
class Difficulty:
    """How hard a crowd is. The defaults are an ordinary crowd and a good depth network."""

    name: str
    meaning: str
    layouts: tuple[str, ...] = _LAYOUTS  # of `lab.crowd`
    most_people: int = 10
    person_error: float = 0.02  # relative error of one person's disparity, scale of a Student t of 3 degrees
    row_tilt: float = 0.04  # relative error from the upper to the lower border
    pixel_noise: float = 0.004  # relative, per pixel
    offset: float = 0.0  # largest b of disparity = a / z + b, in units of the disparity at 6 m; drawn per image
    squeeze: float = 1.0  # people move sideways towards the middle by this factor and hide each other
    taller: float = 0.0  # heights of an image are all off the charts' by one share, normal with this sigma
    wrong_ages: float = 0.0  # share of people whose age is drawn from all ages
    leak: int = 0  # masks grow by up to this over neighbours and ground [px]
    focal_error: float = 0.0  # K of the labels is wrong by a share, normal with this sigma
    wrong_labels: float = 0.0  # share of people whose label is grossly wrong in size, distance and pose
    heights: str = "independent"  # growth charts (`own_bodies.CHART`), or "priors", the method's own
    blur: float = 1.0  # of the depth map [px]
    smooth_error: float = 0.0  # relative error that varies slowly over the map, standard deviation
    power: float = 1.0  # disparity goes with 1 / z to this power, as networks that compress the far side do
    size_error: float = 0.0  # disparity of a person times (height / 1.7 m) to this power: children appear far
    unit: float = 1.0  # the network's own unit, times the published one's
    metric_error: float = 0.0  # > 0: the map is in metres, off by one share per image, normal with this sigma
    upside_down: bool = False  # the map holds metres, under the name of disparity
    bodies: str = "stand-in"  # ours, or "anny", people of Anny with fitted labels (`foreign_bodies`)
    unknown_ages: bool = False  # ages are missing


@dataclass(frozen=True)
class _Config(Sections):
    """A difficulty as the only section of a config, which checks it."""

    difficulty: Difficulty

    def __post_init__(self) -> None:
        self.check(_CHOICES, _RANGES)
        layouts = self.difficulty.layouts
        wanted = f"difficulty.layouts is {layouts!r}; expected names of {_LAYOUTS}"
        expect(bool(layouts) and set(layouts) <= set(_LAYOUTS), wanted)


DIFFICULTIES = {
    kind.name: kind
    for kind in (
        Difficulty("easy", "depth nearly exact", person_error=0.005, row_tilt=0.01),
        Difficulty(STANDARD, "depth of a good network: 2 % per person, tilted by 4 %", offset=0.05),
        Difficulty("depth-noise", "2.5 times these errors", person_error=0.05, row_tilt=0.08, pixel_noise=0.01),
        Difficulty(
            "depth-bias",
            "an unknown offset, up to 15 % of the disparity at 6 m, and a tilt of 8 %",
            offset=0.15,
            row_tilt=0.08,
        ),
        Difficulty(
            "occlusion",
            "crowds squeezed sideways to 40 %, masks that leak up to 3 px",
            layouts=("street", "plaza", "queue", "row"),
            squeeze=0.4,
            leak=3,
        ),
        Difficulty(
            "label-corruption",
            "every eighth label grossly wrong in size, distance and pose, every fourth age somebody else's",
            wrong_labels=0.125,
            wrong_ages=0.25,
        ),
        Difficulty("pairs", "exactly two people", most_people=2),
        Difficulty("children", "mostly children", layouts=("family", "playground")),
        Difficulty(
            "other-heights", "whole images taller or shorter than the growth charts, by 6 % (one sigma)", taller=0.06
        ),
        Difficulty("wrong-camera", "focal length of the labels wrong by 10 % (one sigma)", focal_error=0.1),
        Difficulty(
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
        Difficulty("blur", "depth maps blurred by 6 px, as small networks are", blur=6.0),
        Difficulty("smooth-error", "an error of 6 % that varies slowly over the map", smooth_error=0.06),
        Difficulty("power", "disparity goes with the distance to the power of -0.75", power=0.75),
        Difficulty("size-error", "a child looks far: its disparity times (height / 1.7 m)^0.3", size_error=0.3),
        Difficulty("unit-0.002", "the map's unit is 0.002 of the published network's", unit=0.002),
        Difficulty("unit-0.03", "the map's unit is 0.03 of the published network's", unit=0.03),
        Difficulty("unit-30", "the map's unit is 30 times the published network's", unit=30.0),
        Difficulty(
            "metric",
            "maps in metres, 10 % off per image, on people of unknown age",
            metric_error=0.1,
            unknown_ages=True,
        ),
        Difficulty("upside-down", "metres under the name of disparity", upside_down=True),
        Difficulty("weak-depth", "blurred by 14 px, 12 % smooth error", blur=14.0, smooth_error=0.12),
        Difficulty("foreign", "bodies of Anny, labels fitted to what is seen (needs the package anny)", bodies="anny"),
        Difficulty("foreign-weak", "the same with weak depth", bodies="anny", blur=14.0, smooth_error=0.12),
        Difficulty("foreign-no-ages", "the same, nobody's age known", bodies="anny", unknown_ages=True),
    )
}
"""Name -> difficulty, in the order of the report."""


def choose_difficulty(name: str, texts: Sequence[str] = (), heights: str = "independent") -> Difficulty:
    """The difficulty of this name, with options changed.

    Args:
        name: of `DIFFICULTIES`; texts: ``option=value``, value in YAML; heights: the option of this name.

    Raises:
        ConfigError: an unknown difficulty or option, or a value of another type or out of bounds.
    """
    expect(name in DIFFICULTIES, f"difficulty is {name!r}; choose from {list(DIFFICULTIES)}")
    changes = read_tree(None, [f"difficulty.{text}" for text in (f"heights={heights}", *texts)])["difficulty"]
    expect(changes.keys().isdisjoint(_WORDS), f"{' and '.join(_WORDS)} are no options of a difficulty")
    options = {**dataclasses.asdict(DIFFICULTIES[name]), **changes}
    return _Config(**build_sections(_Config, {"difficulty": options})).difficulty


def describe_difficulties() -> str:
    """Names, meanings and what each changes, then all options with their defaults."""
    plain = dataclasses.asdict(Difficulty("", ""))
    lines = ["difficulties:"]
    for name, kind in DIFFICULTIES.items():
        changed = [f"{k}={v}" for k, v in dataclasses.asdict(kind).items() if v != plain[k] and k not in _WORDS]
        lines.append(f"  {name:<17} {kind.meaning} ({', '.join(changed) or 'no change'})")
    lines.append("options and their defaults (meanings: dto_pipeline/lab/difficulty.py):")
    return "\n".join([*lines, *(f"  {key}={value}" for key, value in plain.items() if key not in _WORDS)])
