"""Recorded fits (`solver`), statistics (`person`), images (`image`), depth maps (`depth`), RelativeHuman (`rh_metric`).

Decisions, counts and statuses must be equal; the READMEs of the families list the arrays and propose the tolerances
below. An image that is not `steady` depends on one pixel of the rasteriser and is only reported. The depth family's
tiny network (of Depth Anything V2's own code) is saved as transformers saves one and read by `DepthNetwork` as any
other.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from dto_pipeline.axes import ADULT, ADULT_FEMALE, FAR, GROUND, MEAN, NUM_BETAS
from dto_pipeline.collate import collate_scenes
from dto_pipeline.config import (
    STAND_IN_BODY,
    DepthConfig,
    EvidenceConfig,
    PriorConfig,
    SolverConfig,
    config_from_dict,
)
from dto_pipeline.data.sources.relative_human import EVALUATED_JOINTS, Annotation
from dto_pipeline.evaluate.rh_evaluation import (
    GROUPS,
    EvaluatedImage,
    evaluate_relative_human,
    project_bodies,
)
from dto_pipeline.lab.golden import Case, read_arrays, run_index, sizes
from dto_pipeline.lab.known_scenes import plain_scene
from dto_pipeline.maths.depth_evidence import measure_depth_evidence
from dto_pipeline.maths.heights import build_height_prior
from dto_pipeline.maths.paper_solver import solve_map
from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.models.depth import METRES_PER_DEPTH
from dto_pipeline.models.depth_anything import DepthNetwork
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.scene import OUTCOMES, MapProblem, PersonMaps, Scene, SceneBatch
from dto_pipeline.status import PersonStatus

FIT_TOLERANCE = 1e-9  # relative
MEAN_TOLERANCE, SPREAD_TOLERANCE = 1e-6, 1e-5  # of means; of deviations, slopes, correlations; recorded to 1e-6, 4e-7
WOBBLE_FACTOR, LEAST_WOBBLE = 3.0, 1e-4  # z may differ by so many times max(z_wobble, LEAST_WOBBLE), relative
DEVIATION_TOLERANCE = 0.02  # of the image's height deviation [sigma], on top of what z allows
MAP_TOLERANCE = {"positions": 1e-5, "network_input": 1e-4, "relative": 2e-5, "metric": 2e-5}
SHARE_TOLERANCE = 1e-6
ROUNDING = 0.005  # the published tool prints precision, recall and F1 with two decimals
PIXEL_TOLERANCE = 0.02  # the body is skinned in single precision [px]
_RESIDUE_KINDS = ("edge:equal_depths",)  # the reference divides by a rounding residue: only flags are meaningful
_STATUS = {PersonStatus.TOO_SMALL: 0, PersonStatus.MOVED: 2}  # recorded: 1 unchanged, 3 moved in the far group
_RH_COUNTS = {
    **{"matched_persons": "matched", "missed": "missed_all", "predictions": "predictions"},
    **{"false_positives": "extra", "eq": "same", "cd": "nearer", "fd": "farther"},
}  # recorded name -> ours
_LEAST_SHARE = 0.1  # of a map's mean: smaller values count as this much in relative errors


def _check_fit(_: Path, entry: dict[str, Any], case: Case) -> None:
    given, people = entry["input"], len(entry["input"]["height_class"])
    # a class that is missing is an adult of unknown gender, and without the gender prior every adult is
    height_class = torch.tensor([[ADULT if value is None else int(value) for value in given["height_class"]]])
    if not entry["gender_prior"]:
        height_class = torch.where(height_class >= ADULT_FEMALE, ADULT, height_class)
    row = {  # no slopes given: no correlation
        key: torch.tensor([[float(value) for value in given[key]] or [0.0] * people], dtype=torch.float64)
        for key in ("height", "z", "depth", "depth_std", "slope", "corr")
    }
    prior = build_height_prior(row.pop("height"), height_class, PriorConfig(gender_prior=entry["gender_prior"]))
    active = torch.ones_like(height_class, dtype=torch.bool)
    problem = MapProblem(height=prior.height, prior_mean=prior.mean, prior_sigma=prior.sigma, active=active, **row)
    options = SolverConfig(internal_constraint=entry["internal_constraint"], max_rounds=given.get("max_iter", 10))
    solution = solve_map(problem, options)
    if (expected := entry["output"]) is None:  # the reference raises: a finite fit, or none
        if torch.stack([solution.alpha, solution.beta]).isinf().any():
            case.failures.append("an infinite fit")
        return
    order, last = solution.rejected_order[0], entry.get("last_round") or {}
    found = {
        "optimized": int(solution.num_optimized[0]),
        "rejected": [given["person"][i] for i in torch.argsort(order).tolist() if order[i] >= 0],
        "height_class": height_class[0].tolist(),
        "plane": bool(solution.plane[0]),
        "rounds": int(solution.rounds[0]),
    }
    for name, value in found.items():
        case.equal(name, value, (expected | last).get(name, value))
    if case.kind.startswith(_RESIDUE_KINDS) and not last.get("plane"):
        case.strict = not case.failures
        return  # in a plane alpha is its bound, and nothing was divided by a residue
    numbers = {key: expected[key] for key in ("alpha", "beta")} | {"deviation": expected["height_deviation"]}
    numbers |= {key: last[key] for key in ("alpha_min",) if last}
    for name, recorded in numbers.items():
        case.near(name, getattr(solution, name)[0], float(recorded), FIT_TOLERANCE, sizes(float(recorded), 1e-6))


def _check_person(path: Path, entry: dict[str, Any], case: Case) -> None:
    arrays = read_arrays(path.with_suffix(".npz"))
    maps = PersonMaps(
        person=torch.from_numpy(arrays["id_map"].astype(np.int64))[None] - 1,
        z=torch.from_numpy(arrays["z_map"].astype(np.float32))[None],
        visible_vertices=torch.from_numpy(arrays["visible_count"].astype(np.int64))[None],
    )
    evidence = measure_depth_evidence(maps, _batch(arrays), EvidenceConfig())
    if entry.get("error"):  # the reference raises here: any evidence passes
        return
    counts = dict(zip(("n_raw", "n_iqr", "n_fit", "n_down"), evidence.pixels[0].T, strict=True))
    for name, values in {"removed": evidence.cut[0], "group": evidence.group[0], **counts}.items():
        case.equal(name, values.tolist(), arrays[name].tolist())
    steep = np.abs(np.nan_to_num(arrays["corr"])) > SPREAD_TOLERANCE  # else the slope is a rounding residue
    slope = np.where(steep | np.isnan(arrays["slope"]), evidence.slope[0].numpy(), arrays["slope"])
    means = {
        **{"depth_mean": evidence.depth[0, :, MEAN], "depth_down": evidence.depth[0, :, GROUND]},
        **{"z_mean": evidence.z[0, :, MEAN], "z_down": evidence.z[0, :, GROUND], "y_down": evidence.ground_row[0]},
        **{"lower": evidence.bounds[0, :, 0], "upper": evidence.bounds[0, :, 1]},
    }
    spreads = {"depth_std": evidence.depth_std[0], "slope": slope, "corr": evidence.corr[0]}
    for limit, quantities in ((MEAN_TOLERANCE, means), (SPREAD_TOLERANCE, spreads)):
        for name, found in quantities.items():
            case.near(name, found, arrays[name], limit, sizes(arrays[name], 1.0 if name == "corr" else 1e-12))


def _batch(case: dict[str, np.ndarray]) -> SceneBatch:
    """A batch of one scene with what the evidence needs: disparity, sizes, focal length and translations."""
    people, (height, width) = len(case["trans"]), case["image_size"].tolist()
    camera = np.array([[case["focal"][0], 0, width / 2], [0, case["focal"][1], height / 2], [0, 0, 1]], np.float64)
    unknown, masks = np.full(people, np.nan, np.float32), np.ones((people, height, width), bool)
    labels = {"pose": np.zeros((people, 72), np.float32), "transl": case["trans"].astype(np.float32)}
    labels |= {"age_years": unknown, "male_prob": unknown}
    disparity, betas = case["disparity"].astype(np.float32), np.zeros((people, NUM_BETAS), np.float32)
    batch = collate_scenes([plain_scene("golden/person", camera, betas, masks, disparity, **labels)])
    return batch.replace(map_size=batch.image_size)


@cache
def recorded_body(folder: Path, kid_axis: bool, device: torch.device | str = "cpu") -> BodyModel:
    """The body of recorded cases, with the kid axis or without: `folder`/body, or the stand-in."""
    own = folder / "body"
    return load_body(own if own.is_dir() else STAND_IN_BODY, kid_axis, device)


def load_image_case(path: Path) -> tuple[Scene, dict[str, np.ndarray]]:
    """A recorded image as a scene, and the arrays of its file."""
    case = read_arrays(path)
    height, width = (int(side) for side in case["image_size"])
    masks = np.unpackbits(case["masks_packed"], axis=1, count=height * width).reshape(-1, height, width).astype(bool)
    people = {"pose": case["pose"], "transl": case["trans"], "age_years": case["age"], "male_prob": case["male_prob"]}
    camera, disparity = case["K"][0].astype(np.float64), case["disparity"].astype(np.float32)
    name = f"golden/{path.stem}"
    return plain_scene(name, camera, case["betas"], masks, disparity, bbox_xyxy=case["bbox"], **people), case


def check_image_cases(folder: Path, device: torch.device | str = "cpu") -> list[Case]:
    """Every case of `folder`/image, computed on a device."""
    return run_index(folder / "image/index.json", partial(_check_image, device))


def _check_image(device: torch.device | str, path: Path, entry: dict[str, Any], case: Case) -> None:
    case.kind, case.strict = f"{entry['scene']}/{entry['label_kind']}", bool(entry["steady"])
    options = {
        "prior": {"age_prior": entry["age_prior"], "gender_prior": entry["gender_prior"]},
        "solver": {"internal_constraint": entry["internal_constraint"]},
        "depth": {"unit": "published"},
    }
    body = recorded_body(path.parents[1], bool(entry["kid_shape"]), device)
    scene, arrays = load_image_case(path.with_suffix(".npz"))
    found = SceneOptimizer(body, config_from_dict(options))(collate_scenes([scene], body.faces.device))
    if entry.get("error"):  # the reference raises here: any result passes
        return
    people, group = found.people.to("cpu"), found.evidence.group[0].tolist()
    fits = people.fits
    outcomes = [OUTCOMES[code] for code in fits.outcome[0].tolist()]
    far = [outcome is PersonStatus.MOVED and side == FAR for outcome, side in zip(outcomes, group, strict=True)]
    status = [_STATUS.get(outcome, 1) + in_far for outcome, in_far in zip(outcomes, far, strict=True)]
    case.equal("status", status, arrays["status"].tolist())
    case.equal("group", group, arrays["group"].tolist())
    case.equal("is_optimized", bool(fits.is_optimized[0]), bool(arrays["is_optimized"]))
    case.equal("used_ground_points", bool(fits.used_ground[0]), bool(entry["used_ground_points"]))
    wobble = WOBBLE_FACTOR * max(float(entry["z_wobble"]), LEAST_WOBBLE)
    order, recorded = arrays["out_person"], arrays["out_trans"]
    transl, betas = people.transl[0].numpy()[order], people.betas[0].numpy()[order]
    case.near("z", transl[:, 2], recorded[:, 2], wobble, recorded[:, 2])
    case.near("transl", transl, recorded, None)  # follow from z
    case.near("betas", betas[:, : arrays["out_betas"].shape[1]], arrays["out_betas"], None)
    case.near("deviation", fits.deviation[0], arrays["height_deviation"], DEVIATION_TOLERANCE + 10 * wobble)


def check_depth_cases(folder: Path) -> list[Case]:
    """Every image and size of `folder`/depth/depth_cases.npz; none if there is no such file."""
    path = folder / "depth" / "depth_cases.npz"
    if not path.is_file():
        return []
    try:
        arrays = read_arrays(path)
    except Exception as error:
        return [Case("depth", path.stem, failures=[f"cannot be read: {type(error).__name__}: {error}"])]
    recorded = [name.split("/")[:2] for name in arrays if name.endswith("/network_size")]
    return [
        Case("depth", f"{image}/{side}", "map").run(partial(_check_map, arrays, image, int(side)))
        for image, side in sorted(recorded, key=lambda case: (case[0], int(case[1])))
    ]


def _load_network(arrays: dict[str, np.ndarray], kind: str, side: int) -> DepthNetwork:
    """The recorded network, read from a folder as transformers saves it; the metric one differs in its last layer."""
    weights: dict[str, np.ndarray] = {}
    for part in ("relative", kind):
        prefix = f"{part}/weights/"
        weights |= {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(str(arrays[f"{kind}/config"]))
        save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        return DepthNetwork(DepthConfig(source="model", model=folder, short_side=side))


def _check_map(arrays: dict[str, np.ndarray], image: str, side: int, case: Case) -> None:
    """Size, positions and input of the network, which both kinds share, and the map of each kind."""
    pixels, prefix = arrays[f"image/{image}"], f"{image}/{side}/"
    recorded = {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
    found: dict[str, Any] = {}
    for kind in ("relative", "metric"):
        network = _load_network(arrays, kind, side)
        (disparity,) = network.estimate([pixels])
        assert isinstance(disparity, np.ndarray), disparity
        found[kind] = METRES_PER_DEPTH / disparity if kind == "metric" else disparity
    size = network.recipe.size(*pixels.shape[:2])
    case.equal("network_size", tuple(size), tuple(recorded["network_size"].tolist()))
    found |= {"positions": network.positions_at(size)}
    found |= {"network_input": network.recipe.prepare(torch.from_numpy(pixels)[None], size)[0]}
    for name, limit in MAP_TOLERANCE.items():
        if name in recorded or name != "network_input":  # the input is recorded of some images only
            wanted = recorded[name]
            is_map = name in ("relative", "metric")
            scale = sizes(wanted, _LEAST_SHARE * float(wanted.mean())) if is_map else 1.0
            case.near(name, found[name], wanted, limit, scale)


def _check_metric(path: Path, _: dict[str, Any], case: Case) -> None:
    raw, bodies_file = json.loads(path.with_suffix(".json").read_text()), path.with_name(f"{path.name}_bodies.npz")
    images = [_parse_image(image) for image in raw["images"]]
    if bodies_file.is_file():
        folder, bodies, name = path.parents[1], read_arrays(bodies_file), "J_regressor_extra.npy"
        own = folder / "body" / name
        regressor = np.load(own if own.is_file() else str(files("dto_pipeline.assets") / name), allow_pickle=False)
        given = [bodies[name] for name in ("pose", "betas", "trans")]
        keypoints = project_bodies(given, bodies["K"], recorded_body(folder, True), regressor)
        depth = bodies["trans"][:, 2].astype(np.float32)
        if "pred_kp2d" in bodies:
            case.near("kp2d_px", keypoints, bodies["pred_kp2d"], PIXEL_TOLERANCE)
        for number, image in enumerate(images):
            mine = bodies["image_index"] == number
            images[number] = dataclasses.replace(image, keypoints=keypoints[mine], depth=depth[mine])
    result = evaluate_relative_human(images, "reference")
    for key, people in (("matches", result.matches), ("missed", result.missed)):
        for image, some in zip(raw["images"], people, strict=True):
            if image.get(key) is not None:
                case.equal(f"{image['name']}: {key}", some.tolist(), image[key])
    if raw.get("error") is not None:  # the reference failed here: any defined result passes if its status says why
        if raw.get("kind") == "nothing_missed" and result.status == "ok":
            case.equal("status", result.status, "nothing_missed")
        return
    if (expected := raw.get("expected")) is None:
        case.failures.append("neither expected numbers nor an error is recorded")
        return
    for key, ours in _RH_COUNTS.items():
        case.equal(key, result.count(ours), (expected | expected["pairs"])[key])
    for key in (*(f"pcdr_{group}" for group in GROUPS), "mpckh", "precision", "recall", "f1"):
        found, wanted = result.share(key), math.nan if expected[key] is None else float(expected[key])
        if found is not None:
            rounding = ROUNDING if key in ("precision", "recall", "f1") else 0.0
            case.near(key, found, wanted, SHARE_TOLERANCE + rounding)
        elif key.startswith("pcdr_") and key != "pcdr_all" and math.isfinite(wanted):
            # where there is nothing to divide by, any value may be recorded; only a class without pairs must be null
            case.equal(key, found, wanted)


def _parse_image(raw: dict[str, Any]) -> EvaluatedImage:
    """Numbers are float32; "nan" and "inf" may be strings."""
    annotations = tuple(
        Annotation(
            None if person["kp2d"] is None else np.array(person["kp2d"], np.float32), person["depth_id"], person["age"]
        )
        for person in raw["gt"]
    )
    keypoints = np.array(raw.get("pred_kp2d") or [], np.float32).reshape(-1, len(EVALUATED_JOINTS), 2)
    depth = np.array(raw.get("pred_depth") or [], np.float32)
    return EvaluatedImage(raw["name"], annotations, keypoints, depth, raw["predicted"])


FAMILIES: dict[str, Callable[[Path], list[Case]]] = {
    "solver": lambda folder: run_index(folder / "solver/cases.json", _check_fit),
    "person": lambda folder: run_index(folder / "person/index.json", _check_person),
    "image": check_image_cases,
    "rh_metric": lambda folder: run_index(folder / "rh_metric/index.json", _check_metric),
    "depth": check_depth_cases,
}
"""Family -> all its cases in a folder; none if the folder does not hold the family."""
