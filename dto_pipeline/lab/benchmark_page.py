"""The benchmark's numbers as text for a terminal and as a page of markdown.

Knows tables of estimates and words; knows no solver and writes no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dto_pipeline.config import STAND_IN_BODY, PipelineConfig
from dto_pipeline.data.files import write_bytes_atomic, write_json_atomic
from dto_pipeline.evaluate.evaluation import Estimate, Measure, show
from dto_pipeline.evaluate.tables import align, markdown
from dto_pipeline.lab.benchmark import MEASURES, SWITCHES, BenchmarkReport, BenchmarkSettings, measure
from dto_pipeline.lab.difficulty import DIFFICULTIES
from dto_pipeline.models.body import BodyModel, load_body

_Row = Mapping[str, Estimate]


def run_benchmark(
    out: Path, settings: BenchmarkSettings, config: PipelineConfig | None = None, body: BodyModel | None = None
) -> BenchmarkReport:
    """Build every difficulty, place its people, write benchmark.md and benchmark.json into `out`.

    Raises:
        DifficultyError: a difficulty nobody knows.
    """
    config = config or PipelineConfig()
    body = body or load_body(config.body.model_path or STAND_IN_BODY, config.body.kid_axis)
    report = measure(settings, config, body)
    write_bytes_atomic(out / "benchmark.md", as_page(report).encode())
    write_json_atomic(out / "benchmark.json", report.to_json())
    return report


def as_text(report: BenchmarkReport) -> str:
    """Both tables with columns of equal width."""
    parts, measures = [], MEASURES
    if report.table:
        parts += align(
            [["difficulty", "method", *_titles(measures)], *_table_rows(report.table, report.people, measures)]
        )
    if report.ablation:
        parts += ["", "change when a part is off (positive z, pairs and height: it helped)"]
        parts += align(
            [["difficulty", "solver", "switch", *_titles(measures)], *_ablation_rows(report.ablation, measures)]
        )
    return "\n".join(parts)


def as_page(report: BenchmarkReport) -> str:
    """The page: what was run, the difficulties, the table, the ablation."""
    measures = MEASURES
    meanings = {name: DIFFICULTIES[name].meaning for name in report.settings.names}
    sections = [
        [
            "# Synthetic benchmark",
            "",
            f"Made by `{report.settings.command}` (docs/evaluation.md says what is measured). "
            f"{report.settings.images} images per difficulty, seed {report.settings.seed}; the joint solver was "
            "tuned on seeds 1, 2 and 11 only. In brackets: "
            "95 % intervals from images drawn again. Errors are means over all people, placed or not, accepted or not.",
            "",
            _HEIGHTS[report.settings.heights],
            *(f"Config changed: {change}." for change in report.changes),
        ],
        [
            "## Whose laws",
            "",
            _WHOSE,
            "",
            *markdown(["law", "these scenes", "`paper` assumes", "`joint` assumes"], _LAWS),
        ],
        ["## Difficulties", "", *markdown(["name", "what is hard"], [[k, v] for k, v in meanings.items()])],
    ]
    if report.table:
        rows = _table_rows(report.table, report.people, measures, report.accepted)
        columns = ["difficulty", "method", *_titles(measures), "accepted"]
        sections.append(["## Solvers", "", _METHODS, "", *markdown(columns, rows)])
        rows = _table_rows(report.moved, report.moved_people, measures)
        sections.append(["## People the published solver moves", "", _MOVED, "", *markdown(columns[:-1], rows)])
    if report.ablation:
        rows = _ablation_rows(report.ablation, measures)
        columns = ["difficulty", "solver", "off", *_titles(measures)]
        told = [[name, meaning] for name, meaning in ((switch.name, switch.meaning) for switch in SWITCHES)]
        head = ["## Ablation", "", _CHANGES, "", *markdown(["off", "which means"], told), ""]
        sections.append([*head, *markdown(columns, rows)])
    sections.append(["## Reading", "", _READING])
    return "\n".join(line for section in sections for line in [*section, ""])


_HEIGHTS = {
    "independent": "True heights are drawn from the CDC growth charts of 2000 (`dto_pipeline/lab/growth.py`), not "
    "from the priors of the method.",
    "priors": "True heights are drawn from the method's own priors: these numbers flatter it.",
}
_LAWS = (
    (
        "heights",
        "growth charts of the CDC; Anny's of the WHO in `foreign*`; an image's people all off together in "
        "`other-heights`",
        "a normal law per class of age and gender, published means",
        "the published means, children also by their age, somebody of another age at times, an error that all of an "
        "image share",
    ),
    (
        "labels",
        "height near 1.69 m whoever it is, distance stretched alike, joints noisy; `foreign*`: a body of 1.70 m fitted "
        "to projected joints",
        "right up to one factor a person; an adult's own height is half believed",
        "right up to one factor a person; an adult's own height is hardly believed (25 %)",
    ),
    (
        "a person's depth",
        "a / z + b times an error of Student's t (3 degrees of freedom, scale 2 % unless said, at most 30 %), a tilt "
        "over the rows, noise per pixel, blur",
        "z = alpha / disparity + beta, near and far people apart, all errors alike",
        "z, or 1 / z, a line in what the map says; an error per person of mixed normal laws about 2 %, its level "
        "learnt from the image, wider for people of few pixels",
    ),
    ("blur, smooth errors, powers, upside down", "one a difficulty", "unknown", "unknown: larger errors at best"),
    (
        "error that follows size",
        "disparity times (height / 1.7 m)^0.3 in `size-error`",
        "unknown",
        "one kind of image it weighs, close to the generator's (`joint.size_error`)",
    ),
    ("the map's unit", "the published one; 0.002, 0.03, 30 times it", "a far limit and a bound in it", "none"),
    ("ages", "15 % noise, 4 % unknown; all unknown in `foreign-no-ages`", "exact", "20 % noise, a few anybody's"),
)
_WHOSE = (
    "What makes these scenes and what the solvers assume are different laws, except where a row says so. `joint` knows "
    "the kind of noise of the difficulties above `blur`, not an image's share of it, and is at home there; the others, "
    "and people of Anny, tell how it does elsewhere. Its numbers were tuned on other seeds."
)
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
_READING = """\
Written on the run of docs/benchmark.md (48 images, seed 201); intervals say what of it holds elsewhere.

