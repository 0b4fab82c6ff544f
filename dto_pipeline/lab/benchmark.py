"""The synthetic benchmark: labels, height prior and both solvers on every difficulty, and parts of them switched off.

Builds the scenes that `dto synth` writes and measures them in memory; writes nothing. Parts are switched off by
options the config has anyway, so an ablation runs the very code a run uses. Metres.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from dto_pipeline.config import PipelineConfig, config_from_dict
from dto_pipeline.config_tree import describe_difference, read_tree
from dto_pipeline.errors import DtoError
from dto_pipeline.evaluate.evaluation import RESAMPLES, Estimate, Measure, Statistic, Sums, estimate
from dto_pipeline.evaluate.placements import PLACEMENT_MEASURES
from dto_pipeline.lab.difficulty import DIFFICULTIES, choose_difficulty
from dto_pipeline.lab.foreign_bodies import load_anny
from dto_pipeline.lab.known_scenes import build_known_scene
from dto_pipeline.lab.solver_outcomes import (
    ACCEPTED,
    BEHAVIOUR,
    EVERYBODY,
    EXPECTED,
    INTERVALS,
    LEVELS,
    METHODS,
    MOVED,
    SOLVERS,
    Measured,
    measure_methods,
    pool,
    read_recorded,
)
from dto_pipeline.models.body import BodyModel

TUNING_SEEDS = (1, 2, 11, 12, 31, 32)  # of the joint solver's numbers
POOLED, OWN, RECORDED = "all difficulties", "our own", "recorded images"
# What `joint` may be judged by as if at home: our bodies, and errors of the kinds it knows, see docs/evaluation.md.
OWN_DIFFICULTIES = (
    *("easy", "standard", "depth-noise", "depth-bias", "occlusion", "label-corruption"),
    *("children", "other-heights", "hard", "size-error"),
)
ABLATED = ("standard", "occlusion", "children", "hard")  # difficulties on which parts are switched off
MEASURES = tuple(measure for measure in PLACEMENT_MEASURES if measure.key != "relative_depth_error")


class BenchmarkError(DtoError, ValueError):
    """Settings a benchmark cannot or must not run with."""


@dataclass(frozen=True)
class Switch:
    """A part of the optimiser that is switched off, by solver; a solver that has no such part is not listed."""

    name: str
    meaning: str
    options: Mapping[str, tuple[str, ...]]  # solver -> overrides of the config


SWITCHES = (
    Switch("age prior off", "everybody is an adult", dict.fromkeys(SOLVERS, ("prior.age_prior=false",))),
    Switch(
        "gender prior off",
        "paper: adults keep their own height as mean; joint: either gender is as likely",
        dict.fromkeys(SOLVERS, ("prior.gender_prior=false",)),
    ),
    Switch(
        "internal depth bound off",
        "slopes inside bodies are not used: paper's lower bound on alpha, joint's measurements of the line",
        {"paper": ("solver.internal_constraint=false",), "joint": ("joint.min_corr=1.0",)},
    ),
    Switch(
        "ground evidence off",
        "the lowest pixels count like all others; joint uses no ground evidence",
        {"paper": ("evidence.ground_percentile=0",)},
    ),
)


@dataclass(frozen=True)
class BenchmarkSettings:
    """All that determines a benchmark, besides the config."""

    images: int = 48  # per difficulty
    seed: int = 201
    heights: str = "independent"  # of `difficulty.HEIGHTS`
    difficulties: tuple[str, ...] = ()  # names; () = all
    ablation: bool = True
    recorded: Path | None = None  # folder of recorded images to add, as tests/golden
    resamples: int = RESAMPLES

    def __post_init__(self) -> None:
        if self.seed in TUNING_SEEDS:
            raise BenchmarkError(f"seed {self.seed}: the joint solver was tuned on {TUNING_SEEDS}; choose another")
        if self.images < 2:
            raise BenchmarkError(f"{self.images} images: intervals over images need at least 2")

    @property
    def names(self) -> tuple[str, ...]:
        """The difficulties that are run."""
        return self.difficulties or tuple(DIFFICULTIES)

    @property
    def command(self) -> str:
        """What makes this benchmark again."""
        parts = [f"dto eval benchmark --images {self.images} --seed {self.seed}"]
        parts += [] if self.heights == "independent" else [f"--heights {self.heights}"]
        parts += [f"--difficulty {name}" for name in self.difficulties]
        parts += [] if self.ablation else ["--no-ablation"]
        return " ".join(parts + ([f"--golden {self.recorded}"] if self.recorded else []))


Row = Mapping[str, Estimate]  # by the keys of `MEASURES`


@dataclass(frozen=True)
class BenchmarkReport:
    """What came out, by difficulty; `OWN` and `POOLED` come last where there are several."""

    settings: BenchmarkSettings
    changes: tuple[str, ...]  # of the config against its defaults
    people: Mapping[str, Mapping[str, int]]  # selection -> difficulty -> how many
    errors: Mapping[str, Mapping[str, Mapping[str, Row]]]  # selection -> difficulty -> method -> errors
    behaviour: Mapping[str, Mapping[str, Mapping[str, float]]]  # difficulty -> solver -> ...
    intervals: Mapping[
        str, Mapping[str, Mapping[str, float]]
    ]  # difficulty -> z, pairs, height -> level -> share inside
    rank_correlation: Mapping[str, float]  # of expected and true error of images, by difficulty
    ablation: Mapping[str, Mapping[str, Mapping[str, Row]]]  # difficulty -> solver -> switch -> change

    def to_json(self) -> dict[str, Any]:
        """Plain dict; NaN is null."""
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del facts["settings"]
        return {"command": self.settings.command, "config_changes": facts.pop("changes"), **_plain(facts)}


def measure(settings: BenchmarkSettings, config: PipelineConfig, body: BodyModel) -> BenchmarkReport:
    """The numbers of a benchmark.

    Raises:
        DifficultyError: a difficulty nobody knows; AnnyMissing: one needs a package that is not there.
    """
    kinds = [choose_difficulty(name, (), settings.heights) for name in settings.names]  # all names are checked first
    if any(kind.bodies == "anny" for kind in kinds):
        load_anny()  # a missing package is said now, not after the others' minutes
    variants = {
        (mode, switch.name): override(config, *options)
        for switch in SWITCHES
        for mode, options in switch.options.items()
    }
    found: dict[str, Measured] = {}
    for kind in kinds:
        known = [build_known_scene(kind, settings.seed, number, body) for number in range(settings.images)]
        found[kind.name] = measure_methods(
            known, config, variants if settings.ablation and kind.name in ABLATED else {}
        )
    ablated = {name: found[name] for name in ABLATED if settings.ablation and name in found}
    if len(ablated) > 1:
        ablated[f"these {len(ablated)}"] = pool(list(ablated.values()))
    groups = {OWN: [found[name] for name in OWN_DIFFICULTIES if name in found], POOLED: list(found.values())}
    found |= {name: pool(parts) for name, parts in groups.items() if len(parts) > 1}
    if settings.recorded is not None:
        found[RECORDED] = measure_methods(read_recorded(settings.recorded, config), config, {})
    return _report(settings, config, found, ablated)


def override(config: PipelineConfig, *texts: str) -> PipelineConfig:
    """`config` with ``section.key=value`` texts applied."""
    tree = config.to_dict()
    for section, options in read_tree(None, texts).items():
        tree[section] |= options
    return config_from_dict(tree)


def _report(
    settings: BenchmarkSettings, config: PipelineConfig, found: Mapping[str, Measured], ablated: Mapping[str, Measured]
) -> BenchmarkReport:
    selections = (EVERYBODY, MOVED, *ACCEPTED.values())
    statistics = {measure.key: measure.of for measure in MEASURES}
    changes = {measure.key: _change(measure) for measure in MEASURES}
    draws = settings.resamples
    compared = [
        {section: options for section, options in one.to_dict().items() if section not in ("run", "body")}
        for one in (PipelineConfig(), config)
    ]
    return BenchmarkReport(
        settings=settings,
        changes=tuple(describe_difference(*compared)),
        people={
            chosen: {
                name: int(next(sums for (_, whom), sums in measured.items() if whom == chosen)["persons"].sum())
                for name, measured in found.items()
            }
            for chosen in selections
        },
        errors={
            chosen: {
                name: {
                    method: estimate(measured[method, chosen], statistics, draws)
                    for method in METHODS
                    if (method, chosen) in measured
                }
                for name, measured in found.items()
            }
            for chosen in selections
        },
        behaviour={name: {mode: _behaviour(measured, mode) for mode in SOLVERS} for name, measured in found.items()},
        intervals={name: _intervals(measured["joint", INTERVALS]) for name, measured in found.items()},
        rank_correlation={name: _rank_correlation(measured["joint", EXPECTED]) for name, measured in found.items()},
        ablation={
            name: {
                mode: {
                    switch.name: estimate(_pair(measured, mode, switch.name), changes, draws)
                    for switch in SWITCHES
                    if mode in switch.options
                }
                for mode in SOLVERS
            }
            for name, measured in ablated.items()
        },
    )


def _pair(measured: Measured, mode: str, switched_off: str) -> Sums:
    """What a solver adds up with all its parts and without one, on the same images."""
    sides = {"with": measured[mode, EVERYBODY], "without": measured[mode, switched_off]}
    return {f"{side} {name}": values for side, sums in sides.items() for name, values in sums.items()}


def _change(measure: Measure) -> Statistic:
    """How much a measure changes when a part is off."""

    def side(sums: Sums, name: str) -> np.ndarray:
        return measure.of({key.removeprefix(f"{name} "): v for key, v in sums.items() if key.startswith(f"{name} ")})

    return lambda sums: side(sums, "without") - side(sums, "with")


def _behaviour(measured: Measured, mode: str) -> dict[str, float]:
    total = {name: float(values.sum()) for name, values in measured[mode, BEHAVIOUR].items()}
    return {
        "accepted_share": float(measured[mode, ACCEPTED[mode]]["persons"].sum()) / total["persons"],
        "shift_px": total["shift"] / total["persons"],
        "kid_shift_px": total["kid_shift"] / total["kids"] if total["kids"] else float("nan"),
        "cpu_ms_per_image": 1000 * total["seconds"] / total["images"],
    }


def _intervals(sums: Sums) -> dict[str, dict[str, float]]:
    """z, pairs, height -> level -> share of truths inside the interval of that level."""
    total = {name: float(values.sum()) for name, values in sums.items()}
    return {
        what: {
            f"{level:.2f}": total[f"{what} {level:.2f}"] / total[what] if total[what] else float("nan")
            for level in LEVELS
        }
        for what in ("z", "pairs", "height")
    }


def _rank_correlation(images: Sums) -> float:
    known = np.isfinite(images["expected"])
    if known.sum() < 3:
        return float("nan")
    return float(spearmanr(images["expected"][known], images["error"][known]).statistic)


def _plain(found: Any) -> Any:
    if isinstance(found, Estimate):
        found = dataclasses.asdict(found)
    if isinstance(found, Mapping):
        return {key: _plain(value) for key, value in found.items()}
    return None if isinstance(found, float) and not np.isfinite(found) else found
