"""`dto status`: what a run's folder says, also while it runs or after its driver died."""

from __future__ import annotations

import argparse
import json


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("status", help="what is done, failed and pending in a run")
    parser.add_argument("run_dir", metavar="RUN", help="the run's folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.run.report import read_status

    status = read_status(arguments.run_dir)
    print(json.dumps(status.to_json(), indent=1) if arguments.json else status.as_table())
    return 0
