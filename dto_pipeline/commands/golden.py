"""`dto golden`: parity with recorded reference results."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dto_pipeline.lab.golden import GoldenReport


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "golden",
        help="compare this installation with recorded reference results",
        description="Runs every case of a folder in the format of tests/golden (solver, person, image, rh_metric, "
        "depth, mahmr) and prints how many agree. Exit code 1 if one differs; cases that hang on rounding errors are "
        "reported only.",
    )
    parser.add_argument("folder", metavar="DIR", help="folder of recorded cases")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="print JSON, or write it to FILE")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    report = check_golden(Path(arguments.folder))
    text = json.dumps(report.to_json(), indent=1)
    print(text if arguments.json == "-" else report.as_table())
    if arguments.json not in (None, "-"):
        Path(arguments.json).write_text(text + "\n")
    return 0 if report.passed else 1


def check_golden(folder: Path) -> GoldenReport:
    """Run every family found in `folder`.

    Raises:
        GoldenFolderError: there is no case of any family.
    """
    from dto_pipeline.lab.golden import GoldenFolderError, GoldenReport
    from dto_pipeline.lab.golden_labels import FAMILIES
    from dto_pipeline.lab.golden_mahmr import check_mahmr_cases

    families = {**FAMILIES, "mahmr": check_mahmr_cases}
    results = {family: check(folder) for family, check in families.items()}
    if not any(results.values()):
        expected = ", ".join(families)
        raise GoldenFolderError(f"{folder} holds no recorded cases; expected one of the folders {expected} in it")
    return GoldenReport(results)
