"""`dto diff`: what two sets of labels say differently."""

from __future__ import annotations

import argparse

from dto_pipeline.commands.output import print_report


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "diff",
        help="compare two runs image by image and person by person; exit code 1 if they differ",
        description="Joins images by key and people by index. Each side may be a run's folder, a folder of label files "
        "or one file.",
    )
    parser.add_argument("before", metavar="RUN_A", help="run, folder of label files, or label file")
    parser.add_argument("after", metavar="RUN_B", help="the same")
    parser.add_argument("--worst", type=int, default=10, metavar="N", help="persons named, those that moved most (10)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.view.diff import diff_labels

    diff = diff_labels(arguments.before, arguments.after, arguments.worst)
    print_report(diff, arguments.json)
    return 0 if diff.equal else 1
