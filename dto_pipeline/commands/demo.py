"""`dto demo`: synthetic crowds with known truth through the whole pipeline, and what it made of them."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dto_pipeline.commands.options import not_negative, positive
from dto_pipeline.commands.output import local_place, show_progress
from dto_pipeline.config import DepthConfig, PipelineConfig

if TYPE_CHECKING:
    import numpy as np

    from dto_pipeline.models.body import BodyModel
    from dto_pipeline.scene import PlacedScene

_PICTURES = 5  # scenes drawn as given and by both solvers
_SOLVERS = {"paper": "run", "joint": "run-joint"}  # solver -> folder of its run, in the order of the tables
_DEPTH: dict[str, list[str]] = {
    "network": ["depth.source=model", "depth.model=demo", "depth.short_side=224", "depth.batch=4"],
    "files": [],
}
_FILES_ONLY = {"table": "depth maps written with the scenes; no depth network was run"}


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "demo",
        help="see it work: synthetic crowds with known truth, in a few minutes",
        description="Writes a small data set in the public formats (some of it broken on purpose), runs the pipeline "
        "on it with two Ray workers, and compares labels as given, after solver.mode paper and after joint with the "
        "truth. Run again, it does nothing new.",
    )
    parser.add_argument("-o", "--out", default="out/demo", metavar="DIR", help="folder to write to (out/demo)")
    parser.add_argument("--images", type=positive, default=24, metavar="N", help="images to make (24)")
    parser.add_argument("--workers", type=not_negative, default=2, metavar="N", help="Ray workers (2); 0 = without Ray")
    parser.add_argument(
        "--depth",
        choices=("network", "files"),
        default="network",
        help="where disparity comes from: the package's small depth network (default), or maps written with the scenes",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.config import STAND_IN_BODY, load_config
    from dto_pipeline.data.dataset import load_dataset
    from dto_pipeline.data.files import write_json_atomic
    from dto_pipeline.data.manifest_build.builder import build_manifest
    from dto_pipeline.lab.demo_data import DemoSettings, build_demo_data, read_truth
    from dto_pipeline.lab.demo_score import as_table, score_demo
    from dto_pipeline.models.body import load_body
    from dto_pipeline.run.driver import run_pipeline

    started, out = time.monotonic(), local_place(arguments.out)
    body, manifest = load_body(STAND_IN_BODY), out / "manifest.parquet"
    print(f"1  data set with known truth -> {out / 'data'}")
    data = build_demo_data(out / "data", body, DemoSettings(images=arguments.images), show_progress)
    print(f"2  manifest -> {manifest}")
    if data.created or not manifest.exists():
        dataset = load_dataset(str(files("dto_pipeline.assets") / "demo.yaml"), out / "data")
        print(build_manifest(dataset, manifest, progress=False).as_table())
    print(f"3  run with solver.mode paper -> {out / 'run'}")
    failures = min(1.0, len(data.broken) / arguments.images)  # broken on purpose; a run of its own allows far fewer
    options = [f"body.model_path={STAND_IN_BODY}", f"run.max_failed_images={failures}", *_DEPTH[arguments.depth]]
    config = load_config(None, [f"run.workers={arguments.workers}", *options])
    summary = run_pipeline(manifest, out / "run", config)
    if summary.nothing_to_do and (out / "summary.json").exists():
        print("\nEverything was done before; nothing new. Remove the folder to start afresh.\n")
        print(json.loads((out / "summary.json").read_text())["text"])
        return summary.exit_code
    print(f"   run with solver.mode joint -> {out / _SOLVERS['joint']}")
    run_pipeline(manifest, out / _SOLVERS["joint"], _here(config, "joint"), progress=False)
    placed, truth = {solver: _read_run(out / folder) for solver, folder in _SOLVERS.items()}, read_truth(out / "data")
    errors = score_demo(placed, truth, body)
    pictures = _draw(placed, truth, body, out, config.depth)
    depth = _compare_depth(out, manifest, config, placed, body) if arguments.depth == "network" else _FILES_ONLY
    seconds, text = time.monotonic() - started, f"{as_table(errors)}\n\n{depth['table']}"
    report = {
        "errors": errors,
        "image_status": summary.image_status,
        "person_status": summary.person_status,
        "broken_on_purpose": data.broken,
        "pictures": pictures,
        "workers": arguments.workers,
        "images_per_s": round(summary.images_per_s, 2),
        "stage_seconds": {stage: round(value, 3) for stage, value in summary.stage_seconds.items()},
        "wall_s": round(seconds, 1),
        "depth": depth,
        "text": text,
    }
    print(f"\n{text}\n\n{out / 'summary.json'} written; {seconds:.0f} s")
    write_json_atomic(out / "summary.json", report)
    return summary.exit_code


def _here(config: PipelineConfig, solver: str) -> PipelineConfig:
    """The same with one of the solvers and without Ray, whose workers take longer to start than these images last."""
    return replace(config, solver=replace(config.solver, mode=solver), run=replace(config.run, workers=0))


def _read_run(folder: Path) -> list[PlacedScene]:
    from dto_pipeline.data.label_files import find_label_files
    from dto_pipeline.data.labels import read_placed

    return [item for file in find_label_files(folder) for item in read_placed(file)]


def _draw(
    placed: dict[str, list[PlacedScene]], truth: dict[str, np.ndarray], body: BodyModel, out: Path, depth: DepthConfig
) -> list[str]:
    """Draw the chosen scenes as given and by solver, with what the depth source saw; returns the files below `out`."""
    from dto_pipeline.data.images import read_image
    from dto_pipeline.lab.demo_score import choose_pictures
    from dto_pipeline.models.depth import DepthFiles
    from dto_pipeline.models.depth_anything import DepthNetwork
    from dto_pipeline.view.pages import solver_panel
    from dto_pipeline.view.panel import People, save_png

    written = []
    first = placed["paper"]
    for item in choose_pictures(first, _PICTURES):
        place = first.index(item)
        rows = item.scene.source_row
        name = str(truth["image_name"][rows[0]])
        image = item.scene.image = read_image(out / "data" / "images" / name).rgb
        if depth.source == "files":
            file = str(Path(name).with_suffix(".npy"))
            item.scene.disparity = DepthFiles(out / "data" / "depth").load(file, *image.shape[:2])
        else:
            (seen,) = DepthNetwork(depth).estimate([image])
            item.scene.disparity = None if isinstance(seen, Exception) else seen
        true_people = People(truth["pose"][rows], truth["betas"][rows], truth["transl"][rows])
        name = f"pictures/{Path(item.scene.image_path).stem}.png"
        by_solver = {solver: items[place] for solver, items in placed.items()}
        save_png(solver_panel(by_solver, body, true_people), out / name)
        written.append(name)
        print(f"4  {out / name}")
    return written


def _compare_depth(
    out: Path, manifest: Path, config: PipelineConfig, placed: dict[str, list[PlacedScene]], body: BodyModel
) -> dict[str, Any]:
    """The depth network on the unbroken pictures, and their labels with it beside those with the true depth."""
    from dto_pipeline.data.images import read_image
    from dto_pipeline.lab.crowd_files import write_map
    from dto_pipeline.lab.demo_data import build_true_pictures, read_truth
    from dto_pipeline.lab.demo_score import DEPTH_MEASURES, EVERYBODY, as_table, measure_network, score_demo
    from dto_pipeline.models.depth import METRES_PER_DEPTH
    from dto_pipeline.models.depth_anything import DepthNetwork
    from dto_pipeline.run.driver import run_pipeline

    print(f"5  the same with true depth -> {out / 'run-true-depth'}")
    pictures = dict(build_true_pictures(out / "data", body))
    for name, picture in pictures.items():
        write_map(out / "true-depth", name, (METRES_PER_DEPTH / picture.z).astype("float32"))
    network = DepthNetwork(config.depth)
    seen = ((read_image(out / "data/images" / name).rgb, one.z, one.person) for name, one in pictures.items())
    quality = measure_network(network, seen)
    exact = {}
    for solver, folder in _SOLVERS.items():
        plain = replace(_here(config, solver), depth=DepthConfig())
        run_pipeline(manifest, out / f"{folder}-true-depth", plain, progress=False, depth_root=out / "true-depth")
        exact[solver] = _read_run(out / f"{folder}-true-depth")
    truth = read_truth(out / "data")
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
