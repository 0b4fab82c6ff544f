"""`dto report`: a run as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dto_pipeline.commands.options import not_negative
from dto_pipeline.commands.output import local_place, show_several
from dto_pipeline.commands.status import status_facts
from dto_pipeline.commands.view import add_places
from dto_pipeline.errors import DtoError

if TYPE_CHECKING:
    from dto_pipeline.run.report import RunStatus


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "report",
        help="one self-contained HTML page: counts, speed, heights against priors, the worst scenes",
        description="Writes DIR/index.html, which opens in any browser without a network: totals, statuses with "
        "advice, speed, distributions, the worst and some random scenes as pictures, configuration and models.",
    )
    parser.add_argument(
        "run_dirs", metavar="RUN", nargs="+", help="folders of runs; of several, a page each and a table"
    )
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--worst", type=not_negative, default=3, metavar="N", help="worst scenes shown (3)")
    parser.add_argument("--random", type=not_negative, default=3, metavar="N", help="random scenes shown (3)")
    parser.add_argument("--seed", type=not_negative, default=0, metavar="S", help="seed of the random scenes (0)")
    add_places(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    runs, out = arguments.run_dirs, local_place(arguments.out)
    if len(runs) == 1:
        print(_write(runs[0], out, arguments))
        return 0
    if arguments.manifest or arguments.images or arguments.depth:
        raise DtoError(f"--manifest, --images and --depth name those of one run, {len(runs)} are named")
    from dto_pipeline.run.report import read_status

    folders = _folders(runs)

    def page(number: int) -> RunStatus:
        _write(runs[number], out / folders[number], arguments)
        return read_status(runs[number])

    code = show_several(runs, page, status_facts, lambda _: 0, False)
    print("\n".join(str(out / folder) for folder in folders))
    return code


def _folders(runs: list[str]) -> list[str]:
    """A folder for each run, with its name; repeated names get a number."""
    names = [run.rstrip("/").rpartition("/")[2] or "run" for run in runs]
    return [f"{name}-{names[:k].count(name) + 1}" if name in names[:k] else name for k, name in enumerate(names)]


def _write(run_dir: str, out: Path, arguments: argparse.Namespace) -> Path:
    """Write the page of one run, without scenes if its body model is gone and none is named."""
    from dto_pipeline.view.report import write_report
    from dto_pipeline.view.run_files import find_run_body, open_pixels, open_run_files

    run = open_run_files(run_dir, arguments.manifest)
    body, problem = find_run_body(run, arguments.body)
    if body is None:
        print(f"without scenes: {problem}")
    if run.manifest is None:
        print(f"without photographs: {run.manifest_problem}")
    pixels = open_pixels(run, arguments.images, arguments.depth)
    return write_report(run, body, pixels, out, arguments.worst, arguments.random, arguments.seed)
