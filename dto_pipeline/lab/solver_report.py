"""What a solver comparison leaves behind: a table for the terminal, JSON, two pictures and a page of markdown.

Knows the results of `solver_comparison` by set and where they go; knows no solver. Metres, pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dto_pipeline.evaluate.tables import align, markdown
from dto_pipeline.lab.solver_comparison import METHODS
from dto_pipeline.lab.solver_plots import draw_coverage, draw_errors

POOLED = "all sets"
_SOLVERS = ("paper", "joint")
TOLD = ", told"  # ends the name of a set whose difficulty the joint solver's config admits
_READING = """\
- *True line* is what the depth map alone allows to somebody who knows its line exactly. Ordinal accuracy and pairwise
  error of a solver that listens to depth end near it; `joint` passes it only where heights know better (high noise).
- Absolute z follows the heights: a picture cannot tell a tall crowd from a far one. Where all people of an image are
  taller or shorter than their priors, or K is wrong, every solver misses by that factor. The sigmas assume the camera
  and `joint.population_sigma`; the rows marked "told" show that they hold once the config admits the difficulty.
- How good a depth network is, is `joint.depth_sigma`: three noise levels about it are weighed per image, but few people
  say little about it, so intervals are too narrow on a far worse network and too wide on a far better one, unless told.
- `joint` loses to `paper` on single images mostly where the people of an image are together a few percent off their
  priors: then both miss, and which misses less is luck. Often it is `paper`'s: it believes the label's own height by
  half, `joint` hardly, and the truth happens to lie on the labels' side. Over all images that belief costs more than
  it gains.
