"""Train the demo's depth network (3.2 million weights) on synthetic crowds and write it into the package.

    python jobs/train_demo_depth.py --cache out/depth_training

Renders the training scenes once (0.35 s each on one core, kept in the cache), trains for about 20 minutes on one core
with bfloat16 instructions, measures on scenes never trained on, and writes dto_pipeline/assets/depth_tiny with a
README that holds the figures. Seeds are fixed; another machine's arithmetic gives other last bits, hence other weights.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

import dto_pipeline.lab as demo
from dto_pipeline.lab.depth_training import (
    HELD_OUT_SEED,
    TRAINED_UNIT,
    TRAINING_SEED,
    TrainingSettings,
    load_training_scenes,
    measure_network,
    train_depth_network,
    write_readme,
)
from dto_pipeline.models.depth_kinds import METRES_PER_DEPTH
from dto_pipeline.models.depth_tiny import build_tiny_network, save_tiny_network

HELD_OUT = 48  # scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("out/depth_training"), help="folder of rendered scenes")
    default = Path(next(iter(demo.__path__))) / "assets" / "depth_tiny"
    parser.add_argument("--out", type=Path, default=default, help="folder of the trained network")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = TrainingSettings()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    scenes = load_training_scenes(arguments.cache, TRAINING_SEED, range(settings.scenes))
    print(f"{len(scenes)} scenes")
    torch.manual_seed(settings.seed)
    network = build_tiny_network()
    train_depth_network(network, scenes, settings, lambda line: print(line, flush=True))
    save_tiny_network(network, arguments.out, METRES_PER_DEPTH / TRAINED_UNIT)
    figures = measure_network(arguments.out, load_training_scenes(arguments.cache, HELD_OUT_SEED, range(HELD_OUT)))
    write_readme(arguments.out, asdict(settings), figures)
    print(figures)


if __name__ == "__main__":
    main()
