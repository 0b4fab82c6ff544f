"""`dto status`: what a run's folder says, also while it runs or after its driver died."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

from dto_pipeline.commands.options import measure
from dto_pipeline.commands.output import print_report, show_several
from dto_pipeline.errors import DtoError

if TYPE_CHECKING:
    from dto_pipeline.run.report import RunStatus

WATCH_S = 5.0  # between two looks, unless asked otherwise
_SHARE = 10  # a look may take this part of the time at most: a big run far away is looked at less often


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "status",
        help="what is done, failed and pending in a run",
        description="Reads the run's folder and nothing else: from any machine that sees it, while the driver works or "
        "after it died. Exit code 0; with --watch 0 once every shard is done, 1 where shards were given up.",
    )
    parser.add_argument("run_dirs", metavar="RUN", nargs="+", help="folders or URIs of runs; of several, one table")
    parser.add_argument("--json", action="store_true", help="print JSON; with --watch one line a look")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=measure,
        const=WATCH_S,
        metavar="SECONDS",
        help=f"look again every so often (default {WATCH_S:g}) until nothing is pending",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.run.report import read_status

    runs = arguments.run_dirs
    if len(runs) > 1:
        if arguments.watch is not None:
            raise DtoError(f"--watch looks at one run, {len(runs)} are named")
        return show_several(runs, lambda number: read_status(runs[number]), status_facts, lambda _: 0, arguments.json)
    if arguments.watch is not None:
        return _watch(runs[0], arguments)
    status = read_status(runs[0])
    print_report(status, arguments.json)
    return 0


def status_facts(status: RunStatus) -> dict[str, str]:
    """A row of the table over several runs."""
    from dto_pipeline.run.report import format_duration

    done, failed, pending = (status.shards[str(word)] for word in ("done", "failed", "pending"))
    optimized = status.image_status.get("optimized", 0)
    return {
        "subset": status.subset,
        "shards": f"{done} done, {failed} failed, {pending} pending",
        "images": f"{status.images_done} of {status.images_total}",
        "optimized": f"{optimized}",
        "persons": f"{status.persons_done} of {status.persons_total}",
        "moved": f"{status.person_status.get('moved', 0)}",
        "images/s": f"{status.images_per_s:.1f}",
        "ETA": format_duration(status.eta_s) if pending else "-",
        "driver": status.driver,
    }


def _watch(run_dir: str, arguments: argparse.Namespace) -> int:
    from dto_pipeline.run.report import read_status
    from dto_pipeline.status import ShardStatus

    while True:
        started = time.monotonic()
        status = read_status(run_dir)
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