- Of two people whose heights are both off, no solver can know; `paper` mostly leaves such images unaccepted, `joint`
  places them and says so with a wider sigma. Errors of accepted people compare different people there."""
_COLUMNS = ("depth_error", "pair_depth_error", "ordinal", "height_error")


def write_report(results: Mapping[str, Any], meanings: Mapping[str, str], how: str, out: Path) -> list[Path]:
    """Write solver_comparison.md, solver_comparison.json and pictures/solver_*.png into `out`.

    Args:
        results: set -> `compare_outcomes`; meanings: set -> one sentence; how: the command and seeds, one sentence.
    """
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    page, numbers = (out / f"solver_comparison{suffix}" for suffix in (".md", ".json"))
    errors, coverage = (out / "pictures" / f"solver_{name}.png" for name in ("errors", "coverage"))
    numbers.write_text(json.dumps({"how": how, "sets": results}, indent=1) + "\n")
    draw_errors({name: found for name, found in results.items() if not name.endswith(TOLD)}, errors)
    draw_coverage(results, coverage)
    page.write_text(as_page(results, meanings, how))
    return [page, numbers, errors, coverage]


def as_table(results: Mapping[str, Any]) -> str:
    """Plain text: per set and method the errors over all people, then the change of `joint` against `paper`."""
    head = ["set", "method", "z [m]", "pairs [m]", "ordinal", "height [m]", "accepted", "shift"]
    rows = [head]
    for name, numbers in results.items():
        for method in METHODS:
            rows.append([name if method == METHODS[0] else "", method, *_cells(numbers["methods"][method])])
        rows.append(["", "joint vs paper", *_changes(numbers)])
    return "\n".join(align(rows))


def as_page(results: Mapping[str, Any], meanings: Mapping[str, str], how: str) -> str:
    """The same as markdown, with calibration, and the images where `joint` loses."""
    sections = [
        _head_section(results, meanings, how),
        _errors_section(results),
        ["## What limits whom", "", _READING],
        *_versus_sections(results),
        _coverage_section(results),
        _losses_section(results),
    ]
    return "\n".join(line for section in sections for line in [*section, ""])


def _head_section(results: Mapping[str, Any], meanings: Mapping[str, str], how: str) -> list[str]:
    return [
        "# Solvers compared on crowds with known truth",
        "",
        how,
        "",
        "Errors are means over all people, placed or not, accepted or not; ordinal accuracy is at 0.2 m; shift is how"
        " far joints move in the image; +- is the standard error of the difference over images.",
        "",
        *markdown(["set", "what is hard"], [[name, meanings.get(name, "")] for name in results]),
    ]


def _errors_section(results: Mapping[str, Any]) -> list[str]:
    rows = [
        [name, method, *_cells(numbers["methods"][method])]
        for name, numbers in results.items()
        for method in (("joint",) if name.endswith(TOLD) else METHODS)
    ]
    columns = ["set", "method", "z [m]", "pairs [m]", "ordinal", "height [m]", "accepted", "shift"]
    return ["## Errors", "", "![errors](pictures/solver_errors.png)", "", *markdown(columns, rows)]


def _versus_sections(results: Mapping[str, Any]) -> list[list[str]]:
    """`joint` beside `paper`: all people, accepted people, and what happens in the image."""
    changes = [[name, *_changes(numbers), *_noise(numbers)] for name, numbers in results.items()]
    accepted = [row for name, numbers in results.items() for row in _accepted_rows(name, numbers)]
    shifts = [[name, *_shifts(numbers)] for name, numbers in results.items()]
    change_columns = ["set", "z", "pairs", "ordinal", "height", "accepted", "shift", "z +- [m]", "height +- [m]"]
    accepted_columns = ["set", "solver", "accepted", "z [m]", "pairs [m]", "ordinal", "height [m]"]
    shift_columns = ["paper", "joint", "paper, kid axis", "joint, kid axis"]
    time_columns = ["paper [CPU ms / image]", "joint [CPU ms / image]"]
    what_is_accepted = "What a trainer gets that keeps `is_accepted` images: how many people, and how wrong they are."
    what_shifts = (
        "Mean over people and joints; a shape along the kid axis changes proportions, so joints cannot all stay."
    )
    return [
        ["## `joint` against `paper`", "", *markdown(change_columns, changes)],
        ["## Accepted people only", "", what_is_accepted, "", *markdown(accepted_columns, accepted)],
        [
            "## Shift in the image [px]",
            "",
            what_shifts,
            "",
            *markdown(["set", *shift_columns, *time_columns], shifts),
        ],
    ]


def _coverage_section(results: Mapping[str, Any]) -> list[str]:
    return [
        "## Do the intervals hold what they say?",
        "",
        "Share of truths inside the 50 / 80 / 95 % intervals of `z_sigma_m`, `z_covariance` and `height_sigma_m`.",
        "",
        "![coverage](pictures/solver_coverage.png)",
        "",
        *markdown(
            ["set", "z", "pairs", "height", "chose affine_disparity"],
            [[name, *_coverage(numbers)] for name, numbers in results.items()],
        ),
    ]


def _losses_section(results: Mapping[str, Any]) -> list[str]:
    told = [row for name, numbers in results.items() if not name.endswith(TOLD) for row in _loss_rows(name, numbers)]
    columns = ["set", "images worse", "worst image", "by [m]", "because"]
    return ["## Images where `joint` loses, and why", "", *markdown(columns, told)]


def _cells(errors: Mapping[str, Any]) -> list[str]:
    cells = [f"{100 * errors[key]:.1f} %" if key == "ordinal" else f"{errors[key]:.3f}" for key in _COLUMNS]
    shift = f"{errors['shift_px']:.2f} px" if "shift_px" in errors else "-"
    accepted = f"{100 * errors['accepted_share']:.0f} %" if "shift_px" in errors else "-"
    return [*cells, accepted, shift]


def _changes(numbers: Mapping[str, Any]) -> list[str]:
    paper, joint = numbers["methods"]["paper"], numbers["methods"]["joint"]
    cells = [f"{_relative(joint, paper, key):+.0f} %" for key in _COLUMNS]
    cells[2] = f"{100 * (joint['ordinal'] - paper['ordinal']):+.1f} points"
    accepted = 100 * (joint["accepted_share"] - paper["accepted_share"])
    return [*cells, f"{accepted:+.0f} points", f"{joint['shift_px'] - paper['shift_px']:+.2f} px"]


def _accepted_rows(name: str, numbers: Mapping[str, Any]) -> list[list[str]]:
    solvers = {solver: numbers["methods"][solver] for solver in (("joint",) if name.endswith(TOLD) else _SOLVERS)}
    return [
        [name, solver, f"{100 * errors['accepted_share']:.0f} %", *_cells(errors["accepted"])[: len(_COLUMNS)]]
        for solver, errors in solvers.items()
    ]


def _shifts(numbers: Mapping[str, Any]) -> list[str]:
    solvers = [numbers["methods"][name] for name in _SOLVERS]
    shifts = [f"{solver[key]:.2f}" for key in ("shift_px", "kid_shift_px") for solver in solvers]
    return [*shifts, *(f"{1000 * solver['seconds_per_image']:.0f}" for solver in solvers)]


def _relative(joint: Mapping[str, Any], paper: Mapping[str, Any], key: str) -> float:
    return 100 * (joint[key] / paper[key] - 1) if paper[key] else 0.0


def _noise(numbers: Mapping[str, Any]) -> list[str]:
    return [f"{numbers['noise'][key]:.3f}" for key in ("depth_error", "height_error")]


def _coverage(numbers: Mapping[str, Any]) -> list[str]:
    cells = [
        " / ".join(f"{100 * share:.0f}" for share in numbers["coverage"][what].values())
        for what in ("z", "pairs", "height")
    ]
    return [*cells, f"{100 * numbers['affine_disparity_share']:.0f} %"]


def _loss_rows(name: str, numbers: Mapping[str, Any]) -> list[list[str]]:
    if not numbers["losses"]:
        return [[name, "0", "-", "-", "-"]]
    counted, *worst = numbers["losses"]
    share = f"{counted['images_worse']} of {numbers['images']}"
    return [
        [name if place == 0 else "", share if place == 0 else "", x["image"], f"{x['worse_by_m']:.2f}", x["because"]]
        for place, x in enumerate(worst)
    ]
