"""Compare two trainings, with and without the relative metric loss, by the distances between people they predict.

    python jobs/compare_training.py --out out/train

Both start from the same encoder, the first layers of the DINOv2 inside the demo's depth network
(trained on other crowds with their true depth, see `dto_pipeline/assets/depth_tiny`). Draws crowds (0.1 s each),
labels those to train on with `dto run` (the joint solver, depth maps with errors), trains a network with the relative
metric loss and one without, same seed and steps, and measures both and the untrained network on crowds of another seed
against their exact truth. Trainings of one seed run side by side, a core each. Writes comparison.json and
comparison.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from depth_tiny import save_backbone

from dto_pipeline.config import STAND_IN_BODY, load_config
from dto_pipeline.data.dataset import load_dataset
from dto_pipeline.data.files import write_bytes_atomic, write_json_atomic
from dto_pipeline.data.images import read_image
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.lab.crowd import plan_crowd
from dto_pipeline.lab.crowd_files import build_demo_data, read_truth
from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.terminal import markdown
from dto_pipeline.train.augment import Draw, resize
from dto_pipeline.train.checkpoint import begin_network, list_checkpoints, read_checkpoint, restore_network
from dto_pipeline.train.config import AugmentConfig, DataConfig, TrainConfig
from dto_pipeline.train.dataset import Sample, TrainBatch, collate_samples
from dto_pipeline.train.learner import MEASURES, evaluate
from dto_pipeline.train.model import MeshNetwork, Predictions, with_joints
from dto_pipeline.train.targets import ImageLabels, Rules, see_people, unknown_people

CONFIG = Path(__file__).parent / "train.yaml"
TRAINING_SEED, TEST_SEED = 301, 307  # of the crowds; settings were chosen on the crowds of seeds 302 to 306
ENCODER_LAYERS = 4  # of the six of the demo's depth network: people's size is best seen in the middle ones
SCALE = 0.4  # of the demo's pictures
KINDS = {"with": "relative metric loss", "without": "without it"}
_BATCH = 12  # test images at once
_SHOWN = ("pair_depth_error", "near_pair_depth_error", "ordinal", "depth_error", "fov_error", "mpjpe", "recall")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/train"), help="folder of everything")
    parser.add_argument("--images", type=int, default=480, help="crowds to train on")
    parser.add_argument("--test-images", type=int, default=84, help="crowds to measure on")
    parser.add_argument("--test-seed", type=int, default=TEST_SEED, help="of the crowds to measure on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of weights, order and augmentation")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    started, body = time.monotonic(), load_body(STAND_IN_BODY)
    training = draw_crowds(arguments.out, TRAINING_SEED, arguments.images, body)
    test = draw_crowds(arguments.out, arguments.test_seed, arguments.test_images, body)
    labels = label_crowds(training)
    options = [f"encoder.model={take_encoder(arguments.out)}"]
    measures: dict[str, list[dict[str, float]]] = {"untrained": [], **{kind: [] for kind in KINDS}}
    for seed in arguments.seeds:
        folders = train_both(arguments.out, labels, seed, [*options, *arguments.overrides])
        for name, network, config in networks_of(folders):
            measures[name].append(measure(network, config, test, body))
            print(f"seed {seed}, {name}: " + ", ".join(f"{key} {measures[name][-1][key]:.3f}" for key in _SHOWN))
    report = {"measures": measures, "seeds": arguments.seeds, "overrides": arguments.overrides}
    write_json_atomic(arguments.out / "comparison.json", report)
    table = as_table(measures)
    write_bytes_atomic(arguments.out / "comparison.md", table.encode())
    print(f"\n{table}\n{arguments.out / 'comparison.md'} written; {time.monotonic() - started:.0f} s")


def draw_crowds(out: Path, seed: int, images: int, body: BodyModel) -> Path:
    """The folder of a set of crowds; they are drawn unless they are there."""
    folder = out / f"crowds-{seed}"

    def show(done: int, count: int) -> None:
        print(f"\r{folder}: {done} of {count} crowds", end="\n" if done == count else "", flush=True)

    build_demo_data(folder, body, images, seed, SCALE, spoilt=False, progress=show)
    return folder


def label_crowds(folder: Path) -> Path:
    """The run that labels a set of crowds; done unless it is there."""
    manifest, run = folder / "manifest.parquet", folder / "run"
    if not manifest.exists():
        dataset = str(files("dto_pipeline.assets") / "demo.yaml")
        build_manifest(load_dataset(dataset, folder), manifest, progress=False)
    print(
        run_pipeline(
            manifest, run, load_config(None, ["solver.mode=joint", "run.workers=0", f"body.model_path={STAND_IN_BODY}"])
        ).as_table()
    )
    return run


def take_encoder(out: Path) -> Path:
    """The folder of the encoder; written unless it is there."""
    folder = out / f"encoder-{ENCODER_LAYERS}"
    if not (folder / "model.safetensors").exists():
        save_backbone(str(files("dto_pipeline.assets") / "depth_tiny"), folder, ENCODER_LAYERS)
    return folder


def train_both(out: Path, labels: Path, seed: int, overrides: Sequence[str]) -> dict[str, Path]:
    """Run `dto train` with and without the relative metric loss, side by side. Returns the folders of the trainings."""
    folders = {kind: out / f"{kind}-{seed}" for kind in KINDS}
    seeds = [f"loop.seed={seed}", f"data.seed={seed}"]
    started: list[subprocess.Popen[bytes]] = []
    for kind, folder in folders.items():
        options = [f"data.labels=[{labels}]", f"body.model_path={STAND_IN_BODY}", *seeds, *overrides]
        options += ["loss.relative_metric=0"] if kind == "without" else []
        command = [sys.executable, "-m", "dto_pipeline.cli", "train", str(CONFIG), "-o", str(folder)]
        command += [part for option in options for part in ("--set", option)]
        # one bar is enough
        started.append(subprocess.Popen(command if not started else [*command, "--quiet"]))
    if any(process.wait() != 0 for process in started):
        sys.exit("a training failed; its message stands above")
    return folders


def networks_of(folders: dict[str, Path]) -> Iterator[tuple[str, MeshNetwork, TrainConfig]]:
    """The untrained network of this seed and the trained ones, with their configs."""
    checkpoints = {kind: read_checkpoint(list_checkpoints(folder)[-1]) for kind, folder in folders.items()}
    config = next(iter(checkpoints.values())).config
    torch.manual_seed(config.loop.seed)
    yield "untrained", begin_network(config)[0].eval(), config
    for kind, checkpoint in checkpoints.items():
        yield kind, restore_network(checkpoint), checkpoint.config


def measure(network: MeshNetwork, config: TrainConfig, crowds: Path, body: BodyModel) -> dict[str, float]:
    """`train.learner.MEASURES` of a network against the truth of a set of crowds."""

    @torch.no_grad()
    def predict(batch: TrainBatch) -> Predictions:
        return with_joints(network(batch.images, batch.targets.intrinsics[:, :2, 2]), body)

    return evaluate(predict, truth_batches(crowds, config.data.input_size, body), body)


def truth_batches(crowds: Path, side: int, body: BodyModel) -> Iterator[TrainBatch]:
    """The whole pictures of a set of crowds, with the truth as labels."""
    settings = json.loads((crowds / "demo.json").read_text())
    truth = read_truth(crowds)
    rules, samples = Rules(body, DataConfig(input_size=side), AugmentConfig()), list[Sample]()
    for number in range(settings["images"]):
        rows = np.flatnonzero(truth["image_number"] == number)
        camera = plan_crowd(settings["seed"], number).view.scaled(settings["scale"]).intrinsics
        rgb = read_image(crowds / "images" / str(truth["image_name"][rows[0]])).rgb
        size, labels = (rgb.shape[1], rgb.shape[0]), true_labels(truth, rows, camera)
        seen = see_people(labels, size, Draw(), rules)
        samples.append(Sample(str(number), resize(rgb, seen.frame.resized), seen))
    for first in range(0, len(samples), _BATCH):
        yield collate_samples([*samples[first : first + _BATCH]])


def true_labels(truth: dict[str, np.ndarray], rows: np.ndarray, camera: np.ndarray) -> ImageLabels:
    """The truth of one picture."""
    known: dict[str, Any] = {name: truth[name][rows] for name in ("pose", "betas", "transl")}
    return replace(unknown_people(len(rows), camera), **known, has_camera=True, has_body=np.ones(len(rows), bool))


def as_table(measures: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: a row per measure, mean over seeds, the range where there are several."""

    def cell(rows: list[dict[str, float]], key: str) -> str:
        values = [row[key] for row in rows]
        spread = f" ({min(values):.3f} .. {max(values):.3f})" if len(values) > 1 else ""
        return f"{np.mean(values):.3f}{spread}"

    rows_shown = [[MEASURES[key], *(cell(rows, key) for rows in measures.values())] for key in _SHOWN]
    lines = markdown(["", "untrained", *KINDS.values()], rows_shown)
    counts = next(iter(measures.values()))[0]
    lines.append(f"\n{counts['images']:.0f} images, {counts['persons']:.0f} people, {counts['pairs']:.0f} pairs.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