- Where labels and ages are sound, `paper` is over all people no nearer in z than the height prior alone, but orders
  people better (not where depth is noisy or blurred). The reason is the few percent it leaves where the label had them
  (too small, alone in their group), wrong by metres: over the people it moves it is ahead of the prior.
- `joint` places everybody: over all people it leaves 45 % of `paper`'s z error and 38 % of the pairs'; of "paper, else
  prior", 59 % and 55 %.
- Order and pairs of `joint` end near the true line, which is what the depth map allows, and pass it under noise,
  where heights are the better witness. Where depth is nearly exact (easy), it leaves half of what the map offers. The
  true line assumes a / z + b: where the map obeys another law (blur, power, size, upside-down) it says nothing.
- Maps times a constant change nothing; blur, smooth errors and a network that draws small people far cost `joint` 0.02
  to 0.1 m, weak depth 0.16 m. Upside-down depth makes both worse than the height prior and `paper` worse than the
  labels in pairs; `joint` accepts 1 % of it, `paper` 16 %, and the sanity block of a run ends it with exit code 1.
- Foreign bodies (Anny, labels fitted to what is seen) cost 0.1 m of z; without ages the prior alone is no better than
  the labels, `paper` 1.31 m, `joint` 0.60 m, and `joint` accepts a fifth of it.
- Wrong labels and ages hurt the height prior most; depth tells who they are. A population 6 % off the priors costs
  every method about 6 % of z and hardly any order in depth: a picture cannot tell tall people from far ones.
- Of the parts, age carries the method: without it children become distant adults again. Gender is worth three
  centimetres. The internal depth bound gives `paper` a point of order, ground evidence next to nothing, and `joint`
  hardly notices the loss of the slopes inside bodies."""
_CHANGES = (
    "Each part off alone, everything else as it is. Numbers are changes against the same solver with all parts, on the "
    "same images: positive z, pairs and height, and negative ordinal accuracy, mean that the part helps."
)


def _titles(measures: Sequence[Measure]) -> list[str]:
    short = {"depth_error": "z", "pair_depth_error": "pairs", "ordinal": "ordinal", "height_error": "height"}
    return [f"{short[measure.key]} [{measure.unit}]" for measure in measures]


def _table_rows(
    table: Mapping[str, Mapping[str, _Row]],
    people: Mapping[str, int],
    measures: Sequence[Measure],
    accepted: Mapping[str, Mapping[str, float]] | None = None,
) -> list[list[str]]:
    rows = []
    for name, methods in table.items():
        for place, (method, found) in enumerate(methods.items()):
            title = f"{name} ({people[name]} people)" if place == 0 else ""
            cells = [title, method, *(show(found[measure.key], measure) for measure in measures)]
            if accepted is not None:
                share = accepted[name].get(method)
                cells.append("-" if share is None else f"{100 * share:.0f} %")
            rows.append(cells)
    return rows


def _ablation_rows(
    ablation: Mapping[str, Mapping[str, Mapping[str, _Row]]], measures: Sequence[Measure]
) -> list[list[str]]:
    rows = []
    for name, solvers in reversed(list(ablation.items())):  # everything together first
        title = name
        for solver, switches in solvers.items():
            for switch, found in switches.items():
                rows.append([title, solver, switch, *(_signed(found[measure.key], measure) for measure in measures)])
                title = ""
    return rows


def _signed(found: Estimate, measure: Measure) -> str:
    digits = measure.digits
    return f"{found.value:+.{digits}f} ({found.low:+.{digits}f} .. {found.high:+.{digits}f})"
