"""`dto demo`: synthetic crowds with known truth through the whole pipeline, and what it made of them."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dto_pipeline

if TYPE_CHECKING:
    import numpy as np

    from dto_pipeline.demo.score import DemoScore
    from dto_pipeline.models.body import BodyModel
    from dto_pipeline.run.driver import RunSummary
    from dto_pipeline.scene import PlacedScene

_DATASET = Path(dto_pipeline.__file__).parent.parent / "manifests" / "demo.yaml"
_PICTURES = 5  # scenes drawn before and after


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "demo",
        help="see it work: synthetic crowds with known truth, in a few minutes",
        description="Writes a small data set in the public formats (some of it broken on purpose), runs the pipeline "
        "on it with two Ray workers, and compares the labels with the truth. Run again, it does nothing new.",
    )
    parser.add_argument("-o", "--out", default="out/demo", metavar="DIR", help="folder to write to (out/demo)")
    parser.add_argument("--images", type=int, default=24, metavar="N", help="images to make (24)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="Ray workers (2); 0 = without Ray")
    parser.add_argument("--dataset", default=str(_DATASET), metavar="YAML", help="description of the demo's data set")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.config import load_config
    from dto_pipeline.data.placed import read_placed
    from dto_pipeline.demo.dataset import DemoSettings, build_demo_data, read_truth
    from dto_pipeline.demo.score import score_demo
    from dto_pipeline.models.body import load_body
    from dto_pipeline.run.driver import run_pipeline

    started = time.monotonic()
    out = Path(arguments.out)
    body = load_body()
    print(f"1  data set with known truth -> {out / 'data'}")
    data = build_demo_data(out / "data", body, DemoSettings(images=arguments.images), _progress)
    manifest = _manifest(Path(arguments.dataset), out, data.created)
    print(f"3  run -> {out / 'run'}")
    config = load_config(None, [f"run.workers={arguments.workers}"])
    summary = run_pipeline(manifest, out / "run", config)
    if summary.nothing_to_do and (out / "summary.json").exists():
        print("\nEverything was done before; nothing new. Remove the folder to start afresh.\n")
        print(json.loads((out / "summary.json").read_text())["table"])
        return summary.exit_code
    placed = [item for file in sorted((out / "run" / "labels").glob("*.parquet")) for item in read_placed(file)]
    score = score_demo(placed, read_truth(out / "data"), body)
    pictures = _draw(placed, read_truth(out / "data"), body, out)
    seconds = time.monotonic() - started
    report = _report(arguments, data.broken, score, summary, pictures, seconds)
    print(f"\n{score.as_table()}\n\n{out / 'summary.json'} written; {seconds:.0f} s")
    _write(out / "summary.json", report)
    return summary.exit_code


def _progress(done: int, images: int) -> None:
    print(f"\r   {done} of {images} images", end="\n" if done == images else "", flush=True)


def _manifest(dataset: Path, out: Path, rebuild: bool) -> Path:
    from dto_pipeline.data.dataset import load_dataset
    from dto_pipeline.data.manifest import build_manifest

    path = out / "manifest.parquet"
    print(f"2  manifest -> {path}")
    if rebuild or not path.exists():
        print(build_manifest(load_dataset(dataset, out / "data"), path, progress=False).as_table())
    return path


def _draw(placed: list[PlacedScene], truth: dict[str, np.ndarray], body: BodyModel, out: Path) -> list[str]:
    """Draw the chosen scenes before and after; returns the files, relative to `out`."""
    from dto_pipeline.data.images import read_image
    from dto_pipeline.demo.score import choose_pictures
    from dto_pipeline.view.panel import People, save_png
    from dto_pipeline.view.scene_panel import scene_panel

    written = []
    for item in choose_pictures(placed, _PICTURES):
        rows = item.scene.source_row
        item.scene.image = read_image(out / "data" / "images" / str(truth["image_name"][rows[0]])).rgb
        true_people = People(truth["pose"][rows], truth["betas"][rows], truth["transl"][rows])
        name = f"pictures/{Path(item.scene.image_path).stem}.png"
        save_png(scene_panel(item, body, true_people), out / name)
        written.append(name)
        print(f"4  {out / name}")
    return written


def _report(
    arguments: argparse.Namespace,
    broken: dict[str, str],
    score: DemoScore,
    summary: RunSummary,
    pictures: list[str],
    seconds: float,
) -> dict[str, Any]:
    return {
        "depth": "depth maps written with the scenes (no depth network was run)",
        "errors": score.to_json()["comparison"],
        "image_status": score.image_status,
        "person_status": score.person_status,
        "broken_on_purpose": broken,
        "pictures": pictures,
        "workers": arguments.workers,
        "images_per_s": round(summary.images_per_s, 2),
        "stage_seconds": {stage: round(value, 3) for stage, value in summary.stage_seconds.items()},
        "wall_s": round(seconds, 1),
        "table": score.as_table(),
    }


def _write(path: Path, report: dict[str, Any]) -> None:
    from dto_pipeline.data.files import write_json_atomic

    write_json_atomic(path, report)
