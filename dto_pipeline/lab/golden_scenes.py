"""The recorded reference images as scenes with truth, for comparing solvers (`golden_image` checks parity instead)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.config import STAND_IN_BODY, PipelineConfig
from dto_pipeline.evaluate.placements import Placement
from dto_pipeline.lab.golden_image import load_image_case
from dto_pipeline.lab.solver_comparison import KnownScene, collect, compare_outcomes, place_scenes, with_mode
from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.scene import PlacedScene


def compare_on_golden(folder: Path, config: PipelineConfig) -> dict[str, Any]:
    """`compare_outcomes` over all cases of `folder`/image, each with its own kind of body; same priors for all."""
    body_folder = folder / "body"
    bodies = {
        kid: load_body(body_folder if body_folder.is_dir() else STAND_IN_BODY, kid_axis=kid) for kid in (False, True)
    }
    known: list[KnownScene] = []
    models: list[BodyModel] = []
    for entry in json.loads((folder / "image" / "index.json").read_text()):
        scene, case = load_image_case(folder / "image" / f"{entry['case']}.npz", config)
        z, height = (case[key].astype(np.float64) for key in ("gt_trans", "gt_height"))
        known.append(KnownScene(scene, z[:, 2], height, tuple(case["gt_disparity_ab"].tolist())))
        models.append(bodies[bool(entry["kid_shape"])])
    model_of = {item.scene.image_id: model for item, model in zip(known, models, strict=True)}

    def place(some: Sequence[KnownScene], mode: str) -> list[tuple[PlacedScene, Placement]]:
        chosen = with_mode(config, mode)
        return [place_scenes([item], model_of[item.scene.image_id], chosen)[0] for item in some]

    paper, joint = (collect(known, partial(place, mode=mode), models) for mode in ("paper", "joint"))
    return compare_outcomes(known, paper, joint)
