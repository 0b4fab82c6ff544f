"""`dto bench`: where the time goes, and what batching is worth, on this machine."""

from __future__ import annotations

import argparse
import json

from dto_pipeline.commands.options import add_config_options, read_config


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "bench",
        help="milliseconds per image for each stage, on generated scenes",
        description="Writes scenes to a temporary folder and times every stage on one thread, beside a plain "
        "per-person loop of the same method, in one run.",
    )
    parser.add_argument("--images", type=int, default=16, metavar="N", help="images (16)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs whose median is taken (5)")
    parser.add_argument("--manifest", type=int, metavar="ROWS", help="time a manifest build of so many rows instead")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_config_options(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.bench.manifest import ManifestBench, run_manifest_bench
    from dto_pipeline.bench.stages import BenchReport, run_bench

    report: BenchReport | ManifestBench
    if arguments.manifest:
        report = run_manifest_bench(arguments.manifest)
    else:
        report = run_bench(arguments.images, arguments.repeats, read_config(arguments))
    print(json.dumps(report.to_json(), indent=1) if arguments.json else report.as_table())
    return 0
