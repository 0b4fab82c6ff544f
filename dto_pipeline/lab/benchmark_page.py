"""The benchmark's numbers as a page of markdown; what they mean is written by hand, in docs/evaluation.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dto_pipeline.config import STAND_IN_BODY, PipelineConfig
from dto_pipeline.data.files import write_bytes_atomic, write_json_atomic
from dto_pipeline.evaluate.evaluation import Estimate, Measure, show
from dto_pipeline.evaluate.tables import markdown
from dto_pipeline.lab.benchmark import (
    MEASURES,
    SWITCHES,
    TUNING_SEEDS,
    BenchmarkReport,
    BenchmarkSettings,
    measure,
)
from dto_pipeline.lab.difficulty import DIFFICULTIES
from dto_pipeline.lab.solver_outcomes import ACCEPTED, EVERYBODY, LABELS, MOVED, SOLVERS
from dto_pipeline.models.body import BodyModel, load_body

_TITLES = {"depth_error": "z", "pair_depth_error": "pairs", "ordinal": "ordinal", "height_error": "height"}
_COLUMNS = [f"{_TITLES[measure.key]} [{measure.unit}]" for measure in MEASURES]
_HEIGHTS = {
    "independent": "True heights are drawn from the CDC growth charts of 2000, not from the priors of the method.",
    "priors": "True heights are drawn from the method's own priors: these numbers flatter it.",
}
_METHODS = (
    "*Height prior alone* scales every label to its prior height and uses no depth. *Paper, else prior* is the "
    "published fit, and that prior for whoever it leaves: the fair one to compare `joint` with. *True line* is no "
    "solver: it puts everybody where the own measured depth says on the line the depth map was made with: what that "
    "map allows."
)
_MOVED = (
    "The same methods over the people whom `paper` moves. The others keep their label there: few, but far off, and "
    "much of the means over all people."
)
_ACCEPTED = (
    "What a trainer gets that keeps `is_accepted` images: how many people, how wrong they are, and how wrong their "
    "labels were."
)
_INTERVALS = (
    "Share of truths inside the 50 / 80 / 95 % intervals that `joint` claims (`z_sigma_m`, `z_covariance`, "
    "`height_sigma_m`), and the rank correlation (Spearman) of `expected_error_m` and the true error of images."
)
_BEHAVIOUR = (
    "How far joints move in the image, mean over people and joints; a shape along the kid axis changes proportions, so "
    "there they cannot all stay. Processor time of placing, without reading and depth network."
)
_ABLATION = (
    "Each part off alone, everything else as it is. Numbers are changes against the same solver with all parts, on the "
    "same images: positive z, pairs and height, and negative ordinal accuracy, mean that the part helps."
)


def run_benchmark(
    out: Path, settings: BenchmarkSettings, config: PipelineConfig | None = None, body: BodyModel | None = None
) -> BenchmarkReport:
    """Measure (see `benchmark.measure`), then write benchmark.md and benchmark.json into `out`."""
    config = config or PipelineConfig()
    body = body or load_body(config.body.model_path or STAND_IN_BODY, config.body.kid_axis)
    report = measure(settings, config, body)
    write_bytes_atomic(out / "benchmark.md", as_page(report).encode())
    write_json_atomic(out / "benchmark.json", report.to_json())
    return report


def as_page(report: BenchmarkReport) -> str:
    """What was run, the difficulties, every table."""
    settings = report.settings
    sections = [
        [
            "# Synthetic benchmark",
            "",
            f"Made by `{settings.command}`; docs/evaluation.md says what is measured and what to read in it. "
            f"{settings.images} images per difficulty, seed {settings.seed}; the joint solver was tuned on seeds "
            f"{', '.join(map(str, TUNING_SEEDS))} only. In brackets: 95 % intervals from images drawn again. Errors "
            "are means over all people, placed or not, accepted or not, unless said.",
            "",
            _HEIGHTS[settings.heights],
            *(f"Config changed: {change}." for change in report.changes),
        ],
        _table("Difficulties", "", ["name", "what is hard"], [[k, DIFFICULTIES[k].meaning] for k in settings.names]),
        errors_section(report),
        _table("People the published solver moves", _MOVED, ["difficulty", "method", *_COLUMNS], _rows(report, MOVED)),
        _table(
            "Accepted people",
            _ACCEPTED,
            ["difficulty", "method", *_COLUMNS],
            [row for whom in ACCEPTED.values() for row in _rows(report, whom)],
        ),
        _table(
            "Do the intervals hold what they say?",
            _INTERVALS,
            ["difficulty", "z", "pairs", "height", "rank correlation"],
            [
                [name, *map(_shares, found.intervals.values()), _number(found.rank_correlation, 2)]
                for name, found in report.figures.items()
            ],
        ),
        _table(
            "Shift in the image, and time",
            _BEHAVIOUR,
            ["difficulty", *(f"{solver} [{unit}]" for unit in ("px", "px, kid axis", "ms") for solver in SOLVERS)],
            [
                [
                    name,
                    *(
                        _number(found.behaviour[mode][key], digits)
                        for key, digits in (("shift_px", 2), ("kid_shift_px", 2), ("cpu_ms_per_image", 0))
                        for mode in SOLVERS
                    ),
                ]
                for name, found in report.figures.items()
            ],
        ),
    ]
    if report.ablation:
        meanings = markdown(["off", "which means"], [[switch.name, switch.meaning] for switch in SWITCHES])
        head = "\n".join([_ABLATION, "", *meanings])
        sections.append(_table("Ablation", head, ["difficulty", "solver", "off", *_COLUMNS], _ablation_rows(report)))
    return "\n".join(line for section in sections for line in [*section, ""])


def errors_section(report: BenchmarkReport) -> list[str]:
    """The table of all methods over all people."""
    rows = _rows(report, EVERYBODY)
    return _table("Solvers", _METHODS, ["difficulty", "method", *_COLUMNS, "accepted"], rows)


def _table(title: str, text: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"## {title}", "", *([text, ""] if text else []), *markdown(columns, rows)]


def _rows(report: BenchmarkReport, whom: str) -> list[list[str]]:
    """A line per difficulty and method; over everybody with the share that a solver accepts."""
    rows = []
    for name, figures in report.figures.items():
        title = f"{name} ({figures.people[whom]} people)"
        for method, found in figures.errors[whom].items():
            of_these = f"label input of people {whom}" if method == LABELS and whom in ACCEPTED.values() else method
            cells = [title, of_these, *(show(found[measure.key], measure) for measure in MEASURES)]
            if whom == EVERYBODY:
                accepted = figures.behaviour.get(method, {}).get("accepted_share")
                cells.append("-" if accepted is None else f"{100 * accepted:.0f} %")
            rows.append(cells)
            title = ""
    return rows


def _ablation_rows(report: BenchmarkReport) -> list[list[str]]:
    rows = []
    for name, solvers in reversed(list(report.ablation.items())):  # everything together first
        title = name
        for solver, switches in solvers.items():
            for switch, found in switches.items():
                rows.append([title, solver, switch, *(_signed(found[measure.key], measure) for measure in MEASURES)])
                title = ""
    return rows


def _shares(inside: Mapping[str, float]) -> str:
    return " / ".join(_number(100 * share, 0) for share in inside.values())


def _signed(found: Estimate, measure: Measure) -> str:
    digits = measure.digits
    return f"{found.value:+.{digits}f} ({found.low:+.{digits}f} .. {found.high:+.{digits}f})"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"
