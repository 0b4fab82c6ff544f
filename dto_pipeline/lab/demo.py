"""The demo: its data set, runs of both solvers, pictures, and a summary of errors against the truth.

The depth network is measured too: its disparity is compared with the true z after one scale factor per picture, which
the method fits as well (`depth = 1 / disparity`, a line to metres); the line's offset is not fitted. Metres.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.config import STAND_IN_BODY, DepthConfig, PipelineConfig, load_config
from dto_pipeline.data.dataset import load_dataset
from dto_pipeline.data.files import write_json_atomic
from dto_pipeline.data.images import read_image
from dto_pipeline.data.label_files import find_label_files
from dto_pipeline.data.labels import read_placed
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.evaluate.placements import PLACEMENT_MEASURES, SAME_DEPTH, Placement, placement_sums
from dto_pipeline.lab.crowd_files import CrowdFilesError, build_demo_data, build_true_pictures, read_truth, write_map
from dto_pipeline.lab.own_bodies import rest_height
from dto_pipeline.lab.solver_outcomes import EVERYBODY, Outcome
from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.models.depth import METRES_PER_DEPTH, DepthFiles
from dto_pipeline.models.depth_anything import DepthNetwork
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import PersonStatus
from dto_pipeline.terminal import align
from dto_pipeline.view.pages import DrawnPeople, draw_scene, save_png

DEPTH_MEASURES = {
    "pixel_error": "relative error of people's pixels in disparity, one scale per picture",
    "person_error": "relative error of people's depth (medians), one scale per picture",
    "person_error_line": "the same after the best line per picture, as the method fits one",
    "order": "share of pairs more than 0.2 m apart that are in the right order",
}
_LEAST_PIXELS = 100  # people with fewer are not measured
_PICTURES = 5  # scenes drawn as given and by both solvers
_NETWORK = ["depth.source=model", "depth.model=demo", "depth.short_side=224", "depth.batch=4"]
_FILES_ONLY = {"table": "depth maps written with the scenes; no depth network was run"}

Placed = Mapping[str, Sequence[PlacedScene]]  # solver -> all images of its run
# who -> labels as given or solver -> measures, shares as fractions; None = of nobody
Errors = dict[str, dict[str, dict[str, float | None]]]


def run_demo(out: Path, images: int, workers: int, network: bool, progress: Callable[[int, int], None]) -> int:
    """Data set, manifest, runs, pictures and summary below `out`; prints the summary of a demo that is there.

    Args:
        images: to make; workers: of Ray, 0 = without; network: depth by the package's small network, else by files.

    Returns:
        The exit code of the first run.
    """
    body, manifest = load_body(STAND_IN_BODY), out / "manifest.parquet"
    if not (out / "data").exists() and out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise CrowdFilesError(f"{out} holds other files and no demo; choose a new folder (-o)")
    print(f"1  data set with known truth -> {out / 'data'}")
    data = build_demo_data(out / "data", body, images, progress=progress)
    print(f"2  manifest -> {manifest}")
    if data.created or not manifest.exists():
        dataset = load_dataset(str(files("dto_pipeline.assets") / "demo.yaml"), out / "data")
        print(build_manifest(dataset, manifest, progress=False).as_table())
    print(f"3  run with solver.mode paper -> {out / 'run'}")
    failures = min(1.0, len(data.broken) / images)  # as many as are broken on purpose; the default allows far fewer
    options = [f"body.model_path={STAND_IN_BODY}", f"run.max_failed_images={failures}", *(_NETWORK if network else [])]
    config = load_config(None, [f"run.workers={workers}", *options])
    summary = run_pipeline(manifest, out / "run", config)
    if summary.nothing_to_do and (out / "summary.json").exists():
        print("\nEverything was done before; nothing new. Remove the folder to start afresh.\n")
        print(json.loads((out / "summary.json").read_text())["text"])
        return summary.exit_code
    print(f"   run with solver.mode joint -> {out / 'run-joint'}")
    placed = {"paper": _read_run(out / "run"), "joint": _label(manifest, out / "run-joint", config, "joint")}
    truth = read_truth(out / "data")
    errors = score_demo(placed, truth, body)
    pictures = _draw(placed, truth, body, out, config.depth)
    depth = _compare_depth(out, manifest, config, placed, body) if network else _FILES_ONLY
    text = f"{as_table(errors)}\n\n{depth['table']}"
    report = {"errors": errors, "broken_on_purpose": data.broken, "pictures": pictures, "depth": depth, "text": text}
    print(f"\n{text}\n\n{out / 'summary.json'} written")
    write_json_atomic(out / "summary.json", report)
    return summary.exit_code


def _label(
    manifest: Path, folder: Path, config: PipelineConfig, solver: str, depth_root: Path | None = None
) -> list[PlacedScene]:
    """Run one solver and read its images; without Ray, whose workers take longer to start than these images need."""
    here = replace(config, solver=replace(config.solver, mode=solver), run=replace(config.run, workers=0))
    run_pipeline(manifest, folder, here, progress=False, depth_root=depth_root)
    return _read_run(folder)


def _read_run(folder: Path) -> list[PlacedScene]:
    return [item for file in find_label_files(folder) for item in read_placed(file)]


def _draw(placed: Placed, truth: dict[str, np.ndarray], body: BodyModel, out: Path, depth: DepthConfig) -> list[str]:
    """Draw some scenes as labelled and as placed by each solver, with the depth map. Returns the files, below `out`."""
    written = []
    for place in choose_pictures(placed["paper"], _PICTURES):
        by_solver = {solver: items[place] for solver, items in placed.items()}
        scene = by_solver["paper"].scene
        rows = scene.source_row
        name = str(truth["image_name"][rows[0]])
        image = scene.image = read_image(out / "data" / "images" / name).rgb
        if depth.source == "files":
            file = str(Path(name).with_suffix(".npy"))
            scene.disparity = DepthFiles(out / "data" / "depth").load(file, *image.shape[:2])
        else:
            (seen,) = DepthNetwork(depth).estimate([image])
            scene.disparity = None if isinstance(seen, Exception) else seen
        true_people = DrawnPeople(truth["pose"][rows], truth["betas"][rows], truth["transl"][rows])
        written.append(f"pictures/{Path(scene.image_path).stem}.png")
        save_png(draw_scene(by_solver, body, true_people), out / written[-1])
        print(f"4  {out / written[-1]}")
    return written


def _compare_depth(
    out: Path, manifest: Path, config: PipelineConfig, placed: Placed, body: BodyModel
) -> dict[str, Any]:
    """Errors of the depth network on the unbroken pictures, and of labels made with it and with the true depth."""
    print(f"5  the same with true depth -> {out / 'run-true-depth'}")
    pictures = dict(build_true_pictures(out / "data", body))
    for name, picture in pictures.items():
        write_map(out / "true-depth", name, (METRES_PER_DEPTH / picture.z).astype("float32"))
    network = DepthNetwork(config.depth)
    seen = ((read_image(out / "data/images" / name).rgb, one.z, one.person) for name, one in pictures.items())
    quality = measure_network(network, seen)
    plain, truth, exact = replace(config, depth=DepthConfig()), read_truth(out / "data"), {}
    for solver, folder in (("paper", "run-true-depth"), ("joint", "run-joint-true-depth")):
        exact[solver] = _label(manifest, out / folder, plain, solver, out / "true-depth")
    with_network, with_truth = (score_demo(runs, truth, body, pictures) for runs in (placed, exact))
    unbroken = {"unbroken images, network": with_network[EVERYBODY], "with true depth": with_truth[EVERYBODY]}
    lines = [f"depth network {network.identity.short} on these pictures, unseen in training:"]
    lines += [f"  {quality[key]:.3f}  {title}" for key, title in DEPTH_MEASURES.items()]
    return {
        "network": network.facts,
        "error_on_unseen_scenes": quality,
        "errors_of_unbroken_images": with_network,
        "errors_of_unbroken_images_with_true_depth": with_truth,
        "table": "\n".join([*lines, "", as_table(unbroken)]),
    }


def score_demo(
    placed: Placed, truth: Mapping[str, np.ndarray], body: BodyModel, images: Collection[str] | None = None
) -> Errors:
    """Compare all people with finite labels with the truth; "moved" are the people whom the first solver moves.

    Args:
        placed: solver -> all images of its run, the same in each.
        truth: of `read_truth`, one row per label row; body: of the labels.
        images: names of the images that are scored, None = all.
    """
    kept = {
        name: [item for item in items if images is None or str(truth["image_name"][item.scene.source_row[0]]) in images]
        for name, items in placed.items()
    }
    outcomes = {name: Outcome.of(items) for name, items in kept.items()}
    solver, first = next(iter(outcomes.items()))
    row = np.concatenate([item.scene.source_row for item in first.placed])
    finite = np.concatenate([np.isfinite(item.scene.pose).all(1) for item in first.placed])
    sound = np.array([not item.status.is_failure for item in first.placed])[first.image]
    selections = {EVERYBODY: finite & sound, f"moved by {solver}": first.moved}
    selections |= {f"accepted by {name}": finite & one.accepted for name, one in outcomes.items()}

    # a label lacks its height where its person was not measured
    def with_heights(found: Placement, betas: Iterable[np.ndarray]) -> Placement:
        return replace(found, height=rest_height(body, np.concatenate(list(betas))))

    placements = {"labels": with_heights(first.labels, (item.scene.betas for item in first.placed))}
    placements |= {name: with_heights(one.found, (item.betas for item in one.placed)) for name, one in outcomes.items()}
    true = Placement(z=truth["transl"][row, 2], height=truth["height"][row])

    def errors(found: Placement, people: np.ndarray) -> dict[str, float | None]:
        sums = placement_sums(found, true, first.image, len(first.placed), people)
        total = {key: x.sum() for key, x in sums.items()}
        values = {one.key: float(one.of(total)) / (100 if one.unit == "%" else 1) for one in PLACEMENT_MEASURES}
        known = {key: value if math.isfinite(value) else None for key, value in values.items()}
        return {"persons": int(total["persons"]), "pairs": int(total["pairs"]), **known}

    return {who: {name: errors(found, s) for name, found in placements.items()} for who, s in selections.items()}


def as_table(errors: Errors) -> str:
    """A line per measure, labels -> ... -> last solver for each selection of people."""
    first = next(iter(errors.values()))
    rows = [[" -> ".join(first), *(f"{who} ({found['labels']['persons']:.0f})" for who, found in errors.items())]]
    for one in PLACEMENT_MEASURES:
        cells = []
        for found in errors.values():
            values = (each[one.key] for each in found.values())
            scale = 100 if one.unit == "%" else 1
            cells.append(" -> ".join("-" if x is None else f"{scale * x:.{one.digits}f}" for x in values))
        rows.append([f"{one.title} [{one.unit}]", *cells])
    return "\n".join(align([rows[0], ["-" * max(map(len, column)) for column in zip(*rows, strict=True)], *rows[1:]]))


def choose_pictures(placed: Sequence[PlacedScene], count: int) -> list[int]:
    """Numbers of the accepted scenes with most people moved, then of one that was not accepted."""
    moved = [sum(status is PersonStatus.MOVED for status in item.person_status) for item in placed]
    by_people = sorted((k for k, item in enumerate(placed) if item.is_optimized), key=lambda k: -moved[k])
    doubtful = [k for k in by_people if not placed[k].is_accepted][:1]
    return [k for k in by_people if placed[k].is_accepted][: count - len(doubtful)] + doubtful


def measure_network(
    network: DepthNetwork, pictures: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> dict[str, float]:
    """`depth_quality` of a network on pictures (H, W, 3) uint8 with their true z and the person seen, both (H, W)."""
    maps = []
    for rgb, z, person in pictures:
        (disparity,) = network.estimate([rgb])
        if not isinstance(disparity, np.ndarray):
            raise disparity
        maps.append((disparity, z, person))
    return depth_quality(maps)


def depth_quality(maps: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Means over all people (and pairs) of all pictures: `DEPTH_MEASURES`, and `persons`, the number of people.

    `maps`: disparity (larger is nearer), true z [m] and the index of the person seen (-1 = no person), (H, W) each.
    """
    pixel, person, line, order = [], [], [], []
    for found_map, true_map, owners in maps:
        seen = owners >= 0
        disparity, z = np.maximum(found_map[seen], 0).astype(np.float64), true_map[seen].astype(np.float64)
        inverse = disparity * z  # constant for a perfect network
        pixel.append(np.abs(inverse / np.median(inverse) - 1).mean())
        owner = owners[seen]
        people = [mine for index in np.unique(owner) if (mine := owner == index).sum() >= _LEAST_PIXELS]
        medians = [[1 / max(np.median(disparity[mine]), 1e-3), np.median(z[mine])] for mine in people]
        depth, true = np.array(medians).reshape(-1, 2).T
        person.append(np.abs(depth * np.median(true / depth) / true - 1))
        if len(depth) > 2:
            line.append(np.abs(np.polyval(np.polyfit(depth, true, 1, w=1 / true), depth) / true - 1))
        found, apart = (np.subtract.outer(values, values) for values in (depth, true))
        order.append((np.sign(found) == np.sign(apart))[apart > SAME_DEPTH])
    everyone = np.concatenate(person)
    return {
        "persons": len(everyone),
        "pixel_error": float(np.mean(pixel)),
        "person_error": float(everyone.mean()),
        "person_error_line": float(np.concatenate(line).mean()),
        "order": float(np.concatenate(order).mean()),
    }
