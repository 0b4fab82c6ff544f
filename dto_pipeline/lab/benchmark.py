"""The synthetic benchmark in memory: solvers on every difficulty, and the optimiser with parts of it switched off.

Joins the difficulties (`difficulty`) to the solvers and measures of `evaluate`; scenes are those `dto synth` writes.
Parts are switched off by options the config has anyway, so an ablation runs the very code a run uses. Metres.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dto_pipeline.config import PipelineConfig
from dto_pipeline.config_tree import describe_difference
from dto_pipeline.errors import DtoError
from dto_pipeline.evaluate.evaluation import RESAMPLES, Estimate, Measure, Statistic, Sums, estimate
from dto_pipeline.evaluate.placements import PLACEMENT_MEASURES, join_placements, placement_sums
from dto_pipeline.lab.compare_solvers import TUNING_SEEDS, override
from dto_pipeline.lab.difficulty import DIFFICULTIES, choose_difficulty
from dto_pipeline.lab.foreign_bodies import load_anny
from dto_pipeline.lab.solver_comparison import (
    KnownScene,
    Outcome,
    label_and_prior,
    moved_people,
    paper_else_prior,
    place_all,
)
from dto_pipeline.lab.solver_sets import build_known_scene
from dto_pipeline.models.body import BodyModel

TABLE, ABLATION = "table", "ablation"
PARTS = (TABLE, ABLATION)
SOLVERS = ("paper", "joint")
LABELS, PRIOR, FAIR, TRUE_LINE = "label input", "height prior alone", "paper, else prior", "true line"
METHODS = (LABELS, PRIOR, "paper", FAIR, "joint", TRUE_LINE)
POOLED = "all difficulties"
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
    heights: str = "independent"  # see `difficulty.BENCHMARK_HEIGHTS`
    difficulties: tuple[str, ...] = ()  # names; () = all
    parts: tuple[str, ...] = PARTS
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
        verb = "benchmark" if TABLE in self.parts else ABLATION
        chosen = "".join(f" --difficulty {name}" for name in self.difficulties)
        heights = "" if self.heights == "independent" else f" --heights {self.heights}"
        return f"dto eval {verb} --images {self.images} --seed {self.seed}{heights}{chosen}"


@dataclass(frozen=True)
class BenchmarkReport:
    """What came out, by difficulty; `POOLED` is the last one where there are several."""

    settings: BenchmarkSettings
    people: Mapping[str, int]
    table: Mapping[str, Mapping[str, Mapping[str, Estimate]]]  # difficulty -> method -> measure
    ablation: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Estimate]]]]  # ... -> solver -> switch -> change
    accepted: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # ... -> solver -> share of people
    moved: Mapping[str, Mapping[str, Mapping[str, Estimate]]] = field(default_factory=dict)  # as `table`, people moved
    moved_people: Mapping[str, int] = field(default_factory=dict)  # whom the published solver moves
    changes: tuple[str, ...] = ()  # of the config against its defaults

    def to_json(self) -> dict[str, Any]:
        """Plain dict; NaN is null."""
        return {
            "command": self.settings.command,
            "config_changes": list(self.changes),
            "people": dict(self.people),
            "accepted": {name: dict(shares) for name, shares in self.accepted.items()},
            "table": _plain(self.table),
            "moved_people": dict(self.moved_people),
            "table_of_moved_people": _plain(self.moved),
            "ablation_changes": _plain(self.ablation),
        }


def measure(settings: BenchmarkSettings, config: PipelineConfig, body: BodyModel) -> BenchmarkReport:
    """The numbers of a benchmark; writes nothing."""
    kinds = [choose_difficulty(name, (), settings.heights) for name in settings.names]  # all names are checked first
    if any(kind.bodies == "anny" for kind in kinds):
        load_anny()  # a missing package is said now, not after the others' minutes
    sums: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for kind in kinds:
        known = [build_known_scene(kind, settings.seed, number, body) for number in range(settings.images)]
        sums[kind.name] = _sums_of_methods(known, body, config, settings.parts)
    if len(sums) > 1:
        sums[POOLED] = _pool(list(sums.values()))
    people = {name: int(methods["paper"]["persons"].sum()) for name, methods in sums.items()}
    draws, shown = settings.resamples, sums if TABLE in settings.parts else {}
    return BenchmarkReport(
        settings=settings,
        people=people,
        table={name: _table(methods, {method: method for method in METHODS}, draws) for name, methods in shown.items()},
        moved={
            name: _table(methods, {method: _moved(method) for method in METHODS}, draws)
            for name, methods in shown.items()
        },
        moved_people={name: int(methods[_moved("paper")]["persons"].sum()) for name, methods in shown.items()},
        changes=tuple(describe_difference(*(_settings(one) for one in (PipelineConfig(), config)))),
        ablation={name: _changes(methods, draws) for name, methods in sums.items()}
        if ABLATION in settings.parts
        else {},
        accepted={
            name: {mode: float(methods[mode]["accepted"].sum() / people[name]) for mode in SOLVERS}
            for name, methods in sums.items()
        },
    )


def _settings(config: PipelineConfig) -> dict[str, dict[str, Any]]:
    """The sections that both solvers' labels may follow from."""
    return {section: options for section, options in config.to_dict().items() if section not in ("run", "body")}


