"""`dto bench`: milliseconds per image of each stage on this machine."""

from __future__ import annotations

import argparse
import json

from dto_pipeline.commands.options import add_config_options, positive, read_config


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "bench",
        help="milliseconds per image for each stage, on generated scenes",
        description="Writes scenes to a temporary folder and times every stage on one thread; for comparison also a "
        "plain loop over people.",
    )
    parser.add_argument("--images", type=positive, default=16, metavar="N", help="images (16); --depth repeats them")
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="runs whose median is taken (5)")
    parser.add_argument(
        "--depth",
        action="store_true",
        help="time a depth network (--set depth.model=...): images/s alone and end to end, share of the peak",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_config_options(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.lab.bench import run_bench, run_depth_bench

    run = run_depth_bench if arguments.depth else run_bench
    figures, table = run(arguments.images, arguments.repeats, read_config(arguments))
    print(json.dumps(figures, indent=1) if arguments.json else table)
    return 0
