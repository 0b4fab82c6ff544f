"""`dto verify`: whether a run holds what its files say."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from dto_pipeline.commands.options import add_moved_options, not_negative
from dto_pipeline.commands.output import show_several
from dto_pipeline.errors import DtoError

if TYPE_CHECKING:
    from dto_pipeline.view.verify import Verdict


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "verify",
        help="check receipts, rows and labels of a run; exit code 1 if anything is damaged",
        description="Reads every label file of a run and checks it against its receipt, against the manifest (every "
        "image once, the input restored exactly by undoing the change) and against what a fit may do to a label. "
        "Broken: a finished shard fails a check; dto run --recheck makes damaged files again. "
        "Doubtful: a person who looks wrong in a sound row; the same run would give it again, so a next step is named. "
        "Exit codes: 0 every shard is done and sound; 1 something is broken, or shards were given up; 2 it cannot be "
        "read; 3 what is done is sound, the rest is pending.",
    )
    parser.add_argument("run_dirs", metavar="RUN", nargs="+", help="folders of runs; of several, one table")
    add_moved_options(parser)
    parser.add_argument("--limit", type=not_negative, default=5, metavar="N", help="offences shown per rule (5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.view.verify import verify_run

    runs = arguments.run_dirs
    if len(runs) > 1:
        if arguments.manifest:
            raise DtoError(f"--manifest names that of one run, {len(runs)} are named; verify it alone")

        def verify(number: int) -> Verdict:
            return verify_run(runs[number], None, arguments.body)

        return show_several(runs, verify, _facts, lambda verdict: verdict.exit_code, arguments.json)
    verdict = verify_run(runs[0], arguments.manifest, arguments.body)
    print(json.dumps(verdict.to_json(), indent=1) if arguments.json else verdict.as_table(arguments.limit))
    return verdict.exit_code


def _facts(verdict: Verdict) -> dict[str, str]:
    """A row of the table over several runs."""
    broken = [name for name, rule in verdict.rules.items() if rule.broken]
    return {
        "images": f"{verdict.images}",
        "persons": f"{verdict.persons}",
        "shards": f"{verdict.done} done, {verdict.given_up} given up, {verdict.pending} pending",
        "broken": "; ".join(f"{name} ({verdict.rules[name].broken})" for name in broken) or "nothing",
        "not checked": f"{len(verdict.unchecked)}",
    }
