"""One command: published and joint solver, and two simpler ideas, on many kinds of synthetic crowds.

Joins the sets of `solver_sets` to `evaluate.solver_comparison`; run it as ``dto eval solvers`` or through
`jobs/compare_solvers.sh`. The joint solver's numbers were tuned on seeds 1, 2 and 11; reports never use those, but
`REPORT_SEED`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dto_pipeline.config import STAND_IN_BODY, PipelineConfig, config_from_dict, load_config
from dto_pipeline.errors import DtoError
from dto_pipeline.lab.foreign_bodies import load_anny
from dto_pipeline.lab.golden_scenes import compare_on_golden
from dto_pipeline.lab.solver_comparison import KnownScene, Outcome, compare_outcomes, place_all, pool_outcomes
from dto_pipeline.lab.solver_report import POOLED, TOLD, as_table, write_report
from dto_pipeline.lab.solver_sets import CROWD_SETS, CrowdSet, build_known_scene
from dto_pipeline.models.body import BodyModel, load_body

TUNING_SEEDS = (1, 2)
REPORT_SEED = 101
RECORDED = "recorded images"  # name of the golden cases in the report
_MODEL_BROKEN = ("other heights", "wrong K")  # left out of the pooled set: what the sigmas are conditional on is broken
_NOT_POOLED = (*_MODEL_BROKEN, *(kind.name for kind in CROWD_SETS if kind.bodies != "stand-in"))


def compare_solvers(
    out: Path,
    images: int = 112,
    seed: int = REPORT_SEED,
    sets: Sequence[CrowdSet] = CROWD_SETS,
    golden: Path | None = None,
    config: PipelineConfig | None = None,
) -> dict[str, Any]:
    """Build the sets, place them by every method, write the report into `out` and give its numbers back.

    Args:
        images: per set; seed: of the crowds, not one of `TUNING_SEEDS`; golden: folder of recorded cases to add.

    Raises:
        DtoError: a tuning seed, or no images.
    """
    if seed in TUNING_SEEDS or images < 1:
        raise DtoError(f"seed {seed}, {images} images: give at least 1 image and a seed that is not in {TUNING_SEEDS}")
    config = config or PipelineConfig()
    body = load_body(config.body.model_path or STAND_IN_BODY, config.body.kid_axis)
    if any(kind.bodies == "anny" for kind in sets):
        load_anny()  # a missing package is said now, not after the others' minutes
    results: dict[str, Any] = {}
    meanings: dict[str, str] = {}
    pooled: list[tuple[list[KnownScene], Outcome, Outcome]] = []
    for kind in sets:
        known = _build(kind, seed, images, body)
        paper, joint = (place_all(known, body, config, mode) for mode in ("paper", "joint"))
        results[kind.name] = compare_outcomes(known, paper, joint)
        meanings[kind.name] = kind.meaning
        print(as_table({kind.name: results[kind.name]}), file=sys.stderr, flush=True)
        if kind.told:
            told = place_all(known, body, override(config, kind.told), "joint")
            results[kind.name + TOLD] = compare_outcomes(known, paper, told)
            meanings[kind.name + TOLD] = f"the same images, with `{' '.join(kind.told)}`"
        if kind.name not in _NOT_POOLED:
            pooled.append((known, paper, joint))
    if pooled:
        everyone, *both = zip(*pooled, strict=True)
        results[POOLED] = compare_outcomes([item for known in everyone for item in known], *map(pool_outcomes, both))
    meanings[POOLED] = f"all sets of our bodies but {' and '.join(_MODEL_BROKEN)}"
    if golden is not None:
        results[RECORDED] = compare_on_golden(golden, config)
        meanings[RECORDED] = f"{results[RECORDED]['images']} recorded reference images, which nothing was tuned on"
    how = (
        f"`dto eval solvers --images {images} --seed {seed}`: {images} images per set, "
        f"seed {seed}; the joint solver was tuned on seeds {TUNING_SEEDS[0]} and {TUNING_SEEDS[1]} only."
    )
    write_report(results, meanings, how, out)
    return results


def override(config: PipelineConfig, texts: Sequence[str]) -> PipelineConfig:
    """`config` with ``section.key=value`` texts applied."""
    changed = load_config(overrides=texts).to_dict()
    tree = config.to_dict()
    for text in texts:
        section, key = text.partition("=")[0].split(".")
        tree[section][key] = changed[section][key]
    return config_from_dict(tree)


def _build(kind: CrowdSet, seed: int, images: int, body: BodyModel) -> list[KnownScene]:
    known = (build_known_scene(kind, seed, number, body) for number in range(images))
    return [item for item in known if item.scene.num_people >= 2]
