"""`dto bench`: where the time goes, and what batching is worth, on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dto_pipeline.commands.options import add_config_options, positive, read_config
from dto_pipeline.commands.output import print_report

if TYPE_CHECKING:
    from dto_pipeline.config import PipelineConfig
    from dto_pipeline.data.manifest import Manifest
    from dto_pipeline.models.body import BodyModel
    from dto_pipeline.models.seeing import Sight
    from dto_pipeline.scene import PlacedScene
    from dto_pipeline.timing import StageClock


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "bench",
        help="milliseconds per image for each stage, on generated scenes",
        description="Writes scenes to a temporary folder and times every stage on one thread, beside a plain "
        "per-person loop of the same method, in one run.",
    )
    parser.add_argument("--images", type=positive, default=16, metavar="N", help="images (16)")
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="runs whose median is taken (5)")
    parser.add_argument(
        "--depth",
        action="store_true",
        help="with a depth network (--set depth.model=...): images/s alone and end to end, share of peak, waits",
    )
    parser.add_argument(
        "--resume", type=positive, metavar="SHARDS", help="time the resume of a finished run of so many shards instead"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_config_options(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.lab.bench_depth import DepthBenchReport, run_depth_bench
    from dto_pipeline.lab.bench_resume import ResumeBench, run_resume_bench
    from dto_pipeline.lab.bench_stages import BenchReport, run_bench

    report: BenchReport | DepthBenchReport | ResumeBench
    if arguments.resume:
        report = run_resume_bench(arguments.resume)
    elif arguments.depth:
        report = run_depth_bench(place_shard, arguments.images, arguments.repeats, read_config(arguments))
    else:
        report = run_bench(arguments.images, arguments.repeats, read_config(arguments))
    print_report(report, arguments.json)
    return 0


def place_shard(
    manifest: Manifest, config: PipelineConfig, body: BodyModel, sight: Sight, clock: StageClock, rounds: int = 1
) -> list[PlacedScene]:
    """The first shard of a manifest, so many times over, as a worker does it, with the networks of `sight`."""
    from dto_pipeline.data.images import ImageFolder
    from dto_pipeline.optimizer import SceneOptimizer
    from dto_pipeline.run.placing import ScenePlacer

    rows = manifest.read_shard(0)
    rows = rows.take(list(range(rows.num_rows)) * rounds)
    images = ImageFolder(Path(manifest.images_root))
    return ScenePlacer(SceneOptimizer(body, config), config, images, None, sight).place(rows, clock)