def _sums_of_methods(
    known: Sequence[KnownScene], body: BodyModel, config: PipelineConfig, parts: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Method (or "solver, switch") -> what each image adds."""
    truth = join_placements(known)
    image = np.repeat(np.arange(len(known)), [item.scene.num_people for item in known])
    outcomes = {mode: place_all(known, body, config, mode) for mode in SOLVERS}
    labels, prior = label_and_prior(outcomes["paper"].placed)
    placements = {LABELS: labels, PRIOR: prior, TRUE_LINE: outcomes["joint"].on_line}
    placements[FAIR] = paper_else_prior(outcomes["paper"])
    placements |= {mode: outcome.placement for mode, outcome in outcomes.items()}
    if ABLATION in parts:
        for switch in SWITCHES:
            for mode, options in switch.options.items():
                changed = override(config, options)
                placements[_variant(mode, switch)] = place_all(known, body, changed, mode).placement
    sums = {name: placement_sums(found, truth, image, len(known)) for name, found in placements.items()}
    moved = moved_people(outcomes["paper"])
    for name in METHODS:
        sums[_moved(name)] = placement_sums(placements[name], truth, image, len(known), moved)
    for mode, outcome in outcomes.items():
        sums[mode]["accepted"] = _accepted(outcome, image, len(known))
    return sums


def _accepted(outcome: Outcome, image: np.ndarray, images: int) -> np.ndarray:
    return np.bincount(image, outcome.accepted.astype(np.float64), images)


def _variant(mode: str, switch: Switch) -> str:
    return f"{mode}, {switch.name}"


def _pool(parts: Sequence[Mapping[str, Mapping[str, np.ndarray]]]) -> dict[str, dict[str, np.ndarray]]:
    """Image i of all difficulties as one draw: they share a crowd, so they are no independent images."""
    return {
        method: {name: np.sum([part[method][name] for part in parts], axis=0) for name in sums}
        for method, sums in parts[0].items()
    }


def _moved(method: str) -> str:
    """Name of a method's sums over the people whom the published solver moves."""
    return f"{method}, moved people"


def _table(methods: Mapping[str, Sums], rows: Mapping[str, str], resamples: int) -> dict[str, dict[str, Estimate]]:
    """Row of the table -> measures of the method that `rows` names for it."""
    statistics = {measure.key: measure.of for measure in MEASURES}
    return {row: estimate(methods[name], statistics, resamples) for row, name in rows.items()}


def _changes(methods: Mapping[str, Sums], resamples: int) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Solver -> switch -> measure -> how much it changes when the part is off, on the same drawn images."""
    changes: dict[str, dict[str, dict[str, Estimate]]] = {mode: {} for mode in SOLVERS}
    for switch in SWITCHES:
        for mode in switch.options:
            pair = {"with": methods[mode], "without": methods[_variant(mode, switch)]}
            both = {f"{side} {name}": values for side, sums in pair.items() for name, values in sums.items()}
            statistics = {measure.key: _difference(measure) for measure in MEASURES}
            changes[mode][switch.name] = estimate(both, statistics, resamples)
    return changes


def _difference(measure: Measure) -> Statistic:
    def side(sums: Sums, name: str) -> np.ndarray:
        return measure.of({key.removeprefix(f"{name} "): v for key, v in sums.items() if key.startswith(f"{name} ")})

    return lambda sums: side(sums, "without") - side(sums, "with")


def _plain(found: Any) -> Any:
    if isinstance(found, Estimate):
        return {key: value if np.isfinite(value) else None for key, value in dataclasses.asdict(found).items()}
    return {key: _plain(value) for key, value in found.items()}
