"""`dto status`: the state of a run, also while it runs or after its driver died."""

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

WATCH_S = 5.0  # default of --watch
_PAUSE = 10  # least pause, in durations of one reading: a big remote run is read less often


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "status",
        help="what is done, failed and pending in a run",
        description="Reads the run's folder only: from any machine that sees it, also after the driver died. "
        "Exit code 0; with --watch 0 once every shard is done, 1 if shards were given up or a line says WRONG.",
    )
    parser.add_argument("run_dirs", metavar="RUN", nargs="+", help="folders or URIs of runs; of several, one table")
    parser.add_argument("--json", action="store_true", help="print JSON; with --watch one line each time")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=measure,
        const=WATCH_S,
        metavar="SECONDS",
        help=f"print again after so many seconds (default {WATCH_S:g}) until nothing is pending",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.run.report import read_status

    runs = arguments.run_dirs
    if len(runs) > 1:
        if arguments.watch is not None:
            raise DtoError(f"--watch takes one run, {len(runs)} are named")
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
        "sanity": "WRONG" if status.sanity.contradictions else "look" if status.sanity.warnings else "-",
    }


def _watch(run_dir: str, arguments: argparse.Namespace) -> int:
    from dto_pipeline.run.report import read_status
    from dto_pipeline.status import ShardStatus

    while True:
        started = time.monotonic()
        status = read_status(run_dir)
        seconds = time.monotonic() - started
        clear = "\033[H\033[2J" if sys.stdout.isatty() and not arguments.json else ""
        print(clear + (json.dumps(status.to_json()) if arguments.json else status.as_table()), flush=True)
        if not status.shards[ShardStatus.PENDING]:
            return 1 if status.shards[ShardStatus.FAILED] or status.sanity.contradictions else 0
        time.sleep(max(arguments.watch, _PAUSE * seconds))
