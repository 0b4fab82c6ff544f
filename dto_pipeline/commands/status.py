"""`dto status`: what a run's folder says, also while it runs or after its driver died."""

from __future__ import annotations

import argparse
import json
import sys
import time

from dto_pipeline.commands.output import print_report

WATCH_S = 5.0  # between two looks, unless asked otherwise
_SHARE = 10  # a look may take this part of the time at most: a big run far away is looked at less often


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "status",
        help="what is done, failed and pending in a run",
        description="Reads the run's folder and nothing else: from any machine that sees it, while the driver works or "
        "after it died. Exit code 0; with --watch 0 once every shard is done, 1 where shards were given up.",
    )
    parser.add_argument("run_dir", metavar="RUN", help="the run's folder or URI")
    parser.add_argument("--json", action="store_true", help="print JSON; with --watch one line a look")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=WATCH_S,
        metavar="SECONDS",
        help=f"look again every so often (default {WATCH_S:g}) until nothing is pending",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.run.report import read_status

    if arguments.watch is not None:
        return _watch(arguments)
    status = read_status(arguments.run_dir)
    print_report(status, arguments.json)
    return 0


def _watch(arguments: argparse.Namespace) -> int:
    from dto_pipeline.run.report import read_status
    from dto_pipeline.status import ShardStatus

    while True:
        started = time.monotonic()
        status = read_status(arguments.run_dir)
        seconds = time.monotonic() - started
        if arguments.json:
            print(json.dumps(status.to_json()), flush=True)
        elif sys.stdout.isatty():
            print(f"\033[H\033[2J{status.as_table()}", flush=True)  # from the top of a cleared screen
        else:
            print(status.as_line(), flush=True)
        if not status.shards[ShardStatus.PENDING]:
            return 1 if status.shards[ShardStatus.FAILED] else 0
        time.sleep(max(arguments.watch, _SHARE * seconds))
