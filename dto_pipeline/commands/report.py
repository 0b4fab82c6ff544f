"""`dto report`: a run as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dto_pipeline.commands.view import add_places

if TYPE_CHECKING:
    from dto_pipeline.models.body import BodyModel
    from dto_pipeline.view.run_files import RunFiles


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "report",
        help="one self-contained HTML page: counts, speed, heights against priors, the worst scenes",
        description="Writes DIR/index.html, which opens in any browser without a network: totals, statuses with "
        "advice, speed, distributions, the worst and some random scenes as pictures, configuration and models.",
    )
    parser.add_argument("run_dir", metavar="RUN", help="the run's folder")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--worst", type=int, default=3, metavar="N", help="worst scenes shown (3)")
    parser.add_argument("--random", type=int, default=3, metavar="N", help="random scenes shown (3)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the random scenes (0)")
    add_places(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.view.report import ReportOptions, write_report
    from dto_pipeline.view.run_files import open_pixels, open_run_files

    run = open_run_files(arguments.run_dir, arguments.manifest)
    body = _load_body(run, arguments.body)
    if run.manifest is None:
        print(f"without photographs: {run.manifest_problem}")
    pixels = open_pixels(run, arguments.images, arguments.depth)
    options = ReportOptions(arguments.worst, arguments.random, arguments.seed)
    print(write_report(run, body, pixels, Path(arguments.out), options))
    return 0


def _load_body(run: RunFiles, path: str | None) -> BodyModel | None:
    """The run's body model; the page is worth having without it, unless it was named."""
    from dto_pipeline.models.body import BodyModelError
    from dto_pipeline.view.run_files import load_run_body

    try:
        return load_run_body(run, path)
    except BodyModelError as error:
        if path is not None:
            raise
        print(f"without scenes: {error}")
        return None
