"""`dto demo`: synthetic crowds with known truth through the whole pipeline."""

from __future__ import annotations

import argparse

from dto_pipeline.commands.options import not_negative, positive
from dto_pipeline.commands.output import local_place, show_progress


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "demo",
        help="see it work: synthetic crowds with known truth, in a few minutes",
        description="Writes a small data set in the public formats (some of it broken on purpose), runs the pipeline "
        "on it with two Ray workers, and compares three kinds of labels with the truth: as given, placed by `paper`, "
        "and by `joint`. If all is done already, it only prints the results.",
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
    from dto_pipeline.lab.demo import run_demo

    out, network = local_place(arguments.out), arguments.depth == "network"
    return run_demo(out, arguments.images, arguments.workers, network, show_progress)
