"""The synthetic benchmark: labels, height prior and both solvers on every difficulty, and parts of them switched off.

Measures, in memory, the scenes that `dto synth` writes, and makes a markdown page, which docs/evaluation.md explains.
Parts are switched off by options of the config, so that an ablation uses the code of a run. Metres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from dto_pipeline.config import STAND_IN_BODY, PipelineConfig, config_from_dict
from dto_pipeline.config_tree import describe_difference, read_tree
from dto_pipeline.errors import DtoError
from dto_pipeline.evaluate.evaluation import RESAMPLES, Estimate, Measure, Sums, estimate, plain, ratio, show
from dto_pipeline.evaluate.placements import PLACEMENT_MEASURES
from dto_pipeline.lab.difficulty import DIFFICULTIES, choose_difficulty
from dto_pipeline.lab.foreign_bodies import load_anny
from dto_pipeline.lab.known_scenes import SynthScene
from dto_pipeline.lab.solver_outcomes import (
    ACCEPTED,
    BEHAVIOUR,
    EVERYBODY,
    EXPECTED,
    INTERVALS,
    LABELS,
    LEVELS,
    METHODS,
    MOVED,
    SELECTIONS,
    SOLVERS,
    Measured,
    measure_methods,
    pool,
    read_recorded,
)
from dto_pipeline.maths.crowd_solver import interval_halfwidth
from dto_pipeline.models.body import load_body
from dto_pipeline.terminal import markdown

TUNING_SEEDS = (1, 2, 11, 12, 31, 32)  # of the crowds on which the joint solver's constants were chosen
POOLED, OWN, RECORDED = "all difficulties", "our own", "recorded images"
# Our bodies, and errors of the kinds that `joint` models, see docs/evaluation.md.
OWN_DIFFICULTIES = (
    *("easy", "standard", "depth-noise", "depth-bias", "occlusion", "label-corruption"),
    *("children", "other-heights", "hard", "size-error"),
)
ABLATED = ("standard", "occlusion", "children", "hard")  # difficulties on which parts are switched off
MEASURES = tuple(measure for measure in PLACEMENT_MEASURES if measure.key != "relative_depth_error")
_COLUMNS = [f"{title} [{one.unit}]" for title, one in zip(("z", "pairs", "ordinal", "height"), MEASURES, strict=True)]
_HEIGHTS = {
    "independent": "True heights are drawn from the CDC growth charts of 2000, not from the priors of the method.",
    "priors": "True heights are drawn from the method's own priors: these numbers flatter it.",
}


class BenchmarkError(DtoError, ValueError):
    """Settings that a benchmark refuses."""


SWITCHES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "age prior off": ("everybody is an adult", dict.fromkeys(SOLVERS, "prior.age_prior=false")),
    "gender prior off": (
        "paper: adults keep their own height as mean; joint: either gender is as likely",
        dict.fromkeys(SOLVERS, "prior.gender_prior=false"),
    ),
    "internal depth bound off": (
        "slopes inside bodies are not used: paper's lower bound on alpha, joint's measurements of the line",
        {"paper": "solver.internal_constraint=false", "joint": "joint.min_corr=1.0"},
    ),
    "ground evidence off": (
        "the lowest pixels count like all others; joint uses no ground evidence",
        {"paper": "evidence.ground_percentile=0"},
    ),
}
"""Part that is switched off -> meaning, and the option of each solver that has the part."""


@dataclass(frozen=True)
class BenchmarkSettings:
    """All settings of a benchmark, except the config."""

    images: int = 48  # per difficulty
    seed: int = 201
    heights: str = "independent"  # or "priors", see `difficulty.Difficulty`
    difficulties: tuple[str, ...] = ()  # names; () = all
    ablation: bool = True
    recorded: Path | None = None  # folder of recorded images that are measured too, such as tests/golden
    resamples: int = RESAMPLES

    def __post_init__(self) -> None:
        if self.seed in TUNING_SEEDS:
            raise BenchmarkError(f"seed {self.seed}: the joint solver was tuned on {TUNING_SEEDS}; choose another")
        if self.images < 2:
            raise BenchmarkError(f"{self.images} images: intervals over images need at least 2")
        if self.recorded is not None and not (self.recorded / "image" / "index.json").is_file():
            raise BenchmarkError(f"{self.recorded} holds no recorded images (image/index.json); give tests/golden")

    @property
    def names(self) -> tuple[str, ...]:
        """The difficulties that are run."""
        return self.difficulties or tuple(DIFFICULTIES)

    @property
    def command(self) -> str:
        """The command that repeats this benchmark."""
        parts = [f"dto eval benchmark --images {self.images} --seed {self.seed}"]
        parts += [] if self.heights == "independent" else [f"--heights {self.heights}"]
        parts += [f"--difficulty {name}" for name in self.difficulties]
        parts += [] if self.ablation else ["--no-ablation"]
        return " ".join(parts + ([f"--golden {self.recorded}"] if self.recorded else []))


Row = Mapping[str, Estimate]  # by the keys of `MEASURES`


@dataclass(frozen=True)
class BenchmarkReport:
    """The results by difficulty; `OWN` and `POOLED` come last if there are several."""

    settings: BenchmarkSettings
    changes: tuple[str, ...]  # of the config against its defaults
    figures: Mapping[str, Mapping[str, Any]]  # difficulty -> see `_figures`
    ablation: Mapping[str, Mapping[str, Mapping[str, Row]]]  # difficulty -> solver -> switch -> change

    def to_json(self) -> dict[str, Any]:
        """Plain dict; NaN is null."""
        return {
            "command": self.settings.command,
            "config_changes": list(self.changes),
            "difficulties": plain(self.figures),
            "ablation_changes": plain(self.ablation),
        }


def measure(settings: BenchmarkSettings, config: PipelineConfig) -> BenchmarkReport:
    """The numbers of a benchmark; bodies and labels are of the config's body model, or of the stand-in.

    Raises:
        ConfigError: an unknown difficulty; AnnyMissing: a difficulty needs this package.
    """
    body = load_body(config.body.model_path or STAND_IN_BODY, config.body.kid_axis)
    kinds = [choose_difficulty(name, (), settings.heights) for name in settings.names]  # all names are checked first
    if any(kind.bodies == "anny" for kind in kinds):
        load_anny()  # fails now if it is missing, not after the other difficulties
    off = {
        (mode, name): override(config, text)
        for name, (_, options) in SWITCHES.items()
        for mode, text in options.items()
    }
    ablated = ABLATED if settings.ablation else ()
    found: dict[str, Measured] = {}
    for kind in kinds:
        known = [SynthScene(settings.seed, number, body, kind).known for number in range(settings.images)]
        found[kind.name] = measure_methods(known, config, off if kind.name in ablated else {})
    without = {name: found[name] for name in ablated if name in found}
    if len(without) > 1:
        without[f"these {len(without)}"] = pool(list(without.values()))
    groups = {OWN: [found[name] for name in OWN_DIFFICULTIES if name in found], POOLED: list(found.values())}
    found |= {name: pool(parts) for name, parts in groups.items() if len(parts) > 1}
    if settings.recorded is not None:
        found[RECORDED] = measure_methods(read_recorded(settings.recorded), config, {})
    compared = [
        {section: options for section, options in one.to_dict().items() if section not in ("run", "body")}
        for one in (PipelineConfig(), config)
    ]
    return BenchmarkReport(
        settings,
        tuple(describe_difference(*compared)),
        {name: _figures(measured, settings.resamples) for name, measured in found.items()},
        {name: _ablation(measured, settings.resamples) for name, measured in without.items()},
    )


def override(config: PipelineConfig, text: str) -> PipelineConfig:
    """`config` with one option changed, ``section.key=value``."""
    tree = config.to_dict()
    for section, options in read_tree(None, [text]).items():
        tree[section] |= options
    return config_from_dict(tree)


def _figures(measured: Measured, draws: int) -> dict[str, Any]:
    """Numbers of people, errors by selection and method, behaviour by solver, intervals of `joint`, as in the JSON."""
    inside = {name: float(values.sum()) for name, values in measured["joint", INTERVALS].items()}
    images = measured["joint", EXPECTED]
    known = np.isfinite(images["expected"])
    rank = spearmanr(images["expected"][known], images["error"][known]).statistic if known.sum() > 2 else np.nan
    errors = {
        whom: {name: estimate(measured[name, whom], MEASURES, draws) for name in METHODS if (name, whom) in measured}
        for whom in SELECTIONS
    }
    behaviour = {}
    for mode in SOLVERS:
        total = {name: float(values.sum()) for name, values in measured[mode, BEHAVIOUR].items()}
        behaviour[mode] = {
            "accepted_share": float(measured[mode, ACCEPTED[mode]]["persons"].sum()) / total["persons"],
            "shift_px": total["shift"] / total["persons"],
            "kid_shift_px": float(ratio(total["kid_shift"], total["kids"])),
            "cpu_ms_per_image": 1000 * total["seconds"] / total["images"],
        }
    return {
        "people": {whom: int(measured[LABELS, whom]["persons"].sum()) for whom in SELECTIONS},
        "errors": errors,
        "behaviour": behaviour,
        "intervals": {  # quantity -> level -> share of true values inside
            what: {f"{level:.2f}": float(ratio(inside[f"{what} {level:.2f}"], inside[what])) for level in LEVELS}
            for what in ("z", "pairs", "height")
        },
        "rank_correlation": float(rank),  # of expected and true error of images
    }


def _ablation(measured: Measured, draws: int) -> dict[str, dict[str, Row]]:
    """Solver -> switch -> how much each measure changes when the part is off, in the same bootstrap samples."""

    def change(measure: Measure) -> Measure:
        def side(sums: Sums, name: str) -> np.ndarray:
            return measure.of({key.removeprefix(name): v for key, v in sums.items() if key.startswith(name)})

        return replace(measure, of=lambda sums: side(sums, "without ") - side(sums, "with "))

    measures_of_change = [change(measure) for measure in MEASURES]
    changes: dict[str, dict[str, Row]] = {mode: {} for mode in SOLVERS}
    for switch, (_, options) in SWITCHES.items():
        for mode in options:
            both = {f"with {name}": values for name, values in measured[mode, EVERYBODY].items()}
            both |= {f"without {name}": values for name, values in measured[mode, switch].items()}
            changes[mode][switch] = estimate(both, measures_of_change, draws)
    return changes


def as_page(report: BenchmarkReport) -> str:
    """The page in markdown."""
    settings, columns = report.settings, ["difficulty", "method", *_COLUMNS]
    head = [
        "# Synthetic benchmark",
        "",
        f"Made by `{settings.command}`; docs/evaluation.md explains what is measured. "
        f"{settings.images} images per difficulty, seed {settings.seed}; the joint solver was tuned on seeds "
        f"{', '.join(map(str, TUNING_SEEDS))} only. In brackets: 95 % intervals from images drawn again. Errors "
        "are means over all people, placed or not, accepted or not, unless stated otherwise.",
        "",
        _HEIGHTS[settings.heights],
        *(f"Config changed: {change}." for change in report.changes),
    ]
    sections = [
        head,
        _table("Difficulties", "", ["name", "what is hard"], [[k, DIFFICULTIES[k].meaning] for k in settings.names]),
        errors_section(report),
        _table(
            "People the published solver moves",
            "The same methods over the people whom `paper` moves. The others keep their label there: few, but far off, "
            "and much of the means over all people.",
            columns,
            _rows(report, MOVED),
        ),
        _table(
            "Accepted people",
            "The people of images with `is_accepted`, which a training keeps: how many, their errors, and the errors "
            "of their labels.",
            columns,
            [row for whom in ACCEPTED.values() for row in _rows(report, whom)],
        ),
        *_solver_sections(report),
        *([_ablation_section(report.ablation)] if report.ablation else []),
    ]
    return "\n".join(line for section in sections for line in [*section, ""])


def errors_section(report: BenchmarkReport) -> list[str]:
    """The table of all methods over all people."""
    text = (
        "*Height prior alone* scales every label to its prior height and uses no depth. *Paper, else prior* is the "
        "published fit, and that prior for the people it does not move: the fair baseline for `joint`. *True line* is "
        "no solver: it places people by their measured depth on the line that the depth map was made with, the best "
        "that this map allows."
    )
    return _table("Solvers", text, ["difficulty", "method", *_COLUMNS, "accepted"], _rows(report, EVERYBODY))


def _solver_sections(report: BenchmarkReport) -> list[list[str]]:
    """The table of intervals, and that of shifts and times."""
    shares, behaviour = [], []
    for name, found in report.figures.items():
        inside = (" / ".join(_number(100 * share, 0) for share in one.values()) for one in found["intervals"].values())
        shares.append([name, *inside, _number(found["rank_correlation"], 2)])
        numbers = (("shift_px", 2), ("kid_shift_px", 2), ("cpu_ms_per_image", 0))
        cells = (_number(found["behaviour"][mode][key], digits) for key, digits in numbers for mode in SOLVERS)
        behaviour.append([name, *cells])
    widths = "{:.2f}, {:.2f} and {:.2f}".format(*map(interval_halfwidth, LEVELS))
    return [
        _table(
            "Do the intervals hold what they say?",
            "Share of true values inside the 50 / 80 / 95 % intervals of `joint`. Half-widths are those of a Student "
            f"t, {widths} standard deviations, for z (`z_sigma_m`) and for the difference of two people's z "
            "(`z_covariance`), see `dto_pipeline.interval_halfwidth` and docs/joint_solver.md, and those of a normal "
            "law, 0.67, 1.28 and 1.96, for heights (`height_sigma_m`). Last: the rank correlation (Spearman) of "
            "`expected_error_m` with the true error of images.",
            ["difficulty", "z", "pairs", "height", "rank correlation"],
            shares,
        ),
        _table(
            "Shift in the image, and time",
            "How far joints move in the image, mean over people and joints; a shape along the kid axis changes "
            "proportions, so there they cannot all stay. Processor time of placing, without reading and depth network.",
            ["difficulty", *(f"{solver} [{unit}]" for unit in ("px", "px, kid axis", "ms") for solver in SOLVERS)],
            behaviour,
        ),
    ]


def _ablation_section(ablation: Mapping[str, Mapping[str, Mapping[str, Row]]]) -> list[str]:
    meanings = markdown(["off", "which means"], [[name, meaning] for name, (meaning, _) in SWITCHES.items()])
    text = (
        "Each part off alone, everything else as it is. Numbers are changes against the same solver with all parts, on "
        "the same images: positive z, pairs and height, and negative ordinal accuracy, mean that the part helps."
    )
    rows = []
    for name, solvers in reversed(list(ablation.items())):  # everything together first
        changes = [(solver, switch, found) for solver, row in solvers.items() for switch, found in row.items()]
        for number, (solver, switch, found) in enumerate(changes):
            cells = []
            for one in MEASURES:
                value, low, high = (f"{x:+.{one.digits}f}" for x in vars(found[one.key]).values())
                cells.append(f"{value} ({low} .. {high})")
            rows.append(["" if number else name, solver, switch, *cells])
    return _table("Ablation", "\n".join([text, "", *meanings]), ["difficulty", "solver", "off", *_COLUMNS], rows)


def _table(title: str, text: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"## {title}", "", *([text, ""] if text else []), *markdown(columns, rows)]


def _rows(report: BenchmarkReport, whom: str) -> list[list[str]]:
    """A line per difficulty and method; in the table over all people with the share that a solver accepts."""
    rows = []
    for name, figures in report.figures.items():
        title = f"{name} ({figures['people'][whom]} people)"
        for method, found in figures["errors"][whom].items():
            of_these = f"label input of people {whom}" if method == LABELS and whom in ACCEPTED.values() else method
            cells = [title, of_these, *(show(found[measure.key], measure) for measure in MEASURES)]
            if whom == EVERYBODY:
                accepted = figures["behaviour"].get(method, {}).get("accepted_share")
                cells.append("-" if accepted is None else f"{100 * accepted:.0f} %")
            rows.append(cells)
            title = ""
    return rows


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"
