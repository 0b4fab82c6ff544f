"""`dto golden`: parity with recorded reference results."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "golden",
        help="compare this installation with recorded reference results",
        description="Runs every case of a folder in the format of tests/golden (solver, person, image, rh_metric, "
        "depth, mahmr) and prints how many agree. Exit code 1 if any strict case differs.",
    )
    parser.add_argument("folder", metavar="DIR", help="folder of recorded cases")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="print JSON, or write it to FILE")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.lab.golden import check_golden

    report = check_golden(Path(arguments.folder))
    text = json.dumps(report.to_json(), indent=1)
    if arguments.json == "-":
        print(text)
    else:
        print(report.as_table())
    if arguments.json not in (None, "-"):
        Path(arguments.json).write_text(text + "\n")
    return 0 if report.passed else 1
